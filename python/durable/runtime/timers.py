"""Timers: what is due, for the runs in memory and for everybody else.

A timer is a row in the database and promotion turns it into mail when it is due: that is the
truth. For a run that is warm here the same timer is also kept in a heap, and fires in memory as
soon as the store's clock (as estimated, never ahead) shows its time; the commit that holds
TIMER_FIRED removes the row. When both happen, the second finds the timer answered and is ignored.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import random
import time
from collections.abc import Callable

from durable.errors import StoreError
from durable.events import DueReport
from durable.runtime.metrics import Metrics
from durable.runtime.service import Service
from durable.runtime.wakeup import Backoff, Wakeup
from durable.runtime.warm import Cache, WarmRun
from durable.store.base import Store
from durable.store.clock import StoreClock

PROMOTE_LIMIT = 200
"""Rows in one promotion. What they wake stands in line before whatever comes after it."""
HOLD_SECONDS = 0.5
"""A promoter goes on after this long, though its own worker has not caught up: others may have."""
PROMOTE_LAG_SECONDS = 0.02
"""Promotion waits this long after a due time: warm runs fire their own timers before it."""
HINT_SECONDS = 0.1
"""However many hints there are, they cause no more than one promotion in this time."""
FAR_US = 1 << 62
FIRE_MAX = 50
"""Timers of warm runs that fire in one go; then others have the loop."""
FIRE_PAUSE_SECONDS = 0.002
FIRE_PAUSES_MAX = 50
"""So often due timers wait for the commits of those before them; then some fire all the same."""
HEAP_MIN = 1000

log = logging.getLogger("durable.worker")


class TimerHeap:
    """Due times of warm runs; fires them through ``fire(run, ref)`` on the loop thread.

    When very many are due at once they fire bit by bit, while ``is_busy()`` says that there is
    enough to commit already: a run that has nothing to do with them does not wait for all of them.
    """

    def __init__(
        self,
        cache: Cache,
        clock: StoreClock,
        fire: Callable[[WarmRun, int], None],
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self._cache = cache
        self._clock = clock
        self._fire = fire
        self._is_busy = is_busy
        self._pauses = 0
        self._heap: list[tuple[int, str, int]] = []
        self._handle: asyncio.TimerHandle | None = None
        self._armed_us = 0
        self._compact_at = HEAP_MIN

    def push(self, run: WarmRun, ref: int, due_us: int) -> None:
        """Remember a pending timer of a warm run."""
        run.timers[ref] = due_us
        heapq.heappush(self._heap, (due_us, run.run_id, ref))
        if len(self._heap) > self._compact_at:
            self._compact()
        if self._handle is None or due_us < self._armed_us:
            self._arm()

    def clear(self) -> None:
        """Forget all."""
        self._heap.clear()
        self._disarm()

    def _compact(self) -> None:
        """Drop what was cancelled, or belongs to runs that are not here any more."""
        self._heap = [
            (due_us, run.run_id, ref) for run in self._cache for ref, due_us in run.timers.items()
        ]
        heapq.heapify(self._heap)
        self._compact_at = max(HEAP_MIN, 2 * len(self._heap))

    @property
    def is_behind(self) -> bool:
        """Whether timers are due that have not fired."""
        return bool(self._heap) and self._heap[0][0] <= self._clock.now_us()

    def _arm(self, pause: float = 0.0) -> None:
        self._disarm()
        if self._heap:
            self._armed_us = self._heap[0][0]
            seconds = max(pause, self._clock.seconds_until(self._armed_us))
            loop = asyncio.get_running_loop()
            # A day at most: call_later takes no centuries.
            self._handle = loop.call_later(min(seconds, 86400.0), self._fire_due)

    def _disarm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire_due(self) -> None:
        if self._pauses < FIRE_PAUSES_MAX and self._is_busy():
            self._pauses += 1
            self._arm(FIRE_PAUSE_SECONDS)
            return
        self._pauses = 0
        now_us = self._clock.now_us()
        heap = self._heap
        for _ in range(FIRE_MAX):
            if not heap or heap[0][0] > now_us:
                break
            due_us, run_id, ref = heapq.heappop(heap)
            run = self._cache.get(run_id)
            if run is not None and run.timers.get(ref) == due_us:
                del run.timers[ref]
                self._fire(run, ref)
        self._arm()


class Promoter(Service):
    """Turns due timer rows into mail and claimable work, as they become due.

    It looks when the earliest row it knows of is due (`expect` tells it of new ones), when a hint
    says that others may have added some, and after a growing pause in any case. When very many are
    due at once it promotes them bit by bit, the next when the worker has claimed the last
    (`caught_up`): the line of waiting work stays short, so that new work does not stand behind all
    of them.
    """

    name = "promoter"

    def __init__(
        self,
        store: Store,
        clock: StoreClock,
        metrics: Metrics,
        poll_max_seconds: float,
        promoted: Callable[[], None],
    ) -> None:
        super().__init__()
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._poll_max = poll_max_seconds
        self._wakeup = Wakeup(poll_max_seconds)
        self._promoted = promoted
        self._backoff = Backoff()
        self._next_due_us = FAR_US
        self._hinted = False
        self._caught_up = asyncio.Event()

    def wake(self) -> None:
        self._caught_up.set()
        self._wakeup.hint()

    def caught_up(self) -> None:
        """The worker found less to claim than it had room for."""
        self._caught_up.set()

    def hint(self) -> None:
        """Others may have added timers."""
        if not self._hinted:
            self._hinted = True
            self._wakeup.hint()

    def expect(self, due_us: int) -> None:
        """A row that is due then was written."""
        if due_us < self._next_due_us:
            self._next_due_us = due_us
            self._wakeup.hint()

    async def run(self) -> None:
        self.ready()
        looked_at = 0.0
        while not self.stopping:
            looked_at = time.monotonic()
            self._hinted = False
            # What `expect` tells while the store is asked may not be in its answer.
            self._next_due_us = FAR_US
            report = await self._promote()
            if report is None:
                await self._wakeup.wait_hint(self._backoff.next_seconds())
                continue
            self._clock.observe(report.now_us)
            self._caught_up.clear()
            if report.promoted:
                self._promoted()
            if report.next_due_us is not None:
                self._next_due_us = min(self._next_due_us, report.next_due_us)
                if report.next_due_us + PROMOTE_LAG_SECONDS * 1e6 <= report.now_us:
                    await self._hold()
                    continue
            await self._wait(looked_at)

    async def _hold(self) -> None:
        """More is due, or is held by somebody: wait until what was promoted is claimed, but not
        for long."""
        if self.stopping:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOLD_SECONDS):
                await self._caught_up.wait()

    async def _wait(self, looked_at: float) -> None:
        """Pause until something may be due."""
        patience = self._poll_max * random.uniform(0.5, 1.0)
        while not self.stopping:
            waited = time.monotonic() - looked_at
            pause = patience - waited
            if self._hinted:
                pause = min(pause, HINT_SECONDS - waited)
            if self._next_due_us != FAR_US:
                due_in = (self._next_due_us - self._clock.now_us()) / 1e6
                pause = min(pause, due_in + PROMOTE_LAG_SECONDS)
            if pause <= 0:
                return
            await self._wakeup.wait_hint(pause)

    async def _promote(self) -> DueReport | None:
        try:
            report = await self._store.promote_due(PROMOTE_LIMIT)
        except StoreError as error:
            self._metrics.inc("durable_store_errors_total")
            if self._backoff.failures == 0:
                log.warning("cannot promote due timers, will go on trying: %s", error)
            return None
        self._backoff.reset()
        return report
