"""What workflow authors write against, run in memory; every run is replayed from every prefix."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.memory_run import EPOCH_US, MemoryRun

from durable import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    ConfigurationError,
    ContextError,
    DecodeError,
    DefinitionError,
    GuardError,
    MapFailedError,
    NonDeterminismError,
    PayloadTooLargeError,
    RetryPolicy,
    UpdateRejectedError,
    WorkflowNotFoundError,
    activity,
    workflow,
)
from durable.codec import DEFAULT_CODEC, failure_from_payload
from durable.engine.context import child_run_id
from durable.events import EventKind, RunState
from durable.options import PAYLOAD_BYTES_MAX

START = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


@dataclass
class Order:
    item: str
    count: int


@activity.defn
async def double(number: int) -> int:
    return number * 2


@activity.defn(name="book", queue="gpu", start_to_close_timeout=timedelta(seconds=30))
def book_order(order: Order, *, gift: bool = False) -> Order:
    return Order(order.item, order.count + 1 + gift)


# -- definitions ------------------------------------------------------------------------------


async def test_outside_a_workflow_a_call_is_a_plain_call() -> None:
    @workflow.defn
    async def quadruple(number: int) -> int:
        return await double(await double(number))

    assert await quadruple(3) == 12
    assert book_order(Order("tea", 1), gift=True) == Order("tea", 3)


def test_outside_a_workflow_its_functions_say_so() -> None:
    with pytest.raises(ContextError, match="now"):
        workflow.now()
    with pytest.raises(ContextError, match="double"):
        double.start(1)
    with pytest.raises(ContextError, match="info"):
        activity.info()
    assert not workflow.in_workflow()
    assert not activity.in_activity()


def test_a_workflow_must_be_async() -> None:
    with pytest.raises(DefinitionError, match="async def"):

        @workflow.defn  # type: ignore[arg-type]
        def plain() -> int:
            return 1


def test_a_class_needs_one_run_method() -> None:
    with pytest.raises(DefinitionError, match="exactly one"):

        @workflow.defn
        class Empty:
            pass


def test_a_type_that_cannot_come_back_is_refused_when_defined() -> None:
    class Opaque:
        pass

    with pytest.raises(DefinitionError):
        activity.defn(_takes(Opaque))


def _takes(kind: type) -> Any:
    async def takes(value: Any) -> None:
        pass

    takes.__annotations__["value"] = kind
    return takes


def test_wrong_arguments_fail_at_the_call_and_schedule_nothing() -> None:
    @workflow.defn
    async def wrong() -> str:
        try:
            await double(1, 2)  # type: ignore[call-arg]
        except Exception as error:
            return type(error).__name__
        return "accepted"

    run = MemoryRun(wrong)
    assert run.result == "InvalidArgumentError"
    assert run.turns[0].event_count == 1


def test_options_travel_with_the_call() -> None:
    @workflow.defn
    async def ordering() -> Order:
        first = await book_order(Order("tea", 1), gift=True)
        return await book_order.with_options(queue="cpu", priority=3)(first)

    run = MemoryRun(ordering)
    [scheduled] = run.turns[0].scheduled
    assert (scheduled.name, scheduled.queue, scheduled.priority) == ("book", "gpu", 0)
    assert scheduled.options.start_to_close_timeout == 30
    turn = run.complete("book", Order("tea", 3))
    assert (turn.scheduled[0].queue, turn.scheduled[0].priority) == ("cpu", 3)
    run.complete("book", Order("tea", 4))
    assert run.result == {"item": "tea", "count": 4}
    run.check_replays()


def test_an_activity_can_be_called_by_name() -> None:
    @workflow.defn
    async def by_name() -> bool:
        found = await workflow.execute_activity(
            "elsewhere", 1, "two", result_type=Order, queue="far"
        )
        return isinstance(found, Order)

    run = MemoryRun(by_name)
    [scheduled] = run.turns[0].scheduled
    assert (scheduled.name, scheduled.queue, scheduled.input) == ("elsewhere", "far", b'[1,"two"]')
    run.complete("elsewhere", Order("tea", 1))
    assert run.result is True


def test_values_come_back_as_their_annotations_say() -> None:
    seen: list[Any] = []

    @activity.defn
    async def shift(when: datetime) -> datetime:
        return when

    @workflow.defn
    async def typed(order: Order, wait: timedelta) -> None:
        seen.extend([order, wait, await shift(workflow.now() + wait)])

    run = MemoryRun(typed, Order("tea", 2), timedelta(hours=1))
    run.complete("shift", START)
    assert seen == [Order("tea", 2), timedelta(hours=1), START]


# -- facts of the run -------------------------------------------------------------------------


def test_time_moves_with_history_only() -> None:
    @workflow.defn
    async def clocks() -> list[Any]:
        first = workflow.now()
        same = workflow.now()
        await workflow.sleep(timedelta(hours=2))
        return [first == same, workflow.now() - first, workflow.start_time() == first]

    run = MemoryRun(clocks)
    run.fire()
    assert run.result == [True, "PT7200S", True] or run.result[0] is True
    run.check_replays()


def test_info_tells_who_the_run_is() -> None:
    @workflow.defn(version="v3")
    async def who() -> list[Any]:
        info = workflow.info()
        return [info.workflow_id, info.run_id, info.name, info.version, info.attempt, info.queue]

    run = MemoryRun(who, version="v3", queue="q", attempt=2)
    assert run.result == ["wf", run.new.run_id, "who", "v3", 2, "q"]


def test_random_numbers_and_ids_are_the_same_in_every_replay() -> None:
    @workflow.defn
    async def lucky() -> list[Any]:
        values = [workflow.random().random(), str(workflow.uuid4()), str(workflow.uuid7())]
        await double(workflow.random().randrange(1000))
        return values

    run = MemoryRun(lucky)
    run.complete("double", 1)
    run.check_replays()
    number, four, seven = run.result
    assert 0 <= number < 1
    assert uuid.UUID(four).version == 4
    assert uuid.UUID(seven).version == 7
    assert uuid.UUID(seven).int >> 80 == EPOCH_US // 1000
    other = MemoryRun(lucky, run_id=str(uuid.uuid4()))
    other.complete("double", 1)
    assert other.result != run.result


def test_a_side_effect_happens_once() -> None:
    calls: list[int] = []

    @workflow.defn
    async def draws() -> int:
        value = workflow.side_effect(lambda: calls.append(1) or len(calls))
        await double(1)
        return value

    run = MemoryRun(draws)
    run.complete("double", 2)
    run.check_replays()
    assert run.result == 1
    assert calls == [1]


def test_the_logger_is_silent_in_replay(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="durable.workflow")

    @workflow.defn
    async def chatty() -> None:
        workflow.logger.info("before")
        await double(1)
        workflow.logger.info("after")

    run = MemoryRun(chatty)
    run.cold()
    assert [record.message for record in caplog.records] == ["before"]
    assert caplog.records[0].workflow_id == "wf"  # type: ignore[attr-defined]
    run.complete("double", 2)
    run.check_replays()
    assert [record.message for record in caplog.records].count("before") == 1


def test_search_attributes_are_recorded_and_the_status_is_one_of_them() -> None:
    @workflow.defn
    async def visible() -> None:
        workflow.upsert_search_attributes(customer="ada", total=3)
        workflow.set_status("waiting")
        await double(1)
        workflow.upsert_search_attributes(total=None)

    run = MemoryRun(visible)
    assert DEFAULT_CODEC.decode(run.turns[0].search or b"") == {
        "customer": "ada",
        "total": 3,
        "status": "waiting",
    }
    assert run.execution.status == "waiting"
    run.complete("double", 1)
    assert DEFAULT_CODEC.decode(run.turns[1].search or b"") == {
        "customer": "ada",
        "status": "waiting",
    }
    run.check_replays()


# -- signals ----------------------------------------------------------------------------------


def test_early_signals_wait_until_they_are_wanted_in_order() -> None:
    @workflow.defn
    async def later() -> list[Any]:
        await double(1)
        return [await workflow.wait_signal("go", int) for _ in range(3)]

    run = MemoryRun(later)
    for number in (1, 2):
        run.signal("go", number)
    run.complete("double", 2)
    run.signal("go", 3)
    assert run.result == [1, 2, 3]
    run.check_replays()


def test_one_signal_goes_to_one_waiter() -> None:
    @workflow.defn
    async def two() -> list[Any]:
        return list(await asyncio.gather(workflow.wait_signal("go"), workflow.wait_signal("go")))

    run = MemoryRun(two)
    run.signal("go", "a")
    assert not run.execution.is_finished
    run.signal("go", "b")
    assert run.result == ["a", "b"]
    run.check_replays()


def test_a_signal_before_anything_else_is_not_lost() -> None:
    @workflow.defn
    async def quiet() -> Any:
        return await workflow.wait_signal("go")

    run = MemoryRun(quiet)
    run.signal("other", 1)
    run.signal("go")
    assert run.result is None
    run.check_replays()


def test_a_handler_gets_all_signals_the_early_ones_first() -> None:
    @workflow.defn
    async def listening() -> list[int]:
        seen: list[int] = []
        await double(1)
        workflow.on_signal("add", seen.append)
        await workflow.sleep(3)
        return seen

    run = MemoryRun(listening)
    run.signal("add", 1)
    run.complete("double", 1)
    run.signal("add", 2)
    run.signal("add", 3)
    run.fire()
    assert run.result == [1, 2, 3]
    run.check_replays()


def test_a_timeout_on_a_signal_loses_no_signal() -> None:
    @workflow.defn
    async def hasty() -> list[Any]:
        try:
            await workflow.wait_signal("go", int, timeout=5)
        except TimeoutError:
            first = "timeout"
        await workflow.sleep(10)
        return [first, await workflow.wait_signal("go", int)]

    run = MemoryRun(hasty)
    run.fire()
    run.signal("go", 7)
    run.fire()
    assert run.result == ["timeout", 7]
    run.check_replays()


def test_a_receiver_cancelled_with_the_signal_in_hand_puts_it_back() -> None:
    @workflow.defn
    async def dropping() -> list[Any]:
        channel = workflow.signal_channel("go", int)
        first = asyncio.create_task(channel.receive())
        # The handler runs in the turn that hands the signal over, before the receiver does.
        workflow.on_signal("kill", lambda: first.cancel())
        await workflow.wait_signal("kill-now")
        first.cancel()
        return [await channel.receive(), first.cancelled()]

    run = MemoryRun(dropping)
    run.signal("kill-now")
    run.signal("go", 1)
    assert run.result == [1, True]
    run.check_replays()


def test_a_signal_of_the_wrong_type_is_the_receivers_to_handle() -> None:
    @workflow.defn
    async def picky() -> str:
        try:
            await workflow.wait_signal("go", Order)
        except DecodeError:
            return "refused"
        return "taken"

    run = MemoryRun(picky)
    run.signal("go", 5)
    assert run.result == "refused"
    run.check_replays()


def test_a_malformed_signal_to_a_handler_is_dropped_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @workflow.defn
    async def listening() -> list[int]:
        seen: list[int] = []

        def add(number: int) -> None:
            seen.append(number)

        workflow.on_signal("add", add)
        await workflow.wait_condition(lambda: len(seen) == 1)
        return seen

    run = MemoryRun(listening)
    run.signal("add", "many")
    assert "dropped" in caplog.text
    run.signal("add", 1)
    assert run.result == [1]
    run.check_replays()


def test_a_handler_that_raises_fails_the_run() -> None:
    @workflow.defn
    async def fragile() -> None:
        def handle() -> None:
            raise ApplicationError("broken", type="Broken")

        workflow.on_signal("go", handle)
        await workflow.sleep(100)

    run = MemoryRun(fragile)
    turn = run.signal("go")
    assert turn.closing is not None
    assert turn.closing.state == RunState.FAILED
    assert run.failure["message"] == "broken"
    run.check_replays()


def test_a_channel_can_be_iterated() -> None:
    @workflow.defn
    async def summing() -> int:
        total = 0
        async for number in workflow.signal_channel("add", int):
            if number == 0:
                break
            total += await double(number)
        return total

    run = MemoryRun(summing)
    run.signal("add", 2)
    run.signal("add", 0)
    run.complete("double", 4)
    assert run.result == 4
    run.check_replays()


# -- conditions -------------------------------------------------------------------------------


def test_a_condition_is_met_by_whatever_changes_it() -> None:
    @workflow.defn
    async def waiting() -> list[str]:
        log: list[str] = []

        async def worker() -> None:
            await double(1)
            log.append("worked")
            await double(2)
            log.append("again")

        task = asyncio.create_task(worker())
        await workflow.wait_condition(lambda: "worked" in log)
        log.append("seen")
        await task
        return log

    run = MemoryRun(waiting)
    run.complete("double", 2)
    run.complete("double", 4)
    assert run.result == ["worked", "seen", "again"]
    run.check_replays()


def test_a_condition_can_time_out() -> None:
    @workflow.defn
    async def waiting() -> str:
        try:
            await workflow.wait_condition(lambda: False, timeout=timedelta(minutes=1))
        except TimeoutError:
            return "timeout"
        return "true"

    run = MemoryRun(waiting)
    run.fire()
    assert run.result == "timeout"
    run.check_replays()


def test_conditions_are_looked_at_oldest_first_and_again_after_each_wake() -> None:
    @workflow.defn
    async def chain() -> list[int]:
        order: list[int] = []

        async def link(number: int) -> None:
            await workflow.wait_condition(lambda: len(order) >= number)
            order.append(number)

        await asyncio.gather(*(link(number) for number in (2, 1, 0, 0)))
        return order

    run = MemoryRun(chain)
    assert run.result == [0, 0, 2, 1] or sorted(run.result) == [0, 0, 1, 2]
    run.check_replays()


# -- queries and updates ----------------------------------------------------------------------


@workflow.defn
class Cart:
    """A cart that people fill until they check out."""

    def __init__(self) -> None:
        self.items: dict[str, int] = {}
        self.is_closed = False

    @workflow.run
    async def run(self, limit: int) -> dict[str, int]:
        self.limit = limit
        await workflow.wait_condition(lambda: self.is_closed)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self.items

    @workflow.signal
    def checkout(self) -> None:
        self.is_closed = True

    @workflow.signal(name="clear")
    async def empty(self) -> None:
        await double(0)
        self.items.clear()

    @workflow.query
    def count(self, item: str = "") -> int:
        return self.items.get(item, 0) if item else sum(self.items.values())

    @workflow.update
    async def put(self, order: Order) -> int:
        self.items[order.item] = self.items.get(order.item, 0) + await double(order.count)
        return self.items[order.item]

    @put.validator
    def check_put(self, order: Order) -> None:
        if order.count > self.limit:
            raise ValueError("too many")


def test_a_class_takes_signals_queries_and_updates() -> None:
    run = MemoryRun(Cart, 10)
    assert run.update("put", Order("tea", 3), request_id="r1") is None
    turn = run.complete("double", 6)
    [answer] = turn.responses
    assert (answer.request_id, answer.payload, answer.failure) == ("r1", b"6", None)
    assert run.query("count") == 6
    assert run.query("count", "tea") == 6
    run.signal("checkout")
    assert run.result == {"tea": 6}
    run.check_replays()


def test_a_validator_refuses_without_a_trace() -> None:
    run = MemoryRun(Cart, 2)
    before = len(run.batches)
    answer = run.update("put", Order("tea", 3))
    assert answer is not None
    assert answer.failure is not None
    refused = failure_from_payload(answer.failure)
    assert isinstance(refused, UpdateRejectedError)
    assert str(refused) == "update 'put' was refused: ValueError: too many"
    assert isinstance(refused.__cause__, ValueError)
    assert str(refused.__cause__) == "too many"
    assert len(run.batches) == before


def test_a_repeated_update_is_done_once() -> None:
    run = MemoryRun(Cart, 10)
    run.update("put", Order("tea", 3), request_id="r1")
    assert run.update("put", Order("tea", 3), request_id="r1") is None
    assert len(run.execution.pending_activities()) == 1
    assert len(run.cold().pending_activities()) == 1


def test_an_update_that_fails_says_why_and_the_run_goes_on() -> None:
    run = MemoryRun(Cart, 10)
    run.update("put", Order("tea", 3), request_id="r1")
    turn = run.fail("double")
    [answer] = turn.responses
    assert answer.failure is not None
    assert isinstance(failure_from_payload(answer.failure), ActivityError)
    run.signal("checkout")
    assert run.result == {}
    run.check_replays()


def test_the_end_of_the_run_answers_the_updates_that_wait() -> None:
    run = MemoryRun(Cart, 10)
    run.update("put", Order("tea", 3), request_id="r1")
    turn = run.deliver(EventKind.RUN_TERMINATED)
    [answer] = turn.responses
    assert answer.request_id == "r1"
    assert isinstance(failure_from_payload(answer.failure or b""), UpdateRejectedError)


def test_unknown_updates_and_queries_name_those_there_are() -> None:
    run = MemoryRun(Cart, 10)
    answer = run.update("putt", Order("tea", 3))
    assert answer is not None
    assert "put" in DEFAULT_CODEC.decode(answer.failure or b"")["message"]
    with pytest.raises(Exception, match="count"):
        run.query("cuont")


def test_a_closed_run_answers_queries_and_refuses_updates() -> None:
    run = MemoryRun(Cart, 10)
    run.signal("checkout")
    assert run.query("count") == 0
    cold = run.cold()
    assert DEFAULT_CODEC.decode(cold.query("count", b"[]")) == 0
    answer = run.update("put", Order("tea", 3))
    assert answer is not None
    assert answer.failure is not None


def test_queries_that_every_run_answers() -> None:
    @workflow.defn
    async def waiting() -> None:
        workflow.set_vars(step=3)
        await workflow.sleep(10)

    run = MemoryRun(waiting)
    assert run.query("__vars__") == {"step": 3}
    [line] = run.query("__where__")
    assert line.startswith("main: test_workflow_api.py:")


def test_a_signal_handler_may_wait_for_activities() -> None:
    run = MemoryRun(Cart, 10)
    run.update("put", Order("tea", 1))
    run.complete("double", 2)
    run.signal("clear")
    run.signal("checkout")
    assert not run.execution.is_finished
    run.complete("double", 0)
    assert run.result == {}
    run.check_replays()


# -- children and other runs ------------------------------------------------------------------


@workflow.defn
async def child(number: int) -> int:
    return await double(number)


def test_a_child_is_called_like_a_function() -> None:
    @workflow.defn
    async def parent() -> int:
        return await child(4) + 1

    run = MemoryRun(parent)
    [new] = run.turns[0].children
    assert new.workflow_type == "child"
    assert (new.parent_run_id, new.parent_ref) == (run.new.run_id, 2)
    assert new.run_id == child_run_id(run.new.run_id, 2)
    assert new.workflow_id.startswith("wf/2-")
    run.deliver(EventKind.CHILD_STARTED, 2)
    run.deliver(EventKind.CHILD_COMPLETED, 2, payload=b"8")
    assert run.result == 9
    run.check_replays()

    started = MemoryRun(child, new=new)
    assert started.execution.info.parent is not None
    assert started.execution.info.parent.workflow_id == "wf"
    started.complete("double", 8)
    assert started.result == 8


def test_a_child_has_a_handle() -> None:
    @workflow.defn
    async def parent() -> list[Any]:
        handle = workflow.start_child(child, 4, id="mine", queue="far", parent_close="abandon")
        await handle.started()
        await handle.signal("go", 1)
        return [handle.workflow_id, handle.run_id, await handle]

    run = MemoryRun(parent)
    [new] = run.turns[0].children
    assert (new.workflow_id, new.queue) == ("mine", "far")
    turn = run.deliver(EventKind.CHILD_STARTED, 2)
    [message] = turn.messages
    assert (message.kind, message.run_id) == (EventKind.SIGNAL_RECEIVED, new.run_id)
    assert (message.name, message.payload) == ("go", b"[1]")
    run.deliver(EventKind.EXTERNAL_DONE, message.ref)
    run.deliver(EventKind.CHILD_COMPLETED, 2, payload=b"8")
    assert run.result == ["mine", new.run_id, 8]
    run.check_replays()


def test_a_failed_child_is_an_error_with_its_cause() -> None:
    @workflow.defn
    async def parent() -> list[str]:
        try:
            await child(4)
        except ChildWorkflowError as error:
            return [error.name, type(error.__cause__).__name__]
        return []

    run = MemoryRun(parent)
    failure = DEFAULT_CODEC.encode({"type": "ValueError", "message": "no"})
    run.deliver(EventKind.CHILD_FAILED, 2, payload=failure)
    assert run.result == ["child", "ValueError"]
    run.check_replays()


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        ("terminate", EventKind.RUN_TERMINATED),
        ("cancel", EventKind.CANCEL_REQUESTED),
        ("abandon", None),
    ],
)
def test_the_parents_end_does_to_children_what_their_policy_says(
    policy: str, kind: EventKind | None
) -> None:
    @workflow.defn
    async def parent() -> None:
        await workflow.start_child(child, 4, parent_close=policy).started()

    run = MemoryRun(parent)
    turn = run.deliver(EventKind.CHILD_STARTED, 2)
    assert turn.closing is not None
    assert [message.kind for message in turn.messages] == ([] if kind is None else [kind])


def test_cancelling_the_wait_cancels_the_child() -> None:
    @workflow.defn
    async def parent() -> str:
        try:
            async with asyncio.timeout(5):
                await child(4)
        except TimeoutError:
            await workflow.sleep(1)
        return "moved on"

    run = MemoryRun(parent)
    turn = run.fire()
    [message] = turn.messages
    assert message.kind == EventKind.CANCEL_REQUESTED
    assert message.run_id == run.turns[0].children[0].run_id
    run.fire()
    assert run.result == "moved on"
    run.check_replays()


def test_another_run_can_be_signalled_and_may_be_gone() -> None:
    @workflow.defn
    async def telling() -> str:
        await workflow.signal_external("other", "go", 1)
        try:
            await workflow.cancel_external("gone")
        except WorkflowNotFoundError:
            return "gone"
        return "there"

    run = MemoryRun(telling)
    [message] = run.turns[0].messages
    assert (message.workflow_id, message.name, message.payload) == ("other", "go", b"[1]")
    turn = run.deliver(EventKind.EXTERNAL_DONE, message.ref)
    [cancel] = turn.messages
    assert (cancel.kind, cancel.workflow_id) == (EventKind.CANCEL_REQUESTED, "gone")
    run.deliver(EventKind.EXTERNAL_FAILED, cancel.ref)
    assert run.result == "gone"
    run.check_replays()


# -- chains -----------------------------------------------------------------------------------


def test_continue_as_new_takes_unread_signals_along() -> None:
    @workflow.defn
    async def counting(total: int) -> int:
        number = await workflow.wait_signal("add", int)
        if number == 0:
            return total
        await double(number)
        workflow.continue_as_new(total + number)

    run = MemoryRun(counting, 1, parent=None, memo={"by": "ada"})
    run.signal("add", 2)
    run.signal("add", 3)
    turn = run.complete("double", 4)
    assert turn.closing is not None
    assert turn.closing.state == RunState.CONTINUED_AS_NEW
    run.check_replays()
    following = turn.successor
    assert following is not None
    assert following.workflow_id == "wf"
    assert following.run_id != run.new.run_id
    second = MemoryRun(counting, new=following)
    assert second.execution.info.continued_from == run.new.run_id
    assert second.execution.info.memo == {"by": "ada"}
    second.complete("double", 6)
    successor = second.turns[-1].successor
    assert successor is not None
    third = MemoryRun(counting, new=successor)
    third.signal("add", 0)
    assert third.result == 6


def test_a_workflow_with_a_retry_policy_starts_again_when_it_fails() -> None:
    @workflow.defn(retry=RetryPolicy(max_attempts=2, jitter=False))
    async def flaky(number: int) -> int:
        return await double(number)

    run = MemoryRun(flaky, 5)
    turn = run.fail("double")
    assert turn.closing is not None
    assert turn.closing.state == RunState.FAILED
    again = turn.successor
    assert again is not None
    assert again.start_delay_us == 1_000_000
    run.check_replays()
    second = MemoryRun(flaky, new=again)
    assert second.execution.info.attempt == 2
    assert second.turns[0].scheduled[0].input == b"[5]"
    last = second.fail("double")
    assert last.successor is None


# -- versions ---------------------------------------------------------------------------------


@workflow.defn(name="versioned")
async def version_one() -> int:
    return await double(1)


@workflow.defn(name="versioned")
async def version_two() -> int:
    if workflow.patched("better"):
        await workflow.sleep(1)
    return await double(1)


@workflow.defn(name="versioned")
async def version_three() -> int:
    workflow.deprecate_patch("better")
    await workflow.sleep(1)
    return await double(1)


def test_a_patch_keeps_old_runs_on_the_old_path() -> None:
    old = MemoryRun(version_one)
    assert [each.name for each in old.cold(workflow=version_two).pending_activities()] == ["double"]


def test_a_patch_puts_new_runs_on_the_new_path_and_marks_them() -> None:
    new = MemoryRun(version_two)
    assert new.turns[0].timers
    new.fire()
    new.complete("double", 2)
    new.check_replays()
    with pytest.raises(NonDeterminismError):
        new.cold(workflow=version_one)


def test_a_deprecated_patch_replays_marked_and_unmarked_runs() -> None:
    marked = MemoryRun(version_two)
    marked.fire()
    marked.cold(workflow=version_three)
    unmarked = MemoryRun(version_three)
    unmarked.fire()
    unmarked.complete("double", 2)
    unmarked.check_replays()


# -- map --------------------------------------------------------------------------------------


def test_map_bounds_what_is_under_way_and_keeps_the_order() -> None:
    @workflow.defn
    async def mapping() -> list[Any]:
        return list(await workflow.map(double, list(range(5)), max_concurrency=2))

    run = MemoryRun(mapping)
    assert len(run.turns[0].scheduled) == 2
    while run.execution.pending_activities():
        pending = run.execution.pending_activities()
        assert len(pending) <= 2
        last = pending[-1]
        run.complete(last.ref, DEFAULT_CODEC.decode(last.input)[0] * 2)
    assert run.result == [0, 2, 4, 6, 8]
    run.check_replays()


def test_map_tolerates_so_many_failures_and_no_more() -> None:
    @workflow.defn
    async def tolerant(limit: int) -> list[str]:
        results = await workflow.map(double, [1, 2, 3], tolerate=limit)
        return [type(each).__name__ for each in results]

    run = MemoryRun(tolerant, 1)
    run.fail(2)
    run.complete(3, 4)
    run.complete(4, 6)
    assert run.result == ["ActivityError", "int", "int"]
    run.check_replays()

    strict = MemoryRun(tolerant, 0)
    turn = strict.fail(2)
    assert turn.closing is not None
    assert turn.closing.state == RunState.FAILED
    assert turn.cancelled_activities == [3, 4]
    strict.check_replays()


def test_map_stops_when_the_least_number_of_successes_is_out_of_reach() -> None:
    @workflow.defn
    async def enough(items: list[int], least: int) -> str:
        try:
            results = await workflow.map(double, items, max_concurrency=3, min_successful=least)
        except MapFailedError as error:
            counts = (error.succeeded, error.failed, error.needed, error.total)
            return f"{counts} {type(error.__cause__).__name__}: {error}"
        return " ".join(type(each).__name__ for each in results)

    run = MemoryRun(enough, [1, 2, 3], 2)
    run.fail(2)
    run.complete(3, 4)
    run.complete(4, 6)
    assert run.result == "ActivityError int int"
    run.check_replays()

    short = MemoryRun(enough, [1, 2, 3, 4, 5], 4)
    short.complete(2, 2)
    short.fail(3)
    assert not short.turns[-1].cancelled_activities
    turn = short.fail(4)
    assert turn.cancelled_activities == [6, 8]
    assert short.result == (
        "(1, 2, 4, 5) ActivityError: 2 of 5 calls of a map failed, so that 4 cannot succeed any "
        "more; 1 had succeeded when it stopped"
    )
    short.check_replays()

    hopeless = MemoryRun(enough, [1, 2], 3)
    assert not hopeless.turns[0].scheduled
    assert hopeless.result == (
        "(0, 0, 3, 2) NoneType: 3 of the calls of a map must succeed, and it has 2 items only"
    )


@pytest.mark.parametrize(
    ("options", "failures"),
    [
        ({"tolerate": 0.29}, 29),
        ({"tolerate": 0.295}, 29),
        ({"min_successful": 0.71}, 29),
        ({"min_successful": 0.7}, 30),
        ({"min_successful": 0.705}, 29),
        ({"min_successful": 100}, 0),
        ({"min_successful": 0}, 100),
    ],
)
def test_a_share_of_a_map_is_counted_as_it_is_written(
    options: dict[str, Any], failures: int
) -> None:
    async def call(number: int) -> int:
        if number < failing:
            raise ValueError(number)
        return number

    @workflow.defn
    async def flow() -> int:
        results = await workflow.map(call, list(range(100)), **options)
        return sum(isinstance(each, ValueError) for each in results)

    failing = failures
    assert MemoryRun(flow).result == failures
    if failures < 100:
        failing = failures + 1
        closing = MemoryRun(flow).turns[0].closing
        assert closing is not None
        assert closing.state == RunState.FAILED


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"min_successful": 1, "tolerate": 1}, "leave one of them out"),
        ({"min_successful": 1, "tolerate": 0.5}, "leave one of them out"),
        ({"min_successful": -1}, "not -1"),
        ({"min_successful": 1.0}, "not 1.0"),
        ({"min_successful": 0.0}, "not 0.0"),
        ({"min_successful": "2"}, "not '2'"),
    ],
)
def test_map_refuses_counts_of_successes_that_cannot_be_meant(
    options: dict[str, Any], says: str
) -> None:
    @workflow.defn
    async def wrong() -> str:
        try:
            await workflow.map(double, [1], **options)
        except ConfigurationError as error:
            return str(error)
        return "accepted"

    assert says in str(MemoryRun(wrong).result)


def test_map_refuses_a_bound_of_zero() -> None:
    @workflow.defn
    async def wrong() -> str:
        try:
            await workflow.map(double, [1], max_concurrency=0)
        except ConfigurationError:
            return "refused"
        return "accepted"

    assert MemoryRun(wrong).result == "refused"


# -- sagas ------------------------------------------------------------------------------------


@activity.defn
async def move(account: str, cents: int) -> None:
    pass


@workflow.defn
async def transfer(source: str, target: str, cents: int) -> None:
    async with workflow.Saga() as saga:
        await move(source, -cents)
        saga.add(move, source, cents)
        await move("fees", 1)
        saga.add(move, "fees", -1)
        await move(target, cents)


def inputs(run: MemoryRun) -> list[Any]:
    return [DEFAULT_CODEC.decode(each.input)[0] for turn in run.turns for each in turn.scheduled]


def test_a_saga_undoes_in_reverse_what_was_done() -> None:
    run = MemoryRun(transfer, "a", "b", 5)
    run.complete("move")
    run.complete("move")
    run.fail("move")
    run.complete("move")
    turn = run.complete("move")
    assert inputs(run) == ["a", "fees", "b", "fees", "a"]
    assert turn.closing is not None
    assert run.failure["type"].endswith("ActivityError")
    run.check_replays()


def test_a_cancelled_saga_is_undone_too() -> None:
    run = MemoryRun(transfer, "a", "b", 5)
    run.complete("move")
    run.cancel()
    turn = run.complete("move")
    assert inputs(run) == ["a", "fees", "a"]
    assert turn.closing is not None
    assert turn.closing.state == RunState.CANCELLED
    run.check_replays()


def test_a_saga_that_cannot_be_undone_tells_everything() -> None:
    run = MemoryRun(transfer, "a", "b", 5)
    run.complete("move")
    run.fail("move")
    turn = run.fail("move")
    assert turn.closing is not None
    assert run.failure["type"].endswith("ExceptionGroup")
    run.check_replays()


def test_a_saga_that_succeeds_undoes_nothing() -> None:
    run = MemoryRun(transfer, "a", "b", 5)
    for _ in range(3):
        run.complete("move")
    assert run.result is None
    assert inputs(run) == ["a", "fees", "b"]


# -- the guard --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda loop: loop.run_in_executor(None, print),
        lambda loop: loop.call_soon_threadsafe(print),
        lambda loop: loop.add_reader(0, print),
        lambda loop: loop.create_connection(None, "localhost", 1),
        lambda loop: loop.subprocess_exec(None, "true"),
        lambda loop: loop.run_forever(),
    ],
)
def test_what_no_replay_could_repeat_is_refused(call: Any) -> None:
    @workflow.defn
    async def reckless() -> str:
        try:
            call(asyncio.get_running_loop())
        except GuardError as error:
            return str(error)
        return "allowed"

    assert "cannot be replayed" in MemoryRun(reckless).result


def test_the_guard_can_be_switched_off_for_a_block(tmp_path: Path) -> None:
    file = tmp_path / "seed"
    file.write_text("x")

    @workflow.defn
    async def knowing() -> list[Any]:
        try:
            file.read_text()
        except GuardError:
            refused = True
        with workflow.unsafe_allowed():
            return [refused, file.read_text()]

    assert MemoryRun(knowing).result == [True, "x"]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e18, timedelta.max])
def test_what_is_no_duration_is_refused(wrong: Any) -> None:
    @workflow.defn
    async def sleepy() -> str:
        try:
            await workflow.sleep(wrong)
        except ConfigurationError:
            return "refused"
        return "slept"

    assert MemoryRun(sleepy).result == "refused"


def test_the_end_of_a_run_warns_of_handlers_under_way(caplog: pytest.LogCaptureFixture) -> None:
    @workflow.defn
    async def leaving() -> None:
        workflow.on_signal("go", lambda: double(1))
        await workflow.wait_signal("end")

    run = MemoryRun(leaving)
    run.signal("go")
    assert caplog.text == ""
    run.signal("end")
    assert run.execution.is_finished
    assert "all_handlers_finished" in caplog.text
    run.check_replays()


def test_an_update_whose_handler_is_gone_is_a_mismatch() -> None:
    @workflow.defn(name="updated")
    async def before() -> None:
        workflow.on_update("put", double)
        await asyncio.Event().wait()

    @workflow.defn(name="updated")
    async def after() -> None:
        await asyncio.Event().wait()

    run = MemoryRun(before)
    run.update("put", 1)
    with pytest.raises(NonDeterminismError, match="handler"):
        run.cold(workflow=after)


def test_functions_take_updates_and_answer_queries() -> None:
    @workflow.defn
    async def counting() -> int:
        total = 0

        def check(number: int) -> None:
            if number < 0:
                raise ValueError("negative")

        async def put(number: int) -> int:
            nonlocal total
            total += number
            return total

        workflow.on_update("put", put, validator=check)
        workflow.on_query("total", lambda: total)
        await workflow.wait_condition(lambda: total >= 10)
        return total

    run = MemoryRun(counting)
    answer = run.update("put", 4)
    assert answer is not None
    assert answer.payload == b"4"
    refused = run.update("put", -1)
    assert refused is not None
    assert refused.failure is not None
    assert run.query("total") == 4
    run.update("put", 6)
    assert run.result == 10
    run.check_replays()


@pytest.mark.parametrize(
    "call",
    [
        lambda big: workflow.start_activity("name", big),
        lambda big: workflow.start_child("name", big),
        lambda big: book_order(Order(big, 1)),
        lambda big: workflow.side_effect(lambda: big),
        lambda big: workflow.continue_as_new(big, workflow="name"),
        lambda big: workflow.set_status(big),
    ],
)
def test_a_payload_over_the_limit_is_refused_at_the_call(call: Any) -> None:
    @workflow.defn
    async def bulky() -> str:
        try:
            call("x" * (PAYLOAD_BYTES_MAX + 1))
        except PayloadTooLargeError as error:
            return str(error)
        return "accepted"

    run = MemoryRun(bulky)
    assert "over the limit" in run.result
    assert run.turns[0].event_count == 1
