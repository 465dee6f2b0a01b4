"""The estimate of the store's time, and the timers of warm runs."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from durable import Client, RetryPolicy, Worker, activity, workflow
from durable.events import ClaimedRun, DueReport
from durable.options import WorkerOptions
from durable.runtime import timers as timers_module
from durable.runtime.metrics import Metrics
from durable.runtime.timers import FIRE_MAX, HEAP_MIN, Promoter, TimerHeap
from durable.runtime.wakeup import SHORTEST_SECONDS, TOLD_SECONDS, Backoff, Wakeup
from durable.runtime.warm import Cache, WarmRun
from durable.store import clock as clock_module
from durable.store.clock import WINDOW_US, StoreClock
from durable.store.memory import MemoryStore

SOON = 10.0


class Ticks:
    """A monotonic clock that stands still until told."""

    def __init__(self) -> None:
        self.us = 1_000_000

    def monotonic_ns(self) -> int:
        return self.us * 1000


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Ticks:
    ticks = Ticks()
    monkeypatch.setattr(clock_module, "time", ticks)
    return ticks


def warm_run() -> WarmRun:
    run_id = str(uuid.uuid4())
    return WarmRun(ClaimedRun(run_id, "w", "t", "q", None, 1, 1, 0, 0, 0, None, None, 0))


def test_the_estimate_is_never_ahead_of_the_store(ticks: Ticks) -> None:
    clock = StoreClock()
    store_ahead_us = 5_000_000
    for latency_us in (10, 90_000, 200, 5, 40_000):
        said_us = ticks.us + store_ahead_us
        ticks.us += latency_us
        clock.observe(said_us)
        assert clock.now_us() <= ticks.us + store_ahead_us


def test_one_slow_answer_does_not_pull_the_estimate_back(ticks: Ticks) -> None:
    clock = StoreClock()
    clock.observe(ticks.us + 100)
    before = clock.now_us()
    clock.observe(ticks.us + 100 - 50_000)
    assert clock.now_us() == before


def test_a_step_of_the_stores_clock_is_followed(ticks: Ticks) -> None:
    clock = StoreClock()
    clock.observe(ticks.us + 3_600_000_000)
    ticks.us += WINDOW_US + 1
    clock.observe(ticks.us)
    assert clock.now_us() == ticks.us


async def test_due_timers_fire_in_order_of_their_time_and_cancelled_ones_do_not() -> None:
    fired: list[int] = []
    done = asyncio.Event()

    def fire(run: WarmRun, ref: int) -> None:
        fired.append(ref)
        if len(fired) == 2:
            done.set()

    cache, clock = Cache(), StoreClock()
    clock.observe(1_000_000)
    heap = TimerHeap(cache, clock, fire)
    run = warm_run()
    cache.add(run)
    now_us = clock.now_us()
    heap.push(run, 1, now_us + 30_000)
    heap.push(run, 2, now_us + 10_000)
    heap.push(run, 3, now_us + 20_000)
    del run.timers[3]
    async with asyncio.timeout(SOON):
        await done.wait()
    assert fired == [2, 1]
    heap.clear()


async def test_timers_of_runs_that_left_do_not_pile_up() -> None:
    cache, clock = Cache(), StoreClock()
    clock.observe(1_000_000)
    heap = TimerHeap(cache, clock, lambda run, ref: None)
    for _ in range(5 * HEAP_MIN):
        run = warm_run()
        cache.add(run)
        heap.push(run, 1, clock.now_us() + 3_600_000_000)
        cache.remove(run)
    assert len(heap._heap) <= HEAP_MIN + 1
    heap.clear()


class Crowd:
    """Many timers of one warm run, due at once, and a worker that has enough to write already."""

    def __init__(self, count: int, *, busy_calls: int) -> None:
        self.count = count
        self.busy_calls = busy_calls
        self.fired: list[int] = []
        self.fired_at_call: list[int] = []
        self.done = asyncio.Event()
        cache, clock = Cache(), StoreClock()
        clock.observe(1_000_000)
        self.heap = TimerHeap(cache, clock, self.fire, self.is_busy)
        run = warm_run()
        cache.add(run)
        for ref in range(count):
            self.heap.push(run, ref, 1)

    def is_busy(self) -> bool:
        self.fired_at_call.append(len(self.fired))
        return bool(self.fired) and len(self.fired_at_call) <= self.busy_calls

    def fire(self, run: WarmRun, ref: int) -> None:
        self.fired.append(ref)
        if len(self.fired) == self.count:
            self.done.set()


async def test_timers_due_at_once_wait_for_the_commits_of_those_before_them() -> None:
    crowd = Crowd(3 * FIRE_MAX, busy_calls=5)
    assert crowd.heap.is_behind
    async with asyncio.timeout(SOON):
        await crowd.done.wait()
    assert crowd.fired_at_call == [0, *[FIRE_MAX] * 5, 2 * FIRE_MAX]
    assert not crowd.heap.is_behind


async def test_due_timers_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers_module, "FIRE_PAUSES_MAX", 2)
    crowd = Crowd(3 * FIRE_MAX, busy_calls=1000)
    async with asyncio.timeout(SOON):
        await crowd.done.wait()
    assert crowd.fired_at_call == [0, FIRE_MAX, FIRE_MAX, 2 * FIRE_MAX, 2 * FIRE_MAX]


class CrowdedStore(MemoryStore):
    """More timers are due than one promotion takes, always."""

    def __init__(self) -> None:
        super().__init__()
        self.promotions = 0
        self.asked = asyncio.Event()

    async def promote_due(self, limit: int) -> DueReport:
        self.promotions += 1
        self.asked.set()
        return DueReport(limit, 1, 1_000_000_000)


async def test_what_is_due_is_promoted_as_fast_as_it_is_claimed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timers_module, "HOLD_SECONDS", 3600.0)
    store, woken = CrowdedStore(), asyncio.Event()
    promoter = Promoter(store, StoreClock(), Metrics(), 600.0, woken.set)
    promoter.start()
    try:
        for number in range(1, 4):
            async with asyncio.timeout(SOON):
                await woken.wait()
            woken.clear()
            promoter.hint()
            promoter.expect(1)
            for _ in range(10):
                await asyncio.sleep(0)
            assert store.promotions == number
            promoter.caught_up()
    finally:
        await promoter.stop()


async def test_what_cannot_be_promoted_now_is_not_tried_in_a_hot_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timers_module, "HOLD_SECONDS", 3600.0)
    store = CrowdedStore()

    async def held(limit: int) -> DueReport:
        store.promotions += 1
        store.asked.set()
        return DueReport(0, 1, 1_000_000_000)

    monkeypatch.setattr(store, "promote_due", held)
    promoter = Promoter(store, StoreClock(), Metrics(), 600.0, lambda: None)
    promoter.start()
    try:
        async with asyncio.timeout(SOON):
            await store.asked.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert store.promotions == 1
    finally:
        await promoter.stop()


async def test_who_is_told_of_work_looks_less_often_for_what_comes_next() -> None:
    wakeup = Wakeup(5.0)
    for told, pause in ((False, SHORTEST_SECONDS), (True, TOLD_SECONDS)):
        wakeup.hint()
        await wakeup.wait(found=True, told=told)
        assert wakeup.pause_seconds == pause
    wakeup.hint()
    await wakeup.wait(found=False, told=True)
    assert wakeup.pause_seconds == 2 * TOLD_SECONDS


async def test_an_idle_poller_waits_longer_and_a_hint_ends_its_wait() -> None:
    wakeup = Wakeup(3600.0)
    for _ in range(40):
        wakeup.hint()
        await wakeup.wait(found=False)
    assert wakeup.pause_seconds == 3600.0
    waiting = asyncio.create_task(wakeup.wait(found=False))
    await asyncio.sleep(0)
    wakeup.hint()
    async with asyncio.timeout(SOON):
        await waiting
    wakeup.hint()
    await wakeup.wait(found=True)
    assert wakeup.pause_seconds < 1.0


def test_a_backoff_grows_to_its_limit_and_starts_over() -> None:
    backoff = Backoff(first_seconds=0.1, longest_seconds=1.0)
    pauses = [backoff.next_seconds() for _ in range(50)]
    assert all(0 < pause <= 1.0 for pause in pauses)
    assert max(pauses[:1]) <= 0.1
    backoff.reset()
    assert backoff.next_seconds() <= 0.1


@activity.defn(retry=RetryPolicy(initial_interval=0.2, max_attempts=3))
async def fails_twice() -> int:
    if activity.info().attempt < 3:
        raise RuntimeError("not yet")
    return activity.info().attempt


@workflow.defn
async def persistent() -> int:
    return await fails_twice()


async def test_a_retry_comes_when_it_is_due_and_not_at_the_next_poll() -> None:
    store = MemoryStore()
    options = WorkerOptions(poll_max_seconds=600.0)
    async with (
        Worker(store, workflows=[persistent], activities=[fails_twice], options=options),
        Client(store) as client,
    ):
        handle = await client.start(persistent, id="p")
        assert await handle.result(timeout=30) == 3
