"""Limits: what a worker must know of the limits of its queues.

The database keeps them, at the claim. So an activity of a queue with limits never starts straight
from the workflow that asked for it: it goes through the queue. And since a place may become free
because time passes or somebody else lets go of one, such a queue is looked at often.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from durable.errors import StoreError
from durable.runtime.service import Service
from durable.runtime.slots import Slots
from durable.runtime.wakeup import Wakeup
from durable.store.limits import Limits

REFRESH_SECONDS = 30.0
"""How late a worker learns that a queue has got its first limit."""
LOOK_SECONDS = 0.25
"""How often a queue with limits is looked at."""

log = logging.getLogger("durable.worker")


class LimitWatch(Service):
    """Tells which queues have limits, and the attempt poller to look at them."""

    name = "limit-watch"

    def __init__(
        self, limits: Limits, slots: Slots, queues: Sequence[str], look: Callable[[], None]
    ) -> None:
        super().__init__()
        self._limits = limits
        self._slots = slots
        self._queues = frozenset(queues)
        self._look = look
        self._pause = Wakeup(REFRESH_SECONDS)
        self._read_at = 0.0

    def wake(self) -> None:
        self._pause.hint()

    async def refresh(self) -> None:
        """Read the limits. Raise StoreError when the database does not answer."""
        found = await self._limits.all()
        self._slots.limited = self._queues & {each.queue for each in found}
        self._read_at = time.monotonic()

    async def run(self) -> None:
        """Look and refresh until stopped."""
        self.ready()
        while not self.stopping:
            limited = self._slots.limited
            await self._pause.wait_hint(LOOK_SECONDS if limited else REFRESH_SECONDS)
            if limited:
                self._look()
            if time.monotonic() - self._read_at >= REFRESH_SECONDS:
                try:
                    await self.refresh()
                except StoreError as error:
                    log.debug("the limits of queues stay as they were: %s", error)
