"""Streams from activities to readers, through a real worker and database."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from click.testing import CliRunner

from durable import (
    ActivityNotFoundError,
    ContextError,
    InvalidArgumentError,
    RetryPolicy,
    SyncClient,
    activity,
    workflow,
)
from durable.cli.main import main
from durable.client import Client

SOON = 30.0


@activity.defn
async def talk(count: int) -> int:
    tokens = activity.stream("tokens")
    for number in range(count):
        await tokens.write(number)
    return count


@workflow.defn
async def talker(count: int) -> int:
    return await talk(count)


async def read(handle: Any, name: str = "tokens", **options: Any) -> list[Any]:
    async with asyncio.timeout(SOON):
        return [item async for item in handle.stream(name, **options)]


async def test_a_reader_gets_every_item_and_ends_with_the_run(client: Client, serve: Any) -> None:
    await serve(talker, talk)
    handle = await client.start(talker, 1200, id="talker")
    items = await read(handle)
    assert [item.value for item in items] == list(range(1200))
    assert [item.offset for item in items] == list(range(1, 1201))
    assert {item.attempt for item in items} == {1}
    assert [item.value for item in await read(handle, after=1198)] == [1198, 1199]
    assert await read(handle, "nothing") == []


async def test_items_are_read_while_the_activity_runs(client: Client, serve: Any) -> None:
    heard = asyncio.Event()

    @activity.defn
    async def patient() -> None:
        await activity.stream("tokens").write("first")
        await heard.wait()
        await activity.stream("tokens").write("last")

    @workflow.defn
    async def waits() -> None:
        await patient()

    await serve(waits, patient)
    handle = await client.start(waits, id="waits")
    values = []
    async with asyncio.timeout(SOON):
        async for item in handle.stream("tokens", type=str):
            values.append(item.value)
            heard.set()
    assert values == ["first", "last"]


async def test_a_closed_stream_ends_its_readers_before_the_run_does(
    client: Client, serve: Any
) -> None:
    @activity.defn
    async def short() -> None:
        tokens = activity.stream("tokens")
        await tokens.write(1)
        await tokens.close()

    @workflow.defn
    async def goes_on() -> None:
        await short()
        await workflow.wait_signal("end")

    await serve(goes_on, short)
    handle = await client.start(goes_on, id="goes_on")
    assert [item.value for item in await read(handle)] == [1]
    await handle.signal("end")
    await handle.result(SOON)


async def test_an_attempt_that_began_anew_is_told_by_its_number(client: Client, serve: Any) -> None:
    @activity.defn(retry=RetryPolicy(initial_interval=0.01, max_attempts=2))
    async def flaky() -> None:
        await activity.stream("tokens").write("hello")
        if activity.info().attempt == 1:
            raise RuntimeError("again")

    @workflow.defn
    async def tries() -> None:
        await flaky()

    await serve(tries, flaky)
    items = await read(await client.start(tries, id="tries"))
    assert [(item.attempt, item.value) for item in items] == [(1, "hello"), (2, "hello")]


async def test_a_sync_activity_writes_from_its_thread(client: Client, serve: Any) -> None:
    @activity.defn
    def threaded() -> None:
        tokens = activity.stream("tokens")
        for number in range(20):
            tokens.write_sync({"n": number})
        tokens.close_sync()

    @workflow.defn
    async def threads() -> None:
        await threaded()

    await serve(threads, threaded)
    items = await read(await client.start(threads, id="threads"), type=dict[str, int])
    assert [item.value["n"] for item in items] == list(range(20))


async def test_a_sync_client_iterates(client: Client, serve: Any, dsn: str) -> None:
    await serve(talker, talk)
    await client.start(talker, 3, id="talker")

    def iterate() -> list[int]:
        with SyncClient.connect(dsn) as sync:
            return [item.value for item in sync.get_handle("talker").stream("tokens")]

    async with asyncio.timeout(SOON):
        assert await asyncio.to_thread(iterate) == [0, 1, 2]


@pytest.mark.parametrize("queued", [False, True])
async def test_an_attempt_whose_worker_was_taken_for_dead_adds_nothing_more(
    client: Client, serve: Any, queued: bool
) -> None:
    refused: list[str] = []
    begun, go, told = threading.Event(), threading.Event(), threading.Event()

    @activity.defn(retry=RetryPolicy(initial_interval=0.01))
    def threaded() -> None:
        tokens = activity.stream("tokens")
        if queued and activity.info().attempt == 1:
            raise RuntimeError("the next one comes from the queue")
        if begun.is_set():
            tokens.write_sync("next")
            assert told.wait(SOON)
            return
        begun.set()
        tokens.write_sync("first")
        assert go.wait(SOON)
        try:
            tokens.write_sync("late")
            tokens.close_sync()
        except ActivityNotFoundError as error:
            refused.append(str(error))
        finally:
            told.set()

    @workflow.defn
    async def threads() -> None:
        await threaded()

    worker = await serve(threads, threaded)
    handle = await client.start(threads, id="threads")
    values = []
    try:
        async with asyncio.timeout(SOON):
            async for item in handle.stream("tokens"):
                values.append(item.value)
                if item.value == "first":
                    await client.store.end_sessions([worker.session_id])
                    await serve(threads, threaded)
                else:
                    go.set()
                    break
        await handle.result(SOON)
    finally:
        go.set()
        told.set()
    assert values == ["first", "next"]
    assert len(refused) == 1
    assert "lost its activity" in refused[0]
    assert [item.value for item in await read(handle)] == ["first", "next"]


async def test_misuse_is_refused(client: Client, serve: Any) -> None:
    with pytest.raises(ContextError):
        activity.stream("tokens")
    with pytest.raises(InvalidArgumentError):
        client.get_handle("any").stream("")

    @activity.defn
    async def wrong() -> list[str]:
        said = []
        try:
            activity.stream("tokens").write_sync(1)
        except ContextError as error:
            said.append(str(error))
        return said

    @workflow.defn
    async def misuses() -> list[str]:
        return await wrong()

    await serve(misuses, wrong)
    handle = await client.start(misuses, id="misuses")
    assert "await write()" in (await handle.result(SOON))[0]


async def test_the_command_prints_items(client: Client, serve: Any, dsn: str) -> None:
    await serve(talker, talk)
    await (await client.start(talker, 3, id="talker")).result(SOON)
    arguments = ["stream", "talker", "tokens", "--after", "1", "--dsn", dsn]
    result = await asyncio.to_thread(CliRunner().invoke, main, [*arguments, "--json"])
    assert [json.loads(line) for line in result.output.splitlines()] == [
        {"offset": 2, "attempt": 1, "value": 1},
        {"offset": 3, "attempt": 1, "value": 2},
    ]
    result = await asyncio.to_thread(CliRunner().invoke, main, [*arguments, "--no-follow"])
    assert result.output.split() == ["1", "2"]
