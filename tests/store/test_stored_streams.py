"""Streams in both stores: order, what is sent twice, limits, and what the upkeep removes."""

from __future__ import annotations

import uuid

import psycopg
import pytest
from support.store_rig import PostgresRig, Rig

from durable.errors import StreamFullError, WorkflowNotFoundError
from durable.store import streams
from durable.store.retention import Upkeep


async def test_items_come_in_order_behind_an_offset(rig: Rig) -> None:
    run = await rig.owned("a")
    store = rig.store
    assert await store.append_stream(run.run_id, "t", 1, [b"a", b"b"], 1) == 2
    assert await store.append_stream(run.run_id, "t", 2, [b"c", None], 2) == 4
    assert await store.append_stream(run.run_id, "u", 1, [b"x"], 3) == 1

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
    assert await rig.store.append_stream(run.run_id, "t", 1, [b"a"], 7) == 1
    assert await rig.store.append_stream(run.run_id, "t", 1, [b"a"], 7) == 1
    assert len(await rig.store.read_stream(run.run_id, "t", 0, 10)) == 1


async def test_a_run_that_is_not_open_takes_nothing(rig: Rig) -> None:
    with pytest.raises(WorkflowNotFoundError):
        await rig.store.append_stream(str(uuid.uuid4()), "t", 1, [b"a"], 1)


async def test_a_full_stream_says_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ITEMS_MAX", 3)
    run = await rig.owned("a")
    await rig.store.append_stream(run.run_id, "t", 1, [b"a", b"b"], 1)
    with pytest.raises(StreamFullError):
        await rig.store.append_stream(run.run_id, "t", 1, [b"c", b"d"], 2)
    assert await rig.store.append_stream(run.run_id, "t", 1, [b"c"], 3) == 3


async def test_one_read_brings_so_many_bytes(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "READ_BYTES", 10)
    run = await postgres.owned("a")
    await postgres.store.append_stream(run.run_id, "t", 1, [b"a" * 20, b"b" * 6, b"c" * 6], 1)
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
            await store.append_stream(run.run_id, name, 1, [b"a"], 1)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("DELETE FROM durable.run WHERE run_id = %s", [gone.run_id])

    await Upkeep(store).sweep_streams()
    assert await store.read_stream(gone.run_id, "t", 0, 10) == []
    assert await store.read_stream(gone.run_id, "u", 0, 10) == []
    assert len(await store.read_stream(known.run_id, "t", 0, 10)) == 1
