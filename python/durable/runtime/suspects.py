"""Suspects: runs whose workers died again and again are tried one at a time.

When a worker dies, every run that it had is counted: nobody knows which of them killed it. One that
was counted twice in a row is not simply opened by its next owner. It waits here until it is *on
trial*: the store knows its name as the suspect of this session, and if the worker dies meanwhile,
that one is blamed and nobody else. So among the runs that were beside a poison run, only that run
is parked. A trial ends with the first commit of what the run did, or after a while.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from durable.events import ClaimedRun
from durable.runtime.parking import CRASHES_MAX
from durable.runtime.warm import Cache
from durable.store.base import Store

SUSPECT_CRASHES = CRASHES_MAX - 1
"""Once more, and it is parked. At the first death of a worker its runs go on at once."""
TRIAL_SECONDS = 5.0
"""So long others wait for a run that neither writes anything nor kills its worker."""


class Suspects:
    """The suspects that a worker owns and has not opened, and the one on trial."""

    def __init__(self, store: Store, cache: Cache) -> None:
        self._store = store
        self._cache = cache
        self._waiting: deque[ClaimedRun] = deque()
        self._trial: str | None = None
        self._over_at = 0.0

    @property
    def are_left(self) -> bool:
        """Whether any is waiting or on trial."""
        return bool(self._waiting) or self._trial is not None

    @property
    def run_ids(self) -> set[str]:
        """Those that wait."""
        return {claimed.run_id for claimed in self._waiting}

    def sort_out(self, claimed: Iterable[ClaimedRun]) -> list[ClaimedRun]:
        """Keep the suspects among newly owned runs; return the others."""
        innocent: list[ClaimedRun] = []
        for each in claimed:
            if SUSPECT_CRASHES <= each.crashes < CRASHES_MAX:
                # What comes while it waits is mail that its claim did not see.
                self._waiting.append(replace(each, has_mail=True))
            else:
                innocent.append(each)
        return innocent

    def clear(self) -> None:
        """Nothing is owned any more."""
        self._waiting.clear()
        self._trial = None

    async def next(self, session: int) -> ClaimedRun | None:
        """The run to open now, its trial begun in the store; None: there is none, or one is on.

        Raises StoreError with nothing changed.
        """
        if self._trial is not None and not self._is_over(self._trial):
            return None
        if not self._waiting:
            if self._trial is not None:
                await self._store.suspect(session, None)
                self._trial = None
            return None
        claimed = self._waiting[0]
        await self._store.suspect(session, claimed.run_id)
        if not self._waiting or self._waiting[0] is not claimed:
            # The session died meanwhile.
            return None
        self._waiting.popleft()
        self._trial = claimed.run_id
        self._over_at = time.monotonic() + TRIAL_SECONDS
        return claimed

    def _is_over(self, run_id: str) -> bool:
        run = self._cache.get(run_id)
        return run is None or run.crashes == 0 or time.monotonic() >= self._over_at
