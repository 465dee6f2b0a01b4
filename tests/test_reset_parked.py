"""Resetting runs that no worker has: nothing that came to them is lost, and what is copied."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from durable import activity, workflow
from durable.client import Client, resetting
from durable.codec import AesGcmCodec, Codec
from durable.errors import WorkflowNotFoundError, WorkflowTerminatedError
from durable.events import RunState
from durable.runtime.worker import Worker

SOON = 30.0


@activity.defn
async def note(text: str) -> str:
    return text


@workflow.defn
async def collect() -> list[str]:
    found = []
    workflow.upsert_search_attributes(stage="begun")
    while (word := await workflow.wait_signal("word", type=str)) != "end":
        found.append(await note(word))
        workflow.upsert_search_attributes(stage=word)
    return found


@workflow.defn
async def waits_for_ever() -> None:
    await workflow.wait_signal("never")


@workflow.defn
async def parent() -> str:
    await workflow.start_child(waits_for_ever, id="child")
    return "no"


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with Client.connect(dsn) as connected:
        yield connected


async def state(handle: Any, wanted: RunState) -> None:
    """Wait until the run is in that state."""
    async with asyncio.timeout(SOON):
        while (await handle.describe()).state != wanted:
            await asyncio.sleep(0.02)


def say_between(client: Client, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Send a signal behind each of the first looks of a reset."""
    left, commit = list(words), client.store.commit

    async def later(commits: Any, flush: int = 0) -> Any:
        if left:
            await client.get_handle("a").signal("word", left.pop(0))
        return await commit(commits, flush)

    monkeypatch.setattr(client.store, "commit", later)


async def test_signals_between_the_look_and_the_end_are_not_lost(
    client: Client, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await client.start(collect, id="a")
    await handle.signal("word", "one")
    say_between(client, monkeypatch, "two", "three")

    again = await handle.reset(to_event=1)
    await again.signal("word", "end")

    async with Worker(dsn, workflows=[collect], activities=[note]):
        assert await again.result(SOON) == ["one", "two", "three"]


async def test_a_run_that_no_worker_has_is_reset_without_one(client: Client) -> None:
    handle = await client.start(collect, id="a")

    again = await handle.reset(to_last_turn=True, reason="no worker")

    with pytest.raises(WorkflowTerminatedError, match="no worker") as ended:
        await handle.result(SOON)
    assert ended.value.failure["new_run_id"] == again.run_id
    with pytest.raises(WorkflowNotFoundError):
        await handle.signal("word", "late")
    await again.signal("word", "in time")


async def test_what_was_unread_outlives_a_client_that_dies_before_the_new_run(
    client: Client, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = await client.start(collect, id="a")
    for word in ("one", "end"):
        await handle.signal("word", word)

    async def dies(*_: Any) -> None:
        raise ConnectionResetError

    with monkeypatch.context() as patch:
        patch.setattr(resetting, "start_copy", dies)
        with pytest.raises(ConnectionResetError):
            await handle.reset(to_event=1)
    assert (await handle.describe()).state == RunState.TERMINATED

    again = await handle.reset(to_event=1)
    async with Worker(dsn, workflows=[collect], activities=[note]):
        assert await again.result(SOON) == ["one"]


async def test_limits_and_priority_are_copied_and_attributes_are_those_of_the_point(
    client: Client, dsn: str
) -> None:
    handle = await client.start(
        collect,
        id="a",
        priority=7,
        run_timeout=timedelta(hours=2),
        execution_timeout=timedelta(hours=3),
        search={"customer": "Ann"},
        memo={"who": "Ann"},
    )
    for word in ("one", "end"):
        await handle.signal("word", word)
    async with Worker(dsn, workflows=[collect], activities=[note]):
        await handle.result(SOON)

    again = await handle.reset(before_activity="note", keep_signals=False)

    view = await again.describe()
    assert view.search is not None
    assert b"begun" in view.search
    assert b"Ann" in view.search
    assert await again.memo() == {"who": "Ann"}
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        (priority,) = await one(connection, "SELECT priority FROM durable.run")
        (limits,) = await one(
            connection,
            "SELECT count(*) FROM durable.timer WHERE due_at > now() + interval '1 hour'",
        )
    assert (priority, limits) == (7, 2)
    start = (await again.history())[0]
    assert start.meta["execution_timeout_us"] == 3 * 3_600_000_000


async def one(connection: Any, query: str) -> Any:
    """The only row of a query."""
    return await (await connection.execute(query)).fetchone()


async def test_children_of_a_run_that_no_worker_has_are_told(client: Client, dsn: str) -> None:
    handle = await client.start(parent, id="a")
    async with Worker(dsn, workflows=[parent, waits_for_ever]):
        await state(client.get_handle("a"), RunState.RUNNING)
        async with asyncio.timeout(SOON):
            while not any(e.kind == "CHILD_STARTED" for e in await handle.history()):
                await asyncio.sleep(0.02)
    async with asyncio.timeout(SOON):
        while (await handle.describe()).session is not None:
            await asyncio.sleep(0.02)

    await handle.reset(to_event=1)

    async with Worker(dsn, workflows=[waits_for_ever]):
        with pytest.raises(WorkflowTerminatedError):
            await client.get_handle("child").result(SOON)


@workflow.defn
async def goes_on(count: int) -> int:
    if count:
        workflow.continue_as_new(count - 1)
    return await workflow.wait_signal("end", type=int)


async def test_the_next_run_of_a_chain_has_the_priority_of_the_first(
    client: Client, dsn: str
) -> None:
    handle = await client.start(goes_on, 2, id="a", priority=5)
    async with Worker(dsn, workflows=[goes_on]):
        await handle.signal("end", 3)
        assert await handle.result(SOON) == 3
    start = (await client.get_handle("a").history())[0]
    assert start.meta["priority"] == 5


async def test_a_signal_of_an_open_transaction_is_waited_for(client: Client, dsn: str) -> None:
    handle = await client.start(collect, id="a")
    async with await psycopg.AsyncConnection.connect(dsn) as connection, connection.transaction():
        await handle.signal("word", "one", conn=connection)
        resetting_now = asyncio.create_task(handle.reset(to_event=1))
        await asyncio.wait([resetting_now], timeout=0.2)
        assert not resetting_now.done()
    again = await resetting_now
    await again.signal("word", "end")

    async with Worker(dsn, workflows=[collect], activities=[note]):
        assert await again.result(SOON) == ["one"]


async def test_an_encrypted_run_is_reset_with_what_it_had_not_read(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = Codec(pipeline=[AesGcmCodec({"one": bytes(32)}, "one")])
    async with Client.connect(dsn, codec=codec) as client:
        handle = await client.start(collect, id="a")
        for word in ("one", "end"):
            await handle.signal("word", word)

        async def dies(*_: Any) -> None:
            raise ConnectionResetError

        with monkeypatch.context() as patch:
            patch.setattr(resetting, "start_copy", dies)
            with pytest.raises(ConnectionResetError):
                await handle.reset(to_event=1)
        again = await handle.reset(to_event=1)
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            (failure,) = await one(connection, "SELECT failure FROM durable.closed_run")
        assert b"unread" not in failure
        async with Worker(dsn, workflows=[collect], activities=[note], codec=codec):
            assert await again.result(SOON) == ["one"]
