"""A new version of a workflow, deployed while runs of the old one are open.

Runs that began before the deploy go on as they began; new ones take the new path. `patched` asks
which is which, and records the answer. Without it the old runs would be parked, with a diff that
says what changed, until code that fits is back.
"""

from durable import activity, workflow


@activity.defn
async def charge(cents: int) -> str:
    return f"charged {cents}"


@activity.defn
async def check_fraud(cents: int) -> bool:
    return cents > 100_000


@workflow.defn(name="payment")
async def payment_v1(cents: int) -> str:
    """As it was when the open runs began."""
    await workflow.wait_signal("confirmed")
    return await charge(cents)


@workflow.defn(name="payment")
async def payment(cents: int) -> str:
    """As it is now."""
    await workflow.wait_signal("confirmed")
    if workflow.patched("check-fraud") and await check_fraud(cents):
        return "refused"
    return await charge(cents)


@workflow.defn(name="payment")
async def payment_careless(cents: int) -> str:
    """What not to do: the same change without asking."""
    await workflow.wait_signal("confirmed")
    if await check_fraud(cents):
        return "refused"
    return await charge(cents)
