"""A run that leaves memory is freed at once: counting references is enough, with no collector.

A worker that gives up thousands of runs, or a check that replays them, would otherwise pay for
collections that walk through every object of every run that stays.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from support.memory_run import MemoryRun

from durable import activity, workflow
from durable.errors import NonDeterminismError


@activity.defn
async def price(item: int) -> int:
    return item


@workflow.defn
async def waits_for_an_activity() -> int:
    return await price(1)


@workflow.defn
async def sleeps() -> None:
    await asyncio.sleep(60)


@workflow.defn
async def gathers_commands() -> None:
    await asyncio.gather(price(1), price(2), workflow.sleep(5))


@workflow.defn
async def gathers_coroutines() -> None:
    async def one(item: int) -> int:
        return await price(item)

    await asyncio.gather(one(1), one(2), return_exceptions=True)


@workflow.defn
async def gathers_futures() -> None:
    loop = asyncio.get_running_loop()
    await asyncio.gather(loop.create_future(), loop.create_future())


@workflow.defn
async def groups() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(5))
        group.create_task(asyncio.sleep(6))


@workflow.defn
async def has_a_timeout() -> None:
    async with asyncio.timeout(9):
        await asyncio.wait_for(workflow.wait_signal("x"), 5)


@workflow.defn
async def waits_for_the_first() -> None:
    tasks = [asyncio.create_task(asyncio.sleep(each)) for each in (5, 6)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)


@workflow.defn
async def shields() -> None:
    await asyncio.shield(asyncio.create_task(asyncio.sleep(5)))


@workflow.defn
async def waits_for_an_event() -> None:
    await asyncio.Event().wait()


@workflow.defn
async def waits_for_a_condition() -> None:
    ready: list[int] = []
    await workflow.wait_condition(lambda: bool(ready))


@workflow.defn
async def has_handlers() -> None:
    workflow.on_query("q", lambda: 1)
    workflow.on_signal("s", lambda: None)
    workflow.on_update("u", lambda: None)
    await workflow.wait_signal("x")


@workflow.defn
async def tidies_up() -> None:
    try:
        await price(1)
    finally:
        await price(2)


@workflow.defn
async def has_ended() -> int:
    return 1


@workflow.defn
async def has_failed() -> int:
    raise ValueError("no")


PROGRAMS = [
    waits_for_an_activity,
    sleeps,
    gathers_commands,
    gathers_coroutines,
    gathers_futures,
    groups,
    has_a_timeout,
    waits_for_the_first,
    shields,
    waits_for_an_event,
    waits_for_a_condition,
    has_handlers,
    tidies_up,
    has_ended,
    has_failed,
]


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_an_evicted_run_is_freed_without_the_collector(program: Any) -> None:
    run = MemoryRun(program)
    execution = run.cold()
    run._executions.remove(execution)
    freed = [weakref.ref(execution), weakref.ref(execution._loop), weakref.ref(execution._main)]

    execution.evict()
    del execution

    assert [each() for each in freed] == [None, None, None]


@pytest.mark.usefixtures("no_collector")
def test_a_run_that_parted_from_its_history_is_freed_with_its_error() -> None:
    run = MemoryRun(waits_for_an_activity)
    with suppress(NonDeterminismError):
        run.cold(workflow=sleeps)
    freed = weakref.ref(run._executions.pop())

    assert freed() is None


def test_an_evicted_run_still_says_what_it_was() -> None:
    run = MemoryRun(waits_for_an_activity)
    execution = run.cold()

    execution.evict()
    execution.evict()

    assert execution.is_dead
    assert execution.vars == {}
    assert execution.info.workflow_id == "wf"
    assert execution.where() == []
    assert execution.take() is None


def test_a_loop_that_was_evicted_makes_no_tasks() -> None:
    run = MemoryRun(sleeps)
    loop = run.execution._loop
    run.execution.evict()

    async def late() -> None:
        raise AssertionError

    coroutine = late()
    try:
        with pytest.raises(RuntimeError, match="has left memory"):
            loop.create_task(coroutine)
    finally:
        coroutine.close()
