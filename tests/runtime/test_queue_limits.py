"""Limits of queues, as workers keep them: also for activities that could start at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from durable import Client, activity, workflow
from durable.codec import Codec, ZlibCodec
from durable.errors import InvalidArgumentError
from durable.runtime.worker import Worker
from durable.store.memory import MemoryStore

Serve = Callable[..., Awaitable[Any]]
SOON = 30.0


class Rooms:
    """How many are inside, and how many were at most."""

    def __init__(self) -> None:
        self.inside = self.most = 0


rooms = Rooms()


@activity.defn
async def stay(number: int) -> int:
    rooms.inside += 1
    rooms.most = max(rooms.most, rooms.inside)
    for _ in range(20):
        await asyncio.sleep(0)
    rooms.inside -= 1
    return number


@workflow.defn
async def guests(count: int) -> list[int]:
    return list(await asyncio.gather(*(stay(n) for n in range(count))))


@pytest.fixture(autouse=True)
def empty() -> None:
    rooms.inside = rooms.most = 0


async def test_no_more_run_at_once_than_the_limit_says(client: Client, serve: Serve) -> None:
    await client.set_queue_limits("default", concurrency=2)
    await serve(guests, stay)
    await serve(guests, stay)

    started = await client.start_many(guests, [(f"g{n}", [5]) for n in range(4)])

    for each in started:
        assert not isinstance(each, Exception)
        assert await each.result(SOON) == [0, 1, 2, 3, 4]
    assert 1 <= rooms.most <= 2


async def test_without_limits_they_start_at_once(client: Client, serve: Serve) -> None:
    await client.set_queue_limits("elsewhere", concurrency=1)
    await serve(guests, stay)
    assert await (await client.start(guests, 10, id="g")).result(SOON) == list(range(10))
    assert rooms.most > 2


async def test_a_paused_queue_goes_on_when_it_may(client: Client, serve: Serve) -> None:
    await client.set_queue_limits("default", concurrency=0)
    await serve(guests, stay)
    handle = await client.start(guests, 3, id="g")
    with pytest.raises(TimeoutError):
        await handle.result(0.5)
    assert rooms.most == 0

    await client.set_queue_limits("default", concurrency=1)

    assert await handle.result(SOON) == [0, 1, 2]
    assert rooms.most == 1


async def test_limits_hold_behind_a_codec(dsn: str) -> None:
    codec = Codec(pipeline=[ZlibCodec(min_bytes=64)])
    async with Client.connect(dsn, codec=codec) as client:
        await client.set_queue_limits("default", concurrency=1)
        async with Worker(dsn, workflows=[guests], activities=[stay], codec=codec):
            result = (await client.start(guests, 5, id="g")).result(SOON)
            assert await result == [0, 1, 2, 3, 4]
    assert rooms.most == 1


async def test_limits_are_checked_before_they_are_written(client: Client) -> None:
    with pytest.raises(InvalidArgumentError):
        await client.set_queue_limits("", concurrency=1)
    with pytest.raises(InvalidArgumentError):
        await client.set_queue_limits("default", rate=-1)


async def test_a_store_in_memory_keeps_limits_too() -> None:
    store = MemoryStore()
    async with Client.connect(store) as client:
        await client.set_queue_limits("default", concurrency=2)
        async with Worker(store, workflows=[guests], activities=[stay]):
            result = (await client.start(guests, 8, id="g")).result(SOON)
            assert await result == list(range(8))
    assert 1 <= rooms.most <= 2
