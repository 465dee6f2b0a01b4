"""Requirements on dynamic handlers: one for every name that has none of its own."""

import asyncio
from typing import Any

import pytest

from durable import DefinitionError, workflow
from durable.errors import UpdateRejectedError
from durable.testing import WorkflowEnvironment


@workflow.defn
class Open:
    """Takes whatever it is told, until it is told to stop."""

    def __init__(self) -> None:
        self.told: list[list[Any]] = []
        self.is_over = False

    @workflow.run
    async def run(self) -> list[list[Any]]:
        await workflow.wait_condition(lambda: self.is_over)
        return self.told

    @workflow.signal
    def stop(self) -> None:
        self.is_over = True

    @workflow.signal(dynamic=True)
    def hear(self, name: str, *args: Any, **options: Any) -> None:
        self.told.append([name, *args, *options.values()])

    @workflow.query
    def count(self) -> int:
        return len(self.told)

    @workflow.query(dynamic=True)
    def ask(self, name: str, factor: int = 1) -> str:
        return f"{name}: {len(self.told) * factor}"

    @workflow.update(dynamic=True)
    async def change(self, name: str, amount: int) -> str:
        await asyncio.sleep(0.01)
        self.told.append([name, amount])
        return f"{name} by {amount}"

    @change.validator
    def check(self, name: str, amount: int) -> None:
        if amount <= 0:
            raise ValueError(f"{name} by nothing")


async def test_dynamic_01(env: WorkflowEnvironment) -> None:
    """dynamic-1: Signals without a handler of their own go to the dynamic one, with their name."""
    handle = await env.start(Open)
    await handle.signal("tea", 1, "green")
    await handle.signal("coffee")
    await handle.signal("stop")
    assert await handle.result() == [["tea", 1, "green"], ["coffee"]]


async def test_dynamic_02(env: WorkflowEnvironment) -> None:
    """dynamic-2: Queries do, their arguments read by its annotations; a named one comes first."""
    handle = await env.start(Open)
    await handle.signal("tea")
    assert await handle.query("sum", 3) == "sum: 3"
    assert await handle.query("plain") == "plain: 1"
    assert await handle.query("count") == 1
    with pytest.raises(DefinitionError, match="say which"):
        await handle.query(Open.ask)


async def test_dynamic_03(env: WorkflowEnvironment) -> None:
    """dynamic-3: Updates do, and its validator gets the name too."""
    handle = await env.start(Open)
    assert await handle.update("raise", 5) == "raise by 5"
    with pytest.raises(UpdateRejectedError, match="lower by nothing"):
        await handle.update("lower", 0)
    await handle.signal("stop")
    assert await handle.result() == [["raise", 5]]


async def test_dynamic_04(env: WorkflowEnvironment) -> None:
    """dynamic-4: Arguments that do not fit a dynamic update are refused; such a signal is lost."""

    @workflow.defn
    class Strict:
        @workflow.run
        async def run(self) -> str:
            await workflow.wait_signal("stop")
            return "unharmed"

        @workflow.signal(dynamic=True)
        def hear(self, name: str, number: int) -> None:
            raise AssertionError(f"{name} {number}")

        @workflow.update(dynamic=True)
        def change(self, name: str, number: int) -> int:
            return number

    handle = await env.start(Strict)
    await handle.signal("tea", "green")
    with pytest.raises(UpdateRejectedError):
        await handle.update("anything", "green")
    await handle.signal("stop")
    assert await handle.result() == "unharmed"


@workflow.defn
async def mixes() -> list[Any]:
    got: list[Any] = []
    wanted = workflow.signal_channel("wanted", int)
    workflow.on_dynamic_signal(lambda name, *args: got.append([name, *args]))
    workflow.on_dynamic_query(lambda name: f"{name}? {len(got)}")
    workflow.on_dynamic_update(lambda name, value: f"{name}={value}")
    while (number := await wanted.receive()) != 0:
        got.append(number)
    return got


async def test_dynamic_05(env: WorkflowEnvironment) -> None:
    """dynamic-5: Functions register them too; a channel keeps the signals of its name."""
    handle = await env.start(mixes)
    await handle.signal("other", "a")
    await handle.signal("wanted", 5)
    assert await handle.query("how many") == "how many? 2"
    assert await handle.update("set", 3) == "set=3"
    await handle.signal("wanted", 0)
    assert await handle.result() == [["other", "a"], 5]


@workflow.defn
async def listens_late() -> list[Any]:
    got: list[Any] = []
    await workflow.wait_signal("begin")
    workflow.on_dynamic_signal(lambda name, *args: got.append([name, *args]))
    await workflow.wait_signal("stop")
    return got


async def test_dynamic_06(env: WorkflowEnvironment) -> None:
    """dynamic-6: What came before the handler waits for it, in order within each name."""
    handle = await env.start(listens_late)
    for number in (1, 2):
        await handle.signal("early", number)
    for name in ("begin", "late", "stop"):
        await handle.signal(name)
    assert await handle.result() == [["early", 1], ["early", 2], ["late"]]


@workflow.defn
class OnceMore:
    """Goes on as new once, and takes by any name what it was told before."""

    @workflow.init
    def __init__(self, turn: int) -> None:
        self.told: list[str] = []

    @workflow.run
    async def run(self, turn: int) -> list[str]:
        if turn == 1:
            await workflow.wait_signal("go")
            workflow.continue_as_new(2)
        workflow.on_dynamic_signal(self.told.append)
        await workflow.wait_condition(lambda: len(self.told) == 2)
        return self.told


async def test_dynamic_07(env: WorkflowEnvironment) -> None:
    """dynamic-7: Signals that a run did not take reach the dynamic handler of the next one."""
    handle = await env.start(OnceMore, 1)
    for name in ("tea", "coffee", "go"):
        await handle.signal(name)
    assert await handle.result() == ["tea", "coffee"]


def test_dynamic_08() -> None:
    """dynamic-8: Two of a kind, one with a name, one that takes no name: errors at definition."""
    with pytest.raises(DefinitionError, match="there can be one"):

        @workflow.defn
        class Two:
            @workflow.run
            async def run(self) -> None: ...

            @workflow.signal(dynamic=True)
            def one(self, name: str) -> None: ...

            @workflow.signal(dynamic=True)
            def two(self, name: str) -> None: ...

    with pytest.raises(DefinitionError, match="leave name= out"):
        workflow.query(name="x", dynamic=True)(lambda self, name: 1)
    with pytest.raises(DefinitionError, match="gets the name first"):

        @workflow.update(dynamic=True)
        def nameless(self: object) -> None: ...
