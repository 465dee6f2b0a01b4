"""Requirements on going back: reset, fork, and moving to another version."""

import asyncio
from typing import Any

import pytest

from durable import NonDeterminismError, Worker, activity, workflow
from durable.errors import InvalidArgumentError, WorkflowNotFoundError, WorkflowTerminatedError


@activity.defn
async def measure(what: str) -> str:
    return f"{what} is {next(NUMBERS)}"


NUMBERS = iter(range(1, 1000))


@workflow.defn
async def survey() -> list[str]:
    first = await measure("width")
    by = await workflow.wait_signal("by", str)
    return [first, by, await measure("height")]


def serve(database: Any, *workflows: Any) -> Worker:
    return Worker(database.dsn, workflows=[survey, *workflows], activities=[measure])


async def until(handle: Any, kind: str) -> int:
    """The id of the first event of that kind, when it is there."""
    async with asyncio.timeout(30):
        while True:
            for event in await handle.history():
                if event.kind == kind:
                    return int(event.id)
            await asyncio.sleep(0.02)


async def test_reset_01(database: Any) -> None:
    """reset-1: A closed run goes on from before an activity, with all results before that."""
    handle = await database.client.start(survey, id="site")
    await handle.signal("by", "Ann")
    async with serve(database):
        before = await handle.result(30)
        again = await handle.reset(before_activity="measure")
        after = await again.result(30)
    assert after[:2] == before[:2]
    assert after[2] != before[2]
    assert (await database.client.get_handle("site").describe()).run_id == again.run_id


async def test_reset_02(database: Any) -> None:
    """reset-2: An open run is terminated, and signals after the point reach the new one."""
    handle = await database.client.start(survey, id="site")
    async with serve(database):
        done = await until(handle, "ACTIVITY_COMPLETED")
        await handle.signal("note", "rain")
        await until(handle, "SIGNAL_RECEIVED")
        again = await handle.reset(to_event=done)
        await until(again, "SIGNAL_RECEIVED")
        await again.signal("by", "Ann")
        assert (await again.result(30))[1] == "Ann"
        with pytest.raises(WorkflowTerminatedError):
            await database.client.get_handle("site", handle.run_id).result(30)


async def test_reset_03(database: Any) -> None:
    """reset-3: A fork goes on under another id, and leaves the run as it is."""
    handle = await database.client.start(survey, id="site")
    async with serve(database):
        done = await until(handle, "ACTIVITY_COMPLETED")
        copied = await handle.fork("copy", to_event=done)
        await copied.signal("by", "Ben")
        await handle.signal("by", "Ann")
        first, second = await handle.result(30), await copied.result(30)
    assert first[0] == second[0]
    assert [first[1], second[1]] == ["Ann", "Ben"]


async def test_reset_04(database: Any) -> None:
    """reset-4: A run moves to another version of its code, if its history fits that."""
    old, new, other = version("1"), version("2"), version("3", "depth")
    handle = await database.client.start(old, id="site")
    async with serve(database, old, new, other):
        await until(handle, "ACTIVITY_COMPLETED")
        with pytest.raises(NonDeterminismError):
            await handle.reset(workflow=other)
        moved = await handle.reset(workflow=new)
        await moved.signal("by", "Ann")
        assert (await moved.result(30))[1:] == ["Ann", "2"]


def version(number: str, what: str = "width") -> Any:
    """A version of a pinned workflow."""

    @workflow.defn(name="plot", version=number, pinned=True)
    async def plot() -> list[str]:
        first = await measure(what)
        by = await workflow.wait_signal("by", str)
        return [first, by, number]

    return plot


async def test_reset_05(database: Any) -> None:
    """reset-5: A plan says what would be done again, and an event that is not there is refused."""
    handle = await database.client.start(survey, id="site")
    async with serve(database):
        done = await until(handle, "ACTIVITY_COMPLETED")
        await handle.signal("by", "Ann")
        await handle.result(30)
    plan = await handle.plan_reset(to_event=done)
    assert (plan.event_id, plan.signals, plan.activities) == (done, ("by",), ())
    with pytest.raises(InvalidArgumentError, match="to_event is 1 to"):
        await handle.plan_reset(to_event=1000)


async def test_reset_06(database: Any) -> None:
    """reset-6: A run that no worker has is reset without one, and its unread signals are kept."""
    handle = await database.client.start(survey, id="site")
    await handle.signal("by", "Ann")
    again = await handle.reset(to_event=1)
    with pytest.raises(WorkflowTerminatedError):
        await database.client.get_handle("site", handle.run_id).result(30)
    async with serve(database):
        assert (await again.result(30))[1] == "Ann"


async def test_reset_07(database: Any) -> None:
    """reset-7: A signal is taken by the old run or the new, or refused: it is never lost."""
    handle = await database.client.start(survey, id="site")
    await handle.signal("by", "Ann")
    stop = asyncio.Event()

    async def send() -> int:
        count = 0
        while not stop.is_set():
            try:
                await database.client.get_handle("site").signal("note", count)
            except WorkflowNotFoundError:
                await asyncio.sleep(0.01)
                continue
            count += 1
            await asyncio.sleep(0.03)
        return count

    sending = asyncio.create_task(send())
    try:
        for _ in range(3):
            await asyncio.sleep(0.05)
            handle = await database.client.get_handle("site").reset(to_event=1)
    finally:
        stop.set()
        count = await sending
    items = await database.client.store.inbox([handle.run_id])
    assert len(items) == count + 1


async def test_reset_08(database: Any) -> None:
    """reset-8: The new run has the limits, the memo and the priority of the old one."""
    options: Any = {"run_timeout": 3600, "execution_timeout": 7200, "priority": 3}
    handle = await database.client.start(survey, id="site", memo={"who": "Ann"}, **options)
    again = await handle.reset(to_event=1)
    assert await again.memo() == {"who": "Ann"}
    meta = (await again.history())[0].meta
    assert (meta["run_timeout_us"], meta["execution_timeout_us"]) == (3_600_000_000, 7_200_000_000)
    assert meta["priority"] == 3
