"""An order that touches three services, and is undone when one of them says no.

Each step that succeeds says how to take it back; a failure, or a cancellation, takes back what was
done, the last first. A crash in the middle of that goes on in the middle of that.
"""

from dataclasses import dataclass

from durable import ActivityError, NonRetryable, activity, workflow


@dataclass
class Order:
    id: str
    item: str
    cents: int


@activity.defn
async def reserve(order: Order) -> str:
    return f"shelf for {order.item}"


@activity.defn
async def release(shelf: str) -> None:
    """Give the shelf back. It may be asked twice; releasing what is free is no error."""


@activity.defn
async def charge(order: Order) -> str:
    # The key is the same in every attempt: the payment service takes the money once.
    key = activity.info().idempotency_key
    return f"payment {key}"


@activity.defn
async def refund(payment: str) -> None:
    """Give the money back."""


@activity.defn
async def ship(order: Order) -> str:
    if order.item == "moon":
        # A business error: trying again cannot help, so the retry policy is not asked.
        raise NonRetryable(f"we do not ship {order.item}")
    return f"parcel with {order.item}"


@workflow.defn
async def buy(order: Order) -> str:
    try:
        async with workflow.Saga() as saga:
            shelf = await reserve(order)
            saga.add(release, shelf)
            payment = await charge(order)
            saga.add(refund, payment)
            return await ship(order)
    except ActivityError as error:
        return f"cancelled: {error.__cause__}"
