"""A thousand mails, fifty at a time, and no fuss about a few bad addresses.

`workflow.map` keeps so many activities under way and no more. Up to two per cent may fail: their
errors take the place of their results. One more, and the rest is not even begun.
"""

from dataclasses import dataclass

from durable import ActivityError, NonRetryable, RetryPolicy, activity, workflow


@dataclass
class Report:
    sent: int
    bad: list[str]


@activity.defn(retry=RetryPolicy(max_attempts=5), start_to_close_timeout=20)
async def send(address: str) -> str:
    if "@" not in address:
        raise NonRetryable(f"{address} is no address")
    return f"sent to {address}"


@workflow.defn
async def newsletter(addresses: list[str]) -> Report:
    results = await workflow.map(send, addresses, max_concurrency=50, tolerate=0.02)
    bad = [
        address
        for address, result in zip(addresses, results, strict=True)
        if isinstance(result, ActivityError)
    ]
    return Report(len(addresses) - len(bad), bad)
