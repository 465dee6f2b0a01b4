"""The measured programs in Temporal's words. Apart, because its sandbox imports this file again."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from temporalio import workflow

LIMIT = timedelta(seconds=60)


@dataclass
class Order:
    number: int
    customer: str
    items: list[str]
    price: float


@dataclass
class Receipt:
    number: int
    total: float
    lines: list[str]


@workflow.defn(name="steps")
class Steps:
    @workflow.run
    async def run(self, count: int) -> int:
        total = 0
        for number in range(count):
            total += await workflow.execute_activity(
                "echo", number, result_type=int, start_to_close_timeout=LIMIT
            )
        return total


@workflow.defn(name="fan_out")
class FanOut:
    @workflow.run
    async def run(self, count: int) -> int:
        calls = (
            workflow.execute_activity("echo", number, result_type=int, start_to_close_timeout=LIMIT)
            for number in range(count)
        )
        return sum(await asyncio.gather(*calls))


@workflow.defn(name="orders")
class Orders:
    @workflow.run
    async def run(self, count: int) -> float:
        total = 0.0
        for number in range(count):
            receipt = await workflow.execute_activity(
                "charge",
                Order(number, f"customer {number}", ["bread", "cheese", "wine"], 12.5),
                result_type=Receipt,
                start_to_close_timeout=LIMIT,
            )
            total += receipt.total
        return total
