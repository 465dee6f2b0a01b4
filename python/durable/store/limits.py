"""Limits of queues: at most so many activities at once, at most so many starts a second.

They are rows of ``queue_limit``, kept by the claim itself (sql/migrations/0007), so they hold for
all workers of all hosts together. A claimed attempt counts until its outcome is known or its worker
is declared dead; a rate is a bucket of tokens that holds one second's worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from durable.errors import InvalidArgumentError
from durable.store.base import Store
from durable.store.postgres import PostgresStore
from durable.store.sealed import SealedStore

CONCURRENCY_MAX = 1_000_000
RATE_MIN = 1e-6
RATE_MAX = 1e6


@dataclass(frozen=True)
class QueueLimits:
    """The limits of one queue. None is no limit."""

    queue: str
    concurrency: int | None
    """Activities that run at once; 0 pauses the queue."""
    rate: float | None
    """Starts of attempts per second."""


class Limits:
    """The limits of one store's queues."""

    def __init__(self, store: PostgresStore) -> None:
        self.store = store

    async def set(
        self, queue: str, *, concurrency: int | None = None, rate: float | None = None
    ) -> None:
        """Give the queue these limits instead of those it has; None for both removes them.

        Raise InvalidArgumentError for what cannot be a limit.
        """
        if concurrency is not None and not 0 <= concurrency <= CONCURRENCY_MAX:
            raise InvalidArgumentError(
                f"concurrency is 0 to {CONCURRENCY_MAX}, or None for no limit, not {concurrency!r}"
            )
        if rate is not None and not (math.isfinite(rate) and RATE_MIN <= rate <= RATE_MAX):
            raise InvalidArgumentError(
                f"rate is {RATE_MIN:g} to {RATE_MAX:g} starts per second, or None for no limit, "
                f"not {rate!r}"
            )
        burst = None if rate is None else max(1.0, float(rate))
        params = (queue, concurrency, None if rate is None else float(rate), burst)
        await self.store.fetch("set_queue_limit", params)

    async def all(self) -> list[QueueLimits]:
        """Every queue that has limits, by name."""
        return [QueueLimits(*row) for row in await self.store.fetch("queue_limits", ())]


def limits_of(store: Store) -> Limits | None:
    """The limits that a store keeps, also behind a codec; None where it keeps none."""
    inner = store.inner if isinstance(store, SealedStore) else store
    return Limits(inner) if isinstance(inner, PostgresStore) else None
