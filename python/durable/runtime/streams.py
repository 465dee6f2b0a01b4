"""Streams: what activities of this process write out, sent in batches.

The first item is sent at once. What is written while that is under way, and for `LINGER_SECONDS`
after, goes together in the next append, so a writer of small items costs some statements a second
however many they are. A writer that is `BATCH_ITEMS` or `BATCH_BYTES` ahead waits for the store. An
attempt is not reported as ended before what it wrote is stored. One that was told to end for good
(over its time, void, handed back) writes nothing more, here and, by its `Hold`, in the store.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from durable.codec import Codec, check_size
from durable.engine.info import ActivityContext
from durable.errors import ContextError
from durable.events import Hold
from durable.store.base import Store
from durable.store.streams import attempt_lost

BATCH_ITEMS = 500
BATCH_BYTES = 1024 * 1024
LINGER_SECONDS = 0.03
DRAIN_SECONDS = 30.0
"""How long an attempt waits at most for what it wrote to be stored."""


def in_coroutine() -> bool:
    """Whether an event loop runs on this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Writer:
    """Writes to one stream for one attempt. See `durable.activity.stream`."""

    def __init__(
        self,
        store: Store,
        context: ActivityContext,
        hold: Callable[[], Hold | None],
        codec: Codec,
        loop: asyncio.AbstractEventLoop,
        name: str,
    ) -> None:
        self.name = name
        self._store = store
        self._loop = loop
        self._context = context
        self._hold = hold
        self._codec = codec
        self._pending: list[bytes | None] = []
        self._bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._failure: Exception | None = None

    async def write(self, item: Any) -> None:
        """Add an item; waits only when the store is behind."""
        payload = self._codec.encode(item)
        check_size(payload, f"an item of stream {self.name!r}")
        await self.put(payload)

    async def close(self) -> None:
        """End the stream for those who read it now, when all that was written is stored."""
        await self.put(None)
        await self.flush()

    async def put(self, payload: bytes | None) -> None:
        """Add an encoded item, or None: the end of the stream."""
        self._check()
        if self._hold() is None:
            raise attempt_lost(self._context.run_id, self.name)
        self._pending.append(payload)
        self._bytes += len(payload or b"")
        if self._task is None:
            self._task = asyncio.create_task(self._send())
        if len(self._pending) >= BATCH_ITEMS or self._bytes >= BATCH_BYTES:
            await self.flush()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def flush(self) -> None:
        """Wait until all that was written is stored; raise what went wrong."""
        if self._task is not None:
            self._hurry.set()
            async with asyncio.timeout(DRAIN_SECONDS):
                await asyncio.shield(self._task)
        self._check()

    async def _send(self) -> None:
        context = self._context
        try:
            while self._pending:
                items = self._pending[:BATCH_ITEMS]
                del self._pending[:BATCH_ITEMS]
                self._bytes = sum(len(item or b"") for item in self._pending)
                flush = random.getrandbits(62) + 1
                hold = self._hold()
                if hold is None:
                    raise attempt_lost(context.run_id, self.name)
                await self._store.append_stream(
                    context.run_id, self.name, context.attempt, items, flush, hold
                )
                if not self._hurry.is_set():
                    await self._linger()
        except Exception as error:
            self._failure = error
        finally:
            self._hurry.clear()
            self._task = None

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await self._hurry.wait()
        except TimeoutError:
            pass

    def write_sync(self, item: Any) -> None:
        """`write`, for code on another thread."""
        self._from_thread(self.write, item)

    def close_sync(self) -> None:
        """`close`, for code on another thread."""
        self._from_thread(self.close)

    def flush_sync(self) -> None:
        """`flush`, for code on another thread."""
        self._from_thread(self.flush)

    def _from_thread(self, method: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        if in_coroutine():
            raise ContextError("this is for sync activities: in a coroutine, await write()")
        call = asyncio.run_coroutine_threadsafe(method(*args), self._loop)
        call.result(2 * DRAIN_SECONDS)

    def stop(self) -> None:
        """Send nothing more."""
        if self._task is not None:
            self._task.cancel()


async def drain(context: ActivityContext) -> None:
    """Wait until all that the attempt has written is stored; raise what went wrong."""
    for writer in list((context.streams or {}).values()):
        if isinstance(writer, Writer):
            await writer.flush()


def drain_sync(context: ActivityContext) -> None:
    """`drain`, for code on another thread."""
    for writer in list((context.streams or {}).values()):
        if isinstance(writer, Writer):
            writer.flush_sync()


def stop(context: ActivityContext) -> None:
    """Send nothing more of what the attempt has written."""
    for writer in (context.streams or {}).values():
        if isinstance(writer, Writer):
            writer.stop()
