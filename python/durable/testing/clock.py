"""Clock: the time of one test environment, and what is due at which time.

Time here moves only when somebody moves it, from one due entry to the next. Entries of the same
time keep the order in which they were made, so that a test is the same each time it runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Entry:
    """Something due at a time. ``cancel`` makes it void."""

    __slots__ = ("call", "due_us")

    def __init__(self, due_us: int, call: Callable[[], None]) -> None:
        self.due_us = due_us
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Nothing will happen at its time. Safe twice."""
        self.call = None


class Clock:
    """Microseconds since the epoch, and a heap of entries."""

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us
        self._heap: list[tuple[int, int, Entry]] = []
        self._count = 0

    def at(self, due_us: int, call: Callable[[], None]) -> Entry:
        """Have ``call`` made when it is ``due_us``; at once with the next move if that is past."""
        entry = Entry(due_us, call)
        self._count += 1
        heapq.heappush(self._heap, (due_us, self._count, entry))
        return entry

    def next_due_us(self) -> int | None:
        """When the next entry is due; None when there is none."""
        while self._heap and self._heap[0][2].call is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def step(self) -> bool:
        """Move to the next entry and make its call; False when there is none."""
        due_us = self.next_due_us()
        if due_us is None:
            return False
        entry = heapq.heappop(self._heap)[2]
        self.now_us = max(self.now_us, due_us)
        call, entry.call = entry.call, None
        if call is not None:
            call()
        return True
