"""Fairness keys take turns in a queue, and each has its own places where those are limited."""

from __future__ import annotations

import asyncio
from collections import Counter

import orjson
import psycopg
import pytest
from support.store_rig import QUEUE, PostgresRig, Rig, change

from durable.events import ActivityOutcome, ClaimedActivity, ClaimedRun, EventKind, QueuedActivity
from durable.store.limits import Limits
from durable.store.postgres import PostgresStore

SECOND_US = 1_000_000


def pay(
    ref: int, key: str | None = None, *, priority: int = 0, **options: object
) -> QueuedActivity:
    """An activity on the queue, with a fairness key."""
    policy = {**options, "fairness_key": key} if key is not None else options
    return QueuedActivity(ref, "pay", QUEUE, priority, 1, b"[]", orjson.dumps(policy))


async def queue_up(rig: Rig, name: str, *work: QueuedActivity) -> ClaimedRun:
    """A run with these activities on the queue."""
    run = await rig.owned(name, await rig.session())
    await rig.accept(change(run, b"b", activities=list(work)))
    return run


async def line(rig: Rig, name: str, count: int, key: str | None, **options: object) -> ClaimedRun:
    """A run with so many activities of one key on the queue."""
    return await queue_up(rig, name, *(pay(n, key, **options) for n in range(1, count + 1)))


async def take(rig: Rig, session: int, limit: int = 100) -> list[ClaimedActivity]:
    return await rig.store.claim_activities(session, [QUEUE], ["pay"], limit)


async def take_keys(rig: Rig, session: int, limit: int, each: int = 4) -> list[str]:
    """The keys of the next attempts, claimed a few at a time."""
    found: list[str] = []
    while len(found) < limit:
        attempts = await take(rig, session, min(each, limit - len(found)))
        if not attempts:
            break
        found += sorted(key_of(attempt) for attempt in attempts)
    return found


def key_of(attempt: ClaimedActivity) -> str:
    return str(orjson.loads(attempt.options).get("fairness_key", ""))


def keys(attempts: list[ClaimedActivity]) -> Counter[str]:
    return Counter(map(key_of, attempts))


async def end(rig: Rig, attempts: list[ClaimedActivity], kind: int, delay_us: int = 0) -> None:
    outcomes = [
        ActivityOutcome(a.run_id, a.ref, a.attempt, a.token, kind, delay_us=delay_us)
        for a in attempts
    ]
    assert all(await rig.store.finish_activities(outcomes))


async def finish(rig: Rig, attempts: list[ClaimedActivity]) -> None:
    await end(rig, attempts, EventKind.ACTIVITY_COMPLETED)


# -- taking turns ----------------------------------------------------------------------------


async def test_a_long_line_of_one_key_holds_up_no_other(rig: Rig) -> None:
    await line(rig, "a", 1000, "a")
    await line(rig, "b", 10, "b")
    worker = await rig.session()
    assert Counter(await take_keys(rig, worker, 20)) == {"a": 10, "b": 10}


async def test_who_comes_late_does_not_wait_for_what_was_there(rig: Rig) -> None:
    await line(rig, "a", 300, "a")
    worker = await rig.session()
    assert Counter(await take_keys(rig, worker, 100)) == {"a": 100}
    await line(rig, "b", 10, "b")
    assert Counter(await take_keys(rig, worker, 24))["b"] == 10


async def test_a_key_that_was_away_has_saved_nothing_up(rig: Rig) -> None:
    await line(rig, "b0", 1, "b")
    worker = await rig.session()
    await take_keys(rig, worker, 1)
    await line(rig, "a", 200, "a")
    assert len(await take_keys(rig, worker, 100)) == 100
    await line(rig, "b", 100, "b")
    assert abs(Counter(await take_keys(rig, worker, 40))["b"] - 20) <= 4


async def test_a_key_is_not_charged_for_what_nobody_else_wanted(rig: Rig) -> None:
    await line(rig, "a0", 500, "a")
    worker = await rig.session()
    assert len(await take_keys(rig, worker, 500, each=100)) == 500
    await line(rig, "b", 100, "b")
    await line(rig, "a", 100, "a")
    assert abs(Counter(await take_keys(rig, worker, 40))["a"] - 20) <= 4


async def test_weights_divide_the_turns(rig: Rig) -> None:
    await line(rig, "a", 200, "a")
    await line(rig, "b", 200, "b", fairness_weight=3)
    worker = await rig.session()
    counts = Counter(await take_keys(rig, worker, 80))
    assert abs(counts["b"] - 60) <= 4


async def test_those_without_a_key_share_one(rig: Rig) -> None:
    await line(rig, "b", 50, "b")
    await line(rig, "none", 500, None)
    await line(rig, "a", 50, "a")
    worker = await rig.session()
    counts = Counter(await take_keys(rig, worker, 60))
    assert all(abs(count - 20) <= 4 for count in counts.values())


async def test_what_waited_before_the_first_key_came_goes_first(rig: Rig) -> None:
    await line(rig, "none", 5, None)
    await line(rig, "a", 5, "a")
    worker = await rig.session()
    assert await take_keys(rig, worker, 10, each=1) == [""] * 5 + ["a"] * 5


async def test_without_keys_the_first_come_is_the_first_served(rig: Rig) -> None:
    await line(rig, "one", 5, None)
    await line(rig, "two", 5, None)
    worker = await rig.session()
    taken = [(await take(rig, worker, 1))[0] for _ in range(10)]
    assert [a.workflow_id for a in taken] == ["one"] * 5 + ["two"] * 5
    assert [a.ref for a in taken] == [1, 2, 3, 4, 5] * 2


async def test_priority_goes_before_fairness(rig: Rig) -> None:
    await queue_up(rig, "a", *(pay(n, "a", priority=1) for n in range(1, 6)))
    await queue_up(rig, "b", *(pay(n, "b", priority=-1) for n in range(1, 4)))
    worker = await rig.session()
    assert await take_keys(rig, worker, 8, each=1) == ["b"] * 3 + ["a"] * 5


async def test_one_attempt_of_a_key_follows_another_in_order(rig: Rig) -> None:
    await line(rig, "a", 20, "a")
    worker = await rig.session()
    assert [(await take(rig, worker, 1))[0].ref for _ in range(20)] == list(range(1, 21))


async def test_next_attempts_stand_in_line_like_first_ones(rig: Rig) -> None:
    await line(rig, "a", 100, "a")
    worker = await rig.session()
    first = await take(rig, worker, 50)
    await end(rig, first, 0)
    await line(rig, "b", 10, "b")
    assert Counter(await take_keys(rig, worker, 24))["b"] == 10


# -- what is kept ----------------------------------------------------------------------------


async def rows(rig: PostgresRig, table: str) -> int:
    async with await psycopg.AsyncConnection.connect(rig.dsn) as conn:
        found = await (await conn.execute(f"SELECT count(*) FROM durable.{table}")).fetchone()
    assert found is not None
    return int(found[0])


async def sweep(rig: PostgresRig) -> None:
    async with await psycopg.AsyncConnection.connect(rig.dsn, autocommit=True) as conn:
        await conn.execute("SELECT durable.fair_sweep(1000)")


async def test_keys_that_have_nothing_in_line_are_forgotten(postgres: PostgresRig) -> None:
    await line(postgres, "a", 20, "a")
    await line(postgres, "b", 2, "b")
    worker = await postgres.session()
    await take_keys(postgres, worker, 12)
    await sweep(postgres)
    assert await rows(postgres, "fair_key") == 1
    assert Counter(await take_keys(postgres, worker, 20)) == {"a": 10}
    await sweep(postgres)
    assert (await rows(postgres, "fair_key"), await rows(postgres, "fair_clock")) == (0, 1)
    await sweep(postgres)
    assert await rows(postgres, "fair_clock") == 0
    await line(postgres, "c", 3, None)
    assert len(await take(postgres, worker)) == 3


async def test_forgetting_keys_changes_no_order(postgres: PostgresRig) -> None:
    await line(postgres, "a", 50, "a")
    await line(postgres, "b", 5, "b")
    worker = await postgres.session()
    await take_keys(postgres, worker, 20)
    await sweep(postgres)
    await line(postgres, "b2", 5, "b")
    await line(postgres, "c", 5, "c")
    assert Counter(await take_keys(postgres, worker, 17)) >= Counter({"b": 5, "c": 5})


async def test_commits_that_queue_for_the_same_keys_do_not_collide(postgres: PostgresRig) -> None:
    stores = [PostgresStore(postgres.dsn) for _ in range(4)]
    session = await postgres.session()
    runs = [await postgres.owned(f"run{n}", session) for n in range(4)]

    async def work(store: PostgresStore, run: ClaimedRun, turn: int) -> None:
        for seq in range(1, 11):
            order = ("a", "b", "c") if turn % 2 else ("c", "b", "a")
            made = [pay(3 * seq + n, key) for n, key in enumerate(order)]
            result = await store.commit([change(run, b"b", seq=seq, activities=made)])
            assert [int(v) for v in result.verdicts] == [0]

    async with asyncio.timeout(60):
        await asyncio.gather(*map(work, stores, runs, range(4)))
    for store in stores:
        await store.close()
    worker = await postgres.session()
    assert keys(await take(postgres, worker, 30)) == {"a": 10, "b": 10, "c": 10}
    assert len(await take(postgres, worker, 1000)) == 90


# -- places of each key ----------------------------------------------------------------------


@pytest.fixture
async def one_each(rig: Rig) -> Rig:
    """A queue where one attempt of each key runs at a time."""
    await Limits(rig.other).set(QUEUE, key_concurrency=1)
    return rig


async def test_a_key_runs_as_many_at_once_as_its_limit(rig: Rig) -> None:
    await Limits(rig.other).set(QUEUE, key_concurrency=2)
    await line(rig, "a", 10, "a")
    await line(rig, "b", 1, "b")
    await line(rig, "none", 5, None)
    one, two = await rig.session(), await rig.session()

    first = await take(rig, one)
    assert keys(first) == {"a": 2, "b": 1, "": 5}
    assert await take(rig, two) == []

    await finish(rig, [a for a in first if a.ref == 1 and key_of(a) == "a"])
    assert keys(await take(rig, two)) == {"a": 1}
    assert await take(rig, one) == []


async def test_all_of_a_key_are_run_in_the_end(one_each: Rig) -> None:
    await line(one_each, "a", 30, "a")
    await line(one_each, "b", 30, "b")
    worker = await one_each.session()
    done: Counter[str] = Counter()
    order = []
    while attempts := await take(one_each, worker):
        assert max(keys(attempts).values()) == 1
        order += [a.ref for a in attempts if key_of(a) == "a"]
        done += keys(attempts)
        await finish(one_each, attempts)
    assert done == {"a": 30, "b": 30}
    assert order == sorted(order)


async def test_a_full_key_is_not_in_the_way_of_others(one_each: Rig) -> None:
    await line(one_each, "a", 200, "a")
    worker = await one_each.session()
    assert keys(await take(one_each, worker, 1)) == {"a": 1}
    await line(one_each, "b", 1, "b")
    assert keys(await take(one_each, worker, 1)) == {"b": 1}


async def test_a_dead_worker_gives_the_places_of_its_keys_back(one_each: Rig) -> None:
    await line(one_each, "a", 3, "a")
    dead, alive = await one_each.session(), await one_each.session()
    assert len(await take(one_each, dead)) == 1
    assert await take(one_each, alive) == []
    await one_each.store.end_sessions([dead])
    assert len(await take(one_each, alive)) == 1
    assert await take(one_each, alive) == []


async def test_a_place_is_free_after_a_timeout_a_retry_and_a_cancellation(one_each: Rig) -> None:
    run = await line(one_each, "a", 4, "a", start_to_close=5, retry={"attempts": 1})
    worker = await one_each.session()
    assert [a.ref for a in await take(one_each, worker)] == [1]
    await one_each.pass_time(6 * SECOND_US)
    await one_each.store.promote_due(100)

    (second,) = await take(one_each, worker)
    await end(one_each, [second], 0, delay_us=60 * SECOND_US)

    (third,) = await take(one_each, worker)
    await one_each.accept(change(run, b"c", seq=2, activities_done=[third.ref]))

    assert len(await take(one_each, worker)) == 1
    assert len({1, second.ref, third.ref}) == 3


async def test_a_held_attempt_can_be_cancelled_and_times_out(one_each: Rig) -> None:
    run = await queue_up(
        one_each, "a", pay(1, "a"), pay(2, "a"), pay(3, "a", schedule_to_start=5), pay(4, "a")
    )
    worker = await one_each.session()
    (first,) = await take(one_each, worker)
    assert await take(one_each, worker) == []

    await one_each.accept(change(run, b"c", seq=2, activities_done=[2]))
    await one_each.pass_time(6 * SECOND_US)
    await one_each.store.promote_due(100)
    assert [i.ref for i in await one_each.inbox(run.run_id)] == [3]

    await finish(one_each, [first])
    assert [a.ref for a in await take(one_each, worker)] == [4]


async def test_without_the_limit_nothing_stays_held(one_each: Rig) -> None:
    await line(one_each, "a", 5, "a")
    worker = await one_each.session()
    assert len(await take(one_each, worker)) == 1
    assert await take(one_each, worker) == []
    await Limits(one_each.other).set(QUEUE)
    assert len(await take(one_each, worker)) == 4


async def test_limits_of_keys_and_of_the_queue_hold_at_once(rig: Rig) -> None:
    await Limits(rig.other).set(QUEUE, concurrency=3, key_concurrency=2)
    await line(rig, "a", 5, "a")
    await line(rig, "b", 5, "b")
    worker = await rig.session()
    first = await take(rig, worker)
    assert len(first) == 3
    assert max(keys(first).values()) == 2
    await finish(rig, first)
    assert len(await take(rig, worker)) == 3


async def test_a_claim_that_goes_round_the_held_keys_gives_no_place_twice(rig: Rig) -> None:
    await Limits(rig.other).set(QUEUE, key_concurrency=2)
    for key in "abc":
        await line(rig, key, 8, key)
    worker = await rig.session()
    running = await take(rig, worker)
    assert keys(running) == {"a": 2, "b": 2, "c": 2}
    await finish(rig, [attempt for attempt in running if key_of(attempt) == "a"])
    assert keys(await take(rig, worker, limit=1)) == {"a": 1}
    await finish(rig, [attempt for attempt in running if key_of(attempt) != "a"])
    assert keys(await take(rig, worker)) == {"a": 1, "b": 2, "c": 2}


async def test_claims_that_meet_share_the_places_of_a_key(postgres: PostgresRig) -> None:
    await Limits(postgres.other).set(QUEUE, key_concurrency=2)
    for key in "abc":
        await line(postgres, key, 12, key)
    stores = [PostgresStore(postgres.dsn) for _ in range(4)]
    sessions = [await postgres.session() for _ in stores]
    running: Counter[str] = Counter()
    done: Counter[str] = Counter()

    async def work(store: PostgresStore, session: int) -> None:
        while done.total() < 36:
            attempts = await store.claim_activities(session, [QUEUE], ["pay"], 4)
            running.update(keys(attempts))
            assert max(running.values(), default=0) <= 2
            for attempt in attempts:
                await asyncio.sleep(0)
                running[key_of(attempt)] -= 1
                await finish(postgres, [attempt])
                done[key_of(attempt)] += 1

    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*map(work, stores, sessions))
    finally:
        for store in stores:
            await store.close()
    assert done == {"a": 12, "b": 12, "c": 12}
