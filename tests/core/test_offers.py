"""Facts that may come too late, what waits for them, and what the core counts for the engine."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from rig import OTHER_RUN_ID, START_US, Rig, cold, record, started

from durable._core import Loop
from durable.engine.tasks import WorkflowLoop
from durable.events import EventKind


async def two_in_a_row(rig: Rig) -> Any:
    return [await rig.act("a"), await rig.act("b")]


async def both_at_once(rig: Rig) -> Any:
    return await asyncio.gather(rig.act("a"), rig.act("b"))


def offer(rig: Rig, ref: int, kind: int = EventKind.ACTIVITY_COMPLETED) -> bool:
    return rig.loop.offer(kind, ref, START_US + 1, None, None, b"7")


def test_an_offer_that_somebody_waits_for_is_delivered() -> None:
    rig = started(two_in_a_row)
    rig.loop.take()

    assert offer(rig, 2) is True

    taken = rig.loop.take()
    assert taken is not None
    assert taken[2:4] == (3, 2)
    assert [event[4] for event in rig.commands] == ["b"]
    rig.evict()


def test_a_second_answer_changes_nothing() -> None:
    rig = started(two_in_a_row)
    offer(rig, 2)
    rig.loop.take()

    assert offer(rig, 2) is False

    assert rig.loop.take() is None
    assert rig.loop.event_count == 4
    rig.evict()


@pytest.mark.parametrize("kind", [EventKind.CHILD_STARTED, EventKind.TIMER_FIRED])
def test_an_answer_to_what_was_never_asked_changes_nothing(kind: EventKind) -> None:
    rig = started(two_in_a_row)
    rig.loop.take()

    assert offer(rig, 77, kind) is False

    assert rig.loop.take() is None
    rig.evict()


def test_an_answer_of_another_kind_is_refused_and_not_written() -> None:
    rig = started(two_in_a_row)
    rig.loop.take()

    with pytest.raises(ValueError, match="answers no waiting command"):
        offer(rig, 2, EventKind.TIMER_FIRED)

    assert rig.loop.take() is None
    assert rig.loop.pending_count == 1
    rig.evict()


def test_a_run_that_ended_or_left_memory_takes_no_offers() -> None:
    rig = started(two_in_a_row)
    offer(rig, 2)
    offer(rig, 4)
    assert rig.loop.is_finished
    rig.loop.take()

    assert rig.loop.offer(EventKind.SIGNAL_RECEIVED, 0, START_US, "s", None, None) is False
    rig.evict()
    assert rig.loop.offer(EventKind.SIGNAL_RECEIVED, 0, START_US, "s", None, None) is False


def test_an_offer_of_no_known_kind_is_refused() -> None:
    rig = started(two_in_a_row)

    with pytest.raises(ValueError, match="no such event kind"):
        offer(rig, 2, 63)

    rig.evict()


def test_what_waits_is_counted_as_it_is_listed() -> None:
    rig = started(both_at_once)
    counts = []
    for ref in (0, 3, 2):
        if ref:
            offer(rig, ref)
        counts.append(rig.loop.pending_count)
        assert len(rig.commands) == counts[-1]

    assert counts == [2, 1, 0]
    rig.evict()


def test_what_waits_is_counted_after_a_replay_too() -> None:
    made = record(both_at_once, [0])

    rig = cold(both_at_once, made)

    assert rig.loop.pending_count == len(rig.commands) == 1
    rig.evict()
    assert rig.loop.pending_count == 0


def test_serials_follow_from_the_run_id_and_nothing_else() -> None:
    """The order of a set of tasks is in histories, by these numbers: they are for ever."""
    run_id = bytes(range(16))

    loop = WorkflowLoop(run_id, None)
    made = [loop.next_serial() for _ in range(1000)]

    mask = (1 << 61) - 1
    seed, step = int.from_bytes(run_id, "big"), 0x9E3779B97F4A7C15
    assert made == [(seed + step * number) & mask for number in range(1, 1001)]
    assert made[:2] == [0x064083C48B578A24, 0x0477FD7E0AA20639]
    assert WorkflowLoop(OTHER_RUN_ID, None).next_serial() != made[0]
    assert all(hash(serial) == serial for serial in made)


class MakesItsOwnMain(Rig):
    """Names a main task that `create_task` never saw."""

    def on_event(
        self, kind: int, ref: int, name: str | None, meta: bytes | None, payload: bytes | None
    ) -> None:
        self.main = self.make_task(self.program(self), "main", None)
        self.loop.set_main(self.main)
        self.loop.set_main(self.main)


def test_a_main_task_of_the_engines_own_is_kept_and_closed_like_any_other() -> None:
    closed: list[str] = []

    async def program(rig: Rig) -> None:
        try:
            await rig.act("a")
        finally:
            closed.append("closed")

    made = record(program, [])
    rig = MakesItsOwnMain(program)
    rig.load(made.batches, made.head)
    loop: weakref.ref[Loop] = weakref.ref(rig.loop)
    assert rig.loop._tasks == [rig.main]

    rig.evict()
    del rig
    gc.collect()

    assert closed == ["closed"] * 2
    assert loop() is None
