"""Session: the one lease of a worker process.

Everything a worker owns belongs to its session: a random id per process start. It is kept alive by
the supervisor from its own process (``keeps=False``) or, without one, from a task here. Either way
the worker asks now and then, and whenever a commit was refused, whether its session still lives. A
dead session never comes back: the worker drops all it has, takes a new id and goes on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence

from durable.errors import StoreError
from durable.events import SessionInfo
from durable.runtime.metrics import Metrics
from durable.runtime.service import Service
from durable.runtime.wakeup import Backoff, Wakeup
from durable.store.base import Store

SUPERVISED_LEASES = 3
"""How rarely, in leases, a worker asks whose supervisor tells it of a lost session."""

log = logging.getLogger("durable.worker")


def new_session_id() -> int:
    """A random positive 63-bit number."""
    return secrets.randbits(63) or 1


class Session(Service):
    """Registers a session, watches its life, and replaces it when it is dead."""

    name = "session"

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        *,
        queues: Sequence[str],
        build_id: str,
        lease_seconds: float,
        keeps: bool,
        lost: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__()
        self._store = store
        self._metrics = metrics
        self._queues = list(queues)
        self._build_id = build_id
        self._lease_us = round(lease_seconds * 1e6)
        self._keeps = keeps
        self._interval = lease_seconds / 3 if keeps else lease_seconds * SUPERVISED_LEASES
        self._lost = lost
        self._wakeup = Wakeup(self._interval)
        self.id = new_session_id()

    def suspect(self) -> None:
        """Look now whether the session still lives."""
        self._wakeup.hint()

    def wake(self) -> None:
        self._wakeup.hint()

    async def register(self) -> None:
        """Make the session known to the store."""
        info = SessionInfo(
            id=self.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            build_id=self._build_id,
            queues=self._queues,
        )
        await self._store.register_session(info, self._lease_us)

    async def run(self) -> None:
        self.ready()
        backoff = Backoff(longest_seconds=self._interval)
        while True:
            await self._wakeup.wait_hint(self._interval)
            if self.stopping:
                return
            while True:
                try:
                    await self._check()
                except StoreError as error:
                    if backoff.failures == 0:
                        log.warning("cannot renew the lease, will go on trying: %s", error)
                    self._metrics.inc("durable_store_errors_total")
                    await asyncio.sleep(backoff.next_seconds())
                    continue
                backoff.reset()
                break

    async def _check(self) -> None:
        alive = await self._store.heartbeat([self.id], self._lease_us)
        if self.id in alive:
            self._metrics.inc("durable_lease_renewals_total")
            if self._keeps:
                # Without a supervisor this is also who notices that others are gone.
                await self._store.reap_sessions()
            return
        self._metrics.inc("durable_leases_lost_total")
        log.warning("session %s was declared dead; dropping its runs and starting anew", self.id)
        dead = self.id
        self.id = new_session_id()
        await self._lost()
        # Usually done by whoever declared it dead; harmless then.
        await self._store.end_sessions([dead], crashed=False)
        await self.register()
