"""Relay: the supervisor passes hints on to its workers.

One worker hears of it at once, each time another one: what little there mostly is, it takes, and
the others are not woken for nothing. They hear of it a moment later, if they have not been first
themselves by then. Of mail only the worker hears that owns the run, if the hint says which.

Hints may be lost, so somebody has to look by the clock. The supervisor does, with one small query
for all its workers; their own polls are rare then, for the case that it does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping

from durable.runtime.spawn import WorkerProcess
from durable.store.base import WORK, Hint

OTHERS_SECONDS = 0.005
"""How much later than the first worker the others hear of work."""


class Relay:
    """Tells workers to look for work, by the numbers they have now."""

    def __init__(self, workers: Mapping[int, WorkerProcess]) -> None:
        self._workers = workers
        self._turn = 0
        self._later: dict[int, tuple[asyncio.TimerHandle, bool]] = {}
        """Who is to hear of work soon, and whether of runs only."""

    def hint(self, hint: Hint = WORK) -> None:
        """Pass one hint on."""
        if hint.sessions:
            # Mail, which nobody can read but the owners of its runs: they are here or elsewhere.
            self.tell(hint.sessions, work=False)
            return
        numbers = list(self._workers)
        if not numbers:
            return
        self._turn += 1
        first = numbers[self._turn % len(numbers)]
        loop = asyncio.get_running_loop()
        for number in numbers:
            timer, runs_only = self._later.get(number, (None, True))
            runs_only = runs_only and hint.runs_only
            if number == first:
                if timer is not None:
                    timer.cancel()
                self._tell(number, runs_only)
            else:
                timer = timer or loop.call_later(OTHERS_SECONDS, self._tell_late, number)
                self._later[number] = timer, runs_only

    def tell(self, sessions: Container[int], *, work: bool) -> None:
        """Hints found by a look: to those of the sessions, and for ``work`` of nobody to one."""
        for worker in self._workers.values():
            if worker.session in sessions:
                worker.hint(runs_only=True)
        numbers = list(self._workers)
        if work and numbers:
            self._turn += 1
            self._workers[numbers[self._turn % len(numbers)]].hint()

    def close(self) -> None:
        """Tell nobody any more."""
        for timer, _ in self._later.values():
            timer.cancel()
        self._later.clear()

    def _tell_late(self, number: int) -> None:
        self._tell(number, self._later[number][1])

    def _tell(self, number: int, runs_only: bool) -> None:
        self._later.pop(number, None)
        worker = self._workers.get(number)
        if worker is not None:
            worker.hint(runs_only=runs_only)
