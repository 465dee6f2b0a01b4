"""Queues of the in-memory store: limits, and the sharing of a queue by fairness keys.

What sql/migrations/0007 does, plainly. The places in a queue are the same numbers, so both stores
hand attempts out in the same order.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from durable.events import QueueLimits

FAIR_START = 1 << 61
"""Places below it are simply in the order of arrival."""
COST = 1_000_000
"""How far an attempt of weight 1 moves its key on."""


@dataclass
class Bucket:
    """The limits of one queue, and the tokens of its rate."""

    limits: QueueLimits
    tokens: float
    refilled_us: int

    def refill(self, now_us: int) -> None:
        """Add what the time since then has brought."""
        if self.limits.rate is not None and self.limits.burst is not None:
            brought = self.limits.rate * max(0, now_us - self.refilled_us) / 1e6
            self.tokens = min(self.limits.burst, self.tokens + brought)
        self.refilled_us = now_us


class Buckets:
    """The limits of all queues that have any."""

    def __init__(self, clock_us: Callable[[], int]) -> None:
        self.clock_us = clock_us
        self.by_queue: dict[str, Bucket] = {}

    def set(self, limits: QueueLimits) -> None:
        """Give a queue other limits. What is in its bucket stays in it."""
        old = self.by_queue.pop(limits.queue, None)
        if limits.is_empty:
            return
        tokens = limits.burst or 0.0
        if old is not None and old.limits.rate is not None:
            old.refill(self.clock_us())
            tokens = min(old.tokens, tokens)
        self.by_queue[limits.queue] = Bucket(limits, tokens, self.clock_us())

    def all(self) -> list[QueueLimits]:
        """Every queue's, by name."""
        return [self.by_queue[queue].limits for queue in sorted(self.by_queue)]

    def key_limit(self, queue: str) -> int | None:
        """How many attempts of one fairness key may run at once."""
        bucket = self.by_queue.get(queue)
        return None if bucket is None else bucket.limits.key_concurrency

    def room(self, queue: str, wanted: int, running: int) -> int:
        """How many attempts may be taken now, at most ``wanted``."""
        bucket = self.by_queue.get(queue)
        if bucket is None:
            return wanted
        if bucket.limits.rate is not None:
            bucket.refill(self.clock_us())
            wanted = min(wanted, math.floor(bucket.tokens))
        if bucket.limits.concurrency is not None:
            wanted = min(wanted, bucket.limits.concurrency - running)
        return max(wanted, 0)

    def charge(self, queue: str, count: int) -> None:
        """So many attempts were taken."""
        bucket = self.by_queue.get(queue)
        if bucket is not None:
            bucket.tokens -= count


class Shares:
    """Who comes next where a queue is shared by keys: start-time fair queueing."""

    def __init__(self) -> None:
        self.clocks: dict[tuple[str, int], int] = {}
        self.keys: dict[tuple[str, int, str], int] = {}

    def place(
        self, queue: str, priority: int, policy: dict[str, Any], waiting: Iterable[int]
    ) -> int | None:
        """The place of an attempt; None where its queue is not shared. ``waiting``: the others'."""
        line = (queue, priority)
        if line not in self.clocks:
            if "fairness_key" not in policy:
                return None
            self.clocks[line] = max([FAIR_START, *(place + 1 for place in waiting)])
        key = (*line, policy.get("fairness_key", ""))
        place = max(self.keys.get(key, 0), self.clocks[line])
        self.keys[key] = place + max(1, round(COST / policy.get("fairness_weight", 1)))
        return place

    def served(self, queue: str, priority: int, place: int) -> None:
        """The attempt at that place was taken."""
        line = (queue, priority)
        if line in self.clocks:
            self.clocks[line] = max(self.clocks[line], place)


class KeyRooms:
    """Which attempts of one claim find a place of their fairness key free."""

    def __init__(self, most: int, running: Counter[str]) -> None:
        self.most = most
        self.running = running

    def admit(self, key: str | None) -> bool:
        """Take a place, if there is one; who has no key needs none."""
        if key is None:
            return True
        if self.running[key] >= self.most:
            return False
        self.running[key] += 1
        return True
