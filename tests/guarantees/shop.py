"""A subscription that strikes down its own worker, once, at the point it is told to.

Each payment leaves a line in a ledger file, so that a test can count what really happened. Cycle 1
fails at first and is tried again; cycle 2 is declined for good and paid with cycle 3.
"""

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from durable import ActivityError, NonRetryable, RetryPolicy, activity, workflow

PROMPT = RetryPolicy(initial_interval=0.05, max_interval=0.1, max_attempts=5)


@dataclass
class Order:
    ledger: str
    strike: str = ""
    """Where to die, once: ``turn:N`` in workflow code, ``before:N`` or ``after:N`` a payment."""
    cycles: int = 4
    cycle_seconds: float = 0.1


@dataclass
class Receipt:
    paid: int
    overdue: int


def point(order: Order, name: str) -> None:
    """Die here if this is the point, and it is the first time."""
    if order.strike == name and first_time(f"{order.ledger}.struck"):
        os.kill(os.getpid(), signal.SIGKILL)


def first_time(path: str) -> bool:
    """Whether nobody, in any process, has asked this before."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def exists(path: str) -> bool:
    return Path(path).exists()


def note(ledger: str, line: str) -> None:
    with Path(ledger).open("a") as file:
        file.write(f"{line}\n")


@activity.defn(retry=PROMPT)
async def pay(order: Order, cycle: int, amount: int) -> None:
    point(order, f"before:{cycle}")
    if cycle == 1 and first_time(f"{order.ledger}.failed"):
        raise RuntimeError("payment failed")
    if cycle == 2:
        raise NonRetryable("card declined")
    note(order.ledger, f"{cycle} {amount}")
    point(order, f"after:{cycle}")


@workflow.defn
async def charge(order: Order) -> Receipt:
    paid = overdue = 0
    share = 25
    for cycle in range(order.cycles):
        workflow.set_vars(paid=paid, overdue=overdue, cycle=cycle)
        if cycle:
            # However slow the machine: what was paid is recorded before the next strike.
            await workflow.sleep(order.cycle_seconds)
        with workflow.unsafe_allowed():
            point(order, f"turn:{cycle}")
        try:
            await pay(order, cycle, share + overdue)
        except ActivityError:
            overdue += share
        else:
            paid, overdue = paid + share + overdue, 0
    return Receipt(paid, overdue)


@activity.defn(retry=PROMPT)
async def hold(ledger: str) -> str:
    """Wait until a file says that it may end."""
    note(ledger, "held")
    while not exists(f"{ledger}.go"):
        await asyncio.sleep(0.02)
    return "done"


@workflow.defn
async def holding(ledger: str) -> str:
    return await hold(ledger)


@activity.defn
async def amble() -> None:
    """Take so long that a run beside this one has time to kill the worker."""
    await asyncio.sleep(0.3)


@workflow.defn
async def ambling(steps: int) -> str:
    for _ in range(steps):
        await amble()
    return "arrived"


@activity.defn
async def drink() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@workflow.defn
async def poison() -> None:
    await drink()
