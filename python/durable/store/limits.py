"""Limits of queues: at most so many activities at once, at most so many starts a second.

The store keeps them at the claim itself (sql/migrations/0007), so they hold for all workers of all
hosts together. A claimed attempt counts until its outcome is known or its worker is declared dead;
a rate is a bucket of tokens that holds one second's worth.
"""

from __future__ import annotations

import math

from durable.errors import InvalidArgumentError
from durable.events import QueueLimits
from durable.store.base import Store

CONCURRENCY_MAX = 1_000_000
RATE_MIN = 1e-6
RATE_MAX = 1e6


class Limits:
    """The limits of one store's queues: checked here, kept there."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def set(
        self,
        queue: str,
        *,
        concurrency: int | None = None,
        rate: float | None = None,
        key_concurrency: int | None = None,
    ) -> None:
        """Give the queue these limits instead of those it has; None for all removes them.

        Raise InvalidArgumentError for what cannot be a limit.
        """
        if concurrency is not None and not 0 <= concurrency <= CONCURRENCY_MAX:
            raise InvalidArgumentError(
                f"concurrency is 0 to {CONCURRENCY_MAX}, or None for no limit, not {concurrency!r}"
            )
        if key_concurrency is not None and not 1 <= key_concurrency <= CONCURRENCY_MAX:
            raise InvalidArgumentError(
                f"key_concurrency is 1 to {CONCURRENCY_MAX}, or None for no limit, "
                f"not {key_concurrency!r}"
            )
        if rate is not None and not (math.isfinite(rate) and RATE_MIN <= rate <= RATE_MAX):
            raise InvalidArgumentError(
                f"rate is {RATE_MIN:g} to {RATE_MAX:g} starts per second, or None for no limit, "
                f"not {rate!r}"
            )
        rate = None if rate is None else float(rate)
        await self.store.set_queue_limits(QueueLimits(queue, concurrency, rate, key_concurrency))

    async def all(self) -> list[QueueLimits]:
        """Every queue that has limits, by name."""
        return await self.store.queue_limits()
