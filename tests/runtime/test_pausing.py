"""Pause and resume, as a worker does them: warm and cold runs, activities under way, crashes."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from durable import activity, workflow
from durable.client import Client
from durable.errors import (
    WorkflowCancelledError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durable.events import MessageKind, RunState
from durable.runtime.runs import MAIL_MAX
from durable.store.postgres import PostgresStore

SOON = 60.0
LIMITS = (0.3, 3.0, 20.0)
"""Seconds that are to be over while a run is paused; a slow machine needs longer for the pause."""


@workflow.defn
async def collect(wanted: int) -> list[int]:
    got: list[int] = []
    while len(got) < wanted:
        got.append(await workflow.wait_signal("number", type=int))
        workflow.set_vars(got=got)
    return got


@workflow.defn
async def nap(seconds: float) -> str:
    await workflow.sleep(seconds)
    return "rested"


@workflow.defn
async def rounds(left: int) -> str:
    await workflow.wait_signal("go")
    if left:
        workflow.continue_as_new(left - 1)
    return "done"


async def is_released(handle: Any) -> bool:
    view = await handle.describe()
    return view.state == RunState.PAUSED and view.session is None


async def test_a_warm_run_is_given_up_and_keeps_what_it_gets(
    client: Client, serve: Any, until: Any
) -> None:
    await serve(collect)
    handle = await client.start(collect, 3, id="warm")
    await handle.signal("number", 1)
    await until(lambda: has_vars(handle, {"got": [1]}))

    await handle.pause("the bank looks into it")
    await until(lambda: is_released(handle))
    await handle.signal("number", 2)
    await handle.signal("number", 3)
    with pytest.raises(TimeoutError, match="is paused: the bank looks into it"):
        await handle.result(0.2)

    assert await handle.resume() is True
    assert await handle.result(SOON) == [1, 2, 3]
    assert await handle.resume() is False


async def has_vars(handle: Any, wanted: dict[str, Any]) -> bool:
    return bool(await handle.vars() == wanted)


async def test_activities_under_way_end_and_their_results_wait(
    client: Client, serve: Any, until: Any
) -> None:
    began, ends = asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    @activity.defn
    async def work(number: int) -> int:
        calls.append(number)
        began.set()
        await ends.wait()
        return number + 1

    @workflow.defn
    async def two(number: int) -> int:
        return await work(await work(number))

    await serve(two, work)
    handle = await client.start(two, 1, id="busy")
    await began.wait()
    await handle.pause()
    await until(lambda: is_heeded(handle))
    ends.set()
    await until(lambda: is_released(handle))
    assert calls == [1]

    await handle.resume()
    assert await handle.result(SOON) == 3
    assert calls == [1, 2]


async def test_a_run_is_resumed_while_its_activity_runs(
    client: Client, serve: Any, until: Any
) -> None:
    began, ends = asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    @activity.defn
    async def work(number: int) -> int:
        calls.append(number)
        began.set()
        await ends.wait()
        return number + 1

    @workflow.defn
    async def both(number: int) -> list[int]:
        busy = asyncio.create_task(work(number))
        got = await workflow.wait_signal("number", type=int)
        workflow.set_vars(got=got)
        return [got, await busy]

    await serve(both, work)
    handle = await client.start(both, 1, id="busy")
    await began.wait()
    await handle.pause()
    await handle.signal("number", 7)
    await until(lambda: is_heeded(handle))

    await handle.resume()
    await until(lambda: has_vars(handle, {"got": 7}))
    assert calls == [1]
    ends.set()
    assert await handle.result(SOON) == [7, 2]
    assert calls == [1]


@pytest.mark.parametrize("word", ["resume", "terminate"])
async def test_a_word_is_heard_behind_any_number_of_messages(
    client: Client, serve: Any, until: Any, word: str
) -> None:
    """While an activity keeps the paused run warm: `MAIL_MAX` messages are read at a time."""
    began, ends = asyncio.Event(), asyncio.Event()

    @activity.defn
    async def work() -> None:
        began.set()
        await ends.wait()

    @workflow.defn
    async def both(wanted: int) -> int:
        busy = asyncio.create_task(work())
        got = [await workflow.wait_signal("number", type=int) for _ in range(wanted)]
        await busy
        return sum(got)

    await serve(both, work)
    count = 3 * MAIL_MAX
    handle = await client.start(both, count, id="busy")
    await began.wait()
    await handle.pause()
    await until(lambda: is_heeded(handle))
    await client.signal_many("number", [("busy", [n]) for n in range(count)])

    if word == "terminate":
        await handle.terminate("enough")
        with pytest.raises(WorkflowTerminatedError, match="enough"):
            await handle.result(SOON)
        ends.set()
    else:
        await handle.resume()
        await until(lambda: is_heeded(handle))
        await until(lambda: is_empty(handle))
        ends.set()
        assert await handle.result(SOON) == sum(range(count))


async def is_empty(handle: Any) -> bool:
    run_id = (await handle.describe()).run_id
    return not await handle._client.store.inbox([run_id])


async def is_heeded(handle: Any) -> bool:
    """Whether the worker has read the word of a pause."""
    run_id = (await handle.describe()).run_id
    items = await handle._client.store.inbox([run_id])
    return all(item.kind != MessageKind.PAUSE for item in items)


async def test_a_failed_attempt_of_a_paused_run_is_tried_again(
    client: Client, serve: Any, until: Any
) -> None:
    began, ends = asyncio.Event(), asyncio.Event()
    attempts: list[int] = []

    @activity.defn(retry=activity.RetryPolicy(initial_interval=0.01))
    async def shaky() -> str:
        attempts.append(activity.info().attempt)
        began.set()
        await ends.wait()
        if len(attempts) == 1:
            raise ValueError("not yet")
        return "well"

    @workflow.defn
    async def calls() -> str:
        return await shaky()

    await serve(calls, shaky)
    handle = await client.start(calls, id="shaky")
    await began.wait()
    await handle.pause()
    await until(lambda: is_heeded(handle))
    ends.set()
    await until(lambda: is_released(handle))

    await handle.resume()
    assert await handle.result(SOON) == "well"
    assert attempts == [1, 2]


async def test_timers_of_a_paused_run_fire_when_it_is_resumed(
    client: Client, serve: Any, until: Any
) -> None:
    await serve(nap)
    for limit in LIMITS:
        handle = await client.start(nap, limit, id=f"nap {limit}")
        with contextlib.suppress(WorkflowNotFoundError):
            await handle.pause()
            break
    await until(lambda: is_released(handle))
    with pytest.raises(TimeoutError):
        await handle.result(limit + 0.2)

    await handle.resume()
    assert await handle.result(SOON) == "rested"


async def test_a_paused_run_can_be_terminated(client: Client, serve: Any, until: Any) -> None:
    await serve(collect)
    handle = await client.start(collect, 1, id="over")
    await handle.pause()
    await until(lambda: is_released(handle))
    await handle.signal("number", 1)
    await handle.cancel()

    await handle.terminate("enough")

    with pytest.raises(WorkflowTerminatedError, match="enough"):
        await handle.result(SOON)
    assert [e.kind for e in await handle.history()][-2:] == ["RUN_STARTED", "RUN_TERMINATED"]


async def test_a_paused_run_is_cancelled_when_it_is_resumed(
    client: Client, serve: Any, until: Any
) -> None:
    await serve(collect)
    handle = await client.start(collect, 1, id="over")
    await handle.pause()
    await until(lambda: is_released(handle))
    await handle.cancel("enough")
    with pytest.raises(TimeoutError):
        await handle.result(0.2)

    await handle.resume()
    with pytest.raises(WorkflowCancelledError):
        await handle.result(SOON)


async def test_the_time_of_a_paused_run_goes_on(client: Client, serve: Any) -> None:
    await serve(collect)
    for limit in LIMITS:
        handle = await client.start(collect, 1, id=f"late {limit}", run_timeout=limit)
        with contextlib.suppress(WorkflowNotFoundError):
            await handle.pause()
            break
    with pytest.raises(WorkflowTimedOutError):
        await handle.result(SOON)


async def test_a_run_may_be_paused_before_any_worker_is_there(client: Client, serve: Any) -> None:
    handle = await client.start(collect, 1, id="early")
    await handle.pause("not yet")
    await handle.signal("number", 1)
    await serve(collect)
    with pytest.raises(TimeoutError, match="not yet"):
        await handle.result(0.3)
    assert [event.kind for event in await handle.history()] == ["RUN_STARTED"]
    await handle.resume()
    assert await handle.result(SOON) == [1]


async def test_a_question_to_a_paused_run_is_told_why_there_is_no_answer(client: Client) -> None:
    handle = await client.start(collect, 1, id="quiet")
    await handle.pause("the bank looks into it")
    with pytest.raises(TimeoutError, match="is paused: the bank"):
        await handle.query("anything", timeout=0.1)


async def test_what_has_ended_cannot_be_paused(client: Client, serve: Any) -> None:
    await serve(nap)
    handle = await client.start(nap, 0.0, id="over")
    await handle.result(SOON)
    with pytest.raises(WorkflowNotFoundError, match="is completed"):
        await handle.pause()


async def test_a_chain_is_paused_wherever_it_is(client: Client, serve: Any) -> None:
    """Pauses that meet runs which continue as new: none is lost, none holds a run for ever."""
    await serve(rounds)
    handle = await client.start(rounds, 30, id="chain")
    latest = client.get_handle("chain")
    for number in range(31):
        await latest.signal("go")
        await latest.pause(str(number))
        assert (await latest.describe()).state == RunState.PAUSED
        assert await latest.resume() is True
    assert await handle.result(SOON) == "done"


async def test_pausing_and_resuming_in_a_storm_loses_nothing(client: Client, serve: Any) -> None:
    @activity.defn
    async def add(left: int, right: int) -> int:
        await asyncio.sleep(0)
        return left + right

    @workflow.defn
    async def count(steps: int) -> int:
        total = 0
        for step in range(steps):
            total = await add(total, step)
            if step % 5 == 0:
                await workflow.sleep(0.001)
        return total

    await serve(count, add)
    await serve(count, add)
    handles = [await client.start(count, 60, id=f"run-{n}") for n in range(5)]

    async def disturb(handle: Any) -> None:
        for _ in range(15):
            try:
                await handle.pause()
            except WorkflowNotFoundError:
                return
            await asyncio.sleep(0.005)
            await handle.resume()

    await asyncio.gather(*(disturb(handle) for handle in handles))
    results = await asyncio.gather(*(handle.result(SOON) for handle in handles))
    assert results == [sum(range(60))] * 5


async def test_a_pause_survives_the_end_of_its_worker(
    client: Client, serve: Any, until: Any
) -> None:
    worker = await serve(collect)
    handle = await client.start(collect, 2, id="moved")
    await handle.signal("number", 1)
    await until(lambda: has_vars(handle, {"got": [1]}))
    await client.store.end_sessions([worker.session_id], crashed=True)
    await handle.pause()
    await handle.signal("number", 2)
    await serve(collect)
    with pytest.raises(TimeoutError):
        await handle.result(0.3)
    await handle.resume()
    assert await handle.result(SOON) == [1, 2]


class LateMail(PostgresStore):
    """A store that lets somebody in between a claim and the look at the mail."""

    before_mail: Any = None

    async def claim_runs(self, *args: Any) -> Any:
        found = await super().claim_runs(*args)
        if found[0] and self.before_mail is not None:
            act, self.before_mail = self.before_mail, None
            await act()
            for each in found[0]:
                each.has_mail = True
        return found


@pytest.mark.parametrize("ending", ["resume", "terminate", "timeout"])
async def test_a_run_paused_in_its_first_turn_which_ends_it_waits_quietly(
    client: Client, serve: Any, until: Any, dsn: str, ending: str
) -> None:
    """The word is there before the first commit, which it refuses."""

    @workflow.defn
    async def hop(left: int) -> str:
        if left:
            workflow.continue_as_new(left - 1)
        return "done"

    # Time enough for the worker to begin, and for the looks below.
    options = {"run_timeout": 5.0} if ending == "timeout" else {}
    handle = await client.start(hop, 1, id="hop", **options)
    store = LateMail(dsn)
    store.before_mail = handle.pause
    worker = await serve(hop, store=store)
    await until(lambda: is_released(handle))
    assert [event.kind for event in await handle.history()] == ["RUN_STARTED"]
    assert worker.metrics.value("durable_workflow_tasks_total", outcome="unread") <= 1
    if ending == "resume":
        await handle.resume()
        assert await handle.result(SOON) == "done"
        return
    if ending == "terminate":
        await handle.terminate("not needed")
    over = WorkflowTerminatedError if ending == "terminate" else WorkflowTimedOutError
    with pytest.raises(over):
        await handle.result(SOON)
