"""Ask three providers at once, take the first good answer, cancel the others, give up in time.

Who wins is recorded: a replay has the same winner.
"""

import asyncio

from durable import ActivityError, RetryPolicy, activity, workflow


@activity.defn(retry=RetryPolicy(max_attempts=1))
async def quote(provider: str, item: str) -> int:
    return len(provider) * len(item)


@workflow.defn
async def fastest_quote(providers: list[str], item: str) -> str:
    async def ask(provider: str) -> tuple[str, int]:
        return provider, await quote(provider, item)

    tasks = [asyncio.create_task(ask(provider)) for provider in providers]
    try:
        async with asyncio.timeout(5):
            for answer in asyncio.as_completed(tasks):
                try:
                    provider, cents = await answer
                except ActivityError:
                    continue
                return f"{provider}: {cents}"
    except TimeoutError:
        return "nobody in time"
    finally:
        for task in tasks:
            task.cancel()
    return "nobody could"
