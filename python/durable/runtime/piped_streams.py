"""Streams of activities that run in processes of their own: both ends of the way to the store.

The process encodes an item and sends it up as a frame (`Outbox`). Its worker takes the items of a
job in their order, writes them with a `Writer` as those of its own activities, and says how many it
took (`Feed`). A process that is `AHEAD_ITEMS` or `AHEAD_BYTES` ahead waits for that. A job is not
reported as ended before what it wrote is stored.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from durable.codec import Codec, check_size, failure_from_payload, failure_to_payload
from durable.engine.info import ActivityContext
from durable.runtime.streams import DRAIN_SECONDS, Writer, drain

AHEAD_ITEMS = 500
AHEAD_BYTES = 1024 * 1024
TOLD_ITEMS = 100
"""After so many items at the latest the process is told that they were taken."""
WAIT_SECONDS = 2 * DRAIN_SECONDS
"""How long a process waits for its worker at most: that gives up earlier, and says why."""


class Feed:
    """In the worker: writes what one job sends. ``tell`` is called with heads of frames for it."""

    def __init__(self, context: ActivityContext, tell: Callable[[dict[str, Any]], None]) -> None:
        self._context = context
        self._tell = tell
        self._items: deque[tuple[str, bytes | None]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self.is_used = False
        """Whether there is anything to wait for."""

    def take(self, name: str, item: bytes | None) -> None:
        """The next item for the stream of that name; None ends the stream."""
        self.is_used = True
        self._items.append((name, item))
        if self._task is None and self._failure is None:
            self._task = asyncio.create_task(self._write())

    async def drain(self) -> None:
        """Wait until all that was taken is stored; raise what went wrong."""
        if self._task is not None:
            await asyncio.shield(self._task)
        if self._failure is not None:
            raise self._failure
        await drain(self._context)

    async def _write(self) -> None:
        count = 0
        try:
            while self._items:
                name, item = self._items.popleft()
                writer = self._context.stream(name)
                assert isinstance(writer, Writer)
                await writer.put(item)
                if item is None:
                    await writer.flush()
                count += 1
                if count == TOLD_ITEMS or not self._items:
                    self._tell({"taken": count})
                    count = 0
        except Exception as error:
            self._failure = error
            self._items.clear()
            self._tell({"taken": 0, "failed": failure_to_payload(error).decode()})
        finally:
            self._task = None


class Outbox:
    """In the process: what one job writes to its streams. ``send`` takes a head and a body."""

    def __init__(self, send: Callable[[dict[str, Any], bytes], None]) -> None:
        self._send = send
        self._changed = threading.Condition()
        self._ahead: deque[int] = deque()
        """The sizes of items that the worker has not taken, oldest first."""
        self._failure: BaseException | None = None

    def put(self, name: str, item: bytes | None) -> None:
        """Send an item. Waits when the worker is far behind; an end mark, until all is stored."""
        with self._changed:
            self._check()
            # With the lock, so that two threads send in the order in which they are counted.
            self._ahead.append(len(item or b""))
            self._send({"name": name, "ends": item is None}, item or b"")
            has_room = self._is_near if item is not None else self._is_empty
            if not self._changed.wait_for(has_room, WAIT_SECONDS):
                raise TimeoutError(f"what was written to stream {name!r} could not be stored yet")
            self._check()

    def taken(self, head: dict[str, Any]) -> None:
        """The worker has taken some items, or could not. Called on the thread that hears it."""
        with self._changed:
            for _ in range(head["taken"]):
                self._ahead.popleft()
            if "failed" in head:
                self._failure = failure_from_payload(head["failed"].encode())
            self._changed.notify_all()

    def _is_near(self) -> bool:
        is_near = len(self._ahead) < AHEAD_ITEMS and sum(self._ahead) < AHEAD_BYTES
        return is_near or self._failure is not None

    def _is_empty(self) -> bool:
        return not self._ahead or self._failure is not None

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


class PipedWriter:
    """Writes to one stream from another process. See `durable.activity.stream`."""

    def __init__(self, outbox: Outbox, codec: Codec, name: str) -> None:
        self._outbox = outbox
        self._codec = codec
        self.name = name

    async def write(self, item: Any) -> None:
        """`write_sync`, for a coroutine that the activity runs."""
        await asyncio.to_thread(self.write_sync, item)

    async def close(self) -> None:
        """`close_sync`, for a coroutine that the activity runs."""
        await asyncio.to_thread(self.close_sync)

    def write_sync(self, item: Any) -> None:
        """Add an item; waits only when the worker or the store is behind."""
        payload = self._codec.encode(item)
        check_size(payload, f"an item of stream {self.name!r}")
        self._outbox.put(self.name, payload)

    def close_sync(self) -> None:
        """End the stream for those who read it now, when all that was written is stored."""
        self._outbox.put(self.name, None)
