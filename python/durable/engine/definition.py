"""What `@workflow.defn` and `@activity.defn` make: a function with a name, a signature and options.

A definition is called like the function it stands for. Inside a workflow the call is recorded: an
activity is scheduled, a workflow is started as a child. Anywhere else it is the plain function, so
that unit tests need nothing.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from durable._core import ActivityBase, current
from durable.codec import DEFAULT_CODEC, Codec, Signature
from durable.codec.signature import POSITIONS_MAX
from durable.engine.retry import options_to_json
from durable.errors import ContextError, DefinitionError, InvalidArgumentError
from durable.events import DYNAMIC
from durable.options import ID_LENGTH_MAX, ActivityOptions, RetryPolicy

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")

HANDLER_MARK = "__durable_handler__"
NO_ARITY = (POSITIONS_MAX + 1, POSITIONS_MAX)
"""Every call is one to be bound, and so to be refused."""
NO_KEYWORDS: Mapping[str, Any] = {}
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]")


def check_name(name: str, what: str) -> str:
    """Return ``name``; raise DefinitionError when it cannot be a name."""
    if not isinstance(name, str) or not name or len(name) > ID_LENGTH_MAX:
        raise DefinitionError(
            f"the name of {what} {name!r} has not 1 to {ID_LENGTH_MAX} characters"
        )
    if name == "<lambda>":
        raise DefinitionError(f"{what} is a lambda, which has no name: give it name=, or write def")
    if UNPRINTABLE.search(name):
        raise DefinitionError(f"the name of {what} {name!r} has control characters")
    return name


def is_method(fn: Callable[..., Any]) -> bool:
    """Whether a function was written as a method: its first parameter is called self."""
    if inspect.ismethod(fn):
        return False
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return code is not None and code.co_argcount > 0 and code.co_varnames[0] == "self"


def check_executor(name: str, fn: Callable[..., Any], executor: str) -> None:
    """Raise DefinitionError for a function that cannot run on that executor.

    Another process has to import it and has nothing else.
    """
    if executor not in ("thread", "process"):
        raise DefinitionError(f"executor is 'thread' or 'process', not {executor!r}")
    if inspect.iscoroutinefunction(fn):
        raise DefinitionError(
            f"activity {name} is async and runs on the worker's loop; "
            "make it a plain def, or leave executor= out"
        )
    if executor == "thread":
        return
    path = getattr(fn, "__qualname__", None)
    if path is None or not getattr(fn, "__module__", None) or is_method(fn) or inspect.ismethod(fn):
        raise DefinitionError(
            f"activity {name} runs in a process of its own, which gets no object: "
            "make it a function of a module"
        )
    if "<" in path:
        raise DefinitionError(
            f"activity {name} runs in a process of its own, which has to import it: "
            f"move {path} to the top of its module"
        )


class NamelessSignature(Signature):
    """That of a dynamic definition: it reads arguments, but a call of it does not say what of."""

    def encode_args(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Raise InvalidArgumentError."""
        raise InvalidArgumentError(
            f"{self.name} is dynamic: it stands for every name that has no code of its own; "
            "say which, as a string"
        )


def signatures_of(
    fn: Callable[..., Any], codec: Codec, skip: int, is_dynamic: bool
) -> tuple[Signature, Signature]:
    """The signature of what is called by a name, and that of the definition itself."""
    if not is_dynamic:
        plain = Signature.of(fn, codec, skip=skip)
        return plain, plain
    return Signature.of(fn, codec, skip=skip + 1), NamelessSignature(fn, codec, skip=skip + 1)


@dataclasses.dataclass(frozen=True)
class ActivityTraits:
    """What kind of activity it is: how a worker runs it. Not recorded in history."""

    is_transactional: bool = False
    """It gets a connection, and what it writes there commits together with its result."""
    is_at_most_once: bool = False
    """Once begun it is never begun again."""
    completes_later: bool = False
    """Others may complete it, by its task token."""
    executor: str | None = None
    """Where a plain function runs: on a ``thread`` (or None), or in a ``process`` of its own."""
    is_dynamic: bool = False
    """It stands for every name that has no activity of its own, and gets that name first."""

    @property
    def needs_row(self) -> bool:
        """Whether each attempt must be a row of its own, with a token, before it begins."""
        return self.is_transactional or self.is_at_most_once or self.completes_later


PLAIN_ACTIVITY = ActivityTraits()


class ActivityDefinition(ActivityBase, Generic[P, R]):
    """An activity: call it in a workflow to have it done, anywhere else to do it."""

    signature: Signature
    named_signature: Signature
    """Of a dynamic one: that of what it does by one name. Else the same."""
    options: ActivityOptions
    codec: Codec
    traits: ActivityTraits
    changes: Mapping[str, Any]
    """The options that `with_options` changed."""
    job: WorkflowDefinition[P, R] | None
    """The workflow that runs it as a job (`durable.engine.jobs`), once there was one."""
    is_async: bool
    is_unbound: bool
    """Whether it is a method that still lacks its object: callable in a workflow, not runnable."""
    __wrapped__: Callable[..., Any]

    def __new__(
        cls,
        name: str,
        fn: Callable[P, Any],
        options: ActivityOptions,
        *,
        signature: Signature | None = None,
        codec: Codec = DEFAULT_CODEC,
        traits: ActivityTraits = PLAIN_ACTIVITY,
    ) -> Self:
        is_dynamic = name == DYNAMIC and traits.is_dynamic
        if is_dynamic:
            check_dynamic_activity(fn, traits)
        else:
            check_name(name, "activity")
        is_unbound = is_method(fn)
        if traits.is_transactional and (is_unbound or not inspect.iscoroutinefunction(fn)):
            raise DefinitionError(
                f"transactional activity {name} must be a function: async def {name}(conn, ...)"
            )
        if traits.executor is not None:
            check_executor(name, fn, traits.executor)
        named_signature = signature
        if signature is None:
            skip = int(is_unbound or traits.is_transactional)
            named_signature, signature = signatures_of(fn, codec, skip, is_dynamic)
        self = super().__new__(
            cls,
            name,
            fn,
            options_to_json(options),
            arity=NO_ARITY if is_dynamic else signature.arity,
            encode=signature.encode_args,
            # Without an annotation, too: integers of any size are read by the codec alone.
            decode=signature.result_decoder or codec.decoder(Any),
            plain=signature.result_scalars,
            wait_cancel=options.wait_cancel,
        )
        self.read = signature.result_read
        self.records = signature.records
        self.signature = signature
        self.named_signature = named_signature or signature
        self.options = options
        self.codec = codec
        self.traits = traits
        self.is_unbound = is_unbound
        self.changes = {}
        self.job = None
        self.is_async = inspect.iscoroutinefunction(fn)
        self.__doc__ = fn.__doc__
        self.__wrapped__ = fn
        return self

    @property
    def executor(self) -> str:
        """What runs it: ``loop`` (async), ``thread`` or ``process``."""
        if self.is_async:
            return "loop"
        return self.traits.executor or "thread"

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...

        def _copy(
            self, fn: Callable[..., Any], options: ActivityOptions
        ) -> ActivityDefinition[P, R]: ...

        def __get__(
            self: ActivityDefinition[Concatenate[Any, Q], R], instance: object, owner: Any = None
        ) -> ActivityDefinition[Q, R]: ...

    else:

        def __get__(self, instance, owner=None):
            """A method of a class: bound to an instance it can be registered and run."""
            if instance is None or not self.is_unbound:
                return self
            bound = self._copy(self.fn.__get__(instance), self.options)
            bound.changes = self.changes
            return bound

        def _copy(self, fn, options):
            copy = ActivityDefinition(
                self.name,
                fn,
                options,
                signature=self.signature,
                codec=self.codec,
                traits=self.traits,
            )
            copy.named_signature = self.named_signature
            return copy

    def with_options(self, **options: Any) -> ActivityDefinition[P, R]:
        """The same activity with some of its options changed, for one call or many."""
        copy = self._copy(self.fn, self.options.replace(**options))
        copy.changes = {**self.changes, **options}
        return copy

    def start(self, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[R]:
        """Schedule it and return its handle: a future to await, cancel or pass to asyncio."""
        if current() is None:
            raise ContextError(f"{self.name}.start() works only in a workflow; call {self.name}()")
        handle: asyncio.Future[R] = ActivityBase.__call__(self, *args, **kwargs)
        return handle

    def named(self, name: str) -> ActivityDefinition[..., Any]:
        """A dynamic activity as the activity of one name."""
        return ActivityDefinition(
            name,
            told(self.fn, name),
            self.options,
            signature=self.named_signature,
            codec=self.codec,
            traits=dataclasses.replace(self.traits, is_dynamic=False),
        )

    def __repr__(self) -> str:
        return f"<activity {self.signature.describe()}>"


def told(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function with its first argument, the name it is called by."""
    bound = functools.partial(fn, name)
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(bound, attribute, getattr(fn, attribute, None))
    return bound


def check_dynamic_activity(fn: Callable[..., Any], traits: ActivityTraits) -> None:
    """Raise DefinitionError for what cannot be a dynamic activity."""
    if traits.executor == "process":
        raise DefinitionError(
            f"dynamic activity {getattr(fn, '__name__', fn)} cannot run in a process of its own: "
            "leave executor= out, or make it an activity of one name"
        )


@dataclasses.dataclass(frozen=True)
class HandlerMark:
    """What `@workflow.run`, ``init``, ``signal``, ``query`` and ``update`` leave on a method."""

    kind: str
    name: str
    validator: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class HandlerSpec:
    """A handler of a workflow class."""

    kind: str
    name: str
    fn: Callable[..., Any]
    validator: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class WorkflowOptions:
    """How the runs of one workflow type are started, unless the starter says otherwise."""

    queue: str | None = None
    version: str | None = None
    retry: RetryPolicy | None = None
    """Start the whole workflow again when it fails. None: it fails at once."""
    pinned: bool = False
    """Its runs are run by workers that have this version only."""
    is_dynamic: bool = False
    """It runs what has no workflow of its own."""


def pinned_name(name: str, options: WorkflowOptions) -> str:
    """The type of a pinned workflow, ``name@version``; raise DefinitionError without a version."""
    if not options.version:
        raise DefinitionError(
            f'pinned workflow {name} needs a version: @workflow.defn(version="2", pinned=True)'
        )
    return f"{name}@{options.version}"


class WorkflowDefinition(Generic[P, R]):
    """A workflow: what a worker registers, a client starts, and a parent calls.

    Its ``name`` is the type of its runs, by which workers claim them. That of a pinned workflow has
    its version in it, so each version is a type of its own.
    """

    def __init__(
        self,
        name: str,
        fn: Callable[..., Any],
        options: WorkflowOptions,
        *,
        cls: type | None = None,
        codec: Codec = DEFAULT_CODEC,
        signature: Signature | None = None,
    ) -> None:
        self.is_dynamic = options.is_dynamic
        """It stands for every type that has no workflow of its own, and gets that name first."""
        if options.is_dynamic:
            check_dynamic_workflow(fn, options)
            self.name = DYNAMIC
        else:
            self.name = check_name(
                pinned_name(name, options) if options.pinned else name, "workflow"
            )
        self.fn = fn
        self.cls = cls
        self.options = options
        self.codec = codec
        if not inspect.iscoroutinefunction(fn):
            raise DefinitionError(f"workflow {name} must be an async function: write async def")
        if signature is None:
            skip = int(cls is not None)
            self.named_signature, signature = signatures_of(fn, codec, skip, options.is_dynamic)
        else:
            self.named_signature = signature
        self.signature = signature
        self.handlers = handlers_of(cls)
        self.takes_arguments = cls is not None and check_init(
            name, cls, self.named_signature, codec, is_dynamic=options.is_dynamic
        )
        self.__doc__ = (cls or fn).__doc__
        self.__wrapped__ = fn

    @property
    def version(self) -> str | None:
        """The version its runs are started with."""
        return self.options.version

    @property
    def queue(self) -> str | None:
        """The queue its runs are started on; None is the default queue."""
        return self.options.queue

    def __getattr__(self, attribute: str) -> Any:
        # A workflow class is replaced by its definition; its methods are reached through it.
        cls = self.__dict__.get("cls")
        if cls is None or attribute.startswith("__"):
            raise AttributeError(f"{type(self).__name__} has no attribute {attribute!r}")
        found = getattr(cls, attribute)
        return self if found is self.fn else found

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """In a workflow: start it as a child and await its result. Elsewhere: the plain function.

        Outside, a workflow class makes an instance, as it would without its decorator.
        """
        loop = current()
        if loop is not None:
            child: Coroutine[Any, Any, R] = loop.context.call_child(self, args, kwargs)
            return child
        plain: Coroutine[Any, Any, R] = (self.cls or self.fn)(*args, **kwargs)
        return plain

    def instantiate(
        self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] = NO_KEYWORDS
    ) -> tuple[Callable[..., Any], object | None]:
        """The coroutine function of one run, and the object its handlers are bound to.

        The run's arguments go to an ``__init__`` with ``@workflow.init``.
        """
        first = (self.name,) if self.is_dynamic else ()
        if self.cls is None:
            return (told(self.fn, self.name) if first else self.fn), None
        instance = self.cls(*first, *args, **kwargs) if self.takes_arguments else self.cls()
        fn = self.fn.__get__(instance)
        return (told(fn, self.name) if first else fn), instance

    def named(self, name: str) -> WorkflowDefinition[..., Any]:
        """A dynamic workflow as the workflow of one type."""
        made: WorkflowDefinition[..., Any] = copy.copy(self)
        made.name = name
        made.signature = self.named_signature
        return made

    def __repr__(self) -> str:
        return f"<workflow {self.signature.describe()}>"


def check_dynamic_workflow(fn: Callable[..., Any], options: WorkflowOptions) -> None:
    """Raise DefinitionError for what cannot be a dynamic workflow."""
    if options.pinned:
        raise DefinitionError(
            f"dynamic workflow {getattr(fn, '__name__', fn)} cannot be pinned: "
            "the version would be part of its one name"
        )


def check_init(
    name: str, cls: type, run: Signature, codec: Codec, *, is_dynamic: bool = False
) -> bool:
    """Whether the class's ``__init__`` gets the run's arguments: it has ``@workflow.init``.

    Raise DefinitionError where it has the mark and other parameters than the ``@workflow.run``
    method, or needs arguments without the mark.
    """
    init: Any = inspect.getattr_static(cls, "__init__")
    if not inspect.isfunction(init):
        return False
    mark: HandlerMark | None = getattr(init, HANDLER_MARK, None)
    if mark is None:
        needed = list(inspect.signature(init).parameters.values())[1:]
        missing = [
            p.name
            for p in needed
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if missing:
            raise DefinitionError(
                f"__init__ of workflow class {name} needs {', '.join(missing)}: put @workflow.init "
                "on it to have it called with the run's arguments, or give them defaults"
            )
        return False
    made = Signature.of(init, codec, skip=1 + is_dynamic)
    if made.parameters() != run.parameters():
        raise DefinitionError(
            f"@workflow.init of workflow class {name} must have the parameters of its "
            f"@workflow.run method: {made.describe()} is not like {run.describe()}"
        )
    return True


def handlers_of(cls: type | None) -> tuple[HandlerSpec, ...]:
    """The marked methods of a workflow class, bases first; an override replaces."""
    found: dict[str, HandlerSpec] = {}
    for base in reversed(cls.__mro__) if cls is not None else ():
        for attribute, value in vars(base).items():
            mark: HandlerMark | None = getattr(value, HANDLER_MARK, None)
            if mark is not None:
                if mark.name != DYNAMIC:
                    check_name(mark.name, mark.kind)
                found[attribute] = HandlerSpec(mark.kind, mark.name, value, mark.validator)
    names: set[tuple[str, str]] = set()
    for handler in found.values():
        if (handler.kind, handler.name) in names:
            raise DefinitionError(
                f"two {handler.kind} handlers are called {handler.name!r}"
                if handler.name
                else f"two {handler.kind} handlers are dynamic; there can be one"
            )
        names.add((handler.kind, handler.name))
    return tuple(found.values())


def why_no_workflow(target: object) -> str:
    """What to say of ``target``, where a workflow was meant."""
    if isinstance(target, ActivityDefinition):
        return (
            f"{target!r} is not a workflow: await it in one, or let Client.enqueue run it by itself"
        )
    mark: HandlerMark | None = getattr(target, HANDLER_MARK, None)
    where = "its class" if mark is not None and mark.kind == "run" else "it"
    return f"{target!r} is not a workflow; put @workflow.defn on {where}, or give its name"


def handler_name(handler: str | Callable[..., Any]) -> str:
    """The name of a signal, query or update, given by name or by its decorated method."""
    if isinstance(handler, str):
        return handler
    mark: HandlerMark | None = getattr(handler, HANDLER_MARK, None)
    if mark is not None and mark.name == DYNAMIC:
        raise DefinitionError(
            f"{getattr(handler, '__name__', handler)} is a dynamic handler: it has every name that "
            "has no handler of its own; say which, as a string"
        )
    name = mark.name if mark is not None else getattr(handler, "__name__", "")
    return check_name(name, "handler")


Named = WorkflowDefinition[Any, Any] | ActivityDefinition[Any, Any]
Definitions = Mapping[str, Named]
