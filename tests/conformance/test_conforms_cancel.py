"""Requirements on cancellation, termination and time limits of runs."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from durable import RunState, activity, workflow
from durable.errors import (
    WorkflowCancelledError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durable.testing import TestHandle, WorkflowEnvironment


@activity.defn
async def note(text: str) -> str:
    return text


@workflow.defn
async def forever() -> None:
    await asyncio.sleep(3600)


async def until_waiting(handle: TestHandle[Any], kind: str) -> None:
    """Until history has an event of that kind."""
    while kind not in (await handle.history()).kinds:
        await asyncio.sleep(0)


async def assert_cancelled(handle: TestHandle[Any]) -> None:
    with pytest.raises(WorkflowCancelledError):
        await handle.result()
    assert await handle.state() == RunState.CANCELLED


async def test_cancel_01(env: WorkflowEnvironment) -> None:
    """cancel-1: A run that sleeps is cancelled there, and its timer with it."""
    handle = await env.start(forever)
    await until_waiting(handle, "TIMER_STARTED")
    await handle.cancel()
    await assert_cancelled(handle)
    assert [timer.outcome for timer in (await handle.history()).timers] == ["cancelled"]


async def test_cancel_02(env: WorkflowEnvironment) -> None:
    """cancel-2: A run that waits for an activity is cancelled there, and the activity is told."""
    begun, told = asyncio.Event(), asyncio.Event()

    @activity.defn
    async def long() -> None:
        begun.set()
        try:
            await env.hang()
        finally:
            told.set()

    @workflow.defn
    async def flow() -> None:
        await long()

    handle = await env.start(flow)
    await asyncio.wait_for(begun.wait(), 10)
    await handle.cancel()
    await assert_cancelled(handle)
    await asyncio.wait_for(told.wait(), 10)


async def test_cancel_03(env: WorkflowEnvironment) -> None:
    """cancel-3: A run that waits for a signal is cancelled there."""

    @workflow.defn
    async def flow() -> None:
        workflow.set_vars(waits=True)
        await workflow.wait_signal("never")

    handle = await env.start(flow)
    assert await handle.vars() == {"waits": True}
    await handle.cancel()
    await assert_cancelled(handle)


async def test_cancel_04(env: WorkflowEnvironment) -> None:
    """cancel-4: A run that waits for a condition is cancelled there."""

    @workflow.defn
    async def flow() -> None:
        await workflow.wait_condition(lambda: False)

    handle = await env.start(flow)
    await handle.vars()
    await handle.cancel()
    await assert_cancelled(handle)


WAITS: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {}


def waits(fn: Callable[[], Coroutine[Any, Any, Any]]) -> Callable[[], Coroutine[Any, Any, Any]]:
    WAITS[fn.__name__] = fn
    return fn


@waits
async def gather() -> None:
    await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))


@waits
async def task_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(3600))
        group.create_task(workflow.wait_signal("never"))


@waits
async def wait() -> None:
    tasks = [asyncio.create_task(asyncio.sleep(3600)) for _ in range(2)]
    try:
        await asyncio.wait(tasks)
    finally:
        for task in tasks:
            task.cancel()


@waits
async def wait_for() -> None:
    await asyncio.wait_for(asyncio.sleep(3600), 7200)


@waits
async def timeout() -> None:
    async with asyncio.timeout(7200):
        await asyncio.sleep(3600)


@waits
async def queue() -> None:
    await asyncio.Queue[int]().get()


@waits
async def lock() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    async with lock:
        pass


@waits
async def event() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("where", WAITS, ids=str)
async def test_cancel_05(env: WorkflowEnvironment, where: str) -> None:
    """cancel-5: Every await of asyncio is a point where a run can be cancelled."""
    body = WAITS[where]

    @workflow.defn
    async def flow() -> None:
        await body()

    handle = await env.start(flow)
    await handle.vars()
    await handle.cancel()
    await assert_cancelled(handle)


async def test_cancel_06(env: WorkflowEnvironment) -> None:
    """cancel-6: A run that is cancelled before its first step ends without taking one."""
    mock = env.mock(note, "done")

    @workflow.defn
    async def flow() -> str:
        await asyncio.sleep(0.01)
        return await note("step")

    handle = await env.start(flow, start_delay=0.2)
    await handle.cancel()
    await assert_cancelled(handle)
    assert mock.call_count == 0


async def test_cancel_07(env: WorkflowEnvironment) -> None:
    """cancel-7: Cleaning up in finally may wait for activities and timers."""
    mock = env.mock(note, "done")

    @workflow.defn
    async def flow() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await note("first")
            await asyncio.sleep(0.02)
            await note("second")

    handle = await env.start(flow)
    await until_waiting(handle, "TIMER_STARTED")
    await handle.cancel()
    await assert_cancelled(handle)
    assert [call[0] for call in mock.calls] == [("first",), ("second",)]


async def test_cancel_08(env: WorkflowEnvironment) -> None:
    """cancel-8: What is shielded goes on although the run is cancelled."""
    gate, begun = asyncio.Event(), asyncio.Event()

    @activity.defn
    async def precious() -> str:
        begun.set()
        await gate.wait()
        return "saved"

    @workflow.defn
    async def flow() -> str:
        work = asyncio.ensure_future(precious.start())
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            return await work
        return "not cancelled"

    handle = await env.start(flow)
    await asyncio.wait_for(begun.wait(), 10)
    await handle.cancel()
    gate.set()
    assert await handle.result() == "saved"


async def test_cancel_09(env: WorkflowEnvironment) -> None:
    """cancel-9: A run may refuse to be cancelled, and ends with its result."""

    @workflow.defn
    async def flow() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return f"no: {workflow.is_cancel_requested()}"
        return "slept"

    handle = await env.start(flow)
    await until_waiting(handle, "TIMER_STARTED")
    await handle.cancel()
    assert await handle.result() == "no: True"
    assert await handle.state() == RunState.COMPLETED


async def test_cancel_10(env: WorkflowEnvironment) -> None:
    """cancel-10: The code can read why it is cancelled."""

    @workflow.defn
    async def flow() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError as error:
            return str(error)
        return "slept"

    handle = await env.start(flow)
    await until_waiting(handle, "TIMER_STARTED")
    await handle.cancel("sold out")
    assert await handle.result() == "sold out"


async def test_cancel_11(env: WorkflowEnvironment) -> None:
    """cancel-11: A task of the run can be cancelled alone."""

    @workflow.defn
    async def flow() -> list[str]:
        async def side() -> str:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                return await note("side stopped")
            return "slept"

        task = asyncio.create_task(side())
        await asyncio.sleep(0.01)
        task.cancel()
        return [await task, await note("main goes on")]

    assert await env.execute(flow) == ["side stopped", "main goes on"]


async def test_cancel_12(env: WorkflowEnvironment) -> None:
    """cancel-12: A run that has ended cannot be cancelled, and the caller is told."""

    @workflow.defn
    async def flow() -> str:
        return "done"

    handle = await env.start(flow)
    await handle.result()
    with pytest.raises(WorkflowNotFoundError):
        await handle.cancel()


async def test_cancel_13(env: WorkflowEnvironment) -> None:
    """cancel-13: A terminated run takes no further step, not even to clean up."""
    mock = env.mock(note, "done")

    @workflow.defn
    async def flow() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await note("clean up")

    handle = await env.start(flow)
    await until_waiting(handle, "TIMER_STARTED")
    await handle.terminate("enough")
    with pytest.raises(WorkflowTerminatedError, match="enough"):
        await handle.result()
    assert mock.call_count == 0
    assert (await handle.history()).kinds[-1] == "RUN_TERMINATED"


async def test_cancel_14(env: WorkflowEnvironment) -> None:
    """cancel-14: A run over its run_timeout is ended, and the caller is told so."""
    handle = await env.start(forever, run_timeout=0.1)
    with pytest.raises(WorkflowTimedOutError):
        await handle.result()
    assert await handle.state() == RunState.TIMED_OUT


async def test_cancel_15(env: WorkflowEnvironment) -> None:
    """cancel-15: asyncio.timeout raises TimeoutError and cancels what it bounds."""
    told, begun = asyncio.Event(), asyncio.Event()

    @activity.defn
    async def long() -> None:
        begun.set()
        try:
            await env.hang()
        finally:
            told.set()

    @workflow.defn
    async def flow() -> str:
        try:
            async with asyncio.timeout(0.2):
                await long()
        except TimeoutError:
            return "too slow"
        return "fine"

    handle = await env.start(flow)
    assert await handle.result() == "too slow"
    await asyncio.wait_for(told.wait(), 10)
    assert [step.outcome for step in (await handle.history()).activities] == ["cancelled"]


async def test_cancel_16(env: WorkflowEnvironment) -> None:
    """cancel-16: Every branch of a cancelled gather may clean up."""
    mock = env.mock(note, "done")

    @workflow.defn
    async def flow() -> None:
        async def branch(name: str) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await note(name)

        tasks = [asyncio.create_task(branch(name)) for name in "abc"]
        try:
            await asyncio.gather(*tasks)
        finally:
            await asyncio.wait(tasks)

    handle = await env.start(flow)
    await until_waiting(handle, "TIMER_STARTED")
    await handle.cancel()
    await assert_cancelled(handle)
    assert sorted(call[0][0] for call in mock.calls) == ["a", "b", "c"]


async def test_cancel_17(env: WorkflowEnvironment) -> None:
    """cancel-17: Asking again changes nothing: who cleans up after the first time is left to it."""

    @workflow.defn
    async def flow() -> str:
        await note("begun")
        try:
            await workflow.wait_signal("never")
        except asyncio.CancelledError:
            await workflow.wait_signal("go on")
            return "cleaned up"
        return "fine"

    handle = await env.start(flow)
    await until_waiting(handle, "ACTIVITY_COMPLETED")
    await handle.cancel()
    await handle.cancel()
    await handle.signal("go on")
    assert await handle.result() == "cleaned up"
    assert (await handle.history()).kinds.count("CANCEL_REQUESTED") == 1


async def test_cancel_18(env: WorkflowEnvironment) -> None:
    """cancel-18: A cancelled run takes signals while it cleans up."""

    @workflow.defn
    async def flow() -> str:
        await note("begun")
        try:
            await workflow.wait_signal("never")
        except asyncio.CancelledError:
            return str(await workflow.wait_signal("last words", str))
        return "fine"

    handle = await env.start(flow)
    await until_waiting(handle, "ACTIVITY_COMPLETED")
    await handle.cancel()
    await handle.signal("last words", "goodbye")
    assert await handle.result() == "goodbye"
