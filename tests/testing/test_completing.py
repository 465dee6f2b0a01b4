"""Activities that others complete, and transactional ones, in the test environments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from durable import (
    ActivityError,
    ActivityNotFoundError,
    ApplicationError,
    CompleteLater,
    InvalidArgumentError,
    RetryPolicy,
    activity,
    workflow,
)
from durable.testing import WorkflowEnvironment
from durable.testing.postgres import PostgresEnvironment

TOKENS: list[str] = []
DETAILS: list[tuple[Any, ...]] = []


@activity.defn(completes_later=True, retry=RetryPolicy(max_attempts=2, initial_interval=0.01))
async def ask_printer(text: str) -> str:
    DETAILS.append(activity.info().heartbeat_details)
    TOKENS.append(activity.info().task_token)
    raise CompleteLater


@activity.defn(completes_later=True)
def ask_printer_in_a_thread(text: str) -> str:
    TOKENS.append(activity.info().task_token)
    raise CompleteLater


@activity.defn
async def undeclared(text: str) -> str:
    raise CompleteLater


@activity.transactional
async def count(conn: Any, number: int) -> int:
    cursor = await conn.execute("SELECT %s + 1", (number,))
    (row,) = await cursor.fetchall()
    return int(row[0])


@workflow.defn
async def printing(text: str) -> str:
    try:
        return await ask_printer(text)
    except ActivityError as error:
        return f"not printed: {error.__cause__}"


@workflow.defn
async def printing_in_a_thread(text: str) -> str:
    return await ask_printer_in_a_thread(text)


@workflow.defn
async def printing_undeclared(text: str) -> str:
    try:
        return await undeclared(text)
    except ActivityError as error:
        return str(error.__cause__)


@workflow.defn
async def printing_in_time(text: str) -> str:
    asked = ask_printer.with_options(
        start_to_close_timeout=timedelta(minutes=1), heartbeat_timeout=timedelta(seconds=40)
    )
    try:
        return await asked(text)
    except ActivityError as error:
        return f"not printed: {error.__cause__}"


@workflow.defn
async def printing_until_told(text: str) -> str:
    asked = ask_printer.start(text)
    await workflow.wait_signal("enough")
    asked.cancel()
    try:
        return await asked
    except asyncio.CancelledError:
        return "cancelled"


@workflow.defn
async def counting(number: int) -> int:
    return await count(number)


@pytest.fixture(params=["process", "crashing", "postgres"])
async def env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    if request.param == "postgres":
        dsn: str = request.getfixturevalue("dsn")
        async with PostgresEnvironment(dsn) as made:
            yield made
    else:
        async with WorkflowEnvironment(crash_at_every_event=request.param == "crashing") as made:
            yield made


@pytest.fixture(autouse=True)
def fresh() -> None:
    TOKENS.clear()
    DETAILS.clear()


async def eventually(act: Callable[[], Any]) -> None:
    """Have it done as soon as the activity that it is about has been left to others."""
    async with asyncio.timeout(30):
        while True:
            try:
                await act()
                return
            except (ActivityNotFoundError, IndexError):
                await asyncio.sleep(0.01)


# -- in process and on a database ------------------------------------------------------------


@pytest.mark.parametrize("flow", [printing, printing_in_a_thread], ids=["async", "sync"])
async def test_token_completes_the_activity(env: WorkflowEnvironment, flow: Any) -> None:
    handle = await env.start(flow, "page")
    await eventually(lambda: env.complete_activity(TOKENS[0], "printed"))

    assert await handle.result() == "printed"
    with pytest.raises(ActivityNotFoundError, match="no activity waits"):
        await env.complete_activity(TOKENS[0], "again")


async def test_token_fails_the_activity_for_good(env: WorkflowEnvironment) -> None:
    handle = await env.start(printing, "page")
    await eventually(lambda: env.fail_activity(TOKENS[0], ApplicationError("no paper")))

    assert await handle.result() == "not printed: no paper"
    assert len(TOKENS) == 1


async def test_activity_that_does_not_say_it_completes_later_fails(
    env: WorkflowEnvironment,
) -> None:
    handle = await env.start(printing_undeclared, "page")

    assert "not declared with completes_later=True" in await handle.result()


# -- in process ------------------------------------------------------------------------------


async def test_what_is_no_token_is_refused() -> None:
    async with WorkflowEnvironment() as env:
        with pytest.raises(InvalidArgumentError, match="is not a task token"):
            await env.complete_activity("printer", "printed")


async def test_time_limit_of_a_left_attempt_goes_on_and_voids_its_token() -> None:
    async with WorkflowEnvironment() as env:
        handle = await env.start(printing_in_time, "page")
        await env.advance(timedelta(seconds=41))
        assert len(TOKENS) == 2

        with pytest.raises(ActivityNotFoundError):
            await env.complete_activity(TOKENS[0], "printed")
        await env.complete_activity(TOKENS[1], "printed at last")

        assert await handle.result() == "printed at last"


async def test_heartbeat_by_token_keeps_it_alive_and_tells_the_next_attempt() -> None:
    async with WorkflowEnvironment() as env:
        handle = await env.start(printing_in_time, "page")
        await env.advance(timedelta(seconds=30))
        await env.heartbeat_activity(TOKENS[0], "half")
        await env.advance(timedelta(seconds=25))
        assert len(TOKENS) == 1
        await env.advance(timedelta(seconds=10))

        assert DETAILS == [(), ("half",)]
        await env.complete_activity(TOKENS[1], "printed")
        assert await handle.result() == "printed"


async def test_left_activity_that_is_cancelled_takes_no_answer() -> None:
    async with WorkflowEnvironment() as env:
        handle = await env.start(printing_until_told, "page")
        await env.settle()
        await handle.signal("enough")

        assert await handle.result() == "cancelled"
        with pytest.raises(ActivityNotFoundError):
            await env.complete_activity(TOKENS[0], "printed")


# -- on a database ---------------------------------------------------------------------------


async def test_transactional_activity_runs_where_there_is_a_database(dsn: str) -> None:
    async with PostgresEnvironment(dsn) as env:
        assert await env.execute(counting, 1) == 2

        mock = env.mock(count, 7)
        assert await env.execute(counting, 1) == 7
        assert mock.calls == [((1,), {})]


# -- heartbeats of the attempt itself --------------------------------------------------------


@dataclass
class Page:
    number: int


@activity.defn(retry=RetryPolicy(max_attempts=2, initial_interval=0.01), heartbeat_timeout=20)
async def copy_pages() -> list[Any]:
    if activity.info().attempt == 1:
        activity.heartbeat(Page(3))
        activity.heartbeat()
        raise RuntimeError("paper jam")
    return list(activity.info().heartbeat_details)


@workflow.defn
async def copying() -> list[Any]:
    return await copy_pages()


async def test_next_attempt_gets_the_last_details_as_plain_json(env: WorkflowEnvironment) -> None:
    assert await env.execute(copying) == [{"number": 3}]
