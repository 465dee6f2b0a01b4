"""What shows only with a worker and PostgreSQL: runs that start, signal, end and follow others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from durable import (
    ChildWorkflowError,
    RetryPolicy,
    UpdateRejectedError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    activity,
    workflow,
)
from durable.client import Client
from durable.events import RunState
from durable.options import WorkerOptions
from durable.runtime.worker import Worker

SOON = 20.0


@activity.defn
async def double(number: int) -> int:
    return number * 2


@workflow.defn
async def child(number: int) -> int:
    return await double(number)


@workflow.defn
async def waits_for_signal() -> list[Any]:
    return [await workflow.wait_signal("go"), await workflow.wait_signal("go")]


@workflow.defn
async def waits_for_ever() -> None:
    await asyncio.Event().wait()


@workflow.defn
async def raises(number: int) -> None:
    raise ValueError(f"no {number}")


@workflow.defn
async def talks_to_child() -> list[Any]:
    handle = workflow.start_child(waits_for_signal, id="the-child")
    await handle.started()
    await handle.signal("go", 1)
    await workflow.signal_external("the-child", "go", 2)
    try:
        await workflow.signal_external("nobody", "go")
    except WorkflowNotFoundError:
        unreachable = True
    return [await handle, unreachable]


@workflow.defn
async def takes_failures() -> list[str]:
    seen = []
    try:
        await raises(3)
    except ChildWorkflowError as error:
        seen.append(f"{error.name}: {error.__cause__}")
    try:
        await workflow.execute_child(child, 1, id="takes")
    except ChildWorkflowError as error:
        seen.append(f"{error.name}: {(error.failure or {}).get('type')}")
    return seen


@workflow.defn
async def leaves(policy: str) -> str:
    handle = workflow.start_child(waits_for_ever, id="left", parent_close=policy)
    await handle.started()
    return handle.run_id


@workflow.defn
async def drops_child() -> str:
    handle = workflow.start_child(waits_for_ever, id="dropped")
    # A child that is dropped before this turn is committed would never have been started.
    await handle.started()
    try:
        async with asyncio.timeout(0.2):
            await handle
    except TimeoutError:
        return "moved on"
    return "stayed"


@workflow.defn
async def adds_up(total: int) -> int:
    for _ in range(2):
        number = await workflow.wait_signal("add", int)
        if number == 0:
            return total
        total += await child(number)
    workflow.continue_as_new(total)


@workflow.defn(retry=RetryPolicy(initial_interval=0.05, max_attempts=3))
async def fails_twice() -> int:
    attempt = workflow.info().attempt
    if await double(attempt) < 6:
        raise RuntimeError(f"attempt {attempt}")
    return attempt


@workflow.defn
class Account:
    """Money that people put in and take out."""

    def __init__(self) -> None:
        self.cents = 0
        self.is_closed = False

    @workflow.run
    async def run(self, start: int) -> int:
        self.cents = start
        await workflow.wait_condition(lambda: self.is_closed)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self.cents

    @workflow.signal
    def close(self) -> None:
        self.is_closed = True

    @workflow.query
    def balance(self) -> int:
        return self.cents

    @workflow.update
    async def deposit(self, cents: int) -> int:
        doubled = await double(cents)
        self.cents += doubled
        return self.cents

    @deposit.validator
    def check_deposit(self, cents: int) -> None:
        if cents <= 0:
            raise ValueError("nothing to deposit")


WORKFLOWS: list[Any] = [
    child,
    waits_for_signal,
    waits_for_ever,
    raises,
    talks_to_child,
    takes_failures,
    leaves,
    drops_child,
    adds_up,
    fails_twice,
    Account,
]


@pytest.fixture(params=["warm", "cold"])
async def client(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[Client]:
    """A client with a worker beside it: one that keeps runs in memory, one that never does."""
    cache_bytes = 1 if request.param == "cold" else 256 * 1024 * 1024
    options = WorkerOptions(cache_bytes=cache_bytes, drain_seconds=1.0, poll_max_seconds=0.2)
    async with (
        Client.connect(dsn) as connected,
        Worker(dsn, workflows=WORKFLOWS, activities=[double], options=options),
        asyncio.timeout(SOON),
    ):
        yield connected


async def test_children_and_other_runs_get_signals(client: Client) -> None:
    handle = await client.start(talks_to_child, id="parent")
    assert await handle.result() == [[1, 2], True]


async def test_failures_of_children_come_with_their_cause(client: Client) -> None:
    handle = await client.start(takes_failures, id="takes")
    assert await handle.result() == ["raises: no 3", "child: WorkflowAlreadyStartedError"]


@pytest.mark.parametrize(
    ("policy", "state"),
    [
        ("terminate", RunState.TERMINATED),
        ("cancel", RunState.CANCELLED),
        ("abandon", RunState.RUNNING),
    ],
)
async def test_the_parents_end_reaches_its_children(
    client: Client, policy: str, state: RunState
) -> None:
    parent = await client.start(leaves, policy, id="parent")
    assert await parent.result()
    left = client.get_handle("left")
    if state == RunState.RUNNING:
        await left.terminate()
        state = RunState.TERMINATED
    with pytest.raises(Exception, match="left"):
        await left.result()
    assert (await left.describe()).state == state


async def test_a_child_that_is_not_waited_for_any_more_is_cancelled(client: Client) -> None:
    handle = await client.start(drops_child, id="parent")
    assert await handle.result() == "moved on"
    with pytest.raises(Exception, match="dropped"):
        await client.get_handle("dropped").result()
    assert (await client.get_handle("dropped").describe()).state == RunState.CANCELLED


async def test_no_signal_is_lost_from_run_to_run(client: Client) -> None:
    handle = await client.start(adds_up, 0, id="sum")
    for number in range(1, 12):
        await handle.signal("add", number)
    await handle.signal("add", 0)
    assert await handle.result() == 2 * sum(range(1, 12))


async def test_a_workflow_that_fails_is_started_again(client: Client) -> None:
    handle = await client.start(fails_twice, id="again")
    assert await handle.result() == 3


async def test_a_class_is_changed_by_updates_and_asked_by_queries(client: Client) -> None:
    handle = await client.start(Account.run, 100, id="account")
    assert await handle.update(Account.deposit, 5) == 110
    assert await handle.query(Account.balance) == 110
    with pytest.raises(UpdateRejectedError, match="nothing to deposit"):
        await handle.update(Account.deposit, 0)
    with pytest.raises(UpdateRejectedError, match="deposit"):
        await handle.update("withdraw", 1)
    answers = await asyncio.gather(*(handle.update("deposit", 1) for _ in range(5)))
    assert sorted(answers) == [112, 114, 116, 118, 120]
    await handle.signal(Account.close)
    assert await handle.result() == 120
    assert await handle.query(Account.balance) == 120


async def test_a_failed_run_tells_its_client_what_was_raised(client: Client) -> None:
    handle = await client.start(raises, 7, id="fails")
    with pytest.raises(WorkflowFailedError) as caught:
        await handle.result()
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(caught.value.__cause__) == "no 7"
