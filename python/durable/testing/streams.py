"""Streams of a test environment: kept in memory, each item through the codec as in a database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from durable.client.streams import StreamItem
from durable.codec import DEFAULT_CODEC, check_size
from durable.engine.info import ActivityContext
from durable.events import StoredItem
from durable.store.streams import attempt_lost


class StreamBook:
    """All streams of one environment."""

    def __init__(self) -> None:
        self._items: dict[tuple[str, str], list[StoredItem]] = {}

    def add(self, run_id: str, name: str, attempt: int, payload: bytes | None) -> None:
        """Append one item."""
        items = self._items.setdefault((run_id, name), [])
        items.append(StoredItem(len(items) + 1, attempt, payload))

    def read(self, run_id: str, name: str, after: int, type: Any) -> Sequence[StreamItem[Any]]:
        """The items behind ``after`` up to an end mark."""
        decode = DEFAULT_CODEC.decoder(type)
        found = []
        for item in self._items.get((run_id, name), [])[after:]:
            if item.payload is None:
                break
            found.append(StreamItem(item.offset, decode(item.payload), item.attempt))
        return found


class BookWriter:
    """Writes to one stream for one attempt. See `durable.activity.stream`."""

    def __init__(
        self, book: StreamBook, context: ActivityContext, is_held: Callable[[], bool], name: str
    ) -> None:
        self._book = book
        self._is_held = is_held
        self._context = context
        self._name = name

    async def write(self, item: Any) -> None:
        """Add an item."""
        self.write_sync(item)

    async def close(self) -> None:
        """End the stream for those who read it now."""
        self.close_sync()

    def write_sync(self, item: Any) -> None:
        """Add an item."""
        payload = DEFAULT_CODEC.encode(item)
        check_size(payload, f"an item of stream {self._name!r}")
        self._add(payload)

    def close_sync(self) -> None:
        """End the stream for those who read it now."""
        self._add(None)

    def _add(self, payload: bytes | None) -> None:
        if not self._is_held():
            raise attempt_lost(self._context.run_id, self._name)
        self._book.add(self._context.run_id, self._name, self._context.attempt, payload)
