"""The program of the soak: a bit of everything, with an answer that can be computed beforehand.

Its activities: eager ones, a blocking one in a thread, one that fails now and then, and one whose
row and result are committed together. Besides: a child, a timer, a timeout, and signals.
"""

import asyncio
import random
import time
from typing import Any

from durable import RetryPolicy, activity, workflow

SIGNALS = 3
BOOKINGS = 3
SCHEMA = "CREATE TABLE booking (workflow_id text NOT NULL, number integer NOT NULL)"


@activity.defn
async def add(a: int, b: int) -> int:
    """The least an activity can do."""
    return a + b


@activity.defn
def double(value: int) -> int:
    """One that blocks its thread for a while."""
    time.sleep(random.random() * 0.05)
    return 2 * value


@activity.defn(retry=RetryPolicy(max_interval=0.5))
async def try_hard(value: int) -> int:
    """One that fails three times of ten."""
    if random.random() < 0.3:
        raise ConnectionError("not this time")
    return value


@activity.transactional
async def book(conn: Any, workflow_id: str, number: int) -> int:
    """Write a row in the transaction of the result: exactly once, whatever happens."""
    await conn.execute("INSERT INTO booking VALUES (%s, %s)", (workflow_id, number))
    return number


@workflow.defn
async def part(number: int) -> int:
    """A child of three steps."""
    total = 0
    for _ in range(3):
        total = await add(total, number)
    return total


@workflow.defn
async def mixture(number: int) -> list[int]:
    """See `answer`."""
    workflow_id = workflow.info().workflow_id
    ticks = workflow.signal_channel("tick", int)
    booked = 0
    for n in range(BOOKINGS):
        booked += await add(n, number)
        booked += await book(workflow_id, n)
    parallel = await asyncio.gather(double(number), try_hard(number), add(number, 1))
    await asyncio.sleep(0.2)
    of_child = await workflow.execute_child(part, number, id=f"{workflow_id}-part")
    received = [await ticks.receive() for _ in range(SIGNALS)]
    timeouts = 0
    try:
        async with asyncio.timeout(0.1):
            await workflow.wait_condition(lambda: False)
    except TimeoutError:
        timeouts += 1
    return [booked, *parallel, of_child, sum(received), timeouts]


def answer(number: int) -> list[int]:
    """What `mixture` returns when each signal ``n`` of `SIGNALS` carries ``n``."""
    booked = BOOKINGS * number + 2 * sum(range(BOOKINGS))
    return [booked, 2 * number, number, number + 1, 3 * number, sum(range(SIGNALS)), 1]
