"""With start: the calls that talk to a run, and start it when it is not there.

One statement does both, so nobody can come in between: either the open run of the id has the
message, or a new run has it from its beginning. A request id makes the call repeatable. The run
that it would start is named after it, so a repeat finds that run even when it has ended since.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar, TypeVarTuple, Unpack, overload

from durable.client.answers import encode_call, read_answer, wait_for_answer
from durable.client.checks import check_id
from durable.client.handle import ANSWER_SECONDS, WorkflowHandle
from durable.client.intercepting import start_call, started_with
from durable.client.starting import RunOptions, StartingClient, StartOptions, checked_options
from durable.engine.attributes import message_meta, plain_headers
from durable.engine.definition import handler_name
from durable.engine.interceptors import StartCall, surround
from durable.errors import WorkflowAlreadyStartedError
from durable.events import EventKind, Message, MessageKind, NewRun, RunState
from durable.options import seconds

R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Us = TypeVarTuple("Us")

REQUESTS = (MessageKind.UPDATE_REQUESTED, MessageKind.QUERY)
"""Messages that are answered under their request id."""
REQUEST_NAMESPACE = uuid.UUID("5b1d3c0e-54a0-5d3b-9a51-7c2f6b8f0f5e")


class WithStartClient(StartingClient):
    """The calls that talk to a run, and start it when it is not there."""

    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        *args: *Ts,
        id: str,
        signal: Callable[[Any, *Us], Any],
        signal_args: tuple[*Us],
        request_id: str | None = ...,
        conn: Any = ...,
        **options: Unpack[RunOptions],
    ) -> WorkflowHandle[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        *args: *Ts,
        id: str,
        signal: Callable[[Any], Any],
        request_id: str | None = ...,
        conn: Any = ...,
        **options: Unpack[RunOptions],
    ) -> WorkflowHandle[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        *args: *Ts,
        id: str,
        signal: str,
        signal_args: Sequence[Any] = ...,
        request_id: str | None = ...,
        conn: Any = ...,
        **options: Unpack[RunOptions],
    ) -> WorkflowHandle[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: str | type,
        *args: Any,
        id: str,
        signal: str | Callable[..., Any],
        signal_args: Sequence[Any] = ...,
        request_id: str | None = ...,
        conn: Any = ...,
        **options: Unpack[RunOptions],
    ) -> WorkflowHandle[Any]: ...

    async def signal_with_start(  # type: ignore[misc]  # mypy: as in `start`
        self,
        workflow: Any,
        *args: Any,
        id: str,
        signal: str | Callable[..., Any],
        signal_args: Sequence[Any] = (),
        request_id: str | None = None,
        conn: Any = None,
        **options: Unpack[RunOptions],
    ) -> WorkflowHandle[Any]:
        """Signal the open run that has the id, or start one that has the signal from its beginning.

        Returns a handle to that run. ``args`` and ``options`` are those of a start (see `start`)
        and do nothing when a run is open. A repeated call with the same ``request_id`` is a no-op.
        With ``conn`` (a psycopg async connection) it belongs to the caller's transaction.

        Raises what `start` raises; WorkflowAlreadyStartedError when the last run of the id has
        closed and ``id_reuse`` does not allow another.
        """
        return await self._start_and_send(
            workflow,
            id,
            args,
            checked_options(options, RunOptions),
            Message(
                EventKind.SIGNAL_RECEIVED,
                workflow_id=id,
                name=handler_name(signal),
                payload=encode_call(self.codec, signal, signal_args),
                request_id=request_id or str(uuid.uuid4()),
            ),
            request_id,
            conn,
        )

    @overload
    async def update_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        *args: *Ts,
        id: str,
        update: Callable[[Any, *Us], Awaitable[T]],
        update_args: tuple[*Us],
        request_id: str | None = ...,
        timeout: timedelta | float = ...,  # noqa: ASYNC109
        **options: Unpack[RunOptions],
    ) -> T: ...
    @overload
    async def update_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        *args: *Ts,
        id: str,
        update: Callable[[Any], Awaitable[T]],
        request_id: str | None = ...,
        timeout: timedelta | float = ...,  # noqa: ASYNC109
        **options: Unpack[RunOptions],
    ) -> T: ...
    @overload
    async def update_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        *args: *Ts,
        id: str,
        update: Callable[[Any, *Us], T],
        update_args: tuple[*Us],
        request_id: str | None = ...,
        timeout: timedelta | float = ...,  # noqa: ASYNC109
        **options: Unpack[RunOptions],
    ) -> T: ...
    @overload
    async def update_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        *args: *Ts,
        id: str,
        update: Callable[[Any], T],
        request_id: str | None = ...,
        timeout: timedelta | float = ...,  # noqa: ASYNC109
        **options: Unpack[RunOptions],
    ) -> T: ...
    @overload
    async def update_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        *args: *Ts,
        id: str,
        update: str,
        update_args: Sequence[Any] = ...,
        result_type: Any = ...,
        request_id: str | None = ...,
        timeout: timedelta | float = ...,  # noqa: ASYNC109
        **options: Unpack[RunOptions],
    ) -> Any: ...
    @overload
    async def update_with_start(
        self,
        workflow: str | type,
        *args: Any,
        id: str,
        update: str | Callable[..., Any],
        update_args: Sequence[Any] = ...,
        result_type: Any = ...,
        request_id: str | None = ...,
        timeout: timedelta | float = ...,  # noqa: ASYNC109
        **options: Unpack[RunOptions],
    ) -> Any: ...

    async def update_with_start(  # type: ignore[misc]  # mypy: as in `start`
        self,
        workflow: Any,
        *args: Any,
        id: str,
        update: str | Callable[..., Any],
        update_args: Sequence[Any] = (),
        result_type: Any = Any,
        request_id: str | None = None,
        timeout: timedelta | float = ANSWER_SECONDS,  # noqa: ASYNC109
        **options: Unpack[RunOptions],
    ) -> Any:
        """Update the open run that has the id, or start one and update it; return the answer.

        ``args`` and ``options`` are those of a start and do nothing when a run is open. The answer
        is read as the annotation of the update method says, or as ``result_type``. Asking again
        with the same ``request_id`` changes nothing a second time and gets the same answer.

        Raises what `start` raises, and what `WorkflowHandle.update` raises. An update that the run
        refuses leaves the run that was started for it.
        """
        limit = seconds(timeout, "timeout")
        name, asked = handler_name(update), request_id or str(uuid.uuid4())
        await self._start_and_send(
            workflow,
            id,
            args,
            checked_options(options, RunOptions),
            Message(
                MessageKind.UPDATE_REQUESTED,
                workflow_id=id,
                name=name,
                payload=encode_call(self.codec, update, update_args),
                request_id=asked,
            ),
            request_id,
            None,
        )
        response = await wait_for_answer(self, id, name, asked, limit)
        return read_answer(self.codec, response, update, result_type)

    async def _start_and_send(
        self,
        workflow: Any,
        id: str,
        args: tuple[Any, ...],
        options: StartOptions,
        message: Message,
        request_id: str | None,
        conn: Any,
    ) -> WorkflowHandle[Any]:
        check_id(id, "a workflow id")
        run_id = None
        if request_id is not None:
            check_id(request_id, "a request id")
            run_id = str(uuid.uuid5(REQUEST_NAMESPACE, f"{len(id)} {id} {request_id}"))
        call = start_call(workflow, id, args, {}, options, message.name)

        async def send(call: StartCall) -> WorkflowHandle[Any]:
            chosen = started_with(call, StartOptions)
            run = await self.new_run(workflow, id, call.args, call.kwargs, chosen, run_id=run_id)
            headers = plain_headers(call.headers, self.codec)
            asked = {"request_id": message.request_id} if message.kind in REQUESTS else {}
            message.meta = message_meta(headers, **asked)
            return await self._send_with(run, message, workflow, conn)

        handle: WorkflowHandle[Any]
        handle = await surround(self.hooks.around("start_workflow"), send)(call)
        return handle

    async def _send_with(
        self, run: NewRun, message: Message, workflow: Any, conn: Any
    ) -> WorkflowHandle[Any]:
        id = run.workflow_id
        (started,) = await self.store.start_and_send([run], [message], conn)
        if conn is None:
            self.hinter.work(runs_only=True)
        if started.state >= RunState.COMPLETED and not started.accepted:
            raise WorkflowAlreadyStartedError(id, started.run_id, started.state.name.lower())
        return WorkflowHandle(
            self, id, started.run_id, None if isinstance(workflow, str) else workflow
        )
