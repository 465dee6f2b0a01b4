"""Waiter: waits for any number of closed runs and answers, for one client process.

One task asks the store. It asks for a run when somebody begins to wait for it (unless it was
started here a moment ago: then its end is still to be heard of) and when a hint says that it
closed, so that a result costs what it costs however many others are waited for; and for everything
by the clock, because hints may be lost: with pauses that double while nothing comes, up to a
second. Where hints cannot be had, that is all there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from durable.errors import ConfigurationError, StoreError
from durable.events import Response, RunView
from durable.store.base import DONE, Hint, Store

SHORTEST_SECONDS = 0.02
LISTENING_SECONDS = 0.25
"""The shortest pause between two looks at everything while hints come."""
LONGEST_SECONDS = 1.0
QUERY_SECONDS = 0.001
"""The least time between the beginnings of two looks."""
CHUNK = 1000
EXPECTED_MAX = 10_000
"""Runs started here whose ends are listened for before anybody waits for them."""
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

    def __contains__(self, key: str) -> bool:
        return key in self._futures

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
    """Looks for closed runs and answers while anybody waits for one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs: Desk[RunView] = Desk()
        self._answers: Desk[Response] = Desk()
        self._wake = asyncio.Event()
        self._named: dict[str, None] = {}
        """Runs to look at now: newly waited for, or said to be closed."""
        self._anything = False
        """Look at all."""
        self._expected: dict[str, None] = {}
        """Runs started here while hints came, none of which has named them."""
        self._hears = False
        self._polling: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    def expect(self, run_id: str) -> None:
        """The run is about to be started by this client."""
        if self._hears:
            self._expected[run_id] = None
            if len(self._expected) > EXPECTED_MAX:
                del self._expected[next(iter(self._expected))]

    async def closed(self, run_id: str) -> RunView:
        """Wait until the run is closed; return it with its result or failure."""
        if run_id in self._expected:
            del self._expected[run_id]
        else:
            self._named[run_id] = None
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
        self._wake.set()
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll(), name="durable-waiter")
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen(), name="durable-listener")

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        pause = LISTENING_SECONDS if self._hears else SHORTEST_SECONDS
        look_at = loop.time() + (pause if self._hears else 0)
        while self._runs or self._answers:
            began = loop.time()
            self._wake.clear()
            found = False
            try:
                if self._anything or began >= look_at:
                    self._anything = False
                    self._named.clear()
                    found = await self._look(self._runs.keys)
                    least = LISTENING_SECONDS if self._hears else SHORTEST_SECONDS
                    pause = least if found else min(max(pause * 2, least), LONGEST_SECONDS)
                    look_at = began + pause
                else:
                    named, self._named = self._named, {}
                    found = await self._look([key for key in named if key in self._runs])
            except StoreError as error:
                log.debug("cannot look for results, will go on trying: %s", error)
                look_at = began + pause
            # A burst of hints must not become a burst of queries.
            await asyncio.sleep(max(0.0, began + QUERY_SECONDS - loop.time()))
            await self._pause(look_at - loop.time())

    async def _look(self, run_ids: Sequence[str]) -> bool:
        found = False
        for ids in chunks(run_ids):
            for view in await self._store.closed(ids):
                self._runs.give(view.run_id, view)
                found = True
        for ids in chunks(self._answers.keys):
            for response in await self._store.responses(ids):
                self._answers.give(response.request_id, response)
                found = True
        return found

    async def _pause(self, seconds: float) -> None:
        """Wait until somebody wakes us, or the time is over."""
        if self._wake.is_set() or seconds <= 0:
            return
        timer = asyncio.get_running_loop().call_later(seconds, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    async def _listen(self) -> None:
        while True:
            try:
                async with self._store.listen(done=True) as hints:
                    # What was done before is not heard of any more.
                    self._heard(DONE)
                    self._hears = True
                    async for hint in hints:
                        self._heard(hint)
            except ConfigurationError:
                return
            except StoreError:
                pass
            finally:
                self._hears = False
                self._expected.clear()
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    def _heard(self, hint: Hint) -> None:
        if hint.run_ids:
            for run_id in hint.run_ids:
                self._expected.pop(run_id, None)
            named = [run_id for run_id in hint.run_ids if run_id in self._runs]
            if not named:
                return
            self._named.update(dict.fromkeys(named))
        else:
            self._expected.clear()
            self._anything = True
        self._wake.set()


def chunks(keys: Sequence[Any]) -> Iterable[list[Any]]:
    """Keys in portions that one query takes."""
    return (list(keys[at : at + CHUNK]) for at in range(0, len(keys), CHUNK))
