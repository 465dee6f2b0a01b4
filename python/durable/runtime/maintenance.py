"""Maintenance: the upkeep of the database, by one supervisor at a time.

Every supervisor has this service. Once a minute it asks for the lease; who gets it is the leader
and goes through the steps, each on its own, so that one that fails holds up no other. A leader that
is gone is followed by another when its lease is over; one that ends gives the lease back. Two at
once (a leader that was stopped for longer than its lease) do each other no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable

from durable.errors import DurableError
from durable.runtime.metrics import HOT_TABLES, QUEUE_STATES, Metrics
from durable.runtime.service import Service
from durable.store.retention import Upkeep

ROUND_SECONDS = 60.0
LEASE_US = 150_000_000
"""Two rounds and a half: a leader that misses one is still the leader."""
RESIGN_SECONDS_MAX = 2.0

log = logging.getLogger("durable.maintenance")


class Maintenance(Service):
    """Leads when nobody else does; see `look` for what it then does."""

    name = "maintenance"

    def __init__(
        self, upkeep: Upkeep, metrics: Metrics, *, round_seconds: float = ROUND_SECONDS
    ) -> None:
        super().__init__()
        self._upkeep = upkeep
        self._metrics = metrics
        self._round_seconds = round_seconds
        self._holder = secrets.randbits(62)
        self._wake = asyncio.Event()
        self.is_leader = False

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Look after the database every round until stopped."""
        self.ready()
        try:
            while not self.stopping:
                await self.look()
                self._wake.clear()
                if self.stopping:
                    break
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._round_seconds * random.uniform(0.9, 1.1)):
                        await self._wake.wait()
        finally:
            await self._resign()

    async def look(self) -> None:
        """One round of the steps. Nothing for who does not lead."""
        await self._step("lead", self._lead)
        if not self.is_leader:
            return
        await self._step("rotate", self._rotate)
        await self._step("expire", self._expire)
        await self._step("wakeups", self._wakeups)
        await self._step("queues", self._queues)
        await self._step("gauges", self._gauges)

    async def _step(self, step: str, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
        except DurableError as error:
            # Also a right that the role lacks: what it may do, it goes on doing.
            self._metrics.inc("durable_maintenance_errors_total", step=step)
            log.warning("maintenance: %s failed, and is tried again later: %s", step, error)

    async def _lead(self) -> None:
        led = self.is_leader
        # Who cannot ask does not know, and so does not lead.
        self.is_leader = False
        try:
            self.is_leader = await self._upkeep.lead(self._holder, LEASE_US)
        finally:
            self._metrics.set("durable_maintenance_leader", int(self.is_leader))
            if led and not self.is_leader:
                self._forget()

    async def _rotate(self) -> None:
        await self._upkeep.rotate()

    async def _expire(self) -> None:
        done = await self._upkeep.expire()
        self._metrics.inc("durable_partitions_dropped_total", done.dropped)
        self._metrics.inc("durable_runs_moved_total", done.moved)
        self._metrics.set("durable_partitions_overdue", done.left)
        if done.dropped or done.moved:
            log.info("retention: dropped %d parts, moved %d runs", done.dropped, done.moved)

    async def _wakeups(self) -> None:
        count = await self._upkeep.repair_wakeups()
        self._metrics.inc("durable_wakeups_repaired_total", count)
        if count:
            log.error("%d runs had unread messages and no wake-up; please report this", count)

    async def _queues(self) -> None:
        depths = await self._upkeep.tend_queues()
        for state in QUEUE_STATES:
            count = sum(getattr(each, state) for each in depths)
            self._metrics.set("durable_queue_depth", count, state=state)
        oldest = min((each.oldest_us for each in depths if each.oldest_us), default=None)
        now_us = await self._upkeep.store.now_us() if oldest else 0
        age = (now_us - oldest) / 1e6 if oldest else 0.0
        self._metrics.set("durable_queue_oldest_seconds", max(age, 0.0))

    async def _gauges(self) -> None:
        gauges = await self._upkeep.gauges()
        self._metrics.set("durable_open_runs", gauges.open_runs)
        self._metrics.set("durable_paused_runs", gauges.paused_runs)
        self._metrics.set("durable_partitions", gauges.parts)
        self._metrics.set("durable_timer_lag_seconds", gauges.timer_lag_seconds)
        for table in HOT_TABLES:
            self._metrics.set("durable_dead_rows", gauges.dead_rows.get(table, 0), table=table)

    def _forget(self) -> None:
        """The gauges of a former leader are nobody's."""
        for name in (
            "durable_open_runs",
            "durable_paused_runs",
            "durable_partitions",
            "durable_partitions_overdue",
            "durable_timer_lag_seconds",
            "durable_queue_oldest_seconds",
        ):
            self._metrics.set(name, 0)
        for state in QUEUE_STATES:
            self._metrics.set("durable_queue_depth", 0, state=state)
        for table in HOT_TABLES:
            self._metrics.set("durable_dead_rows", 0, table=table)

    async def _resign(self) -> None:
        if not self.is_leader:
            return
        self.is_leader = False
        with contextlib.suppress(DurableError, TimeoutError):
            async with asyncio.timeout(RESIGN_SECONDS_MAX):
                await self._upkeep.resign(self._holder)
