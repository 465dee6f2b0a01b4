"""What is done to many open runs: to which of them, how often, and what is refused."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable import (
    BulkResult,
    Client,
    RetryPolicy,
    RunFilter,
    RunState,
    Worker,
    WorkflowFailedError,
    activity,
    workflow,
)
from durable.client import bulk
from durable.errors import (
    InvalidArgumentError,
    WorkflowCancelledError,
    WorkflowTerminatedError,
)
from durable.events import EventKind
from durable.store.memory import MemoryStore
from durable.store.postgres import PostgresStore

SOON = 30.0
ORDERS = RunFilter(id_prefix="order-")


@workflow.defn
async def waits() -> int:
    return await workflow.wait_signal("go", type=int)


@pytest.fixture(params=["memory", "postgres"])
async def client(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Client]:
    """With five orders and another run, and pages of two."""
    monkeypatch.setattr(bulk, "PAGE_RUNS", 2)
    is_memory = request.param == "memory"
    store = MemoryStore() if is_memory else PostgresStore(request.getfixturevalue("dsn"))
    async with Client.connect(store) as made:
        for number in range(5):
            await made.start(waits, id=f"order-{number}", search={"number": number})
        await made.start(waits, id="other")
        yield made


async def mail(client: Client, kind: EventKind) -> list[str]:
    """The workflow ids of the runs that were sent this, once for each time."""
    names = {view.run_id: view.workflow_id for view in await client.list()}
    items = await client.store.inbox(list(names))
    return sorted(names[item.run_id] for item in items if item.kind == kind)


FIVE = [f"order-{number}" for number in range(5)]


async def test_cancel_many_asks_all_that_fit(client: Client) -> None:
    seen: list[BulkResult] = []

    result = await client.cancel_many(ORDERS, reason="late", progress=seen.append)

    assert result == BulkResult(done=5, skipped=0)
    assert [each.done for each in seen] == [2, 4, 5]
    assert await mail(client, EventKind.CANCEL_REQUESTED) == FIVE


async def test_terminate_many_sends_the_end_to_all_that_fit(client: Client) -> None:
    assert await client.terminate_many(ORDERS, reason="late") == BulkResult(5, 0)
    assert await mail(client, EventKind.RUN_TERMINATED) == FIVE


async def test_a_signal_with_the_same_request_id_is_sent_once(client: Client) -> None:
    for _ in range(2):
        await client.signal_matching(ORDERS, "go", 7, request_id="r")

    assert await mail(client, EventKind.SIGNAL_RECEIVED) == FIVE


async def test_paused_runs_are_resumed_and_others_left_alone(client: Client) -> None:
    await client.get_handle("other").pause()
    assert await client.pause_many(RunFilter(search={"number": 3})) == BulkResult(1, 0)
    assert await client.pause_many(ORDERS, reason="audit") == BulkResult(5, 0)
    assert await client.count(RunFilter(states=[RunState.PAUSED])) == 6

    assert await client.resume_many(ORDERS) == BulkResult(5, 0)
    assert await client.resume_many(ORDERS) == BulkResult(0, 0)

    (paused,) = await client.page(RunFilter(states=[RunState.PAUSED]))
    assert paused.workflow_id == "other"


async def test_no_run_that_is_not_parked_is_unparked(client: Client) -> None:
    assert await client.unpark_many(RunFilter(everything=True)) == BulkResult(0, 0)


async def test_runs_that_changed_meanwhile_are_skipped(client: Client) -> None:
    await client.pause_many(ORDERS)
    page = client.store.open_page

    async def late(*args: Any, **options: Any) -> Any:
        found = await page(*args, **options)
        await client.store.resume([view.run_id for view in found[:1]])
        return found

    client.store.open_page = late  # type: ignore[method-assign]
    assert await client.resume_many(ORDERS) == BulkResult(done=2, skipped=3)


async def test_workers_end_what_many_runs_are_told(dsn: str) -> None:
    async with Client.connect(dsn) as client, Worker(dsn, workflows=[waits]):
        handles = [await client.start(waits, id=f"{kind}-1") for kind in ("end", "stop", "go")]
        await client.pause_many(RunFilter(id_prefix="end-"))

        await client.terminate_many(RunFilter(id_prefix="end-"), reason="late")
        await client.cancel_many(RunFilter(id_prefix="stop-"))
        await client.signal_matching(RunFilter(id_prefix="go-"), "go", 7)

        with pytest.raises(WorkflowTerminatedError, match="late"):
            await handles[0].result(SOON)
        with pytest.raises(WorkflowCancelledError):
            await handles[1].result(SOON)
        assert await handles[2].result(SOON) == 7
        assert await client.count() == 0


async def test_runs_are_meant_by_their_ids(client: Client) -> None:
    some = RunFilter(ids=["order-1", "order-3", "order-3", "nobody"])
    assert await client.count(some) == 2
    assert [view.workflow_id async for view in client.iterate(some)] in (
        ["order-1", "order-3"],
        ["order-3", "order-1"],
    )
    assert await client.cancel_many(some) == BulkResult(2, 0, missing=1)
    assert await mail(client, EventKind.CANCEL_REQUESTED) == ["order-1", "order-3"]
    nobody = RunFilter(ids=[])
    assert await client.cancel_many(nobody) == BulkResult()
    three = RunFilter(ids=FIVE[:3], search={"number": 2})
    assert await client.pause_many(three) == BulkResult(1, 0, missing=2)


@workflow.defn
async def pays(number: int) -> str:
    for _ in range(2):
        await pay(number)
    return "paid"


@activity.defn(retry=RetryPolicy(max_attempts=1))
async def pay(number: int) -> None:
    if number in BROKE:
        raise ValueError(f"{number} has nothing")


BROKE: set[int] = set()


async def test_failed_runs_are_reset_together(dsn: str) -> None:
    BROKE.update(range(3))
    async with (
        Client.connect(dsn, workflows=[pays, waits]) as client,
        Worker(dsn, workflows=[pays, waits], activities=[pay]),
    ):
        for number in range(4):
            handle = await client.start(pays, number, id=f"pays-{number}")
            with contextlib.suppress(WorkflowFailedError):
                await handle.result(SOON)
        await client.start(waits, id="waits")
        BROKE.clear()
        failed = RunFilter(states=[RunState.FAILED])
        seen: list[BulkResult] = []
        result = await client.reset_many(failed, before_activity="pay", progress=seen.append)
        assert result == BulkResult(done=3)
        assert seen[-1] == result
        for number in range(3):
            assert await client.get_handle(f"pays-{number}").result(SOON) == "paid"
        # What has been reset is not the latest run of its id any more.
        assert await client.reset_many(failed, before_activity="pay") == BulkResult(skipped=3)
        # Open runs by default; this one never called it, and stays as it is.
        refused = await client.reset_many(RunFilter(id_prefix="wa"), before_activity="pay")
        assert (refused.done, refused.failed) == (0, 1)
        assert "pay" in refused.errors["waits"]
        assert (await client.get_handle("waits").describe()).state == RunState.RUNNING


@workflow.defn
async def ends(number: int) -> int:
    return number


@pytest.mark.parametrize("kind", ["memory", "postgres"])
async def test_closed_runs_are_reset_by_when_they_closed(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PAGE_RUNS", 2)
    place = MemoryStore() if kind == "memory" else request.getfixturevalue("dsn")
    async with Client.connect(place, workflows=[ends, waits]) as client:
        async with Worker(place, workflows=[ends, waits]):
            closed = []
            for number in range(6):
                handle = await client.start(ends, number, id=f"ends-{number}")
                assert await handle.result(SOON) == number
                closed_us = (await handle.describe()).closed_us
                assert closed_us is not None
                closed.append(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=closed_us))
            # It began when the others did, and is still open.
            await client.start(waits, id="waits")
        done = RunFilter(states=[RunState.COMPLETED])

        async def reset(**bounds: datetime) -> tuple[int, list[str]]:
            chosen = replace(done, **bounds)  # type: ignore[arg-type]
            result = await client.reset_many(chosen, to_last_turn=True)
            again = await client.list(states=[RunState.RUNNING], workflow_type="ends")
            return result.done, sorted(view.workflow_id for view in again)

        assert await reset(closed_before=closed[0]) == (0, [])
        assert await reset(closed_before=closed[1]) == (1, ["ends-0"])
        both = {"closed_after": closed[2], "closed_before": closed[5]}
        assert await reset(**both) == (3, ["ends-0", "ends-2", "ends-3", "ends-4"])
        assert (await reset(closed_after=closed[5]))[0] == 1
        everything = replace(done, states=[RunState.RUNNING, RunState.COMPLETED])
        chosen = replace(everything, closed_after=closed[0], ids=["waits", "ends-1"])
        assert await client.reset_many(chosen, to_last_turn=True) == BulkResult(1, missing=1)


async def test_times_of_closing_are_no_filter_of_open_runs(client: Client) -> None:
    since = RunFilter(closed_after=datetime(2000, 1, 1, tzinfo=UTC))
    with pytest.raises(InvalidArgumentError, match="no time of closing"):
        await client.cancel_many(since)
    with pytest.raises(InvalidArgumentError, match="no time of closing"):
        await client.count(RunFilter(closed_before=datetime(2000, 1, 1, tzinfo=UTC)))
    with pytest.raises(InvalidArgumentError, match="say which"):
        await client.reset_many(since, to_last_turn=True)
    naive = RunFilter(states=[RunState.FAILED], closed_after=datetime(2000, 1, 1))
    with pytest.raises(InvalidArgumentError, match="time zone"):
        await client.reset_many(naive, to_last_turn=True)


async def test_a_reset_of_many_needs_a_filter_and_a_point(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="everything=True"):
        await client.reset_many(RunFilter(), to_last_turn=True)
    result = await client.reset_many(RunFilter(ids=["order-1"]))
    assert result.failed == 1
    assert await client.count() == 6


async def test_everything_must_be_said(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="everything=True"):
        await client.cancel_many(RunFilter())
    assert await mail(client, EventKind.CANCEL_REQUESTED) == []

    assert (await client.cancel_many(RunFilter(everything=True))).done == 6


async def test_runs_are_counted_and_iterated(client: Client) -> None:
    found = [view.run_id async for view in client.iterate()]

    assert found == sorted(found)
    assert len(found) == await client.count() == 6
    assert await client.count(RunFilter(workflow_type="waits", search={"number": 4})) == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (RunFilter(states=[RunState.FAILED]), "only open runs"),
        (RunFilter(id_prefix=""), "not empty"),
        (RunFilter(ids="order-1"), "a list"),
        (RunFilter(ids=["a", ""]), "not empty"),
        (RunFilter(ids=["a"] * 10_001), "at most 10,000"),
        (RunFilter(search={"a": None}), "cannot be None"),
        (RunFilter(started_after=datetime(2026, 1, 1)), "time zone"),
    ],
)
async def test_a_filter_that_cannot_be_is_refused(wrong: RunFilter, says: str) -> None:
    async with Client.connect(MemoryStore()) as client:
        with pytest.raises(InvalidArgumentError, match=says):
            await client.count(wrong)


async def test_runs_started_since_a_time_are_meant(client: Client) -> None:
    assert await client.count(RunFilter(started_after=datetime(2999, 1, 1, tzinfo=UTC))) == 0
    assert await client.count(RunFilter(started_before=datetime(2999, 1, 1, tzinfo=UTC))) == 6


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": 10_001}, {"after": "order-1"}])
async def test_a_page_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    async with Client.connect(MemoryStore()) as client:
        with pytest.raises(InvalidArgumentError):
            await client.page(**options)
