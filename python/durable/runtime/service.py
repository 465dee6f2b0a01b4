"""Service: the contract of every loop in a worker.

A service is started once, says when it is ready, and is stopped. To stop before the start or twice
is allowed. A service that ends by an error tells its owner at once through `failed`: a worker with
a dead loop must not look alive.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


class Service:
    """One loop with a life. Subclasses write `run`, and call `ready` when they serve."""

    name = "service"

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self.stopping = False
        self.failed: Callable[[Service, BaseException], None] | None = None

    async def run(self) -> None:
        """The loop. It ends soon after ``stopping`` is set and `wake` is called."""
        raise NotImplementedError

    def wake(self) -> None:
        """Make the loop look at ``stopping``; overridden by loops that wait long."""

    def ready(self) -> None:
        """Say that the service serves."""
        self._ready.set()

    def start(self) -> None:
        """Begin. Does nothing when it was started or stopped before."""
        if self._task is None and not self.stopping:
            self._task = asyncio.create_task(self.run(), name=f"durable-{self.name}")
            self._task.add_done_callback(self._ended)

    async def started(self) -> None:
        """Wait until it serves."""
        await self._ready.wait()

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Ask it to end, wait, and cancel it when it does not end within ``grace_seconds``."""
        self.stopping = True
        self.wake()
        task = self._task
        if task is None:
            return
        done, _ = await asyncio.wait({task}, timeout=grace_seconds)
        if not done:
            task.cancel()
            await asyncio.wait({task})

    async def abort(self) -> None:
        """End it now, wherever it is."""
        self.stopping = True
        task = self._task
        if task is not None and not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ready.set()
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and self.failed is not None:
            self.failed(self, error)
