"""Bounded parallel map: one call per item, so many at a time, and how many of them may fail.

So many workers take the items one after another, in order. The failure that is one too many leaves
its worker; that cancels the others, and what they have not taken is never called.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, TypeVar

from durable.errors import ConfigurationError, MapFailedError

T = TypeVar("T")
R = TypeVar("R")


async def map_activity(
    call: Callable[[T], Awaitable[R]],
    items: Sequence[T],
    max_concurrency: int,
    tolerate: int | float,
    min_successful: int | float | None,
) -> list[R | BaseException]:
    """Call for each item with bounded concurrency; see `durable.workflow.map`."""
    if max_concurrency < 1:
        raise ConfigurationError(f"max_concurrency must be 1 or more, not {max_concurrency}")
    total = len(items)
    needed = None if min_successful is None else needed_of(min_successful, total, tolerate)
    failures_max = tolerated_of(tolerate, total) if needed is None else total - needed
    if needed is not None and needed > total:
        raise MapFailedError(succeeded=0, failed=0, needed=needed, total=total)
    results: list[Any] = [None] * total
    numbered: Iterator[tuple[int, T]] = iter(enumerate(items))
    failed = succeeded = 0

    async def work() -> None:
        nonlocal failed, succeeded
        for index, item in numbered:
            try:
                results[index] = await call(item)
                succeeded += 1
            except Exception as error:
                failed += 1
                if failed <= failures_max:
                    results[index] = error
                elif needed is None:
                    raise
                else:
                    raise MapFailedError(
                        succeeded=succeeded, failed=failed, needed=needed, total=total
                    ) from error

    workers = [asyncio.create_task(work()) for _ in range(min(max_concurrency, total))]
    try:
        await asyncio.gather(*workers)
    except BaseException:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        raise
    return results


def tolerated_of(tolerate: int | float, total: int) -> int:
    """How many of ``total`` may fail."""
    return math.floor(share_of(tolerate, total)) if is_share(tolerate) else int(tolerate)


def needed_of(min_successful: int | float, total: int, tolerate: int | float) -> int:
    """How many of ``total`` must succeed; raise ConfigurationError for what cannot be meant."""
    if tolerate:
        raise ConfigurationError(
            "min_successful and tolerate say the same from two sides: leave one of them out"
        )
    if is_share(min_successful):
        return math.ceil(share_of(min_successful, total))
    if not isinstance(min_successful, int) or min_successful < 0:
        raise ConfigurationError(
            f"min_successful is a number of items, or a share between 0 and 1, "
            f"not {min_successful!r}"
        )
    return int(min_successful)


def is_share(given: int | float) -> bool:
    """Whether it is a part of the items, not a number of them."""
    return isinstance(given, float) and 0 < given < 1


def share_of(share: float, total: int) -> Fraction:
    """That part of ``total``, of the number as it was written: 0.29 of 100 is 29 and not less."""
    return Fraction(repr(share)) * total
