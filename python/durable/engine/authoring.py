"""The part of `durable.workflow` that needs no running workflow: decorators, logger, sagas."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from durable._core import current
from durable.codec import DEFAULT_CODEC, Codec
from durable.engine.definition import (
    HANDLER_MARK,
    HandlerMark,
    WorkflowDefinition,
    WorkflowOptions,
)
from durable.errors import DefinitionError
from durable.events import DYNAMIC
from durable.options import RetryPolicy

P = ParamSpec("P")
S = TypeVar("S")
R = TypeVar("R")
C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


class WorkflowDecorator(Protocol):
    """What ``workflow.defn(...)`` with options returns."""

    @overload
    def __call__(self, cls: C, /) -> C: ...
    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> WorkflowDefinition[P, R]: ...


def make_definition(
    target: Any, name: str | None, options: WorkflowOptions, codec: Codec = DEFAULT_CODEC
) -> WorkflowDefinition[Any, Any]:
    """A definition for an async function, or for a class with one ``@workflow.run`` method."""
    if isinstance(target, WorkflowDefinition):
        raise DefinitionError(f"{target.name} is a workflow already")
    if not isinstance(target, type):
        if not callable(target):
            raise DefinitionError(f"@workflow.defn goes on an async function, not on {target!r}")
        return WorkflowDefinition(name or target.__name__, target, options, codec=codec)
    runs = [
        getattr(target, attribute)
        for attribute in dir(target)
        if getattr(getattr(target, attribute, None), HANDLER_MARK, NO_MARK).kind == "run"
    ]
    if len(runs) != 1:
        raise DefinitionError(
            f"workflow class {target.__name__} has {len(runs)} methods with @workflow.run; "
            "it needs exactly one"
        )
    return WorkflowDefinition(name or target.__name__, runs[0], options, cls=target, codec=codec)


NO_MARK = HandlerMark("", "")
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def mark(fn: F, kind: str, name: str | None, is_dynamic: bool = False) -> F:
    """Leave on a method what it is for."""
    setattr(fn, HANDLER_MARK, HandlerMark(kind, label_of(fn, name, is_dynamic)))
    return fn


def label_of(fn: Callable[..., Any], name: str | None, is_dynamic: bool) -> str:
    """The name of a handler, or DYNAMIC; raise DefinitionError when it can be neither."""
    if not is_dynamic:
        return name or fn.__name__
    if name is not None:
        raise DefinitionError(f"dynamic handler {fn.__name__} takes every name: leave name= out")
    parameters = list(inspect.signature(fn).parameters.values())
    # The first one is self.
    if len(parameters) < 2 or parameters[1].kind not in POSITIONAL:
        raise DefinitionError(
            f"dynamic handler {fn.__name__} gets the name first: "
            f"write def {fn.__name__}(self, name: str, *args: Any)"
        )
    return DYNAMIC


class RunMethod(Protocol[P, R]):
    """What a type checker sees of a ``@workflow.run`` method.

    On the class it is the workflow, to be started; on an instance it is the method.
    """

    @overload
    def __get__(self, instance: None, owner: Any = None) -> WorkflowDefinition[P, R]: ...
    @overload
    def __get__(
        self, instance: object, owner: Any = None
    ) -> Callable[P, Coroutine[Any, Any, R]]: ...


class UpdateMethod(Generic[S, P, R]):
    """An update handler of a workflow class, callable as the method that it is."""

    def __init__(
        self, fn: Callable[Concatenate[S, P], R], name: str | None, is_dynamic: bool = False
    ) -> None:
        self.fn = fn
        self.__name__ = fn.__name__
        self.__doc__ = fn.__doc__
        setattr(self, HANDLER_MARK, HandlerMark("update", label_of(fn, name, is_dynamic)))

    def validator(self, fn: F) -> F:
        """Mark the method that judges the arguments first; it refuses by raising."""
        known: HandlerMark = getattr(self, HANDLER_MARK)
        setattr(self, HANDLER_MARK, HandlerMark("update", known.name, fn))
        return fn

    def __call__(self, instance: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(instance, *args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type) -> UpdateMethod[S, P, R]: ...
    @overload
    def __get__(self, instance: S, owner: type | None = None) -> Callable[P, R]: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self.fn.__get__(instance)


@overload
def defn(cls: C, /) -> C: ...
@overload
def defn(fn: Callable[P, Awaitable[R]], /) -> WorkflowDefinition[P, R]: ...
@overload
def defn(
    *,
    name: str | None = None,
    version: str | None = None,
    queue: str | None = None,
    retry: RetryPolicy | None = None,
    pinned: bool = False,
    dynamic: bool = False,
    codec: Codec = ...,
) -> WorkflowDecorator: ...


def defn(
    target: Any = None,
    /,
    *,
    name: str | None = None,
    dynamic: bool = False,
    codec: Codec = DEFAULT_CODEC,
    **options: Any,
) -> Any:
    """Make an async function, or a class with an ``@workflow.run`` method, a workflow.

    ``name`` is what history records (default: its own name); ``version`` and ``queue`` are what its
    runs are started with; ``retry`` starts the whole workflow again when it fails; ``codec`` has
    the converters for types of your own.

    ``pinned``: its runs stay with this ``version`` of the code. Their type is ``name@version``,
    and a worker that does not have just that leaves them to one that has.

    ``dynamic``: it runs every type that its worker has no workflow for, and gets that name as its
    first argument. The parameters after it are what the arguments are read by (``*args: Any`` takes
    whatever comes). It is started, and called as a child, by such a name. A worker has one at most;
    it takes runs of every type from its queues, except those of pinned workflows.

    Raises DefinitionError when it cannot be one: not async, types that cannot travel, pinned
    without a version, or dynamic with a name.
    """
    if dynamic and name is not None:
        raise DefinitionError(f"a dynamic workflow takes every name: leave name={name!r} out")
    made = WorkflowOptions(is_dynamic=dynamic, **options)
    if target is not None:
        return make_definition(target, name, made, codec)
    return lambda later: make_definition(later, name, made, codec)


def run(fn: Callable[Concatenate[Any, P], Awaitable[R]]) -> RunMethod[P, R]:
    """Mark the method of a workflow class that is its code; ``Class.run`` is the workflow."""
    return cast("RunMethod[P, R]", mark(fn, "run", None))


def init(fn: Callable[Concatenate[S, P], None]) -> Callable[Concatenate[S, P], None]:
    """Mark the ``__init__`` of a workflow class to be called with the run's arguments.

    It must have the parameters of the ``@workflow.run`` method (name, kind, type, default; else
    `durable.workflow.defn` raises DefinitionError), which gets the same values after it. It runs in
    the run, before any signal, query or update; it cannot await. What it raises fails the run.
    """
    if fn.__name__ != "__init__":
        raise DefinitionError(f"@workflow.init goes on __init__, not on {fn.__name__}()")
    return mark(fn, "init", None)


@overload
def signal(fn: F, /) -> F: ...
@overload
def signal(*, name: str | None = None, dynamic: bool = False) -> Callable[[F], F]: ...


def signal(fn: Any = None, /, *, name: str | None = None, dynamic: bool = False) -> Any:
    """Mark a method that takes a signal; each signal runs it once, in order of arrival.

    ``dynamic``: it takes the signals of all names that no handler and no channel asks for, and gets
    the name as its first argument. The parameters after it are what the arguments are read by
    (``*args: Any`` takes whatever comes). Raises DefinitionError with a ``name``.
    """
    if fn is not None:
        return mark(fn, "signal", name)
    return lambda later: mark(later, "signal", name, dynamic)


@overload
def query(fn: F, /) -> F: ...
@overload
def query(*, name: str | None = None, dynamic: bool = False) -> Callable[[F], F]: ...


def query(fn: Any = None, /, *, name: str | None = None, dynamic: bool = False) -> Any:
    """Mark a plain method that answers a query. It may look at everything and change nothing.

    ``dynamic`` as in `signal`: it answers the queries of all names that have no handler.
    """
    if fn is not None:
        return mark(fn, "query", name)
    return lambda later: mark(later, "query", name, dynamic)


@overload
def update(fn: Callable[Concatenate[S, P], R], /) -> UpdateMethod[S, P, R]: ...
@overload
def update(
    *, name: str | None = None, dynamic: bool = False
) -> Callable[[Callable[Concatenate[S, P], R]], UpdateMethod[S, P, R]]: ...


def update(fn: Any = None, /, *, name: str | None = None, dynamic: bool = False) -> Any:
    """Mark a method that changes the run and answers; ``@<method>.validator`` may refuse first.

    ``dynamic`` as in `signal`: it takes the updates of all names that have no handler, and so does
    its validator.
    """
    if fn is not None:
        return UpdateMethod(fn, name)
    return lambda later: UpdateMethod(later, name, dynamic)


class WorkflowLogger(logging.LoggerAdapter[logging.Logger]):
    """Logs each thing once: silent while the code runs through its history again."""

    def isEnabledFor(self, level: int) -> bool:
        loop = current()
        if loop is not None and loop.is_replaying:
            return False
        return super().isEnabledFor(level)

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        loop = current()
        if loop is not None:
            info = loop.context.info
            extra = dict(kwargs.get("extra") or {})
            extra.update(workflow=info.name, workflow_id=info.workflow_id, run_id=info.run_id)
            kwargs["extra"] = extra
        return msg, kwargs


logger = WorkflowLogger(logging.getLogger("durable.workflow"), {})
"""A logger whose records carry ``workflow``, ``workflow_id`` and ``run_id``."""


class Saga:
    """Steps that can be taken back: when the block fails, what was added is done in reverse.

        async with workflow.Saga() as saga:
            await withdraw(source, amount)
            saga.add(deposit, source, amount)
            await deposit(target, amount)

    Compensations run after a failure and after a cancellation, one at a time, the last added
    first; each runs though another failed. The block's exception goes on; if compensations failed
    too, an ExceptionGroup with all of them does.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], Awaitable[object]]] = []

    def add(self, undo: Callable[P, Awaitable[object]], *args: P.args, **kwargs: P.kwargs) -> None:
        """Have ``undo(*args)`` awaited if the block fails from here on."""
        self._steps.append(lambda: undo(*args, **kwargs))

    async def compensate(self) -> list[Exception]:
        """Undo everything now; return what failed. What was undone is not undone again."""
        failures: list[Exception] = []
        while self._steps:
            try:
                await self._steps.pop()()
            except Exception as error:
                failures.append(error)
        return failures

    async def __aenter__(self) -> Saga:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Only what went wrong: not the end of a run in a chain, not a run that leaves memory.
        if not isinstance(error, Exception | asyncio.CancelledError):
            return
        failures = await self.compensate()
        if failures:
            first = [error] if isinstance(error, Exception) else []
            raise ExceptionGroup("the saga could not be undone", [*first, *failures]) from error
