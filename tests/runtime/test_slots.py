"""What one worker takes on: its slots, the places of its executors, its share of each queue."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psycopg
import pytest

from durable import Client, RetryPolicy, activity, workflow
from durable.engine.registry import Table
from durable.errors import (
    ActivityError,
    CompleteLater,
    ConfigurationError,
    InvalidArgumentError,
)
from durable.events import ActivityOutcome
from durable.options import WorkerOptions
from durable.runtime.slots import CLAIM_MAX, Offer, Slots
from durable.store.postgres import PostgresStore

Serve = Callable[..., Awaitable[Any]]
SOON = 30.0

inside: dict[str, int] = {}
most: dict[str, int] = {}


@pytest.fixture(autouse=True)
def empty() -> None:
    inside.clear()
    most.clear()


@activity.defn
async def stay(where: str) -> str:
    inside[where] = inside.get(where, 0) + 1
    most[where] = max(most.get(where, 0), inside[where])
    for _ in range(20):
        await asyncio.sleep(0)
    inside[where] -= 1
    return where


threads = threading.Semaphore(2)


@activity.defn
def block(number: int) -> int:
    assert threads.acquire(blocking=False)
    threads.release()
    return number


@activity.defn(completes_later=True, start_to_close_timeout=0.2, retry=RetryPolicy(max_attempts=1))
async def later() -> None:
    raise CompleteLater


@workflow.defn
async def guests(queue: str, count: int) -> int:
    there = stay.with_options(queue=queue)
    return len(await asyncio.gather(*(there(queue) for _ in range(count))))


@workflow.defn
async def blocking(count: int) -> list[int]:
    return list(await asyncio.gather(*(block(n) for n in range(count))))


@workflow.defn
async def waits_for_others() -> str:
    try:
        await later()
    except ActivityError as error:
        return str(error)
    return ""


def make_slots(**changes: Any) -> Slots:
    settings: dict[str, Any] = {
        "queues": ("a", "b"),
        "slots": 100,
        "places": {"thread": 20, "process": 2},
        "queue_slots": {},
        "queue_rates": {},
        **changes,
    }
    return Slots(Table([("stay", stay), ("block", block)]), **settings)


# -- slots -----------------------------------------------------------------------------------


def test_one_claim_is_enough_while_there_is_room_of_each_kind() -> None:
    slots = make_slots()
    (offer,) = slots.offers()
    assert offer == Offer(["a", "b"], ["stay", "block"])
    assert slots.room(offer) == 20


def test_a_kind_with_few_places_left_is_claimed_for_by_itself() -> None:
    slots = make_slots(places={"thread": 3, "process": 2})
    first, second = slots.offers()
    assert (first.names, slots.room(first)) == (["stay"], CLAIM_MAX)
    assert (second.names, slots.room(second)) == (["block"], 3)


def test_a_kind_without_places_is_not_claimed_for() -> None:
    slots = make_slots(places={"thread": 1, "process": 2})
    assert slots.reserve("block", "a")
    assert [offer.names for offer in slots.offers()] == [["stay"]]
    assert slots.is_short
    assert not slots.reserve("block", "a")
    slots.give_back("block", "a")
    assert not slots.is_short


def test_a_share_of_a_queue_bounds_claims_and_starts() -> None:
    slots = make_slots(queue_slots={"b": 2})
    assert [slots.room(offer) for offer in slots.offers() if offer.queues == ["b"]] == [2]
    assert slots.reserve("stay", "b")
    slots.hold("b", 1)
    assert not slots.reserve("stay", "b")
    assert slots.reserve("stay", "a")
    assert [offer.queues for offer in slots.offers()] == [["a"]]
    slots.let_go("b", 1)
    assert slots.reserve("stay", "b")
    slots.give_back("stay", "b")
    slots.give_back("stay", "b")
    assert [slots.room(offer) for offer in slots.offers() if offer.queues == ["b"]] == [2]


def test_a_rate_gives_a_second_s_worth_and_says_when_the_next_is_due() -> None:
    slots = make_slots(queue_rates={"b": 0.001})
    assert slots.reserve("stay", "b")
    slots.give_back("stay", "b")
    assert not slots.reserve("stay", "b")
    assert slots.seconds_to_room is not None
    assert 900 < slots.seconds_to_room <= 1000
    assert make_slots().seconds_to_room is None


def test_starts_that_were_held_and_not_used_are_not_charged() -> None:
    slots = make_slots(queue_rates={"b": 0.001})
    slots.hold("b", 1)
    slots.let_go("b", 1)
    assert slots.reserve("stay", "b")


@pytest.mark.parametrize(
    "bad", [{"queue_slots": {"elsewhere": 1}}, {"queue_slots": {"default": 0}},
            {"queue_rates": {"default": float("nan")}}]
)  # fmt: skip
def test_what_cannot_be_a_share_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="queue_"):
        WorkerOptions(**bad)


# -- workers ---------------------------------------------------------------------------------


async def test_a_worker_runs_no_more_of_a_queue_than_its_share(
    client: Client, serve: Serve
) -> None:
    await serve(guests, stay, queues=("default", "gpu"), queue_slots={"gpu": 2})
    started = [await client.start(guests, "gpu", 6, id=f"gpu-{n}") for n in range(3)]
    other = await client.start(guests, "default", 6, id="default")
    assert [await each.result(SOON) for each in started] == [6, 6, 6]
    assert await other.result(SOON) == 6
    assert 1 <= most["gpu"] <= 2 < most["default"]


async def test_a_worker_with_a_rate_goes_on_when_it_may(client: Client, serve: Serve) -> None:
    await serve(guests, stay, queue_rates={"default": 20}, poll_max_seconds=60.0)
    handle = await client.start(guests, "default", 30, id="g")
    assert await handle.result(SOON) == 30


class CountingStore(PostgresStore):
    """Counts attempts that were handed back unstarted."""

    returned = 0

    async def finish_activities(self, outcomes: Sequence[ActivityOutcome]) -> list[bool]:
        self.returned += sum(not each.kind for each in outcomes)
        return await super().finish_activities(outcomes)


async def test_no_more_is_claimed_than_there_are_threads_for(
    dsn: str, client: Client, serve: Serve
) -> None:
    store = CountingStore(dsn)
    await serve(blocking, block, stay, guests, store=store, thread_slots=2)
    assert await (await client.start(blocking, 40, id="b")).result(SOON) == list(range(40))
    assert store.returned == 0


async def test_a_dynamic_activity_claims_nothing_that_others_here_have_no_room_for(
    dsn: str, client: Client, serve: Serve
) -> None:
    @activity.defn(dynamic=True)
    async def anything(name: str, *args: Any) -> str:
        return name

    store = CountingStore(dsn)
    await serve(blocking, block, anything, store=store, thread_slots=2)
    assert await (await client.start(blocking, 40, id="b")).result(SOON) == list(range(40))
    assert store.returned == 0


async def test_a_time_limit_of_a_detached_attempt_is_not_left_to_the_next_poll(
    client: Client, serve: Serve
) -> None:
    await serve(waits_for_others, later, poll_max_seconds=3600.0)
    result = await (await client.start(waits_for_others, id="w")).result(SOON)
    assert "start-to-close" in result


async def test_a_worker_expects_the_time_limits_of_what_it_claims_and_detaches(
    client: Client, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await serve(waits_for_others, later)
    expected: list[int] = []
    monkeypatch.setattr(worker._promoter, "expect", expected.append)
    began_us = await client.store.now_us()
    await (await client.start(waits_for_others, id="w")).result(SOON)
    claimed_us, detached_us = expected
    assert began_us + 200_000 <= detached_us < claimed_us


# -- fairness keys of runs -------------------------------------------------------------------


@workflow.defn
async def family(count: int) -> int:
    await workflow.execute_child(guests, "default", count)
    return count


async def queued_keys(client: Client) -> Counter[str]:
    """The fairness keys of the activities that have a row."""
    async with await psycopg.AsyncConnection.connect(client.store.target.dsn) as conn:  # type: ignore[attr-defined]
        rows = await conn.execute("SELECT policy ->> 'fairness_key' FROM durable.activity")
        return Counter([key async for (key,) in rows])


async def test_activities_have_the_fairness_key_of_their_run_or_its_parent(
    client: Client, serve: Serve, until: Any
) -> None:
    await client.set_queue_limits("default", concurrency=0)
    await serve(guests, family, stay)
    own = await client.start(guests, "default", 2, id="own", fairness_key="a")
    child = await client.start(family, 3, id="child", fairness_key="b", fairness_weight=2.0)

    async def all_wait() -> bool:
        return await queued_keys(client) == {"a": 2, "b": 3}

    await until(all_wait)
    await client.set_queue_limits("default")
    assert (await own.result(SOON), await child.result(SOON)) == (2, 3)


async def test_a_fairness_key_of_a_start_is_checked(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="fairness_key"):
        await client.start(guests, "default", 1, id="g", fairness_key="")
    with pytest.raises(InvalidArgumentError, match="fairness_weight"):
        await client.start(guests, "default", 1, id="g", fairness_weight=0.0)
