"""Forking: the first part of a run's history as the beginning of another run.

A history may be cut after any fact. What is before that fact is copied, for a history ends where
the code waits; the fact itself is the first mail of the new run, and what the code then asks for is
new. `cut_before` finds where, `open_work` what the code waited for at that moment, and
`copy_events` writes what is copied as one batch, chained from the new run's id. The start that is
copied says in its meta whose history it is, and with whose seed random numbers are drawn.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from durable._core import Loop, decode
from durable.engine.start import StartMeta
from durable.errors import InvalidArgumentError
from durable.events import EventKind

if TYPE_CHECKING:
    from durable._core import Event

COMMANDS = 64
"""Kinds from here on are commands of the code; those below are facts."""
ENDINGS = frozenset({EventKind.RUN_TERMINATED, EventKind.RUN_TIMED_OUT})
AWAITED = frozenset(
    {
        EventKind.ACTIVITY_SCHEDULED,
        EventKind.TIMER_STARTED,
        EventKind.CHILD_INITIATED,
        EventKind.EXTERNAL_SIGNAL,
        EventKind.EXTERNAL_CANCEL,
    }
)
ANSWERS = frozenset(
    {
        EventKind.ACTIVITY_COMPLETED,
        EventKind.ACTIVITY_FAILED,
        EventKind.TIMER_FIRED,
        EventKind.TIMER_CANCELLED,
        EventKind.CHILD_COMPLETED,
        EventKind.CHILD_FAILED,
        EventKind.EXTERNAL_DONE,
        EventKind.EXTERNAL_FAILED,
    }
)
BOUND = frozenset({EventKind.CHILD_INITIATED, EventKind.EXTERNAL_SIGNAL, EventKind.EXTERNAL_CANCEL})
"""Commands whose answers come to the run that gave them, and to no other."""
COPY_BYTES_MAX = 32 * 1024 * 1024
"""Half of what a batch may have."""


def is_copy(batch: bytes) -> bool:
    """Whether a run's first batch holds more than its start: its third byte is their number."""
    return batch[2:3] != b"\x01"


def cut_before(
    events: Sequence[Event],
    *,
    to_event: int | None = None,
    before_activity: str | None = None,
    to_last_turn: bool = False,
) -> int:
    """The last event to keep: a fact, after which the code goes on anew.

    Raise InvalidArgumentError for a point that there is not, or without exactly one.
    """
    if (to_event is not None) + (before_activity is not None) + to_last_turn != 1:
        raise InvalidArgumentError("give one of to_event, before_activity and to_last_turn")
    if not events:
        raise InvalidArgumentError("the run has no history any more: its retention is over")
    if to_event is not None:
        if not 1 <= to_event <= len(events):
            raise InvalidArgumentError(f"to_event is 1 to {len(events)}, not {to_event!r}")
        last = to_event
    elif before_activity is not None:
        scheduled = [
            event[0]
            for event in events
            if event[1] == EventKind.ACTIVITY_SCHEDULED and event[4] == before_activity
        ]
        if not scheduled:
            raise InvalidArgumentError(
                f"the run has not come to an activity {before_activity!r}; "
                "its history names those that it has come to"
            )
        last = scheduled[-1] - 1
    else:
        last = next((event[0] for event in reversed(events) if event[1] >= COMMANDS), len(events))
    while events[last - 1][1] >= COMMANDS or events[last - 1][1] in ENDINGS:
        last -= 1
    return last


def open_work(events: Sequence[Event]) -> list[Event]:
    """The commands among ``events`` that wait for their outcome at their end."""
    answered = {event[2] for event in events if event[1] in ANSWERS}
    return [event for event in events if event[1] in AWAITED and event[0] not in answered]


def check_cut(events: Sequence[Event], last: int) -> list[Event]:
    """What is open at the cut and begins again in the new run: activities and timers.

    Raise InvalidArgumentError when that is a child or a message to another run, whose answer would
    go to the old run; the error names a point that will do.
    """
    found = open_work(events[:last])
    bound = [event for event in found if event[1] in BOUND]
    if bound:
        what = EventKind(bound[0][1]).name
        raise InvalidArgumentError(
            f"at event {last} the run waits for {what} {bound[0][4] or ''} of event {bound[0][0]}, "
            f"which answers to it alone; give a point before that, such as to_event={bound[0][0]}, "
            "or one after its outcome"
        )
    return found


class Copyist:
    """What the core asks of an engine, of one that has no code to run."""

    def on_event(
        self, kind: int, ref: int, name: str | None, meta: bytes | None, payload: bytes | None
    ) -> None:
        """Nobody is to be told."""

    def failure(self, kind: int, ref: int, name: str | None, payload: bytes | None) -> Exception:
        """What no one will look at."""
        return RuntimeError("a copied failure")

    def on_finish(self) -> None:
        """There is no main task."""

    def on_idle(self) -> None:
        """Nothing waits for a condition."""

    def make_task(self, coro: Any, name: str | None, context: Any) -> Any:
        """There are no tasks either."""
        raise RuntimeError("a copy of a history runs no code")


def copy_events(
    events: Sequence[Event],
    last: int,
    *,
    old_run_id: str,
    run_id: str,
    workflow_id: str,
    workflow_type: str,
    version: str | None,
) -> tuple[bytes, int, StartMeta]:
    """Write the events before the fact ``last`` as the first batch of ``run_id``.

    Returns the batch, its checksum and the circumstances of the new run. Raises
    InvalidArgumentError when it would be over 32 MiB, or is not what was to be copied.
    """
    meta = StartMeta.from_json(events[0][6])
    meta.workflow_id, meta.version = workflow_id, version
    meta.forked_from, meta.seed = old_run_id, meta.seed or old_run_id
    first = (*events[0][:4], workflow_type, events[0][5], meta.to_json(), events[0][7])
    kept: list[Event] = [first, *events[1 : last - 1]]
    size = sum(len(event[6] or b"") + len(event[7] or b"") for event in kept)
    if size > COPY_BYTES_MAX:
        raise InvalidArgumentError(
            f"the history up to event {last} has {size:,} bytes, and {COPY_BYTES_MAX:,} can be "
            "copied; give an earlier point"
        )
    new_id = uuid.UUID(run_id).bytes
    loop = Loop(new_id, Copyist())
    loop.load([])
    loop.replay()
    futures = []
    for _, kind, ref, time_us, name, options, extra, payload in kept:
        if kind < COMMANDS:
            loop.deliver(kind, ref, time_us, name, extra, payload)
        elif kind in AWAITED:
            futures.append(
                loop.command(
                    kind, time_us=time_us, name=name, options=options, meta=extra, payload=payload
                )
            )
        else:
            loop.emit(
                kind,
                ref=ref,
                time_us=time_us,
                name=name,
                options=options,
                meta=extra,
                payload=payload,
            )
    taken = loop.take()
    loop.evict()
    if taken is None or decode(new_id, [taken[0]], taken[1]) != kept:
        raise InvalidArgumentError(
            f"the history up to event {last} cannot be copied as it is; give another point"
        )
    return taken[0], taken[1], meta
