"""Streams: items that a run gives out while it goes on, and how each store keeps them.

An item has an offset, from 1 and without gaps, and the number of the attempt that wrote it. One
without a payload is an end mark. An attempt that does not have its activity any more adds nothing,
and what it added is in front of what the next attempt adds. `PostgresStreams` and `MemoryStreams`
are what the two stores are made of besides the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from durable.errors import ActivityNotFoundError, StreamFullError, WorkflowNotFoundError
from durable.events import Hold, StoredItem
from durable.store.arrays import blobs

ITEMS_MAX = 1_000_000
"""Items of one stream of one run, end marks included."""
READ_BYTES = 8 * 1024 * 1024
"""What one read brings at most, but for one item that is larger."""
NOT_OPEN, FULL, LOST = -1, -2, -3
CLAIMED = 2
"""The state of an attempt that runs."""


def last_offset(found: int, run_id: str, name: str) -> int:
    """What an append says, or its error."""
    if found == NOT_OPEN:
        raise WorkflowNotFoundError(f"run {run_id} is not open: nothing was added to {name!r}")
    if found == FULL:
        raise StreamFullError(
            f"stream {name!r} of run {run_id} has its {ITEMS_MAX:,} items; write to another name, "
            "or put more into one item"
        )
    if found == LOST:
        raise attempt_lost(run_id, name)
    return found


def attempt_lost(run_id: str, name: str) -> ActivityNotFoundError:
    """What is said to an attempt that does not have its activity any more."""
    return ActivityNotFoundError(
        f"this attempt has lost its activity of run {run_id} (cancelled, over its time, or another "
        f"attempt is to run): nothing was added to {name!r}"
    )


class HasStatements(Protocol):
    """A store with named statements."""

    async def fetch(self, name: str, params: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Run one that is safe to run twice; return its rows."""


class PostgresStreams:
    """Streams in PostgreSQL."""

    async def append_stream(
        self: HasStatements,
        run_id: str,
        name: str,
        attempt: int,
        items: Sequence[bytes | None],
        flush: int,
        hold: Hold,
    ) -> int:
        """See `Store.append_stream`."""
        params = (run_id, name, attempt, blobs(items), flush, ITEMS_MAX, *hold)
        return last_offset((await self.fetch("append_stream", params))[0][0], run_id, name)

    async def read_stream(
        self: HasStatements, run_id: str, name: str, after: int, limit: int
    ) -> list[StoredItem]:
        """See `Store.read_stream`."""
        rows = await self.fetch("read_stream", (run_id, name, after, limit, READ_BYTES))
        return [StoredItem(*row) for row in rows]


@dataclass(slots=True)
class MemoryStream:
    """One stream in memory."""

    items: list[StoredItem]
    flush: int = 0


class HasRuns(Protocol):
    """A store in memory."""

    streams: dict[tuple[str, str], MemoryStream]

    @property
    def tables(self) -> HasOpenRuns:
        """Its tables."""


class HasOpenRuns(Protocol):
    """The tables of a store in memory."""

    @property
    def runs(self) -> Mapping[str, Any]:
        """The open runs by id."""

    @property
    def activities(self) -> Mapping[tuple[str, int], Any]:
        """The queued and claimed attempts."""


class MemoryStreams:
    """Streams in memory."""

    async def append_stream(
        self: HasRuns,
        run_id: str,
        name: str,
        attempt: int,
        items: Sequence[bytes | None],
        flush: int,
        hold: Hold,
    ) -> int:
        """See `Store.append_stream`."""
        stream = self.streams.get((run_id, name), MemoryStream([]))
        count = len(stream.items)
        if count and stream.flush == flush:
            return count
        run = self.tables.runs.get(run_id)
        if run is None:
            return last_offset(NOT_OPEN, run_id, name)
        claimed = self.tables.activities.get((run_id, hold.ref))
        is_held = (
            run.fence == hold.token
            if hold.ref == 0
            else claimed is not None and (claimed.state, claimed.token) == (CLAIMED, hold.token)
        )
        if not is_held:
            return last_offset(LOST, run_id, name)
        if count + len(items) > ITEMS_MAX:
            return last_offset(FULL, run_id, name)
        self.streams[run_id, name] = stream
        stream.flush = flush
        stream.items += [
            StoredItem(count + n, attempt, item) for n, item in enumerate(items, start=1)
        ]
        return len(stream.items)

    async def read_stream(
        self: HasRuns, run_id: str, name: str, after: int, limit: int
    ) -> list[StoredItem]:
        """See `Store.read_stream`."""
        stream = self.streams.get((run_id, name))
        return [] if stream is None else stream.items[after : after + limit]
