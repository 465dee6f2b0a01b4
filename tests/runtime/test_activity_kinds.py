"""Kinds of activities: at most once, and every time limit, started here or through the queue."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable import (
    ActivityError,
    ActivityNotFoundError,
    AttemptLostError,
    CompleteLater,
    InvalidArgumentError,
    RetryAfter,
    RetryPolicy,
    activity,
    workflow,
)
from durable.client import Client
from durable.errors import WorkflowCancelledError
from durable.runtime.worker import Worker

SOON = 20.0
ONCE = RetryPolicy(max_attempts=1)
TWICE = RetryPolicy(initial_interval=0.01, max_interval=0.02, max_attempts=2)
OFTEN = RetryPolicy(initial_interval=0.01, max_interval=0.02, max_attempts=None)


async def outcome(client: Client, definition: Any) -> Any:
    handle = await client.start(definition, id=definition.name)
    return await handle.result(SOON)


async def wait(event: asyncio.Event) -> None:
    async with asyncio.timeout(SOON):
        await event.wait()


# -- at most once ----------------------------------------------------------------------------


async def test_at_most_once_runs_once_when_all_is_well(client: Client, serve: Any) -> None:
    calls: list[int] = []

    @activity.defn(at_most_once=True)
    async def launch(number: int) -> int:
        calls.append(number)
        return number

    @activity.defn(at_most_once=True)
    def launch_on_thread(number: int) -> int:
        calls.append(number)
        return number

    @workflow.defn
    async def count_down() -> list[int]:
        return [*await asyncio.gather(*(launch(n) for n in range(3))), await launch_on_thread(3)]

    await serve(count_down, launch, launch_on_thread)
    assert await outcome(client, count_down) == [0, 1, 2, 3]
    assert sorted(calls) == [0, 1, 2, 3]


async def test_at_most_once_is_not_tried_again_after_a_failure(client: Client, serve: Any) -> None:
    calls: list[int] = []

    @activity.defn(at_most_once=True, retry=RetryPolicy(max_attempts=5))
    async def launch() -> None:
        calls.append(1)
        raise RuntimeError("fizzled")

    @workflow.defn
    async def count_down() -> str:
        try:
            await launch()
        except ActivityError as error:
            return str(error.__cause__)
        return ""

    await serve(count_down, launch)
    assert await outcome(client, count_down) == "fizzled"
    assert calls == [1]


async def test_at_most_once_fails_by_type_when_its_worker_dies(client: Client, serve: Any) -> None:
    calls: list[int] = []
    entered = asyncio.Event()

    @activity.defn(at_most_once=True)
    async def launch() -> None:
        calls.append(1)
        entered.set()
        await asyncio.sleep(3600)

    @workflow.defn
    async def count_down() -> bool:
        try:
            await launch()
        except ActivityError as error:
            return isinstance(error.__cause__, AttemptLostError)
        return False

    worker: Worker = await serve(count_down, launch)
    handle = await client.start(count_down, id="c")
    await wait(entered)
    await client.store.end_sessions([worker.session_id])
    await serve(count_down, launch)
    assert await handle.result(SOON) is True
    assert calls == [1]


async def test_at_most_once_fails_by_type_when_its_worker_drains(
    client: Client, serve: Any
) -> None:
    entered = asyncio.Event()

    @activity.defn(at_most_once=True)
    async def launch() -> None:
        entered.set()
        await asyncio.sleep(3600)

    @workflow.defn
    async def count_down() -> bool:
        try:
            await launch()
        except ActivityError as error:
            return isinstance(error.__cause__, AttemptLostError)
        return False

    worker: Worker = await serve(count_down, launch, drain_seconds=0.0)
    handle = await client.start(count_down, id="c")
    await wait(entered)
    worker.request_stop()
    await serve(count_down, launch)
    assert await handle.result(SOON) is True


# -- time limits -----------------------------------------------------------------------------

HERE, QUEUED = "default", "other"
"""The queue of the run's own worker, whose attempts start at once, and one that goes by rows."""
BOTH = pytest.mark.parametrize("queue", [HERE, QUEUED])


async def both(serve: Any, *definitions: Any) -> tuple[Worker, Worker]:
    """One worker for runs and the default queue, one for the other queue."""
    activities = [each for each in definitions if not hasattr(each, "handlers")]
    return await serve(*definitions), await serve(*activities, queues=(QUEUED,))


def reason(error: ActivityError) -> str:
    return f"{type(error.__cause__).__name__} {error.__cause__}"


@BOTH
async def test_start_to_close_ends_an_attempt(client: Client, serve: Any, queue: str) -> None:
    attempts: list[int] = []

    @activity.defn(start_to_close_timeout=0.1, retry=TWICE, queue=queue)
    async def slow() -> None:
        attempts.append(activity.info().attempt)
        await asyncio.sleep(3600)

    @workflow.defn
    async def limited() -> str:
        try:
            await slow()
        except ActivityError as error:
            return reason(error)
        return ""

    await both(serve, limited, slow)
    found = await outcome(client, limited)
    assert "TimeoutError" in found
    assert "start-to-close" in found
    assert attempts == [1, 2]


@BOTH
async def test_schedule_to_close_ends_all_attempts(client: Client, serve: Any, queue: str) -> None:
    @activity.defn(
        schedule_to_close_timeout=0.3,
        queue=queue,
        retry=RetryPolicy(initial_interval=0.05, max_interval=0.05, max_attempts=None),
    )
    async def flaky() -> None:
        raise RuntimeError("again")

    @workflow.defn
    async def limited() -> str:
        try:
            await flaky()
        except ActivityError as error:
            return reason(error)
        return ""

    await both(serve, limited, flaky)
    found = await outcome(client, limited)
    assert "again" in found or "schedule-to-close" in found


async def test_schedule_to_start_ends_what_nobody_takes(client: Client, serve: Any) -> None:
    @activity.defn(schedule_to_start_timeout=0.1, queue="nobody")
    async def orphan() -> None:
        raise AssertionError

    @workflow.defn
    async def limited() -> str:
        try:
            await orphan()
        except ActivityError as error:
            return reason(error)
        return ""

    await serve(limited)
    assert "schedule-to-start" in await outcome(client, limited)


@BOTH
async def test_the_next_attempt_sees_the_details_of_the_last_heartbeat(
    client: Client, serve: Any, queue: str
) -> None:
    # A slow machine may be silent for as long in a later attempt too: that one passes them on.
    @activity.defn(heartbeat_timeout=0.2, retry=OFTEN, queue=queue)
    async def batch() -> list[Any]:
        info = activity.info()
        if info.attempt == 1:
            activity.heartbeat("row", 7)
            await asyncio.sleep(3600)
        return [min(info.attempt, 2), *info.heartbeat_details]

    @workflow.defn
    async def limited() -> list[Any]:
        return await batch()

    await both(serve, limited, batch)
    assert await outcome(client, limited) == [2, "row", 7]


@BOTH
async def test_beats_without_details_keep_an_attempt_alive(
    client: Client, serve: Any, queue: str
) -> None:
    # No attempt gets to its end without its beats; a slow machine may need several to make them.
    @activity.defn(heartbeat_timeout=0.6, retry=OFTEN, queue=queue)
    async def steady() -> str:
        for _ in range(30):
            activity.heartbeat()
            await asyncio.sleep(0.05)
        return "alive"

    @workflow.defn
    async def limited() -> str:
        return await steady()

    await both(serve, limited, steady)
    assert await outcome(client, limited) == "alive"


@BOTH
async def test_details_survive_the_death_of_the_worker(
    client: Client, serve: Any, queue: str, until: Any
) -> None:
    entered = asyncio.Event()

    @activity.defn(queue=queue, retry=TWICE, heartbeat_timeout=60)
    async def batch() -> list[Any]:
        info = activity.info()
        if not entered.is_set():
            activity.heartbeat("row", 7)
            entered.set()
            await asyncio.sleep(3600)
        return [*info.heartbeat_details]

    @workflow.defn
    async def limited() -> list[Any]:
        return await batch()

    workers = await both(serve, limited, batch)
    handle = await client.start(limited, id="l")
    await wait(entered)

    async def is_written() -> bool:
        _, claimed = await client.store.owned(workers[queue == QUEUED].session_id)
        return bool(claimed) and claimed[0].details == b'["row",7]'

    await until(is_written)
    await client.store.end_sessions([worker.session_id for worker in workers])
    assert await handle.result(SOON) == ["row", 7]


@BOTH
async def test_a_queued_attempt_whose_worker_hangs_is_over_in_time(
    client: Client, serve: Any, queue: str
) -> None:
    """The code does not end when it is told to; the workflow goes on all the same."""
    release = threading.Event()

    @activity.defn(start_to_close_timeout=0.1, retry=ONCE, queue=queue)
    def stuck() -> None:
        release.wait(SOON)

    @workflow.defn
    async def limited() -> str:
        try:
            await stuck()
        except ActivityError as error:
            return reason(error)
        return ""

    await both(serve, limited, stuck)
    try:
        assert "start-to-close" in await outcome(client, limited)
    finally:
        release.set()


# -- cancellation ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "thread"])
@BOTH
async def test_cancellation_reaches_the_code(
    client: Client, serve: Any, kind: str, queue: str
) -> None:
    entered, told = threading.Event(), threading.Event()

    @activity.defn(queue=queue)
    async def patient() -> None:
        entered.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            told.set()
            raise

    @activity.defn(queue=queue)
    def busy() -> None:
        entered.set()
        while not activity.is_cancelled():
            threading.Event().wait(0.01)
        told.set()

    @workflow.defn
    async def cancellable() -> None:
        await (patient() if kind == "async" else busy())

    await both(serve, cancellable, patient, busy)
    handle = await client.start(cancellable, id="c")
    assert await asyncio.to_thread(entered.wait, SOON)
    await handle.cancel("enough")
    with pytest.raises(WorkflowCancelledError):
        await handle.result(SOON)
    assert await asyncio.to_thread(told.wait, SOON)


async def test_a_workflow_can_wait_for_the_acknowledgement(client: Client, serve: Any) -> None:
    entered = asyncio.Event()
    steps: list[str] = []

    @activity.defn(wait_cancel=True)
    async def tidy() -> None:
        entered.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            steps.append("tidied")

    @workflow.defn
    async def careful() -> None:
        try:
            await tidy()
        finally:
            steps.append("went on")

    await serve(careful, tidy)
    handle = await client.start(careful, id="c")
    await wait(entered)
    await handle.cancel()
    with pytest.raises(WorkflowCancelledError):
        await handle.result(SOON)
    assert steps == ["tidied", "went on"]


async def test_a_cancelled_activity_does_not_run_again_when_its_worker_dies(
    client: Client, serve: Any
) -> None:
    cleaning = asyncio.Event()
    steps: list[str] = []

    @activity.defn(wait_cancel=True)
    async def hold(what: str) -> str:
        steps.append(f"{what} began")
        if what == "sound":
            return what
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await asyncio.Event().wait()
        return what

    @workflow.defn
    async def orderly() -> str:
        running = asyncio.create_task(hold("broken"))
        await workflow.wait_signal("stop")
        running.cancel()
        try:
            return await running
        except asyncio.CancelledError:
            return f"cancelled, {await hold('sound')}"

    worker: Worker = await serve(orderly, hold)
    handle = await client.start(orderly, id="c")
    await handle.signal("stop")
    await wait(cleaning)
    await client.store.end_sessions([worker.session_id])
    await serve(orderly, hold)
    assert await handle.result(SOON) == "cancelled, sound"
    assert steps == ["broken began", "sound began"]


# -- the next attempt ------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("how", ["delay", "at", "past", "retry_after"])
async def test_an_attempt_may_say_when_the_next_one_is(
    client: Client, serve: Any, queue: str, how: str
) -> None:
    """The policy's own pause would be an hour."""

    @activity.defn(queue=queue, retry=RetryPolicy(initial_interval=3600, max_interval=3600))
    async def picky() -> int:
        if activity.info().attempt == 1:
            if how == "retry_after":
                raise RetryAfter(0.01)
            if how == "delay":
                activity.override_next_retry(delay=timedelta(seconds=0.01))
            elif how == "at":
                activity.override_next_retry(at=datetime.now(UTC) + timedelta(seconds=0.05))
            else:
                activity.override_next_retry(at=datetime(2020, 1, 1))
            raise RuntimeError("not now")
        return activity.info().attempt

    @workflow.defn
    async def waiting() -> int:
        return await picky()

    await both(serve, waiting, picky)
    assert await outcome(client, waiting) == 2


# -- completed by others ---------------------------------------------------------------------


def approval(tokens: list[str], entered: asyncio.Event, **options: Any) -> tuple[Any, Any]:
    @activity.defn(completes_later=True, **options)
    async def ask() -> str:
        tokens.append(activity.info().task_token)
        entered.set()
        raise CompleteLater

    @workflow.defn
    async def approve() -> str:
        try:
            return await ask()
        except ActivityError as error:
            return reason(error)

    return ask, approve


async def detached(client: Client, handle: Any, worker: Worker) -> bool:
    _, owned = await client.store.owned(worker.session_id)
    return not owned


async def test_others_complete_an_activity_after_its_worker_is_gone(
    client: Client, serve: Any, until: Any
) -> None:
    tokens: list[str] = []
    entered = asyncio.Event()
    ask, approve = approval(tokens, entered)
    worker: Worker = await serve(approve, ask)
    handle = await client.start(approve, id="a")
    await wait(entered)
    await until(lambda: detached(client, handle, worker))
    await client.store.end_sessions([worker.session_id])
    await serve(approve, ask)
    await client.heartbeat_activity(tokens[0], "asked")
    await client.complete_activity(tokens[0], "yes")
    assert await handle.result(SOON) == "yes"
    assert len(tokens) == 1
    with pytest.raises(ActivityNotFoundError):
        await client.complete_activity(tokens[0], "no")


async def test_a_sync_activity_can_be_completed_by_others(client: Client, serve: Any) -> None:
    tokens: list[str] = []

    @activity.defn(completes_later=True, retry=ONCE, start_to_close_timeout=SOON)
    def ask() -> str:
        tokens.append(activity.info().task_token)
        raise CompleteLater

    @workflow.defn
    async def approve() -> str:
        return await ask()

    await serve(approve, ask)
    handle = await client.start(approve, id="a")
    async with asyncio.timeout(SOON):
        while not tokens:
            await asyncio.sleep(0.01)
    await client.complete_activity(tokens[0], "yes")
    assert await handle.result(SOON) == "yes"


async def test_others_fail_an_activity(client: Client, serve: Any, until: Any) -> None:
    tokens: list[str] = []
    entered = asyncio.Event()
    ask, approve = approval(tokens, entered)
    await serve(approve, ask)
    handle = await client.start(approve, id="a")
    await wait(entered)
    await client.fail_activity(tokens[0], LookupError("nobody asked"))
    assert await handle.result(SOON) == "LookupError nobody asked"


async def test_time_limits_hold_while_others_are_waited_for(client: Client, serve: Any) -> None:
    tokens: list[str] = []
    ask, approve = approval(tokens, asyncio.Event(), start_to_close_timeout=0.2, retry=ONCE)
    await serve(approve, ask)
    handle = await client.start(approve, id="a")
    assert "start-to-close" in await handle.result(SOON)
    with pytest.raises(ActivityNotFoundError):
        await client.complete_activity(tokens[0], "late")


async def test_what_is_no_task_token_is_refused(client: Client) -> None:
    for token in ("", "x", "a:b:c:d"):
        with pytest.raises(InvalidArgumentError, match="not a task token"):
            await client.complete_activity(token, 1)
