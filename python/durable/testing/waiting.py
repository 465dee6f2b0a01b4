"""Waiting: how a test lets its world go on, with time or without."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from durable.testing.world import World

TURNS_MAX = 100_000
"""Turns that one wait may take: a loop that never ends is an error, not a hanging test."""
SETTLE_ROUNDS = 20
"""Rounds of the loop that activities and other tasks of the test get before a look at a run."""


class StuckError(AssertionError):
    """A wait that cannot end: nothing is due, nothing runs, and nobody sends anything."""


async def settle(world: World) -> None:
    """Let everything happen that can happen without time passing."""
    world.pump()
    for _ in range(SETTLE_ROUNDS):
        await asyncio.sleep(0)
        world.pump()
        if not world.is_busy():
            break


async def until(world: World, done: Callable[[], bool], describe: Callable[[], str]) -> None:
    """Let things happen, and time pass, until ``done()``; raise StuckError when that cannot be.

    ``describe()`` says who waits. Time moves when nothing else is left: no fact, no busy activity,
    and a round of the loop in which the other tasks of the test said nothing.
    """
    turns_end = world.turn_count + TURNS_MAX
    while True:
        world.pump()
        if done():
            return
        if world.turn_count > turns_end:
            raise StuckError(f"after {TURNS_MAX:,} turns {describe()} goes on and on")
        if world.is_busy():
            await wait_for_news(world, describe)
            continue
        await asyncio.sleep(0)
        world.pump()
        if done() or world.is_busy() or world.step():
            continue
        if world.parked:
            other = world.parked[0]
            raise StuckError(
                f"{describe()} waits, and {other.new.workflow_type} {other.new.workflow_id!r} is "
                f"parked: {other.error}"
            ) from other.error
        await wait_for_news(world, describe)


async def wait_for_news(world: World, describe: Callable[[], str]) -> None:
    """Wait until anything changed, in real time."""
    world.news.clear()
    try:
        async with asyncio.timeout(world.patience):
            await world.news.wait()
    except TimeoutError:
        raise StuckError(f"{describe()} waits, and nothing happens") from None
