"""The whole contract of the Rust core, on a few screens. See docs/internals/replay.md.

An *event tuple* is ``(event_id, kind, ref, time_us, name, options, meta, payload)``: ids count from
1; ``ref`` is the id of the command an inbound fact answers (0: none); ``time_us`` is the absolute
time of an inbound fact or the due time of a timer (0: none); ``name`` and ``options`` are str or
None; ``meta`` and ``payload`` are bytes or None.
"""

from collections.abc import Callable, Container, Generator, Sequence
from contextvars import Context
from typing import Any, Protocol, Self, final

# For the types alone: the core knows these classes by what it is given.
from durable.engine.turn import Turn
from durable.events import Response

Event = tuple[int, int, int, int, str | None, str | None, bytes | None, bytes | None]
Taken = tuple[bytes, int, int, int, list[Event]]

FORMAT_VERSION: int
EVENT_KINDS: dict[str, int]
"""Name to number of every event kind this build knows."""

def start_batch(
    run_id: bytes, workflow_type: str, time_us: int, meta: bytes | None, payload: bytes | None
) -> tuple[bytes, int]:
    """Return the first history batch of a run (RUN_STARTED) and its checksum (signed 64-bit).

    ``run_id`` is the 16 bytes of the UUID: it seeds the checksum chain, so that the batches of two
    runs cannot be swapped unnoticed.
    """

def decode(run_id: bytes, batches: Sequence[bytes], head_hash: int | None = None) -> list[Event]:
    """Check and decode a history; raise HistoryCorruptError at the first fault.

    With ``head_hash`` a missing last batch is found too.
    """

def verify(run_id: bytes, batches: Sequence[bytes], head_hash: int | None = None) -> int:
    """Check a history without making objects; return the number of events."""

def current() -> Loop | None:
    """The loop whose workflow code runs on this thread right now, or None."""

def guard(events: Container[str], judge: Callable[[str, tuple[Any, ...]], None]) -> None:
    """Have an audit hook (PEP 578) call ``judge`` for these events where workflow code runs.

    The first call counts for the whole process: a hook cannot be removed.
    """

class Hook(Protocol):
    """What the core asks of the engine (durable.engine.execution)."""

    def on_event(
        self, kind: int, ref: int, name: str | None, meta: bytes | None, payload: bytes | None
    ) -> None:
        """An inbound fact that no pending future of the core resolves: start, signal, update,
        ..."""

    def failure(
        self, kind: int, ref: int, name: str | None, payload: bytes | None
    ) -> BaseException:
        """The exception that the future of command ``ref`` raises."""

    def on_finish(self) -> None:
        """The main task is done and nothing is ready: emit the ending command."""

    def on_idle(self) -> None:
        """Nothing is ready after a fact, and ``Loop.watch_idle`` is true. It may make something
        ready (wait_condition looks at its predicates here); called again until it does not."""

    def make_task(self, coro: Any, name: str | None, context: Context | None) -> Any:
        """Build the asyncio.Task of ``loop.create_task``."""

class Loop:
    """One run: a deterministic asyncio event loop joined with the replay of its history.

    Facts are delivered one at a time, in history order; after each, the code runs until nothing is
    ready. Every command the code makes is matched with the next event of the history while there is
    one, and recorded after. Raise NonDeterminismError when they part; from then on the loop is
    dead.
    """

    context: Any
    """The engine's workflow context (durable.engine.context)."""
    watch_idle: bool
    """Whether ``Hook.on_idle`` is called; False at first. Set while a condition is waited for."""

    must_suspend: bool
    """Set when a task is cancelled: code that cancelled its own learns of it where it suspends,
    so its next await does. False again when the next callback runs."""

    is_spoilt: bool
    """Set when a query or a validator made a command: from then on every fact comes too late."""

    def __new__(cls, run_id: bytes, hook: Any) -> Loop: ...
    # -- driving it (engine) -------------------------------------------------------------------
    def load(self, batches: Sequence[bytes], head_hash: int | None = None) -> None:
        """Give it its history, from batch 0. Checks every byte; runs nothing. Events are decoded
        when replay comes to them. Raise RuntimeError when it has its history already."""
    def replay(self) -> None:
        """Run the code against the whole history, until it waits for something new."""
    def deliver(
        self,
        kind: int,
        ref: int,
        time_us: int,
        name: str | None,
        meta: bytes | None,
        payload: bytes | None,
    ) -> None:
        """Record one new inbound fact and run the code until it waits again.

        ``time_us`` below the run's time is raised to it.
        """
    def offer(
        self,
        kind: int,
        ref: int,
        time_us: int,
        name: str | None,
        meta: bytes | None,
        payload: bytes | None,
    ) -> bool:
        """`deliver` a fact that may have come too late. False when nothing happened: the run is
        over or dead, or the command that the fact answers waits no more."""
    def take(self) -> Taken | None:
        """Take what is new since the last take: the encoded batch, the head checksum after it, the
        id of its first event, the number of its events, and its commands (kinds from 64) as event
        tuples. None when there is nothing, and from a dead loop."""
    def pending(self) -> list[Event]:
        """The commands that still wait for their outcome (activities, timers, children, ...)."""
    @property
    def pending_count(self) -> int:
        """The number of commands that `pending` returns."""
    def is_pending(self, ref: int) -> bool:
        """Whether command ``ref`` still waits for its outcome (or its cancellation is
        unanswered)."""
    def set_main(self, task: Any) -> None:
        """Name the task whose end is the end of the run. It need not be one of `create_task`."""
    def next_serial(self) -> int:
        """The next hash of a task or future: in one order for one history, in every process."""
    def run_ready(self) -> None:
        """Run what is ready without a new fact (queries and handlers that write no history)."""
    def evict(self) -> None:
        """Close every coroutine. Commands made by their ``finally`` blocks go nowhere."""

    # -- making commands (workflow API) ---------------------------------------------------------
    def command(
        self,
        kind: int,
        *,
        ref: int = 0,
        time_us: int = 0,
        name: str | None = None,
        options: str | None = None,
        meta: bytes | None = None,
        payload: bytes | None = None,
        decoder: Callable[[bytes], Any] | None = None,
        wait_cancel: bool = False,
    ) -> CommandFuture:
        """Make a command and return the future of its outcome."""
    def emit(
        self,
        kind: int,
        *,
        ref: int = 0,
        time_us: int = 0,
        name: str | None = None,
        options: str | None = None,
        meta: bytes | None = None,
        payload: bytes | None = None,
    ) -> int:
        """Make a command that has no outcome; return its event id."""
    def record(self, kind: int, name: str | None, produce: Callable[[], bytes]) -> bytes:
        """Return the recorded payload of the next event, or record what ``produce`` returns."""
    def patched(self, name: str) -> bool:
        """Whether this run takes the new path of patch ``name`` (records a marker the first
        time)."""

    def skip_marker(self, name: str) -> bool:
        """Step over the marker of a patch that the code no longer asks about, if it is next."""

    # -- facts ----------------------------------------------------------------------------------
    @property
    def now_us(self) -> int: ...
    @property
    def position(self) -> int:
        """Id of the last event that the code has reached: the same live and replayed."""
    @property
    def event_count(self) -> int:
        """Events so far, recorded and new. While replaying it is the total, not the position."""
    @property
    def history_bytes(self) -> int: ...
    @property
    def is_replaying(self) -> bool: ...
    @property
    def is_finished(self) -> bool:
        """The ending command is made."""
    @property
    def _tasks(self) -> list[Any]: ...
    @property
    def is_dead(self) -> bool:
        """Evicted, or parted from its history."""

    # -- the asyncio face -------------------------------------------------------------------------
    def time(self) -> float: ...
    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Handle: ...
    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> TimerHandle: ...
    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> TimerHandle: ...
    def create_future(self) -> Any: ...
    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **kwargs: Any
    ) -> Any: ...
    def get_debug(self) -> bool: ...
    def is_running(self) -> bool: ...
    def is_closed(self) -> bool: ...
    def call_exception_handler(self, context: dict[str, Any]) -> None: ...

@final
class Handle:
    def cancel(self) -> None: ...
    def cancelled(self) -> bool: ...

@final
class TimerHandle:
    def cancel(self) -> None: ...
    def cancelled(self) -> bool: ...
    def when(self) -> float: ...

@final
class CommandFuture:
    """The outcome of a command: a future in every way that asyncio asks for.

    Its hash is the command's event id, so sets of them iterate in the same order in every process.
    """

    _asyncio_future_blocking: bool
    @property
    def event_id(self) -> int: ...
    def done(self) -> bool: ...
    def cancelled(self) -> bool: ...
    def cancel(self, msg: Any = None) -> bool: ...
    def result(self) -> Any: ...
    def exception(self) -> BaseException | None: ...
    def add_done_callback(
        self, callback: Callable[..., object], *, context: Context | None = None
    ) -> None: ...
    def remove_done_callback(self, callback: Callable[..., object]) -> int: ...
    def get_loop(self) -> Loop: ...
    def __await__(self) -> Generator[Any, None, Any]: ...
    def __iter__(self) -> Generator[Any, None, Any]: ...

@final
class TurnShapes:
    """What `ExecutionBase` makes the turn of a step of."""

    def __new__(
        cls,
        turn: Callable[[bytes, int, int, int, list[Any]], Any],
        activity: Callable[[int, str, str, int, Any, str, bytes, int], Any],
        options_of: Callable[[str], Any],
    ) -> Self:
        """``activity`` is called with the id, name, queue, priority, options, their text, arguments
        and time of an ACTIVITY_SCHEDULED, ``turn`` with the first four of what `Loop.take` gives
        and the activities. ``options_of`` reads a text of options; what it returns has ``queue``
        and ``priority``."""

class ExecutionBase:
    """What an execution does for every step, kept in Rust because every step does it.

    The rest, a subclass does: ``_deliver_other(kind, ref, time_us, name, meta, payload)`` with a
    CANCEL_REQUESTED and with what is no fact; ``_sorted(taken)`` makes a turn of what `Loop.take`
    gave, or of None when there are only responses; ``_died(error)`` puts the error of the core into
    words. It sets ``_queue`` (where activities without one of their own go), ``_ended`` (how the
    run was ended from outside) and ``_responses`` (what is to be answered), and calls `_join`.
    """

    _queue: str | None
    _ended: Any
    _responses: list[Any] | None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    def _join(self, event_loop: Loop, shapes: TurnShapes) -> None: ...
    def deliver(
        self,
        kind: int,
        ref: int,
        time_us: int,
        name: str | None = None,
        meta: bytes | None = None,
        payload: bytes | None = None,
    ) -> Response | None:
        """Give it one new fact, or one request, and run the code until it waits again.

        ``kind`` is an EventKind below 64 or a MessageKind. Facts that answer nothing any more, and
        facts for a run that has ended, change nothing. Returns the answer when there is one at
        once: to a query, or to an update that is refused.
        """
    def take(self) -> Turn | None:
        """What is new since the last take; None when there is nothing to write or to answer."""

class ActivityBase:
    """The callable part of an activity definition, kept in Rust because every replayed step calls
    it.

    Inside a workflow a call makes ACTIVITY_SCHEDULED and returns its CommandFuture; elsewhere it
    calls ``fn``. Subclasses must not override ``__call__``.
    """

    name: str
    fn: Callable[..., Any]
    read: Callable[[bytes], Any] | None
    """The same as ``decode``, only faster: after whatever Exception it raises ``decode`` is asked.
    None until it is set."""
    records: dict[type, tuple[tuple[str, bytes], ...] | None] | None
    """The types whose values the core writes itself, as a JSON object: their fields, each with its
    name in JSON and a colon. None for a type that is written in another way; a type that is missing
    is looked up with ``[]``. None until it is set: then no type is."""

    def __new__(
        cls,
        name: str,
        fn: Callable[..., Any],
        options: str,
        *,
        arity: tuple[int, int],
        encode: Callable[[tuple[Any, ...], dict[str, Any]], bytes],
        decode: Callable[[bytes], Any] | None,
        plain: int | None = None,
        wait_cancel: bool = False,
    ) -> Self:
        """``options`` is recorded with each call (compact JSON, or ``""``). ``arity`` is the least
        and most number of positional arguments that need no binding. ``encode(args, kwargs)`` binds
        and encodes what the core does not encode itself: it does None, bool, int, float, plain str,
        lists and dicts of these, and the types that ``records`` knows.
        ``decode`` turns a result into what the annotation says; None means plain JSON. ``plain``
        says which JSON scalars the annotation takes as they are, so that the core may decode them
        itself: the sum of 1 (null), 2 (bool), 4 (int), 8 (str); by default all without a decoder,
        else none."""
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
