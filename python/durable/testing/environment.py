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
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar, cast, overload

from durable.codec import DEFAULT_CODEC, Signature, failure_from_payload
from durable.engine.definition import ActivityDefinition, WorkflowDefinition, handler_name
from durable.engine.execution import Execution
from durable.engine.info import ACTIVITY_CONTEXT, duration_us, to_datetime, to_us
from durable.engine.registry import Registry
from durable.engine.start import StartMeta, new_run
from durable.errors import (
    ConfigurationError,
    ContextError,
    WorkflowCancelledError,
    WorkflowError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durable.events import EventKind, IdReuse, Message, MessageKind, RunState
from durable.options import DEFAULT_QUEUE
from durable.testing.clock import Clock
from durable.testing.history import History
from durable.testing.mocks import Mock, make_mock
from durable.testing.world import Fact, Run, World, new_run_id

P = ParamSpec("P")
R = TypeVar("R")

START_TIME = datetime(2030, 1, 1, tzinfo=UTC)
TURNS_MAX = 100_000
"""Turns that one wait may take: a loop that never ends is an error, not a hanging test."""
SETTLE_ROUNDS = 20
"""Rounds of the loop that other tasks of the test get before time moves."""

ENDINGS: dict[RunState, tuple[type[WorkflowError], str]] = {
    RunState.FAILED: (WorkflowFailedError, "failed"),
    RunState.CANCELLED: (WorkflowCancelledError, "was cancelled"),
    RunState.TERMINATED: (WorkflowTerminatedError, "was terminated"),
    RunState.TIMED_OUT: (WorkflowTimedOutError, "is over its time"),
}


@contextmanager
def checked_values() -> Iterator[None]:
    """Have every argument and result read back and compared where it is written."""
    before, DEFAULT_CODEC.verify = DEFAULT_CODEC.verify, True
    try:
        yield
    finally:
        DEFAULT_CODEC.verify = before


def resolve(future: asyncio.Future[None]) -> None:
    """Set a future that nobody may wait for any more."""
    if not future.done():
        future.set_result(None)


class StuckError(AssertionError):
    """A wait that cannot end: nothing is due, nothing runs, and nobody sends anything."""


class WorkflowEnvironment:
    """Runs workflows in this process, skipping time. An async context manager.

    ``workflows`` and ``activities`` are only needed for what cannot be found by the names that the
    workflow's own code uses. With ``crash_at_every_event`` each run is thrown out of memory and
    replayed after every event, and run a second time at its end: what is no function of history is
    a `NonDeterminismError`. ``check_values`` reads every argument and result back and compares.
    ``threads`` runs sync activities on threads instead of in place. ``patience`` is how long, in
    real seconds, a wait goes on while nothing at all happens. ``seed`` varies the runs' ids, and
    with them their random numbers.
    """

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
    ) -> None:
        if not patience > 0:
            raise ConfigurationError(f"patience must be more than 0 seconds, not {patience!r}")
        self._registry = Registry(workflows, activities)
        self._world = World(
            self._registry,
            Clock(to_us(start_time)),
            crash_at_every_event=crash_at_every_event,
            threads=threads,
        )
        self._check_values = check_values
        self._patience = patience
        self._seed = seed
        self._numbers = 0
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

    async def settle(self) -> None:
        """Let everything happen that can happen without time passing.

        Waits a few rounds of the loop for activities, not for ever: one that waits for the test
        stays as it is.
        """
        world = self._world
        world.pump()
        for _ in range(SETTLE_ROUNDS):
            await asyncio.sleep(0)
            world.pump()
            if not world.is_busy():
                break

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
    async def execute(self, workflow: str, /, *args: Any, **kwargs: Any) -> Any: ...
    @overload
    async def execute(self, workflow: type, /, *args: Any, **kwargs: Any) -> Any: ...

    async def execute(self, workflow: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Start a workflow with these arguments and return its result; see `result`."""
        return await (await self._start(workflow, args, kwargs, {})).result()

    @overload
    async def start(
        self,
        workflow: WorkflowDefinition[P, R],
        /,
        *args: Any,
        id: str | None = None,
        **options: Any,
    ) -> TestHandle[R]: ...
    @overload
    async def start(
        self, workflow: str | type, /, *args: Any, id: str | None = None, **options: Any
    ) -> TestHandle[Any]: ...

    async def start(
        self,
        workflow: Any,
        /,
        *args: Any,
        id: str | None = None,
        **options: Any,
    ) -> TestHandle[Any]:
        """Start a workflow and return its handle; its first steps have been taken.

        Options: ``queue``, ``version``, ``memo``, ``search``, ``start_delay``, ``start_at``,
        ``run_timeout``, ``id_reuse``, as for `Client.start`, and ``kwargs`` for arguments by
        name. Raises WorkflowAlreadyStartedError, and InvalidArgumentError for wrong arguments.
        """
        kwargs = options.pop("kwargs", {})
        return await self._start(workflow, args, kwargs, {"id": id, **options})

    def get_handle(self, workflow_id: str) -> TestHandle[Any]:
        """The handle of a workflow id, such as a child's; raise WorkflowNotFoundError."""
        run = self._world.latest.get(workflow_id)
        if run is None:
            known = ", ".join(sorted(self._world.latest)) or "none"
            raise WorkflowNotFoundError(f"no run has the id {workflow_id!r}; there are: {known}")
        return TestHandle(self, run)

    async def _start(
        self, workflow: Any, args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> TestHandle[Any]:
        if isinstance(workflow, str):
            workflow = self._registry.workflow(workflow)
        if not isinstance(workflow, WorkflowDefinition):
            raise ConfigurationError(f"{workflow!r} is not a workflow; put @workflow.defn on it")
        self._registry.add(workflow)
        payload = workflow.signature.encode_args(args, kwargs)
        workflow.signature.decode_args(payload)
        run = self._world.start(self._new_run(workflow, payload, **options), workflow.fn)
        await self.settle()
        return TestHandle(self, run)

    def _new_run(
        self,
        workflow: WorkflowDefinition[Any, Any],
        payload: bytes,
        *,
        id: str | None = None,
        queue: str | None = None,
        version: str | None = None,
        memo: dict[str, Any] | None = None,
        search: dict[str, Any] | None = None,
        start_delay: timedelta | float = 0,
        start_at: datetime | None = None,
        run_timeout: timedelta | float | None = None,
        id_reuse: IdReuse = IdReuse.REJECT,
    ) -> Any:
        self._numbers += 1
        meta = StartMeta(
            workflow_id=id or f"{workflow.name}-{self._numbers}",
            version=version or workflow.version,
            queue=queue or workflow.queue or DEFAULT_QUEUE,
            memo=memo or {},
            search=search or {},
        )
        return new_run(
            workflow,
            payload,
            meta,
            run_id=new_run_id(self._seed, self._numbers),
            now_us=self._world.clock.now_us,
            start_delay_us=duration_us(start_delay),
            start_at_us=None if start_at is None else to_us(start_at),
            run_timeout_us=None if run_timeout is None else duration_us(run_timeout),
            id_reuse=id_reuse,
        )

    # -- waiting ---------------------------------------------------------------------------------

    async def _until(self, done: Callable[[], bool], waiting: Callable[[], str]) -> None:
        """Run the world, and its time, until ``done()``."""
        world = self._world
        turns_end = world.turn_count + TURNS_MAX
        while True:
            world.pump()
            if done():
                return
            if world.turn_count > turns_end:
                raise StuckError(f"after {TURNS_MAX:,} turns {waiting()} goes on and on")
            if world.is_busy():
                await self._wait_for_news(waiting)
                continue
            await asyncio.sleep(0)
            world.pump()
            if done() or world.is_busy():
                continue
            if not world.step():
                await self._wait_for_news(waiting)

    async def _wait_for_news(self, waiting: Callable[[], str]) -> None:
        news = self._world.news
        news.clear()
        try:
            async with asyncio.timeout(self._patience):
                await news.wait()
        except TimeoutError:
            raise StuckError(f"{waiting()} waits, and nothing happens") from None


class TestHandle(Generic[R]):
    """A run of a `WorkflowEnvironment`, or the chain of runs that it became."""

    __test__ = False

    def __init__(self, env: WorkflowEnvironment, run: Run) -> None:
        self._env = env
        self._world = env._world
        self._run = run

    @property
    def workflow_id(self) -> str:
        """The id that the whole chain shares."""
        return self._run.new.workflow_id

    @property
    def run_id(self) -> str:
        """The run that is, or was, the last of the chain."""
        return self._last().new.run_id

    @property
    def state(self) -> RunState:
        """Where the last run of the chain is."""
        return self._last().state

    async def result(self) -> R:
        """Let time pass until the workflow ends, and return its result.

        Raises WorkflowFailedError and its siblings as `WorkflowHandle.result` does. What would
        park a run in production (a mismatch, an input that does not fit) is raised as it is.
        StuckError: the run waits for something that nobody sends.
        """
        await self._env._until(self._is_over, self._waiting)
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
        payload = DEFAULT_CODEC.encode(list(args))
        self._send(EventKind.SIGNAL_RECEIVED, handler_name(name), payload)
        await self._env.settle()

    async def cancel(self, reason: str | None = None) -> None:
        """Ask the run to cancel itself."""
        payload = None if reason is None else DEFAULT_CODEC.encode({"reason": reason})
        self._send(EventKind.CANCEL_REQUESTED, None, payload)
        await self._env.settle()

    async def terminate(self, reason: str = "") -> None:
        """End the run from outside; its code does not run again."""
        failure = {"type": "Terminated", "message": reason or "terminated"}
        self._send(EventKind.RUN_TERMINATED, None, DEFAULT_CODEC.encode(failure))
        await self._env.settle()

    async def query(self, name: str | Callable[..., Any], *args: Any) -> Any:
        """Ask a question; raise what the handler raises."""
        await self._env.settle()
        execution = self._execution()
        label = handler_name(name)
        answer = execution.query(label, DEFAULT_CODEC.encode(list(args)))
        return self._decode_answer("query", label, answer)

    async def update(self, name: str | Callable[..., Any], *args: Any) -> Any:
        """Have the run change something and return its answer, letting time pass until it is there.

        Raises UpdateRejectedError when the run refused it, else what the handler raised.
        """
        self._env._numbers += 1
        request_id = f"update-{self._env._numbers}"
        label = handler_name(name)
        meta = DEFAULT_CODEC.encode({"request_id": request_id})
        run = self._last()
        if not run.is_open:
            raise WorkflowNotFoundError(f"{self.workflow_id} has ended")
        payload = DEFAULT_CODEC.encode(list(args))
        self._world.tell(run, Fact(MessageKind.UPDATE_REQUESTED, 0, label, meta, payload))
        responses = self._world.responses
        await self._env._until(
            lambda: request_id in responses or run.error is not None, self._waiting
        )
        if request_id not in responses and run.error is not None:
            raise run.error
        response = responses.pop(request_id)
        if response.failure is not None:
            raise failure_from_payload(response.failure, None)
        return self._decode_answer("update", label, response.payload or b"null")

    async def vars(self) -> dict[str, Any]:
        """What the code set by `workflow.set_vars`, now or at its end."""
        await self._env.settle()
        return self._execution().vars

    async def where(self) -> list[str]:
        """Where each task of the run waits: ``task: file:line function``."""
        await self._env.settle()
        return self._execution().where()

    async def history(self) -> History:
        """What happened in the last run of the chain."""
        await self._env.settle()
        return History(self._last().recorded())

    async def histories(self) -> list[History]:
        """What happened in each run of the chain."""
        await self._env.settle()
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
        return f"{run.new.workflow_type} {self.workflow_id!r} ({places})"

    def _execution(self) -> Execution:
        run = self._last()
        if run.error is not None:
            raise run.error
        if run.execution is None:
            raise WorkflowNotFoundError(f"{self.workflow_id} has not begun")
        return run.execution

    def _send(self, kind: EventKind, name: str | None, payload: bytes | None) -> None:
        run_id = self._last().new.run_id
        if self._world.send(Message(kind, run_id=run_id, name=name, payload=payload)) is None:
            raise WorkflowNotFoundError(f"{self.workflow_id} has ended")

    def _decode_answer(self, kind: str, name: str, payload: bytes) -> Any:
        for handler in self._last().definition.handlers:
            if handler.kind == kind and handler.name == name:
                fn = getattr(handler.fn, "fn", handler.fn)
                return Signature.of(fn, skip_first=True).decode_result(payload)
        return DEFAULT_CODEC.decode(payload)

    def _failure(self, run: Run) -> WorkflowError:
        closing = run.closing
        assert closing is not None
        kind, what = ENDINGS[closing.state]
        data = DEFAULT_CODEC.decode(closing.failure) if closing.failure else {}
        said = data.get("message") or data.get("type") or "" if isinstance(data, dict) else ""
        error = kind(
            f"{run.new.workflow_type} {self.workflow_id!r} {what}{f': {said}' if said else ''}",
            workflow_id=self.workflow_id,
            run_id=run.new.run_id,
            failure=data if isinstance(data, dict) else None,
        )
        if closing.failure:
            error.__cause__ = failure_from_payload(closing.failure, None)
        return error
