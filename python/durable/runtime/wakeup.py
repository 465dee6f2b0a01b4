"""Wakeup: how long a poller pauses, and what ends the pause early.

Polling is the truth and hints are only hints. While polls find something the pause is short; each
empty poll doubles it up to a limit; a hint or the next known due time ends it at once. The pause is
drawn at random between half of it and all of it, so that a fleet does not poll in step.
"""

from __future__ import annotations

import asyncio
import random

SHORTEST_SECONDS = 0.01
TOLD_SECONDS = 0.1
"""The shortest pause of who is told of work, and so need not look for what comes next."""


class Wakeup:
    """The pause between two polls of one poller."""

    def __init__(self, longest_seconds: float, shortest_seconds: float = SHORTEST_SECONDS) -> None:
        self._longest = longest_seconds
        self._shortest = min(shortest_seconds, longest_seconds)
        self._event = asyncio.Event()
        self.pause_seconds = self._shortest

    def hint(self) -> None:
        """End the pause now (or the next one, when nobody waits)."""
        self._event.set()

    async def wait(self, *, found: bool, told: bool = False, at_most: float | None = None) -> None:
        """Pause after a poll that ``found`` something or not, for ``at_most`` seconds.

        ``told``: others said that there was something to find, and will say so again.
        """
        if found:
            self.pause_seconds = min(TOLD_SECONDS, self._longest) if told else self._shortest
        else:
            self.pause_seconds = min(self.pause_seconds * 2, self._longest)
        pause = self.pause_seconds * random.uniform(0.5, 1.0)
        if at_most is not None:
            pause = min(pause, at_most)
        await self._sleep(pause)

    async def wait_hint(self, at_most: float) -> None:
        """Pause until a hint, for ``at_most`` seconds, and leave the back-off as it is."""
        await self._sleep(at_most)

    async def _sleep(self, seconds: float) -> None:
        if not self._event.is_set():
            loop = asyncio.get_running_loop()
            timer = loop.call_later(seconds, self._event.set)
            try:
                await self._event.wait()
            finally:
                timer.cancel()
        self._event.clear()


class Backoff:
    """The pause before trying again what failed: doubling, capped, with full jitter."""

    def __init__(self, first_seconds: float = 0.05, longest_seconds: float = 2.0) -> None:
        self._first = first_seconds
        self._longest = longest_seconds
        self._failures = 0

    @property
    def failures(self) -> int:
        """How many failures there were in a row."""
        return self._failures

    def reset(self) -> None:
        """It worked."""
        self._failures = 0

    def next_seconds(self) -> float:
        """It failed again: how long to wait now."""
        ceiling = min(self._first * 2 ** min(self._failures, 16), self._longest)
        self._failures += 1
        return random.uniform(ceiling / 4, ceiling)
