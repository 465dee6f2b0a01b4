"""The same tests on a real PostgreSQL: a `WorkflowEnvironment` with a worker and a client inside.

Each environment makes a schema of its own in the given database and removes it at the end. Mocks
and crashes work as in process (a crash is an eviction from the worker's memory after each turn).
What cannot be had is a clock of the test's own: time is the database's, so `advance` and every
timer take as long as they say. Write tests that are to run both ways with short waits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast

from durable._core import decode
from durable.client import Client, WorkflowHandle
from durable.client.forking import ForkPlan
from durable.client.starting import StartOptions
from durable.client.streams import StreamItem
from durable.engine.attributes import own_headers
from durable.engine.definition import (
    PLAIN_ACTIVITY,
    ActivityDefinition,
    WorkflowDefinition,
    handler_name,
)
from durable.engine.execution import Execution
from durable.engine.info import ACTIVITY_CONTEXT
from durable.engine.interceptors import Interceptor
from durable.engine.start import StartMeta
from durable.errors import ContextError
from durable.events import DYNAMIC, RunState, RunView
from durable.options import ActivityOptions, WorkerOptions, seconds
from durable.runtime.recorded import RecordedRun
from durable.runtime.worker import Worker
from durable.store.migrate import migrate
from durable.store.scratch import drop_schema
from durable.testing.environment import WorkflowEnvironment
from durable.testing.handle import TestHandle, decode_answer
from durable.testing.history import History
from durable.testing.lookup import reachable
from durable.testing.mocks import Mock

R = TypeVar("R")

POLL_SECONDS = 0.2


class PostgresEnvironment(WorkflowEnvironment):
    """A `WorkflowEnvironment` on the database ``dsn``.

    ``patience`` is how long, in real seconds, one result or answer may take.
    """

    def __init__(
        self,
        dsn: str,
        *,
        workflows: Iterable[object] = (),
        activities: Iterable[object] = (),
        crash_at_every_event: bool = False,
        check_values: bool = True,
        patience: float = 30.0,
        interceptors: Iterable[Interceptor] = (),
    ) -> None:
        super().__init__(
            workflows=workflows,
            activities=activities,
            crash_at_every_event=crash_at_every_event,
            check_values=check_values,
            patience=patience,
            interceptors=interceptors,
        )
        self._dsn = dsn
        self._schema = f"durable_test_{uuid.uuid4().hex[:12]}"
        self._options = WorkerOptions(
            poll_max_seconds=POLL_SECONDS,
            drain_seconds=1.0,
            cache_bytes=1 if crash_at_every_event else WorkerOptions().cache_bytes,
        )
        self._client: Client | None = None
        self._worker: Worker | None = None
        self._served: set[str] = set()
        self._patience = patience

    async def __aenter__(self) -> PostgresEnvironment:
        await super().__aenter__()
        await asyncio.to_thread(migrate, self._dsn, self._schema)
        self._stack.push_async_callback(asyncio.to_thread, drop_schema, self._dsn, self._schema)
        client = Client.connect(
            self._dsn, schema=self._schema, interceptors=self._registry.hooks.interceptors
        )
        self._client = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stop_worker()
        await super().__aexit__(*exc)

    # -- time ------------------------------------------------------------------------------------

    @property
    def now(self) -> datetime:
        """The time of this machine: there is no other to be had without asking."""
        return datetime.now(UTC)

    async def complete_activity(self, task_token: str, result: Any = None) -> None:
        """As in process, by the client."""
        await self._opened().complete_activity(task_token, result)

    async def fail_activity(self, task_token: str, error: BaseException | str) -> None:
        """As in process, by the client."""
        await self._opened().fail_activity(task_token, error)

    async def heartbeat_activity(self, task_token: str, *details: Any) -> None:
        """As in process, by the client."""
        await self._opened().heartbeat_activity(task_token, *details)

    async def advance(self, duration: timedelta | float) -> None:
        """Wait as long, in real time."""
        await asyncio.sleep(seconds(duration, "duration"))

    async def settle(self) -> None:
        """Wait for one poll of the worker."""
        await asyncio.sleep(POLL_SECONDS)

    async def sleep(self, duration: timedelta | float) -> None:
        """For activities and mocks: wait in real time."""
        if ACTIVITY_CONTEXT.get() is None:
            raise ContextError("env.sleep() is for activities; a test calls env.advance()")
        if duration == float("inf"):
            await asyncio.Event().wait()
        await asyncio.sleep(seconds(duration, "duration"))

    # -- runs ------------------------------------------------------------------------------------

    def get_handle(self, workflow_id: str) -> TestHandle[Any]:
        """The handle of a workflow id; it need not exist yet."""
        return PostgresHandle(self._opened(), workflow_id, None, self._patience)

    async def _start(
        self,
        workflow: WorkflowDefinition[Any, Any],
        payload: bytes,
        *,
        id: str | None,
        headers: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TestHandle[Any]:
        self._numbers += 1
        client = self._opened()
        await self._serve(workflow)
        args, kwargs = workflow.signature.decode_args(payload)
        given = own_headers(headers or {})
        ours = {name: value for name, value in (headers or {}).items() if name not in given}
        chosen = cast(StartOptions, {**options, "headers": given})
        id = id or f"{workflow.name}-{self._numbers}"
        handle = await client.begin(workflow, id, args, dict(kwargs), chosen, ours)
        return PostgresHandle(client, handle.workflow_id, workflow, self._patience)

    async def _signal_with_start(
        self,
        workflow: WorkflowDefinition[Any, Any],
        payload: bytes,
        id: str,
        signal: str | Callable[..., Any],
        signal_args: Sequence[Any],
        options: Mapping[str, Any],
    ) -> TestHandle[Any]:
        client = self._opened()
        await self._serve(workflow)
        args, _ = workflow.signature.decode_args(payload)
        call: Any = {"id": id, "signal": signal, "signal_args": tuple(signal_args), **options}
        await client.signal_with_start(cast(Any, workflow), *args, **call)
        return PostgresHandle(client, id, workflow, self._patience)

    async def _update_with_start(
        self,
        workflow: WorkflowDefinition[Any, Any],
        payload: bytes,
        id: str,
        update: str | Callable[..., Any],
        update_args: Sequence[Any],
        options: Mapping[str, Any],
    ) -> Any:
        client = self._opened()
        await self._serve(workflow)
        args, _ = workflow.signature.decode_args(payload)
        call: Any = {"id": id, "update": update, "update_args": tuple(update_args), **options}
        answer = await client.update_with_start(
            cast(Any, workflow), *args, timeout=self._patience, **call
        )
        payload = client.codec.encode(answer)
        return decode_answer(workflow, "update", handler_name(update), payload)

    def _opened(self) -> Client:
        if self._client is None:
            raise ContextError("open the environment first: async with PostgresEnvironment(...)")
        return self._client

    # -- the worker ------------------------------------------------------------------------------

    async def _serve(self, workflow: WorkflowDefinition[Any, Any]) -> None:
        """Have a worker for all that the workflow can reach; a new one when there is more."""
        registry = self._registry
        for found in reachable(workflow):
            known = registry.workflows if isinstance(found, WorkflowDefinition) else None
            table: dict[str, Any] = registry.activities if known is None else known
            if found.name not in table:
                registry.add(found)
        names = {*registry.workflows, *registry.activities, *self._world.mocks}
        if self._worker is not None and names == self._served:
            return
        await self._stop_worker()
        activities = [self._dispatcher(name) for name in (*registry.activities, *self._unknown())]
        worker = Worker(
            self._dsn,
            workflows=list(registry.workflows.values()),
            activities=activities,
            options=self._options,
            schema=self._schema,
            interceptors=registry.hooks.interceptors,
        )
        await worker.__aenter__()
        self._worker, self._served = worker, names

    async def _stop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.__aexit__(None, None, None)

    def _unknown(self) -> list[str]:
        """Mocks of activities that there is no code for."""
        return [name for name in self._world.mocks if name not in self._registry.activities]

    def _dispatcher(self, name: str) -> ActivityDefinition[Any, Any]:
        """An activity that is the mock while there is one, else the real one."""
        real = self._registry.activities.get(name)
        mocks = self._world.mocks
        if real is not None and name == DYNAMIC:
            # A mock has a name, and is served under that.
            return real

        traits = PLAIN_ACTIVITY if real is None else dataclasses.replace(real.traits, executor=None)

        async def dispatch(*args: Any, **kwargs: Any) -> Any:
            mock = mocks.get(name)
            if mock is not None:
                args = args[int(traits.is_transactional) :]  # a mock gets no connection
                mock.calls.append((args, kwargs))
            return await call(real, mock, args, kwargs)

        return ActivityDefinition(
            name,
            dispatch,
            ActivityOptions() if real is None else real.options,
            signature=mocks[name].signature if real is None else real.signature,
            traits=traits,
        )


async def call(
    real: ActivityDefinition[Any, Any] | None,
    mock: Mock | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Call the mock or the real activity, whatever its colour."""
    fn: Callable[..., Any] = mock.fn if mock is not None else cast(Any, real).fn
    if inspect.iscoroutinefunction(fn):
        return await fn(*args, **kwargs)
    return await asyncio.to_thread(fn, *args, **kwargs)


class PostgresHandle(TestHandle[R]):
    """A run on a database, with the methods of a `TestHandle`."""

    def __init__(
        self,
        client: Client,
        workflow_id: str,
        definition: WorkflowDefinition[Any, R] | None,
        patience: float,
    ) -> None:
        self._client = client
        self._definition = definition
        self._patience = patience
        self._id = workflow_id
        self._handle: WorkflowHandle[Any] = client.get_handle(workflow_id, workflow=definition)

    @property
    def workflow_id(self) -> str:
        """The id that the whole chain shares."""
        return self._id

    @property
    def run_id(self) -> str:
        """Not known without asking: use ``(await handle.history()).recorded.run_id``."""
        raise ContextError("on a database the run id is (await handle.history()).recorded.run_id")

    async def stream(
        self, name: str, after: int = 0, *, type: Any = Any
    ) -> AsyncIterator[StreamItem[Any]]:
        """What activities of the last run have written to it by now."""
        async for item in self._handle.stream(name, after, follow=False, type=type):
            yield item

    async def state(self) -> RunState:
        """Where the last run of the chain is."""
        return RunState((await self._handle.describe()).state)

    async def result(self) -> R:
        """Wait for the result; TimeoutError when it takes longer than the patience."""
        return cast(R, await self._handle.result(self._patience))

    async def signal(self, name: str | Callable[..., Any], *args: Any) -> None:
        """Send a signal."""
        await self._handle.signal(name, *args)

    async def pause(self, reason: str = "") -> None:
        """Stop it until `resume`; see `WorkflowHandle.pause`."""
        await self._handle.pause(reason)

    async def resume(self) -> bool:
        """Let a paused run go on where it was; False when it was not paused."""
        return await self._handle.resume()

    async def cancel(self, reason: str | None = None) -> None:
        """Ask the run to cancel itself."""
        await self._handle.cancel(reason or "")

    async def terminate(self, reason: str = "") -> None:
        """End the run from outside."""
        await self._handle.terminate(reason)

    async def plan_reset(self, **point: Any) -> ForkPlan:
        """See `WorkflowHandle.plan_reset`."""
        return await self._handle.plan_reset(**point)

    async def reset(self, **how: Any) -> TestHandle[R]:
        """See `WorkflowHandle.reset`; this handle stays with the run that ended."""
        await self._pin()
        how.setdefault("timeout", self._patience)
        return self._of(await self._handle.reset(**how))

    async def fork(self, id: str, **how: Any) -> TestHandle[R]:
        """See `WorkflowHandle.fork`."""
        return self._of(await self._handle.fork(id, **how))

    async def _pin(self) -> None:
        """Stay with the run that there is now."""
        view = await self._handle.describe()
        self._handle = self._client.get_handle(self._id, view.run_id, workflow=self._definition)

    def _of(self, handle: WorkflowHandle[R]) -> TestHandle[R]:
        found: PostgresHandle[R] = PostgresHandle(
            self._client, handle.workflow_id, self._definition, self._patience
        )
        found._handle = handle
        return found

    async def query(self, name: str | Callable[..., Any], *args: Any) -> Any:
        """Ask a question; its worker answers."""
        answer = await self._handle.query(name, *args, timeout=self._patience)
        return self._typed("query", name, answer)

    async def update(self, name: str | Callable[..., Any], *args: Any) -> Any:
        """Have the run change something and return its answer."""
        answer = await self._handle.update(name, *args, timeout=self._patience)
        return self._typed("update", name, answer)

    async def vars(self) -> dict[str, Any]:
        """What the code set by `workflow.set_vars`, counting in what waits in the inbox."""
        return await self._handle.vars()

    async def where(self) -> list[str]:
        """Where each task of the run waits."""
        return await self._handle.where()

    async def history(self) -> History:
        """What happened in the last run of the chain."""
        return await self._history(await self._handle.describe())

    async def histories(self) -> list[History]:
        """What happened in each run of the chain."""
        found = [await self.history()]
        while (before := previous_run(found[0].recorded)) is not None:
            view = await self._client.store.view(run_id=before)
            if view is None:
                break
            found.insert(0, await self._history(view))
        return found

    async def _history(self, view: RunView) -> History:
        batches = (await self._client.store.load({view.run_id: view.part}))[view.run_id]
        return History(
            RecordedRun(
                view.run_id,
                view.workflow_id,
                view.workflow_type,
                tuple(batches[: view.event_batches]),
                view.head_hash,
                view.queue,
                RunState(view.state).name.lower(),
            )
        )

    def _typed(self, kind: str, name: str | Callable[..., Any], answer: Any) -> Any:
        if self._definition is None:
            return answer
        payload = self._client.codec.encode(answer)
        return decode_answer(self._definition, kind, handler_name(name), payload)

    def _execution(self) -> Execution:
        raise ContextError("on a database the run is in a worker's memory")


def previous_run(recorded: RecordedRun) -> str | None:
    """The run id of the run before this one in its chain."""
    first = decode(recorded.run_id_bytes, list(recorded.batches[:1]))[0]
    return StartMeta.from_json(first[6]).continued_from
