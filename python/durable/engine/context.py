"""The running workflow: what `durable.workflow` works on.

One `WorkflowContext` per run in memory, reached from workflow code through the core's current loop.
It holds what the code made of its history so far: its variables, mailboxes, handlers, conditions
and children. All of it is rebuilt by replay, so nothing here is ever stored.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from random import Random
from typing import Any, Generic, TypeVar

from durable._core import CommandFuture, current
from durable.codec import Codec, check_size
from durable.engine.attributes import own_headers
from durable.engine.definition import WorkflowDefinition, handler_name
from durable.engine.handlers import Mailbox
from durable.engine.info import NO_HEADERS, WorkflowInfo
from durable.engine.interceptors import Hooks
from durable.engine.requests import Requests
from durable.engine.start import StartMeta
from durable.engine.tasks import WorkflowLoop
from durable.errors import ContextError, GuardError
from durable.events import EventKind
from durable.options import PAYLOAD_BYTES_WARN

__all__ = [
    "ChildHandle",
    "ContinueAsNew",
    "Random",
    "WorkflowContext",
    "child_run_id",
    "child_workflow_id",
    "context",
]

R = TypeVar("R")


class ContinueAsNew(BaseException):
    """Unwinds the workflow to its end, where the next run of the chain begins.

    Not an Exception, so that ``except Exception`` in user code does not stop it.
    """

    def __init__(self, name: str, payload: bytes, options: Mapping[str, Any]) -> None:
        super().__init__(f"continue as new {name}")
        self.name = name
        self.payload = payload
        self.options = options


def child_run_id(run_id: str, event_id: int) -> str:
    """The run id of what a run starts with its event ``event_id``: always the same."""
    return str(uuid.uuid5(uuid.UUID(run_id), str(event_id)))


def nobody(error: BaseException) -> None:
    """Who is told of errors once the run has left memory."""


class WorkflowContext:
    """The state of one run that its code can see."""

    def __init__(
        self,
        loop: WorkflowLoop,
        run_id: str,
        meta: StartMeta,
        codec: Codec,
        definition: WorkflowDefinition[Any, Any],
        fail: Callable[[BaseException], None],
        hooks: Hooks | None = None,
    ) -> None:
        self.loop = loop
        self.run_id = run_id
        self.meta = meta
        self.codec = codec
        self.definition = definition
        self.hooks = hooks
        """What surrounds its code and its handlers; None when nothing does."""
        self.headers = NO_HEADERS
        """What goes along with all that it asks for, to others."""
        self.input: bytes | None = None
        """The argument list it was started with, as recorded."""
        self.vars: dict[str, Any] = {}
        self.search: dict[str, Any] = {}
        self.mailboxes: dict[str, Mailbox] = {}
        self.other_signals: Callable[[str, bytes | None], None] | None = None
        """What gets the signals of names that no code asked for."""
        self.conditions: dict[Any, Callable[[], object]] = {}
        self.children: dict[int, Any] = {}
        """By event id: the future of the child's start."""
        self.given: dict[int, tuple[str | None, str | None]] = {}
        """By event id: the last result and failure that a schedule gives a run that it starts."""
        self.errors: Mapping[str, type[BaseException]] = {}
        """Exception classes that failures become again, beside those that every process knows."""
        self.cancel_requested = False
        self.cancel_reason: str | None = None
        self.is_read_only = False
        """A query or a validator runs: it may look at everything and change nothing."""
        self.running_handlers = 0
        self._fail = fail
        self._requests: Requests | None = None
        self._random: Random | None = None
        self._info: WorkflowInfo | None = None

    def leave(self) -> None:
        """The run leaves memory: part what refers to each other, so that it is freed at once."""
        self._fail = nobody
        self._requests = None
        self.mailboxes.clear()
        self.conditions.clear()
        self.children.clear()
        self.given.clear()

    def begin(self, meta: StartMeta, payload: bytes | None) -> None:
        """The run's first event: its circumstances and its input."""
        if not meta.workflow_id:
            meta.workflow_id = self.meta.workflow_id
        if meta.start_us is None:
            meta.start_us = self.loop.now_us
        self.meta = meta
        self.input = payload
        self.headers = own_headers(meta.headers)
        self.search.update(meta.search)

    @property
    def info(self) -> WorkflowInfo:
        """The facts of the run, as its code sees them. Made when first asked for."""
        if self._info is None:
            meta = self.meta
            self._info = WorkflowInfo(
                workflow_id=meta.workflow_id,
                run_id=self.run_id,
                name=self.definition.name,
                queue=meta.queue,
                # What was started by name says no version; a pinned type has one all the same.
                version=self.definition.version if self.definition.options.pinned else meta.version,
                attempt=meta.attempt,
                parent=meta.parent,
                continued_from=meta.continued_from,
                memo=meta.memo,
                headers=meta.headers,
            )
        return self._info

    def set_memo(self, memo: dict[str, Any]) -> None:
        """The memo is another one from now on."""
        self._info = replace(self.info, memo=memo)

    @property
    def requests(self) -> Requests:
        """Its handlers, and the updates under way. Made when first asked for."""
        if self._requests is None:
            self._requests = Requests(self, self._fail)
        return self._requests

    def check_writable(self, what: str) -> None:
        """Raise GuardError when a query or validator tries to do ``what``."""
        if self.is_read_only:
            raise GuardError(
                f"a query or validator must not use {what}: it may only look; "
                "do it in a signal or update handler"
            )

    def encode(self, value: Any, what: str) -> bytes:
        """A value as bytes; raise EncodeError, or PayloadTooLargeError that says ``what`` it is."""
        payload = self.codec.encode(value)
        if len(payload) > PAYLOAD_BYTES_WARN:
            check_size(payload, what)
        return payload

    @property
    def random(self) -> Random:
        """The run's own random numbers: the same in every replay."""
        if self._random is None:
            self._random = Random(uuid.UUID(self.meta.seed or self.run_id).int)
        return self._random

    def mailbox(self, name: str) -> Mailbox:
        """The signals of that name, for code that wants them."""
        found = self._mailbox(name)
        found.is_wanted = True
        return found

    def deliver(self, name: str, payload: bytes | None) -> None:
        """A signal arrived: to whoever wants its name, else it is kept until somebody does."""
        found = self._mailbox(name)
        if self.other_signals is None or found.is_wanted:
            found.put(payload)
        else:
            self.other_signals(name, payload)

    def handle_other_signals(self, handler: Callable[[str, bytes | None], None]) -> None:
        """Give signals of names that no code asked for to ``handler``, those that wait first."""
        self.other_signals = handler
        for name, mailbox in self.mailboxes.items():
            while not mailbox.is_wanted and len(mailbox) > 0:
                handler(name, mailbox.take_nowait())

    def _mailbox(self, name: str) -> Mailbox:
        found = self.mailboxes.get(name)
        if found is None:
            found = self.mailboxes[name] = Mailbox(self.loop)
        return found

    def unread_signals(self) -> list[tuple[str, bytes | None]]:
        """Signals nobody took, oldest first within each name."""
        return [
            (name, payload)
            for name, mailbox in self.mailboxes.items()
            for payload in mailbox.unread()
        ]

    def wait_for(self, predicate: Callable[[], object]) -> Any:
        """A future that is set when ``predicate`` is true; give it back to `stop_waiting`."""
        self.check_writable("wait_condition()")
        waiter = self.loop.create_future()
        self.conditions[waiter] = predicate
        self.loop.watch_idle = True
        return waiter

    def stop_waiting(self, waiter: Any) -> None:
        """Forget a condition."""
        self.conditions.pop(waiter, None)
        self.loop.watch_idle = bool(self.conditions)

    def check_conditions(self) -> None:
        """Look at every condition, oldest first, and wake those who wait for a true one."""
        for waiter, predicate in list(self.conditions.items()):
            if waiter.done():
                continue
            try:
                if predicate():
                    waiter.set_result(None)
            except Exception as error:
                waiter.set_exception(error)

    def call_child(
        self, workflow: WorkflowDefinition[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> CommandFuture:
        """What calling a workflow in a workflow does."""
        payload = workflow.signature.encode_args(args, kwargs)
        return self.start_child(
            workflow.name, payload, workflow.signature.result_decoder, {}
        ).future

    def start_child(
        self,
        name: str,
        payload: bytes,
        decoder: Callable[[bytes], Any] | None,
        options: Mapping[str, Any],
    ) -> ChildHandle[Any]:
        """Start a child run; ``options`` is recorded with it."""
        self.check_writable("child workflows")
        recorded = {key: value for key, value in options.items() if value is not None}
        future = self.loop.command(
            EventKind.CHILD_INITIATED,
            name=name,
            options=self.codec.encode(recorded).decode() if recorded else None,
            payload=payload,
            decoder=decoder,
        )
        self.children[future.event_id] = self.loop.create_future()
        return ChildHandle(self, future, recorded.get("id"))

    def send_external(
        self,
        kind: EventKind,
        workflow_id: str,
        run_id: str | None,
        name: str | None,
        payload: bytes | None,
        *,
        terminate: bool = False,
    ) -> CommandFuture:
        """Signal or cancel another run; the future is set when it was delivered.

        With ``terminate`` a cancel ends it without running its code; ``payload`` is the failure.
        """
        self.check_writable("messages to other workflows")
        target: dict[str, Any] = (
            {"workflow_id": workflow_id} if run_id is None else {"run_id": run_id}
        )
        if terminate:
            target["terminate"] = True
        return self.loop.command(
            kind, name=name, options=self.codec.encode(target).decode(), payload=payload
        )


class ChildHandle(Generic[R]):
    """A child workflow. Await it for its result; cancel the wait and the child is cancelled."""

    def __init__(self, context: WorkflowContext, future: CommandFuture, given_id: str | None):
        self._context = context
        self.future = future
        """The result, as a future for asyncio."""
        self.run_id = child_run_id(context.run_id, future.event_id)
        self.workflow_id = given_id or child_workflow_id(context.info, future.event_id)

    def __await__(self) -> Generator[Any, None, R]:
        return self.future.__await__()

    async def started(self) -> ChildHandle[R]:
        """Wait until the child exists; raise ChildWorkflowError when it cannot be started."""
        started = self._context.children[self.future.event_id]
        # A child that ended before we were told that it began has begun, too.
        await asyncio.wait((started, self.future), return_when=asyncio.FIRST_COMPLETED)
        if started.done():
            started.result()
        return self

    def cancel(self) -> bool:
        """Ask the child to cancel itself and stop waiting for it."""
        return self.future.cancel()

    async def signal(self, name: str | Callable[..., Any], *args: Any) -> None:
        """Send the child a signal."""
        label = handler_name(name)
        payload = self._context.encode(list(args), f"the arguments of signal {label!r}")
        await self._context.send_external(
            EventKind.EXTERNAL_SIGNAL, self.workflow_id, self.run_id, label, payload
        )


def child_workflow_id(parent: WorkflowInfo, event_id: int) -> str:
    """The id of a child that was not given one: the same in every replay, another in every run.

    Runs of one chain share their workflow id, so the event alone would not tell their children
    apart.
    """
    return f"{parent.workflow_id}/{event_id}-{child_run_id(parent.run_id, event_id)[-12:]}"


def context(what: str) -> WorkflowContext:
    """The context of the workflow that runs here; raise ContextError outside of workflow code."""
    loop = current()
    if loop is None:
        raise ContextError(f"{what} works only in workflow code, and none is running here")
    found: WorkflowContext = loop.context
    return found
