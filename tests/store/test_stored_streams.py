"""Streams in both stores: order, what is sent twice, limits, and what the upkeep removes."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import psycopg
import pytest
from support.store_rig import QUEUE, PostgresRig, Rig, change

from durable.errors import ActivityNotFoundError, StreamFullError, WorkflowNotFoundError
from durable.events import ActivityOutcome, ClaimedRun, EventKind, Hold, QueuedActivity
from durable.store import streams
from durable.store.retention import Upkeep


def held(run: ClaimedRun) -> Hold:
    """What the owner of a run writes with."""
    return Hold(0, run.fence)


async def test_items_come_in_order_behind_an_offset(rig: Rig) -> None:
    run = await rig.owned("a")
    store = rig.store
    assert await store.append_stream(run.run_id, "t", 1, [b"a", b"b"], 1, held(run)) == 2
    assert await store.append_stream(run.run_id, "t", 2, [b"c", None], 2, held(run)) == 4
    assert await store.append_stream(run.run_id, "u", 1, [b"x"], 3, held(run)) == 1

    found = await store.read_stream(run.run_id, "t", 0, 10)
    assert [(i.offset, i.attempt, i.payload) for i in found] == [
        (1, 1, b"a"),
        (2, 1, b"b"),
        (3, 2, b"c"),
        (4, 2, None),
    ]
    assert [i.offset for i in await store.read_stream(run.run_id, "t", 1, 2)] == [2, 3]
    assert await store.read_stream(run.run_id, "t", 4, 10) == []
    assert await store.read_stream(run.run_id, "other", 0, 10) == []


async def test_an_append_that_is_sent_again_adds_nothing(rig: Rig) -> None:
    run = await rig.owned("a")
    assert await rig.store.append_stream(run.run_id, "t", 1, [b"a"], 7, held(run)) == 1
    assert await rig.store.append_stream(run.run_id, "t", 1, [b"a"], 7, held(run)) == 1
    assert len(await rig.store.read_stream(run.run_id, "t", 0, 10)) == 1


async def test_an_attempt_of_a_run_that_has_another_owner_adds_nothing(rig: Rig) -> None:
    session = await rig.session()
    run, store = await rig.owned("a", session), rig.store
    assert await store.append_stream(run.run_id, "t", 1, [b"a"], 1, held(run)) == 1
    await store.end_sessions([session])
    (again,) = await rig.claim(await rig.session())
    for name in ("t", "new"):
        with pytest.raises(ActivityNotFoundError, match="lost its activity"):
            await store.append_stream(run.run_id, name, 1, [b"late"], 2, held(run))
    # It may ask again for what it wrote in time.
    assert await store.append_stream(run.run_id, "t", 1, [b"a"], 1, held(run)) == 1
    assert await store.append_stream(run.run_id, "t", 2, [b"b"], 3, held(again)) == 2
    found = await store.read_stream(run.run_id, "t", 0, 10)
    assert [(item.attempt, item.payload) for item in found] == [(1, b"a"), (2, b"b")]


async def test_an_attempt_of_a_run_that_was_given_up_adds_nothing(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.accept(change(run, None, release=True))
    with pytest.raises(ActivityNotFoundError):
        await rig.store.append_stream(run.run_id, "t", 1, [b"a"], 1, held(run))


@pytest.mark.parametrize("lost_by", ["death", "retry", "cancel", "time", "end"])
async def test_a_claimed_attempt_that_lost_its_activity_adds_nothing(
    rig: Rig, lost_by: str
) -> None:
    session = await rig.session()
    run, store = await rig.owned("a", session), rig.store
    pay = QueuedActivity(5, "pay", QUEUE, 0, 1, b"[]", b'{"start_to_close":60}')
    await rig.accept(change(run, b"b", activities=[pay]))
    worker = await rig.session()
    (attempt,) = await store.claim_activities(worker, [QUEUE], ["pay"], 1)
    hold = Hold(5, attempt.token)
    assert await store.append_stream(run.run_id, "t", 1, [b"a"], 1, hold) == 1
    outcome = ActivityOutcome(run.run_id, 5, 1, attempt.token, 0, b"{}")
    if lost_by == "death":
        await store.end_sessions([worker])
    elif lost_by == "retry":
        assert await store.finish_activities([outcome]) == [True]
    elif lost_by == "cancel":
        await rig.accept(change(run, b"c", seq=2, activities_done=[5]))
    elif lost_by == "time":
        await rig.pass_time(61_000_000)
        await store.promote_due(10)
    else:
        done = replace(outcome, kind=int(EventKind.ACTIVITY_COMPLETED))
        assert await store.finish_activities([done]) == [True]
    with pytest.raises(ActivityNotFoundError):
        await store.append_stream(run.run_id, "t", 1, [b"late"], 2, hold)
    assert await store.heartbeat_activity(run.run_id, 5, attempt.token, b"[]") is False
    if lost_by in ("death", "retry"):
        (heir,) = await store.claim_activities(await rig.session(), [QUEUE], ["pay"], 1)
        number = heir.attempt
        heirs = Hold(5, heir.token)
        assert await store.append_stream(run.run_id, "t", number, [b"b"], 3, heirs) == 2
    # The owner's fence is worth something to the attempts of the owner only.
    with pytest.raises(ActivityNotFoundError):
        await store.append_stream(run.run_id, "t", 1, [b"x"], 4, Hold(5, run.fence))
    with pytest.raises(ActivityNotFoundError):
        await store.append_stream(run.run_id, "t", 1, [b"x"], 5, Hold(0, attempt.token))


async def test_an_append_that_waits_for_the_next_attempt_comes_too_late(
    postgres: PostgresRig, dsn: str
) -> None:
    session = await postgres.session()
    run, store = await postgres.owned("a", session), postgres.store
    assert await store.append_stream(run.run_id, "t", 1, [b"a"], 1, held(run)) == 1
    async with await psycopg.AsyncConnection.connect(dsn) as next_one:
        # The next attempt is writing, and has the stream.
        await next_one.execute("SELECT FROM durable.stream FOR NO KEY UPDATE")
        late = asyncio.create_task(store.append_stream(run.run_id, "t", 1, [b"late"], 2, held(run)))
        try:
            await until_one_waits(dsn)
            await postgres.other.end_sessions([session])
        finally:
            await next_one.rollback()
            async with asyncio.timeout(20):
                (said,) = await asyncio.gather(late, return_exceptions=True)
    assert isinstance(said, ActivityNotFoundError)
    assert len(await store.read_stream(run.run_id, "t", 0, 10)) == 1


async def until_one_waits(dsn: str) -> None:
    """Until a statement of this database waits for a lock."""
    async with (
        asyncio.timeout(20),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
    ):
        while True:
            cursor = await conn.execute(
                "SELECT FROM pg_stat_activity "
                "WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            if cursor.rowcount:
                return
            await asyncio.sleep(0.01)


async def test_a_run_that_is_not_open_takes_nothing(rig: Rig) -> None:
    with pytest.raises(WorkflowNotFoundError):
        await rig.store.append_stream(str(uuid.uuid4()), "t", 1, [b"a"], 1, Hold(0, 1))


async def test_a_full_stream_says_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ITEMS_MAX", 3)
    run = await rig.owned("a")
    await rig.store.append_stream(run.run_id, "t", 1, [b"a", b"b"], 1, held(run))
    with pytest.raises(StreamFullError):
        await rig.store.append_stream(run.run_id, "t", 1, [b"c", b"d"], 2, held(run))
    assert await rig.store.append_stream(run.run_id, "t", 1, [b"c"], 3, held(run)) == 3


async def test_one_read_brings_so_many_bytes(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "READ_BYTES", 10)
    run = await postgres.owned("a")
    await postgres.store.append_stream(
        run.run_id, "t", 1, [b"a" * 20, b"b" * 6, b"c" * 6], 1, held(run)
    )
    read, sizes = 0, []
    while items := await postgres.store.read_stream(run.run_id, "t", read, 10):
        sizes.append(len(items))
        read = items[-1].offset
    assert sizes == [1, 1, 1]


async def test_streams_go_when_their_run_is_not_known_any_more(
    postgres: PostgresRig, dsn: str
) -> None:
    store = postgres.store
    known, gone = await postgres.owned("a"), await postgres.owned("b")
    for run in (known, gone):
        for name in ("t", "u"):
            await store.append_stream(run.run_id, name, 1, [b"a"], 1, held(run))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("DELETE FROM durable.run WHERE run_id = %s", [gone.run_id])

    await Upkeep(store).sweep_streams()
    assert await store.read_stream(gone.run_id, "t", 0, 10) == []
    assert await store.read_stream(gone.run_id, "u", 0, 10) == []
    assert len(await store.read_stream(known.run_id, "t", 0, 10)) == 1
