"""Starting: the calls that begin runs.

Whatever is checked is checked before anything is written: the id, the options, the arguments
against the signature of the definition, a bare name against what workers registered.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypedDict, TypeVar, TypeVarTuple, Unpack, cast, overload

from durable.client.checks import check_args, check_id, checked_reuse, micros
from durable.client.connected import ConnectedClient
from durable.client.handle import NEW_SECONDS, WorkflowHandle
from durable.client.intercepting import start_call, started_with, surround_all
from durable.client.keys import keys_of
from durable.codec import check_size
from durable.engine.attributes import plain_headers, plain_memo, plain_search
from durable.engine.definition import WorkflowDefinition, why_no_workflow
from durable.engine.info import to_us
from durable.engine.interceptors import StartCall, surround
from durable.engine.start import StartMeta, new_run
from durable.errors import (
    ConfigurationError,
    InvalidArgumentError,
    PayloadError,
    StoreError,
    UnknownWorkflowError,
    WorkflowAlreadyStartedError,
)
from durable.events import DYNAMIC, JOB_PREFIX, IdReuse, NewRun, Started, stand_in
from durable.options import DEFAULT_QUEUE, check_fairness

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

DEBOUNCE_TRIES = 10
CLOCK_SECONDS_MAX = 30.0
TYPES_SECONDS = 30.0
"""How long what workers have registered is remembered."""
"""The store is asked for its time again after this long, so that drift of our clock is nothing."""


class RunOptions(TypedDict, total=False):
    """How a run is started; every start takes these. `StartingClient.start` explains them."""

    queue: str | None
    version: str | None
    priority: int
    fairness_key: str | None
    fairness_weight: float
    start_delay: timedelta | float | None
    start_at: datetime | None
    run_timeout: timedelta | float | None
    execution_timeout: timedelta | float | None
    id_reuse: IdReuse
    memo: Mapping[str, Any] | None
    search: Mapping[str, Any] | None
    headers: Mapping[str, Any] | None


class StartOptions(RunOptions, total=False):
    """Those, and the keys by which starts are one."""

    dedup_key: str | None
    on_duplicate: Literal["existing", "error"]
    debounce_key: str | None
    debounce: timedelta | float | None
    debounce_max: timedelta | float | None


def checked_options(options: Mapping[str, Any], kind: type = StartOptions) -> StartOptions:
    """Options of a start, none of them unknown to ``kind``; raise InvalidArgumentError."""
    known = kind.__annotations__
    for name in options:
        if name not in known:
            raise InvalidArgumentError(
                f"this start has no option {name!r}; it has {', '.join(known)}"
            )
    return cast("StartOptions", options)


def fairness_of(options: StartOptions) -> tuple[str, float] | None:
    """The fairness key and weight of a start; raise InvalidArgumentError for bad ones."""
    key, weight = options.get("fairness_key"), options.get("fairness_weight", 1.0)
    try:
        check_fairness(key, weight)
    except ConfigurationError as error:
        raise InvalidArgumentError(str(error)) from None
    return None if key is None else (key, weight)


def new_run_id(now_us: int) -> str:
    """A UUIDv7: runs started about the same time lie together in the database."""
    value = (now_us // 1000 & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return str(uuid.UUID(int=value))


class StartingClient(ConnectedClient):
    """The calls that begin runs."""

    @overload
    async def start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        *args: *Ts,
        id: str,
        queue: str | None = ...,
        version: str | None = ...,
        priority: int = ...,
        fairness_key: str | None = ...,
        fairness_weight: float = ...,
        start_delay: timedelta | float | None = ...,
        start_at: datetime | None = ...,
        run_timeout: timedelta | float | None = ...,
        execution_timeout: timedelta | float | None = ...,
        id_reuse: IdReuse = ...,
        dedup_key: str | None = ...,
        on_duplicate: Literal["existing", "error"] = ...,
        debounce_key: str | None = ...,
        debounce: timedelta | float | None = ...,
        debounce_max: timedelta | float | None = ...,
        memo: Mapping[str, Any] | None = ...,
        search: Mapping[str, Any] | None = ...,
        headers: Mapping[str, Any] | None = ...,
        conn: Any = ...,
        **kwargs: Any,
    ) -> WorkflowHandle[R]: ...
    @overload
    async def start(
        self,
        workflow: str | type,
        *args: Any,
        id: str,
        queue: str | None = ...,
        version: str | None = ...,
        priority: int = ...,
        fairness_key: str | None = ...,
        fairness_weight: float = ...,
        start_delay: timedelta | float | None = ...,
        start_at: datetime | None = ...,
        run_timeout: timedelta | float | None = ...,
        execution_timeout: timedelta | float | None = ...,
        id_reuse: IdReuse = ...,
        dedup_key: str | None = ...,
        on_duplicate: Literal["existing", "error"] = ...,
        debounce_key: str | None = ...,
        debounce: timedelta | float | None = ...,
        debounce_max: timedelta | float | None = ...,
        memo: Mapping[str, Any] | None = ...,
        search: Mapping[str, Any] | None = ...,
        headers: Mapping[str, Any] | None = ...,
        conn: Any = ...,
        **kwargs: Any,
    ) -> WorkflowHandle[Any]: ...

    async def start(  # type: ignore[misc]  # mypy: *args of Any are too few for those of Ts
        self,
        workflow: Any,
        *args: Any,
        id: str,
        queue: str | None = None,
        version: str | None = None,
        priority: int = 0,
        fairness_key: str | None = None,
        fairness_weight: float = 1.0,
        start_delay: timedelta | float | None = None,
        start_at: datetime | None = None,
        run_timeout: timedelta | float | None = None,
        execution_timeout: timedelta | float | None = None,
        id_reuse: IdReuse = IdReuse.REJECT,
        dedup_key: str | None = None,
        on_duplicate: Literal["existing", "error"] = "existing",
        debounce_key: str | None = None,
        debounce: timedelta | float | None = None,
        debounce_max: timedelta | float | None = None,
        memo: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
        headers: Mapping[str, Any] | None = None,
        conn: Any = None,
        **kwargs: Any,
    ) -> WorkflowHandle[Any]:
        """Start a workflow, given by its definition or by its name; return its handle.

        ``args`` and ``kwargs`` are the workflow's own; given the definition they are checked
        against its signature. ``id`` is the caller's: a second start with it is refused unless
        ``id_reuse`` allows it, so that a start can be repeated safely. The run begins at once,
        after ``start_delay`` or at ``start_at`` (a naive time is UTC), on ``queue``; if that is not
        given, on that of the definition or, for a bare name, that of the worker that registered it.
        ``run_timeout`` limits each run, from when it begins; ``execution_timeout`` limits the whole
        chain of runs that continue as new or are tried again, from when the first one begins. What
        is over its time ends at once, as timed out.
        ``fairness_key`` says whose work it is: activities of the run and of its children have it
        where they have no other, and take turns by it where they have to wait in a queue.
        ``memo`` is for the code (``workflow.info().memo``) and for people;
        ``search`` has the attributes that the run is found by (`Client.list`, unencrypted), until
        ``workflow.upsert_search_attributes`` changes them.
        ``headers`` (``workflow.info().headers``) are for what goes along with the work, such as a
        trace id: the runs that continue, retry or are children of this one have them too.
        While an open run of this workflow and queue holds ``dedup_key``, the handle is that of this
        run, or with ``on_duplicate="error"`` it is a WorkflowAlreadyStartedError. With
        ``debounce_key`` the run begins ``debounce`` later; each further start with the key before
        that replaces its arguments and puts it off again, to at most ``debounce_max`` after the
        first, and gets its handle.
        With ``conn``, a psycopg async connection, the start belongs to the caller's transaction.

        Raises InvalidArgumentError (id, names, arguments), EncodeError or PayloadTooLargeError,
        UnknownWorkflowError for a name that no worker ever registered, and
        WorkflowAlreadyStartedError, which names the run that has the id.
        """
        options = StartOptions(
            queue=queue,
            version=version,
            priority=priority,
            fairness_key=fairness_key,
            fairness_weight=fairness_weight,
            start_delay=start_delay,
            start_at=start_at,
            run_timeout=run_timeout,
            execution_timeout=execution_timeout,
            id_reuse=id_reuse,
            dedup_key=dedup_key,
            on_duplicate=on_duplicate,
            debounce_key=debounce_key,
            debounce=debounce,
            debounce_max=debounce_max,
            memo=memo,
            search=search,
            headers=headers,
        )
        return await self.begin(
            workflow, check_id(id, "a workflow id"), args, kwargs, options, {}, conn
        )

    async def begin(
        self,
        workflow: WorkflowDefinition[Any, R] | str,
        id: str | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StartOptions,
        headers: Mapping[str, Any],
        conn: Any = None,
    ) -> WorkflowHandle[R]:
        """What `start` does, also for runs that need no id. ``headers`` are the library's own."""
        around = self.hooks.around("start_workflow")
        if not around:
            return await self._begin_plain(workflow, id, args, kwargs, options, headers, conn)

        async def innermost(call: StartCall) -> WorkflowHandle[R]:
            given, chosen = call.id, started_with(call, StartOptions)
            return await self._begin_plain(
                workflow, given, call.args, call.kwargs, chosen, headers, conn
            )

        call = start_call(workflow, id, args, kwargs, options)
        handle: WorkflowHandle[R] = await surround(around, innermost)(call)
        return handle

    async def _begin_plain(
        self,
        workflow: WorkflowDefinition[Any, R] | str,
        id: str | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StartOptions,
        headers: Mapping[str, Any],
        conn: Any = None,
    ) -> WorkflowHandle[R]:
        """`begin` without interceptors."""
        for _ in range(DEBOUNCE_TRIES):
            run = await self.new_run(workflow, id, args, kwargs, options, headers)
            if conn is None:
                self.waiter.expect(run.run_id)
                started = await self._starts.start(run)
            else:
                started = (await self.store.start_runs([run], conn))[0]
            if run.debounce_key is not None and not started.accepted and started.holder_id:
                # It may begin before we have put it off; then its key is free again.
                run = await self.new_run(workflow, id, args, kwargs, options, headers, started)
                if not await self.store.replace_start(run, conn):
                    continue
            outcome = self._handle(workflow, run, started, options)
            if isinstance(outcome, WorkflowAlreadyStartedError):
                raise outcome
            return outcome
        raise StoreError("a debounce key changed hands too often to be had; try again")

    async def start_many(
        self,
        workflow: WorkflowDefinition[Any, R] | str,
        starts: Iterable[tuple[str, Sequence[Any]] | tuple[str, Sequence[Any], StartOptions]],
        *,
        conn: Any = None,
        **options: Unpack[StartOptions],
    ) -> list[WorkflowHandle[R] | WorkflowAlreadyStartedError]:
        """Start many runs of one workflow in one transaction.

        ``starts`` are (id, arguments), or (id, arguments, options) with options of that start,
        such as its ``memo`` and ``search``, which go before those of all. `start` says what the
        options mean. Returns, in order, a handle or the error that says which run has the id.
        """
        calls = []
        for workflow_id, args, *own in starts:
            chosen = checked_options({**options, **(own[0] if own else {})})
            if chosen.get("debounce_key") is not None:
                raise InvalidArgumentError("start_many has no debouncing; start them one by one")
            known_id = check_id(workflow_id, "a workflow id")
            own_args = check_args(args, f"workflow {known_id}")
            calls.append(start_call(workflow, known_id, own_args, {}, chosen))
        return await self.begin_all(workflow, calls, conn, options, {})

    async def begin_all(
        self,
        workflow: WorkflowDefinition[Any, R] | str,
        calls: list[StartCall],
        conn: Any,
        options: StartOptions,
        headers: Mapping[str, Any],
    ) -> list[WorkflowHandle[R] | WorkflowAlreadyStartedError]:
        """Start runs of one workflow in one transaction. ``headers`` are the library's own."""

        async def store(
            calls: list[StartCall],
        ) -> list[WorkflowHandle[R] | WorkflowAlreadyStartedError]:
            runs = [
                await self.new_run(
                    workflow,
                    call.id,
                    call.args,
                    call.kwargs,
                    started_with(call, StartOptions),
                    headers,
                )
                for call in calls
            ]
            return await self._store_all(workflow, runs, conn, options)

        around = self.hooks.around("start_workflow")
        if not around:
            return await store(calls)
        return await surround_all(around, calls, store)

    async def _store_all(
        self,
        workflow: WorkflowDefinition[Any, R] | str,
        runs: Sequence[NewRun],
        conn: Any,
        options: StartOptions,
    ) -> list[WorkflowHandle[R] | WorkflowAlreadyStartedError]:
        if not runs:
            return []
        if conn is None:
            for run in runs:
                self.waiter.expect(run.run_id)
        all_started = await self.store.start_runs(runs, conn)
        if conn is None and not all(started.told for started in all_started):
            self.hinter.work(runs_only=True)
        return [
            self._handle(workflow, run, started, options)
            for run, started in zip(runs, all_started, strict=True)
        ]

    def _handle(
        self,
        workflow: WorkflowDefinition[Any, R] | str,
        run: NewRun,
        started: Started,
        options: StartOptions,
    ) -> WorkflowHandle[R] | WorkflowAlreadyStartedError:
        definition = None if isinstance(workflow, str) else workflow
        if not started.accepted and started.run_id != run.run_id:
            state = started.state.name.lower()
            if started.holder_id is None:
                return WorkflowAlreadyStartedError(run.workflow_id, started.run_id, state)
            if options.get("on_duplicate") == "error":
                return WorkflowAlreadyStartedError(
                    started.holder_id, started.run_id, state, dedup_key=run.dedup_key
                )
            return WorkflowHandle(self, started.holder_id, started.run_id, definition)
        new_until = asyncio.get_running_loop().time() + NEW_SECONDS
        return WorkflowHandle(self, run.workflow_id, run.run_id, definition, new_until=new_until)

    async def _payload(
        self,
        workflow: WorkflowDefinition[Any, Any] | str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> bytes:
        """The encoded arguments, proven to fit where the definition is known."""
        if isinstance(workflow, str):
            await self._check_type(workflow)
            definition = self.known(workflow)
            if definition is None:
                value: Any = {"args": list(args), "kwargs": kwargs} if kwargs else list(args)
                payload = self.codec.encode(value)
                check_size(payload, f"the arguments of workflow {workflow}")
                return payload
        elif isinstance(workflow, WorkflowDefinition):
            definition = workflow
        else:
            raise InvalidArgumentError(why_no_workflow(workflow))
        payload = definition.signature.encode_args(args, kwargs)
        try:
            definition.signature.decode_args(payload)
        except PayloadError as error:
            raise InvalidArgumentError(str(error)) from error
        return payload

    async def _check_type(self, name: str) -> None:
        check_id(name, "a workflow name")
        if not await self._is_type(name):
            workflows = [
                each for each in self._types if each != DYNAMIC and not each.startswith(JOB_PREFIX)
            ]
            versions = [each for each in workflows if each.startswith(f"{name}@")]
            if versions:
                raise UnknownWorkflowError(
                    f"workflow {name!r} is pinned to its versions: say which of "
                    f"{', '.join(sorted(versions))}"
                )
            known = ", ".join(sorted(workflows)) or "none; has a worker run yet?"
            raise UnknownWorkflowError(f"no workflow is called {name!r}; registered: {known}")

    async def _is_type(self, name: str) -> bool:
        """Whether this client or some worker knows a workflow of that type."""
        if self.known(name) is not None:
            return True
        now = asyncio.get_running_loop().time()
        if name not in self._types or now > self._types_until:
            self._types = {
                each.name if each.kind == "workflow" else JOB_PREFIX + each.name: each.queue
                for each in await self.store.types()
            }
            self._types_until = now + TYPES_SECONDS
        return name in self._types or stand_in(name) in self._types

    async def new_run(
        self,
        workflow: WorkflowDefinition[Any, Any] | str,
        id: str | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: StartOptions,
        headers: Mapping[str, Any] | None = None,
        instead_of: Started | None = None,
        run_id: str | None = None,
    ) -> NewRun:
        """A run that is ready to be stored. Raises what `start` says.

        Without an id it has that of its run: no other will ever have it. ``instead_of`` is the
        debounced run whose input and start time this one is to replace.
        """
        keys = keys_of(options)
        payload = await self._payload(workflow, args, kwargs)
        if id is not None:
            check_id(id, "a workflow id")
        definition = self.known(workflow) if isinstance(workflow, str) else workflow
        queue = options.get("queue")
        if queue is None and definition is None and isinstance(workflow, str):
            queue = self._types.get(workflow) or self._types.get(stand_in(workflow) or "")
        if queue is None:
            queue = (definition.queue if definition else None) or DEFAULT_QUEUE
        check_id(queue, "a queue")
        version = options.get("version")
        if version is None and definition is not None:
            version = definition.version
        if version is not None:
            check_id(version, "a version")
        priority = options.get("priority", 0)
        if not isinstance(priority, int) or not -32768 <= priority <= 32767:
            raise InvalidArgumentError(f"a priority is -32768 to 32767, not {priority!r}")
        fairness = fairness_of(options)
        start_delay, start_at = options.get("start_delay"), options.get("start_at")
        if start_delay is not None and start_at is not None:
            raise InvalidArgumentError("give start_delay or start_at, not both")
        search = plain_search(options.get("search") or {}, self.codec)
        now_us = await self._now_us()
        run_id = run_id or new_run_id(now_us)
        begin_us = None if start_at is None else to_us(start_at)
        delay_us = micros(start_delay, "start_delay") or keys.debounce_us
        if instead_of is not None:
            run_id, id = instead_of.run_id, instead_of.holder_id
            begin_us = keys.begin_us(now_us, instead_of)
        meta = StartMeta(
            workflow_id=run_id if id is None else id,
            version=version,
            queue=queue,
            memo=plain_memo(options.get("memo") or {}, self.codec),
            search={k: v for k, v in search.items() if v is not None},
            headers={**plain_headers(options.get("headers") or {}, self.codec), **(headers or {})},
            fairness=fairness,
        )
        return new_run(
            workflow,
            payload,
            meta,
            run_id=run_id,
            now_us=now_us,
            priority=priority,
            start_delay_us=0 if begin_us is not None else delay_us,
            start_at_us=begin_us,
            run_timeout_us=micros(options.get("run_timeout"), "run_timeout"),
            execution_timeout_us=micros(options.get("execution_timeout"), "execution_timeout"),
            id_reuse=checked_reuse(options.get("id_reuse", IdReuse.REJECT)),
            dedup_key=keys.dedup_key,
            debounce_key=keys.debounce_key,
        )

    async def _now_us(self) -> int:
        """The store's time, within what our clock drifts in half a minute."""
        if not self._clock.is_set or self._clock.age_seconds > CLOCK_SECONDS_MAX:
            self._clock.observe(await self.store.now_us())
        return self._clock.now_us()
