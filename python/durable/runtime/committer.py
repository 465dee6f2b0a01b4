"""Committer: group commit.

Everything that became true since the last flush, of all runs, goes into one `Store.commit`; the
next batch forms in memory while that one is on its way. One flush is in flight at a time, so no run
ever has two. What must not happen before it is durable (starting activities, answering, dropping a
closed run) is done by the handler when the verdict says ACCEPTED.

When the store does not answer, the batch is kept as it is and sent again under the same flush
number, by which the store knows what it has written already: user code is never run again for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Sequence
from typing import Protocol

from durable.errors import StoreError, StoreUnavailableError
from durable.events import RunCommit, Verdict
from durable.runtime.metrics import Metrics
from durable.runtime.service import Service
from durable.runtime.wakeup import Backoff
from durable.runtime.warm import WarmRun
from durable.store.base import Store
from durable.store.clock import StoreClock

BATCH_RUNS_MAX = 1000
GATHER_TURNS = 3
"""Turns of the loop before a flush: an activity starts in one and ends in the next."""
BATCH_BYTES_MAX = 4 * 1024 * 1024
"""A larger batch would make all of its runs wait for it."""

log = logging.getLogger("durable.worker")


class CommitHandler(Protocol):
    """Who builds the commits and acts on their verdicts."""

    def build(self, run: WarmRun) -> RunCommit | None:
        """What the run has to write, or None. Sets ``run.flight``."""

    def accepted(self, run: WarmRun) -> None:
        """The commit in flight is durable."""

    def stale(self, run: WarmRun) -> None:
        """The run is not ours any more; nothing was written."""

    def unread(self, run: WarmRun) -> None:
        """It wanted to close but has unread mail; nothing was written."""

    def refused(self, run: WarmRun, error: StoreError) -> None:
        """The store cannot take what it has to write; nothing was written."""

    def flushed(self, now_us: int, *, told: bool) -> None:
        """All verdicts of one flush are done; ``told``: clients know what it closed or answered."""


def commit_bytes(commit: RunCommit) -> int:
    """About how much a commit puts on the wire."""
    size = 200 + len(commit.batch or b"")
    for activity in commit.activities:
        size += 200 + len(activity.input)
    for message in commit.messages:
        size += 100 + len(message.payload or b"")
    for child in commit.children:
        size += 300 + len(child.batch)
    closing = commit.closing
    if closing is not None:
        size += len(closing.result or b"") + len(closing.failure or b"")
    return size


class Committer(Service):
    """The one task that writes runs."""

    name = "committer"

    def __init__(
        self, store: Store, handler: CommitHandler, clock: StoreClock, metrics: Metrics
    ) -> None:
        super().__init__()
        self._store = store
        self._handler = handler
        self._clock = clock
        self._metrics = metrics
        self._dirty: list[WarmRun] = []
        self._wake = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.in_flight = 0
        self._ending = 0
        self.is_stalled = False
        """The store does not take commits now: claim nothing more."""

    @property
    def backlog(self) -> int:
        """Runs that wait for a flush or are in one, without those that end with it."""
        return len(self._dirty) + self.in_flight - self._ending

    @property
    def waiting(self) -> int:
        """Runs that are waiting for a flush."""
        return len(self._dirty)

    def mark(self, run: WarmRun) -> None:
        """Note that the run has something to write."""
        if not run.is_dirty:
            run.is_dirty = True
            self._dirty.append(run)
            self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    def forget(self) -> None:
        """Drop what was not sent yet: its runs are not ours any more."""
        for run in self._dirty:
            run.is_dirty = False
        self._dirty.clear()

    async def quiet(self) -> None:
        """Wait until nothing is dirty and nothing is in flight."""
        while self._dirty or self.in_flight:
            self._quiet.clear()
            await self._quiet.wait()

    async def run(self) -> None:
        self.ready()
        while not self.stopping or self._dirty:
            if not self._dirty:
                self._quiet.set()
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._gather()
            await self._flush(self._form())
        self._quiet.set()

    async def _gather(self) -> None:
        """Let what is about to become true join the batch: activities that end at once, and what
        their results lead to. A few turns of the loop, no time by the clock."""
        for _ in range(GATHER_TURNS):
            await asyncio.sleep(0)

    def _form(self) -> list[tuple[WarmRun, RunCommit]]:
        dirty, self._dirty = self._dirty, []
        batch: list[tuple[WarmRun, RunCommit]] = []
        size = 0
        for index, run in enumerate(dirty):
            if len(batch) >= BATCH_RUNS_MAX or size >= BATCH_BYTES_MAX:
                # Those that waited longest go first next time.
                self._dirty = dirty[index:] + self._dirty
                break
            run.is_dirty = False
            if run.gone:
                continue
            commit = self._handler.build(run)
            if commit is not None:
                batch.append((run, commit))
                size += commit_bytes(commit)
        return batch

    async def _flush(self, batch: list[tuple[WarmRun, RunCommit]]) -> None:
        if not batch:
            return
        self.in_flight = len(batch)
        self._ending = sum(commit.closing is not None for _, commit in batch)
        began = time.monotonic()
        try:
            now_us, told = await self._send(batch)
        finally:
            self.in_flight = self._ending = 0
        self._metrics.observe("durable_flush_seconds", time.monotonic() - began)
        self._metrics.observe("durable_flush_runs", len(batch))
        if now_us:
            self._handler.flushed(now_us, told=told)

    async def _send(self, batch: Sequence[tuple[WarmRun, RunCommit]]) -> tuple[int, bool]:
        """Write the batch, however long it takes; return the store's time (0: nothing is written),
        and whether clients were told of what it closed or answered."""
        backoff = Backoff()
        flush = random.getrandbits(62) + 1
        while True:
            try:
                result = await self._store.commit([commit for _, commit in batch], flush)
            except StoreUnavailableError as error:
                self._stall(backoff, error)
                await asyncio.sleep(backoff.next_seconds())
                continue
            except StoreError as error:
                return await self._send_halves(batch, error)
            break
        self.is_stalled = False
        self._clock.observe(result.now_us)
        for (run, _), verdict in zip(batch, result.verdicts, strict=True):
            if run.gone:
                continue
            if verdict == Verdict.ACCEPTED:
                self._handler.accepted(run)
            elif verdict == Verdict.UNREAD:
                self._handler.unread(run)
            elif verdict == Verdict.REFUSED:
                self._handler.refused(run, StoreError("the database cannot store a value of it"))
            else:
                self._handler.stale(run)
        return result.now_us, result.told

    def _stall(self, backoff: Backoff, error: StoreUnavailableError) -> None:
        self.is_stalled = True
        self._metrics.inc("durable_store_errors_total")
        if backoff.failures == 0:
            log.warning("cannot commit, will go on trying: %s", error)

    async def _send_halves(
        self, batch: Sequence[tuple[WarmRun, RunCommit]], error: StoreError
    ) -> tuple[int, bool]:
        """One of them cannot be written: find it, so that the others can."""
        if len(batch) == 1:
            run = batch[0][0]
            log.error("run %s cannot be committed: %s", run.run_id, error)
            if not run.gone:
                self._handler.refused(run, error)
            return 0, True
        middle = len(batch) // 2
        first_us, first_told = await self._send(batch[:middle])
        now_us, told = await self._send(batch[middle:])
        return max(first_us, now_us), first_told and told
