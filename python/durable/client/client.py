"""Client: start workflows and find them.

A client talks to the database only; workers need not run. Whatever it checks, it checks before
anything is written. It has one pool of connections and, while results are waited for, one LISTEN.
"""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, TypeVarTuple, overload

from durable.client.grouping import StartGroup
from durable.client.handle import WorkflowHandle, encode_call
from durable.client.waiter import Waiter
from durable.codec import DEFAULT_CODEC, Codec, check_size, failure_to_payload
from durable.engine.definition import WorkflowDefinition, handler_name
from durable.engine.info import to_us
from durable.engine.registry import Registry
from durable.engine.start import StartMeta, new_run
from durable.errors import (
    ActivityNotFoundError,
    ApplicationError,
    ConfigurationError,
    InvalidArgumentError,
    PayloadError,
    StoreUnavailableError,
    UnknownWorkflowError,
    WorkflowAlreadyStartedError,
)
from durable.events import ActivityOutcome, EventKind, IdReuse, Message, NewRun, RunView, Started
from durable.options import DEFAULT_QUEUE, ID_LENGTH_MAX, seconds
from durable.store.base import Store
from durable.store.clock import StoreClock
from durable.store.hints import Hinter
from durable.store.limits import limits_of
from durable.store.postgres import PostgresStore
from durable.store.sealed import seal_store

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

CONNECT_SECONDS_MAX = 6.0
CLOCK_SECONDS_MAX = 30.0
"""The store is asked for its time again after this long, so that drift of our clock is nothing."""
CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def check_id(value: object, what: str) -> str:
    """Return ``value`` as an id; raise InvalidArgumentError when it cannot be one."""
    if not isinstance(value, str) or not value:
        raise InvalidArgumentError(f"{what} must be a text that is not empty, not {value!r}")
    if len(value) > ID_LENGTH_MAX:
        raise InvalidArgumentError(
            f"{what} has {len(value)} characters; at most {ID_LENGTH_MAX} are allowed"
        )
    if CONTROL_CHARACTERS.search(value):
        raise InvalidArgumentError(f"{what} must not have control characters: {value!r}")
    return value


def new_run_id(now_us: int) -> str:
    """A UUIDv7: runs started about the same time lie together in the database."""
    value = (now_us // 1000 & (1 << 48) - 1) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(0x3 << 62) | 2 << 62
    return str(uuid.UUID(int=value))


class Client:
    """Starts workflows, and hands out handles to them. An async context manager."""

    def __init__(
        self,
        store: Store,
        *,
        codec: Codec = DEFAULT_CODEC,
        workflows: Iterable[Any] = (),
    ) -> None:
        self.store = store = seal_store(store, codec)
        self.codec = codec
        self.registry = Registry(workflows)
        self.waiter = Waiter(store)
        self.hinter = Hinter(store)
        self._starts = StartGroup(store)
        self._clock = StoreClock()
        self._types: set[str] = set()

    @classmethod
    def connect(
        cls,
        dsn: str | Store,
        *,
        schema: str = "durable",
        codec: Codec = DEFAULT_CODEC,
        workflows: Iterable[Any] = (),
    ) -> Self:
        """A client of the database at ``dsn``; use it with ``async with``.

        ``codec`` is the application's: its pipeline (encryption, compression) must be that of the
        workers. ``workflows`` are definitions whose runs it may replay and whose results it may
        decode when a handle is got by id only. Entering raises StoreUnavailableError when the
        database does not answer within seconds, SchemaVersionError when its tables are not this
        build's.
        """
        store = PostgresStore(dsn, schema=schema) if isinstance(dsn, str) else dsn
        return cls(store, codec=codec, workflows=workflows)

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await self.store.open()
        except TimeoutError:
            await self.store.close()
            raise StoreUnavailableError(
                f"the database did not answer within {CONNECT_SECONDS_MAX:g} s; "
                "is the DSN right, and is it running?"
            ) from None
        except BaseException:
            await self.store.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what is still to be hinted, and give the connections back. Safe twice."""
        await self._starts.close()
        await self.hinter.flush()
        await self.waiter.close()
        await self.store.close()

    # -- starting ----------------------------------------------------------------------------

    @overload
    async def start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        *args: *Ts,
        id: str,
        queue: str | None = ...,
        version: str | None = ...,
        priority: int = ...,
        start_delay: timedelta | float | None = ...,
        start_at: datetime | None = ...,
        run_timeout: timedelta | float | None = ...,
        id_reuse: IdReuse = ...,
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
        start_delay: timedelta | float | None = ...,
        start_at: datetime | None = ...,
        run_timeout: timedelta | float | None = ...,
        id_reuse: IdReuse = ...,
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
        start_delay: timedelta | float | None = None,
        start_at: datetime | None = None,
        run_timeout: timedelta | float | None = None,
        id_reuse: IdReuse = IdReuse.REJECT,
        conn: Any = None,
        **kwargs: Any,
    ) -> WorkflowHandle[Any]:
        """Start a workflow, given by its definition or by its name; return its handle.

        ``args`` and ``kwargs`` are the workflow's own; given the definition they are checked
        against its signature. ``id`` is the caller's: a second start with it is refused unless
        ``id_reuse`` allows it, so that a start can be repeated safely. The run begins at once,
        after ``start_delay`` or at ``start_at`` (a naive time is UTC), and is ended after
        ``run_timeout``.
        With ``conn``, a psycopg async connection, the start belongs to the caller's transaction.

        Raises InvalidArgumentError (id, names, arguments), EncodeError or PayloadTooLargeError,
        UnknownWorkflowError for a name that no worker ever registered, and
        WorkflowAlreadyStartedError, which names the run that has the id.
        """
        payload = await self._payload(workflow, args, kwargs)
        run = await self._new_run(
            workflow,
            payload,
            id=id,
            queue=queue,
            version=version,
            priority=priority,
            start_delay=start_delay,
            start_at=start_at,
            run_timeout=run_timeout,
            id_reuse=id_reuse,
        )
        if conn is None:
            started = await self._starts.start(run)
            self.hinter.hint()
        else:
            started = (await self.store.start_runs([run], conn))[0]
        outcome = self._handle(workflow, run, started)
        if isinstance(outcome, WorkflowAlreadyStartedError):
            raise outcome
        return outcome

    async def start_many(
        self,
        workflow: WorkflowDefinition[Any, R] | str,
        starts: Iterable[tuple[str, Sequence[Any]]],
        *,
        queue: str | None = None,
        version: str | None = None,
        priority: int = 0,
        id_reuse: IdReuse = IdReuse.REJECT,
        conn: Any = None,
    ) -> list[WorkflowHandle[R] | WorkflowAlreadyStartedError]:
        """Start many runs of one workflow in one transaction; ``starts`` are (id, arguments).

        Returns, in order, a handle or the error that says which run has the id.
        """
        runs = []
        for workflow_id, args in starts:
            payload = await self._payload(workflow, tuple(args), {})
            runs.append(
                await self._new_run(
                    workflow,
                    payload,
                    id=workflow_id,
                    queue=queue,
                    version=version,
                    priority=priority,
                    id_reuse=id_reuse,
                )
            )
        if not runs:
            return []
        all_started = await self.store.start_runs(runs, conn)
        if conn is None:
            self.hinter.hint()
        return [
            self._handle(workflow, run, started)
            for run, started in zip(runs, all_started, strict=True)
        ]

    async def signal_many(
        self,
        signal: str | Callable[..., Any],
        signals: Iterable[tuple[str, Sequence[Any]]],
        *,
        request_ids: Sequence[str] | None = None,
        conn: Any = None,
    ) -> list[bool]:
        """Send one kind of signal to many workflows in one transaction and one round trip.

        ``signals`` are (workflow id, arguments); one workflow may occur often and gets them in this
        order. Returns, in order, whether an open run took it; those that did never lose it.
        ``request_ids``, one for each, make a repeated send a no-op. With ``conn`` (a psycopg async
        connection) the signals belong to the caller's transaction.
        """
        name = handler_name(signal)
        pairs = list(signals)
        if request_ids is None:
            request_ids = [str(uuid.uuid4()) for _ in pairs]
        if len(request_ids) != len(pairs):
            raise InvalidArgumentError(
                f"{len(pairs)} signals need as many request ids, not {len(request_ids)}"
            )
        messages = [
            Message(
                kind=EventKind.SIGNAL_RECEIVED,
                workflow_id=check_id(workflow_id, "a workflow id"),
                name=name,
                payload=encode_call(self.codec, signal, args),
                request_id=check_id(request_id, "a request id"),
            )
            for (workflow_id, args), request_id in zip(pairs, request_ids, strict=True)
        ]
        if not messages:
            return []
        found = await self.store.send(messages, conn)
        if conn is None:
            self.hinter.hint()
        return [run_id is not None for run_id in found]

    def _handle(
        self, workflow: WorkflowDefinition[Any, R] | str, run: NewRun, started: Started
    ) -> WorkflowHandle[R] | WorkflowAlreadyStartedError:
        if not started.accepted and started.run_id != run.run_id:
            return WorkflowAlreadyStartedError(
                run.workflow_id, started.run_id, started.state.name.lower()
            )
        definition = None if isinstance(workflow, str) else workflow
        return WorkflowHandle(self, run.workflow_id, run.run_id, definition)

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
            raise InvalidArgumentError(
                f"{workflow!r} is not a workflow; pass a @workflow.defn function or its name"
            )
        payload = definition.signature.encode_args(args, kwargs)
        try:
            definition.signature.decode_args(payload)
        except PayloadError as error:
            raise InvalidArgumentError(str(error)) from error
        return payload

    async def _check_type(self, name: str) -> None:
        check_id(name, "a workflow name")
        if name in self.registry.workflows or name in self._types:
            return
        self._types = {each.name for each in await self.store.types() if each.kind == "workflow"}
        if name not in self._types:
            known = ", ".join(sorted(self._types)) or "none; has a worker run yet?"
            raise UnknownWorkflowError(f"no workflow is called {name!r}; registered: {known}")

    async def _new_run(
        self,
        workflow: WorkflowDefinition[Any, Any] | str,
        payload: bytes,
        *,
        id: str,
        queue: str | None,
        version: str | None,
        priority: int,
        id_reuse: IdReuse,
        start_delay: timedelta | float | None = None,
        start_at: datetime | None = None,
        run_timeout: timedelta | float | None = None,
    ) -> NewRun:
        check_id(id, "a workflow id")
        definition = None if isinstance(workflow, str) else workflow
        if queue is None:
            queue = (definition.queue if definition else None) or DEFAULT_QUEUE
        check_id(queue, "a queue")
        if version is None and definition is not None:
            version = definition.version
        if version is not None:
            check_id(version, "a version")
        if not -32768 <= priority <= 32767:
            raise InvalidArgumentError(f"a priority is -32768 to 32767, not {priority!r}")
        if start_delay is not None and start_at is not None:
            raise InvalidArgumentError("give start_delay or start_at, not both")
        if not self._clock.is_set or self._clock.age_seconds > CLOCK_SECONDS_MAX:
            self._clock.observe(await self.store.now_us())
        now_us = self._clock.now_us()
        return new_run(
            workflow,
            payload,
            StartMeta(workflow_id=id, version=version, queue=queue),
            run_id=new_run_id(now_us),
            now_us=now_us,
            priority=priority,
            start_delay_us=micros(start_delay, "start_delay") or 0,
            start_at_us=None if start_at is None else to_us(start_at),
            run_timeout_us=micros(run_timeout, "run_timeout"),
            id_reuse=id_reuse,
        )

    # -- queues ------------------------------------------------------------------------------

    async def set_queue_limits(
        self, queue: str, *, concurrency: int | None = None, rate: float | None = None
    ) -> None:
        """Limit the activities of a queue, over all workers of all hosts.

        At most ``concurrency`` of them run at once (0 pauses the queue), at most ``rate`` attempts
        start per second. None is no limit: both are set, whatever was set before. Workers know of
        a queue's first limit after 30 seconds at most; changes count at once. Raises
        InvalidArgumentError for what cannot be a limit.
        """
        check_id(queue, "a queue")
        limits = limits_of(self.store)
        if limits is None:
            raise ConfigurationError("only a PostgreSQL store keeps limits of queues")
        await limits.set(queue, concurrency=concurrency, rate=rate)

    # -- finding -----------------------------------------------------------------------------

    @overload
    def get_handle(
        self, id: str, run_id: str | None = ..., *, workflow: WorkflowDefinition[Any, R]
    ) -> WorkflowHandle[R]: ...
    @overload
    def get_handle(
        self, id: str, run_id: str | None = ..., *, workflow: None = ...
    ) -> WorkflowHandle[Any]: ...

    def get_handle(
        self,
        id: str,
        run_id: str | None = None,
        *,
        workflow: WorkflowDefinition[Any, Any] | None = None,
    ) -> WorkflowHandle[Any]:
        """A handle to a workflow by id, or to one of its runs. Asks nothing of the database.

        ``workflow`` gives the handle the code: for typed results, `vars` and closed-run queries.
        """
        check_id(id, "a workflow id")
        if run_id is not None:
            try:
                run_id = str(uuid.UUID(run_id))
            except ValueError:
                raise InvalidArgumentError(f"a run id is a UUID, not {run_id!r}") from None
        return WorkflowHandle(self, id, run_id, workflow)

    def known(self, name: str) -> WorkflowDefinition[Any, Any] | None:
        """The definition of that name that this client was given, or None."""
        return self.registry.workflows.get(name)

    async def list(
        self,
        *,
        workflow_type: str | None = None,
        states: Sequence[int] = (),
        limit: int = 100,
    ) -> Sequence[RunView]:
        """Runs, the newest first, without their results."""
        return await self.store.views(workflow_type=workflow_type, states=states, limit=limit)

    # -- activities that others complete -----------------------------------------------------

    async def complete_activity(self, task_token: str, result: Any = None) -> None:
        """Give an activity that raised `durable.CompleteLater` its result.

        ``task_token`` is what ``activity.info().task_token`` was in it. Raises
        ActivityNotFoundError when nothing waits for it any more.
        """
        payload = self.codec.encode(result)
        check_size(payload, "the result of an activity")
        await self._settle(task_token, EventKind.ACTIVITY_COMPLETED, payload)

    async def fail_activity(self, task_token: str, error: BaseException | str) -> None:
        """Fail an activity that raised `durable.CompleteLater`, for good.

        Raises ActivityNotFoundError when nothing waits for it any more.
        """
        failure = ApplicationError(error) if isinstance(error, str) else error
        data = self.codec.decode(failure_to_payload(failure))
        data["attempt"] = parse_token(task_token)[2]
        await self._settle(task_token, EventKind.ACTIVITY_FAILED, self.codec.encode(data))

    async def heartbeat_activity(self, task_token: str, *details: Any) -> None:
        """Say that an activity which others complete makes progress: see `activity.heartbeat`.

        Raises ActivityNotFoundError when nothing waits for it any more.
        """
        run_id, ref, _, token = parse_token(task_token)
        payload = self.codec.encode(list(details))
        check_size(payload, "the heartbeat details of an activity")
        if not await self.store.heartbeat_activity(run_id, ref, token, payload):
            raise ActivityNotFoundError(f"no activity waits under the task token {task_token!r}")

    async def _settle(self, task_token: str, kind: EventKind, payload: bytes) -> None:
        run_id, ref, attempt, token = parse_token(task_token)
        outcome = ActivityOutcome(run_id, ref, attempt, token, kind, payload)
        if not (await self.store.finish_activities([outcome]))[0]:
            raise ActivityNotFoundError(f"no activity waits under the task token {task_token!r}")
        self.hinter.hint()


def parse_token(task_token: str) -> tuple[str, int, int, int]:
    """Run id, ref, attempt and token; raise InvalidArgumentError for what is no task token."""
    try:
        run_id, ref, attempt, token = task_token.split(":")
        return str(uuid.UUID(run_id)), int(ref), int(attempt), int(token)
    except (ValueError, AttributeError):
        raise InvalidArgumentError(f"{task_token!r} is not a task token") from None


def micros(duration: timedelta | float | None, what: str) -> int | None:
    """A duration in microseconds; raise InvalidArgumentError when it is not one."""
    if duration is None:
        return None
    try:
        return round(seconds(duration, what) * 1e6)
    except (ConfigurationError, TypeError, ValueError) as error:
        raise InvalidArgumentError(str(error)) from error
