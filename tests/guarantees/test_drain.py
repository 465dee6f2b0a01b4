"""A worker that is told to stop loses nothing and leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import Any

from durable import activity, workflow
from durable.client import Client
from durable.options import WorkerOptions
from durable.runtime.worker import Worker

SOON = 20.0


async def test_running_activities_may_end_and_their_results_are_kept(
    client: Client, dsn: str
) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()
    ran: list[int] = []

    @activity.defn
    async def step(number: int) -> int:
        ran.append(number)
        entered.set()
        await leave.wait()
        return number

    @workflow.defn
    async def steps() -> list[int]:
        return [await step(1), await step(2)]

    handle = await client.start(steps, id="steps")
    worker = Worker(dsn, workflows=[steps], activities=[step])
    running = asyncio.create_task(worker.run())
    async with asyncio.timeout(SOON):
        await entered.wait()
        worker.request_stop()
        await asyncio.sleep(0)
        leave.set()
        await running
    view = await handle.describe()
    assert view.session is None
    async with Worker(dsn, workflows=[steps], activities=[step]):
        assert await handle.result(SOON) == [1, 2]
    assert ran == [1, 2]


async def test_what_does_not_end_in_time_is_tried_elsewhere_and_not_counted(
    client: Client, dsn: str, store: Any
) -> None:
    entered = asyncio.Event()
    attempts: list[tuple[str, int]] = []

    def make(place: str) -> Any:
        @activity.defn
        async def step() -> str:
            attempts.append((place, activity.info().attempt))
            entered.set()
            if place == "old":
                await asyncio.Event().wait()
            return place

        return step

    @workflow.defn
    async def one() -> str:
        return str(await workflow.execute_activity("step"))

    handle = await client.start(one, id="one")
    old = Worker(
        dsn, workflows=[one], activities=[make("old")], options=WorkerOptions(drain_seconds=0.05)
    )
    running = asyncio.create_task(old.run())
    async with asyncio.timeout(SOON):
        await entered.wait()
        old.request_stop()
        await running
    owned, claimed = await store.owned(old.session_id)
    assert (owned, claimed) == ([], [])
    async with Worker(dsn, workflows=[one], activities=[make("new")]):
        assert await handle.result(SOON) == "new"
    assert attempts == [("old", 1), ("new", 1)]


async def test_a_queued_attempt_is_handed_back_uncounted(client: Client, dsn: str) -> None:
    entered = asyncio.Event()
    attempts: list[int] = []

    @activity.defn(queue="far")
    async def far() -> str:
        attempts.append(activity.info().attempt)
        if len(attempts) == 1:
            entered.set()
            await asyncio.Event().wait()
        return "there"

    @workflow.defn
    async def trip() -> str:
        return await far()

    options = WorkerOptions(queues=("far",), drain_seconds=0.05)
    handle = await client.start(trip, id="trip")
    async with Worker(dsn, workflows=[trip]):
        async with Worker(dsn, activities=[far], options=options):
            async with asyncio.timeout(SOON):
                await entered.wait()
        async with Worker(dsn, activities=[far], options=options):
            assert await handle.result(SOON) == "there"
    assert attempts == [1, 1]


async def test_stopping_before_the_start_and_twice_is_allowed(dsn: str) -> None:
    @workflow.defn
    async def nothing() -> None: ...

    worker = Worker(dsn, workflows=[nothing])
    worker.request_stop()
    worker.request_stop()
    async with asyncio.timeout(SOON):
        await worker.run()
