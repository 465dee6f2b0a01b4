"""No outbox: the order and the workflow that handles it are written in one transaction.

The usual way to start work for a row just written is a table of messages, a process that reads it,
and care with duplicates. Here the start belongs to the caller's own transaction: both are there
after the commit, or neither is.
"""

from typing import Any

from durable import Client, activity, workflow


@activity.defn
async def confirm(order_id: int) -> str:
    return f"order {order_id} confirmed"


@workflow.defn
async def handle_order(order_id: int) -> str:
    return await confirm(order_id)


async def place_order(client: Client, conn: Any, item: str) -> int:
    """Write an order and start its workflow, in the transaction that ``conn`` is in."""
    query = "INSERT INTO shop_order (item) VALUES (%s) RETURNING id"
    row = await (await conn.execute(query, [item])).fetchone()
    order_id: int = row[0]
    await client.start(handle_order, order_id, id=f"order-{order_id}", conn=conn)
    if item == "nothing":
        # Anything may still go wrong here: the caller rolls back, and no run was ever started.
        raise ValueError("an order needs an item")
    return order_id
