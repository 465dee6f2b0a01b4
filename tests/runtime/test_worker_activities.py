"""What one worker does with activities: retries, limits, threads, queues, cancellation."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from durable import ActivityError, NonRetryable, RetryAfter, RetryPolicy, activity, workflow
from durable.client import Client
from durable.errors import WorkflowFailedError, WorkflowTerminatedError
from durable.runtime.worker import Worker

SOON = 20.0
QUICK = RetryPolicy(initial_interval=0.01, max_interval=0.02, max_attempts=3)


@pytest.fixture
def calls() -> list[Any]:
    """What the activities of a test did, in order."""
    return []


async def outcome(client: Client, definition: Any) -> Any:
    handle = await client.start(definition, id=definition.name)
    return await handle.result(SOON)


async def test_a_failed_attempt_is_tried_again(
    client: Client, serve: Any, calls: list[Any]
) -> None:
    @activity.defn(retry=QUICK)
    async def flaky() -> int:
        calls.append(activity.info().attempt)
        if len(calls) < 3:
            raise RuntimeError("not yet")
        return len(calls)

    @workflow.defn
    async def stubborn() -> int:
        return await flaky()

    await serve(stubborn, flaky)
    assert await outcome(client, stubborn) == 3
    assert calls == [1, 2, 3]


async def test_attempts_share_one_idempotency_key(
    client: Client, serve: Any, calls: list[Any]
) -> None:
    @activity.defn(retry=QUICK)
    async def keyed(number: int) -> None:
        calls.append(activity.info().idempotency_key)
        if len(calls) < 3:
            raise RuntimeError("again")

    @workflow.defn
    async def keys() -> None:
        await keyed(1)
        await keyed(2)

    await serve(keys, keyed)
    await outcome(client, keys)
    assert len(calls) == 4
    assert len(set(calls[:3])) == 1
    assert len(set(calls)) == 2


async def test_giving_up_tells_the_attempt_and_the_cause(client: Client, serve: Any) -> None:
    @activity.defn(retry=QUICK)
    async def hopeless() -> None:
        raise LookupError("gone")

    @workflow.defn
    async def careful() -> tuple[str, int, str]:
        try:
            await hopeless()
        except ActivityError as error:
            return error.name, error.attempt, type(error.__cause__).__name__
        return "", 0, ""

    await serve(careful, hopeless)
    assert await outcome(client, careful) == ("hopeless", 3, "LookupError")


@pytest.mark.parametrize(
    "error", [NonRetryable("broke"), KeyError("listed")], ids=["non-retryable", "named by policy"]
)
async def test_a_final_error_is_not_tried_again(
    client: Client, serve: Any, calls: list[Any], error: Exception
) -> None:
    @activity.defn(retry=RetryPolicy(initial_interval=0.01, non_retryable=(KeyError,)))
    async def final() -> None:
        calls.append(1)
        raise error

    @workflow.defn
    async def once() -> None:
        await final()

    await serve(once, final)
    with pytest.raises(WorkflowFailedError):
        await outcome(client, once)
    assert calls == [1]


async def test_an_activity_may_say_when_its_next_attempt_is(
    client: Client, serve: Any, calls: list[Any]
) -> None:
    @activity.defn(retry=RetryPolicy(initial_interval=3600, max_interval=3600))
    async def polite() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RetryAfter(0.01)
        if len(calls) == 2:
            activity.override_next_retry(delay=timedelta(milliseconds=10))
            raise RuntimeError("soon")

    @workflow.defn
    async def patient() -> None:
        await polite()

    await serve(patient, polite)
    await outcome(client, patient)
    assert len(calls) == 3


async def test_a_result_that_does_not_fit_its_annotation_is_final(
    client: Client, serve: Any, calls: list[Any]
) -> None:
    @activity.defn(retry=QUICK)
    async def liar() -> int:
        calls.append(1)
        return "seven"  # type: ignore[return-value]

    @workflow.defn
    async def trusting() -> int:
        return await liar()

    await serve(trusting, liar)
    with pytest.raises(WorkflowFailedError, match="liar"):
        await outcome(client, trusting)
    assert calls == [1]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_an_activity_cannot_end_its_worker(
    client: Client, serve: Any, calls: list[Any], error: BaseException
) -> None:
    @activity.defn(retry=QUICK)
    async def leaving() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return "stayed"

    @workflow.defn
    async def stays() -> str:
        return await leaving()

    await serve(stays, leaving)
    assert await outcome(client, stays) == "stayed"


async def test_a_sync_activity_runs_in_a_thread_with_its_context(
    client: Client, serve: Any
) -> None:
    @activity.defn
    def blocking() -> tuple[str, bool]:
        info = activity.info()
        return info.workflow_id, threading.current_thread() is threading.main_thread()

    @workflow.defn
    async def outside() -> tuple[str, bool]:
        return await blocking()

    await serve(outside, blocking)
    assert await outcome(client, outside) == ("outside", False)


async def test_more_sync_activities_than_threads_all_run(client: Client, serve: Any) -> None:
    @activity.defn
    def square(number: int) -> int:
        return number * number

    @workflow.defn
    async def squares() -> int:
        return sum(await asyncio.gather(*(square(number) for number in range(30))))

    await serve(squares, square, thread_slots=2)
    assert await outcome(client, squares) == sum(number * number for number in range(30))


async def test_an_attempt_over_its_time_is_stopped_and_counted(
    client: Client, serve: Any, calls: list[Any]
) -> None:
    @activity.defn(retry=QUICK, start_to_close_timeout=0.05)
    async def slow() -> str:
        calls.append("start")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            calls.append("stopped")
            raise
        return "never"

    @workflow.defn
    async def hurried() -> str:
        try:
            return await slow()
        except ActivityError as error:
            return f"{type(error.__cause__).__name__} after {error.attempt}"

    await serve(hurried, slow)
    assert await outcome(client, hurried) == "TimeoutError after 3"
    assert calls == ["start", "stopped"] * 3


async def test_a_thread_over_its_time_is_told_by_its_heartbeat(
    client: Client, serve: Any, calls: list[Any]
) -> None:
    stopped = threading.Event()

    @activity.defn(retry=RetryPolicy(max_attempts=1), start_to_close_timeout=0.05)
    def grinding() -> None:
        pause = threading.Event()
        try:
            while True:
                activity.heartbeat()
                pause.wait(0.005)
        finally:
            stopped.set()

    @workflow.defn
    async def waits() -> str:
        try:
            await grinding()
        except ActivityError as error:
            return str(error.__cause__)
        return ""

    await serve(waits, grinding)
    assert "start-to-close" in await outcome(client, waits)
    assert await asyncio.to_thread(stopped.wait, SOON)


async def test_an_attempt_without_heartbeats_is_given_up(client: Client, serve: Any) -> None:
    @activity.defn(retry=RetryPolicy(max_attempts=1), heartbeat_timeout=0.05)
    async def silent() -> None:
        await asyncio.Event().wait()

    @workflow.defn
    async def listening() -> str:
        try:
            await silent()
        except ActivityError as error:
            return str(error.__cause__)
        return ""

    await serve(listening, silent)
    assert "heartbeat" in await outcome(client, listening)


async def test_the_next_attempt_gets_what_the_last_heartbeat_said(
    client: Client, serve: Any, calls: list[Any]
) -> None:
    @activity.defn(retry=QUICK)
    async def resuming() -> int:
        done = activity.info().heartbeat_details
        calls.append(done)
        if not done:
            activity.heartbeat(40, "of 100")
            raise RuntimeError("interrupted")
        return int(done[0])

    @workflow.defn
    async def resumes() -> int:
        return await resuming()

    await serve(resumes, resuming)
    assert await outcome(client, resumes) == 40
    assert calls == [(), (40, "of 100")]


async def test_a_cancelled_activity_is_told(client: Client, serve: Any, calls: list[Any]) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    @activity.defn
    async def endless() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    @workflow.defn
    async def impatient() -> str:
        running = asyncio.create_task(endless())
        await workflow.wait_signal("stop")
        running.cancel()
        return "done"

    await serve(impatient, endless)
    handle = await client.start(impatient, id="impatient")
    async with asyncio.timeout(SOON):
        await began.wait()
    await handle.signal("stop")
    assert await handle.result(SOON) == "done"
    async with asyncio.timeout(SOON):
        await ended.wait()


async def test_a_workflow_may_wait_for_the_end_of_what_it_cancels(
    client: Client, serve: Any, calls: list[Any]
) -> None:
    began = asyncio.Event()

    @activity.defn(wait_cancel=True)
    async def closing() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            calls.append("closed")

    @workflow.defn
    async def orderly() -> str:
        running = asyncio.create_task(closing())
        await workflow.wait_signal("stop")
        running.cancel()
        try:
            await running
        except asyncio.CancelledError:
            return "both ended"
        return "no cancellation"

    await serve(orderly, closing)
    handle = await client.start(orderly, id="orderly")
    async with asyncio.timeout(SOON):
        await began.wait()
    await handle.signal("stop")
    assert await handle.result(SOON) == "both ended"
    assert calls == ["closed"]


async def test_an_activity_of_another_queue_runs_where_that_is_served(
    client: Client, serve: Any
) -> None:
    @activity.defn(queue="gpu")
    async def render(frame: int) -> str:
        return f"frame {frame} on {activity.info().queue}"

    @workflow.defn
    async def film() -> list[str]:
        return list(await asyncio.gather(*(render(frame) for frame in range(3))))

    await serve(film)
    await serve(render, queues=("gpu",))
    assert await outcome(client, film) == [f"frame {frame} on gpu" for frame in range(3)]


async def test_a_queued_activity_that_is_cancelled_answers_at_once(
    client: Client, serve: Any
) -> None:
    @activity.defn(queue="nobody", wait_cancel=True)
    async def unserved() -> None:
        raise AssertionError("nobody serves this queue")

    @workflow.defn
    async def gives_up() -> str:
        try:
            async with asyncio.timeout(0.05):
                await unserved()
        except TimeoutError:
            return "gave up"
        return "no timeout"

    await serve(gives_up)
    assert await outcome(client, gives_up) == "gave up"


async def test_what_mail_causes_begins_when_the_mail_is_recorded(
    client: Client, serve: Any, calls: list[Any], dsn: str, until: Any
) -> None:
    @activity.defn
    async def use(value: int) -> int:
        calls.append([event.kind for event in await client.get_handle("mailed").history()])
        return value

    @workflow.defn
    async def mailed() -> int:
        await use(0)
        return await use(await workflow.wait_signal("value", type=int))

    async def has_result() -> bool:
        return "ACTIVITY_COMPLETED" in [event.kind for event in await handle.history()]

    handle = await client.start(mailed, id="mailed")
    async with Worker(dsn, workflows=[mailed], activities=[use]):
        await until(has_result)
    await handle.signal("value", 5)
    await serve(mailed, use)
    assert await handle.result(SOON) == 5
    assert calls[1][-2:] == ["SIGNAL_RECEIVED", "ACTIVITY_SCHEDULED"]


async def test_a_run_cancelled_before_it_began_starts_no_activity(
    client: Client, serve: Any, calls: list[Any]
) -> None:
    @activity.defn
    async def never() -> None:
        calls.append(1)

    @workflow.defn
    async def late() -> None:
        await never()

    handle = await client.start(late, id="late")
    await handle.terminate("not wanted")
    await serve(late, never)
    with pytest.raises(WorkflowTerminatedError):
        await handle.result(SOON)
    assert calls == []


async def test_a_side_effect_is_recorded_before_an_activity_sees_it(
    client: Client, serve: Any, calls: list[Any]
) -> None:
    @activity.defn
    async def use(value: int) -> int:
        handle = client.get_handle("drawn")
        calls.append([event.kind for event in await handle.history()])
        return value

    @workflow.defn
    async def drawn() -> int:
        return await use(workflow.side_effect(lambda: 7))

    await serve(drawn, use)
    assert await outcome(client, drawn) == 7
    assert "SIDE_EFFECT" in calls[0]
