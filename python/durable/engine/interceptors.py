"""Interceptors: code around every start, message, workflow, handler and activity attempt.

An `Interceptor` has one method for each thing that can be surrounded. It gets the call, which it
may look at and change, and ``proceed``, which does what is surrounded, the next interceptor first.
The first of a list is the outermost. Only methods that a class overrides are ever called, so what
nobody surrounds costs one look whether there is a hook.

Those of the client run where the client is; those of the worker run in every worker process. The
hooks of workflows, `Interceptor.run_workflow` and the ``handle_...`` ones, are workflow code: they
run again in each replay, in workers, in tests and in the debugger, and must do the same there.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from durable.engine.info import ActivityInfo, WorkflowInfo
from durable.errors import ConfigurationError

C = TypeVar("C")

Proceed = Callable[[C], Awaitable[Any]]
"""Does what is surrounded, with this call, and returns its outcome or raises what it raises."""


@dataclass(slots=True)
class StartCall:
    """A run that a client is about to start: by a start, as a job, or with a message.

    ``args``, ``kwargs`` and ``headers`` may be changed, or replaced; the rest says what it is.
    """

    workflow: str
    """The name of its type; that of a job is ``job:`` and the activity's."""
    id: str | None
    """The workflow id; None for a job that was given none."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    headers: dict[str, Any]
    """What goes along with the work. A message that is sent with the start has them too."""
    options: Mapping[str, Any]
    """The other options of the start."""
    message: str | None = None
    """The name of the signal or update that is sent with the start."""


@dataclass(slots=True)
class MessageCall:
    """A signal, query, update or cancel request that a client is about to send.

    ``args`` and ``headers`` may be changed, or replaced; the rest says what it is.
    """

    workflow_id: str
    run_id: str | None
    name: str
    """The name of the signal, query or update; empty for a cancel request."""
    args: tuple[Any, ...]
    headers: dict[str, Any] = field(default_factory=dict)
    """What goes along with it, to the handler. (A cancel request has no handler.)"""


@dataclass(slots=True)
class RunCall:
    """A run whose code begins, for the first time or in a replay."""

    info: WorkflowInfo
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    headers: dict[str, Any]
    """What its activities, its children and its signals to others get along: at first what the run
    itself got. Changes made before ``proceed`` count. (The next runs of its chain get what it
    got.)"""
    is_replaying: bool


@dataclass(slots=True)
class HandlerCall:
    """A signal, query or update whose handler is about to be called."""

    info: WorkflowInfo
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    headers: dict[str, Any]
    """What came along with it."""
    is_replaying: bool


@dataclass(slots=True)
class ActivityCall:
    """One attempt of an activity."""

    info: ActivityInfo
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def headers(self) -> Mapping[str, Any]:
        """What its workflow sent along."""
        return self.info.headers


class Interceptor:
    """Surrounds what it overrides, and passes on everything else.

    Each method returns what the caller is to have, mostly the outcome of ``await proceed(call)``,
    which it should call once. What it raises counts as raised by what it surrounds.
    """

    # -- in a client ---------------------------------------------------------------------------

    async def start_workflow(self, call: StartCall, proceed: Proceed[StartCall]) -> Any:
        """Around the start of a run, also of a job; the outcome is its handle.

        With ``start_many`` and ``enqueue_many`` it is called for each run, all at once;
        ``proceed`` returns when all have been started, a WorkflowAlreadyStartedError for one whose
        id is taken. Runs that schedules start are not seen.
        """
        return await proceed(call)

    async def signal_workflow(self, call: MessageCall, proceed: Proceed[MessageCall]) -> Any:
        """Around a signal of a client; for ``signal_many``, around each, all at once."""
        return await proceed(call)

    async def query_workflow(self, call: MessageCall, proceed: Proceed[MessageCall]) -> Any:
        """Around a query and its answer, which is the outcome."""
        return await proceed(call)

    async def update_workflow(self, call: MessageCall, proceed: Proceed[MessageCall]) -> Any:
        """Around an update and its answer, which is the outcome."""
        return await proceed(call)

    async def cancel_workflow(self, call: MessageCall, proceed: Proceed[MessageCall]) -> Any:
        """Around a request to cancel a run."""
        return await proceed(call)

    # -- in a worker: workflow code ------------------------------------------------------------

    async def run_workflow(self, call: RunCall, proceed: Proceed[RunCall]) -> Any:
        """Around the whole code of a run; the outcome is its result."""
        return await proceed(call)

    async def handle_signal(self, call: HandlerCall, proceed: Proceed[HandlerCall]) -> Any:
        """Around a signal handler. Signals that the code awaits by itself have none."""
        return await proceed(call)

    async def handle_update(self, call: HandlerCall, proceed: Proceed[HandlerCall]) -> Any:
        """Around an update handler, after its validator; the outcome is the answer."""
        return await proceed(call)

    def handle_query(self, call: HandlerCall, proceed: Callable[[HandlerCall], Any]) -> Any:
        """Around a query handler; the outcome is the answer. It may look and not change."""
        return proceed(call)

    # -- in a worker: activities ---------------------------------------------------------------

    async def run_activity(self, call: ActivityCall, proceed: Proceed[ActivityCall]) -> Any:
        """Around one attempt of an activity; the outcome is its result.

        It runs on the worker's loop, wherever the activity runs. One on a thread sees the context
        variables that are set here, one in a process of its own does not.
        """
        return await proceed(call)


PLAIN = frozenset({"handle_query"})
"""The hooks that are not async."""
HOOKS = tuple(name for name in vars(Interceptor) if not name.startswith("_"))


class Hooks:
    """The interceptors of a client or worker, sorted by what they surround."""

    __slots__ = ("_by_name", "interceptors")

    def __init__(self, interceptors: Iterable[Interceptor] = ()) -> None:
        """Raise ConfigurationError for what is no interceptor, or cannot be called as one."""
        self.interceptors = tuple(interceptors)
        self._by_name: dict[str, tuple[Callable[..., Any], ...]] = {}
        for each in self.interceptors:
            if not isinstance(each, Interceptor):
                hint = "make one of it: write ()" if isinstance(each, type) else "derive its class"
                raise ConfigurationError(f"{each!r} is not a durable.Interceptor object; {hint}")
            for name in HOOKS:
                hook = getattr(each, name)
                if getattr(hook, "__func__", hook) is not vars(Interceptor)[name]:
                    check_hook(hook, name)
                    self._by_name[name] = (*self._by_name.get(name, ()), hook)

    def around(self, name: str) -> tuple[Callable[..., Any], ...]:
        """The hooks of that name, the outermost first; empty when nothing surrounds it."""
        return self._by_name.get(name, ())

    @property
    def in_workflows(self) -> Hooks | None:
        """These, if any of them surrounds workflow code, else None."""
        return None if self._by_name.keys().isdisjoint(IN_WORKFLOWS) else self


IN_WORKFLOWS = frozenset({"run_workflow", "handle_signal", "handle_update", "handle_query"})
NO_HOOKS = Hooks()


def check_hook(hook: Callable[..., Any], name: str) -> None:
    """Raise ConfigurationError for a hook that is async and must not be, or the other way round."""
    if inspect.iscoroutinefunction(hook) == (name in PLAIN):
        kind = "a plain def" if name in PLAIN else "an async def"
        raise ConfigurationError(f"{hook.__qualname__} of an interceptor must be {kind}")


def surround(
    hooks: Iterable[Callable[..., Any]], innermost: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """``innermost`` with the hooks around it, to be called with the call."""
    proceed = innermost
    for hook in reversed(tuple(hooks)):
        proceed = linked(hook, proceed)
    return proceed


def linked(hook: Callable[..., Any], proceed: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A hook that knows what comes after it."""
    return lambda call: hook(call, proceed)
