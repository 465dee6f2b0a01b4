"""Calls that go back or start with a message, each wrong in one way. Never run."""

from __future__ import annotations

from right import Cart, Order, buy

from durable import Client, SyncClient
from durable.testing import StuckError, WorkflowEnvironment


async def go_back(client: Client) -> None:
    handle = await client.start(buy, Order("tea", 1), id="b-1")
    await handle.reset(12)  # expect: call-arg
    await handle.reset(to_event="price")  # expect: arg-type
    await handle.reset(before=1)  # expect: call-arg
    await handle.fork(to_event=1)  # expect: call-arg
    await handle.plan_reset(reason="why")  # expect: call-arg
    number: int = await (await handle.reset(to_event=1)).result()  # expect: assignment
    await handle.reset(workflow=Cart.run)  # expect: arg-type
    plan = await handle.plan_reset(to_event=1)
    plan.event_id = 2  # expect: misc
    assert number


def go_back_without_asyncio(client: SyncClient) -> None:
    handle = client.start(buy, Order("tea", 1), id="b-1")
    handle.reset(12)  # expect: call-arg
    number: int = handle.fork("b-2", to_event=1).result()  # expect: assignment
    assert number


async def start_with_a_message(client: Client) -> None:
    one = (Order("tea", 1),)
    ask, put = client.update_with_start, Cart.put
    text: str = await ask(Cart.run, 3, id="c", update=put, update_args=one)  # expect: arg-type
    await client.update_with_start(Cart.run, 3, id="c-1")  # expect: call-overload
    await client.signal_with_start(Cart.run, 3, signal=Cart.clear)  # expect: call-overload
    assert text


async def in_a_test(env: WorkflowEnvironment) -> None:
    handle = await env.start(buy, Order("tea", 1), id="b-1")
    await handle.reset(12)  # expect: call-arg
    number: int = await (await handle.fork("b-2", to_event=1)).result()  # expect: assignment
    name: str = StuckError().run_id  # expect: attr-defined
    assert number, name
