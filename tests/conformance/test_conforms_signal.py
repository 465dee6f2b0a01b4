"""Requirements on signals."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from durable import RetryPolicy, Worker, activity, workflow
from durable.errors import DecodeError, WorkflowFailedError, WorkflowNotFoundError
from durable.testing import WorkflowEnvironment


@dataclass
class Approval:
    by: str
    ok: bool


@activity.defn
async def upper(text: str) -> str:
    return text.upper()


@workflow.defn
class Inbox:
    """Collects what it is sent until it is closed."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.is_closed = False

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: self.is_closed)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self.got

    @workflow.signal
    def add(self, text: str) -> None:
        self.got.append(text)

    @workflow.signal
    async def add_upper(self, text: str) -> None:
        self.got.append(await upper(text))

    @workflow.signal(name="shut")
    def close(self) -> None:
        self.is_closed = True


@workflow.defn
async def takes(count: int) -> list[int]:
    return [await workflow.wait_signal("number", int) for _ in range(count)]


async def test_signal_01(env: WorkflowEnvironment) -> None:
    """signal-1: A waiting run gets a signal's value."""
    handle = await env.start(takes, 1)
    await handle.signal("number", 7)
    assert await handle.result() == [7]


async def test_signal_02(env: WorkflowEnvironment) -> None:
    """signal-2: Signals arrive in the order they were sent."""
    handle = await env.start(takes, 20)
    for number in range(20):
        await handle.signal("number", number)
    assert await handle.result() == list(range(20))


async def test_signal_03(env: WorkflowEnvironment) -> None:
    """signal-3: A signal that nobody waits for yet is kept until somebody does."""

    @workflow.defn
    async def flow() -> list[str]:
        await workflow.wait_signal("begin")
        return [await workflow.wait_signal("early", str) for _ in range(2)]

    handle = await env.start(flow)
    await handle.signal("early", "one")
    await handle.signal("early", "two")
    await handle.signal("begin")
    assert await handle.result() == ["one", "two"]


async def test_signal_04(env: WorkflowEnvironment) -> None:
    """signal-4: Signals sent before a delayed run begins are there when it does."""
    handle = await env.start(takes, 2, start_delay=0.1)
    await handle.signal("number", 1)
    await handle.signal("number", 2)
    assert await handle.result() == [1, 2]


async def test_signal_05(env: WorkflowEnvironment) -> None:
    """signal-5: A class takes signals by its handlers, each in order of arrival."""
    handle = await env.start(Inbox)
    for text in ("a", "b", "c"):
        await handle.signal("add", text)
    await handle.signal("shut")
    assert await handle.result() == ["a", "b", "c"]


async def test_signal_06(env: WorkflowEnvironment) -> None:
    """signal-6: A signal may be named by its handler method, with its arguments checked."""
    handle = await env.start(Inbox)
    await handle.signal(Inbox.add, "a")
    await handle.signal(Inbox.close)
    assert await handle.result() == ["a"]


async def test_signal_07(env: WorkflowEnvironment) -> None:
    """signal-7: An async handler may wait for activities."""
    handle = await env.start(Inbox)
    await handle.signal("add_upper", "tea")
    await handle.signal("shut")
    assert await handle.result() == ["TEA"]


async def test_signal_08(env: WorkflowEnvironment) -> None:
    """signal-8: A function registers a handler; the signals that came before are handled first."""

    @workflow.defn
    async def flow() -> list[int]:
        got: list[int] = []
        await workflow.wait_signal("begin")

        def take(number: int) -> None:
            got.append(number)

        workflow.on_signal("number", take)
        await workflow.wait_condition(lambda: len(got) == 3)
        return got

    handle = await env.start(flow)
    await handle.signal("number", 1)
    await handle.signal("number", 2)
    await handle.signal("begin")
    await handle.signal("number", 3)
    assert await handle.result() == [1, 2, 3]


async def test_signal_09(env: WorkflowEnvironment) -> None:
    """signal-9: Waiting for a signal may time out, with TimeoutError."""

    @workflow.defn
    async def flow() -> str:
        try:
            return str(await workflow.wait_signal("answer", str, timeout=0.05))
        except TimeoutError:
            return "nobody answered"

    assert await env.execute(flow) == "nobody answered"


async def test_signal_10(env: WorkflowEnvironment) -> None:
    """signal-10: A signal that comes after a timeout is kept for the next who waits."""

    @workflow.defn
    async def flow() -> list[str]:
        said = []
        try:
            await workflow.wait_signal("answer", str, timeout=0.05)
        except TimeoutError:
            said.append("late")
        workflow.set_vars(waits=True)
        said.append(await workflow.wait_signal("answer", str))
        return said

    handle = await env.start(flow)
    await env.advance(0.3)
    await handle.signal("answer", "here")
    assert await handle.result() == ["late", "here"]


async def test_signal_11(env: WorkflowEnvironment) -> None:
    """signal-11: One signal goes to one waiter, the one who waited longest."""

    @workflow.defn
    async def flow() -> list[int]:
        return await asyncio.gather(*(workflow.wait_signal("number", int) for _ in range(3)))

    handle = await env.start(flow)
    for number in (5, 6, 7):
        await handle.signal("number", number)
    assert await handle.result() == [5, 6, 7]


async def test_signal_12(env: WorkflowEnvironment) -> None:
    """signal-12: A signal's value comes back as the type the receiver names."""

    @workflow.defn
    async def flow() -> str:
        approval = await workflow.wait_signal("approval", Approval)
        return f"{approval.by} {approval.ok}"

    handle = await env.start(flow)
    await handle.signal("approval", Approval("Ann", True))
    assert await handle.result() == "Ann True"


async def test_signal_13(env: WorkflowEnvironment) -> None:
    """signal-13: A signal without arguments is None, one with several a list."""

    @workflow.defn
    async def flow() -> list[object]:
        return [await workflow.wait_signal("any"), await workflow.wait_signal("any")]

    handle = await env.start(flow)
    await handle.signal("any")
    await handle.signal("any", 1, "two")
    assert await handle.result() == [None, [1, "two"]]


async def test_signal_14(env: WorkflowEnvironment) -> None:
    """signal-14: A value of the wrong type is the receiver's to handle, and taken."""

    @workflow.defn
    async def flow() -> list[str]:
        try:
            await workflow.wait_signal("number", int)
        except DecodeError:
            return ["refused", str(await workflow.wait_signal("number", int))]
        return []

    handle = await env.start(flow)
    await handle.signal("number", "many")
    await handle.signal("number", 3)
    assert await handle.result() == ["refused", "3"]


async def test_signal_15(env: WorkflowEnvironment) -> None:
    """signal-15: A malformed signal to a handler is dropped; the run goes on."""
    handle = await env.start(Inbox)
    await handle.signal("add", 1, 2, 3)
    await handle.signal("add", "fine")
    await handle.signal("shut")
    assert await handle.result() == ["fine"]


async def test_signal_16(env: WorkflowEnvironment) -> None:
    """signal-16: An exception that a handler lets through fails the run."""

    @workflow.defn
    async def flow() -> None:
        def refuse(text: str) -> None:
            raise ValueError(f"cannot take {text}")

        workflow.on_signal("add", refuse)
        await asyncio.sleep(3600)

    handle = await env.start(flow)
    await handle.signal("add", "tea")
    with pytest.raises(WorkflowFailedError, match="cannot take tea"):
        await handle.result()


async def test_signal_17(env: WorkflowEnvironment) -> None:
    """signal-17: A channel can be iterated, and says how many signals wait."""

    @workflow.defn
    async def flow() -> list[int]:
        await workflow.wait_signal("begin")
        channel = workflow.signal_channel("number", int)
        got = [len(channel)]
        async for number in channel:
            if number == 0:
                break
            got.append(number)
        return got

    handle = await env.start(flow)
    for number in (4, 5, 0):
        await handle.signal("number", number)
    await handle.signal("begin")
    assert await handle.result() == [3, 4, 5]


async def test_signal_18(env: WorkflowEnvironment) -> None:
    """signal-18: A run that has ended takes no signal, and the sender is told."""
    handle = await env.start(takes, 0)
    await handle.result()
    with pytest.raises(WorkflowNotFoundError):
        await handle.signal("number", 1)


async def test_signal_19(env: WorkflowEnvironment) -> None:
    """signal-19: A run signals another run by its workflow id."""

    @workflow.defn
    async def sender(target: str) -> str:
        await workflow.signal_external(target, "number", 9)
        return "sent"

    handle = await env.start(takes, 1, id="receiver")
    assert await env.execute(sender, "receiver") == "sent"
    assert await handle.result() == [9]


async def test_signal_20(env: WorkflowEnvironment) -> None:
    """signal-20: Signalling a run that is not there is an error to catch."""

    @workflow.defn
    async def sender() -> str:
        try:
            await workflow.signal_external("nobody", "number", 9)
        except WorkflowNotFoundError:
            return "nobody there"
        return "sent"

    assert await env.execute(sender) == "nobody there"


async def test_signal_21(env: WorkflowEnvironment) -> None:
    """signal-21: A receiver that is cancelled leaves its signal to the next."""

    @workflow.defn
    async def flow() -> str:
        waits = asyncio.create_task(workflow.wait_signal("text", str))
        await asyncio.sleep(0)
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        return await workflow.wait_signal("text", str)

    handle = await env.start(flow)
    await handle.signal("text", "kept")
    assert await handle.result() == "kept"


async def test_signal_22(env: WorkflowEnvironment) -> None:
    """signal-22: Signals during an activity wait for its end and are not lost."""
    begun, gate = asyncio.Event(), asyncio.Event()

    @activity.defn
    async def busy() -> str:
        begun.set()
        await gate.wait()
        return "done"

    @workflow.defn
    async def flow() -> list[str]:
        said = [await busy()]
        said.append(await workflow.wait_signal("text", str))
        return said

    handle = await env.start(flow)
    await asyncio.wait_for(begun.wait(), 10)
    await handle.signal("text", "meanwhile")
    gate.set()
    assert await handle.result() == ["done", "meanwhile"]


async def test_signal_23(env: WorkflowEnvironment) -> None:
    """signal-23: A condition is looked at again after every signal."""

    @workflow.defn
    async def flow() -> int:
        total = 0

        def add(number: int) -> None:
            nonlocal total
            total += number

        workflow.on_signal("add", add)
        await workflow.wait_condition(lambda: total >= 10)
        return total

    handle = await env.start(flow)
    for number in (4, 5, 6):
        await handle.signal("add", number)
    assert await handle.result() >= 10


async def test_signal_24(env: WorkflowEnvironment) -> None:
    """signal-24: A condition may time out, with TimeoutError."""

    @workflow.defn
    async def flow() -> str:
        try:
            await workflow.wait_condition(lambda: False, timeout=0.05)
        except TimeoutError:
            return "too late"
        return "true"

    assert await env.execute(flow) == "too late"


async def test_signal_25(env: WorkflowEnvironment) -> None:
    """signal-25: A receiver may look without waiting."""

    @workflow.defn
    async def flow() -> list[str]:
        await workflow.wait_signal("begin")
        channel = workflow.signal_channel("text", str)
        got = [channel.receive_nowait()]
        try:
            channel.receive_nowait()
        except asyncio.QueueEmpty:
            got.append("empty")
        return got

    handle = await env.start(flow)
    await handle.signal("text", "first")
    await handle.signal("begin")
    assert await handle.result() == ["first", "empty"]


async def test_signal_26(env: WorkflowEnvironment) -> None:
    """signal-26: Of two hundred signals in a row none is lost or doubled."""
    handle = await env.start(takes, 200)
    for number in range(200):
        await handle.signal("number", number)
    assert await handle.result() == list(range(200))


async def test_signal_27(database: Any) -> None:
    """signal-27: One call signals a run, and starts it when it is not there."""
    async with Worker(database.dsn, workflows=[takes]):
        for number in (1, 2):
            handle = await database.client.signal_with_start(
                takes, 2, id="entity-1", signal="number", signal_args=[number]
            )
        assert await handle.result(30) == [1, 2]


@workflow.defn
async def takes_first() -> int:
    return await workflow.wait_signal("number", int)


async def test_signal_28(env: WorkflowEnvironment) -> None:
    """signal-28: Signals that a run does not take do not keep it from ending."""
    handle = await env.start(takes_first, start_delay=0.3)
    for number in (1, 2, 3):
        await handle.signal("number", number)
    assert await handle.result() == 1


@workflow.defn
async def takes_one_and_goes_on(found: list[int]) -> list[int]:
    found.append(await workflow.wait_signal("number", int))
    if len(found) < 3:
        workflow.continue_as_new(found)
    return found


async def test_signal_29(env: WorkflowEnvironment) -> None:
    """signal-29: What a run did not take before it goes on as new is taken by the next."""
    handle = await env.start(takes_one_and_goes_on, [], start_delay=0.3)
    for number in (1, 2, 3):
        await handle.signal("number", number)
    assert await handle.result() == [1, 2, 3]


@workflow.defn(retry=RetryPolicy(initial_interval=0.01, max_attempts=3))
async def fails_on_small_numbers() -> int:
    number = await workflow.wait_signal("number", int)
    if number < 3:
        raise RuntimeError("too small")
    return number


async def test_signal_30(env: WorkflowEnvironment) -> None:
    """signal-30: A run that is tried again gets the signals that the failed one did not take."""
    handle = await env.start(fails_on_small_numbers, start_delay=0.3)
    for number in (1, 2, 3):
        await handle.signal("number", number)
    assert await handle.result() == 3


@workflow.defn
async def waits_for_nothing() -> str:
    return "done"


async def test_signal_31(env: WorkflowEnvironment) -> None:
    """signal-31: A run that waits for nothing ends although it was signalled before it began."""
    handle = await env.start(waits_for_nothing, start_delay=0.3)
    await handle.signal("number", 1)
    assert await handle.result() == "done"
