"""Activities enqueued as jobs, without a workflow around them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from durable import (
    Client,
    DefinitionError,
    InvalidArgumentError,
    NonRetryable,
    RetryPolicy,
    RunState,
    UnknownActivityError,
    WorkflowAlreadyStartedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowTimedOutError,
    activity,
    workflow,
)
from durable.engine.jobs import JOB_HEADER, changes_of, header_of, job_of
from durable.engine.registry import Registry
from durable.testing import Replayer

SOON = 20.0


@dataclass
class Image:
    name: str
    width: int


@activity.defn
async def double(number: int) -> int:
    return number * 2


@activity.defn
async def resize(image: Image, width: int = 100) -> Image:
    """Make it smaller."""
    return Image(image.name, min(width, image.width))


@activity.defn(queue="gpu")
def where() -> list[Any]:
    info = activity.info()
    return [info.queue, info.workflow_type, info.workflow_id]


@activity.defn(retry=RetryPolicy(initial_interval=3600))
async def flaky(times: int) -> int:
    if activity.info().attempt <= times:
        raise OSError("not yet")
    return activity.info().attempt


# -- what comes of it ------------------------------------------------------------------------


async def test_a_job_gives_its_typed_result(client: Client, serve: Any) -> None:
    await serve(resize)
    handle = await client.enqueue(resize, Image("cat", 900), width=50)
    assert await handle.result(SOON) == Image("cat", 50)
    again = client.get_handle(handle.workflow_id, activity=resize)
    assert await again.result(SOON) == Image("cat", 50)


async def test_a_job_is_done_where_it_is_claimed_in_one_commit(client: Client, serve: Any) -> None:
    await serve(double)
    handle = await client.enqueue(double, 4)
    assert await handle.result(SOON) == 8
    history = await handle.history()
    assert [event.kind for event in history] == [
        "RUN_STARTED",
        "ACTIVITY_SCHEDULED",
        "ACTIVITY_COMPLETED",
        "RUN_COMPLETED",
    ]
    assert (await handle.describe()).event_batches == 2


async def test_a_job_runs_on_the_queue_of_its_activity_or_where_it_is_sent(
    client: Client, serve: Any
) -> None:
    await serve(where, queues=("gpu",))
    await serve(where, queues=("spare",))
    first = await client.enqueue(where, id="first")
    second = await client.enqueue(where, id="second", queue="spare")
    third = await client.enqueue(where.with_options(queue="spare"), id="third")
    assert await first.result(SOON) == ["gpu", "job:where", "first"]
    assert await second.result(SOON) == ["spare", "job:where", "second"]
    assert await third.result(SOON) == ["spare", "job:where", "third"]


async def test_a_worker_takes_jobs_of_the_activities_it_has_only(
    client: Client, serve: Any
) -> None:
    await serve(double)
    theirs = await client.enqueue(resize, Image("cat", 1))
    assert await (await client.enqueue(double, 1)).result(SOON) == 2
    assert (await theirs.describe()).event_batches == 1
    await serve(resize)
    assert await theirs.result(SOON) == Image("cat", 1)


async def test_a_failed_job_says_what_its_activity_raised(client: Client, serve: Any) -> None:
    @activity.defn
    async def declined() -> None:
        raise NonRetryable("declined")

    await serve(declined)
    handle = await client.enqueue(declined)
    with pytest.raises(WorkflowFailedError, match="declined") as caught:
        await handle.result(SOON)
    assert isinstance(caught.value.__cause__, NonRetryable)


async def test_options_are_of_this_job_only(client: Client, serve: Any) -> None:
    quick = RetryPolicy(initial_interval=0.01, max_interval=0.01)
    await serve(flaky)
    first = await client.enqueue(flaky, 1, retry=quick)
    second = await client.enqueue(flaky.with_options(retry=quick), 2)
    once = await client.enqueue(flaky, 1, retry=RetryPolicy(max_attempts=1))
    assert await first.result(SOON) == 2
    assert await second.result(SOON) == 3
    with pytest.raises(WorkflowFailedError):
        await once.result(SOON)


async def test_a_job_can_be_cancelled_while_it_waits_and_while_it_runs(
    client: Client, serve: Any
) -> None:
    began, told = asyncio.Event(), asyncio.Event()

    @activity.defn
    async def endless() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.set()

    later = await client.enqueue(endless, delay=3600)
    await later.cancel()
    await serve(endless)
    with pytest.raises(WorkflowCancelledError):
        await later.result(SOON)
    running = await client.enqueue(endless)
    async with asyncio.timeout(SOON):
        await began.wait()
    await running.cancel()
    with pytest.raises(WorkflowCancelledError):
        await running.result(SOON)
    async with asyncio.timeout(SOON):
        await told.wait()


async def test_a_job_over_its_time_is_ended(client: Client, serve: Any) -> None:
    @activity.defn
    async def endless() -> None:
        await asyncio.Event().wait()

    await serve(endless)
    handle = await client.enqueue(endless, run_timeout=0.05)
    with pytest.raises(WorkflowTimedOutError):
        await handle.result(SOON)


# -- ids, transactions, many -----------------------------------------------------------------


async def test_an_id_makes_enqueueing_twice_once(client: Client) -> None:
    handle = await client.enqueue(double, 1, id="job-1")
    with pytest.raises(WorkflowAlreadyStartedError) as caught:
        await client.enqueue(double, 2, id="job-1")
    assert caught.value.run_id == handle.run_id
    first, second = await client.enqueue(double, 1), await client.enqueue(double, 1)
    assert first.workflow_id != second.workflow_id


async def test_a_job_belongs_to_the_transaction_of_the_caller(
    client: Client, serve: Any, dsn: str
) -> None:
    await serve(double)
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        lost = await client.enqueue(double, 1, conn=conn)
        await conn.rollback()
        kept = await client.enqueue(double, 2, conn=conn)
        kept_too = await client.enqueue_many(double, [(3,)], conn=conn)
    assert await kept.result(SOON) == 4
    assert not isinstance(kept_too[0], Exception)
    assert await kept_too[0].result(SOON) == 6
    assert [view.workflow_id for view in await client.list()].count(lost.workflow_id) == 0


async def test_many_jobs_take_one_transaction(client: Client, serve: Any) -> None:
    await serve(double)
    await client.enqueue(double, 0, id="job-2")
    ids = [f"job-{n}" for n in range(5)]
    jobs = await client.enqueue_many(double, [(n,) for n in range(5)], ids=ids)
    assert isinstance(jobs[2], WorkflowAlreadyStartedError)
    results = [await job.result(SOON) for job in jobs if not isinstance(job, Exception)]
    assert results == [0, 2, 6, 8]
    assert await client.enqueue_many(double, []) == []
    with pytest.raises(InvalidArgumentError, match="5 jobs"):
        await client.enqueue_many(double, [(n,) for n in range(5)], ids=["one"])


# -- by name, and what is refused ------------------------------------------------------------


async def test_a_job_may_be_named(client: Client, serve: Any) -> None:
    with pytest.raises(UnknownActivityError, match="has a worker run yet"):
        await client.enqueue("double", 4)
    await serve(double)
    handle = await client.enqueue("double", 4)
    assert await handle.result(SOON) == 8
    with pytest.raises(UnknownActivityError, match="registered: double"):
        await client.enqueue("treble", 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"args": ["x"]},
        {"args": []},
        {"id": ""},
        {"priority": 99999},
        {"queue": ""},
        {"delay": 1, "at": "now"},
    ],
)
async def test_what_cannot_be_a_job_is_refused_before_it_is_written(
    client: Client, wrong: dict[str, Any]
) -> None:
    args = wrong.pop("args", [4])
    with pytest.raises(InvalidArgumentError):
        await client.enqueue(double, *args, **wrong)
    assert await client.list() == []


async def test_only_activities_are_enqueued(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="not an activity"):
        await client.enqueue(len)  # type: ignore[call-overload]


def test_workflows_are_not_called_as_jobs_are() -> None:
    @workflow.defn(name="job:double")
    async def pretender() -> None: ...

    with pytest.raises(DefinitionError, match="something else"):
        Registry([pretender])


# -- how it is seen --------------------------------------------------------------------------


async def test_jobs_are_listed_by_their_activity(client: Client) -> None:
    await client.enqueue(double, 1, id="a")
    await client.enqueue(resize, Image("cat", 1), id="b")
    [view] = await client.list(workflow_type="job:resize")
    assert (view.workflow_id, view.state) == ("b", RunState.RUNNING)


async def test_the_history_of_a_job_replays(client: Client, serve: Any, dsn: str) -> None:
    await serve(flaky)
    handle = await client.enqueue(flaky, 0, retry=RetryPolicy(max_attempts=2))
    await handle.result(SOON)
    report = await Replayer([flaky]).replay_database(dsn)
    assert (report.replayed, report.problems) == (1, [])


def test_the_job_of_an_activity_is_always_the_same() -> None:
    assert job_of(double) is job_of(double)
    assert (job_of(double).name, job_of(resize).__doc__) == ("job:double", "Make it smaller.")


def test_changed_options_survive_their_header() -> None:
    retry = RetryPolicy(max_attempts=3, non_retryable=("ValueError",))
    changes = {"retry": retry, "start_to_close_timeout": None, "priority": 0}
    assert changes_of(header_of(changes)[JOB_HEADER]) == changes
    assert changes_of({"changes": ["colour"], "options": ""}) == {}
    assert header_of({}) == {}
