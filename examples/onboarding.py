"""Child workflows: a team is onboarded by one run per person, and a welcome tour that may go on.

A child has a history, retries and a life of its own. Its policy says what becomes of it when the
parent ends first: here the accounts must be done, the tour may go on for weeks.
"""

import asyncio
from datetime import timedelta

from durable import ChildWorkflowError, NonRetryable, activity, workflow


@activity.defn
async def make_account(name: str) -> str:
    if not name.isalpha():
        raise NonRetryable(f"{name!r} is no name")
    return f"{name.lower()}@example.org"


@activity.defn
async def send_tip(mail: str, number: int) -> None:
    """Send tip ``number``."""


@workflow.defn
async def tour(mails: list[str]) -> int:
    for number in range(3):
        await workflow.sleep(timedelta(weeks=1))
        await asyncio.gather(*(send_tip(mail, number) for mail in mails))
    return 3 * len(mails)


@workflow.defn
async def onboard(name: str) -> str:
    return await make_account(name)


@workflow.defn
async def onboard_team(names: list[str]) -> list[str]:
    # Calling a workflow in a workflow starts it as a child and waits for its result.
    found = await asyncio.gather(*(onboard(name) for name in names), return_exceptions=True)
    mails = [each for each in found if isinstance(each, str)]
    failed = sum(isinstance(each, ChildWorkflowError) for each in found)
    workflow.set_vars(failed=failed)
    child = workflow.start_child(tour, mails, id="tour", parent_close="abandon")
    await child.started()
    return mails
