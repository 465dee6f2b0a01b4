"""The programs that are measured: one definition for replay, engine and worker processes.

Each has an answer that can be computed without running it. `bench.peers` says the same programs in
the words of each peer; both sides must give the same answers.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

from durable import activity, workflow


@dataclass
class Order:
    """A dataclass as users pass around: a few scalars, a list, another dataclass."""

    number: int
    customer: str
    items: list[str]
    price: float


@dataclass
class Receipt:
    """What `charge` makes of an order."""

    number: int
    total: float
    lines: list[str]


@activity.defn
async def echo(value: int) -> int:
    """The least an activity can do."""
    return value


@activity.defn
async def charge(order: Order) -> Receipt:
    """An activity with a dataclass in and out."""
    return receipt_of(order)


@activity.defn
async def describe(number: int) -> str:
    """An activity whose result has a size."""
    return record_of(number)


@workflow.defn
async def steps(count: int) -> int:
    """``count`` activities, one after another; the sum of their results."""
    total = 0
    for number in range(count):
        total += await echo(number)
    return total


@workflow.defn
async def fan_out(count: int) -> int:
    """``count`` activities at once; the sum of their results."""
    return sum(await asyncio.gather(*(echo(number) for number in range(count))))


@workflow.defn
async def orders(count: int) -> float:
    """``count`` activities with dataclasses, one after another; what they cost together."""
    total = 0.0
    for number in range(count):
        receipt = await charge(order_of(number))
        total += receipt.total
    return total


@workflow.defn
async def records(count: int) -> int:
    """``count`` activities with results of about 500 bytes; the length of all."""
    total = 0
    for number in range(count):
        total += len(await describe(number))
    return total


@workflow.defn
async def nap(until_us: int) -> int:
    """Sleep until a time in microseconds since the epoch."""
    await workflow.sleep_until(datetime.fromtimestamp(until_us / 1e6, UTC))
    return until_us


@workflow.defn
async def collect(count: int) -> int:
    """Take ``count`` signals called ``add``; the sum of what they carry."""
    channel = workflow.signal_channel("add", int)
    total = 0
    for _ in range(count):
        total += await channel.receive()
    return total


def order_of(number: int) -> Order:
    """The order that `orders` places as its ``number``-th."""
    return Order(number, f"customer {number}", ["bread", "cheese", "wine"], 12.5)


def receipt_of(order: Order) -> Receipt:
    """What `charge` answers."""
    return Receipt(order.number, order.price * len(order.items), order.items)


def record_of(number: int) -> str:
    """Text of 500 characters that differs by number."""
    return f"{number:010d}" * 50


def sum_below(count: int) -> int:
    """The answer of `steps` and `fan_out`."""
    return count * (count - 1) // 2
