"""For authors of workflows: define them, and everything their code may ask for.

    @workflow.defn
    async def subscription(plan: Plan) -> Receipt: ...

Workflow code is plain asyncio that runs again from its history whenever its worker changes, so it
must do the same each time. Time, random numbers, ids and the outside world come from here, or from
activities; ``asyncio.sleep``, ``gather``, ``wait``, ``timeout``, ``TaskGroup``, queues and locks
work as they are, durably.

Durations are timedeltas or seconds. Functions here raise ContextError outside of a workflow.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    NoReturn,
    TypeVar,
    TypeVarTuple,
    cast,
    overload,
)

from durable._core import current
from durable.engine import guard
from durable.engine.attributes import (
    MEMO,
    check_search_size,
    merged,
    plain_memo,
    plain_search,
)
from durable.engine.authoring import (
    Saga,
    WorkflowLogger,
    defn,
    init,
    logger,
    query,
    run,
    signal,
    update,
)
from durable.engine.context import ChildHandle, ContinueAsNew, Random, context
from durable.engine.definition import (
    ActivityDefinition,
    WorkflowDefinition,
    handler_name,
    why_no_workflow,
)
from durable.engine.handlers import SignalChannel
from durable.engine.info import ParentInfo, WorkflowInfo, duration_us, to_datetime, to_us
from durable.engine.last import has_last_result, last_failure, last_result
from durable.engine.mapping import map_activity
from durable.engine.receiving import (
    on_dynamic_query,
    on_dynamic_signal,
    on_dynamic_update,
    on_query,
    on_signal,
    on_update,
    signal_channel,
    wait_signal,
)
from durable.engine.retry import options_to_json
from durable.errors import ConfigurationError, DefinitionError
from durable.events import EventKind
from durable.hints import WORKFLOW, DecoratorModule, missing
from durable.options import ActivityOptions

__all__ = [
    "ChildHandle",
    "ParentInfo",
    "Saga",
    "SignalChannel",
    "WorkflowDefinition",
    "WorkflowInfo",
    "WorkflowLogger",
    "all_handlers_finished",
    "cancel_external",
    "continue_as_new",
    "defn",
    "deprecate_patch",
    "execute_activity",
    "execute_child",
    "has_last_result",
    "history_length",
    "in_workflow",
    "info",
    "init",
    "is_cancel_requested",
    "is_replaying",
    "last_failure",
    "last_result",
    "logger",
    "map",
    "now",
    "on_dynamic_query",
    "on_dynamic_signal",
    "on_dynamic_update",
    "on_query",
    "on_signal",
    "on_update",
    "patched",
    "query",
    "random",
    "run",
    "set_status",
    "set_vars",
    "should_continue_as_new",
    "side_effect",
    "signal",
    "signal_channel",
    "signal_external",
    "sleep",
    "sleep_until",
    "start_activity",
    "start_child",
    "start_time",
    "unsafe_allowed",
    "update",
    "upsert_memo",
    "upsert_search_attributes",
    "uuid4",
    "uuid7",
    "wait_condition",
    "wait_signal",
]

HISTORY_LENGTH_SUGGESTED = 10_000
"""Events after which `should_continue_as_new` says yes: a replay of about 10 ms."""

R = TypeVar("R")
Ts = TypeVarTuple("Ts")
T = TypeVar("T")


def in_workflow() -> bool:
    """Whether workflow code runs here."""
    return current() is not None


def now() -> datetime:
    """The run's time, UTC: that of the last thing that happened to it. Moves only by awaiting."""
    return to_datetime(context("now()").loop.now_us)


def start_time() -> datetime:
    """When the run was meant to begin, UTC."""
    return to_datetime(context("start_time()").meta.start_us or 0)


def info() -> WorkflowInfo:
    """The facts of the run: its ids, queue, version, attempt, parent."""
    return context("info()").info


def is_replaying() -> bool:
    """Whether the code runs through what is recorded already. For logging; decide nothing by it."""
    return context("is_replaying()").loop.is_replaying


def history_length() -> int:
    """Events in the history of this run up to here; the same whenever the code is replayed."""
    return context("history_length()").loop.position


def should_continue_as_new() -> bool:
    """Whether the history is so long that the run had better go on as a new one.

    True from `HISTORY_LENGTH_SUGGESTED` events on. A long history costs a longer replay, nothing
    else.
    """
    return history_length() >= HISTORY_LENGTH_SUGGESTED


def is_cancel_requested() -> bool:
    """Whether somebody asked the run to cancel itself."""
    return context("is_cancel_requested()").cancel_requested


def sleep(duration: timedelta | float) -> Coroutine[Any, Any, None]:
    """Wait for a duration, durably: the worker may die meanwhile, and nothing is held.

    A duration of zero or less is over at once and leaves no trace in history.
    """
    this = context("sleep()")
    return sleep_to_us(this.loop.now_us + duration_us(duration))


def sleep_until(when: datetime) -> Coroutine[Any, Any, None]:
    """Wait until a time (a naive one is UTC); over at once when that is past."""
    return sleep_to_us(to_us(when))


def sleep_to_us(due_us: int) -> Coroutine[Any, Any, None]:
    this = context("sleep()")
    this.check_writable("sleep()")
    if due_us <= this.loop.now_us:
        over = this.loop.create_future()
        over.set_result(None)
        return cast("Coroutine[Any, Any, None]", over)
    timer = this.loop.command(EventKind.TIMER_STARTED, time_us=due_us)
    return cast("Coroutine[Any, Any, None]", timer)


def set_vars(**values: Any) -> None:
    """Set variables for people to look at (``durable vars``). Rebuilt by replay, never stored."""
    this = context("set_vars()")
    this.check_writable("set_vars()")
    this.vars.update(values)


def set_status(status: str) -> None:
    """Say in a word or two what the run is doing; seen in lists without a replay."""
    upsert_search_attributes(status=status)


def upsert_search_attributes(**values: Any) -> None:
    """Set attributes that runs can be found by (`Client.list`); None removes one. Recorded.

    Those that are not named stay as they are, also those that the start brought. The values are
    stored unencrypted. Raises InvalidArgumentError or PayloadTooLargeError for what cannot be
    stored.
    """
    this = context("upsert_search_attributes()")
    this.check_writable("search attributes")
    changes = plain_search(values, this.codec)
    search = merged(this.search, changes)
    check_search_size(this.codec.encode(search))
    this.search = search
    payload = this.encode(values, "the search attributes")
    this.loop.emit(EventKind.ATTRIBUTES_SET, payload=payload)


def upsert_memo(**values: Any) -> None:
    """Set parts of the run's memo; None removes one. Recorded.

    What is not named stays as it is, also what the start brought. `info` and `WorkflowHandle.memo`
    show it, and the next run of a chain has it. Raises InvalidArgumentError, EncodeError or
    PayloadTooLargeError for what cannot be stored.
    """
    this = context("upsert_memo()")
    this.check_writable("the memo")
    changes = plain_memo(values, this.codec)
    memo = merged(this.info.memo, changes)
    plain_memo(memo, this.codec)
    this.set_memo(memo)
    this.loop.emit(EventKind.ATTRIBUTES_SET, name=MEMO, payload=this.codec.encode(changes))


def random() -> Random:
    """The run's own random numbers, seeded by its id: the same in every replay."""
    return context("random()").random


def uuid4() -> uuid.UUID:
    """A random UUID that is the same in every replay."""
    return uuid.UUID(int=random().getrandbits(128), version=4)


def uuid7() -> uuid.UUID:
    """A UUID that sorts by the run's time and is the same in every replay."""
    millis = context("uuid7()").loop.now_us // 1000
    low = random().getrandbits(74)
    bits = (millis & ((1 << 48) - 1)) << 80 | 7 << 76 | (low >> 62) << 64 | 2 << 62
    return uuid.UUID(int=bits | (low & ((1 << 62) - 1)))


def side_effect(fn: Callable[[], T], name: str | None = None) -> T:
    """Call ``fn`` once and record what it returns; replays get the recorded value.

    For values that are cheap to make and must not change: a configuration read, a draw. It must
    not fail half-way or wait; what takes time belongs in an activity.
    """
    this = context("side_effect()")
    this.check_writable("side_effect()")
    label = name or getattr(fn, "__name__", "side_effect")
    payload = this.loop.record(
        EventKind.SIDE_EFFECT, label, lambda: this.encode(fn(), f"side effect {label!r}")
    )
    value: T = this.codec.decoder(Any)(payload)
    return value


def patched(patch_id: str) -> bool:
    """Whether this run takes the new path of a change to its code.

    True in runs that come here for the first time with the new code, False in those whose history
    was written by the old. When no old run is open any more, call `deprecate_patch` instead, and
    remove that too when no run with the patch is open.
    """
    this = context("patched()")
    this.check_writable("patched()")
    return this.loop.patched(patch_id)


def deprecate_patch(patch_id: str) -> None:
    """Keep runs replayable that recorded ``patched(patch_id)``; records nothing new."""
    this = context("deprecate_patch()")
    this.check_writable("deprecate_patch()")
    this.loop.skip_marker(patch_id)


async def wait_condition(
    predicate: Callable[[], object],
    *,
    timeout: timedelta | float | None = None,  # noqa: ASYNC109 - a durable timer
) -> None:
    """Wait until ``predicate()`` is true; it is looked at whenever something happened to the run.

    Raises TimeoutError when ``timeout`` is over first. The predicate must only look.
    """
    this = context("wait_condition()")
    if not callable(predicate):
        raise ConfigurationError(
            f"wait_condition() takes a function, such as lambda: self.done, not {predicate!r}"
        )
    if predicate():
        return
    limit = None if timeout is None else duration_us(timeout) / 1e6
    waiter = this.wait_for(predicate)
    try:
        async with asyncio.timeout(limit):
            await waiter
    finally:
        this.stop_waiting(waiter)


def all_handlers_finished() -> bool:
    """Whether no signal or update handler is under way; for `wait_condition` before the end."""
    return context("all_handlers_finished()").running_handlers == 0


def start_activity(
    activity: ActivityDefinition[..., Any] | str,
    *args: Any,
    result_type: Any = Any,
    **options: Any,
) -> asyncio.Future[Any]:
    """Schedule an activity and return its handle: a future to await, cancel or pass to asyncio.

    By name the arguments are taken as they are and the result is read as ``result_type``.
    ``options`` are fields of `durable.ActivityOptions`.
    """
    this = context("start_activity()")
    this.check_writable("activities")
    if isinstance(activity, ActivityDefinition):
        chosen = activity.with_options(**options) if options else activity
        return chosen.start(*args)
    if not isinstance(activity, str):
        raise DefinitionError(f"{activity!r} is not an activity; put @activity.defn on it")
    made = ActivityOptions().replace(**options)
    handle = this.loop.command(
        EventKind.ACTIVITY_SCHEDULED,
        name=activity,
        options=options_to_json(made),
        payload=this.encode(list(args), f"the arguments of activity {activity!r}"),
        decoder=None if result_type is Any else this.codec.decoder(result_type),
        wait_cancel=made.wait_cancel,
    )
    return cast("asyncio.Future[Any]", handle)


@overload
async def execute_activity(
    activity: ActivityDefinition[..., R], *args: Any, **options: Any
) -> R: ...
@overload
async def execute_activity(
    activity: str, *args: Any, result_type: type[T], **options: Any
) -> T: ...
@overload
async def execute_activity(activity: str, *args: Any, **options: Any) -> Any: ...


async def execute_activity(
    activity: ActivityDefinition[..., Any] | str,
    *args: Any,
    result_type: Any = Any,
    **options: Any,
) -> Any:
    """Schedule an activity, given as a definition or by name, and return its result."""
    return await start_activity(activity, *args, result_type=result_type, **options)


@overload
def start_child(
    workflow: Callable[[*Ts], Awaitable[R]],
    *args: *Ts,
    id: str | None = ...,
    queue: str | None = ...,
    version: str | None = ...,
    priority: int | None = ...,
    parent_close: str | None = ...,
    run_timeout: timedelta | float | None = ...,
    execution_timeout: timedelta | float | None = ...,
    memo: dict[str, Any] | None = ...,
) -> ChildHandle[R]: ...
@overload
def start_child(
    workflow: str | type,
    *args: Any,
    id: str | None = ...,
    queue: str | None = ...,
    version: str | None = ...,
    priority: int | None = ...,
    parent_close: str | None = ...,
    run_timeout: timedelta | float | None = ...,
    execution_timeout: timedelta | float | None = ...,
    memo: dict[str, Any] | None = ...,
    result_type: Any = ...,
) -> ChildHandle[Any]: ...


def start_child(  # type: ignore[misc]  # mypy: *args of Any are too few for those of Ts
    workflow: Any,
    *args: Any,
    id: str | None = None,
    queue: str | None = None,
    version: str | None = None,
    priority: int | None = None,
    parent_close: str | None = None,
    run_timeout: timedelta | float | None = None,
    execution_timeout: timedelta | float | None = None,
    memo: dict[str, Any] | None = None,
    result_type: Any = Any,
) -> ChildHandle[Any]:
    """Start a child workflow and return its handle; await the handle for the result.

    ``id`` defaults to one derived from the parent's. ``parent_close`` says what becomes of it when
    the parent ends first: "terminate" (the default), "cancel" or "abandon". ``run_timeout`` limits
    each of its runs, ``execution_timeout`` all runs of its chain together.
    """
    this = context("start_child()")
    if parent_close not in (None, "terminate", "cancel", "abandon"):
        raise ConfigurationError('parent_close is "terminate", "cancel" or "abandon"')
    if isinstance(workflow, WorkflowDefinition):
        name, payload = workflow.name, workflow.signature.encode_args(args, {})
        decoder = workflow.signature.result_decoder
        queue, version = queue or workflow.queue, version or workflow.version
    elif isinstance(workflow, str):
        name = workflow
        payload = this.encode(list(args), f"the arguments of workflow {name!r}")
        decoder = None if result_type is Any else this.codec.decoder(result_type)
    else:
        raise DefinitionError(why_no_workflow(workflow))
    options = {
        "id": id,
        "queue": queue,
        "version": version,
        "priority": priority,
        "parent_close": parent_close,
        "run_timeout_us": None if run_timeout is None else duration_us(run_timeout),
        "execution_timeout_us": (
            None if execution_timeout is None else duration_us(execution_timeout)
        ),
        "memo": memo,
    }
    return this.start_child(name, payload, decoder, options)


@overload
async def execute_child(
    workflow: Callable[[*Ts], Awaitable[R]], *args: *Ts, **options: Any
) -> R: ...
@overload
async def execute_child(workflow: str | type, *args: Any, **options: Any) -> Any: ...


async def execute_child(  # type: ignore[misc]  # as above
    workflow: Any, *args: Any, **options: Any
) -> Any:
    """Start a child workflow and return its result. Options are those of `start_child`."""
    return await start_child(workflow, *args, **options)


async def signal_external(
    workflow_id: str, name: str | Callable[..., Any], *args: Any, run_id: str | None = None
) -> None:
    """Send a signal to another run; raise WorkflowNotFoundError when there is none."""
    this = context("signal_external()")
    label = handler_name(name)
    payload = this.encode(list(args), f"the arguments of signal {label!r}")
    await this.send_external(EventKind.EXTERNAL_SIGNAL, workflow_id, run_id, label, payload)


async def cancel_external(workflow_id: str, *, run_id: str | None = None) -> None:
    """Ask another run to cancel itself; raise WorkflowNotFoundError when there is none."""
    this = context("cancel_external()")
    await this.send_external(EventKind.EXTERNAL_CANCEL, workflow_id, run_id, None, None)


def continue_as_new(
    *args: Any,
    workflow: WorkflowDefinition[..., Any] | str | None = None,
    queue: str | None = None,
    memo: dict[str, Any] | None = None,
) -> NoReturn:
    """End this run here and go on as a new one with these arguments and an empty history.

    The workflow id stays; signals that nobody took go along. ``workflow`` goes on as another one.
    """
    this = context("continue_as_new()")
    this.check_writable("continue_as_new()")
    target = this.definition if workflow is None else workflow
    options = {"queue": queue, "memo": memo}
    if isinstance(target, WorkflowDefinition):
        name, payload = target.name, target.signature.encode_args(args, {})
        if target is not this.definition:
            options["version"] = target.version
    else:
        name = target
        payload = this.encode(list(args), f"the arguments of workflow {name!r}")
    raise ContinueAsNew(name, payload, options)


async def map(
    activity: Callable[[T], Awaitable[R]],
    items: list[T] | tuple[T, ...],
    *,
    max_concurrency: int = 100,
    tolerate: int | float = 0,
    min_successful: int | float | None = None,
) -> list[R | BaseException]:
    """Call an activity for each item, so many at a time, and return the results in order.

    ``tolerate`` failures (a number, or a share between 0 and 1) leave their exception in the place
    of the result; one more cancels what is under way and is raised.

    ``min_successful`` (a number, or a share between 0 and 1) says it the other way round: all items
    are tried, and so many calls must succeed. As soon as they cannot, what is under way is
    cancelled and MapFailedError raised, with the counts; at once, when there are too few items.
    Raises ConfigurationError when both are given.
    """
    context("map()").check_writable("map()")
    return await map_activity(activity, items, max_concurrency, tolerate, min_successful)


def unsafe_allowed() -> AbstractContextManager[None]:
    """Switch the guard off for a block, for those who know that it is the same in every replay."""
    return guard.allowed()


# `@workflow` without `.defn`, and names that other libraries have, are errors that say what to do.
sys.modules[__name__].__class__ = DecoratorModule

if not TYPE_CHECKING:  # a type checker would take any name for one that is here

    def __getattr__(name: str) -> NoReturn:
        missing("module 'durable.workflow'", name, WORKFLOW, __all__)
