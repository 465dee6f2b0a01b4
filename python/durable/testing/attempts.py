"""Attempts: activities of a test, run in this process.

Async activities are tasks on the test's own loop, sync ones are called in place (or on a thread,
when the environment says so). Back-off and time limits follow the environment's clock. An attempt
that waits in `WorkflowEnvironment.sleep` lets that clock move on; one that waits for anything
else is busy, and time stands still until it ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from durable.codec import (
    DEFAULT_CODEC,
    Signature,
    check_size,
    failure_to_payload,
    is_final,
    type_names,
)
from durable.engine.execution import ScheduledActivity
from durable.engine.info import ACTIVITY_CONTEXT, ActivityContext
from durable.engine.interceptors import ActivityCall as InterceptedCall
from durable.engine.interceptors import surround
from durable.engine.retry import next_delay_seconds
from durable.errors import CompleteLater, DefinitionError, RetryAfter
from durable.events import EventKind
from durable.options import seconds
from durable.testing.clock import Clock, Entry
from durable.testing.streams import BookWriter, StreamBook

FRACTION = 1.0
"""Back-off without luck: the longest pause that jitter could choose."""

Ended = Callable[["ActivityCall", int, bytes | None], None]


class ActivityCall:
    """One call of an activity: its attempts, one after the other, until it has an outcome.

    ``ended(call, kind, payload)`` is called once, unless the call is dropped; ``changed()`` when
    an attempt is over and another one will follow.
    """

    def __init__(
        self,
        scheduled: ScheduledActivity,
        *,
        run_id: str,
        workflow_id: str,
        workflow_type: str,
        fn: Callable[..., Any],
        signature: Signature,
        on_call: Callable[[tuple[Any, ...], dict[str, Any]], None] | None,
        clock: Clock,
        streams: StreamBook,
        threads: bool,
        completes_later: bool,
        headers: Mapping[str, Any],
        around: Sequence[Callable[..., Any]],
        ended: Ended,
        changed: Callable[[], object],
    ) -> None:
        self.scheduled = scheduled
        self.run_id = run_id
        self._workflow_id = workflow_id
        self._workflow_type = workflow_type
        self._fn = fn
        self._signature = signature
        self._on_call = on_call
        self._clock = clock
        self._streams = streams
        self._threads = threads
        self._completes_later = completes_later
        self._headers = headers
        self._around = around
        self._ended = ended
        self._changed = changed
        self._attempt = 0
        self._open = 0
        """The attempt that may write to streams; 0: none."""
        self._details: tuple[Any, ...] = ()
        self._context: ActivityContext | None = None
        self._task: asyncio.Task[Any] | None = None
        self._limits: list[Entry] = []
        self._beat: Entry | None = None
        self._is_left = False
        """The attempt raised CompleteLater: it runs no more, and its answer is still to come."""
        self._is_over = False
        self._is_cancelled = False
        self.is_parked = False
        """The running attempt waits on the environment's clock."""

    @property
    def is_busy(self) -> bool:
        """Whether an attempt runs that may do something by itself."""
        return self._task is not None and not self.is_parked and not self._is_over

    def begin(self) -> None:
        """Start the next attempt."""
        self._attempt += 1
        self._is_left = False
        scheduled = self.scheduled
        context = self._context = ActivityContext(
            name=scheduled.name,
            attempt=self._attempt,
            workflow_id=self._workflow_id,
            run_id=self.run_id,
            workflow_type=self._workflow_type,
            queue=scheduled.queue,
            ref=scheduled.ref,
            details=self._details,
            scheduled_us=scheduled.scheduled_us,
            on_heartbeat=self._heartbeat,
            task_token=self._token() if self._completes_later else "",
            headers=self._headers,
        )
        number = self._open = self._attempt
        context.on_stream = partial(
            BookWriter, self._streams, context, lambda: self._open == number
        )
        self._limit()
        surrounding = contextvars.copy_context()
        surrounding.run(ACTIVITY_CONTEXT.set, context)
        if inspect.iscoroutinefunction(self._fn) or self._threads or self._around:
            self._task = asyncio.get_running_loop().create_task(
                self._run(number), context=surrounding
            )
            return
        try:
            payload = surrounding.run(self._call_sync)
        except BaseException as error:
            self._failed(number, error)
        else:
            self._conclude(number, EventKind.ACTIVITY_COMPLETED, payload)

    def cancel(self) -> None:
        """The workflow wants it to stop, and hears what becomes of it."""
        self._is_cancelled = True
        if self._task is None:
            error = asyncio.CancelledError("cancelled before an attempt ran")
            self._fail_for_good(self._attempt, error)
        else:
            self._interrupt()

    def drop(self) -> None:
        """Nobody wants its outcome any more."""
        self._is_over = True
        self._open = 0
        self._clear_limits()
        self._interrupt()

    # -- answers of others ---------------------------------------------------------------------

    def _token(self) -> str:
        return f"{self.run_id}:{self.scheduled.ref}:{self._attempt}:{self._attempt}"

    def is_open(self, number: int) -> bool:
        """Whether others may still complete the attempt of that number."""
        is_waiting = self._is_left or self._task is not None
        return self._completes_later and is_waiting and number == self._attempt

    def answer(self, number: int, kind: int, payload: bytes) -> None:
        """End it with what somebody else says, whether or not the attempt still runs."""
        self._conclude(number, kind, payload)

    def heartbeat(self, details: tuple[Any, ...]) -> None:
        """Somebody else says that it makes progress."""
        self._heartbeat(details)

    def _leave(self, number: int) -> None:
        """The attempt is over, and its answer comes from somebody else; its time limits go on."""
        if self._is_over or number != self._attempt:
            return
        self._is_left = True
        self._task = None
        self._open = 0
        self.is_parked = False
        self._changed()

    # -- one attempt ---------------------------------------------------------------------------

    async def _run(self, number: int) -> None:
        try:
            if self._around:
                args, kwargs = self._arguments()
                assert self._context is not None
                call = InterceptedCall(self._context.info, args, dict(kwargs))
                value = await surround(self._around, self._innermost)(call)
                payload = self._signature.check_result(value)
            elif inspect.iscoroutinefunction(self._fn):
                args, kwargs = self._arguments()
                payload = self._signature.check_result(await self._fn(*args, **kwargs))
            else:
                payload = await asyncio.to_thread(self._call_sync)
        except BaseException as error:
            # Whatever it is (SystemExit too), one attempt failed.
            self._failed(number, error)
        else:
            self._conclude(number, EventKind.ACTIVITY_COMPLETED, payload)

    async def _innermost(self, call: InterceptedCall) -> Any:
        if inspect.iscoroutinefunction(self._fn):
            return await self._fn(*call.args, **call.kwargs)
        if self._threads:
            return await asyncio.to_thread(self._fn, *call.args, **call.kwargs)
        return self._fn(*call.args, **call.kwargs)

    def _call_sync(self) -> bytes:
        args, kwargs = self._arguments()
        return self._signature.check_result(self._fn(*args, **kwargs))

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = self._signature.decode_args(self.scheduled.input)
        if self._on_call is not None:
            self._on_call(args, kwargs)
        return args, kwargs

    def _heartbeat(self, details: tuple[Any, ...]) -> None:
        assert self._context is not None
        if self._context.is_cancelled and self._task is None:
            raise asyncio.CancelledError("nobody wants the result any more")
        if details:
            # The next attempt gets what JSON keeps of them, as from a database.
            encoded = DEFAULT_CODEC.encode(list(details))
            check_size(encoded, f"the heartbeat details of activity {self.scheduled.name}")
            self._details = tuple(DEFAULT_CODEC.decode(encoded))
        self._limit_beat()

    # -- time limits ---------------------------------------------------------------------------

    def _limit(self) -> None:
        options, number = self.scheduled.options, self._attempt
        now_us = self._clock.now_us
        if options.start_to_close_timeout is not None:
            limit = seconds(options.start_to_close_timeout, "start_to_close_timeout")
            self._time_out_at(number, now_us + round(limit * 1e6), "start-to-close timeout")
        if options.schedule_to_close_timeout is not None:
            self._time_out_at(number, self._close_us(), "schedule-to-close timeout")
        self._limit_beat()

    def _close_us(self) -> int:
        limit = seconds(self.scheduled.options.schedule_to_close_timeout or 0, "schedule_to_close")
        return self.scheduled.scheduled_us + round(limit * 1e6)

    def _limit_beat(self) -> None:
        timeout = self.scheduled.options.heartbeat_timeout
        if self._beat is not None:
            self._beat.cancel()
        if timeout is not None:
            due_us = self._clock.now_us + round(seconds(timeout, "heartbeat_timeout") * 1e6)
            number = self._attempt
            self._beat = self._clock.at(due_us, lambda: self._time_out(number, "heartbeat timeout"))

    def _time_out_at(self, number: int, due_us: int, what: str) -> None:
        self._limits.append(self._clock.at(due_us, lambda: self._time_out(number, what)))

    def _time_out(self, number: int, what: str) -> None:
        task = self._task
        if self._is_over or number != self._attempt or (task is None and not self._is_left):
            return
        error = TimeoutError(f"{what} of activity {self.scheduled.name} (attempt {number})")
        self._is_left = False
        self._failed(number, error)
        if task is not None:
            task.cancel()

    def _clear_limits(self) -> None:
        for entry in (*self._limits, *([self._beat] if self._beat else ())):
            entry.cancel()
        self._limits.clear()
        self._beat = None

    def _interrupt(self) -> None:
        if self._context is not None:
            self._context.is_cancelled = True
        if self._task is not None:
            self._task.cancel()

    # -- how it ends -----------------------------------------------------------------------------

    def _failed(self, number: int, error: BaseException) -> None:
        if isinstance(error, CompleteLater):
            if self._completes_later:
                self._leave(number)
                return
            name = self.scheduled.name
            text = f"activity {name} is not declared with completes_later=True"
            self._fail_for_good(number, DefinitionError(text))
            return
        if self._is_over or number != self._attempt:
            return
        delay = None if self._is_cancelled else self._next_delay(error)
        if delay is None:
            self._fail_for_good(number, error)
            return
        self._task = None
        self._open = 0
        self.is_parked = False
        self._clear_limits()
        self._clock.at(self._clock.now_us + round(delay * 1e6), self._again)
        self._changed()

    def _again(self) -> None:
        if not self._is_over:
            self.begin()

    def _next_delay(self, error: BaseException) -> float | None:
        context = self._context
        assert context is not None
        explicit = context.retry_delay_seconds
        if context.retry_at_us is not None:
            explicit = (context.retry_at_us - self._clock.now_us) / 1e6
        if isinstance(error, RetryAfter):
            explicit = error.delay_seconds
        options = self.scheduled.options
        delay = next_delay_seconds(
            options.retry,
            self._attempt,
            type_names(error),
            FRACTION,
            explicit,
            is_final=is_final(error),
        )
        if delay is None or options.schedule_to_close_timeout is None:
            return delay
        next_us = self._clock.now_us + round(delay * 1e6)
        return delay if next_us < self._close_us() else None

    def _fail_for_good(self, number: int, error: BaseException) -> None:
        failure = orjson.loads(failure_to_payload(error))
        if self._is_cancelled and isinstance(error, asyncio.CancelledError):
            # The workflow asked for it, so it gets the same from `await` as a worker would give.
            failure["type"] = "CancelledError"
        failure["attempt"] = number
        failure.setdefault("activity", self.scheduled.name)
        self._conclude(number, EventKind.ACTIVITY_FAILED, orjson.dumps(failure))

    def _conclude(self, number: int, kind: int, payload: bytes) -> None:
        if self._is_over or number != self._attempt:
            return
        self._is_over = True
        self._open = 0
        self._task = None
        self.is_parked = False
        self._clear_limits()
        self._ended(self, kind, payload)
