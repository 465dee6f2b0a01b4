"""Generated asyncio programs: a crash after every event changes no result, no history, no time."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime

import pytest

from durable import activity, workflow
from durable.errors import (
    ActivityError,
    ChildWorkflowError,
    WorkflowError,
    WorkflowNotFoundError,
)
from durable.options import RetryPolicy
from durable.testing import WorkflowEnvironment

Trace = list[str]
EXPECTED = (ActivityError, ChildWorkflowError, TimeoutError, ExceptionGroup)


@activity.defn(retry=RetryPolicy(max_attempts=2, initial_interval=3))
async def divide(number: int) -> int:
    if number % 5 == 0:
        raise ValueError(f"{number} is bad")
    return number // 2


@activity.defn
def increment(number: int) -> int:
    return number + 1


@workflow.defn
async def child(number: int) -> int:
    await asyncio.sleep(number % 7)
    if number % 4 == 0:
        raise RuntimeError("not four")
    return number


class Program:
    """A program that a seed decides, as one coroutine of nested steps."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.trace: Trace = []

    async def run(self, depth: int = 0) -> None:
        """A few steps, one after the other; what they may raise is noted."""
        steps: list[Callable[[int], Awaitable[None]]] = [
            self.activity,
            self.child,
            self.sleep,
            self.signal,
            self.look,
            self.race,
            self.clean_up,
            self.limit,
            self.cancel,
        ]
        if depth < 3:
            steps += [self.gather, self.group]
        for _ in range(self.dice.randint(1, 3)):
            try:
                await self.dice.choice(steps)(depth)
            except EXPECTED as error:
                self.note(type(error).__name__)

    def note(self, value: object) -> None:
        self.trace.append(str(value))

    async def activity(self, depth: int) -> None:
        self.note(await divide(self.dice.randint(1, 20)))

    async def child(self, depth: int) -> None:
        self.note(await child(self.dice.randint(1, 12)))

    async def sleep(self, depth: int) -> None:
        await asyncio.sleep(self.dice.choice([0, 0.5, 1, 1, 2, 10]))

    async def signal(self, depth: int) -> None:
        self.note(await workflow.wait_signal("go", int, timeout=1))

    async def look(self, depth: int) -> None:
        self.note(workflow.now())
        self.note(workflow.random().randint(0, 99))

    async def race(self, depth: int) -> None:
        tasks = [asyncio.create_task(self.sleep(depth)), asyncio.create_task(self.activity(depth))]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        for task in done:
            self.note(type(task.exception()).__name__)

    async def clean_up(self, depth: int) -> None:
        try:
            await asyncio.sleep(1)
        finally:
            self.note(await increment(1))

    async def limit(self, depth: int) -> None:
        async with asyncio.timeout(self.dice.choice([0.5, 2, 5])):
            await self.run(depth + 1)

    async def cancel(self, depth: int) -> None:
        task = asyncio.create_task(self.run(depth + 1))
        await asyncio.sleep(self.dice.choice([0, 1]))
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            self.note("cancelled")

    async def gather(self, depth: int) -> None:
        parts = [self.run(depth + 1) for _ in range(self.dice.randint(1, 3))]
        await asyncio.gather(*parts, return_exceptions=self.dice.random() < 0.5)

    async def group(self, depth: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.dice.randint(1, 3)):
                group.create_task(self.run(depth + 1))


@workflow.defn
async def program(seed: int) -> Trace:
    made = Program(seed)
    await made.run()
    return made.trace


async def outcome(seed: int, *, crash: bool) -> tuple[Trace | str, list[str], datetime]:
    """Result, event kinds and end time of a program."""
    async with WorkflowEnvironment(crash_at_every_event=crash) as env:
        handle = await env.start(program, seed, id=f"program-{seed}")
        for number in range(3):
            try:
                await handle.signal("go", number)
            except WorkflowNotFoundError:
                break
        try:
            result: Trace | str = await handle.result()
        except WorkflowError as error:
            result = str(error)
        return result, (await handle.history()).kinds, env.now


@pytest.mark.parametrize("first", range(0, 160, 40))
async def test_crashes_change_nothing(first: int) -> None:
    for seed in range(first, first + 40):
        assert await outcome(seed, crash=True) == await outcome(seed, crash=False), seed
