"""Executor: runs activity attempts in this process, within its slots.

Async activities are tasks on the worker's loop, sync ones run in a pool of threads with the context
variables of their start, or in processes of their own (`durable.runtime.activity_pool`). Every
attempt reports its ending exactly once to the `Source` that started it. Time limits are enforced
here: an attempt over its time is reported as failed at once and then told to stop. It holds its
slot until its code returns, because a thread cannot be killed; a process can, and is.

Whether a failed attempt is tried again is decided by `durable.engine.retry`; this file adds only
the clock and the dice.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from durable.engine.definition import ActivityDefinition
from durable.engine.info import ACTIVITY_CONTEXT
from durable.engine.interceptors import NO_HOOKS, Hooks
from durable.engine.registry import Table
from durable.engine.retry import next_delay_seconds
from durable.errors import (
    CompleteLater,
    DefinitionError,
    PayloadError,
    StoreError,
)
from durable.options import seconds
from durable.runtime.activity_pool import ActivityPool, Reply, check_importable
from durable.runtime.attempt import COMPLETED, FAILED, RETRY, Attempt, Ending, Stop
from durable.runtime.failures import Failure, cancelled_payload, failure_of, lost_payload, numbered
from durable.runtime.metrics import Metrics
from durable.runtime.slots import Slots
from durable.runtime.streams import Writer, drain, drain_sync, stop
from durable.runtime.surrounded import call_surrounded, place_of
from durable.store.base import Store
from durable.store.clock import StoreClock
from durable.store.transactions import Transactions

Outcome = tuple[bytes | None, BaseException | None, bool]
"""Result payload, or the error and whether it is final."""


class Executor:
    """The activity slots of one worker."""

    def __init__(
        self,
        definitions: Table[ActivityDefinition[Any, Any]],
        *,
        queues: Collection[str],
        slots: int,
        thread_slots: int,
        process_slots: int,
        queue_slots: Mapping[str, int],
        queue_rates: Mapping[str, float],
        clock: StoreClock,
        metrics: Metrics,
        store: Store,
        hooks: Hooks = NO_HOOKS,
    ) -> None:
        self._store = store
        self.definitions = definitions
        self._around = hooks.around("run_activity")
        self._surrounded: set[asyncio.Task[None]] = set()
        self._transactions = Transactions(store)
        self.slots = Slots(
            definitions,
            queues=queues,
            slots=slots,
            places={"thread": thread_slots, "process": process_slots},
            queue_slots=queue_slots,
            queue_rates=queue_rates,
        )
        self._clock = clock
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(thread_slots, thread_name_prefix="durable-activity")
        self.processes = ActivityPool(
            check_importable(each) for each in definitions.values() if each.executor == "process"
        )
        self._attempts: set[Attempt] = set()
        self._moved_at = 0.0
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.set("durable_slots", slots)

    def definition(self, name: str) -> ActivityDefinition[Any, Any]:
        """What this worker runs under that name, which it has claimed or reserved a slot for."""
        found = self.definitions.find(name)
        assert found is not None, name
        return found

    @property
    def attempts(self) -> Collection[Attempt]:
        """Those whose code has not returned."""
        return self._attempts

    @property
    def idle_seconds(self) -> float:
        """How long ago an attempt ended, or the last one began."""
        return time.monotonic() - self._moved_at

    # -- running -----------------------------------------------------------------------------

    def start(self, attempt: Attempt) -> None:
        """Run an attempt in a slot that was reserved for it."""
        loop = asyncio.get_running_loop()
        self._attempts.add(attempt)
        self._idle.clear()
        attempt.started_at = attempt.beaten_at = self._moved_at = time.monotonic()
        self._limit(loop, attempt)
        attempt.context.on_stream = partial(
            Writer, self._store, attempt.context, attempt.hold, attempt.definition.codec, loop
        )
        if attempt.definition.is_async:
            attempt.task = loop.create_task(self._run_async(attempt))
            return
        if self._around:
            attempt.task = loop.create_task(self._run_async(attempt))
            # It has none while its code runs elsewhere.
            self._surrounded.add(attempt.task)
            attempt.task.add_done_callback(self._surrounded.discard)
            return
        if attempt.definition.executor == "process":
            attempt.job = self.processes.submit(
                attempt.definition, attempt.context, attempt.input, attempt.beaten
            )
            attempt.job.done.add_done_callback(partial(self._process_ended, attempt))
            return
        context = contextvars.copy_context()
        context.run(ACTIVITY_CONTEXT.set, attempt.context)
        future = loop.run_in_executor(self._pool, context.run, self._run_sync, attempt)
        future.add_done_callback(partial(self._thread_ended, attempt))

    async def _run_async(self, attempt: Attempt) -> None:
        ACTIVITY_CONTEXT.set(attempt.context)
        definition = attempt.definition
        signature = definition.signature
        is_ours = True
        try:
            args, kwargs = signature.decode_args(attempt.input)
            is_ours = False
            try:
                if definition.traits.is_transactional:
                    payload = await self._transact(attempt, args, kwargs)
                else:
                    if self._around:
                        fn = place_of(attempt, self._pool, self.processes)
                        value = await call_surrounded(self._around, attempt, fn, args, kwargs)
                    else:
                        value = await definition.fn(*args, **kwargs)
                    is_ours = True
                    payload = signature.check_result(value)
            finally:
                if attempt.context.streams is not None:
                    await drain(attempt.context)
        except CompleteLater as error:
            await self._detach(attempt, error)
        except BaseException as error:
            # Whatever it is (SystemExit too): one attempt failed, the worker goes on.
            if attempt.reply is not None and attempt.reply[0] is error:
                self._process_failed(attempt, attempt.reply[1])
            else:
                self._failed(attempt, error, is_ours and isinstance(error, PayloadError))
        else:
            self._conclude(attempt, Ending(COMPLETED, payload), "completed")
        finally:
            self._release(attempt)

    async def _detach(self, attempt: Attempt, error: BaseException) -> None:
        """Leave the attempt to whoever has its task token."""
        if not attempt.definition.traits.completes_later:
            text = f"activity {attempt.name} is not declared with completes_later=True"
            self._failed(attempt, DefinitionError(text), True)
            return
        try:
            await self._store.detach_activity(attempt.run_id, attempt.ref, attempt.token)
        except StoreError:
            # Tried again as any failed attempt, with a new token.
            self._failed(attempt, error)
            return
        except asyncio.CancelledError as cancelled:
            self._failed(attempt, cancelled)
            return
        attempt.is_detached = True
        self._conclude(attempt, Ending(COMPLETED, None), "void")

    async def _transact(
        self, attempt: Attempt, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> bytes:
        """Run it in a transaction that also records its result."""
        definition = attempt.definition
        async with self._transactions.begin() as conn:
            if self._around:
                fn = partial(definition.fn, conn)
                value = await call_surrounded(self._around, attempt, fn, args, kwargs)
            else:
                value = await definition.fn(conn, *args, **kwargs)
            payload = definition.signature.check_result(value)
            outcome = attempt.outcome(Ending(COMPLETED, payload))
            if not await self._transactions.record(conn, outcome):
                # Its run is over or cancelled it, or another worker has it: roll back.
                raise asyncio.CancelledError(f"activity {attempt.name} is no longer wanted")
        # Only now: until the commit it may have to be answered for.
        attempt.is_recorded = True
        return payload

    def _run_sync(self, attempt: Attempt) -> Outcome:
        """On a thread of the pool."""
        definition = attempt.definition
        signature = definition.signature
        is_ours = True
        try:
            args, kwargs = signature.decode_args(attempt.input)
            is_ours = False
            try:
                value = definition.fn(*args, **kwargs)
            finally:
                if attempt.context.streams is not None:
                    drain_sync(attempt.context)
            is_ours = True
            return signature.check_result(value), None, False
        except BaseException as error:
            return None, error, is_ours and isinstance(error, PayloadError)

    def _thread_ended(self, attempt: Attempt, future: asyncio.Future[Outcome]) -> None:
        if future.cancelled():
            self._conclude(attempt, Ending(RETRY, None, count_attempt=False), "void")
        elif (error := future.exception()) is not None:
            self._failed(attempt, error)
        else:
            payload, failure, gives_up = future.result()
            if isinstance(failure, CompleteLater):
                self._leave(attempt, failure)
                return
            if failure is None:
                self._conclude(attempt, Ending(COMPLETED, payload), "completed")
            else:
                self._failed(attempt, failure, gives_up)
        self._release(attempt)

    def _leave(self, attempt: Attempt, error: CompleteLater) -> None:
        """Detach it, though its code does not run on the loop."""
        attempt.task = asyncio.ensure_future(self._detach(attempt, error))
        attempt.task.add_done_callback(lambda _: self._release(attempt))

    def _process_ended(self, attempt: Attempt, done: asyncio.Future[Reply]) -> None:
        reply = done.result()
        attempt.job = None
        context = attempt.context
        context.retry_delay_seconds = reply.retry_delay_seconds
        context.retry_at_us = reply.retry_at_us
        if reply.result is not None:
            self._conclude(attempt, Ending(COMPLETED, reply.result), "completed")
        elif reply.failure is None:
            self._leave(attempt, CompleteLater())
            return
        else:
            self._process_failed(attempt, reply)
        self._release(attempt)

    def _process_failed(self, attempt: Attempt, reply: Reply) -> None:
        assert reply.failure is not None
        if reply.is_lost and attempt.definition.traits.is_at_most_once and attempt.stop is None:
            ending = Ending(FAILED, lost_payload(attempt.name, attempt.number))
            self._conclude(attempt, ending, "failed")
        else:
            self._failed(attempt, reply.failure, reply.gives_up)

    # -- ending ------------------------------------------------------------------------------

    def _failed(
        self, attempt: Attempt, error: BaseException | Failure, gives_up: bool = False
    ) -> None:
        if attempt.is_concluded:
            return
        failure = error if isinstance(error, Failure) else failure_of(error)
        if attempt.stop is Stop.CANCELLED:
            ending = Ending(FAILED, cancelled_payload(attempt.name, attempt.number))
            self._conclude(attempt, ending, "cancelled")
            return
        delay = None if gives_up else self._next_delay(attempt, failure)
        payload = numbered(failure.payload, attempt.number)
        timed_out = isinstance(error, TimeoutError) and attempt.stop is Stop.TIMED_OUT
        if delay is None:
            ending = Ending(FAILED, payload)
            self._conclude(attempt, ending, "timed_out" if timed_out else "failed")
        else:
            self._metrics.observe("durable_activity_backoff_seconds", delay)
            ending = Ending(RETRY, payload, round(delay * 1e6))
            self._conclude(attempt, ending, "timed_out" if timed_out else "retried")

    def _next_delay(self, attempt: Attempt, failure: Failure) -> float | None:
        """Seconds to the next attempt, or None to give up."""
        context = attempt.context
        explicit = context.retry_delay_seconds
        if context.retry_at_us is not None:
            explicit = self._clock.seconds_until(context.retry_at_us)
        if failure.retry_after is not None:
            explicit = failure.retry_after
        options = attempt.options
        delay = next_delay_seconds(
            options.retry,
            attempt.number,
            failure.names,
            random.random(),
            explicit,
            is_final=failure.is_final,
        )
        if delay is None:
            return None
        if options.schedule_to_close_timeout is not None:
            limit = seconds(options.schedule_to_close_timeout, "schedule_to_close_timeout")
            due_us = context.scheduled_us + round(limit * 1e6)
            if delay >= self._clock.seconds_until(due_us):
                return None
        return delay

    def _conclude(self, attempt: Attempt, ending: Ending, outcome: str) -> None:
        if attempt.is_concluded:
            return
        attempt.is_concluded = True
        attempt.cancel_timers()
        self._metrics.inc("durable_activity_attempts_total", outcome=outcome)
        self._metrics.observe("durable_activity_seconds", time.monotonic() - attempt.started_at)
        attempt.source.ended(attempt, ending)

    def _release(self, attempt: Attempt) -> None:
        self._attempts.discard(attempt)
        self.slots.give_back(attempt.name, attempt.context.queue)
        self._moved_at = time.monotonic()
        if not self._attempts:
            self._idle.set()
        attempt.source.released(attempt)

    # -- stopping it early -------------------------------------------------------------------

    def _limit(self, loop: asyncio.AbstractEventLoop, attempt: Attempt) -> None:
        """Set the timers of its time limits."""
        options = attempt.options
        scheduled_us = attempt.context.scheduled_us
        if options.start_to_close_timeout is not None:
            limit = seconds(options.start_to_close_timeout, "start_to_close_timeout")
            self._time_out_in(loop, attempt, limit, "start-to-close timeout")
        if options.schedule_to_close_timeout is not None:
            limit = seconds(options.schedule_to_close_timeout, "schedule_to_close_timeout")
            left = self._clock.seconds_until(scheduled_us + round(limit * 1e6))
            self._time_out_in(loop, attempt, left, "schedule-to-close timeout")
        if options.heartbeat_timeout is not None:
            limit = seconds(options.heartbeat_timeout, "heartbeat_timeout")
            attempt.beat_timer = loop.call_later(limit, self._check_beat, attempt, limit)

    def _time_out_in(
        self, loop: asyncio.AbstractEventLoop, attempt: Attempt, limit: float, what: str
    ) -> None:
        text = f"{what} of activity {attempt.name} (attempt {attempt.number})"
        attempt.timers.append(loop.call_later(limit, self._time_out, attempt, text))

    def _time_out(self, attempt: Attempt, text: str) -> None:
        if attempt.is_concluded:
            return
        attempt.stop = Stop.TIMED_OUT
        self._failed(attempt, TimeoutError(text))
        self._interrupt(attempt)

    def _check_beat(self, attempt: Attempt, limit: float) -> None:
        left = attempt.beaten_at + limit - time.monotonic()
        if left > 0:
            loop = asyncio.get_running_loop()
            attempt.beat_timer = loop.call_later(left, self._check_beat, attempt, limit)
        else:
            self._time_out(attempt, f"heartbeat timeout of activity {attempt.name}")

    def cancel(self, attempt: Attempt) -> None:
        """The workflow wants it to stop; what becomes of it is still reported."""
        if attempt.stop is None:
            attempt.stop = Stop.CANCELLED
            self._interrupt(attempt)

    def void(self, attempt: Attempt) -> None:
        """Nobody wants its outcome: tell it to stop and report nothing."""
        if not attempt.is_concluded:
            attempt.is_concluded = True
            attempt.stop = Stop.VOID
            attempt.cancel_timers()
            self._metrics.inc("durable_activity_attempts_total", outcome="void")
        self._interrupt(attempt)

    def _interrupt(self, attempt: Attempt) -> None:
        attempt.context.is_cancelled = True
        if attempt.task is not None:
            attempt.task.cancel()
        if attempt.job is not None:
            attempt.job.stop(now=attempt.stop is Stop.TIMED_OUT)

    async def drain(self, grace_seconds: float) -> None:
        """Let attempts end for ``grace_seconds``; then hand the rest back to be tried elsewhere."""
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            pass
        for attempt in list(self._attempts):
            if not attempt.is_concluded:
                attempt.stop = Stop.DRAINED
                self._conclude(attempt, self._drained(attempt), "void")
            self._interrupt(attempt)

    def _drained(self, attempt: Attempt) -> Ending:
        if attempt.definition.traits.is_at_most_once:
            return Ending(FAILED, lost_payload(attempt.name, attempt.number))
        return Ending(RETRY, None, count_attempt=False)

    async def close(self) -> None:
        """Let go of what is left: threads that do not end by themselves are abandoned."""
        for attempt in list(self._attempts):
            self.void(attempt)
            stop(attempt.context)
        tasks = [attempt.task for attempt in self._attempts if attempt.task is not None]
        for task in self._surrounded:
            task.cancel()
        tasks += self._surrounded
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._pool.shutdown(wait=False, cancel_futures=True)
        await self.processes.close()
        await self._transactions.close()
