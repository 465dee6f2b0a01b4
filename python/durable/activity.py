"""For authors of activities: define them, and ask about the attempt that runs.

    @activity.defn(retry=RetryPolicy(max_attempts=5), start_to_close_timeout=30)
    async def charge(card: str, cents: int) -> str:
        return await payments.charge(card, cents, key=activity.info().idempotency_key)

An activity may do anything: it is where the world is. It runs at least once per call; what it
returns is recorded once, and replayed runs get the recorded value. An exception is tried again as
the retry policy says; raise `durable.NonRetryable` for one that trying again cannot help.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime, timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
)

from durable.codec import DEFAULT_CODEC, Codec
from durable.engine.definition import ActivityDefinition, ActivityTraits
from durable.engine.info import ACTIVITY_CONTEXT, ActivityContext, ActivityInfo, to_us
from durable.engine.streams import StreamWriter, check_stream_name
from durable.errors import ConfigurationError, ContextError, DefinitionError
from durable.events import DYNAMIC
from durable.hints import ACTIVITY, DecoratorModule, missing
from durable.options import ActivityOptions, RetryPolicy, seconds

__all__ = [
    "ActivityDefinition",
    "ActivityInfo",
    "defn",
    "heartbeat",
    "in_activity",
    "info",
    "is_cancelled",
    "logger",
    "override_next_retry",
    "stream",
    "transactional",
]

P = ParamSpec("P")
R = TypeVar("R")


class Decorator(Protocol):
    """What ``defn(...)`` with options returns."""

    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> ActivityDefinition[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> ActivityDefinition[P, R]: ...


@overload
def defn(fn: Callable[P, Awaitable[R]], /) -> ActivityDefinition[P, R]: ...
@overload
def defn(fn: Callable[P, R], /) -> ActivityDefinition[P, R]: ...
@overload
def defn(
    *,
    name: str | None = None,
    options: ActivityOptions | None = None,
    codec: Codec = ...,
    queue: str | None = None,
    priority: int = 0,
    fairness_key: str | None = None,
    fairness_weight: float = 1.0,
    retry: RetryPolicy | None = None,
    start_to_close_timeout: timedelta | float | None = None,
    schedule_to_start_timeout: timedelta | float | None = None,
    schedule_to_close_timeout: timedelta | float | None = None,
    heartbeat_timeout: timedelta | float | None = None,
    wait_cancel: bool = False,
    at_most_once: bool = False,
    completes_later: bool = False,
    executor: Literal["thread", "process"] | None = None,
    dynamic: bool = False,
) -> Decorator: ...


def defn(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    options: ActivityOptions | None = None,
    codec: Codec = DEFAULT_CODEC,
    at_most_once: bool = False,
    completes_later: bool = False,
    executor: Literal["thread", "process"] | None = None,
    dynamic: bool = False,
    **fields: Any,
) -> Any:
    """Make a function an activity; bare, or with options.

    ``name`` is what history records (default: the function's own). Options are the fields of
    `durable.ActivityOptions`, one by one or as ``options=``; times are timedeltas or seconds.
    ``codec`` has the converters for types of your own.

    With ``at_most_once`` it is recorded before it begins and never begins a second time: when it
    fails, or its worker dies, the call fails (`durable.AttemptLostError` says that it is not
    known what it did). Each call then costs two more commits.

    With ``completes_later`` it may hand out `ActivityInfo.task_token` and raise
    `durable.CompleteLater`: the call then waits, without a slot and across restarts, for
    `durable.Client.complete_activity` or ``fail_activity``. Give it a start-to-close or heartbeat
    timeout, or it waits for ever.

    ``executor`` says where a plain function runs: on a ``thread`` of the worker (the default), or
    in a ``process`` of its own, for what needs the processor or may crash. That process imports the
    function by its qualified name, and is killed when the attempt is over its time.

    ``dynamic``: it does every activity that its worker has no code for, and gets that name as its
    first argument. The parameters after it are what the arguments are read by (``*args: Any`` takes
    whatever comes). It is called by such a name (`durable.workflow.execute_activity`). A worker
    has one at most; it takes activities of every name from its queues.

    Raises DefinitionError when the function cannot be an activity: a parameter or a result whose
    type cannot travel, no function at all, or dynamic with a name or in a process.
    """
    if dynamic and name is not None:
        raise DefinitionError(f"a dynamic activity takes every name: leave name={name!r} out")
    traits = ActivityTraits(
        is_at_most_once=at_most_once,
        completes_later=completes_later,
        executor=executor,
        is_dynamic=dynamic,
    )
    return make(fn, name, options, codec, traits, fields)


def make(
    fn: Callable[..., Any] | None,
    name: str | None,
    options: ActivityOptions | None,
    codec: Codec,
    traits: ActivityTraits,
    fields: dict[str, Any],
) -> Any:
    """The definition of ``fn``, or the decorator that makes one."""
    given = {key: value for key, value in fields.items() if value is not None}
    made = (options or ActivityOptions()).replace(**given)
    if traits.is_at_most_once:
        made = made.replace(retry=RetryPolicy(max_attempts=1))

    def decorate(function: Callable[..., Any]) -> ActivityDefinition[Any, Any]:
        if isinstance(function, ActivityDefinition):
            raise DefinitionError(f"{function.name} is an activity already")
        if not callable(function) or isinstance(function, type):
            raise DefinitionError(f"@activity.defn goes on a function, not on {function!r}")
        own_name = DYNAMIC if traits.is_dynamic else name or function.__name__
        return ActivityDefinition(own_name, function, made, codec=codec, traits=traits)

    return decorate if fn is None else decorate(fn)


class TransactionalDecorator(Protocol):
    """What ``transactional(...)`` with options returns."""

    def __call__(
        self, fn: Callable[Concatenate[Any, P], Awaitable[R]], /
    ) -> ActivityDefinition[P, R]: ...


@overload
def transactional(
    fn: Callable[Concatenate[Any, P], Awaitable[R]], /
) -> ActivityDefinition[P, R]: ...
@overload
def transactional(
    *,
    name: str | None = None,
    options: ActivityOptions | None = None,
    codec: Codec = ...,
    queue: str | None = None,
    priority: int = 0,
    fairness_key: str | None = None,
    fairness_weight: float = 1.0,
    retry: RetryPolicy | None = None,
    start_to_close_timeout: timedelta | float | None = None,
    schedule_to_start_timeout: timedelta | float | None = None,
    schedule_to_close_timeout: timedelta | float | None = None,
    heartbeat_timeout: timedelta | float | None = None,
    wait_cancel: bool = False,
) -> TransactionalDecorator: ...


def transactional(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    options: ActivityOptions | None = None,
    codec: Codec = DEFAULT_CODEC,
    **fields: Any,
) -> Any:
    """Make ``async def f(conn, ...)`` an activity whose writes happen exactly once.

    ``conn`` is a psycopg AsyncConnection in a transaction of the workflows' own database; the
    caller does not pass it. What the function writes there and the record of its result are
    committed together: after a crash at any moment either both are there or neither, and the
    activity is tried again. It must not commit or roll back by itself; what it does outside of the
    connection happens at least once, as in any activity. Keep it short: its locks are held until it
    ends. Options are those of `defn`. Raises DefinitionError for what is not such a function.
    """
    return make(fn, name, options, codec, ActivityTraits(is_transactional=True), fields)


def current_attempt(what: str) -> ActivityContext:
    """The attempt that runs here; raise ContextError when there is none."""
    found = ACTIVITY_CONTEXT.get()
    if found is None:
        raise ContextError(f"activity.{what} works only while an activity runs")
    return found


def in_activity() -> bool:
    """Whether an activity's attempt runs here, as opposed to a plain call of its function."""
    return ACTIVITY_CONTEXT.get() is not None


def info() -> ActivityInfo:
    """The facts of this attempt: its number, its run, its idempotency key, heartbeat details."""
    return current_attempt("info()").info


def is_cancelled() -> bool:
    """Whether nobody wants the result any more; a sync activity should look now and then."""
    return current_attempt("is_cancelled()").is_cancelled


def heartbeat(*details: Any) -> None:
    """Say that this attempt makes progress.

    ``details`` are kept for the next attempt (`ActivityInfo.heartbeat_details`). Raises
    asyncio.CancelledError in a sync activity that nobody wants any more.
    """
    context = current_attempt("heartbeat()")
    if context.on_heartbeat is not None:
        context.on_heartbeat(details)


def stream(name: str) -> StreamWriter:
    """What writes to the run's stream of that name: values for those who follow the run now.

        tokens = activity.stream("tokens")
        await tokens.write("Hel")

    Readers use `durable.WorkflowHandle.stream`. An item is stored at least once, and all are before
    the attempt is over. Raises InvalidArgumentError for what cannot be a name, and ContextError
    outside of an activity.
    """
    context = current_attempt("stream()")
    return context.stream(check_stream_name(name))


def override_next_retry(
    *, delay: timedelta | float | None = None, at: datetime | None = None
) -> None:
    """If this attempt fails, make the next one after ``delay`` or at time ``at``.

    It counts once, for this attempt, and instead of the policy's back-off; whether there is a next
    attempt is still the policy's to say. A naive ``at`` is UTC.
    """
    context = current_attempt("override_next_retry()")
    if (delay is None) == (at is None):
        raise ConfigurationError("override_next_retry() takes either delay= or at=")
    context.retry_delay_seconds = None if delay is None else seconds(delay, "delay")
    context.retry_at_us = None if at is None else to_us(at)


class AttemptLogger(logging.LoggerAdapter[logging.Logger]):
    """Puts the run and the attempt with each message."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        context = ACTIVITY_CONTEXT.get()
        if context is not None:
            extra = dict(kwargs.get("extra") or {})
            extra.update(
                activity=context.name,
                attempt=context.attempt,
                workflow_id=context.workflow_id,
                run_id=context.run_id,
            )
            kwargs["extra"] = extra
        return msg, kwargs


logger = AttemptLogger(logging.getLogger("durable.activity"), {})
"""A logger whose records carry ``activity``, ``attempt``, ``workflow_id`` and ``run_id``."""

# `@activity` without `.defn`, and names that other libraries have, are errors that say what to do.
sys.modules[__name__].__class__ = DecoratorModule

if not TYPE_CHECKING:  # a type checker would take any name for one that is here

    def __getattr__(name: str) -> NoReturn:
        missing("module 'durable.activity'", name, ACTIVITY, __all__)
