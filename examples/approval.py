"""An expense that a person must approve: a reminder after a day, a refusal after three.

The run holds no thread, no connection and no memory while it waits; a deploy in between changes
nothing. The answer is a signal, and one that comes before anybody waits for it is kept.
"""

from dataclasses import dataclass
from datetime import timedelta

from durable import activity, workflow

REMIND_AFTER = timedelta(days=1)
GIVE_UP_AFTER = timedelta(days=3)


@dataclass
class Expense:
    by: str
    cents: int


@dataclass
class Decision:
    by: str
    approved: bool


@activity.defn
async def send_mail(to: str, text: str) -> None:
    """Send a mail."""


@workflow.defn
async def approval(expense: Expense) -> str:
    if expense.cents < 5_000:
        return "approved: small"
    await send_mail("boss", f"{expense.by} asks for {expense.cents}")
    workflow.set_vars(waiting_for="boss")
    try:
        decision = await workflow.wait_signal("decision", Decision, timeout=REMIND_AFTER)
    except TimeoutError:
        await send_mail("boss", f"{expense.by} still waits")
        rest = GIVE_UP_AFTER - REMIND_AFTER
        try:
            decision = await workflow.wait_signal("decision", Decision, timeout=rest)
        except TimeoutError:
            await send_mail(expense.by, "nobody answered")
            return "refused: no answer"
    verdict = "approved" if decision.approved else "refused"
    await send_mail(expense.by, verdict)
    return f"{verdict}: {decision.by}"
