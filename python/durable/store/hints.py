"""Hints: tell other processes that there may be something to do, without paying for it often.

`Store.notify` is a round trip and every listener wakes up for it, so hints are coalesced: however
often `Hinter.hint` is called, the store is asked at most once in `INTERVAL_SECONDS`. Hints are best
effort; whoever waits for them also polls.
"""

from __future__ import annotations

import asyncio

from durable.errors import StoreError
from durable.store.base import Store

INTERVAL_SECONDS = 0.01


class Hinter:
    """Sends coalesced hints while it is open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._work = False
        self._done = False
        self._task: asyncio.Task[None] | None = None

    def hint(self, *, done: bool = False) -> None:
        """Let a hint be sent soon: to workers that there is work, or to clients that it is done."""
        if done:
            self._done = True
        else:
            self._work = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send(), name="durable-hints")

    async def flush(self) -> None:
        """Wait until what was asked for is sent."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=1.0)

    async def _send(self) -> None:
        while self._work or self._done:
            try:
                if self._work:
                    self._work = False
                    await self._store.notify()
                if self._done:
                    self._done = False
                    await self._store.notify(done=True)
            except StoreError:
                return
            await asyncio.sleep(INTERVAL_SECONDS)
