"""Requirements on replay: what is the same each time, what is refused, what a worker may lose."""

import asyncio
import logging
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from durable import ContextError, GuardError, NonDeterminismError, Worker, activity, workflow
from durable.options import WorkerOptions
from durable.testing import Replayer, WorkflowEnvironment


@activity.defn
async def double(number: int) -> int:
    return number * 2


async def test_replay_01(env: WorkflowEnvironment) -> None:
    """replay-1: Random numbers and ids are the same in every replay."""

    @workflow.defn
    async def flow() -> list[str]:
        drawn = [str(workflow.random().random()), str(workflow.uuid4()), str(workflow.uuid7())]
        await double(1)
        await asyncio.sleep(0.02)
        return [*drawn, str(workflow.random().randint(0, 10**9))]

    handle = await env.start(flow)
    result = await handle.result()
    Replayer([flow]).replay(await handle.history())
    assert len(set(result)) == 4


async def test_replay_02(env: WorkflowEnvironment) -> None:
    """replay-2: Two runs draw different numbers."""

    @workflow.defn
    async def flow() -> str:
        return str(workflow.uuid4())

    assert await env.execute(flow) != await env.execute(flow)


async def test_replay_03(env: WorkflowEnvironment) -> None:
    """replay-3: The run's time in a replay is that of its history."""
    seen: list[list[str]] = []

    @workflow.defn
    async def flow() -> list[str]:
        times = [str(workflow.now())]
        await double(1)
        times.append(str(workflow.now()))
        await asyncio.sleep(0.02)
        times.append(str(workflow.now()))
        seen.append(times)
        return times

    handle = await env.start(flow)
    recorded = await handle.result()
    # What a worker could not write, it has run again: only the last time counts.
    seen.clear()
    Replayer([flow]).replay(await handle.history())
    assert seen
    assert all(times == recorded for times in seen)


async def test_replay_04(env: WorkflowEnvironment, caplog: pytest.LogCaptureFixture) -> None:
    """replay-4: What a run logs is not logged again by its replays."""
    caplog.set_level(logging.INFO, "durable.workflow")

    @workflow.defn
    async def flow() -> None:
        workflow.logger.info("begun")
        await double(1)
        await asyncio.sleep(0.02)
        workflow.logger.info("done")

    handle = await env.start(flow)
    await handle.result()
    said = [record.getMessage() for record in caplog.records if record.name == "durable.workflow"]
    # A turn that could not be written is run again, and says what it says again.
    assert [text for text, _ in groupby(said)] == ["begun", "done"]
    caplog.clear()
    Replayer([flow]).replay(await handle.history())
    assert not caplog.records


FORBIDDEN: dict[str, Callable[[], Any]] = {
    "open": lambda: Path(os.devnull).read_text(),
    "socket": lambda: socket.socket(),
    "subprocess": lambda: subprocess.Popen(["true"]),
    "thread": lambda: threading.Thread(target=print).start(),
    "time.sleep": lambda: time.sleep(0.001),
    "to_thread": lambda: asyncio.to_thread(print),
    "run_in_executor": lambda: asyncio.get_running_loop().run_in_executor(None, print),
    "create_connection": lambda: asyncio.open_connection("localhost", 1),
}


@pytest.mark.parametrize("name", FORBIDDEN)
async def test_replay_05(env: WorkflowEnvironment, name: str) -> None:
    """replay-5: What no replay could repeat raises at once and says what to use instead."""
    call = FORBIDDEN[name]

    @workflow.defn
    async def flow() -> str:
        try:
            found = call()
            if asyncio.iscoroutine(found):
                await found
        except GuardError as error:
            return str(error)
        return "allowed"

    said = await env.execute(flow)
    assert said != "allowed"
    assert "activity" in said or "asyncio" in said


async def test_replay_06(env: WorkflowEnvironment) -> None:
    """replay-6: The guard can be switched off for a block, by those who know."""

    @workflow.defn
    async def flow() -> str:
        with workflow.unsafe_allowed():
            return Path(os.devnull).read_text()  # noqa: ASYNC240 - what is shown

    assert await env.execute(flow) == ""


def test_replay_07() -> None:
    """replay-7: Outside of a workflow its functions say so."""
    for call in (workflow.now, workflow.info, workflow.uuid4, lambda: workflow.sleep(1)):
        with pytest.raises(ContextError):
            call()
    assert not workflow.in_workflow()


async def test_replay_08() -> None:
    """replay-8: In tests, code that asks something else when it is replayed is found at once."""
    calls: list[int] = []

    @workflow.defn
    async def flow() -> None:
        calls.append(1)
        await double(len(calls))
        await asyncio.sleep(1)

    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        with pytest.raises(NonDeterminismError):
            await env.execute(flow)


async def test_replay_09() -> None:
    """replay-9: A run that leaves memory runs none of its clean-up, and loses nothing."""
    undone: list[str] = []

    @activity.defn
    async def undo() -> None:
        undone.append("undone")

    @workflow.defn
    async def flow() -> str:
        try:
            await double(1)
            await asyncio.sleep(1)
            return "done"
        except asyncio.CancelledError:
            await undo()
            raise
        finally:
            workflow.set_vars(left=True)

    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        assert await env.execute(flow) == "done"
    assert undone == []


async def test_replay_10(env: WorkflowEnvironment) -> None:
    """replay-10: A finished history replays again and again."""

    @workflow.defn
    async def flow() -> int:
        total = 0
        for number in range(20):
            total = await double(total + number)
        return total

    handle = await env.start(flow)
    await handle.result()
    history = await handle.history()
    for _ in range(3):
        Replayer([flow]).replay(history)


@workflow.defn
async def long_one(steps: int) -> int:
    total = 0
    for step in range(steps):
        total += await double(step)
        await workflow.wait_signal("next")
    return total


OPTIONS = WorkerOptions(poll_max_seconds=0.2, drain_seconds=1.0)


async def test_replay_11(database: Any) -> None:
    """replay-11: A run goes on with the next worker where the last one left it."""
    handle = await database.client.start(long_one, 4, id="long-1")
    for _ in range(4):
        async with Worker(database.dsn, workflows=[long_one], activities=[double], options=OPTIONS):
            done = sum(event.kind == "ACTIVITY_COMPLETED" for event in await handle.history())
            await handle.signal("next")
            while (
                done == sum(event.kind == "ACTIVITY_COMPLETED" for event in await handle.history())
                and (await handle.describe()).closed_us is None
            ):
                await asyncio.sleep(0.02)
    async with Worker(database.dsn, workflows=[long_one], activities=[double], options=OPTIONS):
        assert await handle.result(20) == 12


async def test_replay_12(database: Any) -> None:
    """replay-12: A timer that was due while no worker ran fires when one does."""

    @workflow.defn
    async def nap() -> str:
        await workflow.sleep(0.3)
        return "rested"

    handle = await database.client.start(nap, id="nap-1")
    async with Worker(database.dsn, workflows=[nap], options=OPTIONS):
        while len(await handle.history()) < 2:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.4)
    async with Worker(database.dsn, workflows=[nap], options=OPTIONS):
        assert await handle.result(20) == "rested"


async def test_replay_13(database: Any) -> None:
    """replay-13: Many workers share the runs; each step is done once."""
    calls: list[int] = []

    @activity.defn
    async def once(number: int) -> int:
        calls.append(number)
        return number

    @workflow.defn
    async def flow(number: int) -> int:
        return await once(number) + await once(number + 1000)

    handles = [await database.client.start(flow, n, id=f"shared-{n}") for n in range(20)]
    workers = [
        Worker(database.dsn, workflows=[flow], activities=[once], options=OPTIONS) for _ in range(3)
    ]
    async with workers[0], workers[1], workers[2]:
        results = await asyncio.gather(*(handle.result(30) for handle in handles))
    assert results == [2 * number + 1000 for number in range(20)]
    assert sorted(calls) == sorted([*range(20), *range(1000, 1020)])
