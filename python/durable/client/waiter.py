"""Waiter: waits for any number of closed runs and answers, for one client process.

One task polls the store for everything that is waited for, and one LISTEN wakes it early. The
pause between polls doubles while nothing comes, up to a second; a hint ends it. Where hints cannot
be had, polling is all there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from durable.errors import ConfigurationError, StoreError
from durable.events import Response, RunView
from durable.store.base import Store

SHORTEST_SECONDS = 0.02
LONGEST_SECONDS = 1.0
QUERY_SECONDS = 0.002
"""The least time between the beginnings of two polls."""
CHUNK = 1000
LISTEN_AGAIN_SECONDS = 1.0

T = TypeVar("T")

log = logging.getLogger("durable.client")


class Desk(Generic[T]):
    """Futures by key, each waited for by one or more."""

    def __init__(self) -> None:
        self._futures: dict[str, asyncio.Future[T]] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._futures)

    @property
    def keys(self) -> list[str]:
        """What is waited for."""
        return list(self._futures)

    async def wait(self, key: str, wanted: Callable[[], None]) -> T:
        """Wait until `give` is called for the key; ``wanted`` tells that there is a new key."""
        future = self._futures.get(key)
        if future is None:
            future = self._futures[key] = asyncio.get_running_loop().create_future()
            self._counts[key] = 0
        wanted()
        self._counts[key] += 1
        try:
            return await asyncio.shield(future)
        finally:
            if self._futures.get(key) is future:
                self._counts[key] -= 1
                if not self._counts[key]:
                    del self._futures[key], self._counts[key]

    def give(self, key: str, value: T) -> None:
        """What was waited for is there."""
        future = self._futures.pop(key, None)
        self._counts.pop(key, None)
        if future is not None and not future.done():
            future.set_result(value)

    def fail(self, error: Callable[[], BaseException]) -> None:
        """It will never come."""
        for key in self.keys:
            future = self._futures.pop(key)
            self._counts.pop(key, None)
            if not future.done():
                future.set_exception(error())
                # Whoever waited may have been cancelled meanwhile.
                future.exception()


class Waiter:
    """Polls for closed runs and answers while anybody waits for one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs: Desk[RunView] = Desk()
        self._answers: Desk[Response] = Desk()
        self._hint = asyncio.Event()
        self._is_new = False
        self._polling: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    async def closed(self, run_id: str) -> RunView:
        """Wait until the run is closed; return it with its result or failure."""
        return await self._runs.wait(run_id, self._wanted)

    async def answer(self, request_id: str) -> Response:
        """Wait for the answer to an update or a query."""
        return await self._answers.wait(request_id, self._wanted)

    async def close(self) -> None:
        """Stop; whoever still waits gets a StoreError."""
        for task in (self._polling, self._listening):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._polling = self._listening = None
        for desk in (self._runs, self._answers):
            desk.fail(lambda: StoreError("the client was closed while a result was waited for"))

    def _wanted(self) -> None:
        self._is_new = True
        self._hint.set()
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll(), name="durable-waiter")
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen(), name="durable-listener")

    async def _poll(self) -> None:
        pause = SHORTEST_SECONDS
        loop = asyncio.get_running_loop()
        while self._runs or self._answers:
            self._is_new = False
            self._hint.clear()
            began = loop.time()
            try:
                found = await self._look()
            except StoreError as error:
                log.debug("cannot look for results, will go on trying: %s", error)
                found = False
            pause = SHORTEST_SECONDS if found or self._is_new else min(pause * 2, LONGEST_SECONDS)
            if not self._is_new:
                await self._pause(pause)
            # A burst of hints must not become a burst of queries.
            rest = QUERY_SECONDS + 0.00001 * (len(self._runs) + len(self._answers))
            await asyncio.sleep(max(0.0, began + rest - loop.time()))

    async def _look(self) -> bool:
        found = False
        for ids in chunks(self._runs.keys):
            for view in await self._store.closed(ids):
                self._runs.give(view.run_id, view)
                found = True
        for ids in chunks(self._answers.keys):
            for response in await self._store.responses(ids):
                self._answers.give(response.request_id, response)
                found = True
        return found

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hint.wait()

    async def _listen(self) -> None:
        while True:
            try:
                async with self._store.listen(done=True) as hints:
                    async for _ in hints:
                        self._hint.set()
            except ConfigurationError:
                return
            except StoreError:
                pass
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)


def chunks(keys: Sequence[Any]) -> Iterable[list[Any]]:
    """Keys in portions that one query takes."""
    return (list(keys[at : at + CHUNK]) for at in range(0, len(keys), CHUNK))
