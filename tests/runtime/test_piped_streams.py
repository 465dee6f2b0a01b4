"""Streams of activities in processes of their own."""

from __future__ import annotations

import asyncio
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import heavy

from durable import ActivityError, Interceptor, StreamFullError, workflow
from durable.client import Client
from durable.codec import DEFAULT_CODEC, failure_to_payload
from durable.engine.info import ActivityContext
from durable.events import Hold
from durable.interceptors import ActivityCall, Proceed
from durable.options import WorkerOptions
from durable.runtime import piped_streams
from durable.runtime.piped_streams import Feed, Outbox, PipedWriter
from durable.runtime.streams import Writer
from durable.runtime.worker import Worker
from durable.store.memory import MemoryStore

SOON = 60.0
"""A process has to start, on a machine that may be busy."""


class Nothing(Interceptor):
    """Is around each attempt, and lets it be."""

    async def run_activity(self, call: ActivityCall, proceed: Proceed[ActivityCall]) -> Any:
        return await proceed(call)


class FullStore(MemoryStore):
    """Stores no more items."""

    async def append_stream(self, *args: Any) -> None:
        raise StreamFullError("stream 'numbers' is full")


@workflow.defn
async def tries() -> None:
    await heavy.writes_and_fails("raise")


async def start(client: Client, serve: Any, step: Any, *args: Any) -> Any:
    """A run of one step, and what it ends with."""

    @workflow.defn
    async def flow() -> Any:
        try:
            return await step(*args)
        except ActivityError as error:
            return type(error.__cause__).__name__

    await serve(flow, step)
    handle = await client.start(flow, id="flow")
    return handle, await handle.result(SOON)


async def read(handle: Any, name: str = "numbers", **options: Any) -> list[Any]:
    async with asyncio.timeout(SOON):
        return [item async for item in handle.stream(name, **options)]


async def test_what_a_process_writes_is_there_at_its_end(
    client: Client, serve: Any, tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    # More than it may be ahead.
    handle, count = await start(client, serve, heavy.writes, str(notes), 1700)
    assert count == 1700
    assert notes.read_text().split() != [str(os.getpid())]
    items = await read(handle, follow=False)
    assert [item.value for item in items] == list(range(1700))
    assert [item.offset for item in items] == list(range(1, 1701))
    assert [item.value for item in await read(handle, "total")] == [1700]


@pytest.mark.parametrize("how", ["raise", "exit"])
async def test_items_of_an_attempt_that_failed_stay(client: Client, serve: Any, how: str) -> None:
    handle, _ = await start(client, serve, heavy.writes_and_fails, how)
    assert [(item.attempt, item.value) for item in await read(handle)] == [(1, 1), (2, 2)]


async def test_an_item_that_is_too_large_is_refused_there(client: Client, serve: Any) -> None:
    handle, result = await start(client, serve, heavy.writes_too_much)
    assert result == "PayloadTooLargeError"
    assert await read(handle) == []


async def test_a_coroutine_of_the_activity_writes(client: Client, serve: Any) -> None:
    handle, _ = await start(client, serve, heavy.writes_in_a_loop)
    assert sorted(item.value for item in await read(handle)) == list(range(10))


async def test_interceptors_around_it_change_nothing(client: Client, dsn: str) -> None:
    worker = Worker(
        dsn,
        workflows=[tries],
        activities=[heavy.writes_and_fails],
        options=WorkerOptions(drain_seconds=1.0),
        interceptors=[Nothing()],
    )
    async with worker:
        handle = await client.start(tries, id="tries")
        await handle.result(SOON)
        assert [(item.attempt, item.value) for item in await read(handle)] == [(1, 1), (2, 2)]


async def test_what_cannot_be_stored_fails_the_attempt() -> None:
    context = ActivityContext(
        name="writes", attempt=1, workflow_id="w", run_id="r", workflow_type="t", queue="q", ref=2
    )
    loop = asyncio.get_running_loop()
    context.on_stream = partial(
        Writer, FullStore(), context, lambda: Hold(0, 1), DEFAULT_CODEC, loop
    )
    told: list[dict[str, Any]] = []
    feed = Feed(context, told.append)
    feed.take("numbers", b"1")
    feed.take("numbers", None)
    feed.take("numbers", b"2")
    async with asyncio.timeout(SOON):
        with pytest.raises(StreamFullError):
            await feed.drain()
    assert [each["taken"] for each in told] == [0]
    assert "StreamFullError" in told[0]["failed"]


# -- the process's end alone -----------------------------------------------------------------


def test_a_process_that_is_ahead_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piped_streams, "AHEAD_ITEMS", 3)
    sent: list[tuple[dict[str, Any], bytes]] = []
    third = threading.Event()

    def send(head: dict[str, Any], body: bytes) -> None:
        sent.append((head, body))
        if len(sent) == 3:
            third.set()

    outbox = Outbox(send)
    writer = PipedWriter(outbox, DEFAULT_CODEC, "numbers")
    thread = threading.Thread(target=lambda: [writer.write_sync(number) for number in range(4)])
    thread.start()
    assert third.wait(SOON)
    thread.join(0.05)
    assert thread.is_alive()
    assert len(sent) == 3
    outbox.taken({"taken": 2})
    thread.join(SOON)
    assert not thread.is_alive()
    assert sent == [({"name": "numbers", "ends": False}, b"%d" % n) for n in range(4)]


def test_what_the_store_refused_is_raised_where_it_is_written() -> None:
    outbox = Outbox(lambda head, body: None)
    writer = PipedWriter(outbox, DEFAULT_CODEC, "numbers")
    writer.write_sync(1)
    failure = failure_to_payload(StreamFullError("stream 'numbers' is full")).decode()
    outbox.taken({"taken": 0, "failed": failure})
    for call in (lambda: writer.write_sync(2), writer.close_sync):
        with pytest.raises(StreamFullError, match="is full"):
            call()


def test_a_worker_that_takes_nothing_is_waited_for_with_a_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(piped_streams, "WAIT_SECONDS", 0.01)
    with pytest.raises(TimeoutError, match="could not be stored"):
        PipedWriter(Outbox(lambda head, body: None), DEFAULT_CODEC, "numbers").close_sync()
