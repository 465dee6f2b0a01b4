"""Execution: one run in memory.

It joins a definition, the core's loop and the run's history. Facts go in one at a time; what the
code asked for because of them comes out as a `Turn`. No I/O, no clock, no randomness: time comes
with the facts, ids come from history.

    load(batches)            decode, check and replay what is recorded
    deliver(fact)            run the code on one new fact (or answer a query, or judge an update)
    take()                   what is new since the last take, to be committed as one
    evict()                  let go of it; nothing is lost that a load does not bring back

Every step passes ``deliver`` and ``take``, so they are in the core, which asks here for what is not
of every step.

The other half of the contract with the core (`_core.Hook`) are the methods ``on_event``,
``failure``, ``on_idle``, ``on_finish`` and ``make_task``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextvars import Context
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NoReturn

from durable._core import ExecutionBase, TurnShapes
from durable.codec import (
    DEFAULT_CODEC,
    NO_CODEC,
    Codec,
    check_size,
    failure_to_payload,
    is_final,
    is_sealed,
    type_names,
)
from durable.engine import guard, tasks
from durable.engine.attributes import headed, headers_in
from durable.engine.context import ContinueAsNew, WorkflowContext
from durable.engine.definition import WorkflowDefinition
from durable.engine.info import NO_HEADERS, WorkflowInfo
from durable.engine.registry import Registry
from durable.engine.remote import activity_error, child_error, is_refusal, unreachable
from durable.engine.requests import QUERY_VARS, QUERY_WHERE, refusal, request_id_of
from durable.engine.retry import next_delay_seconds
from durable.engine.start import StartMeta, decode_json
from durable.engine.surrounding import run_surrounded
from durable.engine.turn import (
    ScheduledActivity,
    Turn,
    TurnBuilder,
    activity_options,
    to_start,
)
from durable.errors import (
    HistoryCorruptError,
    HistoryUnsupportedError,
    NonDeterminismError,
    PayloadError,
    UnreadablePayloadError,
    UpdateRejectedError,
)
from durable.events import DYNAMIC, Closing, EventKind, MessageKind, NewTimer, Response, RunState

if TYPE_CHECKING:
    from durable._core import Event, Taken

__all__ = ["Execution", "ScheduledActivity", "Turn"]

IDLE_RUN_BYTES = 6 * 1024
"""What a warm run takes in memory beside its history: the coroutine, the loop, the context."""

PENDING_BYTES = 1024
"""What a command that waits takes: its future, its task, a slot in the core."""

# Plain numbers: an enum's members are looked up more slowly, and these are asked for in every run.
RUN_STARTED = int(EventKind.RUN_STARTED)
SIGNAL_RECEIVED = int(EventKind.SIGNAL_RECEIVED)
CANCEL_REQUESTED = int(EventKind.CANCEL_REQUESTED)
CHILD_STARTED = int(EventKind.CHILD_STARTED)
UPDATE_ACCEPTED = int(EventKind.UPDATE_ACCEPTED)
ACTIVITY_SCHEDULED = int(EventKind.ACTIVITY_SCHEDULED)
TIMER_STARTED = int(EventKind.TIMER_STARTED)
RUN_COMPLETED = int(EventKind.RUN_COMPLETED)
REQUESTS = min(map(int, MessageKind))
"""From here on a kind is a MessageKind."""

WHERE_MAX = 3
SHAPES = TurnShapes(Turn, ScheduledActivity, activity_options)
ENDED_FROM_OUTSIDE = {
    EventKind.RUN_TERMINATED: RunState.TERMINATED,
    EventKind.RUN_TIMED_OUT: RunState.TIMED_OUT,
}


class Execution(ExecutionBase):
    """One warm run. Not thread-safe; used from one thread at a time."""

    def __init__(
        self,
        definition: WorkflowDefinition[Any, Any],
        run_id: str,
        workflow_id: str,
        *,
        queue: str = "default",
        codec: Codec = DEFAULT_CODEC,
        registry: Registry | None = None,
    ) -> None:
        guard.install()
        tasks.install()
        self.definition = definition
        self.run_id = run_id
        self.workflow_id = workflow_id
        self._codec = codec
        self._task_count = 0
        self._loop = tasks.WorkflowLoop(bytes.fromhex(run_id.replace("-", "")), self)
        meta = StartMeta(workflow_id=workflow_id, queue=queue)
        hooks = registry.hooks_of(definition) if registry is not None else None
        self._join(self._loop, SHAPES)
        self.context = WorkflowContext(
            self._loop, run_id, meta, codec, definition, self._fail, hooks
        )
        if registry is not None:
            self.context.errors = registry.errors
        self._loop.context = self.context
        self._main: asyncio.Task[Any] | None = None
        self._handler_error: BaseException | None = None
        self._queue = queue
        self._ended: Closing | None = None
        self.goes_on = False
        """Its code has ended, and another run follows: continued as new, or tried again."""
        self._responses: list[Response] = []
        self._dead = False
        self.recorded = 0
        """How many events its history had when it was loaded."""

    # -- what the runtime does with it --------------------------------------------------------

    def load(self, batches: Sequence[bytes], head_hash: int | None = None) -> None:
        """Take the recorded history and run the code against it, up to what it now waits for.

        Raises HistoryCorruptError when the bytes fail their checks, HistoryUnsupportedError when a
        newer build wrote them (both say the run and the byte), NonDeterminismError when the code
        parts from its history, PayloadError when the input does not fit the workflow. Any of
        them leaves the execution dead.
        """
        try:
            if batches and is_sealed(batches[0]):
                raise UnreadablePayloadError(NO_CODEC)
            self._loop.load(batches, head_hash)
            self.recorded = self._loop.event_count
            self._loop.replay()
        except BaseException as error:
            raise self._died(error) from None

    def _deliver_other(
        self,
        kind: int,
        ref: int,
        time_us: int,
        name: str | None,
        meta: bytes | None,
        payload: bytes | None,
    ) -> Response | None:
        """A request to cancel, or what is no fact."""
        if kind == MessageKind.QUERY:
            return self._answer_query(name or "", meta, payload)
        if kind >= REQUESTS:
            return self._judge_update(time_us, name or "", meta, payload)
        if kind == CANCEL_REQUESTED and self.context.cancel_requested:
            return None
        try:
            self._loop.offer(kind, ref, time_us, name, meta, payload)
        except BaseException as error:
            raise self._died(error) from None
        return None

    def _sorted(self, taken: Taken | None) -> Turn | None:
        """The turn of what the core gave, which is more than one activity to start."""
        responses = self._responses
        if responses:
            self._responses = []
        if taken is None:
            if not responses:
                return None
            turn = Turn(None, 0, 0, 0)
            turn.responses = responses
            return turn
        batch, head_hash, first_event_id, event_count, events = taken
        if self._ended is None and not responses:
            # Most turns have nothing but activities and timers to start.
            queue, now_us = self.context.meta.queue, self._loop.now_us
            scheduled, timers, is_all = to_start(events, queue, now_us)
            if is_all:
                return Turn(
                    batch, head_hash, first_event_id, event_count, scheduled, (), (), timers
                )
        turn = Turn(batch, head_hash, first_event_id, event_count)
        self._sort_out(events, turn, responses)
        return turn

    def _sort_out(self, events: Sequence[Event], turn: Turn, responses: list[Response]) -> None:
        builder = TurnBuilder(self.context, self._loop.now_us)
        builder.build(events, turn)
        if self._ended is not None:
            turn.closing = self._ended
        turn.responses = [*responses, *turn.responses]
        if turn.closing is not None:
            self._close(turn, builder)
        for response in turn.responses:
            self.context.requests.open.pop(response.request_id, None)

    def pending_activities(self) -> list[ScheduledActivity]:
        """Activities without an outcome, oldest first: what a cold start must see to."""
        events = self._pending(ACTIVITY_SCHEDULED)
        return to_start(events, self.context.meta.queue, self._loop.now_us)[0]

    def pending_timers(self) -> list[NewTimer]:
        """Timers that have not fired, oldest first."""
        return [NewTimer(event[0], event[3]) for event in self._pending(TIMER_STARTED)]

    def query(
        self, name: str, payload: bytes | None = None, headers: Mapping[str, Any] = NO_HEADERS
    ) -> bytes:
        """The encoded answer to a query that came with ``headers``; raises what the handler raises.

        Two queries exist without a handler: ``__vars__`` and ``__where__``.
        """
        if name == QUERY_VARS:
            return self._codec.encode(self.vars)
        if name == QUERY_WHERE:
            return self._codec.encode(self.where())
        answer = self._codec.encode(self.context.requests.answer(name, payload, headers))
        check_size(answer, f"the answer to query {name!r}")
        return answer

    def evict(self) -> None:
        """Close every coroutine. What their ``finally`` blocks ask for goes nowhere."""
        self._dead = True
        self._loop.evict()
        # Its exception may have this object in its traceback.
        self._main = None
        self.context.leave()

    @property
    def vars(self) -> dict[str, Any]:
        """The variables that the code set, as they are now."""
        return dict(self.context.vars)

    @property
    def info(self) -> WorkflowInfo:
        """The facts of the run."""
        return self.context.info

    @property
    def status(self) -> str | None:
        """What the code said it is doing (`workflow.set_status`)."""
        found = self.context.search.get("status")
        return None if found is None else str(found)

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended, by its code or from outside."""
        return self._ended is not None or self._loop.is_finished

    @property
    def is_dead(self) -> bool:
        """Whether it was evicted, or parted from its history: of no more use."""
        return self._dead or self._loop.is_spoilt or self._loop.is_dead

    @property
    def bytes_estimate(self) -> int:
        """About how much memory it holds."""
        loop = self._loop
        return IDLE_RUN_BYTES + 2 * loop.history_bytes + PENDING_BYTES * loop.pending_count

    @property
    def event_count(self) -> int:
        """The number of its events, recorded or not."""
        return self._loop.event_count

    @property
    def pending_count(self) -> int:
        """The number of its commands that wait for an outcome."""
        return self._loop.pending_count

    @property
    def fairness(self) -> Sequence[Any] | None:
        """The fairness key and weight that the run was started with."""
        return self.context.meta.fairness

    @property
    def now_us(self) -> int:
        """The run's own time: that of its last fact."""
        return self._loop.now_us

    def where(self) -> list[str]:
        """Where each unfinished task waits: ``task: file:line function``, innermost last."""
        lines = []
        for task in self._loop._tasks:
            if not task.done():
                lines.append(f"{task.get_name()}: {tasks.waiting_place(task.get_coro())}")
        return lines

    # -- what the core asks of it -------------------------------------------------------------

    def on_event(
        self, kind: int, ref: int, name: str | None, meta: bytes | None, payload: bytes | None
    ) -> None:
        """An inbound fact that is no outcome of a command."""
        if kind == RUN_STARTED:
            self._start(meta, payload)
        elif kind == SIGNAL_RECEIVED:
            if meta is not None:
                payload = headed(payload, headers_in(meta))
            self.context.deliver(name or "", payload)
        elif kind == CHILD_STARTED:
            started = self.context.children.get(ref)
            if started is not None and not started.done():
                started.set_result(None)
        elif kind == UPDATE_ACCEPTED:
            self.context.requests.accept(name or "", meta, payload)
        elif kind == CANCEL_REQUESTED:
            self._cancel(payload)
        elif kind in ENDED_FROM_OUTSIDE:
            state = ENDED_FROM_OUTSIDE[EventKind(kind)]
            self._ended = Closing(state, failure=payload)

    def failure(
        self, kind: int, ref: int, name: str | None, payload: bytes | None
    ) -> BaseException:
        """The exception that the future of command ``ref`` raises."""
        if kind == EventKind.EXTERNAL_FAILED:
            return unreachable(payload)
        called = name or ""
        if kind == EventKind.ACTIVITY_FAILED:
            return activity_error(called, payload, self.context.errors)
        error = child_error(called, payload, self.context.errors)
        started = self.context.children.get(ref)
        if started is not None and not started.done() and is_refusal(error):
            started.set_exception(error)
            # Told to whoever waits for the start; nobody has to.
            started.exception()
        return error

    def on_idle(self) -> None:
        """Nothing is ready and conditions are waited for."""
        self.context.check_conditions()

    def on_finish(self) -> None:
        """The main task is done and nothing is ready: make the ending command."""
        main = self._main
        assert main is not None
        under_way = self.context.running_handlers
        if under_way and not self._loop.is_replaying:
            tasks.log.warning(
                "run %s ends while %d of its signal or update handlers are under way; await "
                "workflow.wait_condition(workflow.all_handlers_finished) first",
                self.run_id,
                under_way,
            )
        error = self._handler_error
        if error is None and main.cancelled():
            if self.context.cancel_requested:
                reason = self.context.cancel_reason or "cancel requested"
                payload = failure_to_payload(asyncio.CancelledError(reason))
                self._loop.emit(EventKind.RUN_CANCELLED, payload=payload)
                return
            error = asyncio.CancelledError("the workflow cancelled itself")
        if error is None:
            error = main.exception()
        if error is None:
            try:
                result = self.definition.signature.check_result(main.result())
            except PayloadError as misfit:
                error = misfit
            else:
                self._loop.emit(RUN_COMPLETED, payload=result)
                return
        self._end_with(error)

    def make_task(self, coro: Any, name: str | None, context: Context | None) -> Any:
        """Build the task of ``loop.create_task``, numbered within the run."""
        self.context.check_writable("asyncio tasks")
        self._task_count += 1
        if not isinstance(coro, CoroutineType):
            coro = as_coroutine(coro)
        return tasks.WorkflowTask(
            coro,
            loop=self._loop,
            serial=self._loop.next_serial(),
            name=name or f"Task-{self._task_count}",
            context=context,
        )

    # -- how it does it -----------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """An exception that a signal handler let through fails the run, as one of the code does."""
        if self._handler_error is None:
            self._handler_error = error
            if self._main is not None:
                self._main.cancel("a signal handler failed")

    def _start(self, meta: bytes | None, payload: bytes | None) -> None:
        context = self.context
        context.begin(StartMeta.from_json(meta), payload)
        self._queue = context.meta.queue
        args, kwargs = self.definition.signature.decode_args(payload or b"[]")
        try:
            fn, instance = self.definition.instantiate(args, kwargs)
        except (Exception, ContinueAsNew) as error:
            # As if the code had raised it first thing: it ends the run, which may be retried.
            main = raising(error)
        else:
            self._bind_handlers(instance)
            if context.hooks is None:
                main = fn(*args, **kwargs)
            else:
                main = run_surrounded(context.hooks, context, fn, args, kwargs)
        for name, signal in context.meta.signals:
            context.deliver(name, signal)
        self._main = self.make_task(main, "main", None)
        self._loop.set_main(self._main)

    def _bind_handlers(self, instance: object | None) -> None:
        if not self.definition.handlers:
            return
        requests = self.context.requests
        for handler in self.definition.handlers:
            bound = handler.fn.__get__(instance)
            validator = handler.validator.__get__(instance) if handler.validator else None
            if handler.kind == "signal" and handler.name == DYNAMIC:
                requests.handle_other_signals(bound)
            elif handler.kind == "signal":
                requests.handle_signal(handler.name, bound)
            elif handler.kind == "query":
                requests.add(requests.queries, handler.name, bound)
            elif handler.kind == "update":
                requests.add(requests.updates, handler.name, bound, validator)

    def _cancel(self, payload: bytes | None) -> None:
        context = self.context
        context.cancel_requested = True
        reason = decode_json(payload) if payload else None
        if isinstance(reason, list):
            reason = reason[0] if reason else None
        if isinstance(reason, dict):
            reason = reason.get("reason")
        context.cancel_reason = None if reason is None else str(reason)
        if self._main is not None:
            self._main.cancel(context.cancel_reason or "cancel requested")

    def _end_with(self, error: BaseException) -> None:
        """Make the ending command for a main task that raised."""
        if isinstance(error, SystemExit | KeyboardInterrupt | NonDeterminismError):
            raise error
        if isinstance(error, ContinueAsNew):
            self.goes_on = True
            options = {key: value for key, value in error.options.items() if value is not None}
            self._loop.emit(
                EventKind.RUN_CONTINUED_AS_NEW,
                name=error.name,
                options=self._codec.encode(options).decode() if options else None,
                payload=error.payload,
            )
            return
        options_text = None
        policy = self.definition.options.retry
        if policy is not None and not isinstance(error, asyncio.CancelledError):
            delay = next_delay_seconds(
                policy,
                self.context.meta.attempt,
                type_names(error),
                self.context.random.random(),
                is_final=is_final(error),
            )
            if delay is not None:
                self.goes_on = True
                options = {"delay_us": round(delay * 1e6)}
                options_text = self._codec.encode(options).decode()
        payload = failure_to_payload(error)
        self._loop.emit(EventKind.RUN_FAILED, options=options_text, payload=payload)

    def _deliver(
        self,
        kind: int,
        ref: int,
        time_us: int,
        name: str | None,
        meta: bytes | None,
        payload: bytes | None,
    ) -> None:
        try:
            self._loop.deliver(kind, ref, time_us, name, meta, payload)
        except BaseException as error:
            raise self._died(error) from None

    def _died(self, error: BaseException) -> BaseException:
        """After an error out of the core nothing in here can be relied on."""
        self._dead = True
        if isinstance(error, NonDeterminismError):
            error.run_id = self.run_id
        elif isinstance(error, HistoryCorruptError):
            error = HistoryCorruptError(error.reason, error.seq, error.offset, self.run_id)
        elif isinstance(error, HistoryUnsupportedError):
            error = HistoryUnsupportedError(error.what, error.seq, error.offset, self.run_id)
        if isinstance(error, NonDeterminismError) and error.found is None:
            # The code did nothing where history has something: say where it waits instead.
            error.source = "; ".join(self.where()[:WHERE_MAX]) or None
        # Not left to the garbage collector: closing a coroutine runs its ``finally`` blocks, and
        # they must not run while another run is the current one.
        self.evict()
        return error

    def _pending(self, kind: int) -> list[Event]:
        if self.is_finished:
            return []
        return [event for event in self._loop.pending() if event[1] == kind]

    def _close(self, turn: Turn, builder: TurnBuilder) -> None:
        """The run is over with this turn: void what is left of it, answer who still waits."""
        pending = self._loop.pending()
        builder.leave_children(pending, turn)
        turn.cancelled_activities = [
            *turn.cancelled_activities,
            *(
                event[0]
                for event in pending
                if event[1] == ACTIVITY_SCHEDULED and event[0] < turn.first_event_id
            ),
        ]
        if not self.context.requests.open:
            return
        answered = {response.request_id for response in turn.responses}
        closed = failure_to_payload(UpdateRejectedError("the run ended before the update did"))
        left = [
            Response(request_id, failure=closed)
            for request_id in self.context.requests.open
            if request_id not in answered
        ]
        turn.responses = [*turn.responses, *left]

    def _answer_query(self, name: str, meta: bytes | None, payload: bytes | None) -> Response:
        request_id = request_id_of(meta)
        try:
            return Response(request_id, payload=self.query(name, payload, headers_in(meta)))
        except Exception as error:
            return Response(request_id, failure=failure_to_payload(error))

    def _judge_update(
        self, time_us: int, name: str, meta: bytes | None, payload: bytes | None
    ) -> Response | None:
        request_id = request_id_of(meta)
        requests = self.context.requests
        if request_id in requests.seen or self.is_dead:
            return None
        try:
            if self.is_finished:
                raise UpdateRejectedError("the run has ended")
            requests.judge(name, payload)
        except Exception as error:
            if self.is_dead and not self._loop.is_spoilt:
                raise
            return Response(request_id, failure=failure_to_payload(refusal(name, error)))
        self._deliver(EventKind.UPDATE_ACCEPTED, 0, time_us, name, meta, payload)
        return None


async def as_coroutine(awaitable: Any) -> Any:
    """``create_task`` wants a coroutine; an activity call is a future."""
    return await awaitable


async def raising(error: BaseException) -> NoReturn:
    """The code of a run whose object could not be made."""
    raise error
