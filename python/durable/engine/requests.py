"""What is asked of a run from outside, and who answers: signal handlers, queries, updates.

Queries and validators run as workflow code that may look and not touch: whatever they did would be
missing in the next replay. Signal and update handlers run as tasks of the run.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Mapping
from contextvars import Context
from typing import TYPE_CHECKING, Any

from durable.codec import failure_to_payload
from durable.engine.attributes import headers_in, headers_of_signal
from durable.engine.handlers import Handler
from durable.engine.interceptors import HandlerCall
from durable.engine.start import decode_json
from durable.engine.surrounding import handle_surrounded, handler_call, query_surrounded
from durable.engine.tasks import log
from durable.errors import (
    DefinitionError,
    GuardError,
    NonDeterminismError,
    PayloadError,
    UpdateRejectedError,
)
from durable.events import DYNAMIC, EventKind

if TYPE_CHECKING:
    from durable.engine.context import WorkflowContext

QUERY_VARS = "__vars__"
QUERY_WHERE = "__where__"


def request_id_of(meta: bytes | None) -> str:
    """The id under which the asker waits for the answer."""
    data = decode_json(meta) if meta else None
    return str(data.get("request_id", "")) if isinstance(data, dict) else ""


def known_names(table: dict[str, Handler]) -> str:
    """For messages: what there is."""
    return ", ".join(sorted(table)) or "none"


def find(table: dict[str, Handler], name: str) -> Handler | None:
    """The handler of a name: its own, else the dynamic one, else None."""
    found = table.get(name)
    if found is None and DYNAMIC in table:
        return table[DYNAMIC].named(name)
    return found


def refusal(name: str, error: Exception) -> Exception:
    """What the asker gets for an update that was not accepted, because of ``error``."""
    if isinstance(error, UpdateRejectedError | GuardError):
        # A validator that did more than look refused nothing: its code is wrong.
        return error
    try:
        why = f"{type(error).__name__}: {error}"
    except Exception:
        why = type(error).__name__
    rejected = UpdateRejectedError(f"update {name!r} was refused: {why}")
    rejected.__cause__ = error
    return rejected


class Requests:
    """The handlers of one run, and the updates that wait for an answer."""

    def __init__(self, context: WorkflowContext, fail: Callable[[BaseException], None]) -> None:
        self.context = context
        self.queries: dict[str, Handler] = {}
        self.updates: dict[str, Handler] = {}
        self.seen: set[str] = set()
        """Request ids of accepted updates; a repeat is dropped."""
        self.open: dict[str, int] = {}
        """Accepted updates without an answer yet: request id to number."""
        self.accepted = 0
        """How many updates were accepted: their answers are numbered by it in history."""
        self._fail = fail

    def add(
        self,
        table: dict[str, Handler],
        name: str,
        fn: Callable[..., Any],
        validator: Callable[..., Any] | None = None,
    ) -> None:
        """Register a query or update handler; the last one of a name counts."""
        self.context.check_writable("handler registration")
        handler = Handler(name, fn, self.context.codec, validator, is_dynamic=name == DYNAMIC)
        if table is self.queries and handler.is_async:
            raise DefinitionError(f"query {name!r} must be a plain function, not async")
        table[name] = handler

    def handle_signal(self, name: str, fn: Callable[..., Any]) -> None:
        """Give all signals of a name to a handler."""
        handler = Handler(name, fn, self.context.codec)
        self.context.mailbox(name).handle(functools.partial(self._receive, handler))

    def handle_other_signals(self, fn: Callable[..., Any]) -> None:
        """Give the signals of all names that no code asks for to a dynamic handler."""
        handler = Handler(DYNAMIC, fn, self.context.codec, is_dynamic=True)
        self.context.handle_other_signals(
            lambda name, payload: self._receive(handler.named(name), payload)
        )

    def _receive(self, handler: Handler, payload: bytes | None) -> None:
        try:
            args, kwargs = handler.arguments(payload)
        except PayloadError as error:
            # One malformed signal must not end a run that others depend on.
            if not self.context.loop.is_replaying:
                run = self.context.run_id
                log.error("run %s: a signal %r is dropped: %s", run, handler.name, error)
            return
        hooks, call = self.context.hooks, None
        if hooks is not None:
            headers = headers_of_signal(payload)
            call = handler_call(self.context, handler, args, kwargs, headers)
        self._spawn(handler, args, kwargs, call, None)

    def answer(self, name: str, payload: bytes | None, headers: Mapping[str, Any]) -> Any:
        """The answer of a query handler; raises what it raises, or that there is none."""
        handler = find(self.queries, name)
        if handler is None:
            raise UpdateRejectedError(
                f"no query is called {name!r}; this run has: {known_names(self.queries)}"
            )
        args, kwargs = handler.arguments(payload)
        hooks = self.context.hooks
        if hooks is None:
            return self.look(lambda: handler.fn(*args, **kwargs))
        call = handler_call(self.context, handler, args, kwargs, headers)
        return self.look(lambda: query_surrounded(hooks, handler, call))

    def judge(self, name: str, payload: bytes | None) -> None:
        """Raise when an update is not acceptable: no handler, wrong arguments, its validator."""
        handler = find(self.updates, name)
        if handler is None:
            raise UpdateRejectedError(
                f"no update is called {name!r}; this run has: {known_names(self.updates)}"
            )
        args, kwargs = handler.arguments(payload)
        validator = handler.validator
        if validator is not None:
            self.look(lambda: validator(*args, **kwargs))

    def accept(self, name: str, meta: bytes | None, payload: bytes | None) -> None:
        """Run the handler of an accepted update; its end is recorded as the answer."""
        request_id = request_id_of(meta)
        self.accepted += 1
        number = self.accepted
        if request_id:
            self.seen.add(request_id)
        self.open[request_id] = number
        context = self.context
        handler = find(self.updates, name)
        if handler is None:
            raise NonDeterminismError(
                0,
                f"UPDATE_ACCEPTED {name}",
                f"no handler of that name; there are: {known_names(self.updates)}",
                hint="was the update's handler removed, or is it registered later than before?",
            )
        args, kwargs = handler.arguments(payload)

        def done(error: BaseException | None, value: Any) -> None:
            kind, data = EventKind.UPDATE_COMPLETED, b""
            try:
                data = context.encode(value, f"the answer of update {name!r}")
            except PayloadError as misfit:
                error = error or misfit
            if error is not None:
                kind, data = EventKind.UPDATE_FAILED, failure_to_payload(error)
            context.loop.emit(kind, ref=number, name=request_id, payload=data)

        call = None
        if context.hooks is not None:
            call = handler_call(context, handler, args, kwargs, headers_in(meta))
        self._spawn(handler, args, kwargs, call, done)

    def look(self, call: Callable[[], Any]) -> Any:
        """Call as workflow code that may look but not touch.

        Raises what it raises; GuardError when it made a command all the same, and the run in memory
        is then of no more use.
        """
        loop = self.context.loop
        outcome: list[tuple[Any, BaseException | None]] = []

        def run() -> None:
            try:
                outcome.append((call(), None))
            except Exception as error:
                outcome.append((None, error))

        before = loop.event_count
        self.context.is_read_only = True
        try:
            loop.call_soon(run, context=Context())
            loop.run_ready()
        finally:
            self.context.is_read_only = False
        if loop.event_count != before:
            loop.is_spoilt = True
            raise GuardError("a query or validator must not make commands; it may only look")
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    def _spawn(
        self,
        handler: Handler,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        call: HandlerCall | None,
        done: Callable[[BaseException | None, Any], None] | None,
    ) -> None:
        hooks = self.context.hooks

        async def run() -> None:
            self.context.running_handlers += 1
            try:
                if call is not None and hooks is not None:
                    name = "handle_signal" if done is None else "handle_update"
                    value = await handle_surrounded(hooks, name, handler, call)
                else:
                    value = handler.fn(*args, **kwargs)
                    if inspect.isawaitable(value):
                        value = await value
            except (Exception, asyncio.CancelledError) as error:
                if done is not None:
                    done(error, None)
                elif not isinstance(error, asyncio.CancelledError):
                    self._fail(error)
            else:
                if done is not None:
                    done(None, value)
            finally:
                self.context.running_handlers -= 1

        self.context.loop.create_task(run(), name=f"handler {handler.name}")
