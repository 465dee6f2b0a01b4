"""Fan out, fan in: count the words of many pages side by side and add up.

`asyncio.gather` is all it takes. Each page is done once; when one of two hundred has to be tried
again, the other results are kept.
"""

import asyncio
from collections import Counter

from durable import activity, workflow


@activity.defn
async def fetch(page: str) -> str:
    return page


@activity.defn
def count(text: str) -> dict[str, int]:
    """A plain function: it runs on a thread of the worker."""
    return dict(Counter(text.lower().split()))


@workflow.defn
async def word_count(pages: list[str]) -> dict[str, int]:
    async def one(page: str) -> dict[str, int]:
        return await count(await fetch(page))

    total: Counter[str] = Counter()
    for found in await asyncio.gather(*(one(page) for page in pages)):
        total.update(found)
    return dict(total.most_common(3))
