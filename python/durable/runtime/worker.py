"""Worker: one process that runs workflows and activities.

It has one asyncio loop, one session and these services, each a loop of its own:

    session          keeps the lease, notices its loss
    committer        writes what runs have to write, many at a time
    run poller       claims runs, loads them, brings them mail
    attempt poller   claims queued activities; `answers` and `beats` report on them
    promoter         turns due timers into mail and work
    limit watch      knows which queues have limits
    listener         turns hints of other processes into polls (without a supervisor)

The order of their end is written in `Worker._drain`: claim nothing more, let activities end, write
everything, give up every run, end the session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from durable.codec import DEFAULT_CODEC, Codec
from durable.engine.interceptors import Interceptor
from durable.engine.registry import Registry
from durable.errors import ConfigurationError, StoreError
from durable.events import TypeInfo
from durable.options import WorkerOptions
from durable.runtime.attempts import AttemptPoller
from durable.runtime.committer import Committer
from durable.runtime.executor import Executor
from durable.runtime.limits import LimitWatch
from durable.runtime.listener import Listener
from durable.runtime.metrics import Metrics
from durable.runtime.news import News
from durable.runtime.parking import ParkingLot
from durable.runtime.runs import RunPoller
from durable.runtime.service import Service
from durable.runtime.sessions import Session
from durable.runtime.timers import Promoter
from durable.runtime.turns import Turns
from durable.runtime.warm import Cache
from durable.store.base import WORK, Hint, Store
from durable.store.clock import StoreClock
from durable.store.hints import Hinter
from durable.store.limits import Limits
from durable.store.postgres import PostgresStore
from durable.store.sealed import seal_store

PROGRESS_SECONDS = 0.25
STUCK_SECONDS = 0.1
"""Slots that were full this long without one becoming free are held by long activities."""
ROOM_MIN = 20
"""Room for runs that is worth a claim while more of them wait than there is room for."""
SUPERVISED_PAUSES = 12
"""How much longer a worker pauses whose supervisor looks for all of them."""
LAST_WRITES_SECONDS = 10.0
"""How long a drain may take to write what is known, after the activities ended."""

log = logging.getLogger("durable.worker")


class Worker:
    """Serves workflows and activities until it is told to stop.

    ``store`` is a DSN or a store, which the worker opens and closes. ``keep_session=False`` leaves
    the lease to a supervisor that calls `move` and reads `session_id` and `progress`. The pipeline
    of ``codec`` (compression, encryption) is between the worker and the store; clients need the
    same.
    ``interceptors`` are around its workflows and activities, the first outermost. Raises
    ConfigurationError when there is nothing to serve.
    """

    def __init__(
        self,
        store: Store | str,
        *,
        workflows: Iterable[Any] = (),
        activities: Iterable[Any] = (),
        options: WorkerOptions | None = None,
        metrics: Metrics | None = None,
        keep_session: bool = True,
        build_id: str | None = None,
        schema: str = "durable",
        codec: Codec = DEFAULT_CODEC,
        interceptors: Iterable[Interceptor] = (),
    ) -> None:
        self.options = options = options or WorkerOptions()
        self.registry = Registry(workflows, activities, interceptors=interceptors)
        if not self.registry.workflows and not self.registry.activities:
            raise ConfigurationError("a worker needs at least one workflow or activity to serve")
        if options.verify_values:
            for workflow in self.registry.workflows.values():
                workflow.codec.verify = True
            for activity in self.registry.activities.values():
                activity.codec.verify = True
        plain = store
        if not isinstance(plain, str) and not hasattr(plain, "open"):
            raise ConfigurationError(
                "a worker gets the DSN of the database, as the client did, and connections of "
                f"its own; not {plain!r}"
            )
        if isinstance(plain, str):
            wait = options.connect_seconds
            plain = PostgresStore(plain, schema=schema, connect_seconds=wait)
        self.store = seal_store(plain, codec)
        self.metrics = metrics or Metrics()
        self.build_id = build_id or ""
        self.progress = 0
        """Moves while the loop turns; who watches it from outside can tell a hung worker."""
        self._keep_session = keep_session
        self._clock = StoreClock()
        self._cache = Cache()
        self._stop = asyncio.Event()
        self._started = asyncio.Event()
        self._failure: BaseException | None = None
        self._running: asyncio.Task[None] | None = None
        self._wire()

    def _wire(self) -> None:
        store, metrics, options, clock = self.store, self.metrics, self.options, self._clock
        poll_max_seconds = options.poll_max_seconds
        if not self._keep_session:
            poll_max_seconds *= SUPERVISED_PAUSES
        self._hinter = Hinter(store)
        self._executor = Executor(
            self.registry.activities,
            queues=options.queues,
            slots=options.activity_slots,
            thread_slots=options.thread_slots,
            process_slots=options.process_slots,
            queue_slots=options.queue_slots,
            queue_rates=options.queue_rates,
            clock=clock,
            metrics=metrics,
            store=store,
            hooks=self.registry.hooks,
        )
        self._turns = turns = Turns(
            registry=self.registry,
            cache=self._cache,
            cache_bytes=options.cache_bytes,
            clock=clock,
            executor=self._executor,
            parking=ParkingLot(self.build_id, metrics),
            metrics=metrics,
        )
        self._committer = turns.committer = Committer(store, turns, clock, metrics)
        self._session = Session(
            store,
            metrics,
            queues=options.queues,
            build_id=self.build_id,
            lease_seconds=options.lease_seconds,
            keeps=self._keep_session,
            lost=self._session_lost,
        )
        self._runs = RunPoller(
            store,
            self._session,
            turns,
            self._cache,
            self._committer,
            clock,
            metrics,
            queues=options.queues,
            types=self.registry.workflow_types,
            poll_max_seconds=poll_max_seconds,
            room=self._room,
            least_room=max(1, min(options.activity_slots // 4, ROOM_MIN)),
        )
        self._attempts = AttemptPoller(
            store,
            self._session,
            self._executor,
            metrics,
            clock,
            poll_max_seconds=poll_max_seconds,
            is_stalled=lambda: self._committer.is_stalled,
            on_outcomes=self._made_work,
            on_due=lambda due_us: self._promoter.expect(due_us),
        )
        self._promoter = Promoter(store, clock, metrics, poll_max_seconds, self._promoted)
        self._limits = LimitWatch(
            Limits(store), self._executor.slots, options.queues, self._attempts.hint
        )
        self._runs.on_caught_up = self._caught_up
        turns.on_unread = self._runs.redo
        turns.on_cleared = self._runs.hint
        turns.on_more = self._runs.read_on
        turns.on_stale = self._commit_refused
        turns.on_due = self._promoter.expect
        turns.on_news = self._flushed
        turns.on_slot = self._slot_freed
        turns.on_room = self._runs.room_made
        turns.on_cancelled = self._attempts.cancel

    # -- what others see ---------------------------------------------------------------------

    @property
    def session_id(self) -> int:
        """The session that owns what this worker owns. Changes when it was declared dead."""
        return self._session.id

    def hint(self, hint: Hint = WORK) -> None:
        """There may be something to do: look now."""
        if hint.sessions and self._session.id not in hint.sessions:
            # Mail of runs that others own.
            return
        # Only those who tell of each start and message tell of runs alone.
        self._runs.hint(told=hint.runs_only)
        if not hint.runs_only:
            self._attempts.hint()
            self._promoter.hint()

    def doubt_session(self) -> None:
        """See whether the session lives; begin a new one if it does not."""
        self._session.suspect()

    def request_stop(self) -> None:
        """Begin to drain; `run` returns when that is done. Safe twice, and before the start."""
        self._stop.set()

    def move(self) -> None:
        """Show that the loop turns. Who keeps the session calls this, on the loop, before it reads
        `progress`: a clock of the worker's own would wake an idle process once more."""
        self.progress += 1
        self.metrics.set("durable_slots_used", len(self._executor.attempts))

    async def started(self) -> None:
        """Wait until it serves."""
        await self._started.wait()

    async def run(self) -> None:
        """Serve until `request_stop`, then drain.

        Raises what made serving impossible: SchemaVersionError or StoreUnavailableError at the
        start, or the error that ended a service.
        """
        try:
            await self.store.open()
            try:
                await self._serve()
            finally:
                await self._executor.close()
                await self._hinter.flush()
        finally:
            await self.store.close()
            self._started.set()
        if self._failure is not None:
            raise self._failure

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run(), name="durable-worker")
        starting = asyncio.create_task(self.started())
        await asyncio.wait({self._running, starting}, return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            starting.cancel()
            self._running.result()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.request_stop()
        assert self._running is not None
        await self._running

    # -- serving -----------------------------------------------------------------------------

    async def _serve(self) -> None:
        self._clock.observe(await self.store.now_us())
        await self._session.register()
        await self.store.register_types(self._types())
        pollers: list[Service] = [self._runs]
        if self.registry.activities:
            pollers.append(self._attempts)
        if self._keep_session:
            pollers.append(Listener(self.store, self.hint))
        await self._limits.refresh()
        pollers += [self._limits, self._promoter, self._attempts.beats]
        writers: list[Service] = [self._committer, self._attempts.answers, self._session]
        for service in (*writers, *pollers):
            service.failed = self._service_failed
            service.start()
        ticking = asyncio.create_task(self._tick()) if self._keep_session else None
        try:
            await asyncio.gather(*(service.started() for service in (*writers, *pollers)))
            self._started.set()
            await self._stop.wait()
            await self._drain(pollers, writers)
        finally:
            if ticking is not None:
                ticking.cancel()
            for service in (*pollers, *writers):
                await service.abort()

    async def _drain(self, pollers: list[Service], writers: list[Service]) -> None:
        if self._failure is None:
            await asyncio.gather(*(service.stop() for service in pollers))
            await self._executor.drain(self.options.drain_seconds)
            try:
                async with asyncio.timeout(LAST_WRITES_SECONDS):
                    await self._committer.quiet()
                    for run in self._cache:
                        if run.is_idle:
                            self._turns.release(run)
                    await self._committer.quiet()
            except TimeoutError:
                log.warning("the store did not take the last writes in time; others redo them")
        await asyncio.gather(*(service.stop(1.0) for service in writers))
        try:
            # Hands over whatever could not be given up one by one.
            async with asyncio.timeout(LAST_WRITES_SECONDS):
                await self.store.end_sessions([self._session.id], crashed=False)
                await self.store.notify()
        except TimeoutError:
            self._session_left(f"the store did not answer within {LAST_WRITES_SECONDS:g} s")
        except StoreError as error:
            self._session_left(str(error))
        self._turns.drop_all()

    def _session_left(self, why: str) -> None:
        seconds = self.options.lease_seconds
        log.warning("cannot end the session; its lease runs out in %g s: %s", seconds, why)

    async def _tick(self) -> None:
        while True:
            self.move()
            await asyncio.sleep(PROGRESS_SECONDS)

    def _types(self) -> list[TypeInfo]:
        queue = self.options.queues[0]
        found = [
            TypeInfo(each.name, "workflow", each.queue or queue, each.signature.describe(),
                     (each.__doc__ or "").strip())
            for each in self.registry.workflows.values()
        ]  # fmt: skip
        found += [
            TypeInfo(each.name, "activity", each.options.queue or queue, each.signature.describe(),
                     (each.__doc__ or "").strip())
            for each in self.registry.activities.values()
        ]  # fmt: skip
        return found

    def _room(self) -> int:
        """How many more runs can be worked on now.

        As many as there are slots: a run between two activities then finds one free, and its next
        activity need not go through the queue. When the slots are held by long activities, new runs
        are taken all the same; what they want done goes to the queue, for anyone.
        """
        executor = self._executor
        room = self.options.activity_slots - len(executor.attempts) - self._committer.backlog
        if room <= 0 and executor.idle_seconds > STUCK_SECONDS:
            return ROOM_MIN
        return room

    def _promoted(self) -> None:
        self._runs.hint()
        self._attempts.hint()

    def _caught_up(self) -> None:
        # Due timers that fire here by themselves need no promotion.
        if not self._turns.timers.is_behind:
            self._promoter.caught_up()

    def _commit_refused(self) -> None:
        """Either the session is dead, or one run is not ours: the store knows."""
        self._session.suspect()
        self._runs.recover()

    def _made_work(self) -> None:
        """Outcomes of claimed activities are mail for the owners of their runs."""
        self._runs.hint()
        self._hinter.work()

    def _slot_freed(self) -> None:
        self._attempts.slot_freed()
        self._runs.room_made()

    def _flushed(self, news: News) -> None:
        if news.activities:
            self._attempts.hint()
        if news.runs:
            self._runs.hint()
        if news.runs or news.activities:
            self._hinter.work(runs_only=not news.activities)
        if news.answers or news.closed:
            self._hinter.done(() if news.answers else news.closed)

    async def _session_lost(self) -> None:
        self._committer.forget()
        self._turns.drop_all()
        self._runs.drop_all()
        self._attempts.drop_all()

    def _service_failed(self, service: Service, error: BaseException) -> None:
        log.error("the %s of the worker ended", service.name, exc_info=error)
        if self._failure is None:
            self._failure = error
        self.request_stop()
