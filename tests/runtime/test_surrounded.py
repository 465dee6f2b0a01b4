"""Attempts with interceptors around them end as those without: cancelled, timed out, later."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from durable import (
    ActivityError,
    AttemptLostError,
    Client,
    CompleteLater,
    Interceptor,
    RetryPolicy,
    activity,
    workflow,
)
from durable.interceptors import ActivityCall, Proceed
from durable.options import WorkerOptions
from durable.runtime.worker import Worker

SOON = 30.0
ONCE = RetryPolicy(max_attempts=1)
began = threading.Event()
left = threading.Event()
tokens: list[str] = []


class Watch(Interceptor):
    """Notes how each attempt ended, as seen from around it."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, str]] = []

    async def run_activity(self, call: ActivityCall, proceed: Proceed[ActivityCall]) -> Any:
        try:
            result = await proceed(call)
        except BaseException as error:
            self.ends.append((call.info.name, type(error).__name__))
            raise
        self.ends.append((call.info.name, "ok"))
        return result


@activity.defn(retry=ONCE, wait_cancel=True)
def patient() -> str:
    """Works on until it is told to stop, and then leaves when it is ready."""
    began.set()
    while not activity.is_cancelled():
        time.sleep(0.01)
    left.set()
    return "stopped"


@activity.defn(retry=ONCE, wait_cancel=True)
async def endless() -> None:
    began.set()
    await asyncio.Event().wait()


@activity.defn(retry=ONCE, start_to_close_timeout=0.2)
async def too_long() -> None:
    await asyncio.Event().wait()


@activity.defn(executor="process", retry=ONCE, start_to_close_timeout=0.5)
def stuck() -> None:
    while True:
        time.sleep(0.1)


@activity.defn(executor="process", at_most_once=True)
def dies() -> None:
    import os

    os._exit(3)


@activity.defn(completes_later=True, start_to_close_timeout=60)
async def asks() -> str:
    tokens.append(activity.info().task_token)
    raise CompleteLater


@activity.defn(completes_later=True, start_to_close_timeout=60)
def asks_on_a_thread() -> str:
    tokens.append(activity.info().task_token)
    raise CompleteLater


@activity.defn(retry=ONCE)
def stops_iterating() -> None:
    raise StopIteration


@activity.defn(retry=ONCE)
async def quick() -> str:
    return "quick"


ACTIVITIES: dict[str, Any] = {
    each.name: each
    for each in (
        *(patient, endless, too_long, stuck, dies),
        *(asks, asks_on_a_thread, stops_iterating, quick),
    )
}


@workflow.defn
async def cancels(name: str) -> str:
    handle = ACTIVITIES[name].start()
    await workflow.wait_signal("cancel")
    handle.cancel()
    try:
        await handle
    except BaseException as error:
        return type(error).__name__
    return "ended"


@workflow.defn
async def calls(name: str) -> str:
    try:
        return str(await ACTIVITIES[name]())
    except ActivityError as error:
        return type(error.__cause__).__name__


@pytest.fixture(autouse=True)
def _fresh() -> None:
    began.clear()
    left.clear()
    tokens.clear()


def worker(dsn: str, watch: Watch) -> Worker:
    return Worker(
        dsn,
        workflows=[cancels, calls],
        activities=ACTIVITIES.values(),
        options=WorkerOptions(drain_seconds=1.0),
        interceptors=[watch],
    )


async def set_soon(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, SOON)


@pytest.mark.parametrize("name", ["patient", "endless"])
async def test_a_cancelled_attempt_is_told_and_then_its_interceptor(
    client: Client, dsn: str, name: str
) -> None:
    watch = Watch()
    async with worker(dsn, watch):
        handle = await client.start(cancels, name, id=name)
        await set_soon(began)
        await handle.signal("cancel")
        outcome = await handle.result(SOON)
        if name == "patient":
            # It is done all the same: what a thread returns counts.
            await set_soon(left)
            assert (outcome, watch.ends) == ("ended", [("patient", "ok")])
        else:
            assert outcome == "CancelledError"
            assert watch.ends == [("endless", "CancelledError")]
        # The slot is free again.
        again = await client.start(calls, "quick", id="again")
        assert await again.result(SOON) == "quick"


@pytest.mark.parametrize("name", ["too_long", "stuck"])
async def test_an_attempt_over_its_time_fails_and_its_interceptor_ends(
    client: Client, dsn: str, name: str
) -> None:
    watch = Watch()
    async with worker(dsn, watch):
        handle = await client.start(calls, name, id=name)
        assert await handle.result(SOON) == "TimeoutError"
        async with asyncio.timeout(SOON):
            while not watch.ends:
                await asyncio.sleep(0.02)
    assert [each for each, _ in watch.ends] == [name]


async def test_a_process_that_dies_loses_what_must_not_be_repeated(
    client: Client, dsn: str
) -> None:
    watch = Watch()
    async with worker(dsn, watch):
        handle = await client.start(calls, "dies", id="d")
        assert await handle.result(SOON) == AttemptLostError.__name__
    assert [each for each, _ in watch.ends] == ["dies"]


@pytest.mark.parametrize("name", ["asks", "asks_on_a_thread"])
async def test_others_complete_what_passes_through_as_complete_later(
    client: Client, dsn: str, name: str
) -> None:
    watch = Watch()
    async with worker(dsn, watch):
        handle = await client.start(calls, name, id=name)
        async with asyncio.timeout(SOON):
            while not watch.ends:
                await asyncio.sleep(0.02)
        assert watch.ends == [(name, "CompleteLater")]
        await client.complete_activity(tokens[0], "answer")
        assert await handle.result(SOON) == "answer"


async def test_a_stop_iteration_on_a_thread_fails_the_attempt(client: Client, dsn: str) -> None:
    watch = Watch()
    async with worker(dsn, watch):
        handle = await client.start(calls, "stops_iterating", id="s")
        assert await handle.result(SOON) == "RuntimeError"


async def test_a_worker_that_ends_waits_for_no_thread(client: Client, dsn: str) -> None:
    watch = Watch()
    async with worker(dsn, watch):
        await client.start(cancels, "patient", id="p")
        await set_soon(began)
    await set_soon(left)
