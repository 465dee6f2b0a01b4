"""Execution without a database: facts in, turns out, and the same again from every prefix."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from support.memory_run import EPOCH_US, MemoryRun

from durable import activity, workflow
from durable.codec import DEFAULT_CODEC
from durable.engine.execution import Execution
from durable.errors import (
    ActivityError,
    DecodeError,
    GuardError,
    HistoryCorruptError,
    NonDeterminismError,
)
from durable.events import EventKind, RunState


@dataclass
class Plan:
    total: int
    cycles: int
    cycle: timedelta


@dataclass
class Receipt:
    paid: int
    overdue: int


@activity.defn
async def pay(amount: int) -> None:
    """Pays nothing: the tests say what came of it."""


@activity.defn
async def add(left: int, right: int) -> int:
    return left + right


@activity.defn
async def other(left: int, right: int) -> int:
    return left + right


@workflow.defn
async def subscription(plan: Plan) -> Receipt:
    paid = overdue = 0
    share = plan.total // plan.cycles
    for cycle in range(plan.cycles):
        workflow.set_vars(paid=paid, overdue=overdue, cycle=cycle)
        await workflow.sleep_until(workflow.start_time() + cycle * plan.cycle)
        try:
            await pay(share + overdue)
        except ActivityError:
            overdue += share
        else:
            paid, overdue = paid + share + overdue, 0
    return Receipt(paid, overdue)


def test_the_subscription_runs_and_replays_from_every_prefix() -> None:
    run = MemoryRun(subscription, Plan(100, 3, timedelta(seconds=2)))
    assert run.execution.vars == {"paid": 0, "overdue": 0, "cycle": 0}
    run.complete("pay")
    run.fire()
    run.fail("pay")
    run.fire()
    run.complete("pay")
    assert run.result == {"paid": 99, "overdue": 0}
    assert run.execution.vars == {"paid": 33, "overdue": 33, "cycle": 2}
    run.check_replays()


def test_the_first_turn_schedules_the_first_activity() -> None:
    @workflow.defn
    async def one() -> int:
        return await add(1, 2)

    run = MemoryRun(one)
    [scheduled] = run.turns[0].scheduled
    assert (scheduled.ref, scheduled.name, scheduled.input) == (2, "add", b"[1,2]")
    assert scheduled.queue == "default"


def test_a_timer_comes_before_what_follows_it() -> None:
    @workflow.defn
    async def timer_then_activity() -> int:
        await workflow.sleep(50)
        return await add(1, 2)

    run = MemoryRun(timer_then_activity)
    [timer] = run.turns[0].timers
    assert (timer.ref, timer.due_us) == (2, EPOCH_US + 50_000_000)
    turn = run.fire()
    assert [each.ref for each in turn.scheduled] == [4]


def changed(before: Any, after: Any, *facts: Any) -> NonDeterminismError:
    """The mismatch between a history made by ``before`` and the code ``after``."""
    run = MemoryRun(before)
    for fact in facts:
        fact(run)
    with pytest.raises(NonDeterminismError) as caught:
        run.cold(workflow=after)
    return caught.value


def test_a_task_that_newly_cancels_itself_is_found_at_its_next_await() -> None:
    @workflow.defn(name="program")
    async def before() -> int:
        return await add(1, 2) + await add(3, 4)

    @workflow.defn(name="program")
    async def after() -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await add(1, 2)
        return await add(3, 4)

    error = changed(before, after, lambda run: run.complete(value=3))

    assert error.event_id == 3
    assert error.found is not None
    assert "ACTIVITY_CANCEL_REQUESTED" in error.found


def test_a_task_that_cancels_itself_replays_as_it_ran() -> None:
    @workflow.defn
    async def program() -> list[str]:
        seen = []
        for number in range(3):
            task = asyncio.current_task()
            assert task is not None
            task.cancel(f"round {number}")
            try:
                await add(number, 1)
            except asyncio.CancelledError as error:
                seen.append(str(error))
                task.uncancel()
            seen.append(str(await add(number, 2)))
        return seen

    run = MemoryRun(program)
    for number in range(3):
        run.complete(run.turns[-1].scheduled[0].ref, value=number)
    assert run.result == ["round 0", "0", "round 1", "1", "round 2", "2"]
    run.check_replays()


@workflow.defn(name="program")
async def activity_then_timer() -> int:
    value = await add(1, 2)
    await workflow.sleep(50)
    return value


def test_another_activity_name_is_a_mismatch() -> None:
    @workflow.defn(name="program")
    async def renamed() -> int:
        return await other(1, 2)

    error = changed(activity_then_timer, renamed)
    assert error.event_id == 2
    assert "add" in (error.expected or "")
    assert "other" in (error.found or "")


def test_other_arguments_are_a_mismatch() -> None:
    @workflow.defn(name="program")
    async def other_input() -> int:
        return await add(1, 3)

    assert changed(activity_then_timer, other_input).event_id == 2


def test_an_activity_in_the_place_of_a_timer_is_a_mismatch() -> None:
    @workflow.defn(name="program")
    async def reordered() -> int:
        await workflow.sleep(50)
        return await add(1, 2)

    assert changed(activity_then_timer, reordered).event_id == 2


def test_a_timer_of_51_seconds_is_not_one_of_50() -> None:
    @workflow.defn(name="program")
    async def longer() -> int:
        value = await add(1, 2)
        await workflow.sleep(51)
        return value

    error = changed(activity_then_timer, longer, lambda run: run.complete(value=3))
    assert error.event_id == 4


def test_a_command_that_is_no_longer_made_is_a_mismatch_at_the_end_of_history() -> None:
    @workflow.defn(name="program")
    async def fewer() -> int:
        value = await add(1, 2)
        await asyncio.Event().wait()
        return value

    error = changed(activity_then_timer, fewer, lambda run: run.complete(value=3))
    assert error.event_id == 4
    assert error.found is None
    assert "fewer" in (error.source or "")


def test_a_command_added_before_the_end_is_a_mismatch() -> None:
    @workflow.defn(name="program")
    async def more() -> int:
        await asyncio.gather(add(1, 2), add(1, 2))
        return 0

    error = changed(activity_then_timer, more, lambda run: run.complete(value=3))
    assert error.event_id == 3


def test_a_mismatch_cannot_be_caught_by_the_code() -> None:
    @workflow.defn(name="program")
    async def stubborn() -> int:
        try:
            return await other(1, 2)
        except BaseException:
            return 1

    assert changed(activity_then_timer, stubborn).event_id == 2


def test_after_a_mismatch_the_execution_is_dead() -> None:
    @workflow.defn(name="program")
    async def renamed() -> int:
        return await other(1, 2)

    run = MemoryRun(activity_then_timer)
    execution = Execution(renamed, run.new.run_id, "wf")
    with pytest.raises(NonDeterminismError, match=run.new.run_id):
        execution.load(run.batches)
    assert execution.is_dead
    assert execution.take() is None


def test_corrupt_history_is_refused_and_names_the_run() -> None:
    run = MemoryRun(activity_then_timer)
    broken = bytearray(run.batches[1])
    broken[len(broken) // 2] ^= 1
    with pytest.raises(HistoryCorruptError) as caught:
        Execution(activity_then_timer, run.new.run_id, "wf").load([run.batches[0], bytes(broken)])
    assert caught.value.run_id == run.new.run_id


def test_a_missing_last_batch_is_found() -> None:
    run = MemoryRun(activity_then_timer)
    execution = Execution(activity_then_timer, run.new.run_id, "wf")
    with pytest.raises(HistoryCorruptError):
        execution.load(run.batches[:1], run.heads[-1])


def test_an_uncaught_exception_fails_the_run_with_its_type_and_cause() -> None:
    @workflow.defn
    async def failing() -> int:
        try:
            return await add(1, 2)
        except ActivityError as error:
            raise RuntimeError("gave up") from error

    run = MemoryRun(failing)
    turn = run.fail("add", "ValueError", "bad")
    assert turn.closing is not None
    assert turn.closing.state == RunState.FAILED
    assert run.failure["type"] == "RuntimeError"
    assert run.failure["cause"]["type"].endswith("ActivityError")
    assert run.failure["cause"]["cause"]["type"] == "ValueError"
    run.check_replays()


def test_an_activity_error_says_which_activity_and_attempt_and_why() -> None:
    seen: list[ActivityError] = []

    @workflow.defn
    async def watching() -> None:
        try:
            await add(1, 2)
        except ActivityError as error:
            seen.append(error)

    run = MemoryRun(watching)
    run.fail("add", "ValueError", "bad")
    [error] = seen
    assert error.name == "add"
    assert error.attempt == 3
    assert isinstance(error.__cause__, ValueError)
    assert str(error.__cause__) == "bad"


def test_a_result_that_does_not_fit_its_annotation_fails_the_run() -> None:
    @workflow.defn
    async def lying() -> int:
        return "three"  # type: ignore[return-value]

    run = MemoryRun(lying)
    assert run.turns[0].closing is not None
    assert run.failure["type"].endswith(("DecodeError", "EncodeError"))
    assert "lying" in run.failure["message"]


def test_input_that_does_not_fit_is_an_error_of_the_load_and_not_of_the_run() -> None:
    run = MemoryRun(activity_then_timer)

    @workflow.defn(name="program")
    async def needs_more(value: int) -> int:
        return value

    with pytest.raises(DecodeError, match="value"):
        run.cold(1, workflow=needs_more)


def test_results_arrive_in_the_order_of_history() -> None:
    @workflow.defn
    async def racing() -> list[int]:
        order: list[int] = []

        async def one(number: int) -> None:
            order.append(await add(number, 0))

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(one(number))
        return order

    run = MemoryRun(racing)
    refs = [each.ref for each in run.turns[0].scheduled]
    for index in (3, 0, 4, 2, 1):
        run.complete(refs[index], index)
    assert run.result == [3, 0, 4, 2, 1]
    run.check_replays()


def test_what_is_scheduled_and_cancelled_in_one_turn_reaches_nobody() -> None:
    @workflow.defn
    async def fickle() -> str:
        handle = add.start(1, 2)
        timer = asyncio.ensure_future(workflow.sleep(5))
        handle.cancel()
        timer.cancel()
        await asyncio.sleep(60)
        return "done"

    run = MemoryRun(fickle)
    turn = run.turns[0]
    assert turn.scheduled == []
    assert not turn.cancelled_activities
    assert [each.due_us - EPOCH_US for each in turn.timers] == [60_000_000]
    run.fire()
    assert run.result == "done"
    run.check_replays()


def test_a_late_outcome_is_void() -> None:
    @workflow.defn
    async def impatient() -> str:
        try:
            async with asyncio.timeout(5):
                await add(1, 2)
        except TimeoutError:
            await workflow.sleep(1)
            return "late"
        return "in time"

    run = MemoryRun(impatient)
    ref = run.ref("add")
    turn = run.fire()
    assert turn.cancelled_activities == [ref]
    before = len(run.batches)
    run.deliver(EventKind.ACTIVITY_COMPLETED, ref, payload=b"3")
    assert len(run.batches) == before
    run.fire()
    assert run.result == "late"
    run.check_replays()


def test_a_sleep_that_is_over_leaves_no_trace() -> None:
    @workflow.defn
    async def brisk() -> str:
        await workflow.sleep(0)
        await workflow.sleep(-1)
        await workflow.sleep_until(workflow.now())
        await asyncio.sleep(0)
        return "done"

    run = MemoryRun(brisk)
    assert run.result == "done"
    assert run.turns[0].event_count == 1


def test_cancellation_ends_the_run_as_cancelled() -> None:
    @workflow.defn
    async def patient() -> None:
        await workflow.sleep(1000)

    run = MemoryRun(patient)
    turn = run.cancel("not wanted")
    assert turn.closing is not None
    assert turn.closing.state == RunState.CANCELLED
    assert turn.timers_done == [2]
    run.check_replays()


def test_a_cancelled_run_can_clean_up_with_activities() -> None:
    @workflow.defn
    async def tidy() -> str:
        try:
            await workflow.sleep(1000)
        finally:
            await add(0, 0)
        return "never"

    run = MemoryRun(tidy)
    turn = run.cancel()
    assert turn.closing is None
    assert [each.name for each in turn.scheduled] == ["add"]
    turn = run.complete("add", 0)
    assert turn.closing is not None
    assert turn.closing.state == RunState.CANCELLED
    run.check_replays()


def test_a_run_may_decline_to_be_cancelled() -> None:
    @workflow.defn
    async def stubborn() -> str:
        try:
            await workflow.sleep(1000)
        except asyncio.CancelledError:
            return f"no: {workflow.is_cancel_requested()}"
        return "slept"

    run = MemoryRun(stubborn)
    run.cancel()
    assert run.result == "no: True"
    run.check_replays()


def test_a_second_cancel_request_changes_nothing() -> None:
    @workflow.defn
    async def tidy() -> None:
        try:
            await workflow.sleep(1000)
        finally:
            await add(0, 0)

    run = MemoryRun(tidy)
    run.cancel()
    before = len(run.batches)
    run.cancel()
    assert len(run.batches) == before
    run.complete("add", 0)
    run.check_replays()


def test_termination_runs_no_code_and_voids_what_is_pending() -> None:
    ran: list[str] = []

    @workflow.defn
    async def killed() -> None:
        try:
            await add(1, 2)
        finally:
            ran.append("finally")

    run = MemoryRun(killed)
    turn = run.deliver(EventKind.RUN_TERMINATED, payload=b'{"type":"Terminated","message":"x"}')
    assert turn.closing is not None
    assert turn.closing.state == RunState.TERMINATED
    assert turn.cancelled_activities == [2]
    assert ran == []
    assert run.execution.is_finished
    run.check_replays()


def test_nothing_is_started_by_the_turn_that_ends_the_run() -> None:
    @workflow.defn
    async def hasty() -> str:
        add.start(1, 2)
        asyncio.get_running_loop().create_task(workflow.sleep(9))
        await asyncio.sleep(0)
        return "gone"

    run = MemoryRun(hasty)
    turn = run.turns[0]
    assert run.result == "gone"
    assert turn.scheduled == []
    assert not turn.timers
    run.check_replays()


def test_a_finished_run_takes_no_more_facts() -> None:
    @workflow.defn
    async def brief() -> str:
        return "done"

    run = MemoryRun(brief)
    before = len(run.batches)
    run.signal("late", 1)
    run.cancel()
    assert len(run.batches) == before


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_workflow_code_never_completes_the_run(error: type[BaseException]) -> None:
    @workflow.defn
    async def exiting() -> None:
        await add(1, 2)
        raise error

    run = MemoryRun(exiting)
    with pytest.raises(error):
        run.complete("add", 3)
    assert run.execution.is_dead


def test_a_finally_at_eviction_makes_no_commands() -> None:
    @workflow.defn
    async def clinging() -> None:
        try:
            await add(1, 2)
        finally:
            await add(3, 4)

    run = MemoryRun(clinging)
    run.execution.evict()
    assert run.execution.is_dead
    assert run.execution.take() is None
    [pending] = run.cold().pending_activities()
    assert pending.ref == 2


def test_a_query_may_not_make_commands() -> None:
    @workflow.defn
    async def meddled() -> None:
        workflow.on_query("meddle", lambda: str(add(1, 2)))
        workflow.on_query("sleep", lambda: str(workflow.sleep(1)))
        await asyncio.Event().wait()

    run = MemoryRun(meddled)
    with pytest.raises(GuardError, match="only look"):
        run.query("sleep")
    assert not run.execution.is_dead
    with pytest.raises(GuardError, match="only look"):
        run.query("meddle")
    assert run.execution.is_dead


def test_where_names_the_line_that_waits() -> None:
    @workflow.defn
    async def waiting() -> None:
        async def inner() -> None:
            await workflow.sleep(10)

        await asyncio.gather(inner(), add(1, 2))

    run = MemoryRun(waiting)
    main, second = run.execution.where()
    assert main.startswith("main: test_execution.py:")
    assert "waiting" in main
    assert "inner" in second


def test_a_cold_start_knows_what_is_pending() -> None:
    @workflow.defn
    async def busy() -> None:
        await asyncio.gather(add(1, 2), workflow.sleep(5), other(3, 4))

    run = MemoryRun(busy)
    run.complete("add", 3)
    cold = run.cold()
    assert [(each.ref, each.name) for each in cold.pending_activities()] == [(4, "other")]
    assert [each.due_us for each in cold.pending_timers()] == [EPOCH_US + 5_000_000]
    assert cold.bytes_estimate > 0


def test_the_duplicate_of_an_outcome_is_void() -> None:
    run = MemoryRun(activity_then_timer)
    run.complete("add", 3)
    before = len(run.batches)
    run.deliver(EventKind.ACTIVITY_COMPLETED, 2, payload=DEFAULT_CODEC.encode(4))
    assert len(run.batches) == before


def test_the_size_estimate_follows_what_is_pending() -> None:
    @workflow.defn
    async def wide() -> None:
        await asyncio.gather(*(add(number, 0) for number in range(100)))

    run = MemoryRun(wide)
    before = run.execution.bytes_estimate
    cold = run.cold().bytes_estimate
    assert abs(before - cold) < 10_000
    for _ in range(99):
        run.complete("add", 0)
    assert run.execution.bytes_estimate < before
    assert run.execution.pending_count == 1


def test_every_failure_of_a_wide_gather_is_named() -> None:
    @workflow.defn
    async def wide() -> list[str]:
        ended = await asyncio.gather(
            *(add(1, 2) for _ in range(3)), other(3, 4), return_exceptions=True
        )
        return [each.name for each in ended if isinstance(each, ActivityError)]

    run = MemoryRun(wide)
    for ref in (5, 2, 3, 4):
        run.fail(ref)
    assert run.result == ["add", "add", "add", "other"]
    run.check_replays()


def test_an_evicted_execution_is_freed() -> None:
    @workflow.defn
    async def busy() -> None:
        workflow.on_query("q", lambda: 1)
        workflow.on_signal("s", lambda: None)
        await asyncio.gather(
            add(1, 2),
            workflow.sleep(5),
            workflow.wait_signal("x"),
            workflow.wait_condition(lambda: False),
        )

    run = MemoryRun(busy)
    execution = run.cold()
    run._executions.remove(execution)
    execution.query("q")
    freed = weakref.ref(execution)
    execution.evict()
    del execution
    gc.collect()
    assert freed() is None
