"""Streams: read what a run gives out, while it goes on or after.

A reader asks the store for what comes behind the last item that it has: often while there is news,
and less and less often, down to once a second, while there is none. It ends at an end mark, or when
the run is closed and there is nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from durable.client.connected import ConnectedClient
from durable.codec import NO_CODEC, Codec, is_sealed
from durable.engine.streams import check_stream_name
from durable.errors import UnreadablePayloadError
from durable.events import RunState, RunView
from durable.store.base import Store

T = TypeVar("T")

READ_ITEMS = 500
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.05, 1.0


@dataclass(frozen=True, slots=True)
class StreamItem(Generic[T]):
    """One item of a stream."""

    offset: int
    """Its place, from 1: read on behind it with ``after=``."""
    value: T
    attempt: int
    """Which attempt of its activity wrote it: where it rises, the activity began anew."""


async def read_items(
    store: Store,
    codec: Codec,
    describe: Callable[[], Awaitable[RunView]],
    name: str,
    after: int,
    *,
    follow: bool,
    type: Any,
) -> AsyncIterator[StreamItem[Any]]:
    """The items of one run's stream. See `durable.WorkflowHandle.stream`."""
    decode = codec.decoder(type)
    view: RunView | None = await describe()
    run_id = view.run_id if view is not None else ""
    pause = PAUSE_SECONDS_MIN
    while True:
        # Looked at before the read: what a closed run wrote is all there.
        is_last = not follow or view is None or view.state >= RunState.COMPLETED
        items = await store.read_stream(run_id, name, after, READ_ITEMS)
        for item in items:
            after = item.offset
            if item.payload is None:
                return
            if is_sealed(item.payload):
                raise UnreadablePayloadError(NO_CODEC)
            yield StreamItem(item.offset, decode(item.payload), item.attempt)
        if items:
            pause = PAUSE_SECONDS_MIN
            continue
        if is_last:
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, PAUSE_SECONDS_MAX)
        view = await store.view(run_id=run_id)


class OfRun(Protocol):
    """What belongs to a run."""

    _client: ConnectedClient

    async def describe(self) -> RunView:
        """Where the run stands."""


class StreamReader:
    """The part of a `durable.WorkflowHandle` that reads streams."""

    def stream(
        self: OfRun, name: str, after: int = 0, *, follow: bool = True, type: Any = Any
    ) -> AsyncIterator[StreamItem[Any]]:
        """Its items (`durable.activity.stream`) behind offset ``after``, each as a ``type``.

        Goes on until the writer closes the stream or the run ends; without ``follow``, to what is
        there. A run that continues as new has streams of its own. Raises WorkflowNotFoundError.
        """
        client, name = self._client, check_stream_name(name)
        return read_items(
            client.store, client.codec, self.describe, name, after, follow=follow, type=type
        )
