"""Retention and the rest of the upkeep: what a database that lives for years needs done.

History and closed runs are partitioned by part. A part is current for a while, then keeps what
started in it, and is dropped as a whole once retention allows: DROP TABLE, no DELETE, nothing for
vacuum. What must not go with it (open runs, runs that closed recently) is moved to the current part
first. Readers that still hold the old part number find such a run again by its id.

Everything here is safe to do twice, at once, and in part. Who does it holds the lease.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from durable.errors import ConfigurationError
from durable.events import QueueDepth
from durable.store.postgres import PostgresStore

LEASE = "maintenance"
DAY_US = 86_400_000_000
DAYS_MAX = 36_500
PARTS_PER_RETENTION = 5
"""More parts free space sooner, and cost each look-up of a closed run a probe."""
PART_US_MIN = 3_600_000_000
MOVE_RUNS_MAX = 500
"""Runs moved in one transaction."""
FIRST_ID = "00000000-0000-0000-0000-000000000000"
SWEEP_STREAMS_MAX = 200
"""Streams looked at in one transaction."""
UNREAD_US = 60_000_000
SWEEP_KEYS_MAX = 10_000
"""Fairness keys forgotten in one transaction."""


@dataclass(frozen=True)
class Gauges:
    """What is worth watching in the database."""

    open_runs: int
    paused_runs: int
    parts: int
    timer_lag_seconds: float
    """Age of the oldest timer that is due; 0 when none is."""
    dead_rows: Mapping[str, int]
    """By table, as the server's statistics have it."""


@dataclass(frozen=True)
class Expiry:
    """What one look at the old parts did."""

    dropped: int
    moved: int
    left: int
    """Parts whose time is over and that are still there: in use, or with runs that are held."""


class Upkeep:
    """The upkeep of one store's schema. Each method is one or a few short transactions."""

    def __init__(self, store: PostgresStore) -> None:
        self.store = store

    async def lead(self, holder: int, lease_us: int) -> bool:
        """Become or stay the one who does the upkeep, for ``lease_us`` from now."""
        return bool(await self.store.fetch("take_lease", (LEASE, holder, lease_us)))

    async def resign(self, holder: int) -> None:
        """Let somebody else do it at once."""
        await self.store.fetch("drop_lease", (LEASE, holder))

    async def retention_days(self) -> int | None:
        """How many days a closed run is kept at least; None is for ever."""
        value = (await self.store.fetch("retention", ()))[0][0]
        return int(value) if value.isdigit() else None

    async def set_retention(self, days: int | None) -> None:
        """Keep closed runs for ``days``, or for ever; raise ConfigurationError for a bad number."""
        if days is not None and not 1 <= days <= DAYS_MAX:
            raise ConfigurationError(
                f"retention is 1 to {DAYS_MAX} days, or None for no end, not {days!r}"
            )
        await self.store.fetch("set_retention", ("off" if days is None else str(days),))

    async def rotate(self) -> int:
        """Have the next part ready, and make it current when it is time; return the current one.

        With retention off there is nothing to drop, and so nothing to divide.
        """
        days = await self.retention_days()
        if days is None:
            part_us = DAYS_MAX * DAY_US
        else:
            part_us = max(PART_US_MIN, days * DAY_US // PARTS_PER_RETENTION)
            await self.store.fetch("prepare_part", ())
        return int((await self.store.fetch("advance_part", (part_us,)))[0][0])

    async def expire(self, moves_max: int = 100) -> Expiry:
        """Drop the parts whose time is over, after at most ``moves_max`` moves out of them."""
        dropped = moved = 0
        parts = [row[0] for row in await self.store.fetch("expired_parts", ())]
        for part in parts:
            count, moves_max = await self._empty(part, moves_max)
            moved += count
            if moves_max <= 0:
                break
            if (await self.store.fetch("drop_part", (part,)))[0][0]:
                dropped += 1
        if dropped:
            await self.sweep_streams()
        return Expiry(dropped, moved, len(parts) - dropped)

    async def sweep_streams(self) -> None:
        """Remove the streams of runs that are not known any more, some in each transaction."""
        at = (FIRST_ID, "")
        while rows := await self.store.fetch("sweep_streams", (*at, SWEEP_STREAMS_MAX)):
            at = rows[0]

    async def _empty(self, part: int, moves_max: int) -> tuple[int, int]:
        """Move out what must stay; return how much that was, and how many moves are left."""
        total = 0
        last: str | None = FIRST_ID
        while last is not None and moves_max > 0:
            rows = await self.store.fetch("move_open_runs", (part, last, MOVE_RUNS_MAX))
            count, last = rows[0]
            total += count
            moves_max -= 1
        # After the open ones: what closed meanwhile is here.
        while moves_max > 0:
            count = (await self.store.fetch("move_closed_runs", (part, MOVE_RUNS_MAX)))[0][0]
            if not count:
                break
            total += count
            moves_max -= 1
        return total, moves_max

    async def repair_wakeups(self, age_us: int = UNREAD_US) -> int:
        """Wake runs that have had unread messages for ``age_us``, and nobody to read them.

        Returns how many there were: always 0, unless a wake-up was lost.
        """
        return int((await self.store.fetch("repair_wakeups", (age_us,)))[0][0])

    async def gauges(self) -> Gauges:
        """Look at what is worth watching; one scan of the open runs."""
        open_runs, paused, parts, lag = (await self.store.fetch("gauges", ()))[0]
        dead = {name: int(count) for name, count in await self.store.fetch("dead_rows", ())}
        return Gauges(open_runs, paused, parts, lag or 0.0, dead)

    async def tend_queues(self) -> list[QueueDepth]:
        """Forget fairness keys that have nothing in line; return what each queue has."""
        await self.store.fetch("fair_sweep", (SWEEP_KEYS_MAX,))
        return await self.store.queue_depths()
