"""Going back, and starting with a message: one test in process, with crashes, and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from durable import activity, workflow
from durable.errors import (
    InvalidArgumentError,
    NonDeterminismError,
    UpdateRejectedError,
    WorkflowAlreadyStartedError,
    WorkflowTerminatedError,
)
from durable.events import RunState
from durable.testing import TestHandle, WorkflowEnvironment
from durable.testing.postgres import PostgresEnvironment


@activity.defn
async def measure(what: str) -> str:
    return what


@workflow.defn
async def survey() -> list[str]:
    token = str(workflow.uuid4())
    width = await measure("width")
    by = await workflow.wait_signal("by", type=str)
    return [token, width, by, await measure("height"), str(workflow.uuid4())]


@workflow.defn
async def both() -> list[Any]:
    await workflow.wait_signal("go")
    done = await asyncio.gather(measure("width"), asyncio.sleep(0.05), measure("depth"))
    await workflow.wait_signal("end")
    return list(done)


@workflow.defn
async def waits() -> str:
    return await workflow.wait_signal("by", type=str)


@workflow.defn
async def parent() -> str:
    return await workflow.start_child(waits, id="child")


@workflow.defn
class Counter:
    def __init__(self) -> None:
        self.total = 0

    @workflow.run
    async def run(self, target: int) -> int:
        await workflow.wait_condition(lambda: self.total >= target)
        return self.total

    @workflow.signal
    def add(self, number: int) -> None:
        self.total += number

    @workflow.update
    async def raise_by(self, number: int) -> int:
        self.total += number
        return self.total

    @raise_by.validator
    def check(self, number: int) -> None:
        if number < 0:
            raise ValueError("only up")


def plot(version: str, first: str = "width", last: str | None = None) -> Any:
    """A version of a pinned workflow."""

    @workflow.defn(name="plot", version=version, pinned=True)
    async def run() -> list[str]:
        done = [await measure(first)]
        done.append(await workflow.wait_signal("by", type=str))
        if last is not None:
            done.append(await measure(last))
        return done

    return run


OLD, NEW, OTHER = plot("1"), plot("2", last="height"), plot("3", "depth")


@pytest.fixture(params=["process", "crashing", "postgres", "postgres-crashing"])
async def env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    crash, known = "crashing" in request.param, [OLD, NEW, OTHER, survey, both, parent, Counter]
    if request.param.startswith("postgres"):
        dsn: str = request.getfixturevalue("dsn")
        async with PostgresEnvironment(dsn, workflows=known, crash_at_every_event=crash) as made:
            yield made
    else:
        async with WorkflowEnvironment(workflows=known, crash_at_every_event=crash) as made:
            yield made


async def until(
    env: WorkflowEnvironment, handle: TestHandle[Any], kind: str, count: int = 1
) -> int:
    """The id of the event of that kind, when there are so many."""
    async with asyncio.timeout(30):
        while True:
            found = [each.id for each in await handle.history() if each.kind.name == kind]
            if len(found) >= count:
                return found[count - 1]
            await env.advance(0.02)


async def test_a_closed_run_goes_on_before_an_activity(env: WorkflowEnvironment) -> None:
    mock = env.mock(measure, lambda what: f"{what} {len(mock.calls)}")
    handle = await env.start(survey, id="a")
    await handle.signal("by", "Ann")
    before = await handle.result()

    plan = await handle.plan_reset(before_activity="measure")
    again = await handle.reset(before_activity="measure")
    after = await again.result()

    assert plan.signals == ()
    assert after == [*before[:3], "height 3", before[4]]
    assert await handle.result() == before
    assert await env.get_handle("a").result() == after


async def test_an_open_run_is_ended_and_its_signals_are_sent_again(
    env: WorkflowEnvironment,
) -> None:
    handle = await env.start(survey, id="a")
    done = await until(env, handle, "ACTIVITY_COMPLETED")
    await handle.signal("note", "rain")
    await until(env, handle, "SIGNAL_RECEIVED")

    again = await handle.reset(to_event=done, reason="try that again")

    with pytest.raises(WorkflowTerminatedError, match="try that again") as ended:
        await handle.result()
    assert ended.value.failure["type"] == "Reset"
    await until(env, again, "SIGNAL_RECEIVED")
    await again.signal("by", "Ben")
    assert (await again.result())[2] == "Ben"


async def test_a_paused_run_is_reset_with_what_waits_for_it(env: WorkflowEnvironment) -> None:
    handle = await env.start(survey, id="a")
    done = await until(env, handle, "ACTIVITY_COMPLETED")
    await handle.pause()
    await handle.signal("by", "Ann")

    again = await handle.reset(to_event=done)

    assert (await again.result())[2] == "Ann"


async def test_a_fork_leaves_the_run_as_it_is(env: WorkflowEnvironment) -> None:
    handle = await env.start(survey, id="a")
    done = await until(env, handle, "ACTIVITY_COMPLETED")
    copied = await handle.fork("b", to_event=done)
    await copied.signal("by", "Ben")
    await handle.signal("by", "Ann")

    first, second = await handle.result(), await copied.result()

    assert first[:2] == second[:2]
    assert [first[2], second[2]] == ["Ann", "Ben"]
    with pytest.raises(WorkflowAlreadyStartedError):
        await handle.fork("b", to_event=done)
    with pytest.raises(InvalidArgumentError, match="an id of its own"):
        await handle.fork("a", to_event=done)


async def test_what_was_open_at_the_point_begins_again(env: WorkflowEnvironment) -> None:
    mock = env.mock(measure, lambda what: what)
    handle = await env.start(both, id="a")
    await handle.signal("go")
    done = await until(env, handle, "ACTIVITY_COMPLETED")
    await until(env, handle, "ACTIVITY_COMPLETED", 2)
    await until(env, handle, "TIMER_FIRED")
    asked = len(mock.calls)

    plan = await handle.plan_reset(to_event=done)
    copied = await handle.fork("b", to_event=done)
    await copied.signal("end")

    assert plan.activities == ("measure",)
    assert await copied.result() == ["width", None, "depth"]
    assert len(mock.calls) == asked + 1


async def test_a_run_moves_to_another_version_that_fits(env: WorkflowEnvironment) -> None:
    handle = await env.start(OLD, id="a")
    await until(env, handle, "ACTIVITY_COMPLETED")

    with pytest.raises(NonDeterminismError):
        await handle.reset(workflow=OTHER)
    moved = await handle.reset(workflow=NEW)
    await moved.signal("by", "Ann")

    assert await moved.result() == ["width", "Ann", "height"]


async def test_points_that_cannot_be_are_refused(env: WorkflowEnvironment) -> None:
    handle = await env.start(parent, id="a")
    started = await until(env, handle, "CHILD_STARTED")
    with pytest.raises(InvalidArgumentError, match="CHILD_INITIATED waits"):
        await handle.reset(to_event=started)
    with pytest.raises(InvalidArgumentError, match="give one of"):
        await handle.plan_reset()
    assert await handle.state() == RunState.RUNNING


async def test_children_of_a_run_that_is_reset_end_with_it(env: WorkflowEnvironment) -> None:
    handle = await env.start(parent, id="a")
    await until(env, handle, "CHILD_STARTED")
    child = env.get_handle("child")

    await handle.reset(to_event=1)

    with pytest.raises(WorkflowTerminatedError):
        await child.result()


async def test_an_update_starts_the_run_that_it_is_for(env: WorkflowEnvironment) -> None:
    call: dict[str, Any] = {"id": "a", "update": Counter.raise_by}
    assert await env.update_with_start(Counter, 5, update_args=(2,), **call) == 2
    assert await env.update_with_start(Counter, 9, update_args=(1,), **call) == 3
    with pytest.raises(UpdateRejectedError):
        await env.update_with_start(Counter, 5, update_args=(-1,), **call)
    assert await env.update_with_start(Counter, 5, update_args=(2,), **call) == 5
    assert await env.get_handle("a").result() == 5
    with pytest.raises(WorkflowAlreadyStartedError):
        await env.update_with_start(Counter, 5, update_args=(1,), **call)


async def test_a_memo_is_read_from_outside(env: WorkflowEnvironment) -> None:
    handle = await env.start(survey, id="a", memo={"who": "Ann"}, start_delay=timedelta(0))
    assert await handle.memo() == {"who": "Ann"}


async def test_many_are_started_and_signalled_in_one_call(env: WorkflowEnvironment) -> None:
    first, taken, second = await env.start_many(
        survey, [("a", ()), ("a", ()), ("b", (), {"memo": {"who": "Ann"}})]
    )
    assert isinstance(taken, WorkflowAlreadyStartedError)
    assert isinstance(first, TestHandle)
    assert isinstance(second, TestHandle)
    assert await second.memo() == {"who": "Ann"}

    told = await env.signal_many("by", [("a", ["Ann"]), ("nobody", ["x"]), ("b", ["Ben"])])

    assert told == [True, False, True]
    assert [(await first.result())[2], (await second.result())[2]] == ["Ann", "Ben"]
