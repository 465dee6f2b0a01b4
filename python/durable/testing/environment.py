"""Environment: where the workflows of a test run.

    async with WorkflowEnvironment() as env:
        env.mock(charge, "receipt-7")
        assert await env.execute(order, Order(total=12)) == "receipt-7"

No database and no worker: runs are driven by the production engine in this process, on a clock of
their own. That clock moves only while somebody waits for a result (or calls `advance`) and
nothing else is left to do; then it jumps to what is due next, so a year takes no time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, ParamSpec, TypeVar, TypeVarTuple, overload

from durable.client.schedules import ScheduleHandle, plan_of
from durable.codec import DEFAULT_CODEC
from durable.engine.attributes import (
    plain_headers,
)
from durable.engine.definition import ActivityDefinition, WorkflowDefinition
from durable.engine.info import ACTIVITY_CONTEXT, duration_us, to_datetime, to_us
from durable.engine.interceptors import Interceptor
from durable.engine.jobs import headers_of, job_of
from durable.engine.registry import Registry
from durable.engine.schedules import SCHEDULE
from durable.errors import (
    ConfigurationError,
    ContextError,
    WorkflowAlreadyStartedError,
    WorkflowNotFoundError,
)
from durable.events import IdReuse
from durable.hints import ENVIRONMENT, Hinted
from durable.options import RetryPolicy
from durable.testing.clock import Clock
from durable.testing.completing import Completing
from durable.testing.handle import TestHandle
from durable.testing.mocks import Mock, make_mock
from durable.testing.starting import WithStart
from durable.testing.world import World

P = ParamSpec("P")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

START_TIME = datetime(2030, 1, 1, tzinfo=UTC)


checking: list[bool] = []
"""What the codec was told before, for each environment that checks values; they may overlap."""


@contextmanager
def checked_values() -> Iterator[None]:
    """Have every argument and result read back and compared where it is written."""
    checking.append(DEFAULT_CODEC.verify)
    DEFAULT_CODEC.verify = True
    try:
        yield
    finally:
        before = checking.pop()
        if not checking:
            DEFAULT_CODEC.verify = before


def resolve(future: asyncio.Future[None]) -> None:
    """Set a future that nobody may wait for any more."""
    if not future.done():
        future.set_result(None)


class WorkflowEnvironment(WithStart, Completing, Hinted):
    """Runs workflows in this process, skipping time. An async context manager.

    ``workflows`` and ``activities`` are only needed for what cannot be found by the names that the
    workflow's own code uses. With ``crash_at_every_event`` each run is thrown out of memory and
    replayed after every event, and run a second time at its end: what is no function of history is
    a `NonDeterminismError`. ``check_values`` reads every argument and result back and compares.
    ``threads`` runs sync activities on threads instead of in place. ``patience`` is how long, in
    real seconds, a wait goes on while nothing at all happens. ``seed`` varies the runs' ids, and
    with them their random numbers. ``interceptors`` are those of the workers
    and of the client, which the test is.
    """

    _hints = ENVIRONMENT

    def __init__(
        self,
        *,
        workflows: Iterable[object] = (),
        activities: Iterable[object] = (),
        start_time: datetime = START_TIME,
        crash_at_every_event: bool = False,
        check_values: bool = True,
        threads: bool = False,
        patience: float = 5.0,
        seed: int = 0,
        interceptors: Iterable[Interceptor] = (),
    ) -> None:
        if not patience > 0:
            raise ConfigurationError(f"patience must be more than 0 seconds, not {patience!r}")
        registry = Registry(workflows, activities, interceptors=interceptors)
        world = World(
            registry,
            Clock(to_us(start_time)),
            crash_at_every_event=crash_at_every_event,
            threads=threads,
            patience=patience,
        )
        super().__init__(registry, world, seed)
        self.crashes = crash_at_every_event
        """Whether runs are replayed after every event."""
        self._check_values = check_values
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> WorkflowEnvironment:
        if self._check_values:
            self._stack.enter_context(checked_values())
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._world.evict()
        await self._stack.aclose()

    # -- time ------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The environment's time, UTC."""
        return to_datetime(self._world.clock.now_us)

    async def advance(self, duration: timedelta | float) -> None:
        """Let time pass: everything that is due meanwhile happens, in order.

        Unlike a wait for a result this also overtakes activities that are still busy once the other
        tasks of the test have nothing to do, so that their time limits can be tested.
        """
        world = self._world
        end_us = world.clock.now_us + duration_us(duration)
        await self.settle()
        while (due_us := world.clock.next_due_us()) is not None and due_us <= end_us:
            world.step()
            await self.settle()
        world.clock.now_us = end_us

    async def sleep(self, duration: timedelta | float) -> None:
        """For activities and mocks: wait on the environment's clock, which may move meanwhile."""
        attempt = ACTIVITY_CONTEXT.get()
        call = None if attempt is None else self._world.call_of(attempt.run_id, attempt.ref)
        if call is None:
            raise ContextError("env.sleep() is for activities; a test calls env.advance()")
        wake = asyncio.get_running_loop().create_future()
        entry = None
        if duration != float("inf"):
            due_us = self._world.clock.now_us + duration_us(duration)
            entry = self._world.clock.at(due_us, partial(resolve, wake))
        call.is_parked = True
        self._world.news.set()
        try:
            await wake
        finally:
            call.is_parked = False
            if entry is not None:
                entry.cancel()

    async def hang(self) -> None:
        """For activities and mocks: never return, and let time go on."""
        await self.sleep(float("inf"))

    # -- activities ------------------------------------------------------------------------------

    def mock(self, activity: ActivityDefinition[..., Any] | str, replacement: Any) -> Mock:
        """Replace an activity by a function, a value to return, or an exception to raise.

        It is held to the real activity's signature: arguments arrive typed, results must fit.
        The returned mock knows its ``calls``. Raises InvalidArgumentError for what cannot fit.
        """
        known = self._registry.activities.get(activity) if isinstance(activity, str) else None
        made = make_mock(activity, known, replacement)
        self._world.mocks[made.name] = made
        return made

    # -- runs ------------------------------------------------------------------------------------

    @overload
    async def execute(
        self, workflow: WorkflowDefinition[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    async def execute(self, workflow: str | type, /, *args: Any, **kwargs: Any) -> Any: ...

    async def execute(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Start a workflow with these arguments and return its result; see `TestHandle.result`."""
        definition, payload = self._prepare(workflow, args, kwargs)
        return await (await self._start(definition, payload, id=None)).result()

    @overload
    async def start(
        self,
        workflow: Callable[[*Ts], Awaitable[R]],
        /,
        *args: *Ts,
        id: str | None = ...,
        queue: str | None = ...,
        version: str | None = ...,
        start_delay: timedelta | float | None = ...,
        start_at: datetime | None = ...,
        run_timeout: timedelta | float | None = ...,
        execution_timeout: timedelta | float | None = ...,
        id_reuse: IdReuse = ...,
        memo: Mapping[str, Any] | None = ...,
        search: Mapping[str, Any] | None = ...,
        headers: Mapping[str, Any] | None = ...,
        **kwargs: Any,
    ) -> TestHandle[R]: ...
    @overload
    async def start(
        self,
        workflow: str | type,
        /,
        *args: Any,
        id: str | None = ...,
        queue: str | None = ...,
        version: str | None = ...,
        start_delay: timedelta | float | None = ...,
        start_at: datetime | None = ...,
        run_timeout: timedelta | float | None = ...,
        execution_timeout: timedelta | float | None = ...,
        id_reuse: IdReuse = ...,
        memo: Mapping[str, Any] | None = ...,
        search: Mapping[str, Any] | None = ...,
        headers: Mapping[str, Any] | None = ...,
        **kwargs: Any,
    ) -> TestHandle[Any]: ...

    async def start(  # type: ignore[misc]  # mypy: *args of Any are too few for those of Ts
        self,
        workflow: Any,
        /,
        *args: Any,
        id: str | None = None,
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
        **kwargs: Any,
    ) -> TestHandle[Any]:
        """Start a workflow and return its handle; its first steps have been taken.

        Everything but ``args`` and ``kwargs``, which are the workflow's, is as for `Client.start`;
        ``id`` is made up when it is not given. Raises WorkflowAlreadyStartedError, and
        InvalidArgumentError for arguments that do not fit.
        """
        definition, payload = self._prepare(workflow, args, kwargs)
        return await self._start(
            definition,
            payload,
            id=id,
            queue=queue,
            version=version,
            start_delay=start_delay,
            start_at=start_at,
            run_timeout=run_timeout,
            execution_timeout=execution_timeout,
            id_reuse=id_reuse,
            memo=memo,
            search=search,
            headers=headers and plain_headers(headers, definition.codec),
        )

    async def start_many(
        self,
        workflow: Any,
        starts: Iterable[tuple[str, Sequence[Any]] | tuple[str, Sequence[Any], Mapping[str, Any]]],
        **options: Any,
    ) -> list[TestHandle[Any] | WorkflowAlreadyStartedError]:
        """Start runs of one workflow, as by `Client.start_many`; here one after the other.

        ``starts`` are (id, arguments), or (id, arguments, options). Returns, in order, a handle or
        the error that says which run has the id.
        """
        made: list[TestHandle[Any] | WorkflowAlreadyStartedError] = []
        for id, args, *own in starts:
            chosen = {**options, **(own[0] if own else {})}
            try:
                made.append(await self.start(workflow, *args, id=id, **chosen))
            except WorkflowAlreadyStartedError as error:
                made.append(error)
        return made

    async def signal_many(
        self, signal: str | Callable[..., Any], signals: Iterable[tuple[str, Sequence[Any]]]
    ) -> list[bool]:
        """Send one kind of signal to runs, (workflow id, arguments), as by `Client.signal_many`.

        Returns, in order, whether an open run took it.
        """
        taken = []
        for id, args in signals:
            try:
                await self.get_handle(id).signal(signal, *args)
            except WorkflowNotFoundError:
                taken.append(False)
            else:
                taken.append(True)
        return taken

    async def enqueue(
        self,
        activity: ActivityDefinition[..., R],
        /,
        *args: Any,
        id: str | None = None,
        queue: str | None = None,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        retry: RetryPolicy | None = None,
        run_timeout: timedelta | float | None = None,
        id_reuse: IdReuse = IdReuse.REJECT,
        **kwargs: Any,
    ) -> TestHandle[R]:
        """Have an activity done as a job, as by `Client.enqueue`; return the job's handle."""
        if activity.name not in self._registry.activities:
            self._registry.add(activity)
        definition, payload = self._checked(job_of(activity), args, kwargs)
        return await self._start(
            definition,
            payload,
            id=id,
            queue=queue,
            start_delay=delay,
            start_at=at,
            run_timeout=run_timeout,
            id_reuse=id_reuse,
            headers=headers_of(activity, retry),
        )

    async def create_schedule(
        self, id: str, workflow: Any, /, *args: Any, **options: Any
    ) -> ScheduleHandle:
        """Start a workflow, or an activity as a job, at the times of a plan, as time passes.

        ``options`` (``cron``, ``every``, ``overlap``, ...) and the handle are those of
        `Client.create_schedule`. Raises InvalidArgumentError for a plan without times.
        """
        headers: Mapping[str, Any] = {}
        if isinstance(workflow, ActivityDefinition):
            headers = headers_of(workflow)
            if workflow.name not in self._registry.activities:
                self._registry.add(workflow)
            definition, payload = self._checked(job_of(workflow), args, {})
        else:
            definition, payload = self._prepare(workflow, args, {})
        search = options.pop("search", None)
        plan = plan_of(definition, payload, headers, **options)
        arguments = SCHEDULE.signature.encode_args((plan, {}), {})
        run = await self._start(
            SCHEDULE, arguments, id=id, queue=plan["options"].get("queue"), search=search
        )

        async def encode(_: str, arguments: Sequence[Any]) -> bytes:
            return self._checked(definition, tuple(arguments), {})[1]

        return ScheduleHandle(run, encode)

    def get_handle(self, workflow_id: str) -> TestHandle[Any]:
        """The handle of a workflow id, such as a child's; raise WorkflowNotFoundError."""
        run = self._world.latest.get(workflow_id)
        if run is None:
            known = ", ".join(sorted(self._world.latest)) or "none"
            raise WorkflowNotFoundError(f"no run has the id {workflow_id!r}; there are: {known}")
        return TestHandle(self._world, run)
