"""Schedules: runs that start at the times of a plan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest

from durable import (
    Client,
    InvalidArgumentError,
    RetryPolicy,
    RunState,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    activity,
    workflow,
)
from durable.engine.calendar import jitter_us, times_after
from durable.engine.info import to_datetime, to_us
from durable.engine.schedules import ORDERS, SCHEDULE
from durable.testing import WorkflowEnvironment
from durable.testing.handle import TestHandle
from durable.testing.postgres import PostgresEnvironment

HOUR = timedelta(hours=1)


@workflow.defn
async def tick() -> str:
    return "done"


@workflow.defn
async def long() -> None:
    await asyncio.sleep(5400)


@activity.defn
async def add(a: int, b: int) -> int:
    return a + b


def plan_of(name: str = "tick", **changes: Any) -> dict[str, Any]:
    plan = {
        "workflow": name,
        "arguments": "[]",
        "cron": None,
        "every_us": 3_600_000_000,
        "timezone": "UTC",
        "jitter_us": 0,
        "overlap": "skip",
        "catch_up_us": 60_000_000,
        "paused": None,
        "options": {},
    }
    return {**plan, **changes}


@pytest.fixture(params=[False, True], ids=["plain", "crashing"])
async def env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    crashes = bool(request.param)
    async with WorkflowEnvironment(workflows=[tick, long], crash_at_every_event=crashes) as made:
        yield made


async def begin(env: WorkflowEnvironment, **changes: Any) -> TestHandle[None]:
    return await env.start(SCHEDULE, plan_of(**changes), {}, id="s")


def local_times(cron: str, zone: str, start: datetime, count: int) -> list[datetime]:
    found = times_after({"cron": cron, "timezone": zone}, to_us(start))
    return [to_datetime(each) for each in islice(found, count)]


def test_a_time_of_day_keeps_to_the_clock_of_its_zone_when_clocks_change() -> None:
    start = datetime(2026, 3, 28, 0, tzinfo=UTC)
    assert [t.hour for t in local_times("0 9 * * *", "Europe/Berlin", start, 3)] == [8, 7, 7]
    start = datetime(2026, 10, 24, 0, tzinfo=UTC)
    assert [t.hour for t in local_times("0 9 * * *", "Europe/Berlin", start, 3)] == [7, 8, 8]


def test_a_time_that_the_clocks_jump_over_or_show_twice_comes_once_a_day() -> None:
    for start in (datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC)):
        found = local_times("30 2 * * *", "Europe/Berlin", start, 4)
        assert [t.day for t in found] == [start.day + n for n in range(4)]


def test_jitter_is_bounded_and_always_the_same() -> None:
    plan = plan_of(jitter_us=1_000_000)
    found = [jitter_us(plan, "s", n * 3_600_000_000) for n in range(500)]
    assert all(0 <= each <= 1_000_000 for each in found)
    assert len(set(found)) > 450
    assert found == [jitter_us(plan, "s", n * 3_600_000_000) for n in range(500)]


async def test_each_time_starts_one_run_whose_id_has_the_time(env: WorkflowEnvironment) -> None:
    handle = await begin(env)
    await env.advance(HOUR * 3)
    seen = await handle.vars()
    assert seen["started"] == 3
    assert seen["recent"] == [f"s-2030-01-01T0{n}:00:00Z" for n in (1, 2, 3)]
    assert await env.get_handle("s-2030-01-01T01:00:00Z").result() == "done"


async def test_jitter_longer_than_the_interval_drops_no_time(env: WorkflowEnvironment) -> None:
    handle = await begin(
        env,
        every_us=100_000_000,
        jitter_us=300_000_000,
        catch_up_us=10_000_000,
        overlap="allow_all",
    )
    await env.advance(HOUR)
    seen = await handle.vars()
    assert seen["missed"] == 0
    # The last ones may still be waiting for their moment.
    assert 33 <= seen["started"] <= 36


@pytest.mark.parametrize(
    ("overlap", "started", "skipped"),
    [
        ("skip", 2, 1),
        ("buffer_one", 2, 0),
        ("allow_all", 3, 0),
        ("cancel_other", 3, 0),
        ("terminate_other", 3, 0),
    ],
)
async def test_a_run_that_takes_too_long_is_met_as_the_policy_says(
    env: WorkflowEnvironment, overlap: str, started: int, skipped: int
) -> None:
    handle = await begin(env, name="long", overlap=overlap)
    await env.advance(HOUR * 3)
    seen = await handle.vars()
    assert (seen["started"], seen["skipped"]) == (started, skipped)


async def test_the_other_run_is_ended_and_none_besides(env: WorkflowEnvironment) -> None:
    handle = await begin(env, name="long", overlap="terminate_other")
    await env.advance(HOUR * 2.1)
    with pytest.raises(WorkflowTerminatedError, match="the next time of s"):
        await env.get_handle("s-2030-01-01T01:00:00Z").result()
    assert (await handle.vars())["running"] == ["s-2030-01-01T02:00:00Z"]
    await handle.signal(ORDERS, {"do": "pause", "reason": ""})
    assert await env.get_handle("s-2030-01-01T02:00:00Z").result() is None
    assert (await handle.vars())["running"] == []


async def test_a_paused_schedule_starts_nothing_and_makes_nothing_up(
    env: WorkflowEnvironment,
) -> None:
    handle = await begin(env)
    await handle.signal(ORDERS, {"do": "pause", "reason": "holiday"})
    await env.advance(HOUR * 5)
    assert (await handle.vars())["paused"] == "holiday"
    assert (await handle.vars())["started"] == 0
    await handle.signal(ORDERS, {"do": "resume"})
    await env.advance(HOUR)
    assert (await handle.vars())["started"] == 1


async def test_a_trigger_and_a_backfill_start_runs_now(env: WorkflowEnvironment) -> None:
    handle = await begin(env)
    await handle.signal(ORDERS, {"do": "trigger"})
    times = [to_us(datetime(2029, 12, 31, hour, tzinfo=UTC)) for hour in (1, 2)]
    await handle.signal(ORDERS, {"do": "backfill", "times_us": times})
    await handle.signal(ORDERS, {"do": "backfill", "times_us": times})
    await env.advance(1)
    seen = await handle.vars()
    assert (seen["started"], seen["refused"]) == (3, 2)
    assert seen["recent"][1:] == ["s-2029-12-31T01:00:00Z", "s-2029-12-31T02:00:00Z"]


async def test_an_update_is_kept_to_from_then_on(env: WorkflowEnvironment) -> None:
    handle = await begin(env)
    await handle.signal(ORDERS, {"do": "update", "plan": plan_of(every_us=600_000_000)})
    await env.advance(HOUR)
    assert (await handle.vars())["started"] == 6


async def test_an_update_loses_no_time_that_has_come(env: WorkflowEnvironment) -> None:
    plan = plan_of(jitter_us=3_000_000_000)
    handle = await begin(env, jitter_us=3_000_000_000)
    first = to_us(env.now + HOUR)
    put_off = jitter_us(plan, "s", first)
    assert put_off > 10_000_000
    await env.advance(HOUR + timedelta(seconds=5))
    assert (await handle.vars())["started"] == 0
    await handle.signal(ORDERS, {"do": "update", "plan": plan_of()})
    assert (await handle.vars())["recent"] == ["s-2030-01-01T01:00:00Z"]
    await env.advance(HOUR)
    assert (await handle.vars())["started"] == 2


async def test_a_fleet_that_was_away_makes_up_what_is_not_too_late(
    env: WorkflowEnvironment,
) -> None:
    state = {"after_us": to_us(env.now - HOUR * 1000)}
    plan = plan_of(catch_up_us=3 * 3_600_000_000)
    plan["overlap"] = "allow_all"
    handle = await env.start(SCHEDULE, plan, state, id="s")
    await env.settle()
    seen = await handle.vars()
    assert seen["started"] == 4
    assert seen["recent"][0] == "s-2029-12-31T21:00:00Z"


async def test_a_test_makes_schedules_as_a_client_does(env: WorkflowEnvironment) -> None:
    ticks = await env.create_schedule("t", tick, every=HOUR, jitter=0, paused=True)
    sums = await env.create_schedule("sums", add, 2, 3, cron="30 * * * *", queue="other")
    await env.advance(HOUR * 2)
    assert (await ticks.describe())["started"] == 0
    assert (await sums.describe())["recent"] == [
        f"sums-2030-01-01T0{hour}:30:00Z" for hour in (0, 1)
    ]
    assert await env.get_handle("sums-2030-01-01T00:30:00Z").result() == 5
    await sums.update(arguments=[4, 5], every=HOUR)
    with pytest.raises(InvalidArgumentError):
        await sums.update(arguments=[4])
    await ticks.resume()
    await env.advance(HOUR)
    assert (await ticks.describe())["started"] == 1
    assert await env.get_handle("sums-2030-01-01T03:00:00Z").result() == 9
    assert await ticks.backfill(env.now - HOUR * 2, env.now) == 3
    await ticks.trigger()
    assert (await ticks.describe())["started"] == 4
    await ticks.delete()
    with pytest.raises(WorkflowTerminatedError):
        await env.get_handle("t").result()
    with pytest.raises(InvalidArgumentError, match="cron= or every="):
        await env.create_schedule("bad", tick)


# -- with a database -------------------------------------------------------------------------


@activity.defn(retry=RetryPolicy(max_attempts=1))
async def give_up() -> None:
    raise LookupError(f"attempt {activity.info().attempt} of {dict(activity.info().headers)}")


async def test_a_test_on_postgresql_makes_schedules_too(dsn: str) -> None:
    async with PostgresEnvironment(dsn) as env:
        sums = await env.create_schedule("sums", add, 2, 3, cron="0 3 * * *")
        first = datetime(2026, 1, 1, tzinfo=UTC)
        assert await sums.backfill(first, first + timedelta(days=1)) == 1
        async with asyncio.timeout(30):
            while (await sums.describe())["started"] != 1:
                await asyncio.sleep(0.05)
        assert await env.get_handle("sums-2026-01-01T03:00:00Z").result() == 5
        await sums.delete()


async def test_a_schedule_of_a_client_starts_jobs_and_says_where_it_stands(
    client: Client, serve: Any
) -> None:
    await serve(add)
    schedule = await client.create_schedule("sums", add, 2, 3, cron="0 3 * * *", paused=True)
    assert (await schedule.describe())["paused"] == "paused from the start"
    start = datetime(2026, 1, 1, tzinfo=UTC)
    assert await schedule.backfill(start, start + timedelta(days=2)) == 2
    for day in (1, 2):
        job = client.get_handle(f"sums-2026-01-0{day}T03:00:00Z", activity=add)
        async with asyncio.timeout(20):
            while True:
                try:
                    await job.describe()
                    break
                except WorkflowNotFoundError:
                    await client.get_schedule("sums").describe()
        assert await job.result(20) == 5
    await schedule.resume()
    assert (await schedule.describe())["next_time"] is not None
    assert [each.workflow_id for each in await client.list_schedules()] == ["sums"]
    await schedule.delete()
    with pytest.raises(WorkflowTerminatedError):
        await client.get_handle("sums").result(20)
    assert await client.list_schedules() == []
    assert (await client.get_handle("sums").describe()).state == RunState.TERMINATED


async def test_a_scheduled_job_has_the_options_of_its_activity_and_the_headers_of_its_schedule(
    client: Client, serve: Any
) -> None:
    await serve(give_up)
    changed = give_up.with_options(retry=RetryPolicy(max_attempts=2, initial_interval=0.01))
    await client.create_schedule(
        "tries", changed, cron="0 3 * * *", paused=True, headers={"trace": "4b"}
    )
    schedule = client.get_schedule("tries")
    first = datetime(2026, 1, 1, tzinfo=UTC)
    assert await schedule.backfill(first, first + timedelta(days=1)) == 1
    job = client.get_handle("tries-2026-01-01T03:00:00Z", activity=give_up)
    async with asyncio.timeout(20):
        while True:
            try:
                await job.describe()
                break
            except WorkflowNotFoundError:
                await asyncio.sleep(0.02)
    with pytest.raises(WorkflowFailedError, match=r"attempt 2 of \{'trace': '4b'\}"):
        await job.result(20)
    await schedule.delete()


async def test_an_update_changes_what_it_names(client: Client, serve: Any) -> None:
    await serve(add)
    schedule = await client.create_schedule("sums", add, 2, 3, cron="0 3 * * *", jitter=5)
    before = (await schedule.describe())["plan"]

    await schedule.update(every=600, overlap="terminate_other", arguments=[4, 5])

    after = (await schedule.describe())["plan"]
    changes = {"cron": None, "every_us": 600_000_000, "overlap": "terminate_other"}
    assert after == {**before, **changes, "arguments": "[4,5]"}
    for options, said in [({"every": 0.1}, "one second"), ({"overlap": "hope"}, "overlap is")]:
        with pytest.raises(InvalidArgumentError, match=said):
            await schedule.update(**options)
    await schedule.update(cron="0 4 * * *", timezone="Europe/Oslo", jitter=0, catch_up=60)
    plan = (await schedule.describe())["plan"]
    assert (plan["cron"], plan["every_us"], plan["jitter_us"]) == ("0 4 * * *", None, 0)
    assert (plan["timezone"], plan["catch_up_us"]) == ("Europe/Oslo", 60_000_000)


async def test_schedules_are_found_by_their_attributes(client: Client) -> None:
    await client.create_schedule("one", tick, every=60, search={"team": "shop", "on": ["a", "b"]})
    await client.create_schedule("two", tick, every=60, search={"team": "mail"})
    await client.start(tick, id="run", search={"team": "shop"})

    found = await client.list_schedules(search={"team": "shop", "on": ["b"]})

    assert [view.workflow_id for view in found] == ["one"]
    with pytest.raises(InvalidArgumentError, match="cannot be None"):
        await client.list_schedules(search={"team": None})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "cron= or every="),
        ({"cron": "0 9 * * *", "every": 60}, "cron= or every="),
        ({"cron": "0 9 * *"}, "not a cron line"),
        ({"every": 60, "timezone": "Mars/Olympus"}, "time zone"),
        ({"every": 0.1}, "one second or more"),
        ({"every": 60, "overlap": "hope"}, "overlap is one of"),
    ],
)
async def test_a_plan_without_times_is_refused(
    client: Client, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        await client.create_schedule("bad", tick, **options)
    assert await client.list_schedules() == []
