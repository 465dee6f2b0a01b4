"""The smallest engine that drives `durable._core.Loop`, and a world that answers its commands.

`Rig` is one run in memory: the hook, the main task, the signals. `record` lets a world made of a
list of numbers decide what happens next (which command gets its outcome, and which), and returns
what a database would have: the batches, one per fact, and what the code saw at each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from durable._core import ActivityBase, CommandFuture, start_batch
from durable.engine import tasks
from durable.events import EventKind

if TYPE_CHECKING:
    from durable._core import Event

RUN_ID = bytes(range(16))
OTHER_RUN_ID = bytes(range(1, 17))
START_US = 1_700_000_000_000_000
STEP_US = 1_000
FACTS_MAX = 60
"""No generated program needs more facts than this."""

Program = Callable[["Rig"], Awaitable[Any]]

tasks.install()


class Failed(Exception):
    """What a failed activity raises in these tests."""


def encode_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    return orjson.dumps([*args, kwargs] if kwargs else args)


def called_outside(*args: Any) -> Any:
    raise AssertionError("an activity ran although a workflow called it")


class Rig:
    """One run: the hook of its loop."""

    def __init__(
        self,
        program: Program,
        *,
        run_id: bytes = RUN_ID,
        short_cut: bool = True,
    ) -> None:
        self.program = program
        self.loop = tasks.WorkflowLoop(run_id, self)
        self.loop.watch_idle = not short_cut
        self.trace: list[Any] = []
        self.main: asyncio.Task[Any] | None = None
        self.task_count = 0
        self.on_signal: Callable[[str | None, bytes | None], None] | None = None

    # -- the hook --------------------------------------------------------------------------------

    def on_event(
        self, kind: int, ref: int, name: str | None, meta: bytes | None, payload: bytes | None
    ) -> None:
        if kind == EventKind.RUN_STARTED:
            self.main = self.loop.create_task(self.program(self), name="main")
            self.loop.set_main(self.main)
        elif kind == EventKind.CANCEL_REQUESTED and self.main is not None:
            self.main.cancel("asked to")
        elif kind == EventKind.SIGNAL_RECEIVED and self.on_signal is not None:
            self.on_signal(name, payload)

    def failure(
        self, kind: int, ref: int, name: str | None, payload: bytes | None
    ) -> BaseException:
        said = (payload or b"").decode()
        return asyncio.CancelledError(said) if said == '"cancelled"' else Failed(said)

    def on_idle(self) -> None:
        pass

    def on_finish(self) -> None:
        assert self.main is not None
        if self.main.cancelled():
            self.loop.emit(EventKind.RUN_CANCELLED)
        elif self.main.exception() is not None:
            self.loop.emit(EventKind.RUN_FAILED, payload=repr(self.main.exception()).encode())
        else:
            self.loop.emit(EventKind.RUN_COMPLETED, payload=repr(self.main.result()).encode())

    def make_task(self, coro: Any, name: str | None, context: Context | None) -> Any:
        self.task_count += 1
        serial = self.loop.next_serial()
        name = name or f"task-{self.task_count}"
        return tasks.WorkflowTask(coro, loop=self.loop, serial=serial, name=name, context=context)

    # -- what programs call ------------------------------------------------------------------------

    def act(self, name: str, *args: Any) -> CommandFuture:
        return activity(name)(*args)

    def note(self, *seen: Any) -> None:
        self.trace.append((self.loop.now_us, *seen))

    # -- what tests call ---------------------------------------------------------------------------

    def load(self, batches: Sequence[bytes], head: int | None = None) -> Rig:
        self.loop.load(list(batches), head)
        self.loop.replay()
        return self

    def deliver(self, fact: Fact) -> None:
        self.loop.deliver(fact.kind, fact.ref, fact.time_us, fact.name, None, fact.payload)

    def evict(self) -> None:
        self.loop.evict()

    @property
    def commands(self) -> list[Event]:
        return self.loop.pending()


def activity(name: str, *, wait_cancel: bool = False) -> ActivityBase:
    return ActivityBase(
        name,
        called_outside,
        "",
        arity=(0, 4),
        encode=encode_call,
        decode=None,
        wait_cancel=wait_cancel,
    )


@dataclass
class Fact:
    kind: int
    ref: int
    time_us: int
    name: str | None = None
    payload: bytes | None = None


@dataclass
class Moment:
    """How a run was after one commit."""

    batch: bytes
    head: int
    fact: Fact | None
    trace_len: int
    pending: list[Event]
    event_count: int
    now_us: int


@dataclass
class Recording:
    moments: list[Moment] = field(default_factory=list)
    commands: list[Event] = field(default_factory=list)
    trace: list[Any] = field(default_factory=list)
    is_finished: bool = False

    @property
    def batches(self) -> list[bytes]:
        return [moment.batch for moment in self.moments]

    @property
    def head(self) -> int:
        return self.moments[-1].head


def first_batch(run_id: bytes = RUN_ID) -> tuple[bytes, int]:
    return start_batch(run_id, "program", START_US, b"{}", b"[]")


def next_fact(pending: list[Event], now_us: int, choice: int) -> Fact | None:
    """What the world does next: ``choice`` decides which command is answered, and how."""
    if not pending:
        return None
    answerable = [e for e in pending if e[1] != EventKind.TIMER_STARTED]
    timers = sorted((e for e in pending if e[1] == EventKind.TIMER_STARTED), key=lambda e: e[3])
    options = answerable + timers[:1]
    event = options[choice % len(options)]
    how = choice // len(options)
    now_us += STEP_US * (how % 3)
    if event[1] == EventKind.TIMER_STARTED:
        return Fact(EventKind.TIMER_FIRED, event[0], max(now_us, event[3]))
    if how % 7 == 5:
        return Fact(EventKind.ACTIVITY_FAILED, event[0], now_us, payload=b'"no luck"')
    if how % 7 == 6:
        return Fact(EventKind.ACTIVITY_FAILED, event[0], now_us, payload=b'"cancelled"')
    value = (None, True, 7, "text", [1, {"a": None}])[how % 5]
    return Fact(EventKind.ACTIVITY_COMPLETED, event[0], now_us, payload=orjson.dumps(value))


def record(program: Program, choices: Sequence[int]) -> Recording:
    """Run ``program`` from its start, one commit a fact, until it ends or the choices do."""
    rig = Rig(program)
    made = Recording()
    batch, head = first_batch()
    made.moments.append(Moment(batch, head, None, 0, [], 1, START_US))
    rig.load([batch], head)
    fact: Fact | None = None
    for choice in [*choices, None]:
        taken = rig.loop.take()
        if taken is not None:
            made.commands += taken[4]
            made.moments.append(
                Moment(
                    taken[0],
                    taken[1],
                    fact,
                    len(rig.trace),
                    rig.commands,
                    rig.loop.event_count,
                    rig.loop.now_us,
                )
            )
        if choice is None or rig.loop.is_finished:
            break
        fact = next_fact(rig.commands, rig.loop.now_us, choice)
        if fact is None:
            break
        rig.deliver(fact)
    made.trace = list(rig.trace)
    made.is_finished = rig.loop.is_finished
    rig.evict()
    return made


def started(program: Program) -> Rig:
    batch, head = first_batch()
    return Rig(program).load([batch], head)


def cold(program: Program, made: Recording, *, short_cut: bool = True) -> Rig:
    return Rig(program, short_cut=short_cut).load(made.batches, made.head)


ANSWER = Fact(EventKind.ACTIVITY_COMPLETED, 2, START_US + 5, payload=b"7")
"""The outcome of the first command of a run."""
