"""Starting: how a test environment begins runs, and the calls that talk to a run or begin it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypedDict, TypeVar, TypeVarTuple, Unpack, overload

from durable.client.checks import check_id, micros
from durable.client.intercepting import start_call
from durable.client.starting import checked_options
from durable.engine.attributes import (
    message_meta,
    own_headers,
    plain_headers,
    plain_memo,
    plain_search,
)
from durable.engine.definition import WorkflowDefinition, handler_name, why_no_workflow
from durable.engine.info import to_us
from durable.engine.interceptors import StartCall, surround
from durable.engine.registry import Registry
from durable.engine.start import StartMeta, new_run
from durable.errors import ConfigurationError, InvalidArgumentError, PayloadError
from durable.events import EventKind, IdReuse
from durable.options import DEFAULT_QUEUE
from durable.testing.handle import TestHandle, encode_call
from durable.testing.waiting import settle
from durable.testing.world import Fact, Run, World, new_run_id

R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Us = TypeVarTuple("Us")


class KitOptions(TypedDict, total=False):
    """How a run of a test is started; `Client.start` explains them."""

    queue: str | None
    version: str | None
    start_delay: timedelta | float | None
    start_at: datetime | None
    run_timeout: timedelta | float | None
    execution_timeout: timedelta | float | None
    id_reuse: IdReuse
    memo: Mapping[str, Any] | None
    search: Mapping[str, Any] | None
    headers: Mapping[str, Any] | None


class Starting:
    """The part of an environment that begins runs."""

    def __init__(self, registry: Registry, world: World, seed: int) -> None:
        self._registry = registry
        self._world = world
        self._seed = seed
        self._numbers = 0

    async def settle(self) -> None:
        """Let everything happen that can happen without time passing.

        Waits a few rounds of the loop for activities, not for ever: one that waits for the test
        stays as it is.
        """
        await settle(self._world)

    def _prepare(
        self, workflow: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[WorkflowDefinition[Any, Any], bytes]:
        """The definition, now registered, and the arguments, checked against it."""
        asked = workflow
        if isinstance(workflow, str):
            workflow = self._registry.workflow(workflow)
        if not isinstance(workflow, WorkflowDefinition):
            raise ConfigurationError(why_no_workflow(workflow))
        if not isinstance(asked, str):
            self._registry.add(workflow)
        return self._checked(workflow, args, kwargs)

    def _checked(
        self, workflow: WorkflowDefinition[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[WorkflowDefinition[Any, Any], bytes]:
        """The arguments, checked against the definition."""
        payload = workflow.signature.encode_args(args, kwargs)
        try:
            workflow.signature.decode_args(payload)
        except PayloadError as error:
            raise InvalidArgumentError(str(error)) from error
        return workflow, payload

    async def _start(
        self,
        workflow: WorkflowDefinition[Any, Any],
        payload: bytes,
        *,
        id: str | None,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TestHandle[Any]:
        if not self._registry.hooks.around("start_workflow"):
            return await self._begin(workflow, payload, id=id, headers=headers, **options)
        given = own_headers(headers or {})
        ours = {name: value for name, value in (headers or {}).items() if name not in given}

        async def begin(call: StartCall) -> TestHandle[Any]:
            arguments = workflow.signature.encode_args(call.args, call.kwargs)
            chosen = {**plain_headers(call.headers, workflow.codec), **ours}
            return await self._begin(workflow, arguments, id=id, headers=chosen, **options)

        told = {**options, "headers": given}
        return await self._surrounded_start(workflow, payload, id, told, None, begin)

    async def _begin(
        self, workflow: WorkflowDefinition[Any, Any], payload: bytes, **options: Any
    ) -> TestHandle[Any]:
        """Begin a run; its first steps have been taken."""
        run = self._add(workflow, payload, **options)
        await self.settle()
        return TestHandle(self._world, run)

    def _add(
        self,
        workflow: WorkflowDefinition[Any, Any],
        payload: bytes,
        *,
        id: str | None,
        queue: str | None = None,
        version: str | None = None,
        start_delay: timedelta | float | None = None,
        start_at: datetime | None = None,
        run_timeout: timedelta | float | None = None,
        execution_timeout: timedelta | float | None = None,
        id_reuse: IdReuse = IdReuse.REJECT,
        memo: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> Run:
        self._numbers += 1
        meta = StartMeta(
            workflow_id=(
                f"{workflow.name}-{self._numbers}" if id is None else check_id(id, "a workflow id")
            ),
            version=version or workflow.version,
            queue=queue or workflow.queue or DEFAULT_QUEUE,
            memo=plain_memo(memo or {}, workflow.codec),
            search=plain_search(search or {}, workflow.codec),
            headers=headers or {},
        )
        new = new_run(
            workflow,
            payload,
            meta,
            run_id=new_run_id(self._seed, self._numbers),
            now_us=self._world.clock.now_us,
            start_delay_us=micros(start_delay, "start_delay") or 0,
            start_at_us=None if start_at is None else to_us(start_at),
            run_timeout_us=micros(run_timeout, "run_timeout"),
            execution_timeout_us=micros(execution_timeout, "execution_timeout"),
            id_reuse=id_reuse,
        )
        return self._world.start(new, workflow.fn)

    async def _surrounded_start(
        self,
        workflow: WorkflowDefinition[Any, Any],
        payload: bytes,
        id: str | None,
        options: Mapping[str, Any],
        message: str | None,
        begin: Callable[[StartCall], Awaitable[TestHandle[Any]]],
    ) -> TestHandle[Any]:
        """``begin`` with the interceptors around it."""
        args, kwargs = workflow.signature.decode_args(payload)
        call = start_call(workflow, id, tuple(args), dict(kwargs), options, message)
        around = self._registry.hooks.around("start_workflow")
        handle: TestHandle[Any] = await surround(around, begin)(call)
        return handle


class WithStart(Starting):
    """The calls that talk to a run, and start it when it is not there."""

    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str,
        signal: Callable[[Any, *Us], Any],
        signal_args: tuple[*Us],
        **options: Unpack[KitOptions],
    ) -> TestHandle[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str,
        signal: Callable[[Any], Any],
        **options: Unpack[KitOptions],
    ) -> TestHandle[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str,
        signal: str,
        signal_args: Sequence[Any] = ...,
        **options: Unpack[KitOptions],
    ) -> TestHandle[R]: ...
    @overload
    async def signal_with_start(
        self,
        workflow: str | type,
        /,
        *args: Any,
        id: str,
        signal: str | Callable[..., Any],
        signal_args: Sequence[Any] = ...,
        **options: Unpack[KitOptions],
    ) -> TestHandle[Any]: ...

    async def signal_with_start(  # type: ignore[misc]  # mypy: as in `start`
        self,
        workflow: Any,
        /,
        *args: Any,
        id: str,
        signal: str | Callable[..., Any],
        signal_args: Sequence[Any] = (),
        **options: Unpack[KitOptions],
    ) -> TestHandle[Any]:
        """Signal the open run that has the id, or start one that has the signal from its beginning.

        As by `Client.signal_with_start`; ``args`` and ``options``, those of `start`, do nothing
        when a run is open. Raises WorkflowAlreadyStartedError when the last run of the id has
        closed and ``id_reuse`` does not allow another, InvalidArgumentError for what does not fit.
        """
        definition, payload = self._prepare(workflow, args, {})
        encode_call(signal, tuple(signal_args))
        chosen = checked_options(options, KitOptions)
        return await self._signal_with_start(definition, payload, id, signal, signal_args, chosen)

    async def _signal_with_start(
        self,
        workflow: WorkflowDefinition[Any, Any],
        payload: bytes,
        id: str,
        signal: str | Callable[..., Any],
        signal_args: Sequence[Any],
        options: Mapping[str, Any],
    ) -> TestHandle[Any]:
        label, told = handler_name(signal), encode_call(signal, tuple(signal_args))

        async def send(call: StartCall) -> TestHandle[Any]:
            headers = plain_headers(call.headers, workflow.codec)
            run = self._open_run(workflow, id, call, {**options, "headers": headers})
            meta = message_meta(headers)
            self._world.tell(run, Fact(EventKind.SIGNAL_RECEIVED, 0, label, meta, told))
            await self.settle()
            return TestHandle(self._world, run)

        return await self._surrounded_start(workflow, payload, id, options, label, send)

    def _open_run(
        self,
        workflow: WorkflowDefinition[Any, Any],
        id: str,
        call: StartCall,
        options: Mapping[str, Any],
    ) -> Run:
        """The open run of the id; one that begins now, if there is none."""
        known = self._world.latest.get(id)
        if known is not None and known.is_open:
            return known
        arguments = workflow.signature.encode_args(call.args, call.kwargs)
        self._add(workflow, arguments, id=id, **options)
        return self._world.latest[id]

    @overload
    async def update_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        id: str,
        update: Callable[[Any, *Us], Awaitable[T]],
        update_args: tuple[*Us],
        **options: Unpack[KitOptions],
    ) -> T: ...
    @overload
    async def update_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        id: str,
        update: Callable[[Any], Awaitable[T]],
        **options: Unpack[KitOptions],
    ) -> T: ...
    @overload
    async def update_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        id: str,
        update: Callable[[Any, *Us], T],
        update_args: tuple[*Us],
        **options: Unpack[KitOptions],
    ) -> T: ...
    @overload
    async def update_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        id: str,
        update: Callable[[Any], T],
        **options: Unpack[KitOptions],
    ) -> T: ...
    @overload
    async def update_with_start(
        self,
        workflow: Callable[[*Ts], Awaitable[Any]],
        /,
        *args: *Ts,
        id: str,
        update: str,
        update_args: Sequence[Any] = ...,
        **options: Unpack[KitOptions],
    ) -> Any: ...
    @overload
    async def update_with_start(
        self,
        workflow: str | type,
        /,
        *args: Any,
        id: str,
        update: str | Callable[..., Any],
        update_args: Sequence[Any] = ...,
        **options: Unpack[KitOptions],
    ) -> Any: ...

    async def update_with_start(  # type: ignore[misc]  # mypy: as in `start`
        self,
        workflow: Any,
        /,
        *args: Any,
        id: str,
        update: str | Callable[..., Any],
        update_args: Sequence[Any] = (),
        **options: Unpack[KitOptions],
    ) -> Any:
        """Update the open run that has the id, or start one and update it; return the answer.

        As by `Client.update_with_start`, letting time pass until the answer is there; ``args`` and
        ``options``, those of `start`, do nothing when a run is open. Raises what
        `signal_with_start` and `TestHandle.update` raise.
        """
        definition, payload = self._prepare(workflow, args, {})
        encode_call(update, tuple(update_args))
        chosen = checked_options(options, KitOptions)
        return await self._update_with_start(definition, payload, id, update, update_args, chosen)

    async def _update_with_start(
        self,
        workflow: WorkflowDefinition[Any, Any],
        payload: bytes,
        id: str,
        update: str | Callable[..., Any],
        update_args: Sequence[Any],
        options: Mapping[str, Any],
    ) -> Any:
        label, asked = handler_name(update), encode_call(update, tuple(update_args))
        request_ids: list[str] = []

        async def send(call: StartCall) -> TestHandle[Any]:
            headers = plain_headers(call.headers, workflow.codec)
            run = self._open_run(workflow, id, call, {**options, "headers": headers})
            handle: TestHandle[Any] = TestHandle(self._world, run)
            request_ids.append(handle._ask(label, asked, headers))
            return handle

        handle = await self._surrounded_start(workflow, payload, id, options, label, send)
        return await handle._answer(label, request_ids[-1])
