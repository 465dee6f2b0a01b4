"""History: what happened in a run, in words a test can assert on.

    history = await handle.history()
    assert [each.name for each in history.activities] == ["reserve", "charge"]
    assert history.activities[1].result == "receipt-7"
    assert not history.timers

Values are plain JSON here; annotations belong to the code, not to the record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from durable._core import decode
from durable.engine.info import to_datetime
from durable.events import EventKind
from durable.runtime.recorded import RecordedRun

if TYPE_CHECKING:
    from durable._core import Event

OUTCOMES = {
    EventKind.ACTIVITY_COMPLETED: "completed",
    EventKind.CHILD_COMPLETED: "completed",
    EventKind.ACTIVITY_FAILED: "failed",
    EventKind.CHILD_FAILED: "failed",
    EventKind.TIMER_FIRED: "fired",
    EventKind.ACTIVITY_CANCEL_REQUESTED: "cancelled",
    EventKind.CHILD_CANCEL_REQUESTED: "cancelled",
    EventKind.TIMER_CANCELLED: "cancelled",
}


@dataclass(frozen=True)
class HistoryEvent:
    """One event. ``ref`` is the id of the command that it answers, or 0."""

    id: int
    kind: EventKind
    ref: int
    time: datetime | None
    name: str | None
    value: Any
    """The payload: arguments, result, failure, as plain JSON."""


@dataclass
class Step:
    """Something the code asked for, and what came of it.

    ``outcome`` is "completed", "failed", "fired", "cancelled" or None while it is open.
    """

    id: int
    name: str
    args: Any = None
    """The argument list, as plain JSON. None for a timer."""
    due: datetime | None = None
    """When a timer is due."""
    outcome: str | None = None
    result: Any = None
    failure: dict[str, Any] | None = None

    @property
    def attempts(self) -> int:
        """How many attempts a failed activity made; 0 when history does not say."""
        return int((self.failure or {}).get("attempt", 0))


class History(Sequence[HistoryEvent]):
    """The events of a run, in order, and views of them."""

    def __init__(self, recorded: RecordedRun) -> None:
        self.recorded = recorded
        """The bytes, for `Replayer` and for files."""
        self.raw: list[Event] = decode(recorded.run_id_bytes, recorded.batches, recorded.head_hash)
        self._events = [view(event) for event in self.raw]

    def __len__(self) -> int:
        return len(self._events)

    def __iter__(self) -> Iterator[HistoryEvent]:
        return iter(self._events)

    def __getitem__(self, index: Any) -> Any:
        return self._events[index]

    @property
    def kinds(self) -> list[str]:
        """The names of all event kinds, in order."""
        return [event.kind.name for event in self._events]

    @property
    def activities(self) -> list[Step]:
        """The activities, in the order the code asked for them."""
        return self._steps(EventKind.ACTIVITY_SCHEDULED)

    @property
    def timers(self) -> list[Step]:
        """The timers, in the order the code started them."""
        return self._steps(EventKind.TIMER_STARTED)

    @property
    def children(self) -> list[Step]:
        """The child workflows, in the order the code started them."""
        return self._steps(EventKind.CHILD_INITIATED)

    @property
    def signals(self) -> list[tuple[str, Any]]:
        """Name and arguments of each signal, in order of arrival."""
        return [
            (event.name or "", event.value)
            for event in self._events
            if event.kind == EventKind.SIGNAL_RECEIVED
        ]

    @property
    def patches(self) -> list[str]:
        """The patches whose new path the run took."""
        kind = EventKind.PATCH_MARKER
        return [event.name or "" for event in self._events if event.kind == kind]

    def save(self, path: str) -> None:
        """Write it to a file that `Replayer` and ``durable check`` read."""
        self.recorded.save(path)

    def _steps(self, kind: EventKind) -> list[Step]:
        steps: dict[int, Step] = {}
        for event in self._events:
            if event.kind == kind:
                is_timer = kind == EventKind.TIMER_STARTED
                steps[event.id] = Step(
                    event.id,
                    event.name or "",
                    args=None if is_timer else event.value,
                    due=event.time if is_timer else None,
                )
            elif (outcome := OUTCOMES.get(event.kind)) and (step := steps.get(event.ref)):
                if step.outcome is None:
                    step.outcome = outcome
                if outcome == "completed":
                    step.result = event.value
                elif outcome == "failed":
                    step.failure = event.value
        return list(steps.values())

    def __repr__(self) -> str:
        return f"<history {self.recorded.workflow_id}: {', '.join(self.kinds)}>"


def view(event: Event) -> HistoryEvent:
    """An event tuple of the core as an object."""
    event_id, kind, ref, time_us, name, _, _, payload = event
    return HistoryEvent(
        id=event_id,
        kind=EventKind(kind),
        ref=ref,
        time=to_datetime(time_us) if time_us else None,
        name=name,
        value=None if payload is None else json.loads(payload),
    )
