"""Plain asyncio in workflow code: the order of things is a function of history alone."""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.memory_run import MemoryRun

from durable import activity, workflow
from durable.engine import tasks
from durable.errors import ActivityError

VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


@activity.defn
async def step(number: int) -> int:
    return number


def play(run: MemoryRun, order: tuple[int, ...] = (2, 0, 1)) -> MemoryRun:
    """Let things happen until the run ends: activities in a twisted order, timers when idle."""
    turn = 0
    while not run.execution.is_finished:
        pending = run.execution.pending_activities()
        if pending:
            chosen = pending[order[turn % len(order)] % len(pending)]
            run.complete(chosen.ref, json.loads(chosen.input)[0])
        else:
            run.fire()
        turn += 1
        assert turn < 200, run.execution.where()
    return run


@workflow.defn
async def all_of_asyncio() -> list[Any]:
    log: list[Any] = []

    async def note(number: int) -> int:
        log.append(await step(number))
        return number

    log.append(await asyncio.gather(note(1), step(2), note(3)))
    done, pending = await asyncio.wait(
        [asyncio.create_task(note(n)) for n in range(10, 16)], return_when="FIRST_COMPLETED"
    )
    log.append([task.result() for task in done])
    log.append([task.get_name() for task in pending])
    for task in pending:
        task.cancel()
    log.append(
        [type(each).__name__ for each in await asyncio.gather(*pending, return_exceptions=True)]
    )
    for future in asyncio.as_completed([note(n) for n in range(20, 26)]):
        log.append(await future)
    async with asyncio.TaskGroup() as group:
        for number in range(30, 34):
            group.create_task(note(number))
    lock, semaphore = asyncio.Lock(), asyncio.Semaphore(2)

    async def locked(number: int) -> None:
        async with semaphore:
            await step(number)
            async with lock:
                log.append(number)

    await asyncio.gather(*(locked(number) for number in range(40, 45)))
    return log


@workflow.defn
async def sets_of_futures() -> list[Any]:
    log: list[Any] = []

    async def one(number: int) -> int:
        return await step(number)

    def name(future: Any) -> str:
        found = future.result()
        return str(found)

    waiting = {asyncio.gather(one(n), one(n + 1)) for n in range(1, 18, 2)}
    waiting |= {asyncio.shield(asyncio.create_task(one(n))) for n in range(20, 26)}
    waiting |= {asyncio.ensure_future(step(n)) for n in range(30, 36)}
    log.append(len(waiting))
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        log.append([name(future) for future in done])
        await workflow.sleep(1)
    return log


@workflow.defn
async def fails_in_a_group() -> list[Any]:
    log: list[Any] = []

    async def child(number: int) -> None:
        try:
            await step(number)
            if number == 52:
                raise ValueError(number)
            await workflow.sleep(number)
        except asyncio.CancelledError:
            log.append(f"cancelled {number}")
            raise

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(50, 56):
                group.create_task(child(number))
    except* ValueError as errors:
        log.append([str(error) for error in errors.exceptions])
    return log


@pytest.mark.parametrize("order", [(0,), (2, 0, 1), (5, 3, 1, 4)])
@pytest.mark.parametrize("program", [all_of_asyncio, fails_in_a_group, sets_of_futures])
def test_combinators_replay_from_every_prefix(program: Any, order: tuple[int, ...]) -> None:
    play(MemoryRun(program), order).check_replays()


SCRIPT = """
import hashlib, random, sys
sys.path[:0] = sys.argv[1:3]
import test_asyncio as tests
from support.memory_run import MemoryRun
for program in (tests.all_of_asyncio, tests.fails_in_a_group, tests.sets_of_futures):
    # Holes of every size, elsewhere in each process: addresses, too, must not matter.
    chance = random.Random(sys.argv[3])
    junk = [bytes(chance.randrange(500)) for _ in range(20_000)]
    junk = [each for each in junk if chance.random() < 0.5]
    run = tests.play(MemoryRun(program))
    print(hashlib.sha256(b"".join(run.batches)).hexdigest())
"""


def test_every_process_makes_the_same_history() -> None:
    """Addresses and hash seeds differ between processes; what the code does must not."""
    here = Path(__file__).parent
    seen = set()
    for seed in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(here), str(here.parent), seed],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        seen.add(done.stdout)
    assert len(seen) == 1


def test_timeouts_are_durable_timers() -> None:
    @workflow.defn
    async def limited() -> str:
        try:
            async with asyncio.timeout(3):
                await step(1)
        except TimeoutError:
            pass
        try:
            await asyncio.wait_for(step(2), 3)
        except TimeoutError:
            return "both"
        return "one"

    run = MemoryRun(limited)
    assert len(run.turns[0].timers) == 1
    run.fire()
    run.fire()
    assert run.result == "both"
    run.check_replays()


def test_a_timeout_that_did_not_strike_leaves_no_timer() -> None:
    @workflow.defn
    async def quick() -> int:
        async with asyncio.timeout(3):
            return await step(1)

    run = MemoryRun(quick)
    turn = run.complete(value=1)
    assert run.result == 1
    assert turn.timers_done == [run.turns[0].timers[0].ref]
    run.check_replays()


def test_shield_keeps_an_activity_through_a_cancellation() -> None:
    @workflow.defn
    async def shielded() -> list[Any]:
        task = asyncio.ensure_future(step(1))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            return ["cancelled", await task]
        return ["not"]

    run = MemoryRun(shielded)
    turn = run.cancel()
    assert not turn.cancelled_activities
    run.complete(value=7)
    assert run.result == ["cancelled", 7]
    run.check_replays()


def test_queues_events_and_context_variables_work() -> None:
    @workflow.defn
    async def plumbing() -> list[Any]:
        queue: asyncio.Queue[int] = asyncio.Queue(1)
        ready = asyncio.Event()
        log: list[Any] = []

        async def producer() -> None:
            VARIABLE.set(5)
            await ready.wait()
            for number in range(3):
                await queue.put(await step(number))
            log.append(VARIABLE.get())

        task = asyncio.create_task(producer())
        ready.set()
        for _ in range(3):
            log.append(await queue.get())
        await task
        log.append(VARIABLE.get())
        return log

    run = play(MemoryRun(plumbing))
    assert run.result == [0, 1, 5, 2, 0]
    run.check_replays()


def test_async_generators_are_closed_where_they_are_left() -> None:
    @workflow.defn
    async def generating() -> list[Any]:
        log: list[Any] = []

        async def numbers() -> AsyncIterator[int]:
            try:
                for number in range(5):
                    yield await step(number)
            finally:
                log.append(await step(99))

        async for number in numbers():
            log.append(number)
            if number == 1:
                break
        await step(7)
        return log

    run = play(MemoryRun(generating))
    assert run.result == [0, 1, 99]
    run.check_replays()


def test_a_task_that_nobody_keeps_is_not_collected() -> None:
    @workflow.defn
    async def forgetful() -> list[int]:
        log: list[int] = []

        async def background() -> None:
            log.append(await step(1))

        asyncio.create_task(background())  # noqa: RUF006
        await workflow.sleep(5)
        return log

    run = MemoryRun(forgetful)
    run.complete(value=1)
    run.fire()
    assert run.result == [1]
    run.check_replays()


def test_a_return_in_finally_swallows_no_suspension() -> None:
    @workflow.defn
    async def swallowing() -> str:
        try:
            await step(1)
        finally:
            return "finally"  # noqa: B012

    run = MemoryRun(swallowing)
    assert not run.execution.is_finished
    run.fail()
    assert run.result == "finally"
    run.check_replays()


def test_except_base_exception_catches_failures_and_not_suspensions() -> None:
    @workflow.defn
    async def catching() -> list[str]:
        seen = []
        for _ in range(2):
            try:
                await step(1)
            except BaseException as error:
                seen.append(type(error).__name__)
        return seen

    run = MemoryRun(catching)
    run.fail()
    run.complete(value=1)
    assert run.result == ["ActivityError"]
    run.check_replays()


def test_a_failure_reaches_everybody_who_awaits_it() -> None:
    @workflow.defn
    async def sharing() -> list[str]:
        handle = step.start(1)

        async def waiter() -> str:
            try:
                await handle
            except ActivityError as error:
                return str(error.attempt)
            return "none"

        return list(await asyncio.gather(waiter(), waiter()))

    run = MemoryRun(sharing)
    run.fail()
    assert run.result == ["3", "3"]
    run.check_replays()


def test_unnamed_tasks_are_numbered_per_run() -> None:
    @workflow.defn
    async def naming() -> list[str]:
        async def name() -> str:
            task = asyncio.current_task()
            assert task is not None
            return task.get_name()

        return [await name(), await asyncio.create_task(name())]

    first, second = MemoryRun(naming), MemoryRun(naming)
    assert first.result == second.result == ["main", "Task-2"]


def test_sets_are_ordered_in_workflow_code_and_builtin_elsewhere() -> None:
    tasks.install()
    assert type(vars(asyncio.tasks)["set"]([1])) is set

    @workflow.defn
    async def waiting() -> str:
        done, _ = await asyncio.wait([asyncio.ensure_future(step(1))])
        return type(done).__name__

    run = MemoryRun(waiting)
    run.complete(value=1)
    assert run.result == "OrderedSet"


def test_an_ordered_set_is_a_set_that_remembers_the_order() -> None:
    first = tasks.OrderedSet([3, 1, 2, 3])
    assert list(first) == [3, 1, 2]
    assert first == {1, 2, 3}
    assert isinstance(first, set)
    first.add(0)
    first.discard(9)
    first.remove(1)
    assert [*first] == [3, 2, 0]
    assert list(first | {7}) == [3, 2, 0, 7]
    assert list(first - {2}) == [3, 0]
    assert list(first & {0, 3}) == [3, 0]
    assert list(first ^ {3, 8}) == [2, 0, 8]
    first |= {5}
    first -= {3}
    first &= {2, 5, 0}
    first ^= {6}
    assert list(first) == [2, 0, 5, 6]
    assert first.pop() == 2
    assert repr(first.copy()) == "{0, 5, 6}"
    first.clear()
    assert len(first) == 0
    with pytest.raises(KeyError):
        first.pop()
    with pytest.raises(KeyError):
        first.remove(1)
