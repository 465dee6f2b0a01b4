"""Listener: hints from other processes become polls.

Only for a worker without a supervisor (which listens once for all its workers). A hint that is lost
costs the rest of one pause; a store that has no hints costs nothing but that.
"""

from __future__ import annotations

from collections.abc import Callable

from durable.errors import ConfigurationError, StoreError
from durable.runtime.service import Service
from durable.runtime.wakeup import Backoff, Wakeup
from durable.store.base import WORK, Hint, Store


class Listener(Service):
    """Calls ``hint`` with each hint of the store."""

    name = "listener"

    def __init__(self, store: Store, hint: Callable[[Hint], None]) -> None:
        super().__init__()
        self._store = store
        self._hint = hint
        self._pause = Wakeup(60.0)

    def wake(self) -> None:
        self._pause.hint()
        if self._task is not None:
            # It waits on a socket that only others write to.
            self._task.cancel()

    async def run(self) -> None:
        self.ready()
        backoff = Backoff(longest_seconds=30.0)
        while not self.stopping:
            try:
                async with self._store.listen() as hints:
                    backoff.reset()
                    # What was hinted while nobody listened.
                    self._hint(WORK)
                    async for hint in hints:
                        self._hint(hint)
            except ConfigurationError:
                return
            except StoreError:
                await self._pause.wait_hint(backoff.next_seconds())
