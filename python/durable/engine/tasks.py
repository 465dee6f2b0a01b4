"""Plain asyncio, made a function of history alone.

The core is the event loop. What asyncio's own Python code does between the loop and the user must
not depend on addresses either, and three things of it do:

* Tasks and futures are hashed by address, and `asyncio.TaskGroup`, ``wait``, ``as_completed`` and
  users iterate over sets of them. Those of a run are hashed by a number that its loop counts up.
* Unnamed tasks are numbered per process. Ours are numbered per run.
* ``wait`` and ``as_completed`` put what they are given into a ``set``, coroutines included, before
  any task exists. `install` gives the module ``asyncio.tasks`` a ``set`` that keeps the order of
  insertion when workflow code calls it, and is the builtin otherwise. (A module-level name shadows
  the builtin, so this works however the user imported ``wait``.)

`WorkflowLoop` refuses what no replay could repeat: sockets, threads, subprocesses, signal handlers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from durable._core import Loop, current
from durable.errors import GuardError

FRAMES_MAX = 100
OWN_CODE = (str(Path(__file__).parents[1]), str(Path(asyncio.__file__).parent))

log = logging.getLogger("durable.workflow")


class WorkflowTask(asyncio.Task[Any]):
    """A task of workflow code. Its hash is given, so sets of tasks have one order everywhere."""

    __slots__ = ("_serial",)

    def __init__(
        self, coro: Any, *, loop: Any, serial: int, name: str, context: Context | None
    ) -> None:
        # First: asyncio puts the task into a set of its own while it is being made.
        self._serial = serial
        asyncio.Task.__init__(self, coro, loop=loop, name=name, context=context)
        # A run that is dropped from memory has pending tasks; that is no mistake of the user's.
        self._log_destroy_pending = False

    def __hash__(self) -> int:
        return self._serial

    def cancel(self, msg: Any = None) -> bool:
        """Ask it to end; code that cancels its own task is told at its next await."""
        loop: Any = self.get_loop()
        loop.must_suspend = True
        return super().cancel(msg)


class WorkflowFuture(asyncio.Future[Any]):
    """A future of workflow code, hashed by number (from when it is first asked)."""

    def __hash__(self) -> int:
        return serial_of(self)


def serial_of(future: Any) -> int:
    """The hash of a future of workflow code; given when it is first asked for."""
    try:
        serial: int = future._serial
    except AttributeError:
        serial = future._serial = future.get_loop().next_serial()
    return serial


# asyncio.gather makes its future itself, of a class of its own.
Gathering: Any = vars(asyncio.tasks)["_GatheringFuture"]
WorkflowGathering: Any = type("WorkflowGathering", (Gathering,), {"__hash__": serial_of})


def gathering_for_loop(children: Any, *, loop: Any) -> Any:
    """The future of a gather: hashed by number where workflow code made it."""
    cls = WorkflowGathering if isinstance(loop, WorkflowLoop) else Gathering
    return cls(children, loop=loop)


class OrderedSet(set[Any]):
    """A set that iterates in the order of insertion, wherever asyncio or the user takes it."""

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._order: dict[Any, None] = dict.fromkeys(items)
        super().__init__(self._order)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._order)

    def __repr__(self) -> str:
        return "{" + ", ".join(map(repr, self._order)) + "}" if self._order else "set()"

    def add(self, item: Any) -> None:
        self._order[item] = None
        super().add(item)

    def discard(self, item: Any) -> None:
        self._order.pop(item, None)
        super().discard(item)

    def remove(self, item: Any) -> None:
        super().remove(item)
        del self._order[item]

    def pop(self) -> Any:
        if not self._order:
            raise KeyError("pop from an empty set")
        item = next(iter(self._order))
        self.remove(item)
        return item

    def clear(self) -> None:
        self._order.clear()
        super().clear()

    def copy(self) -> OrderedSet:
        return OrderedSet(self._order)

    def update(self, *others: Iterable[Any]) -> None:
        for other in others:
            for item in other:
                self.add(item)

    def difference_update(self, *others: Iterable[Any]) -> None:
        for other in others:
            for item in list(other):
                self.discard(item)

    def intersection_update(self, *others: Iterable[Any]) -> None:
        self._become(self.intersection(*others))

    def symmetric_difference_update(self, other: Iterable[Any]) -> None:
        self._become(self.symmetric_difference(other))

    def _become(self, other: Iterable[Any]) -> None:
        items = list(other)
        self.clear()
        self.update(items)

    def union(self, *others: Iterable[Any]) -> OrderedSet:
        result = self.copy()
        result.update(*others)
        return result

    def difference(self, *others: Iterable[Any]) -> OrderedSet:
        result = self.copy()
        result.difference_update(*others)
        return result

    def intersection(self, *others: Iterable[Any]) -> OrderedSet:
        kept = [frozenset(other) for other in others]
        return OrderedSet(item for item in self if all(item in other for other in kept))

    def symmetric_difference(self, other: Iterable[Any]) -> OrderedSet:
        items = dict.fromkeys(other)
        return OrderedSet(
            [item for item in self if item not in items]
            + [item for item in items if item not in self]
        )

    def __or__(self, other: AbstractSet[Any]) -> OrderedSet:
        return self.union(other)

    def __sub__(self, other: AbstractSet[Any]) -> OrderedSet:
        return self.difference(other)

    def __and__(self, other: AbstractSet[Any]) -> OrderedSet:
        return self.intersection(other)

    def __xor__(self, other: AbstractSet[Any]) -> OrderedSet:
        return self.symmetric_difference(other)

    def __ior__(self, other: AbstractSet[Any]) -> OrderedSet:
        self.update(other)
        return self

    def __isub__(self, other: AbstractSet[Any]) -> OrderedSet:
        self.difference_update(other)
        return self

    def __iand__(self, other: AbstractSet[Any]) -> OrderedSet:
        self.intersection_update(other)
        return self

    def __ixor__(self, other: AbstractSet[Any]) -> OrderedSet:
        self.symmetric_difference_update(other)
        return self


def set_for_caller(items: Iterable[Any] = ()) -> set[Any]:
    """What ``set(...)`` means inside ``asyncio.tasks``: ordered for workflow code."""
    return set(items) if current() is None else OrderedSet(items)


TASK_NAMES = vars(asyncio.tasks)


def install() -> None:
    """Make ``asyncio.wait`` and ``asyncio.as_completed`` ordered in workflow code. Safe twice."""
    if TASK_NAMES.get("set") is not set_for_caller:
        TASK_NAMES.update(set=set_for_caller, _GatheringFuture=gathering_for_loop)


def refuse(name: str, instead: str) -> Callable[..., NoReturn]:
    """A loop method that raises GuardError and says what to do instead."""

    def refused(self: object, *args: object, **kwargs: object) -> NoReturn:
        raise GuardError(f"loop.{name}() cannot be replayed in workflow code; {instead}")

    refused.__name__ = name
    return refused


IN_ACTIVITY = "do it in an activity and await that"
THREADS = "workflow code has one thread; do it in a (sync) activity and await that"
DRIVEN = "the run is driven by its worker; await what you wait for"
NEEDS_WORLD = (
    "getaddrinfo",
    "getnameinfo",
    "create_connection",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "create_datagram_endpoint",
    "connect_accepted_socket",
    "start_tls",
    "sendfile",
    "sock_recv",
    "sock_recv_into",
    "sock_recvfrom",
    "sock_recvfrom_into",
    "sock_sendall",
    "sock_sendto",
    "sock_connect",
    "sock_accept",
    "sock_sendfile",
    "connect_read_pipe",
    "connect_write_pipe",
    "subprocess_shell",
    "subprocess_exec",
    "add_reader",
    "remove_reader",
    "add_writer",
    "remove_writer",
)
NOT_REPLAYABLE: dict[str, str] = {
    "run_in_executor": THREADS,
    "set_default_executor": THREADS,
    "shutdown_default_executor": THREADS,
    "call_soon_threadsafe": "send the run a signal instead",
    **dict.fromkeys(("run_forever", "run_until_complete", "stop", "close"), DRIVEN),
    **dict.fromkeys(("add_signal_handler", "remove_signal_handler"), "use workflow.on_signal()"),
    **dict.fromkeys(NEEDS_WORLD, IN_ACTIVITY),
}


if TYPE_CHECKING:
    # asyncio declares its abstract methods for loops that can do everything.
    LoopBase = Loop
else:

    class LoopBase(Loop, asyncio.AbstractEventLoop):
        """The core's loop, as asyncio's own base class wants to see it."""


class WorkflowLoop(LoopBase):
    """The core's loop with the rest of asyncio's loop interface, most of which it refuses."""

    def create_future(self) -> WorkflowFuture:
        return WorkflowFuture(loop=cast("asyncio.AbstractEventLoop", self))

    _exception_handler: Callable[..., object] | None = None

    def set_debug(self, enabled: bool) -> None:
        """Nothing: a run behaves the same in debug mode."""

    async def shutdown_asyncgens(self) -> None:
        """Nothing: generators are closed when the run leaves memory."""

    def get_exception_handler(self) -> Callable[..., object] | None:
        return self._exception_handler

    def set_exception_handler(self, handler: Callable[..., object] | None) -> None:
        self._exception_handler = handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Log what asyncio has nobody to tell, unless it was told before this replay."""
        if self.is_replaying or self.is_dead:
            return
        error = context.get("exception")
        log.error("workflow code: %s", context.get("message"), exc_info=error)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._exception_handler is None:
            self.default_exception_handler(context)
        else:
            self._exception_handler(self, context)


for _name, _instead in NOT_REPLAYABLE.items():
    setattr(WorkflowLoop, _name, refuse(_name, _instead))


def waiting_place(coro: Any) -> str:
    """Where a suspended coroutine waits, in frames that are the user's own.

    Written ``file:line function``, outermost first.
    """
    frames = []
    for _ in range(FRAMES_MAX):
        frame = getattr(coro, "cr_frame", None) or getattr(coro, "gi_frame", None)
        if frame is None:
            break
        code = frame.f_code
        if not code.co_filename.startswith(OWN_CODE):
            frames.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_qualname}")
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None)
    # Not the repr of what it awaits: that has an address, and the same wait must read the same.
    return " > ".join(frames) or ("not started" if coro is None else "an outcome")
