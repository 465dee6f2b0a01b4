"""User code that is right: a type checker must have nothing to say about it. Never run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from durable import ActivityError, Client, RetryPolicy, activity, workflow


@dataclass
class Order:
    item: str
    count: int


@activity.defn
async def price(order: Order) -> int:
    return order.count


@activity.defn(retry=RetryPolicy(max_attempts=3), start_to_close_timeout=timedelta(seconds=5))
def ship(order: Order, *, express: bool = False) -> str:
    return order.item


class Payments:
    @activity.defn
    async def charge(self, cents: int) -> str:
        return str(cents)


@workflow.defn
async def child(number: int) -> str:
    return str(number)


@workflow.defn(version="2")
async def buy(order: Order) -> str:
    cents: int = await price(order)
    parcel: str = await ship(order, express=True)
    slow: str = await ship.with_options(queue="slow")(order)
    task: asyncio.Task[int] = asyncio.create_task(price(order))
    both = await asyncio.gather(price(order), ship(order))
    first: int = both[0]
    async with asyncio.TaskGroup() as group:
        group.create_task(ship(order))
    await workflow.sleep(timedelta(days=30))
    await asyncio.wait_for(workflow.sleep(1), 2)
    signal: Order = await workflow.wait_signal("more", Order, timeout=60)
    async for number in workflow.signal_channel("numbers", int):
        cents += number
    name: str = await child(cents)
    other: str = await workflow.execute_child(child, cents, id="c")
    handle = workflow.start_child(Cart.run, 3)
    items: dict[str, int] = await handle
    drawn: int = workflow.side_effect(lambda: 3)
    try:
        await price(signal)
    except ActivityError as error:
        raise RuntimeError(error.name) from error
    receipt: str = await Payments.charge(5)
    charged: str = await Payments.charge.start(5)
    found: int = await workflow.execute_activity(price, order)
    named: Order = await workflow.execute_activity("elsewhere", 1, result_type=Order)
    print(receipt, charged, found, named)  # noqa: T201
    if items:
        workflow.continue_as_new(order)
    return parcel + slow + name + other + str(first + drawn + await task)


@workflow.defn
class Cart:
    def __init__(self) -> None:
        self.items: dict[str, int] = {}

    @workflow.run
    async def run(self, limit: int) -> dict[str, int]:
        await workflow.wait_condition(lambda: len(self.items) > limit)
        return self.items

    @workflow.signal
    def clear(self) -> None:
        self.items.clear()

    @workflow.query
    def count(self) -> int:
        return len(self.items)

    @workflow.update
    async def put(self, order: Order) -> int:
        return await price(order)

    @put.validator
    def check(self, order: Order) -> None:
        assert order.count


async def use(client: Client) -> None:
    handle = await client.start(buy, Order("tea", 1), id="b-1")
    parcel: str = await handle.result()
    cart = await client.start(Cart.run, 3, id="c-1")
    items: dict[str, int] = await cart.result()
    await cart.signal(Cart.clear)
    assert len(parcel) == len(items)


async def jobs(client: Client) -> None:
    handle = await client.enqueue(price, Order("tea", 1), delay=timedelta(hours=1), priority=2)
    cents: int = await handle.result()
    parcel: str = await (await client.enqueue(ship, Order("tea", cents), express=True)).result()
    again = client.get_handle("job-1", activity=ship)
    text: str = await again.result()
    for job in await client.enqueue_many(price, [(Order("tea", 1),)], ids=[parcel + text]):
        if not isinstance(job, Exception):
            cents = await job.result()
    await (await client.enqueue(Payments.charge, cents)).cancel()


async def unit_test_without_durable() -> None:
    cents: int = await price(Order("tea", 1))
    text: str = await child(cents)
    items: dict[str, int] = await Cart().run(3)
    assert len(text) == len(items)
