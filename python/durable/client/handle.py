"""Handle: one workflow from outside: wait for it, talk to it, look into it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Generic, TypeVar

from durable.client.answers import (
    decode_answer,
    encode_call,
    plain_failure,
    read_answer,
    wait_for_answer,
)
from durable.client.checks import check_id
from durable.client.connected import ConnectedClient
from durable.client.forking import ForkPlan, fork_point, plan_of, read_run
from durable.client.replica import HistoryEvent, events_of, memo_of, read_moment, rebuild
from durable.client.resetting import fork_run, reset_run
from durable.client.streams import StreamReader
from durable.codec import NO_CODEC, failure_from_payload, is_sealed
from durable.engine.attributes import message_meta, plain_headers
from durable.engine.definition import WorkflowDefinition, handler_name
from durable.engine.execution import Execution
from durable.engine.interceptors import MessageCall, Proceed, surround
from durable.engine.start import decode_json
from durable.errors import (
    UnknownWorkflowError,
    UnreadablePayloadError,
    WorkflowCancelledError,
    WorkflowError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowParkedError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durable.events import EventKind, Message, MessageKind, Response, RunState, RunView
from durable.hints import HANDLE, Hinted
from durable.options import seconds

R = TypeVar("R")

ANSWER_SECONDS = 10.0
"""How long a query or an update is waited for, unless the caller says otherwise."""

NEW_SECONDS = 60.0
"""How long after its start a run is taken to be there."""
NEW_SECONDS_MIN = 1.0
"""Whoever has less time to wait for a result gets the one that is there by a look."""

PAUSE_TRIES = 5
"""A run may continue as new between the look at it and the pause, so often at most."""

ENDINGS: Mapping[RunState, type[WorkflowError]] = {
    RunState.FAILED: WorkflowFailedError,
    RunState.CANCELLED: WorkflowCancelledError,
    RunState.TERMINATED: WorkflowTerminatedError,
    RunState.TIMED_OUT: WorkflowTimedOutError,
}


class WorkflowHandle(StreamReader, Generic[R], Hinted):
    """One workflow by its id, or one of its runs by ``run_id``. Made by a client; holds nothing."""

    _hints = HANDLE

    def __init__(
        self,
        client: ConnectedClient,
        workflow_id: str,
        run_id: str | None = None,
        definition: WorkflowDefinition[Any, R] | None = None,
        *,
        new_until: float = 0.0,
    ) -> None:
        self._client = client
        self._definition = definition
        self._new_until = new_until
        """Until then, by the loop's clock, its end is waited for without a look whether it is."""
        self.workflow_id = workflow_id
        self.run_id = run_id
        """The run this handle is about; None: the open or latest one."""

    def __repr__(self) -> str:
        return f"<workflow handle {self.workflow_id!r} run {self.run_id or '(latest)'}>"

    def of(self, client: ConnectedClient) -> WorkflowHandle[R]:
        """The same handle, of that client."""
        if self._client is client:
            return self
        return WorkflowHandle(client, self.workflow_id, self.run_id, self._definition)

    # -- its end -----------------------------------------------------------------------------

    async def result(self, timeout: timedelta | float | None = None) -> R:  # noqa: ASYNC109
        """Wait for the result, as the workflow's annotation says where its code is known.

        A run that continued as new, or was started again by its retry policy, is followed to the
        end. Raises WorkflowFailedError (with the exception as ``__cause__``),
        WorkflowCancelledError, WorkflowTerminatedError or WorkflowTimedOutError for a run that
        ended so; after ``timeout`` (seconds or timedelta) WorkflowParkedError for a run that is
        parked, TimeoutError for one that is not.
        """
        limit = None if timeout is None else seconds(timeout, "timeout")
        is_long = limit is None or limit >= NEW_SECONDS_MIN
        is_new = is_long and asyncio.get_running_loop().time() < self._new_until
        view = None if is_new else await self.describe()
        try:
            async with asyncio.timeout(limit):
                view = await self._end_of(view)
                while (successor := await self._successor(view)) is not None:
                    view = await self._end_of(successor)
        except TimeoutError:
            raise await self._late(limit or 0.0) from None
        return self._outcome(view)

    async def _end_of(self, view: RunView | None) -> RunView:
        """The run when it is closed; None stands for the one that this handle names."""
        if view is None or view.state < RunState.COMPLETED:
            run_id = self.run_id if view is None else view.run_id
            assert run_id is not None
            return await self._client.waiter.closed(run_id)
        return view

    async def _successor(self, view: RunView) -> RunView | None:
        """The next run of the chain, if this one did not end it."""
        if view.state not in (RunState.CONTINUED_AS_NEW, RunState.FAILED):
            return None
        latest = await self._client.store.view(workflow_id=self.workflow_id)
        if latest is None or latest.run_id == view.run_id:
            return None
        if view.state == RunState.CONTINUED_AS_NEW:
            return latest
        # The id may also have been used again by a start that has nothing to do with this run.
        return latest if (await self._start_of(latest)).get("continued_from") is not None else None

    async def _start_of(self, view: RunView) -> dict[str, Any]:
        """The circumstances of a run, as recorded with its start."""
        found = await self._client.store.first_batches({view.run_id: view.part})
        meta = events_of(view.run_id, [found[view.run_id]])[0].meta
        return meta if isinstance(meta, dict) else {}

    async def _late(self, limit: float) -> BaseException:
        view = await self.describe()
        if view.state == RunState.PARKED:
            failure = plain_failure(view.failure)
            return WorkflowParkedError(
                f"workflow {self.workflow_id} is parked ({failure.get('reason', 'no reason')}): "
                f"{failure.get('message', '')}",
                workflow_id=self.workflow_id,
                run_id=view.run_id,
                failure=failure,
            )
        if view.state == RunState.PAUSED:
            return TimeoutError(self._is_paused(view))
        text = (
            f"workflow {self.workflow_id} has no result after {limit:g} s; it is still "
            f"{view.state.name.lower()}"
        )
        if view.session is None and view.event_batches <= 1:
            text += (
                "; no worker has it now: its start may lie ahead, or none serves queue "
                f"{view.queue!r} with workflow {view.workflow_type!r}"
            )
        return TimeoutError(text)

    def _is_paused(self, view: RunView) -> str:
        why = plain_failure(view.failure).get("message")
        return f"workflow {self.workflow_id} is paused" + (f": {why}" if why else "")

    def _outcome(self, view: RunView) -> R:
        if view.unreadable is not None:
            raise view.unreadable
        if is_sealed(view.result):
            raise UnreadablePayloadError(NO_CODEC)
        if view.state == RunState.COMPLETED:
            definition = self._definition or self._client.known(view.workflow_type)
            if definition is not None:
                value: R = definition.signature.decode_result(view.result)
            else:
                value = None if view.result is None else decode_json(view.result)  # type: ignore[assignment]
            return value
        failure = plain_failure(view.failure)
        kind = ENDINGS.get(view.state, WorkflowFailedError)
        said = failure.get("message") or failure.get("type") or ""
        if view.state == RunState.FAILED and failure.get("type"):
            said = f"{failure['type']}: {failure.get('message', '')}"
        ended = view.state.name.lower().replace("_", " ")
        error = kind(
            f"workflow {self.workflow_id} {ended}" + (f": {said}" if said else ""),
            workflow_id=self.workflow_id,
            run_id=view.run_id,
            failure=failure,
        )
        if view.state == RunState.FAILED and view.failure is not None:
            sealed = is_sealed(view.failure)
            error.__cause__ = (
                UnreadablePayloadError(NO_CODEC) if sealed else failure_from_payload(view.failure)
            )
        raise error

    # -- talking to it -----------------------------------------------------------------------

    async def signal(
        self,
        signal: str | Callable[..., Any],
        *args: Any,
        request_id: str | None = None,
        conn: Any = None,
    ) -> None:
        """Send a signal, by name or by its ``@workflow.signal`` method; it is never lost.

        A repeated send with the same ``request_id`` is a no-op. With ``conn`` (a psycopg async
        connection) it belongs to the caller's transaction. Raises WorkflowNotFoundError when no run
        with the id is open.
        """
        codec, name = self._client.codec, handler_name(signal)

        async def send(call: MessageCall) -> None:
            await self._send(
                EventKind.SIGNAL_RECEIVED,
                name=name,
                meta=message_meta(plain_headers(call.headers, codec)),
                payload=encode_call(codec, signal, call.args),
                request_id=request_id,
                conn=conn,
            )

        await self._surrounded("signal_workflow", name, args, send)

    async def _surrounded(
        self, hook: str, name: str, args: tuple[Any, ...], send: Proceed[MessageCall]
    ) -> Any:
        """Send a message, with the client's interceptors around it."""
        around = self._client.hooks.around(hook)
        call = MessageCall(self.workflow_id, self.run_id, name, args)
        return await (surround(around, send) if around else send)(call)

    async def pause(self, reason: str = "") -> None:
        """Stop it until `resume`: its code gets no more turns, whatever reaches it.

        A turn that is under way is finished, and so are activities that run now; their results,
        timers that fire, signals, updates and a cancel wait for the resume. Queries are not
        answered meanwhile. Its time limits go on, and `terminate` ends it as ever. A run that is
        paused already gets the new reason. Raises WorkflowNotFoundError when no run is open.
        """
        paused = {"reason": "paused", "message": reason}
        for _ in range(PAUSE_TRIES):
            view = await self.describe()
            if view.state >= RunState.COMPLETED:
                break
            # It may have continued as new since we looked.
            if await self._client.store.pause({view.run_id: self._client.codec.encode(paused)}):
                self._client.hinter.work(runs_only=True)
                return
        raise WorkflowNotFoundError(
            f"no run of workflow {self.workflow_id} is open to be paused; "
            f"run {view.run_id} is {view.state.name.lower()}"
        )

    async def resume(self) -> bool:
        """Let a paused run go on where it was; False when it was not paused."""
        view = await self.describe()
        count = await self._client.store.resume([view.run_id])
        self._client.hinter.work(runs_only=True)
        return count > 0

    async def cancel(self, reason: str = "") -> None:
        """Ask it to end: its code gets a CancelledError and may clean up.

        A run that is paused gets it when it is resumed.
        """

        async def send(call: MessageCall) -> None:
            payload = self._client.codec.encode(list(call.args)) if any(call.args) else None
            await self._send(EventKind.CANCEL_REQUESTED, payload=payload)

        await self._surrounded("cancel_workflow", "", (reason,), send)

    async def terminate(self, reason: str = "") -> None:
        """End it without running its code; also when it is parked or paused."""
        failure = {"type": "Terminated", "message": reason or "terminated"}
        run_id = await self._send(
            EventKind.RUN_TERMINATED, payload=self._client.codec.encode(failure)
        )
        await self._client.store.unpark([run_id])
        self._client.hinter.work(runs_only=True)

    async def unpark(self) -> bool:
        """Have a parked run tried again now; False when it was not parked."""
        view = await self.describe()
        count = await self._client.store.unpark([view.run_id])
        self._client.hinter.work(runs_only=True)
        return count > 0

    async def plan_reset(
        self,
        *,
        to_event: int | None = None,
        before_activity: str | None = None,
        to_last_turn: bool = False,
    ) -> ForkPlan:
        """Where `reset` or `fork` to that point would go on, and what would be done again.

        Changes nothing. Raises InvalidArgumentError as they do.
        """
        point = fork_point(to_event, before_activity, to_last_turn)
        return plan_of(await read_run(self._client, await self.describe()), point)

    async def reset(
        self,
        *,
        to_event: int | None = None,
        before_activity: str | None = None,
        to_last_turn: bool = False,
        workflow: WorkflowDefinition[Any, R] | None = None,
        reason: str = "",
        keep_signals: bool = True,
        timeout: timedelta | float = ANSWER_SECONDS,  # noqa: ASYNC109
    ) -> WorkflowHandle[R]:
        """End its run and go on, as a new run of the same id, from a point of its history.

        The point is one of: ``to_event``, the last event that is kept (or the last fact before it,
        if that is a command); ``before_activity``, before the last call of the activity of that
        name; ``to_last_turn``, before what its code asked for last. What the code had asked for by
        then and has no outcome of begins again: activities with their first attempt, timers as
        they are due. What came later is undone only in the history: what activities did is done.
        ``keep_signals`` sends the signals that came after the point again. ``workflow`` moves it to
        another one, such as the next version of a pinned workflow, with all it has if no point is
        given.

        Works on open runs (also parked and paused ones), which are terminated first, and on closed
        ones. Returns the handle of the new run. Raises InvalidArgumentError for a point that there
        is not, or at which a child or a message to another run has no outcome yet;
        NonDeterminismError, with nothing done, when code that this client has does not fit the part
        that is kept; TimeoutError when the old run has not ended in ``timeout`` (reset it again);
        WorkflowAlreadyStartedError when somebody else started the id meanwhile.
        """
        limit = seconds(timeout, "timeout")
        point = fork_point(to_event, before_activity, to_last_turn)
        run_id = await reset_run(
            self._client,
            await self.describe(),
            point,
            limit,
            definition=self._definition,
            target=workflow,
            reason=reason,
            keep_signals=keep_signals,
        )
        return WorkflowHandle(self._client, self.workflow_id, run_id, workflow or self._definition)

    async def fork(
        self,
        id: str,
        *,
        to_event: int | None = None,
        before_activity: str | None = None,
        to_last_turn: bool = False,
        workflow: WorkflowDefinition[Any, R] | None = None,
        keep_signals: bool = False,
    ) -> WorkflowHandle[R]:
        """Start another workflow, ``id``, that begins with its history up to a point.

        As `reset`, which says what a point is and what is raised, but this run goes on as it was.
        """
        point = fork_point(to_event, before_activity, to_last_turn)
        run_id = await fork_run(
            self._client,
            await self.describe(),
            check_id(id, "a workflow id"),
            point,
            definition=self._definition,
            target=workflow,
            keep_signals=keep_signals,
        )
        return WorkflowHandle(self._client, id, run_id, workflow or self._definition)

    async def query(
        self,
        query: str | Callable[..., Any],
        *args: Any,
        result_type: Any = Any,
        timeout: timedelta | float = ANSWER_SECONDS,  # noqa: ASYNC109
    ) -> Any:
        """Ask the run itself: its worker answers, or this process when the run is closed.

        Raises what the handler raised, UpdateRejectedError when there is no such query, and
        TimeoutError when no worker answers in time.
        """
        codec, limit = self._client.codec, seconds(timeout, "timeout")

        async def send(call: MessageCall) -> Any:
            headers = plain_headers(call.headers, codec)
            payload = encode_call(codec, query, call.args)
            return await self._query(query, payload, headers, limit, result_type)

        return await self._surrounded("query_workflow", handler_name(query), args, send)

    async def _query(
        self,
        query: str | Callable[..., Any],
        payload: bytes,
        headers: Mapping[str, Any],
        limit: float,
        result_type: Any,
    ) -> Any:
        name = handler_name(query)
        try:
            response = await self._ask(MessageKind.QUERY, name, payload, headers, limit)
        except (TimeoutError, WorkflowNotFoundError):
            view = await self.describe()
            if view.state < RunState.COMPLETED:
                raise
            # It has ended, or did before it came to the question.
            return await self._query_closed(view, query, payload, headers, result_type)
        return read_answer(self._client.codec, response, query, result_type)

    async def _query_closed(
        self,
        view: RunView,
        query: str | Callable[..., Any],
        payload: bytes,
        headers: Mapping[str, Any],
        result_type: Any,
    ) -> Any:
        execution = await self._replay(view)
        try:
            answer = execution.query(handler_name(query), payload, headers)
        finally:
            execution.evict()
        return decode_answer(self._client.codec, answer, query, result_type)

    async def update(
        self,
        update: str | Callable[..., Any],
        *args: Any,
        result_type: Any = Any,
        request_id: str | None = None,
        timeout: timedelta | float = ANSWER_SECONDS,  # noqa: ASYNC109
    ) -> Any:
        """Change the run and wait for the answer of its update handler.

        Raises UpdateRejectedError when the run did not take it (nothing is recorded then): its
        ``__cause__`` is what the validator raised, or what is wrong with the arguments. Raises what
        the handler raised, and TimeoutError when there is no answer in time: it may still be done,
        and asking again with the same ``request_id`` does it no second time.
        """
        codec, limit, name = self._client.codec, seconds(timeout, "timeout"), handler_name(update)

        async def send(call: MessageCall) -> Any:
            headers = plain_headers(call.headers, codec)
            payload = encode_call(codec, update, call.args)
            response = await self._ask(
                MessageKind.UPDATE_REQUESTED, name, payload, headers, limit, request_id
            )
            return read_answer(codec, response, update, result_type)

        return await self._surrounded("update_workflow", name, args, send)

    async def _ask(
        self,
        kind: MessageKind,
        name: str,
        payload: bytes,
        headers: Mapping[str, Any],
        limit: float,
        request_id: str | None = None,
    ) -> Response:
        request_id = request_id or str(uuid.uuid4())
        meta = message_meta(headers, request_id=request_id)
        await self._send(kind, name=name, payload=payload, meta=meta, request_id=request_id)
        try:
            return await wait_for_answer(self._client, self.workflow_id, name, request_id, limit)
        except TimeoutError:
            view = await self.describe()
            if view.state == RunState.PAUSED:
                raise TimeoutError(
                    f"{self._is_paused(view)}; it answers {name!r} when it is resumed"
                ) from None
            raise

    async def _send(
        self,
        kind: EventKind | MessageKind,
        *,
        name: str | None = None,
        payload: bytes | None = None,
        meta: bytes | None = None,
        request_id: str | None = None,
        conn: Any = None,
    ) -> str:
        message = Message(
            kind=kind,
            workflow_id=None if self.run_id else self.workflow_id,
            run_id=self.run_id,
            name=name,
            meta=meta,
            payload=payload,
            request_id=request_id or str(uuid.uuid4()),
        )
        told = conn is not None
        if told:
            (run_id,) = await self._client.store.send([message], conn)
        else:
            run_id, told = await self._client.store.send_telling(message)
        if run_id is None:
            view = await self.describe()
            raise WorkflowNotFoundError(
                f"no run of workflow {self.workflow_id} is open; "
                f"run {view.run_id} is {view.state.name.lower()}"
            )
        if not told:
            self._client.hinter.work(runs_only=True)
        return run_id

    # -- looking into it ---------------------------------------------------------------------

    async def describe(self) -> RunView:
        """Where it stands; raise WorkflowNotFoundError when there is no such run."""
        view = await self._client.store.view(
            workflow_id=None if self.run_id else self.workflow_id, run_id=self.run_id
        )
        if view is None:
            which = f" and run id {self.run_id}" if self.run_id else ""
            raise WorkflowNotFoundError(f"there is no workflow with id {self.workflow_id!r}{which}")
        return view

    async def memo(self) -> dict[str, Any]:
        """What it carries for people: ``memo=`` of its start, and `durable.workflow.upsert_memo`.

        Reads its history, not its code. Raises WorkflowNotFoundError.
        """
        return memo_of(await self.history())

    async def history(self) -> list[HistoryEvent]:
        """What happened in it, event by event."""
        view = await self.describe()
        histories = await self._client.store.load({view.run_id: view.part})
        return events_of(view.run_id, histories.get(view.run_id, []))

    async def vars(self) -> dict[str, Any]:
        """Its variables (`workflow.set_vars`), rebuilt by replay in this process.

        Asks no worker and changes nothing; signals it has not read yet are taken into account.
        Needs the workflow's code: raises UnknownWorkflowError without. Raises NonDeterminismError
        when that code is not the run's.
        """
        execution = await self._replay(await self.describe())
        try:
            return execution.vars
        finally:
            execution.evict()

    async def where(self) -> list[str]:
        """Where its code waits, one line per task: ``task: file:line function``. By replay."""
        execution = await self._replay(await self.describe())
        try:
            return execution.where()
        finally:
            execution.evict()

    async def _replay(self, view: RunView) -> Execution:
        definition = self._definition or self._client.known(view.workflow_type)
        if definition is None or definition.name != view.workflow_type:
            raise UnknownWorkflowError(
                f"workflow {self.workflow_id} is a {view.workflow_type!r}, whose code this client "
                "does not have; pass workflow= to get_handle(), or workflows= to Client.connect()"
            )
        batches, items = await read_moment(self._client.store, view)
        registry = self._client.registry
        return rebuild(view, definition, registry, batches, items)
