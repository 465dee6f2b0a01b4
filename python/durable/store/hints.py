"""Hints: tell other processes that there may be something to do, without paying for it often.

`Store.notify` is a round trip and every listener wakes up for it. A hint after a quiet moment goes
out at once; those that come while it is on its way, or right after, go together as one. The pause
between two of a sort grows while they keep coming (a busy system finds its work anyhow) and shrinks
when they do not. Hints of work and hints of results do not wait for one another. Hints are best
effort; whoever waits for them also polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from durable.errors import StoreError
from durable.store.base import HINT_RUNS_MAX, Hint, Store

PAUSE_SECONDS = 0.001
"""After a hint that no other followed: shorter than a start takes to its result."""
PAUSE_SECONDS_MAX = 0.01
"""While hints keep coming."""


class Hinter:
    """Sends coalesced hints while it is open."""

    def __init__(self, store: Store) -> None:
        self._work = Sender(store)
        self._done = Sender(store)

    def work(self, *, runs_only: bool = False) -> None:
        """Let workers know soon that there is work; ``runs_only``: no activity and no timer."""
        self._work.send(Hint(runs_only=runs_only))

    def done(self, run_ids: Iterable[str] = ()) -> None:
        """Let clients know soon that these runs are closed, or (none named) look at all."""
        named = tuple(run_ids)
        # More than a payload has room for are not named.
        self._done.send(Hint(done=True, run_ids=named if len(named) <= HINT_RUNS_MAX else ()))

    async def flush(self) -> None:
        """Wait until what was asked for is sent."""
        tasks = {each.task for each in (self._work, self._done) if each.task is not None}
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)


class Sender:
    """Hints of one sort."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next: Hint | None = None
        self.task: asyncio.Task[None] | None = None

    def send(self, hint: Hint) -> None:
        """Send it now, or with the next."""
        self._next = hint if self._next is None else merge(self._next, hint)
        if self.task is None or self.task.done():
            self.task = asyncio.create_task(self._send(), name="durable-hints")

    async def _send(self) -> None:
        pause = PAUSE_SECONDS
        while (hint := self._next) is not None:
            self._next = None
            try:
                await self._store.notify(hint)
            except StoreError:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)


def merge(one: Hint, other: Hint) -> Hint:
    """The hint that says both."""
    run_ids = one.run_ids + other.run_ids
    if not one.run_ids or not other.run_ids or len(run_ids) > HINT_RUNS_MAX:
        run_ids = ()
    sessions: tuple[int, ...] = ()
    if one.sessions and other.sessions:
        sessions = tuple({*one.sessions, *other.sessions})
    return Hint(one.done, one.runs_only and other.runs_only, run_ids, sessions)
