"""Requirements on changing code that has histories: mismatches and patches.

Each test records a run of the old code and replays its history against the new one.
"""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import pytest

from durable import (
    DefinitionError,
    NonDeterminismError,
    UnknownWorkflowError,
    Worker,
    activity,
    workflow,
)
from durable.events import RunState
from durable.options import WorkerOptions
from durable.testing import History, Replayer, WorkflowEnvironment

Body = Callable[[], Awaitable[Any]]


@activity.defn
async def reserve(item: str) -> str:
    return f"reserved {item}"


@activity.defn
async def charge(cents: int) -> str:
    return f"charged {cents}"


@activity.defn
async def ship(item: str) -> str:
    return f"shipped {item}"


NUMBERS = count(1)


def order(body: Body, name: str) -> Any:
    """A workflow of that name that does what ``body`` does."""

    @workflow.defn(name=name)
    async def flow() -> Any:
        return await body()

    return flow


async def record(env: WorkflowEnvironment, body: Body) -> History:
    """The history of a finished run of ``body``."""
    handle = await env.start(order(body, f"order-{next(NUMBERS)}"))
    await handle.result()
    return await handle.history()


def mismatch(body: Body, history: History) -> NonDeterminismError:
    """How ``body`` parts from ``history``; fails when it does not."""
    found = Replayer([order(body, history.recorded.workflow_type)]).mismatch(history)
    assert found is not None, "it replays"
    return found


def replays(body: Body, history: History) -> bool:
    """Whether ``body`` does what ``history`` says."""
    return Replayer([order(body, history.recorded.workflow_type)]).mismatch(history) is None


async def two_steps() -> None:
    await reserve("tea")
    await charge(350)


async def test_version_01(env: WorkflowEnvironment) -> None:
    """version-1: Unchanged code replays its history."""
    assert replays(two_steps, await record(env, two_steps))


async def test_version_02(env: WorkflowEnvironment) -> None:
    """version-2: An added step is a mismatch, wherever it is added."""
    history = await record(env, two_steps)

    async def before() -> None:
        await ship("tea")
        await two_steps()

    async def between() -> None:
        await reserve("tea")
        await ship("tea")
        await charge(350)

    async def after() -> None:
        await two_steps()
        await ship("tea")

    for changed in (before, between, after):
        assert "ship" in str(mismatch(changed, history).found)


async def test_version_03(env: WorkflowEnvironment) -> None:
    """version-3: A removed step is a mismatch, also when it was the last."""
    history = await record(env, two_steps)

    async def without_first() -> None:
        await charge(350)

    async def without_last() -> None:
        await reserve("tea")

    async def without_any() -> None:
        return None

    assert "reserve" in str(mismatch(without_first, history).expected)
    assert "charge" in str(mismatch(without_last, history).expected)
    assert "reserve" in str(mismatch(without_any, history).expected)


async def test_version_04(env: WorkflowEnvironment) -> None:
    """version-4: Steps in another order are a mismatch."""
    history = await record(env, two_steps)

    async def reordered() -> None:
        await charge(350)
        await reserve("tea")

    found = mismatch(reordered, history)
    assert "reserve" in str(found.expected)
    assert "charge" in str(found.found)


async def test_version_05(env: WorkflowEnvironment) -> None:
    """version-5: A renamed activity is a mismatch."""
    history = await record(env, two_steps)

    async def renamed() -> None:
        await workflow.execute_activity("reserve_stock", "tea")
        await charge(350)

    assert "reserve_stock" in str(mismatch(renamed, history).found)


async def test_version_06(env: WorkflowEnvironment) -> None:
    """version-6: Other arguments are a mismatch."""
    history = await record(env, two_steps)

    async def dearer() -> None:
        await reserve("tea")
        await charge(400)

    assert "400" in str(mismatch(dearer, history).found)


async def test_version_07(env: WorkflowEnvironment) -> None:
    """version-7: Another duration of a timer is a mismatch."""

    async def sleeps(seconds: float) -> None:
        await reserve("tea")
        await workflow.sleep(seconds)

    history = await record(env, lambda: sleeps(0.05))
    assert replays(lambda: sleeps(0.05), history)
    assert not replays(lambda: sleeps(0.06), history)


async def test_version_08(env: WorkflowEnvironment) -> None:
    """version-8: A timer in place of an activity is a mismatch, and the other way round."""

    async def sleeps() -> None:
        await workflow.sleep(0.02)

    async def reserves() -> None:
        await reserve("tea")

    assert "TIMER" in str(mismatch(sleeps, await record(env, reserves)).found)
    assert "TIMER" in str(mismatch(reserves, await record(env, sleeps)).expected)


async def test_version_09(env: WorkflowEnvironment) -> None:
    """version-9: The mismatch says where: event, expected, found, source line, what is around."""
    history = await record(env, two_steps)

    async def renamed() -> None:
        await reserve("tea")
        await ship("tea")

    found = mismatch(renamed, history)
    assert history[found.event_id - 1].name == "charge"
    assert found.source is not None
    assert "test_conforms_version.py" in found.source
    text = str(found)
    assert "- history:" in text
    assert "+ code:" in text
    assert len(found.around) > 1


async def test_version_10(env: WorkflowEnvironment) -> None:
    """version-10: With patched() a history of the old code replays on the old path."""
    history = await record(env, two_steps)

    async def new() -> None:
        await reserve("tea")
        if workflow.patched("ship-first"):
            await ship("tea")
        await charge(350)

    assert replays(new, history)


async def test_version_11(env: WorkflowEnvironment) -> None:
    """version-11: A new run takes the new path, its history says so, and it replays."""

    async def new() -> None:
        await reserve("tea")
        if workflow.patched("ship-first"):
            await ship("tea")

    history = await record(env, new)
    assert history.patches == ["ship-first"]
    assert [step.name for step in history.activities] == ["reserve", "ship"]
    assert replays(new, history)


async def test_version_12(env: WorkflowEnvironment) -> None:
    """version-12: The old code cannot replay a run of the new path."""

    async def new() -> None:
        if workflow.patched("ship-first"):
            await ship("tea")
        await two_steps()

    assert not replays(two_steps, await record(env, new))


async def test_version_13(env: WorkflowEnvironment) -> None:
    """version-13: deprecate_patch replays runs of the new path and records nothing in new ones."""

    async def new() -> None:
        if workflow.patched("ship-first"):
            await ship("tea")

    async def later() -> None:
        workflow.deprecate_patch("ship-first")
        await ship("tea")

    assert replays(later, await record(env, new))
    history = await record(env, later)
    assert history.patches == []
    assert replays(later, history)


async def test_version_14(env: WorkflowEnvironment) -> None:
    """version-14: Code from which a patch is removed replays runs that never had it."""

    async def later() -> None:
        workflow.deprecate_patch("ship-first")
        await ship("tea")

    async def last() -> None:
        await ship("tea")

    assert replays(last, await record(env, later))


async def test_version_15(env: WorkflowEnvironment) -> None:
    """version-15: In a loop a patch answers the same each time."""

    async def new() -> list[bool]:
        answers = []
        for _ in range(3):
            answers.append(workflow.patched("in-loop"))
            await reserve("tea")
        return answers

    history = await record(env, new)
    assert history[-1].value == [True, True, True]
    assert replays(new, history)


async def test_version_16(env: WorkflowEnvironment) -> None:
    """version-16: Several patches stand side by side, one made inside another's path."""

    async def first() -> None:
        if workflow.patched("one"):
            await ship("tea")

    async def second() -> None:
        if workflow.patched("one"):
            if workflow.patched("two"):
                await reserve("tea")
            await ship("tea")

    assert replays(second, await record(env, first))
    assert (await record(env, second)).patches == ["one", "two"]


async def test_version_17(env: WorkflowEnvironment) -> None:
    """version-17: A changed child workflow, by name or arguments, is a mismatch."""

    @workflow.defn
    async def packing(item: str) -> str:
        return item

    async def packs() -> None:
        await packing("tea")

    async def packs_more() -> None:
        await packing("coffee")

    history = await record(env, packs)
    assert replays(packs, history)
    assert not replays(packs_more, history)


async def test_version_18(env: WorkflowEnvironment) -> None:
    """version-18: A history of an open run is replayed as far as it goes."""

    async def waits() -> None:
        await reserve("tea")
        await workflow.wait_signal("never")

    async def changed() -> None:
        await ship("tea")
        await workflow.wait_signal("never")

    handle = await env.start(order(waits, "order"))
    while "ACTIVITY_COMPLETED" not in (await handle.history()).kinds:
        await asyncio.sleep(0)
    history = await handle.history()
    assert replays(waits, history)
    assert not replays(changed, history)


async def test_version_19(env: WorkflowEnvironment) -> None:
    """version-19: Changes that ask for nothing else (logging, variables, local code) replay."""
    history = await record(env, two_steps)

    async def tidied() -> None:
        workflow.logger.info("reserving")
        item = "".join(["t", "e", "a"])
        await reserve(item)
        workflow.set_vars(reserved=item)
        await charge(35 * 10)

    assert replays(tidied, history)


async def test_version_20(env: WorkflowEnvironment) -> None:
    """version-20: A replay of many histories reports every mismatch and ends with an error."""
    first = await record(env, two_steps)
    histories = [first, first]

    async def changed() -> None:
        await ship("tea")

    report = Replayer([order(changed, first.recorded.workflow_type)]).replay_all(histories)
    assert (report.replayed, len(report.mismatches), report.ok) == (2, 2, False)
    with pytest.raises(AssertionError, match="ship"):
        report.check()


async def test_version_21(env: WorkflowEnvironment) -> None:
    """version-21: The version a run was started with is there to read, and stays."""

    @workflow.defn(version="2024-07")
    async def flow() -> str | None:
        await asyncio.sleep(0.01)
        return workflow.info().version

    assert await env.execute(flow) == "2024-07"


async def test_version_22(env: WorkflowEnvironment) -> None:
    """version-22: Activities side by side may complete in any order; their start order is fixed."""

    async def both() -> None:
        await asyncio.gather(reserve("tea"), charge(350))

    async def both_reversed() -> None:
        await asyncio.gather(charge(350), reserve("tea"))

    history = await record(env, both)
    assert replays(both, history)
    assert not replays(both_reversed, history)


@workflow.defn(name="changing")
async def old_flow() -> str:
    await reserve("tea")
    await workflow.wait_signal("go")
    return await charge(350)


@workflow.defn(name="changing")
async def new_flow() -> str:
    await ship("tea")
    await workflow.wait_signal("go")
    return await charge(350)


async def test_version_23(database: Any) -> None:
    """version-23: A run that the code no longer fits is parked, and goes on with code that fits."""
    client, options = database.client, WorkerOptions(poll_max_seconds=0.2)
    activities = [reserve, charge, ship]
    handle = await client.start(old_flow, id="changing-1")

    async with Worker(database.dsn, workflows=[old_flow], activities=activities, options=options):
        while not any(event.kind == "ACTIVITY_COMPLETED" for event in await handle.history()):
            await asyncio.sleep(0.02)
    async with Worker(
        database.dsn,
        workflows=[new_flow],
        activities=activities,
        options=options,
        build_id="new",
    ):
        await handle.signal("go")
        while (await handle.describe()).state != RunState.PARKED:
            await asyncio.sleep(0.02)
    async with Worker(
        database.dsn,
        workflows=[old_flow],
        activities=activities,
        options=options,
        build_id="old",
    ):
        await handle.unpark()
        assert await handle.result(20) == "charged 350"


def pinned(version: str) -> Any:
    """One version of a pinned workflow; each returns what it is."""

    @workflow.defn(name="letter", version=version, pinned=True)
    async def letter(turns: int = 0) -> str:
        await workflow.wait_signal("go")
        if turns > 0:
            workflow.continue_as_new(turns - 1)
        return f"{version} is {workflow.info().version}"

    return letter


async def test_version_24(database: Any) -> None:
    """version-24: Runs of a pinned workflow wait for a worker that has their version."""
    client, options = database.client, WorkerOptions(poll_max_seconds=0.2)
    one, two = pinned("1"), pinned("2")
    old = await client.start(one, id="old")
    await old.signal("go")
    async with Worker(database.dsn, workflows=[two], options=options):
        new = await client.start(two, id="new")
        await new.signal("go")
        assert await new.result(20) == "2 is 2"
        assert (await old.describe()).state == RunState.RUNNING
        assert [event.kind for event in await old.history()] == ["RUN_STARTED"]
    async with Worker(database.dsn, workflows=[one, two], options=options):
        assert await old.result(20) == "1 is 1"


async def test_version_25(env: WorkflowEnvironment) -> None:
    """version-25: A pinned run goes on as new with its version, and its type names it."""
    one = pinned("1")
    handle = await env.start(one, 1)
    for _ in range(2):
        await handle.signal("go")
    assert await handle.result() == "1 is 1"
    assert one.name == "letter@1"


async def test_version_26(env: WorkflowEnvironment) -> None:
    """version-26: A run moves to another version when it goes on as new, if it says so."""
    two = pinned("2")

    @workflow.defn(name="letter", version="1", pinned=True)
    async def one() -> str:
        workflow.continue_as_new(0, workflow=two)

    handle = await env.start(one)
    await handle.signal("go")
    assert await handle.result() == "2 is 2"


async def test_version_27(database: Any) -> None:
    """version-27: A pinned workflow is started with its version; the bare name is refused."""
    options = WorkerOptions(poll_max_seconds=0.2)
    workflows = [pinned("1"), pinned("2")]
    async with Worker(database.dsn, workflows=workflows, options=options):
        with pytest.raises(UnknownWorkflowError, match="letter@1, letter@2"):
            await database.client.start("letter", id="which")
        handle = await database.client.start("letter@2", id="which")
        await handle.signal("go")
        assert await handle.result(20) == "2 is 2"


def test_version_28() -> None:
    """version-28: A pinned workflow without a version is an error when it is defined."""
    with pytest.raises(DefinitionError, match="needs a version"):

        @workflow.defn(pinned=True)
        async def letter() -> None: ...
