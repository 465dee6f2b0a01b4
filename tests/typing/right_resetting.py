"""Calls that go back, and calls that start with a message: right as they are here. Never run."""

from __future__ import annotations

from right import Cart, Order, buy

from durable import Client, ForkPlan, SyncClient, WorkflowHandle
from durable.testing import StuckError, TestHandle, WorkflowEnvironment


async def go_back(client: Client) -> None:
    handle = await client.start(buy, Order("tea", 1), id="b-1")
    plan: ForkPlan = await handle.plan_reset(before_activity="price")
    again: WorkflowHandle[str] = await handle.reset(to_event=plan.event_id, reason="wrong price")
    copied = await again.fork("b-2", to_last_turn=True, keep_signals=True)
    parcel: str = await copied.result()
    moved = await handle.reset(workflow=buy, timeout=30)
    other: str = await moved.result()
    assert parcel == other


def go_back_without_asyncio(client: SyncClient) -> None:
    handle = client.start(buy, Order("tea", 1), id="b-1")
    parcel: str = handle.reset(to_event=handle.plan_reset(to_last_turn=True).event_id).result()
    assert parcel == handle.fork("b-2", to_event=1).result()


async def start_with_a_message(client: Client) -> None:
    cart: WorkflowHandle[dict[str, int]] = await client.signal_with_start(
        Cart.run, 3, id="c-1", signal=Cart.clear
    )
    count: int = await client.update_with_start(
        Cart.run, 3, id="c-1", update=Cart.put, update_args=(Order("tea", 1),)
    )
    await client.signal_with_start(Cart.run, 3, id="c-1", signal="clear", signal_args=[])
    assert (await cart.result())["tea"] == count


async def in_a_test(env: WorkflowEnvironment) -> None:
    handle = await env.start(buy, Order("tea", 1), id="b-1")
    try:
        await handle.result()
    except StuckError as error:
        failed: AssertionError = error
        raise failed from None
    again: TestHandle[str] = await handle.reset(to_event=1)
    parcel: str = await (await again.fork("b-2", to_last_turn=True)).result()
    plan: ForkPlan = await again.plan_reset(to_event=1)
    assert parcel == plan.run_id
