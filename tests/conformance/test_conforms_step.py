"""Requirements on activities: results, retries, time limits, heartbeats, cancellation."""

import asyncio
import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from support import heavy

from durable import (
    ActivityError,
    CompleteLater,
    NonRetryable,
    RetryAfter,
    RetryPolicy,
    Worker,
    activity,
    workflow,
)
from durable.errors import (
    ApplicationError,
    ContextError,
    EncodeError,
    InvalidArgumentError,
    WorkflowFailedError,
)
from durable.testing import WorkflowEnvironment

FAST = RetryPolicy(initial_interval=0.01, max_interval=0.02, max_attempts=4)


@dataclass
class Line:
    item: str
    count: int


@dataclass
class Cart:
    lines: list[Line]
    note: str | None = None


@activity.defn
async def double(number: int) -> int:
    return number * 2


async def test_step_01(env: WorkflowEnvironment) -> None:
    """step-1: An activity that succeeds at once gives its result to the workflow."""

    @workflow.defn
    async def flow() -> int:
        return await double(4)

    handle = await env.start(flow)
    assert await handle.result() == 8
    (step,) = (await handle.history()).activities
    assert (step.name, step.args, step.outcome, step.result) == ("double", [4], "completed", 8)


async def test_step_02(env: WorkflowEnvironment) -> None:
    """step-2: A second activity may use the result of the first."""

    @workflow.defn
    async def flow() -> int:
        return await double(await double(3))

    assert await env.execute(flow) == 12


async def test_step_03(env: WorkflowEnvironment) -> None:
    """step-3: A nested object travels both ways as its annotated type."""

    @activity.defn
    async def add_line(cart: Cart, line: Line) -> Cart:
        return Cart([*cart.lines, line], cart.note)

    @workflow.defn
    async def flow() -> Cart:
        cart = await add_line(Cart([], "gift"), Line("tea", 2))
        assert isinstance(cart.lines[0], Line)
        return cart

    assert await env.execute(flow) == Cart([Line("tea", 2)], "gift")


async def test_step_04(env: WorkflowEnvironment) -> None:
    """step-4: None is a result like any other."""

    @activity.defn
    async def nothing() -> None:
        return None

    @workflow.defn
    async def flow() -> str:
        return "none" if await nothing() is None else "something"

    assert await env.execute(flow) == "none"


async def test_step_05(env: WorkflowEnvironment) -> None:
    """step-5: Several arguments, keyword arguments and defaults arrive as in a plain call."""

    @activity.defn
    async def join(left: str, right: str = "b", *, sep: str = "-") -> str:
        return sep.join((left, right))

    @workflow.defn
    async def flow() -> list[str]:
        return [await join("a"), await join("a", "c"), await join("a", sep="+")]

    assert await env.execute(flow) == ["a-b", "a-c", "a+b"]


async def test_step_06(env: WorkflowEnvironment) -> None:
    """step-6: An activity can be called by its name, its result read as a given type."""

    @workflow.defn
    async def flow() -> Line:
        line = await workflow.execute_activity("remote", "tea", result_type=Line)
        assert isinstance(line, Line)
        return line

    env.mock("remote", lambda item: {"item": item, "count": 3})
    assert await env.execute(flow) == Line("tea", 3)


async def test_step_07(env: WorkflowEnvironment) -> None:
    """step-7: A recorded result is never computed again when the run is replayed."""
    mock = env.mock(double, 1)

    @workflow.defn
    async def flow() -> list[int]:
        first = await double(1)
        await asyncio.sleep(0.02)
        return [first, await double(2)]

    assert await env.execute(flow) == [1, 1]
    assert mock.calls == [((1,), {}), ((2,), {})]


async def test_step_08(env: WorkflowEnvironment) -> None:
    """step-8: A recorded failure is raised again in replays; the activity is not run again."""
    mock = env.mock(double, NonRetryable("no"))

    @workflow.defn
    async def flow() -> str:
        try:
            await double(1)
        except ActivityError:
            await asyncio.sleep(0.02)
            return "failed once"
        return "never"

    assert await env.execute(flow) == "failed once"
    assert mock.call_count == 1


async def test_step_09(env: WorkflowEnvironment) -> None:
    """step-9: A failed attempt is tried again, and the run sees only the success."""
    seen: list[int] = []

    @activity.defn(retry=FAST)
    async def third_time() -> int:
        seen.append(activity.info().attempt)
        if len(seen) < 3:
            raise RuntimeError("not yet")
        return len(seen)

    @workflow.defn
    async def flow() -> int:
        return await third_time()

    handle = await env.start(flow)
    assert await handle.result() == 3
    assert seen == [1, 2, 3]
    assert [step.outcome for step in (await handle.history()).activities] == ["completed"]


async def test_step_10(env: WorkflowEnvironment) -> None:
    """step-10: After max_attempts the failure reaches the workflow, with its number and cause."""
    mock = env.mock(double, ValueError("bad number"))

    @workflow.defn
    async def flow() -> str:
        try:
            await double.with_options(retry=FAST)(1)
        except ActivityError as error:
            return (
                f"{error.name} {error.attempt} {type(error.__cause__).__name__} {error.__cause__}"
            )
        return "never"

    assert await env.execute(flow) == "double 4 ValueError bad number"
    assert mock.call_count == 4


async def test_step_11(skipping: WorkflowEnvironment) -> None:
    """step-11: The default retry policy ends: ten attempts."""
    mock = skipping.mock(double, ValueError("always"))

    @workflow.defn
    async def flow() -> int:
        return await double(1)

    with pytest.raises(WorkflowFailedError):
        await skipping.execute(flow)
    assert mock.call_count == 10


async def test_step_12(skipping: WorkflowEnvironment) -> None:
    """step-12: The wait grows by the back-off and stays at max_interval."""
    policy = RetryPolicy(
        initial_interval=10, backoff=3, max_interval=50, max_attempts=5, jitter=False
    )
    skipping.mock(double, ValueError("always"))

    @workflow.defn
    async def flow() -> None:
        await double.with_options(retry=policy)(1)

    begin = skipping.now
    with pytest.raises(WorkflowFailedError):
        await skipping.execute(flow)
    assert skipping.now - begin == timedelta(seconds=10 + 30 + 50 + 50)


async def test_step_13(skipping: WorkflowEnvironment) -> None:
    """step-13: A back-off of 1 waits the same each time."""
    policy = RetryPolicy(initial_interval=7, backoff=1, max_attempts=4, jitter=False)
    skipping.mock(double, ValueError("always"))

    @workflow.defn
    async def flow() -> None:
        await double.with_options(retry=policy)(1)

    begin = skipping.now
    with pytest.raises(WorkflowFailedError):
        await skipping.execute(flow)
    assert skipping.now - begin == timedelta(seconds=21)


@pytest.mark.parametrize("named", [ValueError, "ValueError"], ids=["class", "name"])
async def test_step_14(env: WorkflowEnvironment, named: type[BaseException] | str) -> None:
    """step-14: An error that the policy names, by class or name, is final."""
    mock = env.mock(double, ValueError("bad"))

    @workflow.defn
    async def flow() -> None:
        await double.with_options(retry=RetryPolicy(non_retryable=(named,)))(1)

    with pytest.raises(WorkflowFailedError):
        await env.execute(flow)
    assert mock.call_count == 1


async def test_step_15(env: WorkflowEnvironment) -> None:
    """step-15: An error that the policy does not name is tried again."""
    policy = RetryPolicy(
        initial_interval=0.01, max_interval=0.01, max_attempts=3, non_retryable=(KeyError,)
    )
    mock = env.mock(double, ValueError("bad"))

    @workflow.defn
    async def flow() -> None:
        await double.with_options(retry=policy)(1)

    with pytest.raises(WorkflowFailedError):
        await env.execute(flow)
    assert mock.call_count == 3


async def test_step_16(env: WorkflowEnvironment) -> None:
    """step-16: NonRetryable is final, whatever the policy says."""
    mock = env.mock(double, NonRetryable("stolen card", 7, type="Declined"))

    @workflow.defn
    async def flow() -> list[str]:
        try:
            await double.with_options(retry=RetryPolicy(max_attempts=None))(1)
        except ActivityError as error:
            cause = error.__cause__
            assert isinstance(cause, ApplicationError)
            return [str(cause), str(cause.type), str(cause.details)]
        return []

    assert await env.execute(flow) == ["stolen card", "Declined", "(7,)"]
    assert mock.call_count == 1


async def test_step_17(skipping: WorkflowEnvironment) -> None:
    """step-17: RetryAfter sets the wait before the next attempt."""

    @activity.defn(retry=RetryPolicy(initial_interval=1, max_attempts=2))
    async def busy() -> int:
        if activity.info().attempt == 1:
            raise RetryAfter(1234)
        return activity.info().attempt

    @workflow.defn
    async def flow() -> int:
        return await busy()

    begin = skipping.now
    assert await skipping.execute(flow) == 2
    assert skipping.now - begin == timedelta(seconds=1234)


async def test_step_18(skipping: WorkflowEnvironment) -> None:
    """step-18: An attempt may set its own next try, after a delay or at a time."""

    @activity.defn(retry=RetryPolicy(initial_interval=1, max_attempts=3))
    async def later() -> int:
        attempt = activity.info().attempt
        if attempt == 1:
            activity.override_next_retry(delay=timedelta(hours=1))
        elif attempt == 2:
            activity.override_next_retry(at=begin + timedelta(hours=5))
        else:
            return attempt
        raise RuntimeError("again")

    @workflow.defn
    async def flow() -> int:
        return await later()

    begin = skipping.now
    assert await skipping.execute(flow) == 3
    assert skipping.now - begin == timedelta(hours=5)


async def test_step_19(env: WorkflowEnvironment) -> None:
    """step-19: All attempts of a call share an idempotency key that no other call has."""
    keys: list[str] = []

    @activity.defn(retry=FAST)
    async def charge() -> None:
        keys.append(activity.info().idempotency_key)
        if activity.info().attempt == 1:
            raise RuntimeError("again")

    @workflow.defn
    async def flow() -> None:
        await charge()
        await charge()

    await env.execute(flow)
    assert keys[0] == keys[1] != keys[2] == keys[3]


async def test_step_20(env: WorkflowEnvironment) -> None:
    """step-20: An activity knows its name, its run and its workflow."""

    @activity.defn(name="who.am.i")
    async def who() -> list[str]:
        info = activity.info()
        return [info.name, info.workflow_id, info.run_id, info.workflow_type, info.queue]

    @workflow.defn
    async def flow() -> bool:
        info = workflow.info()
        mine = ["who.am.i", info.workflow_id, info.run_id, info.name, info.queue]
        return await who() == mine

    assert await env.execute(flow) is True


async def test_step_21(env: WorkflowEnvironment) -> None:
    """step-21: A caught failure lets the workflow go on."""
    env.mock(double, NonRetryable("no"))

    @workflow.defn
    async def flow() -> str:
        try:
            await double(1)
        except ActivityError:
            return "plan b"
        return "plan a"

    assert await env.execute(flow) == "plan b"


async def test_step_22(env: WorkflowEnvironment) -> None:
    """step-22: A failure that is not caught fails the run, with the whole chain of causes."""
    env.mock(double, NonRetryable("no"))

    @workflow.defn
    async def flow() -> None:
        await double(1)

    with pytest.raises(WorkflowFailedError) as caught:
        await env.execute(flow)
    assert isinstance(caught.value.__cause__, ActivityError)
    assert isinstance(caught.value.__cause__.__cause__, NonRetryable)


async def test_step_23(env: WorkflowEnvironment) -> None:
    """step-23: An attempt over start_to_close_timeout is stopped and counts as a failed one."""
    attempts: list[int] = []

    @activity.defn(start_to_close_timeout=0.2, retry=FAST)
    async def slow_once() -> str:
        attempts.append(activity.info().attempt)
        if len(attempts) == 1:
            await env.hang()
        return "done"

    @workflow.defn
    async def flow() -> str:
        return await slow_once()

    assert await env.execute(flow) == "done"
    assert attempts == [1, 2]


async def test_step_24(env: WorkflowEnvironment) -> None:
    """step-24: schedule_to_close_timeout bounds all attempts together."""

    @activity.defn(
        schedule_to_close_timeout=0.4,
        retry=RetryPolicy(initial_interval=0.05, max_interval=0.05, max_attempts=None),
    )
    async def never() -> None:
        raise RuntimeError("again")

    @workflow.defn
    async def flow() -> str:
        try:
            await never()
        except ActivityError as error:
            return str(error.attempt > 1)
        return "never"

    assert await env.execute(flow) == "True"


async def test_step_25(env: WorkflowEnvironment) -> None:
    """step-25: Without a heartbeat in time an attempt is given up."""

    @activity.defn(heartbeat_timeout=0.3, retry=RetryPolicy(max_attempts=1))
    async def silent() -> None:
        await env.hang()

    @workflow.defn
    async def flow() -> str:
        try:
            await silent()
        except ActivityError as error:
            return str(error.__cause__)
        return "never"

    assert "heartbeat" in await env.execute(flow)


async def test_step_26(env: WorkflowEnvironment) -> None:
    """step-26: Heartbeats keep an attempt alive beyond heartbeat_timeout."""

    @activity.defn(heartbeat_timeout=1.0, retry=RetryPolicy(max_attempts=1))
    async def busy() -> str:
        for _ in range(5):
            activity.heartbeat()
            await env.sleep(0.3)
        return "done"

    @workflow.defn
    async def flow() -> str:
        return await busy()

    assert await env.execute(flow) == "done"


async def test_step_27(env: WorkflowEnvironment) -> None:
    """step-27: The next attempt gets what the last heartbeat reported."""

    @activity.defn(retry=FAST)
    async def resume() -> list[int]:
        (done,) = activity.info().heartbeat_details or ([],)
        for page in range(len(done), 4):
            done = [*done, page]
            activity.heartbeat(done)
            if page == 1:
                raise RuntimeError("killed half-way")
        return list(done)

    @workflow.defn
    async def flow() -> list[int]:
        return await resume()

    assert await env.execute(flow) == [0, 1, 2, 3]


async def test_step_28(env: WorkflowEnvironment) -> None:
    """step-28: Cancelling an activity reaches its code, and the workflow goes on at once."""
    told = asyncio.Event()
    begun = asyncio.Event()

    @activity.defn
    async def long() -> None:
        begun.set()
        try:
            await env.hang()
        except asyncio.CancelledError:
            told.set()
            raise

    @workflow.defn
    async def flow() -> str:
        work = long.start()
        await workflow.wait_signal("stop")
        work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            return "cancelled"
        return "never"

    handle = await env.start(flow)
    await asyncio.wait_for(begun.wait(), 10)
    await handle.signal("stop")
    assert await handle.result() == "cancelled"
    await asyncio.wait_for(told.wait(), 10)


async def test_step_29(env: WorkflowEnvironment) -> None:
    """step-29: With wait_cancel the workflow waits until the activity has cleaned up."""
    order: list[str] = []
    begun = asyncio.Event()

    @activity.defn(wait_cancel=True)
    async def long() -> None:
        begun.set()
        try:
            await env.hang()
        finally:
            order.append("cleaned up")

    @activity.defn
    async def after() -> None:
        order.append("after")

    @workflow.defn
    async def flow() -> None:
        work = long.start()
        await workflow.wait_signal("stop")
        work.cancel()
        try:
            await work
        except asyncio.CancelledError:
            await after()

    handle = await env.start(flow)
    await asyncio.wait_for(begun.wait(), 10)
    await handle.signal("stop")
    await handle.result()
    assert order == ["cleaned up", "after"]


async def test_step_30(env: WorkflowEnvironment) -> None:
    """step-30: A plain function is an activity like an async one."""

    @activity.defn
    def triple(number: int) -> int:
        return number * 3

    @workflow.defn
    async def flow() -> int:
        return await triple(5)

    assert await env.execute(flow) == 15


async def test_step_31() -> None:
    """step-31: Outside of a workflow an activity is the plain function it was written as."""
    assert await double(21) == 42
    assert not activity.in_activity()
    with pytest.raises(ContextError):
        activity.info()


async def test_step_32(env: WorkflowEnvironment) -> None:
    """step-32: start() schedules without waiting; its handle can be awaited later."""

    @workflow.defn
    async def flow() -> int:
        first, second = double.start(1), double.start(2)
        return await second - await first

    handle = await env.start(flow)
    assert await handle.result() == 2
    kinds = (await handle.history()).kinds
    assert kinds[1:3] == ["ACTIVITY_SCHEDULED", "ACTIVITY_SCHEDULED"]


async def test_step_33(env: WorkflowEnvironment) -> None:
    """step-33: A result that does not fit the annotation is a final failure that says so."""
    calls: list[int] = []

    @activity.defn
    async def liar() -> int:
        calls.append(1)
        return "seven"  # type: ignore[return-value]

    @workflow.defn
    async def flow() -> int:
        return await liar()

    with pytest.raises(WorkflowFailedError, match="liar"):
        await env.execute(flow)
    assert len(calls) == 1


async def test_step_34(env: WorkflowEnvironment) -> None:
    """step-34: Wrong arguments fail at the call, before anything is recorded."""

    @workflow.defn
    async def flow() -> list[str]:
        found = []
        for call in (lambda: double(), lambda: double(1, 2), lambda: double(object())):
            try:
                await call()
            except (InvalidArgumentError, EncodeError) as error:
                found.append(type(error).__name__)
        return found

    handle = await env.start(flow)
    assert await handle.result() == ["InvalidArgumentError", "InvalidArgumentError", "EncodeError"]
    assert not (await handle.history()).activities


async def test_step_35(env: WorkflowEnvironment) -> None:
    """step-35: Options of one call change that call only."""
    mock = env.mock(double, ValueError("bad"))
    once = double.with_options(retry=RetryPolicy(max_attempts=1))

    @workflow.defn
    async def flow() -> list[int]:
        counts = []
        for call in (once, double.with_options(retry=FAST)):
            try:
                await call(1)
            except ActivityError as error:
                counts.append(error.attempt)
        return counts

    assert await env.execute(flow) == [1, 4]
    assert mock.call_count == 5
    assert double.options.retry == RetryPolicy()


async def test_step_36(env: WorkflowEnvironment) -> None:
    """step-36: Forty activities at once all run, and each result goes to its own call."""

    @workflow.defn
    async def flow() -> list[int]:
        return await asyncio.gather(*(double(number) for number in range(40)))

    assert await env.execute(flow) == [2 * number for number in range(40)]


async def test_step_37(postgres: WorkflowEnvironment) -> None:
    """step-37: An activity on a queue that nobody serves fails after schedule_to_start_timeout."""

    @workflow.defn
    async def flow() -> str:
        far = double.with_options(queue="nobody", schedule_to_start_timeout=0.3)
        try:
            await far(1)
        except ActivityError as error:
            return str(error.__cause__)
        return "it ran"

    assert "schedule-to-start" in await postgres.execute(flow)


async def test_step_38(env: WorkflowEnvironment) -> None:
    """step-38: A method of an object can be an activity."""

    class Shop:
        def __init__(self, name: str) -> None:
            self.name = name

        @activity.defn
        async def greet(self, who: str) -> str:
            return f"{self.name} greets {who}"

    shop = Shop("Tea & Co")
    greet = shop.greet

    @workflow.defn
    async def flow() -> str:
        return await greet("Ann")

    assert await env.execute(flow) == "Tea & Co greets Ann"


async def test_step_39(database: Any) -> None:
    """step-39: What a transactional activity writes and its result are committed together, once."""

    @activity.transactional(retry=FAST)
    async def book(conn: Any, cents: int) -> int:
        await conn.execute("INSERT INTO ledger (cents) VALUES (%s)", [cents])
        if activity.info().attempt < 3:
            raise RuntimeError("after the write")
        return cents

    @workflow.defn
    async def flow() -> int:
        return await book(1) + await book(2)

    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as conn:
        await conn.execute("CREATE TABLE ledger (cents integer NOT NULL)")
        async with Worker(database.dsn, workflows=[flow], activities=[book]):
            handle = await database.client.start(flow, id="ledger")
            assert await handle.result(30) == 3
        cursor = await conn.execute("SELECT cents FROM ledger ORDER BY cents")
        assert await cursor.fetchall() == [(1,), (2,)]


async def test_step_40(postgres: WorkflowEnvironment) -> None:
    """step-40: An at-most-once activity that fails is not tried again."""
    attempts: list[int] = []

    @activity.defn(at_most_once=True)
    async def fire() -> None:
        attempts.append(activity.info().attempt)
        raise RuntimeError("misfire")

    @workflow.defn
    async def flow() -> str:
        try:
            await fire()
        except ActivityError as error:
            return str(error.__cause__)
        return "fired"

    assert await postgres.execute(flow) == "misfire"
    assert attempts == [1]


@pytest.mark.parametrize("outcome", ["completed", "failed"])
async def test_step_41(database: Any, outcome: str) -> None:
    """step-41: An activity may be completed, or failed, later and from elsewhere, by its token."""
    tokens: list[str] = []

    @activity.defn(completes_later=True)
    async def ask() -> str:
        tokens.append(activity.info().task_token)
        raise CompleteLater

    @workflow.defn
    async def flow() -> str:
        try:
            return await ask()
        except ActivityError as error:
            return f"failed: {error.__cause__}"

    handle = await database.client.start(flow, id="later")
    async with Worker(database.dsn, workflows=[flow], activities=[ask]):
        while not tokens:
            await asyncio.sleep(0.02)
    async with Worker(database.dsn, workflows=[flow], activities=[ask]):
        if outcome == "completed":
            await database.client.complete_activity(tokens[0], "answered")
            assert await handle.result(30) == "answered"
        else:
            await database.client.fail_activity(tokens[0], ValueError("no"))
            assert await handle.result(30) == "failed: no"
    assert len(tokens) == 1


async def test_step_42(database: Any) -> None:
    """step-42: A plain function that needs the processor can run in a process of its own."""

    @workflow.defn
    async def flow() -> list[int]:
        return await heavy.pid(4)

    async with Worker(database.dsn, workflows=[flow], activities=[heavy.pid]):
        handle = await database.client.start(flow, id="render")
        number, pid = await handle.result(60)
    assert number == 4
    assert pid != os.getpid()


async def test_step_43(database: Any) -> None:
    """step-43: An activity can be run as a job without a workflow around it."""
    async with Worker(database.dsn, activities=[double]):
        handle = await database.client.enqueue(double, 4, id="job-1")
        assert await handle.result(30) == 8
