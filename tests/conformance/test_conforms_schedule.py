"""Requirements on schedules: runs at the times of a plan, and what can be asked of one."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable import (
    Client,
    RunState,
    ScheduleHandle,
    Worker,
    WorkflowAlreadyStartedError,
    WorkflowFailedError,
    WorkflowTerminatedError,
    workflow,
)
from durable.options import WorkerOptions
from durable.testing import WorkflowEnvironment

SOON = 30.0
OPTIONS = WorkerOptions(poll_max_seconds=0.2, drain_seconds=1.0)
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


@workflow.defn
async def greet(name: str) -> str:
    return f"hello {name}"


@workflow.defn
async def for_ever() -> None:
    await asyncio.Event().wait()


class TooMuch(Exception):
    """What a report is once it has counted too far."""


@workflow.defn
async def report(most: int) -> int:
    """Counts on from the report before it; every third one fails."""
    count = (workflow.last_result(int) or 0) + 1
    if count == most and workflow.last_failure() is None:
        raise TooMuch(f"{count} is too much")
    return count


@workflow.defn
async def asks(is_next: bool = False) -> list[Any]:
    """What it knows of the runs before it, said by the second run of its chain."""
    if not is_next:
        workflow.continue_as_new(True)
    failure = workflow.last_failure()
    said = None if failure is None else [type(failure).__name__, str(failure)]
    return [workflow.has_last_result(), workflow.last_result(), said]


@workflow.defn
async def gives_way() -> str:
    """Waits for ever, unless the run before it failed: then it says why."""
    failure = workflow.last_failure()
    if failure is None:
        await asyncio.Event().wait()
    return str(failure)


@workflow.defn
async def says_nothing() -> list[bool] | None:
    """Has the result null, and then says whether there was one."""
    if not workflow.has_last_result():
        return None
    return [workflow.has_last_result(), workflow.last_result() is None]


async def results_of(env: WorkflowEnvironment, flow: Any, count: int, *args: Any) -> list[Any]:
    """What the first runs of a schedule came to, each begun when the one before had ended."""
    schedule = await env.create_schedule("s", flow, *args, every=3600, paused=True)
    found: list[Any] = []
    for number in range(count):
        await schedule.trigger()
        shown = await seen_in(env, schedule, number + 1)
        try:
            found.append(await env.get_handle(shown["recent"][-1]).result())
        except WorkflowFailedError as error:
            found.append(str(error.__cause__))
    return found


async def seen_in(env: WorkflowEnvironment, schedule: ScheduleHandle, started: int) -> Any:
    """What a schedule shows once so many of its runs have ended."""
    async with asyncio.timeout(SOON):
        while (shown := await schedule.describe())["started"] < started or len(shown["running"]):
            await env.advance(0.01)
    return shown


def serve(database: Any) -> Worker:
    return Worker(database.dsn, workflows=[greet, for_ever, gives_way], options=OPTIONS)


async def seen(handle: ScheduleHandle, enough: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What the schedule shows once that is enough."""
    async with asyncio.timeout(SOON):
        while not enough(shown := await handle.describe()):
            await asyncio.sleep(0.05)
    return shown


async def runs_of(client: Client, name: str) -> set[str]:
    return {view.workflow_id for view in await client.list(workflow_type=name)}


async def test_schedule_01(database: Any) -> None:
    """schedule-1: A schedule starts a run at each of its times, whose id has the time."""
    async with serve(database):
        handle = await database.client.create_schedule("s", greet, "Ann", every=1)
        shown = await seen(handle, lambda each: each["started"] >= 2)
        first, second = shown["recent"][:2]
        times = [datetime.fromisoformat(each.removeprefix("s-")) for each in (first, second)]
        assert times[1] > times[0]
        assert await database.client.get_handle(first).result(SOON) == "hello Ann"


async def test_schedule_02(database: Any) -> None:
    """schedule-2: A paused schedule starts nothing by itself, and a run when it is asked to."""
    async with serve(database):
        handle = await database.client.create_schedule("s", greet, "Ann", every=1, paused=True)
        await handle.trigger()
        shown = await seen(handle, lambda each: each["started"] == 1)
        assert (shown["next_time"], shown["paused"]) == (None, "paused from the start")
        await handle.resume()
        await seen(handle, lambda each: each["started"] >= 2 and each["paused"] is None)


async def test_schedule_03(database: Any) -> None:
    """schedule-3: A backfill starts the runs of times that have passed, each of them once."""
    async with serve(database):
        handle = await database.client.create_schedule("s", greet, "Ann", cron="0 3 * * *")
        until = LONG_AGO + timedelta(days=2)
        assert await handle.backfill(LONG_AGO, until) == 2
        assert await handle.backfill(LONG_AGO, until) == 2
        await seen(handle, lambda each: each["started"] == each["refused"] == 2)
        found = await runs_of(database.client, "greet")
        assert found == {f"s-2026-01-0{day}T03:00:00Z" for day in (1, 2)}


async def test_schedule_04(database: Any) -> None:
    """schedule-4: With terminate_other the next time ends the run before, without its code."""
    async with serve(database):
        handle = await database.client.create_schedule(
            "s", for_ever, every=1, overlap="terminate_other"
        )
        shown = await seen(handle, lambda each: each["started"] >= 2)
        with pytest.raises(WorkflowTerminatedError, match="the next time of s"):
            await database.client.get_handle(shown["recent"][0]).result(SOON)


async def test_schedule_05(database: Any) -> None:
    """schedule-5: An update changes what it names, from then on; the rest of the plan stays."""
    async with serve(database):
        handle = await database.client.create_schedule(
            "s", greet, "Ann", cron="0 3 1 1 *", timezone="Europe/Oslo"
        )
        await handle.update(every=1, arguments=["Bob"])
        shown = await seen(handle, lambda each: each["started"] >= 1)
        assert (shown["plan"]["cron"], shown["plan"]["timezone"]) == (None, "Europe/Oslo")
        result = await database.client.get_handle(shown["recent"][0]).result(SOON)
        assert result == "hello Bob"


async def test_schedule_06(database: Any) -> None:
    """schedule-6: Schedules are listed, by their search attributes if wanted, until deleted."""
    client = database.client
    async with serve(database):
        for id, team in (("one", "shop"), ("two", "mail")):
            await client.create_schedule(id, greet, "Ann", cron="0 3 * * *", search={"team": team})
        with pytest.raises(WorkflowAlreadyStartedError):
            await client.create_schedule("one", greet, "Ann", every=60)
        assert [each.workflow_id for each in await client.list_schedules()] == ["two", "one"]
        (found,) = await client.list_schedules(search={"team": "shop"})
        assert found.workflow_id == "one"
        await client.get_schedule("one").delete()
        with pytest.raises(WorkflowTerminatedError):
            await client.get_handle("one").result(SOON)
        assert [each.workflow_id for each in await client.list_schedules()] == ["two"]


async def test_schedule_07(env: WorkflowEnvironment) -> None:
    """schedule-7: A run gets the last result of its schedule, and why the last one had none."""
    found = await results_of(env, report, 5, 3)
    assert found == [1, 2, "3 is too much", 3, 4]


async def test_schedule_08(env: WorkflowEnvironment) -> None:
    """schedule-8: The first run gets none; a result that is None is one."""
    assert await results_of(env, says_nothing, 2) == [None, [True, True]]


async def test_schedule_09(env: WorkflowEnvironment) -> None:
    """schedule-9: The next run of a chain gets the same; who was started otherwise gets nothing."""
    assert await (await env.start(asks)).result() == [False, None, None]
    first = [False, None, None]
    assert await results_of(env, asks, 2) == [first, [True, first, None]]


async def test_schedule_10(database: Any) -> None:
    """schedule-10: A run that is cancelled for the next one is a failure to those after it."""
    client = database.client
    async with serve(database):
        await client.create_schedule("s", gives_way, every=1, overlap="cancel_other")
        async with asyncio.timeout(SOON):
            done = {"workflow_type": "gives_way", "states": [RunState.COMPLETED]}
            while not (ended := await client.list(**done)):
                await asyncio.sleep(0.05)
        said = await client.get_handle(ended[-1].workflow_id).result(SOON)
    assert "ancel" in said
    assert (await client.list(states=[RunState.CANCELLED]))[-1].workflow_type == "gives_way"
