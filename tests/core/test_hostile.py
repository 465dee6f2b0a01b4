"""Calls that no engine of ours makes give exceptions, never a panic, and change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from rig import ANSWER, START_US, Fact, Rig, cold, next_fact, record, started
from test_loop import gathered, grouped, shielded

from durable._core import current
from durable.events import EventKind


def reenter(rig: Rig) -> None:
    rig.loop.deliver(EventKind.SIGNAL_RECEIVED, 0, 0, "again", None, None)


HOSTILE: list[tuple[type[BaseException], Callable[[Rig], object]]] = [
    (TypeError, lambda rig: rig.loop.deliver("one", 0, 0, None, None, None)),  # type: ignore[arg-type]
    (TypeError, lambda rig: rig.loop.deliver(5, 0, 0, None, "text", None)),  # type: ignore[arg-type]
    (OverflowError, lambda rig: rig.loop.deliver(5, -1, 0, None, None, None)),
    (OverflowError, lambda rig: rig.loop.deliver(5, 0, 1 << 64, None, None, None)),
    (OverflowError, lambda rig: rig.loop.deliver(300, 0, 0, None, None, None)),
    (ValueError, lambda rig: rig.loop.deliver(99, 0, 0, None, None, None)),
    (ValueError, lambda rig: rig.loop.deliver(64, 0, 0, None, None, None)),
    (ValueError, lambda rig: rig.loop.deliver(2, 77, 0, None, None, None)),
    (ValueError, lambda rig: rig.loop.deliver(4, 2, 0, None, None, None)),
    (ValueError, lambda rig: rig.loop.deliver(8, 77, 0, None, None, None)),
    (UnicodeEncodeError, lambda rig: rig.loop.deliver(5, 0, 0, "\ud800", None, None)),
    (ValueError, lambda rig: rig.loop.emit(64)),
    (ValueError, lambda rig: rig.loop.emit(5)),
    (ValueError, lambda rig: rig.loop.emit(65, ref=77)),
    (ValueError, lambda rig: rig.loop.command(72)),
    (ValueError, lambda rig: rig.loop.command(255)),
    (ValueError, lambda rig: rig.loop.call_later(float("nan"), print)),
    (ValueError, lambda rig: rig.loop.call_at(float("inf"), print)),
    (TypeError, lambda rig: rig.loop.call_soon()),  # type: ignore[call-arg]
    (RuntimeError, lambda rig: rig.loop.load([])),
    (TypeError, lambda rig: rig.loop.load(["text"])),  # type: ignore[list-item]
    (ValueError, lambda rig: type(rig.loop)(b"short", rig)),
    (TypeError, lambda rig: type(rig.loop)(None, rig)),  # type: ignore[arg-type]
    (AttributeError, lambda rig: rig.loop.set_main(None)),
    (TypeError, lambda rig: rig.loop.record(72, "x", lambda: "text")),  # type: ignore[arg-type,return-value]
    (ZeroDivisionError, lambda rig: rig.loop.record(72, "x", lambda: 1 // 0)),  # type: ignore[arg-type,return-value]
    (ValueError, lambda rig: rig.loop.record(250, "x", lambda: b"")),
]


@pytest.mark.parametrize(("error", "call"), HOSTILE)
def test_a_wrong_call_is_an_exception_and_changes_nothing(
    error: type[BaseException], call: Callable[[Rig], object]
) -> None:
    rig = started(gathered)
    rig.loop.take()

    with pytest.raises(error):
        call(rig)

    assert rig.loop.take() is None
    assert not rig.loop.is_dead
    rig.deliver(ANSWER)
    assert rig.loop.take() is not None
    rig.evict()


def test_a_run_cannot_be_entered_from_inside() -> None:
    seen: list[str] = []

    async def program(rig: Rig) -> Any:
        for enter in (rig.loop.replay, rig.loop.run_ready, rig.loop.evict, lambda: reenter(rig)):
            try:
                enter()
            except RuntimeError as error:
                seen.append(str(error))
        return await rig.act("a")

    rig = started(program)
    rig.deliver(ANSWER)

    assert rig.loop.is_finished
    assert seen == ["this run is already running"] * 4


def test_one_run_may_drive_another() -> None:
    inner = started(shielded)

    async def program(rig: Rig) -> Any:
        assert current() is rig.loop
        inner.deliver(ANSWER)
        assert current() is rig.loop
        assert asyncio.get_running_loop() is rig.loop
        return await rig.act("a")

    rig = started(program)

    assert inner.loop.is_finished
    assert not rig.loop.is_finished
    assert current() is None
    rig.evict()


def test_taking_twice_gives_nothing_twice() -> None:
    rig = started(gathered)

    assert rig.loop.take() is not None
    assert rig.loop.take() is None
    rig.evict()
    rig.evict()
    assert rig.loop.take() is None


def test_a_finalizer_may_use_the_run_that_lets_go_of_it() -> None:
    class Nosy:
        def __init__(self, rig: Rig) -> None:
            self.rig = rig

        def __call__(self, *args: object) -> None:
            pass

        def __del__(self) -> None:
            loop = self.rig.loop
            loop.take()
            loop.pending()
            loop.call_soon(print).cancel()
            loop.is_pending(2)

    async def program(rig: Rig) -> Any:
        future = rig.act("a")
        future.add_done_callback(Nosy(rig))
        future.remove_done_callback(Nosy(rig))
        rig.loop.call_soon(Nosy(rig)).cancel()
        rig.loop.call_later(5, Nosy(rig)).cancel()
        rig.loop.call_later(6, Nosy(rig))
        return await future

    rig = started(program)
    rig.loop.context = Nosy(rig)
    rig.loop.context = None
    rig.loop.context = Nosy(rig)
    rig.evict()
    gc.collect()

    assert rig.loop.is_dead


def test_threads_replay_their_own_runs_at_the_same_time() -> None:
    """Eight threads, each with runs of its own: none sees another's loop."""
    program = grouped
    made = record(program, [4, 2])
    begin = threading.Barrier(8)
    wrong: list[object] = []

    def work() -> None:
        begin.wait(30)
        for _ in range(50):
            rig = cold(program, made)
            fact = next_fact(rig.commands, rig.loop.now_us, 0)
            if not rig.loop.is_finished or fact is not None or rig.loop.take() is not None:
                wrong.append(rig)
            rig.evict()
            if current() is not None:
                wrong.append(current())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_a_run_may_move_between_threads() -> None:
    rig = started(gathered)

    def deliver() -> None:
        rig.deliver(ANSWER)
        rig.deliver(Fact(EventKind.ACTIVITY_COMPLETED, 3, START_US, payload=b"8"))

    thread = threading.Thread(target=deliver)
    thread.start()
    thread.join(30)

    assert rig.main is not None
    assert rig.main.result() == [7, 8]


def test_threads_in_one_run_meet_as_exceptions() -> None:
    """A run belongs to one thread at a time. Who comes too early or too late hears of it.

    Without the interpreter's lock the run itself may be spoilt (it is replayed from its history
    then), but nothing else is, and nobody waits for ever.
    """
    outcomes: list[str] = []

    def deliver(rig: Rig, begin: threading.Barrier) -> None:
        begin.wait(30)
        try:
            rig.deliver(ANSWER)
            outcomes.append("delivered")
        except BaseException as error:
            outcomes.append(type(error).__name__)

    for _ in range(200):
        rig, begin = started(gathered), threading.Barrier(4)
        threads = [threading.Thread(target=deliver, args=(rig, begin)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert current() is None
        assert outcomes.count("delivered") <= 1
        if getattr(sys, "_is_gil_enabled", lambda: True)():
            assert outcomes.count("delivered") == 1
            assert set(outcomes) <= {"delivered", "RuntimeError", "ValueError"}
        assert set(outcomes) <= {"delivered", "RuntimeError", "ValueError", "PanicException"}
        outcomes.clear()

    rig = started(gathered)
    rig.deliver(ANSWER)
    rig.deliver(Fact(EventKind.ACTIVITY_COMPLETED, 3, START_US, payload=b"8"))
    assert rig.main is not None
    assert rig.main.result() == [7, 8]


def test_a_reader_in_another_thread_ends_no_process() -> None:
    """Who reads a run that another thread is in may spoil that run; the process goes on."""
    unexpected: list[BaseException] = []

    def attempt(call: Callable[[], object], begin: threading.Barrier) -> None:
        begin.wait(30)
        try:
            call()
        except (RuntimeError, ValueError):
            pass
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                unexpected.append(error)

    def read(rig: Rig, begin: threading.Barrier, stop: threading.Event) -> None:
        begin.wait(30)
        while not stop.is_set():
            with contextlib.suppress(RuntimeError):
                rig.loop.pending()
                rig.loop.take()

    for _ in range(60):
        rig, begin, stop = started(gathered), threading.Barrier(4), threading.Event()
        deliver = functools.partial(rig.deliver, ANSWER)
        writers = [threading.Thread(target=attempt, args=(deliver, begin)) for _ in range(2)]
        readers = [threading.Thread(target=read, args=(rig, begin, stop)) for _ in range(2)]
        for thread in writers + readers:
            thread.start()
        for thread in writers:
            thread.join(60)
        stop.set()
        for thread in readers:
            thread.join(60)
        assert not any(thread.is_alive() for thread in writers + readers)
    assert unexpected == []


OUTCOMES = {
    EventKind.ACTIVITY_COMPLETED: {EventKind.ACTIVITY_SCHEDULED},
    EventKind.ACTIVITY_FAILED: {EventKind.ACTIVITY_SCHEDULED},
    EventKind.TIMER_FIRED: {EventKind.TIMER_STARTED},
    EventKind.CHILD_COMPLETED: {EventKind.CHILD_INITIATED},
    EventKind.CHILD_FAILED: {EventKind.CHILD_INITIATED},
    EventKind.EXTERNAL_DONE: {EventKind.EXTERNAL_SIGNAL, EventKind.EXTERNAL_CANCEL},
    EventKind.EXTERNAL_FAILED: {EventKind.EXTERNAL_SIGNAL, EventKind.EXTERNAL_CANCEL},
}
AWAITED = sorted(set().union(*OUTCOMES.values()))


@pytest.mark.parametrize("command", AWAITED)
@pytest.mark.parametrize("outcome", OUTCOMES)
def test_an_outcome_is_taken_for_its_own_command_only(
    outcome: EventKind, command: EventKind
) -> None:
    async def program(rig: Rig) -> Any:
        due = rig.loop.now_us + 5 if command == EventKind.TIMER_STARTED else 0
        return await rig.loop.command(command, time_us=due, name="x", payload=b"[]")

    rig = started(program)
    answer = Fact(outcome, 2, START_US + 5, payload=b'"x"')

    if command in OUTCOMES[outcome]:
        rig.deliver(answer)
        assert rig.loop.is_finished
        with pytest.raises(RuntimeError):
            rig.deliver(answer)
    else:
        with pytest.raises(ValueError, match="answers no waiting command"):
            rig.deliver(answer)
        assert rig.loop.is_pending(2)
    rig.evict()


def test_what_is_used_again_is_known_to_the_garbage_collector() -> None:
    """Objects from a free list are as good as new ones."""
    seen: list[bool] = []

    async def program(rig: Rig) -> Any:
        for _ in range(5):
            future = rig.act("a")
            handle = rig.loop.call_soon(print)
            handle.cancel()
            seen.extend([gc.is_tracked(future), gc.is_tracked(handle)])
            await future
            del future, handle

    made = record(program, [0] * 5)

    assert made.is_finished
    assert cold(program, made).loop.is_finished
    assert seen == [True] * 20
