"""The in-process environment: what a test of a workflow may rely on."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from durable import activity, workflow
from durable.errors import (
    ActivityError,
    ChildWorkflowError,
    InvalidArgumentError,
    NonRetryable,
    UpdateRejectedError,
    WorkflowAlreadyStartedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durable.options import RetryPolicy
from durable.testing import StuckError, WorkflowEnvironment, waiting


@dataclass
class Order:
    item: str
    cents: int


@dataclass
class Receipt:
    order: Order
    at: datetime


@activity.defn(retry=RetryPolicy(max_attempts=3, initial_interval=10, backoff=2))
async def charge(order: Order) -> Receipt:
    return Receipt(order, datetime(2026, 1, 1, tzinfo=UTC))


@activity.defn
def sync_double(number: int) -> int:
    return number * 2


@workflow.defn
async def buy(order: Order) -> Receipt:
    workflow.set_vars(item=order.item)
    await asyncio.sleep(3600)
    return await charge(order)


@workflow.defn
async def wait_for_go(name: str = "go") -> int:
    total = 0
    while (number := await workflow.wait_signal(name, int)) != 0:
        total += number
        workflow.set_vars(total=total)
    return total


@workflow.defn
class Basket:
    def __init__(self) -> None:
        self.items: list[str] = []
        self.is_closed = False

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: self.is_closed)
        return self.items

    @workflow.signal
    def add(self, item: str) -> None:
        self.items.append(item)

    @workflow.update
    async def put(self, item: str) -> int:
        await asyncio.sleep(60)
        self.items.append(item)
        return len(self.items)

    @put.validator
    def check(self, item: str) -> None:
        if not item:
            raise ValueError("an item has a name")

    @workflow.query
    def size(self) -> int:
        return len(self.items)

    @workflow.signal
    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(params=[False, True], ids=["plain", "crashing"])
async def env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    async with WorkflowEnvironment(crash_at_every_event=request.param, patience=0.5) as made:
        yield made


ORDER = Order("tea", 350)


async def test_result_is_what_the_annotation_says(env: WorkflowEnvironment) -> None:
    receipt = await env.execute(buy, ORDER)

    assert receipt == Receipt(ORDER, datetime(2026, 1, 1, tzinfo=UTC))


async def test_time_jumps_over_a_sleep(env: WorkflowEnvironment) -> None:
    begin = env.now

    await env.execute(buy, ORDER)

    assert env.now - begin == timedelta(hours=1)


async def test_time_stands_still_while_nobody_waits(env: WorkflowEnvironment) -> None:
    begin = env.now
    handle = await env.start(buy, ORDER)

    assert await handle.vars() == {"item": "tea"}
    assert env.now == begin


async def test_advance_stops_where_it_was_told(env: WorkflowEnvironment) -> None:
    begin = env.now
    handle = await env.start(buy, ORDER)

    await env.advance(timedelta(minutes=59))
    assert [step.outcome for step in (await handle.history()).timers] == [None]

    await env.advance(timedelta(minutes=2))
    assert [step.outcome for step in (await handle.history()).timers] == ["fired"]
    assert env.now - begin == timedelta(minutes=61)


async def test_history_tells_activities_and_timers(env: WorkflowEnvironment) -> None:
    handle = await env.start(buy, ORDER)
    await handle.result()

    history = await handle.history()

    (step,) = history.activities
    assert (step.name, step.args, step.outcome) == (
        "charge",
        [{"item": "tea", "cents": 350}],
        "completed",
    )
    assert step.result["order"]["item"] == "tea"
    (timer,) = history.timers
    assert timer.outcome == "fired"
    assert history.kinds[0] == "RUN_STARTED"
    assert history.kinds[-1] == "RUN_COMPLETED"


async def test_mocked_value_is_returned(env: WorkflowEnvironment) -> None:
    mock = env.mock(charge, Receipt(ORDER, datetime(2027, 1, 1, tzinfo=UTC)))

    receipt = await env.execute(buy, ORDER)

    assert receipt.at.year == 2027
    assert mock.calls == [((ORDER,), {})]


async def test_mocked_function_gets_typed_arguments(env: WorkflowEnvironment) -> None:
    def fake(order: Order) -> Receipt:
        assert isinstance(order, Order)
        return Receipt(order, env.now)

    env.mock("charge", fake)

    assert (await env.execute(buy, ORDER)).order == ORDER


async def test_mocked_value_of_the_wrong_type_is_refused(env: WorkflowEnvironment) -> None:
    with pytest.raises(InvalidArgumentError, match="Receipt"):
        env.mock(charge, "receipt-7")


async def test_mocked_function_with_other_parameters_is_refused(env: WorkflowEnvironment) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot take its arguments"):
        env.mock(charge, lambda order, card: None)


async def test_mocked_function_with_a_wrong_result_fails_the_call(env: WorkflowEnvironment) -> None:
    mock = env.mock(charge, lambda order: 3)

    with pytest.raises(WorkflowFailedError) as caught:
        await env.execute(buy, ORDER)

    assert "Receipt" in str(caught.value)
    assert mock.call_count == 1


async def test_retries_follow_the_policy_and_cost_no_time(env: WorkflowEnvironment) -> None:
    begin = env.now
    mock = env.mock(charge, RuntimeError("no money"))

    with pytest.raises(WorkflowFailedError) as caught:
        await env.execute(buy, ORDER)

    assert isinstance(caught.value.__cause__, ActivityError)
    assert mock.call_count == 3
    assert env.now - begin == timedelta(seconds=3600 + 10 + 20)


async def test_final_failure_is_not_tried_again(env: WorkflowEnvironment) -> None:
    mock = env.mock(charge, NonRetryable("stolen card"))

    with pytest.raises(WorkflowFailedError):
        await env.execute(buy, ORDER)

    assert mock.call_count == 1


async def test_hanging_activity_runs_into_its_time_limit(env: WorkflowEnvironment) -> None:
    @activity.defn(start_to_close_timeout=30, retry=RetryPolicy(max_attempts=2, initial_interval=5))
    async def slow() -> None:
        await env.hang()

    @workflow.defn
    async def caller() -> str:
        try:
            await slow()
        except ActivityError as error:
            return str(error.__cause__)
        return "done"

    begin = env.now

    assert "start-to-close" in await env.execute(caller)
    assert env.now - begin == timedelta(seconds=30 + 5 + 30)


async def test_advance_overtakes_a_busy_activity(env: WorkflowEnvironment) -> None:
    gate = asyncio.Event()

    @activity.defn(start_to_close_timeout=30, retry=RetryPolicy(max_attempts=1))
    async def blocked() -> None:
        await gate.wait()

    @workflow.defn
    async def caller() -> None:
        await blocked()

    handle = await env.start(caller)
    await env.advance(31)

    with pytest.raises(WorkflowFailedError, match="start-to-close"):
        await handle.result()


async def test_sync_activity_runs(env: WorkflowEnvironment) -> None:
    @workflow.defn
    async def doubled(number: int) -> int:
        return await sync_double(number)

    assert await env.execute(doubled, 4) == 8


async def test_sync_activity_runs_on_a_thread_when_asked() -> None:
    @workflow.defn
    async def doubled(number: int) -> int:
        return await sync_double(number)

    async with WorkflowEnvironment(threads=True) as env:
        assert await env.execute(doubled, 4) == 8


async def test_attempt_knows_its_number(env: WorkflowEnvironment) -> None:
    @activity.defn(retry=RetryPolicy(max_attempts=5))
    async def third_time() -> int:
        if activity.info().attempt < 3:
            activity.heartbeat(activity.info().attempt)
            raise RuntimeError("again")
        assert activity.info().heartbeat_details == (2,)
        return activity.info().attempt

    @workflow.defn
    async def caller() -> int:
        return await third_time()

    assert await env.execute(caller) == 3


async def test_signals_arrive_in_order(env: WorkflowEnvironment) -> None:
    handle = await env.start(wait_for_go)

    await handle.signal("go", 2)
    await handle.signal("go", 3)
    assert await handle.vars() == {"total": 5}
    await handle.signal("go", 0)

    assert await handle.result() == 5
    assert (await handle.history()).signals == [("go", [2]), ("go", [3]), ("go", [0])]


async def test_handlers_of_a_class(env: WorkflowEnvironment) -> None:
    handle = await env.start(Basket)

    await handle.signal("add", "tea")
    assert await handle.query("size") == 1
    assert await handle.update("put", "milk") == 2
    with pytest.raises(UpdateRejectedError):
        await handle.update("nothing")
    with pytest.raises(UpdateRejectedError, match="an item has a name"):
        await handle.update("put", "")
    await handle.signal("close")

    assert await handle.result() == ["tea", "milk"]


async def test_cancelled_run_cleans_up_first(env: WorkflowEnvironment) -> None:
    done: list[int] = []

    @activity.defn
    async def clean_up(number: int) -> None:
        done.append(number)

    @workflow.defn
    async def careful() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await clean_up(7)

    handle = await env.start(careful)
    await handle.cancel("enough")

    with pytest.raises(WorkflowCancelledError):
        await handle.result()
    assert done == [7]


async def test_terminated_run_does_nothing_more(env: WorkflowEnvironment) -> None:
    handle = await env.start(buy, ORDER)
    mock = env.mock(charge, RuntimeError())
    await handle.terminate("ordered twice")

    with pytest.raises(WorkflowTerminatedError, match="ordered twice"):
        await handle.result()
    assert mock.call_count == 0
    with pytest.raises(WorkflowNotFoundError):
        await handle.signal("go")


async def test_run_over_its_time_ends(env: WorkflowEnvironment) -> None:
    handle = await env.start(buy, ORDER, run_timeout=timedelta(minutes=5))

    with pytest.raises(WorkflowTimedOutError):
        await handle.result()


@workflow.defn
async def naps(times: list[float]) -> str:
    await workflow.sleep(times[0])
    if times[1:]:
        workflow.continue_as_new(times[1:])
    return "rested"


async def test_execution_over_its_time_ends_whatever_its_runs_do(env: WorkflowEnvironment) -> None:
    begin = env.now
    handle = await env.start(naps, [60.0] * 10, execution_timeout=timedelta(minutes=5))

    with pytest.raises(WorkflowTimedOutError, match="whole execution"):
        await handle.result()
    assert env.now - begin == timedelta(minutes=5)


async def test_every_run_of_a_chain_has_the_same_time(env: WorkflowEnvironment) -> None:
    limit = timedelta(minutes=5)
    handle = await env.start(naps, [60.0] * 10, run_timeout=limit)
    assert await handle.result() == "rested"

    handle = await env.start(naps, [60.0, 600.0], run_timeout=limit)
    with pytest.raises(WorkflowTimedOutError, match="of the run"):
        await handle.result()


async def test_delayed_start_begins_later_and_keeps_its_mail(env: WorkflowEnvironment) -> None:
    begin = env.now
    handle = await env.start(wait_for_go, start_delay=timedelta(days=1))
    await handle.signal("go", 4)
    await handle.signal("go", 0)

    assert await handle.result() == 4
    assert env.now - begin == timedelta(days=1)


async def test_taken_id_is_refused(env: WorkflowEnvironment) -> None:
    await env.start(buy, ORDER, id="one")

    with pytest.raises(WorkflowAlreadyStartedError):
        await env.start(buy, ORDER, id="one")


async def test_children_run_and_fail(env: WorkflowEnvironment) -> None:
    @workflow.defn
    async def child(number: int) -> int:
        await asyncio.sleep(60)
        if number == 3:
            raise ValueError("three")
        return number * 10

    @workflow.defn
    async def parent() -> list[str]:
        results = await asyncio.gather(*(child(n) for n in (1, 2, 3)), return_exceptions=True)
        return [str(each) if isinstance(each, int) else type(each).__name__ for each in results]

    handle = await env.start(parent, id="family")

    assert await handle.result() == ["10", "20", ChildWorkflowError.__name__]
    assert [step.outcome for step in (await handle.history()).children] == [
        "completed",
        "completed",
        "failed",
    ]


async def test_runs_signal_each_other(env: WorkflowEnvironment) -> None:
    @workflow.defn
    async def teller(target: str) -> str:
        await workflow.signal_external(target, "go", 5)
        await workflow.signal_external(target, "go", 0)
        try:
            await workflow.signal_external("nobody", "go", 1)
        except WorkflowNotFoundError:
            return "told"
        return "nobody heard"

    listener = await env.start(wait_for_go, id="listener")

    assert await env.execute(teller, "listener") == "told"
    assert await listener.result() == 5


async def test_continue_as_new_is_followed(env: WorkflowEnvironment) -> None:
    @workflow.defn
    async def count_down(number: int) -> str:
        await asyncio.sleep(1)
        if number == 0:
            return "lift-off"
        workflow.continue_as_new(number - 1)

    handle = await env.start(count_down, 3)

    assert await handle.result() == "lift-off"
    assert len(await handle.histories()) == 4


async def test_endless_wait_is_told_and_where() -> None:
    async with WorkflowEnvironment(patience=0.01) as env:
        handle = await env.start(wait_for_go)

        with pytest.raises(StuckError, match="wait_for_go"):
            await handle.result()


async def test_wrong_arguments_are_refused_at_the_start(env: WorkflowEnvironment) -> None:
    with pytest.raises(InvalidArgumentError):
        await env.execute(buy)  # type: ignore[call-overload]


async def test_same_seed_gives_the_same_ids_and_draws() -> None:
    @workflow.defn
    async def draw() -> str:
        return f"{workflow.uuid4()} {workflow.random().random()}"

    async def once(seed: int) -> str:
        async with WorkflowEnvironment(seed=seed) as env:
            return await env.execute(draw)

    assert await once(1) == await once(1)
    assert await once(1) != await once(2)


async def test_unknown_activity_says_what_to_do(env: WorkflowEnvironment) -> None:
    @workflow.defn
    async def by_name() -> None:
        await workflow.execute_activity("missing", 1)

    with pytest.raises(Exception, match=r"env\.mock"):
        await env.execute(by_name)


async def test_activity_by_name_can_be_mocked(env: WorkflowEnvironment) -> None:
    @workflow.defn
    async def by_name() -> int:
        return int(await workflow.execute_activity("remote", 20))

    env.mock("remote", lambda number: number + 1)

    assert await env.execute(by_name) == 21


async def test_mock_by_name_is_held_to_the_real_result(env: WorkflowEnvironment) -> None:
    env.mock("charge", lambda order: 3)

    with pytest.raises(WorkflowFailedError, match="Receipt"):
        await env.execute(buy, ORDER)


async def test_thousand_activities_at_once_all_run(env: WorkflowEnvironment) -> None:
    @workflow.defn
    async def spread(count: int) -> int:
        return sum(await asyncio.gather(*(sync_double(n) for n in range(count))))

    count = 100 if env.crashes else 1000

    assert await env.execute(spread, count) == count * (count - 1)


async def test_cancelled_activity_hears_of_it(env: WorkflowEnvironment) -> None:
    heard: list[str] = []

    @activity.defn
    async def patient() -> None:
        try:
            await env.hang()
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    @workflow.defn
    async def impatient() -> str:
        try:
            await asyncio.wait_for(patient(), 60)
        except TimeoutError:
            await asyncio.sleep(1)
            return "late"
        return "in time"

    assert await env.execute(impatient) == "late"
    assert heard == ["cancelled"]


async def test_loop_without_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "TURNS_MAX", 1000)

    @workflow.defn
    async def for_ever() -> None:
        while True:
            await asyncio.sleep(1)

    async with WorkflowEnvironment() as env:
        with pytest.raises(StuckError, match="goes on and on"):
            await env.execute(for_ever)


async def test_retried_workflow_starts_again(env: WorkflowEnvironment) -> None:
    @workflow.defn(retry=RetryPolicy(max_attempts=3, initial_interval=60))
    async def third_time() -> int:
        if workflow.info().attempt < 3:
            raise RuntimeError("again")
        return workflow.info().attempt

    begin = env.now

    assert await env.execute(third_time) == 3
    assert env.now > begin


async def test_child_of_a_closed_parent_is_terminated(env: WorkflowEnvironment) -> None:
    @workflow.defn
    async def sleeper() -> None:
        await asyncio.sleep(3600)

    @workflow.defn
    async def parent() -> None:
        workflow.start_child(sleeper, id="child")
        await asyncio.sleep(1)

    await env.execute(parent)

    with pytest.raises(WorkflowTerminatedError):
        await env.get_handle("child").result()


async def test_parked_child_is_named_to_who_waits_for_it(env: WorkflowEnvironment) -> None:
    @workflow.defn
    async def lost() -> None:
        await workflow.execute_activity("missing")

    @workflow.defn
    async def parent() -> None:
        await workflow.start_child(lost, id="lost-1")

    with pytest.raises(StuckError, match=r"'lost-1' is parked: no activity is called 'missing'"):
        await env.execute(parent)


async def test_an_activity_cancelled_before_it_began_is_answered() -> None:
    began: list[str] = []

    @activity.defn(wait_cancel=True)
    async def late() -> None:
        began.append("late")

    @workflow.defn
    async def changes_its_mind() -> str:
        handle = late.start()
        handle.cancel()
        try:
            await handle
        except (ActivityError, asyncio.CancelledError) as error:
            return type(error).__name__
        return "done"

    async with WorkflowEnvironment(activities=[late]) as env:
        assert await env.execute(changes_its_mind) in ("ActivityError", "CancelledError")
    assert began == []
