"""Clock: the store's time, estimated between two answers of the store.

Every answer that carries the store's time was made before it arrived here, so
``answer - monotonic at arrival`` is at most the true difference of the clocks: the estimate may lag
by a round trip, but is never ahead. The best (largest) difference of the last few seconds is used,
so that one slow answer does not pull the estimate back, and a step of the store's clock is followed
soon.
"""

from __future__ import annotations

import time

WINDOW_US = 2_000_000
"""How long a difference may be used after a smaller one was seen."""


class StoreClock:
    """The store's time in microseconds since the epoch, from what it said last."""

    __slots__ = ("_offset_us", "_seen_us")

    def __init__(self) -> None:
        self._offset_us: int | None = None
        self._seen_us = 0

    @property
    def is_set(self) -> bool:
        """Whether the store has said its time yet."""
        return self._offset_us is not None

    @property
    def age_seconds(self) -> float:
        """How long ago the difference in use was seen."""
        return (time.monotonic_ns() // 1000 - self._seen_us) / 1e6

    def observe(self, now_us: int) -> None:
        """Take in the time that the store gave with an answer that arrived just now."""
        here_us = time.monotonic_ns() // 1000
        offset_us = now_us - here_us
        known = self._offset_us
        if known is None or offset_us >= known or here_us - self._seen_us > WINDOW_US:
            self._offset_us = offset_us
            self._seen_us = here_us

    def now_us(self) -> int:
        """The estimate; only after the first `observe`."""
        assert self._offset_us is not None, "no answer of the store was observed yet"
        return time.monotonic_ns() // 1000 + self._offset_us

    def seconds_until(self, due_us: int) -> float:
        """How long until the store's clock shows ``due_us``; 0 when it is past."""
        return max(0.0, (due_us - self.now_us()) / 1e6)
