"""Limits of queues hold over all workers, however their claims meet."""

from __future__ import annotations

import asyncio
from collections import Counter

import psycopg
import pytest
from support.store_rig import HOUR_US, QUEUE, PostgresRig, Rig, change

from durable.errors import InvalidArgumentError
from durable.events import (
    ActivityOutcome,
    ClaimedActivity,
    EventKind,
    QueuedActivity,
    QueueDepth,
    QueueLimits,
)
from durable.store.limits import Limits
from durable.store.postgres import PostgresStore

OTHER = "other"


@pytest.fixture
def limits(rig: Rig) -> Limits:
    return Limits(rig.other)


async def queued(rig: Rig, count: int, queue: str = QUEUE) -> None:
    """A run with so many activities on the queue."""
    run = await rig.owned(f"run-{queue}", await rig.session())
    work = [QueuedActivity(ref, "pay", queue, 0, 1, b"[]", b"{}") for ref in range(1, count + 1)]
    await rig.accept(change(run, b"b", activities=work))


async def take(
    rig: Rig, session: int, limit: int = 100, queues: tuple[str, ...] = (QUEUE,)
) -> list[ClaimedActivity]:
    return await rig.store.claim_activities(session, queues, ["pay"], limit)


async def finish(rig: Rig, attempts: list[ClaimedActivity]) -> None:
    done = [
        ActivityOutcome(a.run_id, a.ref, a.attempt, a.token, EventKind.ACTIVITY_COMPLETED)
        for a in attempts
    ]
    assert all(await rig.store.finish_activities(done))


async def pass_seconds(rig: Rig, seconds: float) -> None:
    """Let the buckets fill for this long."""
    await rig.pass_time(round(seconds * 1_000_000))


async def test_a_queue_runs_as_many_at_once_as_its_limit(rig: Rig, limits: Limits) -> None:
    await limits.set(QUEUE, concurrency=3)
    await queued(rig, 10)
    one, two = await rig.session(), await rig.session()

    first = await take(rig, one, limit=2)
    second = await take(rig, two)
    assert (len(first), len(second)) == (2, 1)
    assert await take(rig, one) == []

    await finish(rig, first)
    assert len(await take(rig, two)) == 2
    assert await take(rig, one) == []


async def test_claims_that_meet_share_the_limit(
    postgres: PostgresRig,
) -> None:
    await Limits(postgres.other).set(QUEUE, concurrency=5)
    await queued(postgres, 60)
    stores = [PostgresStore(postgres.dsn) for _ in range(6)]
    sessions = [await postgres.session() for _ in stores]
    running: set[tuple[str, int]] = set()
    done: Counter[tuple[str, int]] = Counter()

    async def work(store: PostgresStore, session: int) -> None:
        while len(done) < 60:
            attempts = await store.claim_activities(session, [QUEUE], ["pay"], 4)
            running.update((a.run_id, a.ref) for a in attempts)
            assert len(running) <= 5
            for attempt in attempts:
                await asyncio.sleep(0)
                running.remove((attempt.run_id, attempt.ref))
                await finish(postgres, [attempt])
                done[attempt.run_id, attempt.ref] += 1

    async with asyncio.timeout(60):
        await asyncio.gather(*map(work, stores, sessions))
    for store in stores:
        await store.close()
    assert set(done.values()) == {1}


async def test_who_finds_the_limit_in_use_takes_nothing_and_does_not_wait(
    postgres: PostgresRig,
) -> None:
    await Limits(postgres.other).set(QUEUE, concurrency=5)
    await queued(postgres, 10)
    session = await postgres.session()
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as holder:
        await holder.execute("SELECT FROM durable.queue_limit FOR UPDATE")
        assert await take(postgres, session) == []
    assert len(await take(postgres, session)) == 5


async def test_a_dead_worker_gives_its_places_back(rig: Rig, limits: Limits) -> None:
    await limits.set(QUEUE, concurrency=2)
    await queued(rig, 4)
    dead, alive = await rig.session(), await rig.session()
    taken = await take(rig, dead)
    assert await take(rig, alive) == []

    await rig.store.end_sessions([dead])

    assert {a.ref for a in await take(rig, alive)} <= {1, 2, 3, 4}
    assert len(taken) == 2


async def test_zero_pauses_a_queue(rig: Rig, limits: Limits) -> None:
    await limits.set(QUEUE, concurrency=0)
    await queued(rig, 2)
    session = await rig.session()
    assert await take(rig, session) == []
    await limits.set(QUEUE)
    assert len(await take(rig, session)) == 2


async def test_a_rate_gives_a_second_s_worth_and_then_what_time_brings(
    rig: Rig, limits: Limits
) -> None:
    # So slow that the time of this test brings nothing.
    await limits.set(QUEUE, rate=0.001)
    await queued(rig, 10)
    session = await rig.session()
    assert len(await take(rig, session)) == 1
    assert await take(rig, session) == []
    await pass_seconds(rig, 999)
    assert await take(rig, session) == []
    await pass_seconds(rig, 2)
    assert len(await take(rig, session)) == 1
    await pass_seconds(rig, 1_000_000)
    assert len(await take(rig, session)) == 1


async def test_setting_a_rate_again_fills_no_bucket(rig: Rig, limits: Limits) -> None:
    await limits.set(QUEUE, rate=0.001)
    await queued(rig, 10)
    session = await rig.session()
    assert len(await take(rig, session)) == 1
    await limits.set(QUEUE, rate=0.0005)
    assert await take(rig, session) == []


async def test_both_limits_hold_at_once(rig: Rig, limits: Limits) -> None:
    await limits.set(QUEUE, concurrency=2, rate=50)
    await queued(rig, 10)
    session = await rig.session()
    taken = await take(rig, session)
    assert len(taken) == 2
    await finish(rig, taken)
    assert len(await take(rig, session)) == 2


async def test_a_limit_is_of_its_queue_only(rig: Rig, limits: Limits) -> None:
    await limits.set(OTHER, concurrency=1)
    await queued(rig, 5)
    await queued(rig, 5, queue=OTHER)
    session = await rig.session(HOUR_US)

    taken = await take(rig, session, queues=(OTHER, QUEUE))

    assert Counter(a.queue for a in taken) == {QUEUE: 5, OTHER: 1}


async def test_limits_are_listed_changed_and_removed(limits: Limits) -> None:
    await limits.set("b", rate=2)
    await limits.set("a", concurrency=7)
    await limits.set("b", rate=2.5, concurrency=1)
    assert await limits.all() == [QueueLimits("a", 7, None), QueueLimits("b", 1, 2.5)]
    await limits.set("a")
    await limits.set("nobody")
    assert [each.queue for each in await limits.all()] == ["b"]


@pytest.mark.parametrize(
    "bad", [{"concurrency": -1}, {"rate": 0.0}, {"rate": float("nan")}, {"rate": float("inf")}]
)
async def test_what_is_no_limit_is_refused(limits: Limits, bad: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError, match="no limit"):
        await limits.set(QUEUE, **bad)  # type: ignore[arg-type]
    assert await limits.all() == []


async def test_the_depth_of_a_queue_says_what_its_activities_wait_for(
    rig: Rig, limits: Limits
) -> None:
    await limits.set(QUEUE, key_concurrency=1)
    run = await rig.owned("run", await rig.session())
    key = b'{"fairness_key":"a"}'
    work = [QueuedActivity(ref, "pay", QUEUE, 0, 1, b"[]", key) for ref in (1, 2, 3)]
    work.append(QueuedActivity(4, "pay", QUEUE, 0, 1, b"[]", b"{}", delay_us=HOUR_US))
    work.append(QueuedActivity(5, "pay", OTHER, 0, 1, b"[]", b"{}", scheduled_us=7))
    await rig.accept(change(run, b"b", activities=work))

    assert len(await take(rig, await rig.session())) == 1

    other, here = await rig.store.queue_depths()
    assert other == QueueDepth(OTHER, 1, 0, 0, 0, 7)
    assert here == QueueDepth(QUEUE, 0, 2, 1, 1, here.oldest_us)
    assert here.oldest_us is not None
