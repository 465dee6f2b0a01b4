"""Warm runs: the runs this worker owns, in memory, with their coroutines.

A `WarmRun` is what a worker knows about one run between two commits: what the database has
(``next_seq``, ``head_hash``), what became true since (``facts`` and side rows), what is on its way
to the database (``flight``), and the activity attempts that run for it here. Losing any of it costs
a replay and nothing else.

`Cache` keeps them in order of use, with an estimate of their size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from durable.engine.execution import Execution, ScheduledActivity
from durable.events import ClaimedRun, Closing, NewTimer, QueuedActivity, Response, RunCommit
from durable.store.settled import NO_FLOOR

if TYPE_CHECKING:
    from durable.runtime.attempt import Attempt


class Fact(NamedTuple):
    """One inbound fact as it was delivered, kept until the commit that holds it is accepted."""

    kind: int
    ref: int
    name: str | None
    meta: bytes | None
    payload: bytes | None
    item_id: int
    """Its inbox row, or 0 when it came from this process."""


class Flight(NamedTuple):
    """A commit on its way, and what starts when it is accepted."""

    commit: RunCommit
    starts: list[ScheduledActivity]
    cancelled: list[int]
    facts: list[Fact]


class WarmRun:
    """One owned run. Changed on the worker's loop thread only."""

    __slots__ = (
        "activities",
        "consumed",
        "crashes",
        "early",
        "execution",
        "facts",
        "fence",
        "flight",
        "floor",
        "frozen",
        "gone",
        "has_more",
        "head_hash",
        "held",
        "is_dirty",
        "next_seq",
        "parent_ref",
        "parent_run_id",
        "park",
        "parks",
        "part",
        "queue",
        "read_back",
        "reading",
        "rearmed",
        "release",
        "responses",
        "run_id",
        "running",
        "seen",
        "settles",
        "size",
        "terminate",
        "timers",
        "timers_done",
        "unpark_at_us",
        "unread_count",
        "workflow_id",
        "workflow_type",
    )

    def __init__(self, claimed: ClaimedRun) -> None:
        self.run_id = claimed.run_id
        self.workflow_id = claimed.workflow_id
        self.workflow_type = claimed.workflow_type
        self.queue = claimed.queue
        self.part = claimed.part
        self.fence = claimed.fence
        self.next_seq = claimed.next_seq
        self.head_hash = claimed.head_hash
        self.crashes = claimed.crashes
        self.parks = claimed.parks
        self.parent_run_id = claimed.parent_run_id
        self.parent_ref = claimed.parent_ref
        self.execution: Execution | None = None
        self.size = 0

        self.facts: list[Fact] = []
        self.consumed: list[int] = []
        self.responses: list[Response] = []
        self.timers_done: list[int] = []
        self.activities: list[QueuedActivity] = []
        self.rearmed: list[NewTimer] = []
        """Timers that came with a copied history: their rows are owed until a commit has them."""
        self.flight: Flight | None = None
        self.is_dirty = False
        self.settles = False
        """A commit is owed even when nothing changed: it sets the crash counter back."""
        self.frozen = False
        """Its code must not be run now: it is being reloaded, parked or given up."""
        self.held: list[Fact] | None = [] if claimed.is_paused else None
        """What a paused run may not take, as soon as its worker knows of the pause; None: it is not
        paused. It is given up when nothing runs for it here any more."""
        self.gone = False
        """Not ours any more; whatever still refers to it must do nothing."""

        self.running: dict[int, Attempt] = {}
        """Attempts that run here for commands in this run's history, by ref."""
        self.early: set[int] = set()
        """Refs started before their commit, which that commit must not start or queue again."""
        self.timers: dict[int, int] = {}
        """Due times of its pending timers, by ref."""

        self.seen: set[int] = set()
        """Inbox rows delivered but perhaps still to be read again."""
        self.read_back: list[int] = []
        """Inbox rows whose deletion was accepted while the inbox was being read."""
        self.reading = False
        self.floor = NO_FLOOR
        """Inbox rows up to this id were all delivered: the next look begins after it."""
        self.has_more = False
        """The inbox holds more than was read at once: read on when that is committed."""
        self.unread_count = 0

        self.park: bytes | None = None
        self.unpark_at_us: int | None = None
        self.release = False
        self.terminate: Closing | None = None
        """How to close it without running its code, when a run that must not run is ended."""

    @property
    def is_idle(self) -> bool:
        """Whether everything it waits for is a row in the database."""
        return not (
            self.running or self.is_dirty or self.flight is not None or self.frozen or self.reading
        )


class Cache:
    """The warm runs by id, the least recently used first, and their estimated size in bytes."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, WarmRun] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[WarmRun]:
        return iter(list(self._runs.values()))

    def get(self, run_id: str) -> WarmRun | None:
        """The run, or None."""
        return self._runs.get(run_id)

    def add(self, run: WarmRun) -> None:
        """Put a run in as the most recently used."""
        self._runs[run.run_id] = run
        self.bytes += run.size

    def touch(self, run: WarmRun, size: int) -> None:
        """Note that the run was used and how large it is now."""
        self.bytes += size - run.size
        run.size = size
        self._runs.move_to_end(run.run_id)

    def remove(self, run: WarmRun) -> None:
        """Take the run out. Does nothing when another run object has taken its place."""
        if self._runs.get(run.run_id) is run:
            del self._runs[run.run_id]
            self.bytes -= run.size
        run.gone = True

    def idle_surplus(self, budget_bytes: int, scan_max: int = 256) -> list[WarmRun]:
        """Idle runs to drop, the least recently used first, to come down to the budget."""
        excess = self.bytes - budget_bytes
        chosen: list[WarmRun] = []
        for index, run in enumerate(self._runs.values()):
            if excess <= 0 or index >= scan_max:
                break
            if run.is_idle:
                chosen.append(run)
                excess -= run.size
        return chosen
