"""Grouping: starts that are asked for at the same time go to the database together.

The first goes at once. Those that come while it is on its way go as one transaction when it is
back, so a client that starts one workflow waits for nothing, and one that starts hundreds pays for
few commits. Each caller gets its own outcome.
"""

from __future__ import annotations

import asyncio
from collections import deque

from durable.errors import StoreError, StoreUnavailableError
from durable.events import NewRun, Started
from durable.store.base import Store
from durable.store.hints import Hinter
from durable.store.telling import is_plain

GROUP_RUNS_MAX = 500
GROUP_BYTES_MAX = 4 * 1024 * 1024


class StartGroup:
    """The starts of one client that are not in a transaction of the caller."""

    def __init__(self, store: Store, hinter: Hinter) -> None:
        self._store = store
        self._hinter = hinter
        self._waiting: deque[tuple[NewRun, asyncio.Future[Started]]] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def start(self, run: NewRun) -> Started:
        """Start one run. Raises as `Store.start_runs` does.

        A caller that is cancelled before its start was sent has started nothing.
        """
        outcome: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._waiting.append((run, outcome))
        if self._sending is None:
            self._sending = asyncio.create_task(self._send_all())
        return await outcome

    async def close(self) -> None:
        """Wait for what is on its way."""
        if self._sending is not None:
            await asyncio.wait({self._sending})

    async def _send_all(self) -> None:
        try:
            while group := self._next_group():
                await self._send(group)
        finally:
            self._sending = None
            for _, outcome in self._waiting:
                outcome.cancel()
            self._waiting.clear()

    def _next_group(self) -> list[tuple[NewRun, asyncio.Future[Started]]]:
        group: list[tuple[NewRun, asyncio.Future[Started]]] = []
        size = 0
        while self._waiting and len(group) < GROUP_RUNS_MAX and size < GROUP_BYTES_MAX:
            run, outcome = self._waiting.popleft()
            if not outcome.done():
                group.append((run, outcome))
                size += len(run.batch)
        return group

    async def _send(self, group: list[tuple[NewRun, asyncio.Future[Started]]]) -> None:
        try:
            all_started = await self._store.start_runs([run for run, _ in group])
        except StoreError as error:
            if len(group) > 1 and not isinstance(error, StoreUnavailableError):
                # One of them cannot be stored: the others must not suffer for it.
                for single in group:
                    await self._send([single])
                return
            for _, outcome in group:
                if not outcome.done():
                    outcome.set_exception(error)
            return
        except BaseException as error:
            for _, outcome in group:
                if not outcome.done():
                    outcome.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        if not all(started.told for started in all_started):
            self._hinter.work(runs_only=all(is_plain(run) for run, _ in group))
        for (_, outcome), started in zip(group, all_started, strict=True):
            if not outcome.done():
                outcome.set_result(started)
