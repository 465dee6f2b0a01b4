"""What a scheduled run learns of the runs of its schedule that ended before it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable import ContextError, DecodeError, WorkflowCancelledError, workflow
from durable.engine import schedules
from durable.engine.info import to_us
from durable.engine.schedules import ORDERS, SCHEDULE
from durable.testing import WorkflowEnvironment
from durable.testing.handle import TestHandle

HOUR = timedelta(hours=1)
FIRST = "s-2030-01-01T01:00:00Z"
SECOND = "s-2030-01-01T02:00:00Z"
THIRD = "s-2030-01-01T03:00:00Z"


@workflow.defn
async def count() -> int:
    return (workflow.last_result(int) or 0) + 1


@workflow.defn
async def waits_first() -> list[str]:
    """Says whom it comes after, and takes a signal before it says so if it is the first."""
    said = workflow.last_result(list[str])
    if workflow.info().workflow_id == FIRST:
        await workflow.wait_signal("go")
    return [workflow.info().workflow_id, *(said or [])]


@workflow.defn
async def fails_first() -> str:
    failure = workflow.last_failure()
    if failure is None:
        raise FileNotFoundError("nothing there")
    assert workflow.last_result() is None
    return f"{type(failure).__name__}: {failure}"


@workflow.defn
async def hangs_first() -> str:
    if workflow.info().workflow_id == FIRST:
        await asyncio.Event().wait()
    return repr(workflow.last_failure())


@workflow.defn
async def hangs_twice(gives: str | None) -> list[str | None]:
    """The first two wait until they are cancelled, and then may have a result all the same."""
    if workflow.info().workflow_id != THIRD:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if gives is None:
                raise
            return [gives]
    failure = workflow.last_failure()
    said = workflow.last_result(list[str])
    return [said[0] if said else None, None if failure is None else str(failure)]


@workflow.defn
async def misreads() -> str:
    if not workflow.has_last_result():
        return "a text"
    try:
        workflow.last_result(int)
    except DecodeError as error:
        return str(error)
    return "was an int"


@workflow.defn
async def says_much() -> str:
    """In a schedule's state it is text within text, where each quote takes four bytes."""
    if workflow.info().workflow_id == FIRST:
        return '"' * 600_000
    return "something" if workflow.has_last_result() else "nothing"


@pytest.fixture(params=[False, True], ids=["plain", "crashing"])
async def env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    crashes = bool(request.param)
    flows = [count, waits_first, fails_first, hangs_first, hangs_twice, misreads, says_much]
    async with WorkflowEnvironment(workflows=flows, crash_at_every_event=crashes) as made:
        yield made


async def begin(env: WorkflowEnvironment, name: str, state: Any = None, **changes: Any) -> Any:
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
    return await env.start(SCHEDULE, {**plan, **changes}, state or {}, id="s")


async def result_at(env: WorkflowEnvironment, workflow_id: str) -> Any:
    handle: TestHandle[Any] = env.get_handle(workflow_id)
    return await handle.result()


async def test_what_counts_is_which_run_ended_last(env: WorkflowEnvironment) -> None:
    await begin(env, "waits_first", overlap="allow_all")
    await env.advance(HOUR * 2)
    await env.get_handle(FIRST).signal("go")
    await env.advance(HOUR)
    assert await result_at(env, SECOND) == [SECOND]
    assert await result_at(env, FIRST) == [FIRST]
    assert await result_at(env, THIRD) == [THIRD, FIRST]


async def test_a_failure_comes_as_the_exception_that_it_was(env: WorkflowEnvironment) -> None:
    await begin(env, "fails_first")
    await env.advance(HOUR * 2)
    assert await result_at(env, SECOND) == "FileNotFoundError: nothing there"


async def test_a_run_that_was_ended_has_failed(env: WorkflowEnvironment) -> None:
    await begin(env, "hangs_first")
    await env.advance(HOUR)
    await env.get_handle(FIRST).terminate("no use")
    await env.advance(HOUR)
    assert "no use" in await result_at(env, SECOND)


async def test_a_run_that_was_cancelled_for_the_next_one_has_failed(
    env: WorkflowEnvironment,
) -> None:
    await begin(env, "hangs_twice", arguments="[null]", overlap="cancel_other")
    await env.advance(HOUR * 3)
    with pytest.raises(WorkflowCancelledError):
        await result_at(env, FIRST)
    result, failure = await result_at(env, THIRD)
    assert result is None
    assert failure is not None
    assert "ancel" in failure


async def test_a_run_that_has_a_result_though_it_was_cancelled_counts_by_that(
    env: WorkflowEnvironment,
) -> None:
    await begin(env, "hangs_twice", arguments='["saved"]', overlap="cancel_other")
    await env.advance(HOUR * 3)
    assert await result_at(env, THIRD) == ["saved", None]


async def test_a_run_whose_id_is_taken_is_no_failure(env: WorkflowEnvironment) -> None:
    handle = await begin(env, "fails_first", paused="for a while")
    await env.start(count, id=FIRST)
    first, second = (
        {"do": "backfill", "times_us": [to_us(datetime(2030, 1, 1, hour, tzinfo=UTC))]}
        for hour in (1, 2)
    )
    await handle.signal(ORDERS, first)
    await handle.signal(ORDERS, second)
    await env.settle()
    seen = await handle.vars()
    assert (seen["started"], seen["refused"], seen["recent"]) == (1, 1, [SECOND])
    with pytest.raises(Exception, match="nothing there"):
        await result_at(env, SECOND)


async def test_a_result_of_another_type_is_an_error_to_catch(env: WorkflowEnvironment) -> None:
    await begin(env, "misreads")
    await env.advance(HOUR * 2)
    assert "int" in await result_at(env, SECOND)


async def test_a_schedule_takes_it_along_when_it_goes_on_as_new(
    env: WorkflowEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "EVENTS_SOFT_MAX", 1)
    handle = await begin(env, "count")
    await env.advance(HOUR * 3)
    assert (await handle.vars())["started"] == 3
    assert await result_at(env, THIRD) == 3


async def test_a_result_too_large_to_take_along_is_left_behind(
    env: WorkflowEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedules, "EVENTS_SOFT_MAX", 1)
    handle = await begin(env, "says_much")
    await env.advance(HOUR * 2)
    assert (await handle.vars())["started"] == 2
    assert len(await result_at(env, FIRST)) == 600_000
    assert await result_at(env, SECOND) == "nothing"


def test_outside_of_a_workflow_there_is_none() -> None:
    for call in (workflow.has_last_result, workflow.last_result, workflow.last_failure):
        with pytest.raises(ContextError):
            call()
