"""Maintenance: one supervisor leads, every step is on its own, and all of it shows in metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest

from durable import Client, workflow
from durable.errors import ConfigurationError, StoreUnavailableError
from durable.events import QueueDepth
from durable.runtime.maintenance import Maintenance
from durable.runtime.metrics import Metrics
from durable.runtime.worker import Worker
from durable.store.postgres import PostgresStore
from durable.store.retention import Expiry, Gauges, Upkeep

Until = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]
SOON = 20.0


@workflow.defn
async def greet(name: str) -> str:
    return f"hello {name}"


class Upset(Upkeep):
    """Some steps fail."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.away = False

    async def lead(self, holder: int, lease_us: int) -> bool:
        if self.away:
            raise StoreUnavailableError("the database is away")
        return True

    async def rotate(self) -> int:
        raise ConfigurationError("the role lacks a right")

    async def expire(self, moves_max: int = 100) -> Expiry:
        raise StoreUnavailableError("the database is away")

    async def repair_wakeups(self, age_us: int = 0) -> int:
        return 2

    async def tend_queues(self) -> list[QueueDepth]:
        raise StoreUnavailableError("the database is away")

    async def gauges(self) -> Gauges:
        return Gauges(7, 2, 3, 1.5, {"task": 9})

    async def resign(self, holder: int) -> None:
        raise StoreUnavailableError("the database is away")


@pytest.fixture
async def upkeeps(dsn: str) -> AsyncIterator[tuple[Upkeep, Upkeep]]:
    """Those of two hosts."""
    stores = PostgresStore(dsn), PostgresStore(dsn)
    for store in stores:
        await store.open()
    yield Upkeep(stores[0]), Upkeep(stores[1])
    for store in stores:
        await store.close()


async def test_one_leads_and_the_other_follows_when_it_ends(
    upkeeps: tuple[Upkeep, Upkeep], until: Until
) -> None:
    first, second = (Maintenance(each, Metrics(), round_seconds=0.02) for each in upkeeps)

    async def leads(which: Maintenance) -> bool:
        return which.is_leader

    first.start()
    await until(lambda: leads(first))
    second.start()
    await second.look()
    assert not second.is_leader
    await first.stop()
    await until(lambda: leads(second))
    await second.stop()
    assert not second.is_leader


async def test_a_leader_that_lost_its_lease_shows_nothing(
    upkeeps: tuple[Upkeep, Upkeep], dsn: str
) -> None:
    metrics = Metrics()
    maintenance = Maintenance(upkeeps[0], metrics)
    await maintenance.look()
    assert metrics.value("durable_maintenance_leader") == 1
    assert metrics.value("durable_partitions") == 1
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("UPDATE durable.lease SET holder = 1")

    await maintenance.look()

    assert not maintenance.is_leader
    assert metrics.value("durable_maintenance_leader") == 0
    assert metrics.value("durable_partitions") == 0


async def test_a_step_that_fails_holds_up_no_other() -> None:
    metrics = Metrics()
    upkeep = Upset(None)
    maintenance = Maintenance(upkeep, metrics)

    await maintenance.look()
    upkeep.away = True
    await maintenance.look()

    errors = {
        step: metrics.value("durable_maintenance_errors_total", step=step)
        for step in ("lead", "rotate", "expire", "wakeups", "queues", "gauges")
    }
    assert errors == {
        "lead": 1,
        "rotate": 1,
        "expire": 1,
        "wakeups": 0,
        "queues": 1,
        "gauges": 0,
    }
    assert metrics.value("durable_wakeups_repaired_total") == 2
    assert not maintenance.is_leader


async def test_it_ends_when_the_database_is_away() -> None:
    maintenance = Maintenance(Upset(None), Metrics())
    maintenance.start()
    await maintenance.started()
    await asyncio.sleep(0)
    await maintenance.stop()
    assert not maintenance.is_leader


async def test_a_fleet_under_load_needs_no_wake_up_repaired(
    client: Client, dsn: str, upkeeps: tuple[Upkeep, Upkeep]
) -> None:
    handles = await client.start_many(greet, [(f"g{n}", [str(n)]) for n in range(300)])
    async with Worker(dsn, workflows=[greet]):
        for handle in handles:
            assert await upkeeps[0].repair_wakeups(0) == 0
            assert not isinstance(handle, Exception)
            await handle.result(SOON)
    assert await upkeeps[0].repair_wakeups(0) == 0
