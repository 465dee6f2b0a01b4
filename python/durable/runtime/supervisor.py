"""Supervisor: N worker processes kept alive, and their sessions with them.

It imports no user code, so nothing a user writes can take it down. On one asyncio loop it

* starts each worker, sees its death at once, hands its runs over in the same moment
  (`Store.end_sessions`) and starts another with a back-off that grows while workers die young;
* extends the session leases of those workers whose loop moves, and kills one that does not move for
  ``hang_seconds``: a worker that holds the GIL cannot keep its own lease, and must not;
* takes over the sessions of other hosts whose lease is over;
* does the upkeep of the database when no other supervisor does (`Maintenance`);
* listens for hints from the database and passes them on; without hints it nudges once a second,
  and looks for work by the clock in any case, with one query for all workers;
* drains on SIGTERM or SIGINT, stops at once on a second one, restarts one worker after the other on
  SIGHUP; merges the workers' metrics and serves them.

A worker that cannot even start at the first try (the app does not import) ends the supervisor with
that worker's own words, instead of a crash loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self

from durable.errors import ConfigurationError, StoreError
from durable.options import SupervisorOptions, WorkerOptions
from durable.runtime.exporter import Exporter, Fleet, Health
from durable.runtime.maintenance import Maintenance
from durable.runtime.metrics import Metrics, Snapshot
from durable.runtime.relay import Relay
from durable.runtime.spawn import BOOT_FAILURE_CODE, BootError, Orders, WorkerProcess
from durable.store.base import Store
from durable.store.postgres import PostgresStore
from durable.store.retention import Upkeep

TICK_SECONDS = 1.0
NUDGE_SECONDS = 1.0
LOOKS = 0.75
"""Pause between two looks for work, as a part of ``poll_max_seconds``."""
BOOT_SECONDS_MAX = 60.0
"""Longer than the slowest import; a worker silent for longer is started anew."""
YOUNG_SECONDS = 10.0
"""A worker that dies younger counts as a sign of a crash loop."""
CRASH_LOOP = 3
"""Deaths in a row of young workers from which on ``durable_degraded`` is 1."""
KILL_GRACE_SECONDS = 5.0
"""Beyond ``drain_seconds``, for the last commit of a draining worker."""

log = logging.getLogger("durable.supervisor")


class Supervisor:
    """Keep worker processes that serve ``app`` on the database ``dsn``.

    ``app`` is a module (``shop.flows``), a module and a name in it (``shop.flows:app``), or a file
    (``flows.py``). Use ``await run()`` to serve until stopped, or ``async with`` to serve for the
    time of a block, which starts when every worker is up.
    """

    def __init__(
        self,
        app: str,
        dsn: str,
        *,
        options: SupervisorOptions | None = None,
        worker_options: WorkerOptions | None = None,
        schema: str = "durable",
        build_id: str | None = None,
        store: Store | None = None,
    ) -> None:
        self._options = options or SupervisorOptions()
        self._worker_options = worker_options or WorkerOptions()
        self._orders = Orders(
            app=app,
            dsn=dsn,
            schema=schema,
            options=self._worker_options,
            build_id=build_id,
            log_level=log.getEffectiveLevel(),
        )
        wait = self._worker_options.connect_seconds
        self._store = store or PostgresStore(dsn, schema=schema, connect_seconds=wait)
        self._metrics = Metrics()
        self._maintenance: Maintenance | None = None
        if isinstance(self._store, PostgresStore):
            self._maintenance = Maintenance(Upkeep(self._store), self._metrics)
        self.fleet = Fleet(self._metrics)
        self._health = Health(ready_seconds_max=2 * self._worker_options.lease_seconds)
        self._exporter: Exporter | None = None
        if self._options.http_port is not None:
            self._exporter = Exporter(
                self.fleet, self._health, self._options.http_host, self._options.http_port
            )
        self._workers: dict[int, WorkerProcess] = {}
        self._processes: set[WorkerProcess] = set()
        self._orphans: set[int] = set()
        self._missing: set[int] = set()
        """Sessions that were not alive at the last heartbeat, though their workers are."""
        self._crash_looping: set[int] = set()
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._ready = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._running: asyncio.Task[None] | None = None
        self._ever_up = False
        self._relay = Relay(self._workers)

    # -- for its owner -----------------------------------------------------------------------------

    @property
    def metrics_url(self) -> str | None:
        """Where /metrics is, once it runs; None when it serves nothing."""
        return None if self._exporter is None else f"{self._exporter.url}/metrics"

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are up."""
        return [
            worker.pid
            for worker in self._workers.values()
            if worker.pid is not None and worker.up.is_set() and worker.returncode is None
        ]

    async def ready(self) -> None:
        """Wait until every worker is up for the first time."""
        await self._ready.wait()

    def request_stop(self) -> None:
        """Drain the workers and end; a second call stops them at once. Safe at any time."""
        if self._stop.is_set():
            self._stop_now.set()
        self._stop.set()
        self._health.draining = True

    async def reload(self) -> bool:
        """Replace the workers one by one by new ones; return whether all came up.

        The first new worker that does not come up ends it: the old ones go on serving.
        """
        async with self._reloading:
            for number in sorted(self._workers):
                if self._stop.is_set() or not await self._replace(number):
                    return False
        return True

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run())
        ready = asyncio.create_task(self.ready())
        await asyncio.wait({self._running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            ready.cancel()
            await self._running
            raise ConfigurationError("the supervisor was stopped before its workers were up")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.request_stop()
        if self._running is not None:
            await self._running

    async def run(self, *, handle_signals: bool = False) -> None:
        """Serve until stopped.

        Raise BootError when the workers cannot start, StoreUnavailableError or SchemaVersionError
        when the database does not answer or has other tables.
        """
        await self._store.open()
        try:
            self._health.store_at = time.monotonic()
            if self._exporter is not None:
                self._exporter.start()
            with self._signals() if handle_signals else contextlib.nullcontext():
                await self._serve()
        finally:
            if self._exporter is not None:
                self._exporter.stop()
            await self._store.close()

    # -- the loops ---------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Run every loop until all workers have ended."""
        self._metrics.set("durable_workers_wanted", self._options.processes)
        self._metrics.set("durable_degraded", 0)
        lease = self._worker_options.lease_seconds
        longest = self._worker_options.poll_max_seconds
        background = [
            asyncio.create_task(self._tick()),
            asyncio.create_task(self._listen()),
            asyncio.create_task(self._every(LOOKS * longest, self._look)),
            asyncio.create_task(self._every(lease / 3, self._heartbeat)),
            asyncio.create_task(self._every(lease / 2, self._reap)),
        ]
        slots = [
            asyncio.create_task(self._keep(number)) for number in range(self._options.processes)
        ]
        stopping = asyncio.create_task(self._stop_workers())
        if self._maintenance is not None:
            self._maintenance.start()
        try:
            # The others never end: should one fail, better no supervisor than half a one.
            everything: set[asyncio.Future[Any]] = {asyncio.gather(*slots), *background}
            done, _ = await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*slots, *background, stopping):
                task.cancel()
            self._relay.close()
            await asyncio.gather(*slots, *background, stopping, return_exceptions=True)
            for worker in list(self._processes):
                worker.kill()
                await worker.exited.wait()
                await self._bury(worker)
            await self._hand_over()
            if self._maintenance is not None:
                await self._maintenance.stop()

    async def _every(self, seconds: float, action: Callable[[], Awaitable[None]]) -> None:
        """Call ``action`` every so often (give or take a tenth), whatever happens in it: a lease
        that is not renewed because of some other error would cost all workers their runs."""
        while True:
            await asyncio.sleep(seconds * random.uniform(0.9, 1.1))
            try:
                await action()
            except StoreError as error:
                self._metrics.inc("durable_store_errors_total")
                log.warning("the database did not answer: %s", error)
            except Exception:
                log.exception("an error of the supervisor itself; it goes on")

    async def _tick(self) -> None:
        """Each second: show that the loop turns, kill what hangs, hand over what is orphaned."""
        while True:
            now = time.monotonic()
            up = [worker for worker in self._workers.values() if worker.up.is_set()]
            self._health.loop_at = now
            self._health.workers = len(up)
            self._metrics.set("durable_workers", len(up))
            self._crash_looping -= {
                worker.number for worker in up if now - worker.started_at > YOUNG_SECONDS
            }
            self._metrics.set("durable_degraded", 1 if self._crash_looping else 0)
            for worker in self._workers.values():
                limit = self._options.hang_seconds if worker.up.is_set() else BOOT_SECONDS_MAX
                if now - worker.progress_at > limit:
                    log.error(
                        "worker %s (pid %s) has not moved for %.0f s; killing it",
                        worker.number,
                        worker.pid,
                        now - worker.progress_at,
                    )
                    worker.kill(hung=True)
            if self._orphans:
                await self._hand_over()
            await asyncio.sleep(TICK_SECONDS)

    async def _heartbeat(self) -> None:
        """Extend the leases of the workers that move."""
        now = time.monotonic()
        beaten = {
            worker.session: worker
            for worker in self._workers.values()
            if worker.session is not None
            and worker.returncode is None
            and now - worker.progress_at <= self._options.hang_seconds
        }
        lease_us = int(self._worker_options.lease_seconds * 1e6)
        alive = await self._store.heartbeat(list(beaten), lease_us)
        self._health.store_at = time.monotonic()
        self._metrics.inc("durable_lease_renewals_total", len(alive))
        missing = {
            session
            for session, worker in beaten.items()
            if session not in alive
            and session == worker.session
            and not worker.stop_sent
            and worker.returncode is None
        }
        # A worker that ends well has ended its session a moment before it is gone, so one look is
        # no proof.
        lost, self._missing = missing & self._missing, missing
        if lost:
            self._metrics.inc("durable_leases_lost_total", len(lost))
            log.warning("%d of our sessions were declared dead by others", len(lost))
        for session in missing:
            # It asks for itself, begins a new session if need be, and tells us.
            beaten[session].doubt()
        if missing:
            self._relay.hint()

    async def _reap(self) -> None:
        """Take over what hosts that went silent have left."""
        count = await self._store.reap_sessions()
        self._health.store_at = time.monotonic()
        if count:
            log.warning("%d silent sessions are over; their runs go on elsewhere", count)
            self._relay.hint()

    async def _listen(self) -> None:
        """Pass the database's hints on; nudge once a second while there are none to be had."""
        while True:
            try:
                async with self._store.listen() as hints:
                    async for hint in hints:
                        self._relay.hint(hint)
            except ConfigurationError:
                await self._nudge(None)
            except StoreError as error:
                log.debug("no hints for now: %s", error)
            await self._nudge(1)

    async def _look(self) -> None:
        """See what nobody hinted at, for all workers at once."""
        sessions = [each.session for each in self._workers.values() if each.session is not None]
        if sessions:
            mail, work = await self._store.look(sessions, self._worker_options.queues)
            self._relay.tell(mail, work=work)

    async def _nudge(self, times: int | None) -> None:
        """Hint by the clock, ``times`` times or for ever."""
        while times is None or times > 0:
            await asyncio.sleep(NUDGE_SECONDS * random.uniform(0.8, 1.0))
            self._relay.hint()
            times = None if times is None else times - 1

    # -- one worker after another ------------------------------------------------------------------

    async def _keep(self, number: int) -> None:
        """Keep worker ``number`` alive until the supervisor stops, and see its end.

        A worker that a reload put in the place of another is there before its predecessor is
        buried: on the word to stop it is waited for like any other.
        """
        deaths = 0
        while (worker := self._workers.get(number)) is not None or not self._stop.is_set():
            worker = worker or await self._start(number)
            await worker.exited.wait()
            await self._bury(worker)
            if self._workers.get(number) is not worker:
                # A reload put another in its place.
                deaths = 0
                continue
            del self._workers[number]
            if self._stop.is_set():
                return
            if worker.failure is not None and not self._ever_up:
                raise BootError(worker.failure)
            reason = reason_of(worker)
            self._metrics.inc("durable_worker_restarts_total", reason=reason)
            deaths = deaths + 1 if time.monotonic() - worker.started_at < YOUNG_SECONDS else 0
            if deaths >= CRASH_LOOP:
                self._crash_looping.add(number)
            pause = self._pause(deaths)
            log.warning(
                "worker %s (pid %s) is gone: %s; the next in %.1f s",
                number,
                worker.pid,
                worker.failure or f"{reason}, exit code {worker.returncode}",
                pause,
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)

    def _pause(self, deaths: int) -> float:
        """How long to wait before the next start, after so many early deaths in a row."""
        options = self._options
        most = options.restart_initial_seconds * 2.0 ** min(deaths, 30)
        return min(most, options.restart_max_seconds) * random.uniform(0.5, 1.0)

    async def _start(self, number: int, *, in_place: bool = True) -> WorkerProcess:
        """Start a worker process; ``in_place`` makes it the one of its number."""
        worker = WorkerProcess(number, self._on_beat)
        self._processes.add(worker)
        if in_place:
            self._workers[number] = worker
        await worker.start(self._orders)
        return worker

    def _on_beat(self, worker: WorkerProcess, snapshot: Snapshot) -> None:
        """A worker said how it is."""
        if not self._ever_up:
            self._ever_up = True
        self.fleet.update(worker, snapshot)
        if not self._ready.is_set():
            up = sum(each.up.is_set() for each in self._workers.values())
            if up == self._options.processes:
                self._ready.set()
                log.info("%d workers are up; metrics: %s", up, self.metrics_url or "not served")

    async def _bury(self, worker: WorkerProcess) -> None:
        """What a dead worker leaves: its metrics, and its runs to others, at once."""
        await worker.close()
        self._processes.discard(worker)
        self.fleet.retire(worker)
        if worker.returncode != 0:
            self._orphans |= worker.past_sessions
            if worker.session is not None:
                self._orphans.add(worker.session)
            await self._hand_over()

    async def _hand_over(self) -> None:
        """Declare the sessions of dead workers dead; what fails now is tried at the next tick."""
        sessions = sorted(self._orphans)
        if not sessions:
            return
        try:
            runs = await self._store.end_sessions(sessions, crashed=True)
        except StoreError as error:
            log.warning("%d dead sessions wait for the database: %s", len(sessions), error)
            return
        self._orphans.difference_update(sessions)
        self._metrics.inc("durable_handover_runs_total", runs)
        self._relay.hint()

    async def _replace(self, number: int) -> bool:
        """Put a new worker in the place of one that serves; False when it did not come up."""
        new = await self._start(number, in_place=False)
        up = asyncio.create_task(new.up.wait())
        gone = asyncio.create_task(new.exited.wait())
        await asyncio.wait(
            {up, gone}, timeout=BOOT_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED
        )
        up.cancel()
        gone.cancel()
        if not new.up.is_set() or new.exited.is_set():
            new.kill()
            await new.exited.wait()
            await self._bury(new)
            log.error("reload: %s; the old workers go on", new.failure or "it did not come up")
            return False
        if self._stop.is_set():
            await self._drain(new)
            await self._bury(new)
            return False
        old = self._workers.get(number)
        self._workers[number] = new
        self._metrics.inc("durable_worker_restarts_total", reason="reload")
        if old is not None:
            await self._drain(old)
        return True

    # -- ending ------------------------------------------------------------------------------------

    async def _stop_workers(self) -> None:
        """On the word to stop: drain every worker; on the second, or too late, kill."""
        await self._stop.wait()
        log.info("draining %d workers", len(self._workers))
        await asyncio.gather(*(self._drain(worker) for worker in list(self._workers.values())))

    async def _drain(self, worker: WorkerProcess) -> None:
        """Let a worker end by itself in bounded time; kill it after."""
        worker.stop()
        gone = asyncio.create_task(worker.exited.wait())
        hurry = asyncio.create_task(self._stop_now.wait())
        limit = self._worker_options.drain_seconds + KILL_GRACE_SECONDS
        await asyncio.wait({gone, hurry}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not worker.exited.is_set():
            log.warning("worker %s (pid %s) is killed: not drained", worker.number, worker.pid)
            worker.kill()
        await gone

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT drain, SIGHUP reloads, while inside."""
        loop = asyncio.get_running_loop()
        if sys.platform == "win32":
            signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(self.request_stop))
            yield
            return
        reloads: set[asyncio.Task[bool]] = set()

        def reload() -> None:
            task = asyncio.create_task(self.reload())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        loop.add_signal_handler(signal.SIGTERM, self.request_stop)
        loop.add_signal_handler(signal.SIGINT, self.request_stop)
        loop.add_signal_handler(signal.SIGHUP, reload)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)


def reason_of(worker: WorkerProcess) -> str:
    """Why a worker ended, as the label of ``durable_worker_restarts_total``."""
    if worker.killed_as_hung:
        return "hung"
    if (worker.returncode or 0) < 0:
        return "killed"
    if worker.returncode == BOOT_FAILURE_CODE or not worker.up.is_set():
        return "boot"
    return "exited"
