"""SyncClient: the client for code without asyncio (Django, Flask, scripts, threads).

An asyncio `Client` lives on a private thread; every verb here runs the verb of that name there and
waits for it. Any number of threads may share one client: what they ask for at the same time goes
together over the same few connections. A process that forks (gunicorn with ``preload``) may use it
on both sides: the child begins with a thread and connections of its own.

In a coroutine use `Client`: this one would block the loop while it waits.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from datetime import timedelta
from threading import Lock
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, TypeVarTuple, overload

from durable.client.client import Client
from durable.client.filters import EVERY_RUN, RunFilter
from durable.client.handle import ANSWER_SECONDS, WorkflowHandle
from durable.client.portal import Portal
from durable.client.schedules import ScheduleHandle
from durable.client.streams import StreamItem
from durable.codec import DEFAULT_CODEC, Codec
from durable.engine.definition import WorkflowDefinition
from durable.engine.interceptors import Interceptor
from durable.errors import ConfigurationError, WorkflowAlreadyStartedError
from durable.events import RunView
from durable.options import seconds
from durable.store.base import Store

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CALL_SECONDS = 30.0
"""Longer than the store tries by itself before it says that the database does not answer."""

SWEEP_SECONDS = 3600.0
"""What is done to many runs may take so much longer."""

CLOSED = "this client is closed; make another with SyncClient.connect()"


def verb(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]], waits: float = 0.0
) -> Callable[Concatenate[Any, P], T]:
    """The same verb for callers that wait. ``waits``: its own ``timeout`` unless it is given."""

    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        refuse_conn(kwargs)
        reached: tuple[SyncClient, Any] = self._reach()
        client, target = reached
        own: Any = kwargs.get("timeout", waits)
        return client._wait(method(target, *args, **kwargs), seconds(own, "timeout"))

    functools.update_wrapper(call, method)
    return call


def refuse_conn(options: Mapping[str, Any]) -> None:
    """A caller's transaction is on a connection of its own event loop, which is not ours."""
    if options.get("conn") is not None:
        raise ConfigurationError(
            "conn= takes a connection of asyncio's: use Client in a coroutine, or call this after "
            "your transaction has committed"
        )


class SyncClient:
    """Starts workflows, and hands out handles to them, for code without asyncio.

    Use it with ``with``, or keep one for the life of the process: it connects when it is first
    used, and `close` gives the connections back. Safe for threads; a call takes at most
    ``call_seconds`` (a `SyncWorkflowHandle.result` as long as it is told to), then TimeoutError.
    """

    def __init__(self, make: Callable[[], Client], *, call_seconds: float = CALL_SECONDS) -> None:
        """``make`` makes the asyncio client that does the work. See `connect`."""
        self.call_seconds = call_seconds
        self._make = make
        self._lock = Lock()
        self._portal: Portal | None = None
        self._client: Client | None = None
        self._end: weakref.finalize[..., Any] | None = None
        self._is_closed = False
        CLIENTS.add(self)

    @classmethod
    def connect(
        cls,
        dsn: str | Store,
        *,
        schema: str = "durable",
        codec: Codec = DEFAULT_CODEC,
        workflows: Iterable[Any] = (),
        interceptors: Iterable[Interceptor] = (),
        call_seconds: timedelta | float = CALL_SECONDS,
    ) -> Self:
        """A client of the database at ``dsn``. Arguments and errors are those of `Client.connect`.

        ``call_seconds`` bounds each call.
        """
        known, around = tuple(workflows), tuple(interceptors)

        def make() -> Client:
            return Client.connect(
                dsn, schema=schema, codec=codec, workflows=known, interceptors=around
            )

        return cls(make, call_seconds=seconds(call_seconds, "call_seconds"))

    def __enter__(self) -> Self:
        self._reach()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Send what is still to be hinted, and give thread and connections back. Safe twice."""
        with self._lock:
            self._is_closed = True
            if self._end is not None:
                self._end()
            self._portal = self._client = self._end = None

    def _wait(self, work: Coroutine[Any, Any, T], more: float | None = 0.0) -> T:
        """The outcome of ``work``, which may take ``more`` seconds than others (None: for ever)."""
        portal = self._portal
        if portal is None:
            work.close()
            raise ConfigurationError(CLOSED)
        return portal.call(work, None if more is None else self.call_seconds + more)

    def _reach(self) -> tuple[SyncClient, Client]:
        """The client that does the work, connected."""
        with self._lock:
            if self._client is not None:
                return self, self._client
            if self._is_closed:
                raise ConfigurationError(CLOSED)
            portal = Portal()
            try:
                self._client = portal.call(opened(self._make), self.call_seconds)
            except BaseException:
                portal.stop(nothing())
                raise
            self._portal = portal
            # Also when nobody closes it: hints that are still to be sent go out with the process.
            self._end = weakref.finalize(self, end, portal, self._client)
            return self, self._client

    def _forked(self) -> None:
        """In a child process the thread is gone, and the connections are the parent's."""
        self._lock = Lock()
        if self._end is not None:
            self._end.detach()
        self._portal = self._client = self._end = None

    # -- starting ----------------------------------------------------------------------------

    @overload
    def start(
        self, workflow: Callable[[*Ts], Awaitable[R]], *args: *Ts, id: str, **options: Any
    ) -> SyncWorkflowHandle[R]: ...
    @overload
    def start(
        self, workflow: str | type, *args: Any, id: str, **options: Any
    ) -> SyncWorkflowHandle[Any]: ...

    def start(  # type: ignore[misc]  # mypy: *args of Any are too few for those of Ts
        self, workflow: Any, *args: Any, id: str, **options: Any
    ) -> SyncWorkflowHandle[Any]:
        """Start a workflow and return its handle. Options and errors are those of `Client.start`.

        Not ``conn``: that connection belongs to an event loop.
        """
        refuse_conn(options)
        _, client = self._reach()
        handle: WorkflowHandle[Any] = self._wait(client.start(workflow, *args, id=id, **options))
        return SyncWorkflowHandle(self, handle)

    def start_many(
        self,
        workflow: WorkflowDefinition[Any, R] | str,
        starts: Iterable[Any],
        **options: Any,
    ) -> list[SyncWorkflowHandle[R] | WorkflowAlreadyStartedError]:
        """Start many runs of one workflow in one transaction; see `Client.start_many`."""
        return self._wrapped(self._begin_many(workflow, starts, **options))

    _begin_many = verb(Client.start_many)

    @overload
    def signal_with_start(
        self, workflow: Callable[[*Ts], Awaitable[R]], *args: *Ts, id: str, **options: Any
    ) -> SyncWorkflowHandle[R]: ...
    @overload
    def signal_with_start(
        self, workflow: str | type, *args: Any, id: str, **options: Any
    ) -> SyncWorkflowHandle[Any]: ...

    def signal_with_start(  # type: ignore[misc]  # mypy: as in `start`
        self, workflow: Any, *args: Any, id: str, **options: Any
    ) -> SyncWorkflowHandle[Any]:
        """Signal a run, and start it when it is not there; see `Client.signal_with_start`."""
        refuse_conn(options)
        _, client = self._reach()
        call: Any = client.signal_with_start
        handle: WorkflowHandle[Any] = self._wait(call(workflow, *args, id=id, **options))
        return SyncWorkflowHandle(self, handle)

    def update_with_start(self, workflow: Any, *args: Any, id: str, **options: Any) -> Any:
        """Update a run, and start it when it is not there; see `Client.update_with_start`."""
        _, client = self._reach()
        call: Any = client.update_with_start
        more = seconds(options.get("timeout", ANSWER_SECONDS), "timeout")
        return self._wait(call(workflow, *args, id=id, **options), more)

    @overload
    def enqueue(
        self, activity: Callable[[*Ts], Awaitable[R]], *args: *Ts, **options: Any
    ) -> SyncWorkflowHandle[R]: ...
    @overload
    def enqueue(self, activity: str, *args: Any, **options: Any) -> SyncWorkflowHandle[Any]: ...

    def enqueue(  # type: ignore[misc]  # mypy: as in `start`
        self, activity: Any, *args: Any, **options: Any
    ) -> SyncWorkflowHandle[Any]:
        """Have an activity done; return the job's handle. Options are those of `Client.enqueue`."""
        refuse_conn(options)
        _, client = self._reach()
        handle: WorkflowHandle[Any] = self._wait(client.enqueue(activity, *args, **options))
        return SyncWorkflowHandle(self, handle)

    def enqueue_many(
        self, activity: Any, calls: Iterable[Sequence[Any]], **options: Any
    ) -> list[SyncWorkflowHandle[Any] | WorkflowAlreadyStartedError]:
        """Enqueue many jobs of one activity in one transaction; see `Client.enqueue_many`."""
        return self._wrapped(self._enqueue_many(activity, calls, **options))

    _enqueue_many = verb(Client.enqueue_many)

    def create_schedule(
        self, id: str, workflow: Any, *args: Any, **options: Any
    ) -> SyncScheduleHandle:
        """Start runs at the times of a plan; see `Client.create_schedule`."""
        _, client = self._reach()
        handle = self._wait(client.create_schedule(id, workflow, *args, **options))
        return SyncScheduleHandle(self, handle.id)

    def get_schedule(self, id: str) -> SyncScheduleHandle:
        """A handle to a schedule by id. Asks nothing of the database."""
        return SyncScheduleHandle(self, id)

    list_schedules = verb(Client.list_schedules)

    def _wrapped(
        self, outcomes: Iterable[WorkflowHandle[R] | WorkflowAlreadyStartedError]
    ) -> list[SyncWorkflowHandle[R] | WorkflowAlreadyStartedError]:
        return [
            SyncWorkflowHandle(self, each) if isinstance(each, WorkflowHandle) else each
            for each in outcomes
        ]

    # -- finding and the rest ----------------------------------------------------------------

    @overload
    def get_handle(
        self, id: str, run_id: str | None = ..., *, workflow: WorkflowDefinition[Any, R]
    ) -> SyncWorkflowHandle[R]: ...
    @overload
    def get_handle(
        self, id: str, run_id: str | None = ..., *, workflow: None = ...
    ) -> SyncWorkflowHandle[Any]: ...

    def get_handle(
        self,
        id: str,
        run_id: str | None = None,
        *,
        workflow: WorkflowDefinition[Any, Any] | None = None,
    ) -> SyncWorkflowHandle[Any]:
        """A handle to a workflow by id, or to one of its runs. See `Client.get_handle`."""
        _, client = self._reach()
        handle: WorkflowHandle[Any] = client.get_handle(id, run_id, workflow=workflow)
        return SyncWorkflowHandle(self, handle)

    signal_many = verb(Client.signal_many)
    set_queue_limits = verb(Client.set_queue_limits)
    queue_limits = verb(Client.queue_limits)
    complete_activity = verb(Client.complete_activity)
    fail_activity = verb(Client.fail_activity)
    heartbeat_activity = verb(Client.heartbeat_activity)
    list = verb(Client.list)

    def list_all(self, **wanted: Any) -> Iterator[RunView]:
        """Every run that fits, the newest first, page by page. See `Client.list_all`."""
        _, client = self._reach()
        yield from self._each(client.list_all(**wanted))

    def iterate(self, runs: RunFilter = EVERY_RUN) -> Iterator[RunView]:
        """Every open run that fits, in order of their run ids. See `Client.iterate`."""
        _, client = self._reach()
        yield from self._each(client.iterate(runs))

    def _each(self, items: AsyncIterator[T]) -> Iterator[T]:
        while True:
            item = self._wait(next_item(items), None)
            if item is None:
                return
            yield item

    count = verb(Client.count)
    page = verb(Client.page)
    cancel_many = verb(Client.cancel_many, SWEEP_SECONDS)
    terminate_many = verb(Client.terminate_many, SWEEP_SECONDS)
    signal_matching = verb(Client.signal_matching, SWEEP_SECONDS)
    pause_many = verb(Client.pause_many, SWEEP_SECONDS)
    resume_many = verb(Client.resume_many, SWEEP_SECONDS)
    unpark_many = verb(Client.unpark_many, SWEEP_SECONDS)
    reset_many = verb(Client.reset_many, SWEEP_SECONDS)


class SyncWorkflowHandle(Generic[R]):
    """One workflow by its id, or one of its runs, for code without asyncio. Made by a client."""

    def __init__(self, client: SyncClient, handle: WorkflowHandle[R]) -> None:
        self._client = client
        self._handle = handle
        self.workflow_id = handle.workflow_id
        self.run_id = handle.run_id
        """The run this handle is about; None: the open or latest one."""

    def __repr__(self) -> str:
        return repr(self._handle)

    def _reach(self) -> tuple[SyncClient, WorkflowHandle[R]]:
        _, client = self._client._reach()
        self._handle = self._handle.of(client)
        return self._client, self._handle

    def result(self, timeout: timedelta | float | None = None) -> R:
        """Wait for the result; for ever, or for ``timeout``. See `WorkflowHandle.result`."""
        client, handle = self._reach()
        more = None if timeout is None else seconds(timeout, "timeout")
        return client._wait(handle.result(timeout), more)

    signal = verb(WorkflowHandle.signal)
    query = verb(WorkflowHandle.query, ANSWER_SECONDS)
    update = verb(WorkflowHandle.update, ANSWER_SECONDS)
    pause = verb(WorkflowHandle.pause)
    resume = verb(WorkflowHandle.resume)
    cancel = verb(WorkflowHandle.cancel)
    terminate = verb(WorkflowHandle.terminate)
    unpark = verb(WorkflowHandle.unpark)
    plan_reset = verb(WorkflowHandle.plan_reset)

    def reset(self, **options: Any) -> SyncWorkflowHandle[R]:
        """Go on as a new run from a point of its history. See `WorkflowHandle.reset`."""
        client, handle = self._reach()
        limit = seconds(options.get("timeout", ANSWER_SECONDS), "timeout")
        return SyncWorkflowHandle(client, client._wait(handle.reset(**options), limit))

    def fork(self, id: str, **options: Any) -> SyncWorkflowHandle[R]:
        """Start another workflow with part of its history. See `WorkflowHandle.fork`."""
        client, handle = self._reach()
        return SyncWorkflowHandle(client, client._wait(handle.fork(id, **options)))

    def stream(
        self, name: str, after: int = 0, *, follow: bool = True, type: Any = Any
    ) -> Iterator[StreamItem[Any]]:
        """Its items behind offset ``after``; waits for the next. See `WorkflowHandle.stream`."""
        client, handle = self._reach()
        yield from client._each(handle.stream(name, after, follow=follow, type=type))

    describe = verb(WorkflowHandle.describe)
    memo = verb(WorkflowHandle.memo)
    history = verb(WorkflowHandle.history)
    vars = verb(WorkflowHandle.vars)
    where = verb(WorkflowHandle.where)


class SyncScheduleHandle:
    """One schedule, for code without asyncio. Made by a client."""

    def __init__(self, client: SyncClient, id: str) -> None:
        self._client = client
        self.id = id

    def _reach(self) -> tuple[SyncClient, ScheduleHandle]:
        _, client = self._client._reach()
        return self._client, client.get_schedule(self.id)

    pause = verb(ScheduleHandle.pause)
    resume = verb(ScheduleHandle.resume)
    trigger = verb(ScheduleHandle.trigger)
    backfill = verb(ScheduleHandle.backfill)
    update = verb(ScheduleHandle.update)
    delete = verb(ScheduleHandle.delete)
    describe = verb(ScheduleHandle.describe)


async def opened(make: Callable[[], Client]) -> Client:
    """A client, made and connected in the loop that it is for."""
    return await make().__aenter__()


async def next_item(items: AsyncIterator[T]) -> T | None:
    """The next item; None at the end."""
    return await anext(items, None)


async def nothing() -> None:
    """The last call of a portal that has no client."""


def end(portal: Portal, client: Client) -> None:
    """Close the client, then its thread."""
    portal.stop(client.close())


CLIENTS: weakref.WeakSet[SyncClient] = weakref.WeakSet()
"""Those of this process: a child that is forked from it forgets their threads."""


def after_fork() -> None:
    """In the child."""
    for client in list(CLIENTS):
        client._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)
