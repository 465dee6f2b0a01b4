"""Money from one account to another: taken, then given, and given back when that fails.

The first step may fail without harm. After it, something must happen to the money, so the second is
tried again for as long as it takes, unless the bank says no for good.
"""

from dataclasses import dataclass

from durable import ActivityError, NonRetryable, RetryPolicy, activity, workflow


@dataclass
class Transfer:
    source: str
    target: str
    cents: int


LEDGER = {"Ann": 10_000, "Bob": 0}
LOCKED = {"Eve"}
BOOKED: set[str] = set()
"""What a bank keeps: balances, locked accounts, the keys of what was booked."""


def book(account: str, cents: int) -> None:
    """Book once per activity call, however many attempts it takes."""
    key = activity.info().idempotency_key
    if key in BOOKED:
        return
    if account in LOCKED:
        raise NonRetryable(f"the account of {account} is locked", type="AccountLocked")
    if LEDGER.get(account, 0) + cents < 0:
        raise NonRetryable(f"{account} has not enough money", type="NotEnough")
    LEDGER[account] = LEDGER.get(account, 0) + cents
    BOOKED.add(key)


@activity.defn
async def withdraw(account: str, cents: int) -> None:
    book(account, -cents)


@activity.defn(retry=RetryPolicy(max_attempts=None))
async def deposit(account: str, cents: int) -> None:
    book(account, cents)


@workflow.defn
async def move_money(transfer: Transfer) -> str:
    try:
        await withdraw(transfer.source, transfer.cents)
    except ActivityError as error:
        return f"refused: {error.__cause__}"
    workflow.set_status("in flight")
    try:
        await deposit(transfer.target, transfer.cents)
    except ActivityError as error:
        await deposit(transfer.source, transfer.cents)
        return f"returned: {error.__cause__}"
    return "moved"
