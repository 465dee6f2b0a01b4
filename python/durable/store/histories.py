"""Histories: how each store gives out what it recorded of runs.

`PostgresHistories` and `MemoryHistories` are what the two stores are made of besides the rest. A
run's history is in the part of the table where it began; upkeep may move it, so who asks with an
old part is led to the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from durable.errors import StoreError, StoreUnavailableError
from durable.store.arrays import literal, uuids
from durable.store.packing import PackedHistories
from durable.store.streams import HasStatements
from durable.store.written import first_batch

MOVES_MAX = 3
"""How often a history is looked for: upkeep moves one once in a retention period."""


class PostgresHistories:
    """Histories in PostgreSQL."""

    async def load(self: HasStatements, runs: Mapping[str, int]) -> dict[str, list[bytes]]:
        """History batches in order, by run id; the values of ``runs`` are their parts."""
        loaded: dict[str, list[bytes]] = {run_id: [] for run_id in runs}
        wanted = dict(runs)
        for _ in range(MOVES_MAX):
            if not wanted:
                break
            params = (literal(wanted.values()), uuids(list(wanted)))
            found = [loaded[run_id] for run_id in wanted]
            for place, batch in await self.fetch("load", params):
                found[place - 1].append(batch)
            # Every run has a history. One without was moved to another part since it was read.
            lost = [run_id for run_id in wanted if not loaded[run_id]]
            wanted = dict(await self.fetch("relocate", (uuids(lost),))) if lost else {}
        for run_id, batches in loaded.items():
            batches[:1] = [first_batch(run_id, batch) for batch in batches[:1]]
        return loaded

    async def first_batches(self: HasStatements, runs: Mapping[str, int]) -> dict[str, bytes]:
        """The first history batch of each run that is known."""
        found: dict[str, bytes] = {}
        wanted = dict(runs)
        for _ in range(MOVES_MAX):
            if not wanted:
                break
            params = (literal(wanted.values()), uuids(list(wanted)))
            rows = await self.fetch("first_batches", params)
            found.update((run_id, first_batch(run_id, batch)) for run_id, batch in rows)
            lost = [run_id for run_id in wanted if run_id not in found]
            wanted = dict(await self.fetch("relocate", (uuids(lost),))) if lost else {}
        return found

    async def load_packed(self: HasHistories, runs: Mapping[str, int]) -> PackedHistories:
        """See `Store.load_packed`."""
        if not runs:
            return PackedHistories(b"", b"", b"")
        try:
            rows = await self.fetch("load_packed", (literal(runs.values()), uuids(list(runs))))
        except StoreUnavailableError:
            raise
        except StoreError:
            # They are longer than the server puts together, a gigabyte; row by row it gives all.
            pass
        else:
            counts, lengths, batches = rows[0]
            packed = PackedHistories(counts, lengths or b"", batches or b"")
            if packed.has_all:
                return packed
        return PackedHistories.of((await self.load(runs)).values())


class HasHistories(HasStatements, Protocol):
    """A store that `load` works on."""

    async def load(self, runs: Mapping[str, int]) -> dict[str, list[bytes]]:
        """See `Store.load`."""


class MemoryHistories:
    """Histories in memory."""

    async def load(self: HasTables, runs: Mapping[str, int]) -> dict[str, list[bytes]]:
        """History batches in order, by run id."""
        tables = self.tables
        loaded: dict[str, list[bytes]] = {}
        for run_id in runs:
            run = tables.runs.get(run_id) or tables.closed.get(run_id)
            loaded[run_id] = list(run.batches) if run is not None else []
        return loaded

    async def first_batches(self: HasTables, runs: Mapping[str, int]) -> dict[str, bytes]:
        """The first history batch of each run that is known."""
        loaded = await MemoryHistories.load(self, runs)
        return {run_id: batches[0] for run_id, batches in loaded.items() if batches}

    async def load_packed(self: HasTables, runs: Mapping[str, int]) -> PackedHistories:
        """See `Store.load_packed`."""
        return PackedHistories.of((await MemoryHistories.load(self, runs)).values())


class HasTables(Protocol):
    """A store in memory."""

    @property
    def tables(self) -> HasRuns:
        """Its tables."""


class HasRuns(Protocol):
    """The tables of a store in memory."""

    @property
    def runs(self) -> Mapping[str, Any]:
        """The open runs by id."""

    @property
    def closed(self) -> Mapping[str, Any]:
        """The closed runs by id."""
