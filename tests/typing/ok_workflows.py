"""User code that is right: `mypy --strict` and pyright find nothing here."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

from durable import ActivityError, RetryPolicy, activity, workflow


@dataclass
class Order:
    item: str
    cents: int


@dataclass
class Receipt:
    order: Order
    number: str


@activity.defn
async def charge(order: Order, *, currency: str = "EUR") -> Receipt:
    return Receipt(order, currency)


@activity.defn(retry=RetryPolicy(max_attempts=3), start_to_close_timeout=timedelta(seconds=5))
def count(items: list[str]) -> int:
    return len(items)


@activity.defn(name="notify")
async def tell(text: str) -> None: ...


@workflow.defn
async def buy(order: Order) -> Receipt:
    receipt: Receipt = await charge(order, currency="USD")
    number: int = await count([order.item])
    await tell(f"{number} of {receipt.number}")
    quick: Receipt = await charge.with_options(priority=-1)(order)
    both: tuple[Receipt, int] = await asyncio.gather(charge(order), count(["a"]))
    workflow.set_vars(both=len(both))
    try:
        await asyncio.wait_for(tell("late"), 5)
    except ActivityError as error:
        workflow.logger.info("not told: %s", error.name)
    return quick


@workflow.defn(version="2")
async def buy_all(orders: list[Order]) -> list[str]:
    first: Receipt = await buy(orders[0])
    handle = workflow.start_child(buy, orders[0], id="child")
    await handle.started()
    second: Receipt = await handle
    third: Receipt = await workflow.execute_child(buy, orders[0])
    results = await workflow.map(buy, orders, max_concurrency=5, tolerate=1)
    results += await workflow.map(buy, orders, min_successful=0.5)
    good: list[Receipt] = [each for each in results if isinstance(each, Receipt)]
    return [each.number for each in [first, second, third, *good]]


@activity.defn(dynamic=True)
async def forward(name: str, order: Order) -> Receipt:
    return Receipt(order, name)


@workflow.defn(dynamic=True)
async def interpret(name: str, *steps: str) -> list[str]:
    return [await workflow.execute_activity(step, name) for step in steps]


@workflow.defn
async def nightly() -> int:
    before: int | None = workflow.last_result(int)
    failure: BaseException | None = workflow.last_failure()
    if failure is not None and workflow.has_last_result():
        workflow.logger.warning("the one before failed: %s", failure)
    return (before or 0) + 1


@workflow.defn
async def approval(name: str) -> bool:
    decision: bool = await workflow.wait_signal("decide", bool, timeout=timedelta(days=1))
    channel = workflow.signal_channel("votes", int)
    total: int = await channel.receive()
    async for vote in channel:
        total += vote
        if total > 10:
            break
    now: datetime = workflow.now()
    workflow.set_vars(now=now, total=total)
    draw: float = workflow.side_effect(lambda: 0.5)
    await workflow.wait_condition(lambda: total > draw)
    return decision


@workflow.defn
async def loop_for_ever(number: int) -> str:
    if number > 3:
        return "done"
    workflow.continue_as_new(number + 1)


@workflow.defn
class Basket:
    def __init__(self) -> None:
        self.items: list[str] = []

    @workflow.run
    async def run(self, owner: str) -> list[str]:
        await workflow.wait_condition(lambda: len(self.items) > 2)
        return self.items

    @workflow.signal
    def add(self, item: str) -> None:
        self.items.append(item)

    @workflow.signal(name="drop-all")
    def drop(self) -> None:
        self.items.clear()

    @workflow.update
    async def put(self, item: str) -> int:
        self.items.append(item)
        return len(self.items)

    @put.validator
    def check(self, item: str) -> None: ...

    @workflow.query
    def size(self) -> int:
        return len(self.items)


@workflow.defn
class Till:
    @workflow.init
    def __init__(self, order: Order, *, limit: int = 3) -> None:
        self.orders: list[Order] = [order]
        self.limit = limit

    @workflow.run
    async def run(self, order: Order, *, limit: int = 3) -> int:
        await workflow.wait_condition(lambda: len(self.orders) >= self.limit)
        return len(self.orders)


@workflow.defn
async def shop(order: Order) -> int:
    total: int = await workflow.execute_child(Till.run, order)
    return total
