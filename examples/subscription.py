"""A subscription that survives anything: a payment each cycle, tried again, overdue when it fails.

Kill the worker between any two lines of `subscription`, stop the database, come back tomorrow: it
goes on where it was, and no payment that was recorded is made again.
"""

import random
from dataclasses import dataclass
from datetime import timedelta

from durable import ActivityError, RetryPolicy, activity, workflow


@dataclass
class Plan:
    total: int
    cycles: int
    cycle: timedelta


@dataclass
class Receipt:
    paid: int
    overdue: int


@activity.defn(retry=RetryPolicy(max_attempts=3, max_interval=timedelta(minutes=1)))
async def pay(amount: int) -> None:
    if random.random() < 0.7:
        raise RuntimeError("payment failed")


@workflow.defn
async def subscription(plan: Plan) -> Receipt:
    paid = overdue = 0
    share = plan.total // plan.cycles
    for cycle in range(plan.cycles):
        workflow.set_vars(paid=paid, overdue=overdue, cycle=cycle)
        await workflow.sleep_until(workflow.start_time() + cycle * plan.cycle)
        try:
            await pay(share + overdue)
        except ActivityError:
            overdue += share
        else:
            paid, overdue = paid + share + overdue, 0
    return Receipt(paid, overdue)
