"""Handle: a run of a test environment, as its test sees it.

The methods are those of `durable.WorkflowHandle`, with what a test wants to know besides.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Generic, TypeVar, cast

from durable.client.forking import ForkPlan, fork_point, plan_of
from durable.client.replica import events_of, memo_of
from durable.client.streams import StreamItem
from durable.codec import DEFAULT_CODEC, Signature, failure_from_payload
from durable.engine.attributes import message_meta, plain_headers
from durable.engine.definition import WorkflowDefinition, handler_name
from durable.engine.execution import Execution
from durable.engine.interceptors import MessageCall, Proceed, surround
from durable.engine.remote import message_of
from durable.engine.streams import check_stream_name
from durable.errors import (
    InvalidArgumentError,
    PayloadError,
    WorkflowCancelledError,
    WorkflowError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durable.events import DYNAMIC, EventKind, Message, MessageKind, RunState
from durable.hints import HANDLE, Hinted
from durable.testing.history import History
from durable.testing.resetting import go_on, record
from durable.testing.waiting import settle, until
from durable.testing.world import Fact, Run, World

R = TypeVar("R")

ENDINGS: dict[RunState, tuple[type[WorkflowError], str]] = {
    RunState.FAILED: (WorkflowFailedError, "failed"),
    RunState.CANCELLED: (WorkflowCancelledError, "was cancelled"),
    RunState.TERMINATED: (WorkflowTerminatedError, "was terminated"),
    RunState.TIMED_OUT: (WorkflowTimedOutError, "is over its time"),
}


class TestHandle(Generic[R], Hinted):
    """A run of a `WorkflowEnvironment`, or the chain of runs that it became."""

    __test__ = False
    _hints = HANDLE

    def __init__(self, world: World, run: Run) -> None:
        self._world = world
        self._run = run

    @property
    def workflow_id(self) -> str:
        """The id that the whole chain shares."""
        return self._run.new.workflow_id

    @property
    def run_id(self) -> str:
        """The run that is, or was, the last of the chain."""
        return self._last().new.run_id

    async def state(self) -> RunState:
        """Where the last run of the chain is."""
        await settle(self._world)
        return self._last().state

    async def stream(
        self, name: str, after: int = 0, *, type: Any = Any
    ) -> AsyncIterator[StreamItem[Any]]:
        """What activities of the last run have written to it when nothing moves any more.

        See `durable.WorkflowHandle.stream`; after `result` it is all of it.
        """
        await settle(self._world)
        for item in self._world.streams.read(self.run_id, check_stream_name(name), after, type):
            yield item

    async def result(self) -> R:
        """Let time pass until the workflow ends, and return its result.

        Raises WorkflowFailedError and its siblings as `WorkflowHandle.result` does. What would
        park a run in production (a mismatch, an input that does not fit) is raised as it is.
        StuckError: the run waits for something that nobody sends.
        """
        await until(self._world, self._is_over, self._waiting)
        run = self._last()
        if run.error is not None:
            raise run.error
        assert run.closing is not None
        if run.closing.state == RunState.COMPLETED:
            decode = run.definition.signature.decode_result
            return cast(R, decode(run.closing.result or b"null"))
        raise self._failure(run)

    async def signal(self, name: str | Callable[..., Any], *args: Any) -> None:
        """Send a signal; raise WorkflowNotFoundError when the run has ended."""
        label = handler_name(name)

        async def send(call: MessageCall) -> None:
            meta = message_meta(plain_headers(call.headers, DEFAULT_CODEC))
            self._send(EventKind.SIGNAL_RECEIVED, label, encode_call(name, call.args), meta)
            await settle(self._world)

        await self._surrounded("signal_workflow", label, args, send)

    async def _surrounded(
        self, hook: str, name: str, args: tuple[Any, ...], send: Proceed[MessageCall]
    ) -> Any:
        """Send a message, with the interceptors around it."""
        call = MessageCall(self.workflow_id, None, name, args)
        return await surround(self._world.registry.hooks.around(hook), send)(call)

    async def pause(self, reason: str = "") -> None:
        """Stop it until `resume`: its code gets no more turns, whatever reaches it.

        Activities that run now end all the same; `terminate` and the time limits end the run.
        Raises WorkflowNotFoundError when it has ended.
        """
        await settle(self._world)
        run = self._last()
        if not run.is_open:
            raise WorkflowNotFoundError(f"{self.workflow_id} has ended")
        self._world.pause(run)

    async def resume(self) -> bool:
        """Let a paused run go on where it was; False when it was not paused."""
        resumed = self._world.resume(self._last())
        await settle(self._world)
        return resumed

    async def cancel(self, reason: str | None = None) -> None:
        """Ask the run to cancel itself."""

        async def send(call: MessageCall) -> None:
            said = call.args[0] if call.args else ""
            payload = DEFAULT_CODEC.encode({"reason": said}) if said else None
            self._send(EventKind.CANCEL_REQUESTED, None, payload)
            await settle(self._world)

        await self._surrounded("cancel_workflow", "", (reason or "",), send)

    async def terminate(self, reason: str = "") -> None:
        """End the run from outside; its code does not run again."""
        failure = {"type": "Terminated", "message": reason or "terminated"}
        self._send(EventKind.RUN_TERMINATED, None, DEFAULT_CODEC.encode(failure))
        await settle(self._world)

    async def plan_reset(
        self,
        *,
        to_event: int | None = None,
        before_activity: str | None = None,
        to_last_turn: bool = False,
    ) -> ForkPlan:
        """Where `reset` or `fork` to that point would go on; see `WorkflowHandle.plan_reset`."""
        await settle(self._world)
        return plan_of(record(self._last()), fork_point(to_event, before_activity, to_last_turn))

    async def reset(
        self,
        *,
        to_event: int | None = None,
        before_activity: str | None = None,
        to_last_turn: bool = False,
        workflow: WorkflowDefinition[Any, R] | None = None,
        reason: str = "",
        keep_signals: bool = True,
    ) -> TestHandle[R]:
        """End its run and go on, under the same id, from a point of its history.

        As `WorkflowHandle.reset` does, with the same errors. This handle stays with the run that
        ended; the one that is returned is of the new run.
        """
        point = fork_point(to_event, before_activity, to_last_turn)
        return await self._go_on(point, target=workflow, reason=reason, keep_signals=keep_signals)

    async def fork(
        self,
        id: str,
        *,
        to_event: int | None = None,
        before_activity: str | None = None,
        to_last_turn: bool = False,
        workflow: WorkflowDefinition[Any, R] | None = None,
        keep_signals: bool = False,
    ) -> TestHandle[R]:
        """Start another workflow, ``id``, from a point of its history.

        As `WorkflowHandle.fork` does; this run goes on as it was.
        """
        point = fork_point(to_event, before_activity, to_last_turn)
        return await self._go_on(point, target=workflow, fork_id=id, keep_signals=keep_signals)

    async def _go_on(self, point: dict[str, Any], **how: Any) -> TestHandle[R]:
        await settle(self._world)
        run = go_on(self._world, self._last(), point, **how)
        await settle(self._world)
        return TestHandle(self._world, run)

    async def query(self, name: str | Callable[..., Any], *args: Any) -> Any:
        """Ask a question; raise what the handler raises, and TimeoutError while it is paused."""
        label = handler_name(name)

        async def send(call: MessageCall) -> Any:
            await settle(self._world)
            if self._last().is_paused and self._last().is_open:
                raise TimeoutError(f"{self.workflow_id} is paused; it answers when it is resumed")
            headers = plain_headers(call.headers, DEFAULT_CODEC)
            answer = self._execution().query(label, encode_call(name, call.args), headers)
            return decode_answer(self._run.definition, "query", label, answer)

        return await self._surrounded("query_workflow", label, args, send)

    async def update(self, name: str | Callable[..., Any], *args: Any) -> Any:
        """Have the run change something and return its answer, letting time pass until it is there.

        Raises UpdateRejectedError when the run refused it, with what its validator raised as the
        ``__cause__``, else what the handler raised.
        """
        label = handler_name(name)

        async def send(call: MessageCall) -> Any:
            payload = encode_call(name, call.args)
            return await self._update(label, payload, plain_headers(call.headers, DEFAULT_CODEC))

        return await self._surrounded("update_workflow", label, args, send)

    async def _update(self, label: str, payload: bytes, headers: Mapping[str, Any]) -> Any:
        return await self._answer(label, self._ask(label, payload, headers))

    def _ask(self, label: str, payload: bytes, headers: Mapping[str, Any]) -> str:
        """Send an update; return the id that its answer will have."""
        request_id = f"update {next(self._world.request_numbers)}"
        meta = message_meta(headers, request_id=request_id)
        run = self._last()
        if not run.is_open:
            raise WorkflowNotFoundError(f"{self.workflow_id} has ended")
        self._world.tell(run, Fact(MessageKind.UPDATE_REQUESTED, 0, label, meta, payload))
        return request_id

    async def _answer(self, label: str, request_id: str) -> Any:
        """Let time pass until an update is answered; see `update`."""
        responses = self._world.responses
        await until(
            self._world,
            lambda: request_id in responses or self._last().error is not None,
            self._waiting,
        )
        run = self._last()
        if request_id not in responses and run.error is not None:
            raise run.error
        response = responses[request_id]
        if response.failure is not None:
            raise failure_from_payload(response.failure, None)
        definition = self._run.definition
        return decode_answer(definition, "update", label, response.payload or b"null")

    async def memo(self) -> dict[str, Any]:
        """What the run carries for people; see `WorkflowHandle.memo`."""
        recorded = (await self.history()).recorded
        return memo_of(events_of(recorded.run_id, list(recorded.batches)))

    async def vars(self) -> dict[str, Any]:
        """What the code set by `workflow.set_vars`, now or at its end."""
        await settle(self._world)
        return self._execution().vars

    async def where(self) -> list[str]:
        """Where each task of the run waits: ``task: file:line function``."""
        await settle(self._world)
        return self._execution().where()

    async def history(self) -> History:
        """What happened in the last run of the chain."""
        await settle(self._world)
        return History(self._last().recorded())

    async def histories(self) -> list[History]:
        """What happened in each run of the chain."""
        await settle(self._world)
        return [History(run.recorded()) for run in self._chain()]

    # -- how it does it --------------------------------------------------------------------------

    def _chain(self) -> list[Run]:
        runs = [self._run]
        while (following := runs[-1].successor) is not None:
            runs.append(following)
        return runs

    def _last(self) -> Run:
        return self._chain()[-1]

    def _is_over(self) -> bool:
        return not self._last().is_open

    def _waiting(self) -> str:
        run = self._last()
        where = run.execution.where() if run.execution is not None else []
        places = "; ".join(where) or "not started"
        if run.is_paused:
            places = f"paused; {places}"
        return f"{run.new.workflow_type} {self.workflow_id!r} ({places})"

    def _execution(self) -> Execution:
        run = self._last()
        if run.error is not None:
            raise run.error
        if run.execution is None:
            raise WorkflowNotFoundError(f"{self.workflow_id} has not begun")
        return self._world.revive(run) if run.execution.is_dead else run.execution

    def _send(
        self, kind: EventKind, name: str | None, payload: bytes | None, meta: bytes | None = None
    ) -> None:
        run_id = self._last().new.run_id
        message = Message(kind, run_id=run_id, name=name, meta=meta, payload=payload)
        if self._world.send(message) is None:
            raise WorkflowNotFoundError(f"{self.workflow_id} has ended")

    def _failure(self, run: Run) -> WorkflowError:
        closing = run.closing
        assert closing is not None
        kind, what = ENDINGS[closing.state]
        data = DEFAULT_CODEC.decode(closing.failure) if closing.failure else {}
        said = message_of(data) if isinstance(data, dict) and data else ""
        error = kind(
            f"{run.new.workflow_type} {self.workflow_id!r} {what}{f': {said}' if said else ''}",
            workflow_id=self.workflow_id,
            run_id=run.new.run_id,
            failure=data if isinstance(data, dict) else None,
        )
        if closing.failure:
            error.__cause__ = failure_from_payload(closing.failure, None)
        return error


def encode_call(handler: str | Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    """The arguments of a signal, query or update; checked when the handler itself is given.

    Raises InvalidArgumentError when they do not fit, EncodeError when they cannot be written.
    """
    if isinstance(handler, str):
        return DEFAULT_CODEC.encode(list(args))
    # An update method wraps the function that was decorated.
    signature = Signature.of(getattr(handler, "fn", handler), skip=1)
    payload = signature.encode_args(args, {})
    try:
        signature.decode_args(payload)
    except PayloadError as error:
        raise InvalidArgumentError(str(error)) from error
    return payload


def decode_answer(
    definition: WorkflowDefinition[Any, Any], kind: str, name: str, payload: bytes
) -> Any:
    """An answer as the handler's annotation says, where its class is known; else plain JSON."""
    # Its own handler, else the dynamic one, which sorts first.
    for handler in sorted(definition.handlers, key=lambda each: each.name, reverse=True):
        if handler.kind == kind and handler.name in (name, DYNAMIC):
            fn = getattr(handler.fn, "fn", handler.fn)
            return Signature.of(fn, skip=1).decode_result(payload)
    return DEFAULT_CODEC.decode(payload)
