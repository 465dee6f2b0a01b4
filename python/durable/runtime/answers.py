"""Answers: how claimed attempts ended, on its way to the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from durable.errors import StoreError, StoreUnavailableError
from durable.events import ActivityOutcome, ClaimedActivity
from durable.runtime.attempt import Ending
from durable.runtime.metrics import Metrics
from durable.runtime.service import Service
from durable.runtime.wakeup import Backoff
from durable.store.base import Store

OUTCOMES_MAX = 500

log = logging.getLogger("durable.worker")


def answer(claimed: ClaimedActivity, ending: Ending) -> ActivityOutcome:
    """The ending of a claimed attempt that did not begin, as the store takes it."""
    return ActivityOutcome(
        run_id=claimed.run_id,
        ref=claimed.ref,
        attempt=claimed.attempt,
        token=claimed.token,
        kind=ending.kind,
        payload=ending.payload,
        delay_us=ending.delay_us,
        details=claimed.details,
        count_attempt=ending.count_attempt,
    )


class Answers(Service):
    """Writes outcomes of claimed attempts, many at a time, until the store has them."""

    name = "answers"

    def __init__(self, store: Store, metrics: Metrics, written: Callable[[], None]) -> None:
        super().__init__()
        self._store = store
        self._metrics = metrics
        self._written = written
        self._outcomes: list[ActivityOutcome] = []
        self._wake = asyncio.Event()

    def put(self, outcome: ActivityOutcome) -> None:
        """Write this one soon."""
        self._outcomes.append(outcome)
        self._wake.set()

    @property
    def tokens(self) -> set[int]:
        """Those of the attempts whose outcome is not written yet."""
        return {each.token for each in self._outcomes}

    def forget(self) -> None:
        """Drop what is not written: its tokens are void."""
        self._outcomes.clear()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        self.ready()
        backoff = Backoff()
        while not self.stopping or self._outcomes:
            if not self._outcomes:
                self._wake.clear()
                await self._wake.wait()
                await asyncio.sleep(0)
                continue
            batch = self._outcomes[:OUTCOMES_MAX]
            try:
                await self._write(batch)
            except StoreUnavailableError as error:
                self._metrics.inc("durable_store_errors_total")
                if backoff.failures == 0:
                    log.warning("cannot record results, will go on trying: %s", error)
                await asyncio.sleep(backoff.next_seconds())
                continue
            backoff.reset()
            # `forget` may have emptied the list meanwhile.
            if self._outcomes[: len(batch)] == batch:
                del self._outcomes[: len(batch)]
            self._written()

    async def _write(self, batch: list[ActivityOutcome]) -> None:
        try:
            await self._store.finish_activities(batch)
        except StoreUnavailableError:
            raise
        except StoreError as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._write(batch[:middle])
                await self._write(batch[middle:])
                return
            # Its token runs out with the session or its time limit, and it is tried again.
            log.error("the outcome of activity %s of run %s cannot be recorded: %s",
                      batch[0].ref, batch[0].run_id, error)  # fmt: skip
