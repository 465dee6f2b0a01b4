"""User code that is wrong: a type checker must object to each marked line. Never run."""

from __future__ import annotations

from right import Cart, Order, Payments, buy, child, price, ship

import durable
from durable import Client, Interceptor, SyncClient, activity, workflow
from durable.interceptors import Proceed, RunCall, StartCall


@workflow.defn
async def wrong(order: Order) -> None:
    await price("tea")  # expect: arg-type
    await price(order, 2)  # expect: call-arg
    await price()  # expect: call-arg
    text: str = await price(order)  # expect: assignment
    await ship(order, expres=True)  # expect: call-arg
    await ship.with_options(queue="slow")(3)  # expect: arg-type
    price.start("tea")  # expect: arg-type
    await Payments.charge("x")  # expect: arg-type
    cents: str = await workflow.execute_activity(price, order)  # expect: arg-type
    await child("x")  # expect: arg-type
    number: int = await workflow.execute_child(child, 1)  # expect: arg-type
    signal: Order = await workflow.wait_signal("more", int)  # expect: arg-type
    handle = workflow.start_child(Cart.run, 3)
    items: list[int] = await handle  # expect: assignment
    await workflow.sleep("long")  # expect: arg-type
    drawn: str = workflow.side_effect(lambda: 3)  # expect: assignment
    await workflow.execute_child_workflow(child, 1)  # expect: attr-defined
    await activity.rase_complete_async()  # expect: attr-defined
    print(text, cents, number, signal, items, drawn, durable.Schedule)  # noqa: T201  # expect: attr-defined


@workflow.defn  # expect: arg-type
def not_async(order: Order) -> int:
    return 1


@activity.defn(retries=3)  # expect: call-overload untyped-decorator
async def no_such_option() -> None:
    pass


async def use(client: Client) -> None:
    handle = await client.start(buy, Order("tea", 1), id="b-1")
    number: int = await handle.result()  # expect: assignment
    assert number
    await client.enqueue(price, "tea")  # expect: arg-type
    await client.enqueue(price, Order("tea", 1), 2)  # expect: arg-type call-arg
    await client.enqueue(price, Order("tea", 1), delay="soon")  # expect: call-overload
    job = await client.enqueue(ship, Order("tea", 1))
    cents: int = await job.result()  # expect: assignment
    assert cents


def use_without_asyncio(client: SyncClient) -> None:
    handle = client.start(buy, Order("tea", 1), id="b-1")
    number: int = handle.result()  # expect: assignment
    assert number
    client.start(buy, "tea", id="b-2")  # expect: arg-type
    client.start(buy, Order("tea", 1))  # expect: call-overload
    handle.signal()  # expect: call-arg
    client.list(nothing=1)  # expect: call-arg


Steps = Proceed[StartCall]


class Wrong(Interceptor):
    async def start_workflow(self, call: RunCall, proceed: Steps) -> None:  # expect: override
        await proceed(call)  # expect: arg-type

    def run_workflow(self, call: RunCall, proceed: Proceed[RunCall]) -> int:  # expect: override
        return 1


Client.connect("", interceptors=[Wrong])  # expect: list-item
