"""What one worker does with runs: steps, timers, signals, children, warm and cold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from durable import activity, workflow
from durable.client import Client
from durable.errors import (
    ConfigurationError,
    NonDeterminismError,
    UpdateRejectedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowParkedError,
    WorkflowTerminatedError,
)
from durable.events import ClaimedRun, CommitResult, EventKind, Message, RunCommit, RunState
from durable.options import WorkerOptions
from durable.runtime import worker as worker_module
from durable.runtime.runs import MAIL_MAX
from durable.runtime.wakeup import Wakeup
from durable.runtime.worker import Worker
from durable.store.memory import MemoryStore

SOON = 20.0


@activity.defn
async def add(left: int, right: int) -> int:
    return left + right


@workflow.defn
async def count(steps: int) -> int:
    total = 0
    for step in range(steps):
        total = await add(total, step)
        workflow.set_vars(total=total)
    return total


@workflow.defn
async def fan_out(width: int) -> int:
    return sum(await asyncio.gather(*(add(number, 1) for number in range(width))))


@workflow.defn
async def nap(seconds: float) -> str:
    before = workflow.now()
    await workflow.sleep(seconds)
    assert workflow.now() - before >= timedelta(seconds=seconds)
    return "rested"


@workflow.defn
async def collect(wanted: int) -> list[int]:
    got: list[int] = []
    while len(got) < wanted:
        got.append(await workflow.wait_signal("number", type=int))
        workflow.set_vars(got=got)
    return got


@workflow.defn
async def fails() -> None:
    raise ValueError("no such order")


@workflow.defn
async def double(number: int) -> int:
    return await add(number, number)


@workflow.defn
async def parent(number: int) -> int:
    return await double(number) + 1


@workflow.defn
async def countdown(left: int) -> str:
    if left:
        workflow.continue_as_new(left - 1)
    return workflow.info().workflow_id


@workflow.defn
async def tidy() -> str:
    try:
        await workflow.sleep(3600)
    except asyncio.CancelledError:
        await add(1, 1)
        raise
    return "not cancelled"


@workflow.defn
class Tally:
    """Signals, queries and updates in one."""

    def __init__(self) -> None:
        self.total = 0

    @workflow.run
    async def run(self) -> int:
        await workflow.wait_condition(lambda: self.total >= 10)
        return self.total

    @workflow.signal
    def bump(self, by: int) -> None:
        self.total += by

    @workflow.query
    def so_far(self) -> int:
        return self.total

    @workflow.update
    async def bump_and_get(self, by: int) -> int:
        self.total = await add(self.total, by)
        return self.total

    @bump_and_get.validator
    def check(self, by: int) -> None:
        if by < 0:
            raise ValueError("only up")


async def test_a_sequence_of_activities_ends_with_its_result(client: Client, serve: Any) -> None:
    await serve(count, add)
    handle = await client.start(count, 10, id="count")
    assert await handle.result(SOON) == 45
    kinds = [event.kind for event in await handle.history()]
    assert kinds.count("ACTIVITY_COMPLETED") == 10
    assert await handle.vars() == {"total": 45}


async def test_more_activities_than_slots_all_run(client: Client, serve: Any) -> None:
    await serve(fan_out, add, activity_slots=3)
    handle = await client.start(fan_out, 40, id="fan")
    assert await handle.result(SOON) == sum(range(40)) + 40


async def test_many_runs_end_with_their_own_results(client: Client, serve: Any) -> None:
    await serve(count, add, activity_slots=8)
    started = await client.start_many(count, [(f"count-{n}", (n % 7,)) for n in range(60)])
    results = await asyncio.gather(*(handle.result(SOON) for handle in started))
    assert results == [sum(range(n % 7)) for n in range(60)]


async def test_a_backlog_is_worked_off_without_waiting_for_polls(
    client: Client, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing comes by the clock here: the worker itself knows that it left some behind.
    monkeypatch.setattr(Wakeup, "wait", lambda self, **_: self.wait_hint(600.0))
    starts = [(f"run-{number}", (1,)) for number in range(400)]
    handles = await client.start_many(count, starts)
    await serve(count, add)
    async with asyncio.timeout(SOON):
        assert [await handle.result() for handle in handles] == [0] * 400


async def test_runs_survive_a_cache_that_holds_nothing(client: Client, serve: Any) -> None:
    worker = await serve(collect, nap, add, cache_bytes=1)
    handles = [await client.start(collect, 3, id=f"collect-{n}") for n in range(5)]
    naps = [await client.start(nap, 0.2, id=f"nap-{n}") for n in range(5)]
    for number in range(3):
        for handle in handles:
            await handle.signal("number", number)
    assert [await handle.result(SOON) for handle in handles] == [[0, 1, 2]] * 5
    assert [await handle.result(SOON) for handle in naps] == ["rested"] * 5
    evicted = [
        row for row in worker.metrics.snapshot() if row[0] == "durable_cache_evictions_total"
    ]
    assert evicted
    assert evicted[0][2][0] > 0


async def test_a_timer_fires_after_its_time_and_once(client: Client, serve: Any) -> None:
    await serve(nap)
    handle = await client.start(nap, 0.3, id="nap")
    assert await handle.result(SOON) == "rested"
    kinds = [event.kind for event in await handle.history()]
    assert kinds.count("TIMER_FIRED") == 1


async def test_signals_sent_before_the_worker_starts_arrive_in_order(
    client: Client, serve: Any
) -> None:
    handle = await client.start(collect, 20, id="collect")
    for number in range(20):
        await handle.signal("number", number)
    assert await handle.vars() == {"got": list(range(20))}
    await serve(collect)
    assert await handle.result(SOON) == list(range(20))


async def test_no_signal_is_lost_while_the_run_works(client: Client, serve: Any) -> None:
    await serve(collect)
    handle = await client.start(collect, 100, id="collect")
    await asyncio.gather(*(handle.signal("number", number) for number in range(100)))
    assert sorted(await handle.result(SOON)) == list(range(100))


class CountingStore(MemoryStore):
    """Remembers how many messages each commit had read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_counts: list[int] = []

    async def commit(self, commits: Sequence[RunCommit], flush: int = 0) -> CommitResult:
        self.read_counts += [len(commit.consumed) for commit in commits]
        return await super().commit(commits, flush)


async def test_a_storm_of_signals_is_read_in_parts_and_in_order() -> None:
    store, count = CountingStore(), 3 * MAIL_MAX + 1
    options = WorkerOptions(poll_max_seconds=600.0)
    worker = Worker(store, workflows=[collect], options=options)
    async with worker, Client(store) as client:
        handle = await client.start(collect, count, id="storm")
        await handle.signal("number", -1)
        async with asyncio.timeout(SOON):
            while 1 not in store.read_counts:
                await asyncio.sleep(0)
        messages = [
            Message(
                EventKind.SIGNAL_RECEIVED, workflow_id="storm", name="number", payload=b"[%d]" % n
            )
            for n in range(count - 1)
        ]
        await store.send(messages)
        worker.hint()
        assert await handle.result(SOON) == list(range(-1, count - 1))
    assert max(store.read_counts) <= MAIL_MAX
    assert len([each for each in store.read_counts if each]) >= 4


@pytest.mark.parametrize("count", [3, 3 * MAIL_MAX])
@pytest.mark.parametrize("is_warm", [True, False])
async def test_a_run_that_ends_at_the_first_of_many_signals_ends(count: int, is_warm: bool) -> None:
    store = CountingStore()
    options = WorkerOptions(poll_max_seconds=600.0)
    worker = Worker(store, workflows=[collect], options=options)
    async with Client(store) as client:
        handle = await client.start(collect, 2, id="first")
        messages = [
            Message(
                EventKind.SIGNAL_RECEIVED, workflow_id="first", name="number", payload=b"[%d]" % n
            )
            for n in range(count)
        ]
        if not is_warm:
            await store.send(messages)
        async with worker:
            if is_warm:
                await handle.signal("number", -1)
                async with asyncio.timeout(SOON):
                    while 1 not in store.read_counts:
                        await asyncio.sleep(0)
                await store.send(messages)
                worker.hint()
            assert await handle.result(SOON) == ([-1, 0] if is_warm else [0, 1])


class SlowHistories(MemoryStore):
    """A store whose histories can be read when `opened` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = asyncio.Event()
        self.asked = asyncio.Event()

    async def claim_runs(
        self, session: int, queues: Sequence[str], types: Sequence[str], limit: int
    ) -> tuple[list[ClaimedRun], list[str], int]:
        claimed, mail, now_us = await super().claim_runs(session, queues, types, limit)
        first = await self.first_batches({run.run_id: run.part for run in claimed})
        # As on PostgreSQL, what a new run starts with comes with the claim.
        runs = [
            replace(run, start=first[run.run_id]) if run.next_seq == 1 else run for run in claimed
        ]
        return runs, mail, now_us

    async def first_batches(self, runs: Mapping[str, int]) -> dict[str, bytes]:
        return {run_id: batches[0] for run_id, batches in (await super().load(runs)).items()}

    async def load(self, runs: Mapping[str, int]) -> dict[str, list[bytes]]:
        self.asked.set()
        await self.opened.wait()
        return await super().load(runs)


async def test_a_new_run_does_not_wait_for_the_histories_of_others() -> None:
    store = SlowHistories()
    store.opened.set()
    options = WorkerOptions(poll_max_seconds=600.0)
    async with Client(store) as client:
        async with Worker(store, workflows=[collect], options=options):
            old = await client.start(collect, 2, id="old")
            await old.signal("number", 1)
            async with asyncio.timeout(SOON):
                while await old.vars() != {"got": [1]}:
                    await asyncio.sleep(0.01)
        store.opened.clear()
        store.asked.clear()
        await old.signal("number", 2)
        new = await client.start(count, 1, id="new")
        try:
            # One claim takes both, the older first.
            async with Worker(store, workflows=[collect, count], activities=[add], options=options):
                assert await new.result(SOON) == 0
                async with asyncio.timeout(SOON):
                    await store.asked.wait()
                store.opened.set()
                assert await old.result(SOON) == [1, 2]
        finally:
            store.opened.set()


async def test_a_failure_keeps_its_type_and_cause(client: Client, serve: Any) -> None:
    await serve(fails)
    handle = await client.start(fails, id="fails")
    with pytest.raises(WorkflowFailedError, match="no such order") as caught:
        await handle.result(SOON)
    assert isinstance(caught.value.__cause__, ValueError)


async def test_a_child_returns_its_result_to_its_parent(client: Client, serve: Any) -> None:
    await serve(parent, double, add)
    assert await (await client.start(parent, 4, id="parent")).result(SOON) == 9


async def test_a_chain_is_followed_to_its_end(client: Client, serve: Any) -> None:
    await serve(countdown)
    handle = await client.start(countdown, 4, id="countdown")
    assert await handle.result(SOON) == "countdown"


async def test_a_cancelled_run_cleans_up_first(client: Client, serve: Any) -> None:
    await serve(tidy, add)
    handle = await client.start(tidy, id="tidy")
    await handle.cancel("enough")
    with pytest.raises(WorkflowCancelledError, match="enough"):
        await handle.result(SOON)
    assert "ACTIVITY_COMPLETED" in [event.kind for event in await handle.history()]


async def test_a_terminated_run_runs_no_more_code(client: Client, serve: Any) -> None:
    await serve(tidy, add)
    handle = await client.start(tidy, id="tidy")
    await handle.terminate("ordered twice")
    with pytest.raises(WorkflowTerminatedError, match="ordered twice"):
        await handle.result(SOON)
    assert "ACTIVITY_SCHEDULED" not in [event.kind for event in await handle.history()]


async def test_queries_and_updates_are_answered(client: Client, serve: Any) -> None:
    await serve(Tally, add)
    handle = await client.start(Tally, id="tally")
    await handle.signal(Tally.bump, 2)
    assert await handle.query(Tally.so_far) == 2
    assert await handle.update(Tally.bump_and_get, 3, timeout=SOON) == 5
    with pytest.raises(UpdateRejectedError, match="only up"):
        await handle.update("bump_and_get", -1, timeout=SOON)
    await handle.signal("bump", 5)
    assert await handle.result(SOON) == 10
    assert await handle.query("so_far") == 10


async def test_incompatible_code_parks_and_compatible_code_goes_on(
    client: Client, dsn: str, until: Any
) -> None:
    @workflow.defn(name="order")
    async def first() -> int:
        number = await add(1, 2)
        return number + await workflow.wait_signal("go", type=int)

    @workflow.defn(name="order")
    async def second() -> int:
        await workflow.sleep(5)
        return await add(3, 4)

    async def has_number() -> bool:
        return "ACTIVITY_COMPLETED" in [each.kind for each in await handle.history()]

    async def is_parked() -> bool:
        return (await handle.describe()).state == RunState.PARKED

    handle = await client.start(first, id="order")
    async with Worker(dsn, workflows=[first], activities=[add]):
        await until(has_number)
    async with Worker(dsn, workflows=[second], activities=[add]):
        await handle.signal("go", 10)
        await until(is_parked)
        with pytest.raises(WorkflowParkedError, match="nondeterminism"):
            await handle.result(timeout=0.05)
    with pytest.raises(NonDeterminismError):
        await client.get_handle("order", workflow=second).vars()
    async with Worker(dsn, workflows=[first], activities=[add]):
        assert await handle.unpark()
        assert await handle.result(SOON) == 13


async def test_the_pause_of_a_parked_run_goes_on_growing_in_other_workers(
    client: Client, dsn: str, until: Any
) -> None:
    @workflow.defn(name="order")
    async def first() -> int:
        number = await add(1, 2)
        return number + await workflow.wait_signal("go", type=int)

    @workflow.defn(name="order")
    async def second() -> int:
        await workflow.sleep(5)
        return await add(3, 4)

    async def has_number() -> bool:
        return "ACTIVITY_COMPLETED" in [each.kind for each in await handle.history()]

    async def times_parked() -> int:
        view = await handle.describe()
        reason = view.failure if view.state == RunState.PARKED else None
        return 0 if reason is None else int(json.loads(reason)["count"])

    handle = await client.start(first, id="order")
    async with Worker(dsn, workflows=[first], activities=[add]):
        await until(has_number)
    await handle.signal("go", 10)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        seen = 0
        for _ in range(3):
            async with (
                Worker(dsn, workflows=[second], activities=[add]),
                asyncio.timeout(SOON),
            ):
                while (times := await times_parked()) <= seen:
                    await asyncio.sleep(0.01)
            seen = times
            await conn.execute("UPDATE durable.timer SET due_at = now() WHERE kind = 6")
    assert seen >= 3


async def test_a_parked_run_can_be_terminated(client: Client, dsn: str, until: Any) -> None:
    @workflow.defn(name="order")
    async def first() -> None:
        await workflow.sleep(3600)

    @workflow.defn(name="order")
    async def second() -> None:
        await workflow.wait_signal("go")

    async def has_timer() -> bool:
        return len(await handle.history()) > 1

    async def is_parked() -> bool:
        return (await handle.describe()).state == RunState.PARKED

    handle = await client.start(first, id="order")
    async with Worker(dsn, workflows=[first]):
        await until(has_timer)
    async with Worker(dsn, workflows=[second]):
        await handle.signal("go")
        await until(is_parked)
        await handle.terminate("give it up")
        with pytest.raises(WorkflowTerminatedError):
            await handle.result(SOON)


async def test_a_type_without_code_here_is_left_to_others(client: Client, serve: Any) -> None:
    handle = await client.start(count, 3, id="count")
    await serve(nap)
    other = await client.start(nap, 0.01, id="nap")
    assert await other.result(SOON) == "rested"
    assert (await handle.describe()).session is None
    await serve(count, add)
    assert await handle.result(SOON) == 3


def test_a_worker_with_nothing_to_serve_is_refused(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        Worker(dsn)


class SilentAtTheEnd(MemoryStore):
    """A store that does not answer any more when sessions are to end."""

    async def end_sessions(self, sessions: Any, *, crashed: bool = True) -> int:
        await asyncio.Event().wait()
        return 0


async def test_a_session_that_cannot_be_ended_is_left_with_a_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_module, "LAST_WRITES_SECONDS", 0.01)
    async with Worker(SilentAtTheEnd(), workflows=[count], activities=[add]):
        pass
    assert "did not answer within 0.01 s" in caplog.text
