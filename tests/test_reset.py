"""Reset and fork: a run that goes on from an earlier point of its history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from durable import activity, workflow
from durable.client import Client, SyncClient
from durable.errors import (
    InvalidArgumentError,
    NonDeterminismError,
    WorkflowAlreadyStartedError,
    WorkflowTerminatedError,
)
from durable.events import RunState
from durable.options import WorkerOptions
from durable.runtime.worker import Worker

SOON = 30.0
CALLS: list[str] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


@activity.defn
async def note(text: str) -> str:
    CALLS.append(text)
    return f"{text} {len(CALLS)}"


@activity.defn
async def hang(text: str) -> str:
    CALLS.append(text)
    if CALLS.count(text) == 1:
        await asyncio.Event().wait()
    return text


@workflow.defn
async def steps() -> list[str]:
    token = str(workflow.uuid4())
    first = await note(f"first {token}")
    more = await workflow.wait_signal("more", type=str)
    second = await note("second")
    return [token, first, more, second, str(workflow.uuid4())]


@workflow.defn
async def stuck() -> str:
    return await hang("work")


@workflow.defn
async def sleeper() -> str:
    await note("before")
    await workflow.sleep(timedelta(seconds=1))
    return await note("after")


@workflow.defn
async def slow_child() -> str:
    return await workflow.wait_signal("go", type=str)


@workflow.defn
async def parent() -> str:
    return await workflow.start_child(slow_child)


@workflow.defn(name="steps")
async def other_steps() -> list[str]:
    await note("quite another")
    return []


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with Client.connect(dsn) as connected:
        yield connected


async def until(handle: Any, kind: str, count: int = 1) -> int:
    """The id of the event of that kind, when there are so many."""
    async with asyncio.timeout(SOON):
        while True:
            found = [each.id for each in await handle.history() if each.kind == kind]
            if len(found) >= count:
                return found[count - 1]
            await asyncio.sleep(0.02)


async def finished(client: Client, dsn: str, id: str = "a") -> tuple[Any, list[str]]:
    handle = await client.start(steps, id=id)
    await handle.signal("more", "x")
    async with Worker(dsn, workflows=[steps], activities=[note]):
        return handle, await handle.result(SOON)


async def test_a_closed_run_goes_on_before_an_activity(client: Client, dsn: str) -> None:
    handle, before = await finished(client, dsn)

    plan = await handle.plan_reset(before_activity="note")
    again = await handle.reset(before_activity="note")
    async with Worker(dsn, workflows=[steps], activities=[note]):
        after = await again.result(SOON)

    assert plan.run_id == handle.run_id
    assert again.run_id != handle.run_id
    assert after[:3] == before[:3]
    assert [before[3], after[3]] == ["second 2", "second 3"]
    assert after[4] == before[4], "a copied run draws the same random numbers"
    assert [each.split()[0] for each in CALLS] == ["first", "second", "second"]
    latest = await client.get_handle("a").describe()
    assert latest.run_id == again.run_id
    assert latest.state == RunState.COMPLETED
    start = (await again.history())[0]
    assert start.meta["forked_from"] == handle.run_id


async def test_an_open_run_is_ended_and_gets_its_signals_again(client: Client, dsn: str) -> None:
    async with Worker(dsn, workflows=[steps], activities=[note]):
        handle = await client.start(steps, id="a")
        done = await until(handle, "ACTIVITY_COMPLETED")
        await handle.signal("later", "y")
        await until(handle, "SIGNAL_RECEIVED")
        again = await handle.reset(to_event=done, reason="try that again")

        with pytest.raises(WorkflowTerminatedError, match="try that again") as ended:
            await handle.result(SOON)
        assert ended.value.failure["new_run_id"] == again.run_id
        await until(again, "SIGNAL_RECEIVED")
        await again.signal("more", "x")
        assert (await again.result(SOON))[2] == "x"


async def test_unread_signals_of_a_parked_run_are_kept(client: Client, dsn: str) -> None:
    async with Worker(dsn, workflows=[steps], activities=[note]):
        handle = await client.start(steps, id="a")
        await until(handle, "ACTIVITY_COMPLETED")
    async with Worker(dsn, workflows=[other_steps], activities=[note]):
        await handle.signal("poke", 1)
        async with asyncio.timeout(SOON):
            while (await handle.describe()).state != RunState.PARKED:
                await asyncio.sleep(0.02)
        await handle.signal("more", "x")
        again = await handle.reset(to_event=1)
    async with Worker(dsn, workflows=[other_steps], activities=[note]):
        assert await again.result(SOON) == []
    assert [each for each in CALLS if each == "quite another"]


async def test_an_activity_in_flight_begins_again(client: Client, dsn: str) -> None:
    async with Worker(dsn, workflows=[stuck], activities=[hang]):
        handle = await client.start(stuck, id="a")
        async with asyncio.timeout(SOON):
            while not CALLS:
                await asyncio.sleep(0.02)
        again = await handle.reset(to_last_turn=True)
        assert await again.result(SOON) == "work"
    assert CALLS == ["work", "work"]


async def test_a_timer_of_the_copied_part_fires(client: Client, dsn: str) -> None:
    async with Worker(dsn, workflows=[sleeper], activities=[note]):
        handle = await client.start(sleeper, id="a")
        await handle.signal("poke")
        await handle.result(SOON)
        poked = await until(handle, "TIMER_STARTED")
        copied = await handle.fork("b", to_event=poked + 1)
        assert await copied.result(SOON) == "after 3"


async def test_what_was_pending_at_the_point_begins_again(client: Client, dsn: str) -> None:
    both = await client.start(waits_for_both, id="a")
    await both.signal("poke")
    hasty = WorkerOptions(drain_seconds=0.1)
    async with Worker(dsn, workflows=[waits_for_both], activities=[hang], options=hasty):
        poked = await until(both, "SIGNAL_RECEIVED")
        async with asyncio.timeout(SOON):
            while not CALLS:
                await asyncio.sleep(0.02)
    plan = await both.plan_reset(to_event=poked)
    copied = await both.fork("b", to_event=poked)
    async with Worker(dsn, workflows=[waits_for_both], activities=[hang], options=hasty):
        assert await copied.result(SOON) == ["work", None]
    assert (plan.activities, plan.timers) == (("hang",), 1)


@workflow.defn
async def waits_for_both() -> list[Any]:
    return list(await asyncio.gather(hang("work"), asyncio.sleep(1)))


def letter(version: str, *, is_longer: bool = False, starts_with: str = "first") -> Any:
    """A version of a pinned workflow; a longer one has one more step at its end."""

    @workflow.defn(name="letter", version=version, pinned=True)
    async def write() -> list[str]:
        done = [await note(starts_with)]
        await workflow.wait_signal("more")
        if is_longer:
            done.append(await note("last"))
        return [*done, workflow.info().version or ""]

    return write


async def test_an_open_run_moves_to_another_version(client: Client, dsn: str) -> None:
    old, new = letter("1"), letter("2", is_longer=True)
    async with Worker(dsn, workflows=[old, new], activities=[note]):
        handle = await client.start(old, id="a")
        await until(handle, "ACTIVITY_COMPLETED")
        moved = await handle.reset(workflow=new)
        await moved.signal("more")
        assert await moved.result(SOON) == ["first 1", "last 2", "2"]
    view = await moved.describe()
    assert (view.workflow_type, view.version) == ("letter@2", "2")


async def test_a_run_that_does_not_fit_another_version_stays_where_it_is(
    client: Client, dsn: str
) -> None:
    old, new = letter("1"), letter("2", starts_with="quite another")
    async with Worker(dsn, workflows=[old, new], activities=[note]):
        handle = await client.start(old, id="a")
        await until(handle, "ACTIVITY_COMPLETED")
        await handle.signal("more")
        assert await handle.result(SOON) == ["first 1", "1"]
        with pytest.raises(NonDeterminismError, match="quite another"):
            await handle.fork("b", workflow=new)
        with pytest.raises(NonDeterminismError):
            await handle.reset(workflow=new)
    assert (await client.get_handle("a").describe()).run_id == handle.run_id


async def test_a_fork_leaves_the_run_as_it_is(client: Client, dsn: str) -> None:
    handle, before = await finished(client, dsn)
    done = await until(handle, "ACTIVITY_COMPLETED")

    copied = await handle.fork("b", to_event=done, keep_signals=True)
    with pytest.raises(WorkflowAlreadyStartedError):
        await handle.fork("b", to_event=done)
    async with Worker(dsn, workflows=[steps], activities=[note]):
        after = await copied.result(SOON)

    assert after[:3] == [*before[:2], "x"]
    assert await handle.result(SOON) == before


async def test_code_that_does_not_fit_is_told_before_anything_is_done(
    client: Client, dsn: str
) -> None:
    handle, before = await finished(client, dsn)
    done = await until(handle, "ACTIVITY_COMPLETED")

    with pytest.raises(NonDeterminismError):
        await client.get_handle("a", workflow=other_steps).reset(to_event=done)
    assert await handle.result(SOON) == before
    assert (await client.get_handle("a").describe()).run_id == handle.run_id


async def test_points_that_there_are_not_are_refused(client: Client, dsn: str) -> None:
    handle, _ = await finished(client, dsn)
    for point in ({}, {"to_event": 0}, {"to_event": 99}, {"before_activity": "gone"},
                  {"to_event": 1, "to_last_turn": True}):  # fmt: skip
        with pytest.raises(InvalidArgumentError):
            await handle.plan_reset(**point)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="an id of its own"):
        await handle.fork("a", to_event=1)


async def test_a_point_at_which_a_child_is_open_is_refused(client: Client, dsn: str) -> None:
    async with Worker(dsn, workflows=[parent, slow_child]):
        handle = await client.start(parent, id="a")
        started = await until(handle, "CHILD_STARTED")
        with pytest.raises(InvalidArgumentError, match="CHILD_INITIATED slow_child"):
            await handle.plan_reset(to_event=started)
        assert (await handle.plan_reset(to_last_turn=True)).event_id == 1


async def test_code_without_asyncio_can_reset_and_fork(client: Client, dsn: str) -> None:
    handle, before = await finished(client, dsn)

    def in_thread() -> tuple[str | None, str]:
        with SyncClient.connect(dsn) as plain:
            known = plain.get_handle("a")
            plan = known.plan_reset(to_last_turn=True)
            assert plan.event_id < plan.event_count
            return known.reset(to_last_turn=True).run_id, known.fork("b", to_event=1).workflow_id

    run_id, forked = await asyncio.to_thread(in_thread)
    assert forked == "b"
    assert run_id != handle.run_id
    async with Worker(dsn, workflows=[steps], activities=[note]):
        assert await client.get_handle("a").result(SOON) == before
