"""One owner: a session that was declared dead changes nothing, and its runs go on elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from durable import RetryPolicy, activity, workflow
from durable.client import Client
from durable.events import EventKind, RunState, SessionInfo
from durable.runtime.parking import CRASHES_MAX
from durable.store.postgres import PostgresStore

SOON = 20.0


class Gate:
    """An activity that records each of its attempts and ends when it is let through."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.attempts: list[str] = []

        @activity.defn
        async def gated(name: str) -> str:
            self.attempts.append(name)
            self.entered.set()
            await self.open.wait()
            return name

        @workflow.defn
        async def passes(names: list[str]) -> list[str]:
            return [await gated(name) for name in names]

        self.activity = gated
        self.workflow = passes


@pytest.fixture
def gate() -> Gate:
    return Gate()


def count(kinds: list[str], kind: str) -> int:
    return kinds.count(kind)


async def test_a_dead_sessions_runs_go_on_with_another_worker(
    client: Client, serve: Any, store: Any, gate: Gate
) -> None:
    first = await serve(gate.workflow, gate.activity)
    handle = await client.start(gate.workflow, ["a", "b"], id="run")
    async with asyncio.timeout(SOON):
        await gate.entered.wait()
    dead = first.session_id
    await serve(gate.workflow, gate.activity)
    await store.end_sessions([dead])
    gate.open.set()
    assert await handle.result(SOON) == ["a", "b"]
    kinds = [event.kind for event in await handle.history()]
    assert count(kinds, "ACTIVITY_COMPLETED") == 2
    assert count(kinds, "RUN_COMPLETED") == 1


async def test_a_result_that_comes_back_to_a_dead_session_is_not_recorded(
    client: Client, serve: Any, store: Any, gate: Gate, until: Any
) -> None:
    zombie = await serve(gate.workflow, gate.activity, lease_seconds=3600)
    handle = await client.start(gate.workflow, ["a"], id="run")
    async with asyncio.timeout(SOON):
        await gate.entered.wait()

    async def is_recorded() -> bool:
        # An activity of the first turn begins before the commit of that turn.
        return (await handle.describe()).event_batches == 2

    await until(is_recorded)
    before = await handle.describe()
    dead = zombie.session_id
    # Nobody else is there: only the zombie could write.
    await store.end_sessions([dead])
    zombie_runs = zombie._runs
    await zombie_runs.stop()
    gate.open.set()

    async def has_new_session() -> bool:
        return zombie.session_id != dead

    await until(has_new_session)
    after = await handle.describe()
    assert (after.event_batches, after.head_hash) == (before.event_batches, before.head_hash)
    await serve(gate.workflow, gate.activity)
    assert await handle.result(SOON) == ["a"]
    assert gate.attempts == ["a", "a"]


async def test_a_worker_whose_session_died_serves_again_under_a_new_one(
    client: Client, serve: Any, store: Any, gate: Gate
) -> None:
    worker = await serve(gate.workflow, gate.activity, lease_seconds=0.3)
    dead = worker.session_id
    await store.end_sessions([dead])
    gate.open.set()
    handle = await client.start(gate.workflow, ["a"], id="run")
    assert await handle.result(SOON) == ["a"]
    assert worker.session_id != dead


async def test_the_runs_of_a_silent_worker_go_on_when_its_lease_is_over(
    client: Client, serve: Any, store: Any
) -> None:
    @workflow.defn
    async def waits() -> str:
        return str(await workflow.wait_signal("go"))

    # A process that died without a word: its session is all that is left of it.
    silent = SessionInfo(id=77, host="h", pid=1, build_id="", queues=["default"])
    await store.register_session(silent, 500_000)
    handle = await client.start(waits, id="waits")
    (run,), _, _ = await store.claim_runs(77, ["default"], ["waits"], 1)
    assert run.run_id == handle.run_id
    await handle.signal("go", "on")
    await serve(waits, lease_seconds=0.3, poll_max_seconds=0.2)
    assert await handle.result(SOON) == "on"


async def test_a_recorded_result_is_never_made_again(
    client: Client, serve: Any, store: Any, gate: Gate
) -> None:
    worker = await serve(gate.workflow, gate.activity)
    handle = await client.start(gate.workflow, ["a", "b", "c"], id="run")
    async with asyncio.timeout(SOON):
        await gate.entered.wait()
    gate.open.set()
    for _ in range(5):
        await store.end_sessions([worker.session_id], crashed=False)
        worker._session.suspect()
        await asyncio.sleep(0.02)
    assert await handle.result(SOON) == ["a", "b", "c"]
    kinds = [event.kind for event in await handle.history()]
    assert count(kinds, "ACTIVITY_SCHEDULED") == count(kinds, "ACTIVITY_COMPLETED") == 3
    # Whatever ran twice ran before its result was recorded: never a name after its successor.
    assert sorted(gate.attempts) == gate.attempts


async def test_a_run_that_keeps_killing_workers_is_parked(
    client: Client, serve: Any, store: Any, gate: Gate, until: Any
) -> None:
    worker = await serve(gate.workflow, gate.activity)
    handle = await client.start(gate.workflow, ["a"], id="run")

    async def runs_or_is_parked() -> bool:
        return gate.entered.is_set() or (await handle.describe()).state == RunState.PARKED

    for _ in range(CRASHES_MAX):
        await until(runs_or_is_parked)
        assert gate.entered.is_set()
        gate.entered.clear()
        await store.end_sessions([worker.session_id], crashed=True)
        # It looks whether it lives when told so, not only when its lease is due.
        worker._session.suspect()
    await until(runs_or_is_parked)
    assert not gate.entered.is_set()
    gate.open.set()
    assert await handle.unpark()
    assert await handle.result(SOON) == ["a"]


async def test_a_run_that_only_waited_is_not_blamed_for_crashes(
    client: Client, serve: Any, store: Any, until: Any
) -> None:
    @workflow.defn
    async def waits() -> str:
        return str(await workflow.wait_signal("go"))

    worker = await serve(waits)
    handle = await client.start(waits, id="waits")

    async def is_settled() -> bool:
        owned, _ = await store.owned(worker.session_id)
        return [run.crashes for run in owned] == [0]

    for _ in range(CRASHES_MAX + 2):
        await until(is_settled)
        await store.end_sessions([worker.session_id], crashed=True)
        worker._session.suspect()
    await handle.signal("go", "on")
    assert await handle.result(SOON) == "on"


class PausingStore(PostgresStore):
    """Lets something happen between the claim of a run and the read of what it waits for."""

    between: Callable[[], Awaitable[None]] | None = None

    async def waiting(self, run_ids: Sequence[str]) -> dict[str, set[int]]:
        between, self.between = self.between, None
        if between is not None:
            await between()
        return await super().waiting(run_ids)


async def test_a_result_that_comes_while_its_run_is_claimed_is_taken_not_made_again(
    client: Client, serve: Any, dsn: str, until: Any
) -> None:
    began, ends = asyncio.Event(), asyncio.Event()
    attempts: list[int] = []

    @activity.defn(retry=RetryPolicy(initial_interval=0.01))
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

    slow = PausingStore(dsn)
    await serve(calls, shaky, store=slow)
    handle = await client.start(calls, id="calls")
    run_id = (await handle.describe()).run_id
    async with asyncio.timeout(SOON):
        await began.wait()
    await handle.pause()

    async def is_released() -> bool:
        view = await handle.describe()
        return view.state == RunState.PAUSED and view.session is None

    async def is_read() -> bool:
        return not await client.store.inbox([run_id])

    async def is_answered() -> bool:
        items = await client.store.inbox([run_id])
        return any(item.kind == EventKind.ACTIVITY_COMPLETED for item in items)

    async def answer() -> None:
        await until(is_answered)

    await until(is_read)
    ends.set()
    await until(is_released)
    slow.between = answer
    await handle.resume()
    assert await handle.result(SOON) == "well"
    assert attempts == [1, 2]
