"""What the core does for every step is what the engine's Python does for the rest of them."""

from __future__ import annotations

from typing import Any

import pytest
from rig import START_US, started

from durable import activity, workflow
from durable._core import ExecutionBase, TurnShapes
from durable.engine.execution import Execution
from durable.engine.start import StartMeta, new_run
from durable.engine.turn import ScheduledActivity, Turn, activity_options, to_start
from durable.events import EventKind
from durable.options import ActivityOptions

RUN_ID = "00000000-0000-4000-8000-000000000001"


@activity.defn
async def plain(number: int) -> None:
    pass


@activity.defn(queue="other", priority=3)
async def elsewhere(text: str) -> None:
    pass


@activity.defn
async def nothing() -> None:
    pass


@workflow.defn
async def one_at_a_time() -> None:
    await plain(1)
    await elsewhere("\U0001f40d")
    await nothing()
    await plain.with_options(priority=7)(2)


def running(program: Any) -> Execution:
    run = new_run(
        program, b"[]", StartMeta(workflow_id="w", queue="own"), run_id=RUN_ID, now_us=START_US
    )
    assert run.batch is not None
    execution = Execution(program, RUN_ID, "w", queue="not yet known")
    execution.load([run.batch])
    return execution


def complete(execution: Execution, ref: int, time_us: int) -> None:
    execution.deliver(EventKind.ACTIVITY_COMPLETED, ref, time_us, None, None, b"null")


def test_a_turn_of_one_activity_is_made_as_python_would() -> None:
    execution = running(one_at_a_time)
    made: list[tuple[str, str, int]] = []

    for number in range(4):
        turn = execution.take()
        assert turn is not None
        (scheduled,) = turn.scheduled
        expected, timers, is_all = to_start(execution._loop.pending(), "own", START_US + number)
        assert (expected, timers, is_all) == ([scheduled], [], True)
        assert isinstance(scheduled, ScheduledActivity)
        assert turn == Turn(
            turn.batch, turn.head_hash, turn.first_event_id, turn.event_count, (scheduled,)
        )
        assert turn.first_event_id == (2 * number + 1 if number else 2)
        made.append((scheduled.name, scheduled.queue, scheduled.priority))
        complete(execution, scheduled.ref, START_US + number + 1)

    assert made == [
        ("plain", "own", 0),
        ("elsewhere", "other", 3),
        ("nothing", "own", 0),
        ("plain", "own", 7),
    ]
    execution.evict()


def test_nothing_new_is_no_turn() -> None:
    execution = running(one_at_a_time)
    execution.take()

    assert execution.take() is None
    complete(execution, 77, START_US + 1)
    assert execution.take() is None

    execution.evict()
    complete(execution, 2, START_US + 1)
    assert execution.take() is None


def test_a_fact_from_before_1970_is_as_late_as_any_other() -> None:
    execution = running(one_at_a_time)

    complete(execution, 2, -5)

    assert execution.now_us == START_US
    execution.evict()


def test_a_spoilt_run_takes_no_facts() -> None:
    execution = running(one_at_a_time)
    execution.take()
    execution._loop.is_spoilt = True

    complete(execution, 2, START_US + 1)

    assert execution.take() is None
    assert execution.is_dead
    execution.evict()


def test_an_error_of_the_core_is_told_by_the_execution_and_hides_no_other() -> None:
    execution = running(one_at_a_time)

    with pytest.raises(ValueError, match="answers no waiting command") as raised:
        execution.deliver(EventKind.TIMER_FIRED, 2, START_US + 1)

    assert raised.value.__cause__ is None
    assert execution.is_dead


def test_a_base_that_was_given_no_loop_says_so() -> None:
    base = ExecutionBase()

    with pytest.raises(RuntimeError, match="no loop"):
        base.take()
    with pytest.raises(RuntimeError, match="no loop"):
        base.deliver(EventKind.SIGNAL_RECEIVED, 0, START_US)


def test_the_options_of_activities_without_any_are_read_once() -> None:
    read: list[str] = []

    def options_of(text: str) -> ActivityOptions:
        read.append(text)
        return activity_options(text)

    async def program(rig: Any) -> None:
        await rig.act("a")

    rig = started(program)
    base = ExecutionBase()
    base._queue = "own"
    base._join(rig.loop, TurnShapes(Turn, ScheduledActivity, options_of))

    turn = base.take()

    assert turn is not None
    assert [each.name for each in turn.scheduled] == ["a"]
    assert read == [""]
    rig.evict()
