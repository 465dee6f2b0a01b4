"""Requirements on child workflows."""

import asyncio
import contextlib
from dataclasses import dataclass

import pytest

from durable import ChildWorkflowError, RetryPolicy, RunState, activity, workflow
from durable.errors import WorkflowFailedError, WorkflowNotFoundError
from durable.testing import TestHandle, WorkflowEnvironment


@dataclass
class Pair:
    left: int
    right: int


@activity.defn
async def add(pair: Pair) -> int:
    return pair.left + pair.right


@activity.defn
async def note(text: str) -> None:
    return None


@workflow.defn
async def total(pair: Pair) -> int:
    return await add(pair)


@workflow.defn
async def swapped(pair: Pair) -> Pair:
    await asyncio.sleep(0.01)
    return Pair(pair.right, pair.left)


@workflow.defn
async def fails(text: str) -> None:
    raise ValueError(text)


@workflow.defn
async def waits() -> str:
    try:
        return str(await workflow.wait_signal("answer", str))
    except asyncio.CancelledError:
        await note("cleaned up")
        raise


async def ended(handle: TestHandle[object]) -> RunState:
    """The state of a run once it is closed; results and errors do not matter."""
    with contextlib.suppress(Exception):
        await handle.result()
    return await handle.state()


async def test_child_01(env: WorkflowEnvironment) -> None:
    """child-1: Calling a workflow in a workflow runs it as a child and returns its result."""

    @workflow.defn
    async def parent() -> int:
        return await total(Pair(2, 3)) * 10

    handle = await env.start(parent)
    assert await handle.result() == 50
    (child,) = (await handle.history()).children
    assert (child.name, child.outcome, child.result) == ("total", "completed", 5)


async def test_child_02(env: WorkflowEnvironment) -> None:
    """child-2: A child's arguments and result travel as their annotated types."""

    @workflow.defn
    async def parent() -> Pair:
        pair = await workflow.execute_child(swapped, Pair(1, 2))
        assert isinstance(pair, Pair)
        return pair

    assert await env.execute(parent) == Pair(2, 1)


async def test_child_03(env: WorkflowEnvironment) -> None:
    """child-3: A child may return None."""

    @workflow.defn
    async def quiet() -> None:
        await note("hm")

    @workflow.defn
    async def parent() -> str:
        return "none" if await quiet() is None else "something"

    assert await env.execute(parent) == "none"


async def test_child_04(env: WorkflowEnvironment) -> None:
    """child-4: A failed child is an error with its cause, which the parent may catch."""

    @workflow.defn
    async def parent() -> str:
        try:
            await fails("no stock")
        except ChildWorkflowError as error:
            return f"{error.name}: {type(error.__cause__).__name__}: {error.__cause__}"
        return "fine"

    assert await env.execute(parent) == "fails: ValueError: no stock"


async def test_child_05(env: WorkflowEnvironment) -> None:
    """child-5: A child's failure that is not caught fails the parent."""

    @workflow.defn
    async def parent() -> None:
        await fails("no stock")

    with pytest.raises(WorkflowFailedError) as caught:
        await env.execute(parent)
    assert isinstance(caught.value.__cause__, ChildWorkflowError)
    assert isinstance(caught.value.__cause__.__cause__, ValueError)


async def test_child_06(env: WorkflowEnvironment) -> None:
    """child-6: Children run one after the other, each with the result of the one before."""

    @workflow.defn
    async def parent() -> int:
        first = await total(Pair(1, 1))
        return await total(Pair(first, 10))

    assert await env.execute(parent) == 12


async def test_child_07(env: WorkflowEnvironment) -> None:
    """child-7: Children run side by side, results in the order of the calls."""

    @workflow.defn
    async def parent() -> list[int]:
        return await asyncio.gather(*(total(Pair(number, 1)) for number in range(5)))

    assert await env.execute(parent) == [1, 2, 3, 4, 5]


async def test_child_08(env: WorkflowEnvironment) -> None:
    """child-8: Children may have children."""

    @workflow.defn
    async def middle(number: int) -> int:
        return await total(Pair(number, 1)) + 1

    @workflow.defn
    async def parent() -> int:
        return await middle(5) + 1

    assert await env.execute(parent) == 8


async def test_child_09(env: WorkflowEnvironment) -> None:
    """child-9: A child may be given its workflow id, else it has one of its own."""

    @workflow.defn
    async def who() -> str:
        return workflow.info().workflow_id

    @workflow.defn
    async def parent() -> list[str]:
        named = workflow.start_child(who, id="my-child")
        other = workflow.start_child(who)
        assert other.workflow_id != named.workflow_id == "my-child"
        assert await other == other.workflow_id
        return [await named]

    assert await env.execute(parent) == ["my-child"]


async def test_child_10(env: WorkflowEnvironment) -> None:
    """child-10: A child whose id is taken cannot be started, and the parent is told."""

    @workflow.defn
    async def parent() -> str:
        try:
            await workflow.start_child(waits, id="taken").started()
        except ChildWorkflowError as error:
            return str(error)
        return "started"

    await env.start(waits, id="taken")
    assert "taken" in await env.execute(parent)


async def test_child_11(env: WorkflowEnvironment) -> None:
    """child-11: A parent may start a child, wait until it exists, and await it later."""

    @workflow.defn
    async def parent() -> str:
        child = await workflow.start_child(waits).started()
        await child.signal("answer", "signalled")
        return await child

    assert await env.execute(parent) == "signalled"


async def test_child_12(env: WorkflowEnvironment) -> None:
    """child-12: A cancelled child may clean up, and ends cancelled."""

    @workflow.defn
    async def parent() -> str:
        child = await workflow.start_child(waits, id="kid").started()
        child.cancel()
        try:
            await child
        except asyncio.CancelledError:
            return "stopped waiting"
        return "fine"

    mock = env.mock(note, None)
    assert await env.execute(parent) == "stopped waiting"
    assert await ended(env.get_handle("kid")) == RunState.CANCELLED
    assert mock.calls == [(("cleaned up",), {})]


@pytest.mark.parametrize(
    ("policy", "state"),
    [("terminate", RunState.TERMINATED), ("cancel", RunState.CANCELLED)],
    ids=["terminate", "cancel"],
)
async def test_child_13(env: WorkflowEnvironment, policy: str, state: RunState) -> None:
    """child-13: When the parent ends first, its children are terminated or cancelled."""

    @workflow.defn
    async def parent() -> str:
        await workflow.start_child(waits, id="orphan", parent_close=policy).started()
        return "gone"

    assert await env.execute(parent) == "gone"
    assert await ended(env.get_handle("orphan")) == state


async def test_child_14(env: WorkflowEnvironment) -> None:
    """child-14: An abandoned child goes on without its parent."""

    @workflow.defn
    async def parent() -> str:
        await workflow.start_child(waits, id="orphan", parent_close="abandon").started()
        return "gone"

    assert await env.execute(parent) == "gone"
    child = env.get_handle("orphan")
    await child.signal("answer", "on my own")
    assert await child.result() == "on my own"


async def test_child_15(env: WorkflowEnvironment) -> None:
    """child-15: A replayed parent starts no child twice."""

    @workflow.defn
    async def parent() -> int:
        first = await total(Pair(1, 2))
        await asyncio.sleep(0.02)
        return first + await total(Pair(3, 4))

    mock = env.mock(add, 5)
    handle = await env.start(parent)
    assert await handle.result() == 10
    assert mock.call_count == 2
    assert len((await handle.history()).children) == 2


async def test_child_16(env: WorkflowEnvironment) -> None:
    """child-16: A child can be started by name, its result read as a given type."""

    @workflow.defn
    async def parent() -> Pair:
        pair = await workflow.execute_child("swapped", Pair(1, 2), result_type=Pair)
        assert isinstance(pair, Pair)
        return pair

    assert swapped.name == "swapped"
    assert await env.execute(parent) == Pair(2, 1)


async def test_child_17(env: WorkflowEnvironment) -> None:
    """child-17: A child that continues as new returns the result of its last run."""

    @workflow.defn
    async def countdown(number: int) -> str:
        if number:
            workflow.continue_as_new(number - 1)
        return "lift-off"

    @workflow.defn
    async def parent() -> str:
        return await countdown(3)

    assert await env.execute(parent) == "lift-off"


async def test_child_18(env: WorkflowEnvironment) -> None:
    """child-18: A child knows its parent; the parent has none."""

    @workflow.defn
    async def kin() -> list[str]:
        found = workflow.info().parent
        return [] if found is None else [found.workflow_id, found.run_id]

    @workflow.defn
    async def parent() -> bool:
        info = workflow.info()
        return info.parent is None and await kin() == [info.workflow_id, info.run_id]

    assert await env.execute(parent) is True


async def test_child_19(env: WorkflowEnvironment) -> None:
    """child-19: A child over its run_timeout ends, and the parent is told."""

    @workflow.defn
    async def parent() -> str:
        try:
            await workflow.execute_child(waits, run_timeout=0.1)
        except ChildWorkflowError:
            return "too slow"
        return "fine"

    assert await env.execute(parent) == "too slow"


async def test_child_20(env: WorkflowEnvironment) -> None:
    """child-20: Cancelling the parent cancels the child it waits for."""

    @workflow.defn
    async def parent() -> str:
        return await workflow.execute_child(waits, id="kid")

    handle = await env.start(parent)
    while "CHILD_STARTED" not in (await handle.history()).kinds:
        await asyncio.sleep(0)
    await handle.cancel()
    assert await ended(handle) == RunState.CANCELLED
    assert await ended(env.get_handle("kid")) in (RunState.CANCELLED, RunState.TERMINATED)


async def test_child_21(env: WorkflowEnvironment) -> None:
    """child-21: A terminated child is an error for its parent."""

    @workflow.defn
    async def parent() -> str:
        try:
            await workflow.execute_child(waits, id="kid")
        except ChildWorkflowError:
            return "lost it"
        return "fine"

    handle = await env.start(parent)
    while "CHILD_STARTED" not in (await handle.history()).kinds:
        await asyncio.sleep(0)
    await env.get_handle("kid").terminate("enough")
    assert await handle.result() == "lost it"


async def test_child_22(env: WorkflowEnvironment) -> None:
    """child-22: A child that its own retry policy starts again returns the result of the last."""

    @workflow.defn(retry=RetryPolicy(initial_interval=0.01, max_interval=0.01, max_attempts=3))
    async def shaky() -> int:
        if workflow.info().attempt < 3:
            raise RuntimeError("not yet")
        return workflow.info().attempt

    @workflow.defn
    async def parent() -> int:
        return await shaky()

    assert await env.execute(parent) == 3


async def test_child_23(env: WorkflowEnvironment) -> None:
    """child-23: A memo given with the start is there for the child to read."""

    @workflow.defn
    async def reads() -> dict[str, object]:
        return dict(workflow.info().memo)

    @workflow.defn
    async def parent() -> dict[str, object]:
        return await workflow.execute_child(reads, memo={"tenant": "acme"})

    assert await env.execute(parent) == {"tenant": "acme"}


async def test_child_24(env: WorkflowEnvironment) -> None:
    """child-24: A run may ask another to cancel itself; one that is not there is an error."""

    @workflow.defn
    async def canceller() -> str:
        await workflow.cancel_external("other")
        try:
            await workflow.cancel_external("nobody")
        except WorkflowNotFoundError:
            return "one of two"
        return "both"

    other = await env.start(waits, id="other")
    assert await env.execute(canceller) == "one of two"
    assert await ended(other) == RunState.CANCELLED


async def test_child_25(env: WorkflowEnvironment) -> None:
    """child-25: Steps before and after a child are recorded around it."""

    @workflow.defn
    async def parent() -> list[int]:
        return [await add(Pair(1, 1)), await total(Pair(2, 2)), await add(Pair(3, 3))]

    assert await env.execute(parent) == [2, 4, 6]


async def test_child_26(env: WorkflowEnvironment) -> None:
    """child-26: A child that fails at once has been started; awaiting it is what raises."""

    @workflow.defn
    async def fails() -> None:
        raise ValueError("at once")

    @workflow.defn
    async def parent() -> str:
        child = await workflow.start_child(fails).started()
        try:
            await child
        except ChildWorkflowError as error:
            return str(error.__cause__)
        return "ended"

    assert await env.execute(parent) == "at once"
