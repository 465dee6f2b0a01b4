"""Activities that run in processes of their own, and so are in a module that can be imported.

Each appends its process id to a file where a test asks for it, so that the test sees where it ran.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

from durable import CompleteLater, NonRetryable, RetryAfter, RetryPolicy, activity, workflow

QUICK = RetryPolicy(initial_interval=0.01, max_interval=0.02, max_attempts=3)


def note(path: str, word: object) -> int:
    """Append a line; the number of lines now."""
    with Path(path).open("a") as file:
        file.write(f"{word}\n")
    return len(Path(path).read_text().splitlines())


@activity.defn(executor="process")
def pid(number: int) -> list[int]:
    return [number, os.getpid()]


@activity.defn(executor="process")
def facts() -> list[Any]:
    info = activity.info()
    activity.logger.info("asked")
    return [info.name, info.attempt, info.workflow_id, info.workflow_type, info.idempotency_key]


@activity.defn(executor="process", retry=QUICK)
def dies(path: str, how: str, times: int) -> int:
    """Ends its process in its first ``times`` attempts."""
    count = note(path, os.getpid())
    if count <= times:
        if how == "exit":
            os._exit(3)
        ctypes.string_at(0)
    return count


@activity.defn(executor="process", at_most_once=True)
def dies_once(path: str) -> None:
    note(path, os.getpid())
    os._exit(3)


@activity.defn(executor="process", retry=QUICK, start_to_close_timeout=2)
def hangs(path: str, times: int) -> int:
    """Does not end by itself in its first ``times`` attempts, and looks at nothing."""
    count = note(path, os.getpid())
    while count <= times:
        time.sleep(60)
    return count


@activity.defn(executor="process", retry=RetryPolicy(max_attempts=1))
def endless(path: str) -> None:
    note(path, os.getpid())
    while True:
        time.sleep(60)


@activity.defn(executor="process", retry=QUICK)
def beats(path: str) -> list[Any]:
    info = activity.info()
    if info.attempt == 1:
        activity.heartbeat("page", 4)
        activity.heartbeat("page", 5)
        raise RuntimeError("again")
    return [info.attempt, *info.heartbeat_details]


@activity.defn(executor="process", heartbeat_timeout=5, retry=RetryPolicy(max_attempts=1))
def beats_for_long(path: str) -> None:
    while True:
        activity.heartbeat()
        note(path, os.getpid())
        time.sleep(0.02)


@activity.defn(executor="process", retry=QUICK)
def fails(path: str, how: str) -> int:
    count = note(path, os.getpid())
    if how == "final":
        raise NonRetryable("a closed account")
    if how == "by base":
        raise FileNotFoundError("nothing there")
    if how == "exit":
        sys.exit(4)
    if count == 1:
        if how == "after":
            raise RetryAfter(0.01)
        activity.override_next_retry(delay=0.01)
        raise RuntimeError("not now")
    return count


@activity.defn(executor="process", completes_later=True)
def asks(path: str) -> str:
    note(path, activity.info().task_token)
    raise CompleteLater


@activity.defn(executor="process", retry=QUICK)
def writes(path: str, count: int) -> int:
    """Writes numbers to a stream, and how many there were to another one, which it ends."""
    numbers = activity.stream("numbers")
    for number in range(count):
        numbers.write_sync(number)
    total = activity.stream("total")
    total.write_sync(count)
    total.close_sync()
    note(path, os.getpid())
    return count


@activity.defn(executor="process", retry=QUICK)
def writes_and_fails(how: str) -> None:
    """Its first attempt ends badly, behind an item."""
    activity.stream("numbers").write_sync(activity.info().attempt)
    if activity.info().attempt == 1:
        if how == "exit":
            os._exit(3)
        raise RuntimeError("again")


@activity.defn(executor="process", retry=RetryPolicy(max_attempts=1))
def writes_too_much() -> None:
    activity.stream("numbers").write_sync("x" * 3_000_000)


@activity.defn(executor="process")
def writes_in_a_loop() -> None:
    """A coroutine of its own writes, too."""

    async def write() -> None:
        numbers = activity.stream("numbers")
        await asyncio.gather(*(numbers.write(number) for number in range(10)))
        await numbers.close()

    asyncio.run(write())


def plain(number: int) -> list[int]:
    return [number, os.getpid()]


applied = activity.defn(name="applied", executor="process")(plain)


@workflow.defn
async def endless_run(path: str) -> None:
    await endless(path)
