"""Forking, for a client: plan where a run is to go on, and start the run that goes on from there.

The new run is stored with the copied history as its first batch (`engine.forking`), delayed, so
that the fact at the cut and the signals that came after it are in its inbox when it begins. Then it
is put forward, as a debounced run is. Should this process die in between, it begins after the
delay: an activity whose outcome was not sent is then done again.
"""

from __future__ import annotations

import base64
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from durable._core import decode
from durable.client.answers import plain_failure
from durable.client.connected import ConnectedClient
from durable.client.replica import read_moment
from durable.codec import DEFAULT_CODEC, NO_CODEC, is_sealed
from durable.engine.attributes import MEMO, merged
from durable.engine.definition import WorkflowDefinition
from durable.engine.execution import Execution
from durable.engine.forking import check_cut, copy_events, cut_before
from durable.engine.registry import Registry
from durable.engine.start import StartMeta, decode_json
from durable.errors import UnreadablePayloadError
from durable.events import EventKind, IdReuse, InboxItem, Message, NewRun, RunState, RunView

if TYPE_CHECKING:
    from durable._core import Event

Signal = tuple[str | None, bytes | None, bytes | None]
"""Name, meta and payload."""


RESET = "Reset"
"""The type of the failure of a run that was reset."""
UNREAD = "unread_signals"

MAIL_SECONDS = 60
"""How long a new run waits for its mail, at most: more than the store tries to send it."""


@dataclass(frozen=True)
class ForkPlan:
    """Where a run would go on, and what would be done again."""

    run_id: str
    """The run whose history is cut."""
    event_id: int
    """The last event that is kept."""
    event_count: int
    """The events that there are."""
    activities: tuple[str, ...] = ()
    """Activities that were in flight at that point: each begins again, with its first attempt."""
    timers: int = 0
    """Timers that ran at that point; they keep the time at which they are due."""
    signals: tuple[str, ...] = ()
    """Signals that came after that point, by name: they can be sent again."""


@dataclass(frozen=True)
class Recorded:
    """A run as it was at one moment."""

    view: RunView
    events: list[Event]
    unread: list[Signal]
    inbox_ids: list[int]
    """All that was unread, signals or not."""

    def plan(self, last: int) -> ForkPlan:
        """What a cut after event ``last`` means; raise InvalidArgumentError where it cannot be."""
        work = check_cut(self.events, last)
        return ForkPlan(
            run_id=self.view.run_id,
            event_id=last,
            event_count=len(self.events),
            activities=tuple(
                each[4] or "" for each in work if each[1] == EventKind.ACTIVITY_SCHEDULED
            ),
            timers=sum(each[1] == EventKind.TIMER_STARTED for each in work),
            signals=tuple(name or "" for name, _, _ in self.signals_after(last)),
        )

    def signals_after(self, last: int) -> list[Signal]:
        """Those of the history behind the cut, and those that the run has not read."""
        return signals_of(self.events[last:]) + self.unread


async def read_run(client: ConnectedClient, view: RunView) -> Recorded:
    """The history and the unread signals of a run; raise UnreadablePayloadError."""
    batches, items = await read_moment(client.store, view)
    if batches and is_sealed(batches[0]):
        raise UnreadablePayloadError(NO_CODEC)
    unread = left_unread(view) + signals_in(items)
    events = decode(uuid.UUID(view.run_id).bytes, batches)
    return Recorded(view, events, unread, [item.id for item in items])


async def read_mail(client: ConnectedClient, recorded: Recorded) -> Recorded:
    """The same with what is unread by now; raise UnreadablePayloadError."""
    items = await client.store.inbox([recorded.view.run_id])
    ids = [item.id for item in items]
    return replace(recorded, unread=signals_in(items), inbox_ids=ids)


def signals_in(items: Sequence[InboxItem]) -> list[Signal]:
    """The signals of an inbox; raise UnreadablePayloadError when one cannot be read."""
    found: list[Signal] = []
    for item in items:
        if item.unreadable is not None:
            raise item.unreadable
        if item.kind == EventKind.SIGNAL_RECEIVED:
            found.append((item.name, item.meta, item.payload))
    return found


def left_unread(view: RunView) -> list[Signal]:
    """The signals that a run had not read when a reset ended it: its failure keeps them."""
    failure = plain_failure(view.failure)
    if view.state != RunState.TERMINATED or failure.get("type") != RESET:
        return []
    return [
        (name, from_text(meta), from_text(payload))
        for name, meta, payload in failure.get(UNREAD, ())
    ]


def reset_failure(message: str, run_id: str, unread: Sequence[Signal] = ()) -> dict[str, Any]:
    """How a run ends that another goes on for, ``run_id``; with what it had not read."""
    failure: dict[str, Any] = {"type": RESET, "message": message, "new_run_id": run_id}
    if unread:
        failure[UNREAD] = [
            (name, to_text(meta), to_text(payload)) for name, meta, payload in unread
        ]
    return failure


def to_text(data: bytes | None) -> str | None:
    """Bytes as JSON can hold them."""
    return None if data is None else base64.b64encode(data).decode()


def from_text(text: str | None) -> bytes | None:
    """What `to_text` was given."""
    return None if text is None else base64.b64decode(text)


def plan_of(recorded: Recorded, point: dict[str, Any], moves: object = None) -> ForkPlan:
    """See `cut_before` for what a point is; a run that moves keeps all, if it is given none."""
    if moves is not None and not any(point.values()):
        point = {"to_event": len(recorded.events) or None}
    return recorded.plan(cut_before(recorded.events, **point))


def signals_of(events: Sequence[Event]) -> list[Signal]:
    """The signals among some events."""
    return [
        (event[4], event[6], event[7]) for event in events if event[1] == EventKind.SIGNAL_RECEIVED
    ]


def signals_behind(before: Recorded, after: Recorded, last: int) -> list[Signal]:
    """The signals behind the cut of a run that was read, then ended, and read again.

    Of those that were unread the first time some are in its history now; the others are gone from
    its inbox, and are remembered here.
    """
    behind = signals_of(after.events[last:])
    came = Counter(signals_of(after.events[len(before.events) :]))
    lost = []
    for signal in before.unread:
        if came[signal] > 0:
            came[signal] -= 1
        else:
            lost.append(signal)
    return behind + lost


def new_copy(
    registry: Registry,
    recorded: Recorded,
    last: int,
    run_id: str,
    workflow_id: str,
    definition: WorkflowDefinition[Any, Any] | None,
    id_reuse: IdReuse,
    target: WorkflowDefinition[Any, Any] | None = None,
) -> NewRun:
    """The run that goes on from the cut. Where its code is known, it is replayed first.

    ``target`` is the workflow that it goes on as, if that is another one. Raise
    NonDeterminismError when its code does not fit the part that is kept.
    """
    view = recorded.view
    workflow_type, version = view.workflow_type, view.version
    if target is not None:
        definition, workflow_type, version = target, target.name, target.version
    batch, head_hash, meta = copy_events(
        recorded.events,
        last,
        old_run_id=view.run_id,
        run_id=run_id,
        workflow_id=workflow_id,
        workflow_type=workflow_type,
        version=version,
    )
    if definition is not None and definition.name == workflow_type:
        execution = Execution(
            definition,
            run_id,
            workflow_id,
            queue=view.queue,
            codec=definition.codec,
            registry=registry,
        )
        try:
            execution.load([batch], head_hash)
        finally:
            execution.evict()
    return NewRun(
        run_id=run_id,
        workflow_id=workflow_id,
        workflow_type=workflow_type,
        queue=view.queue,
        batch=batch,
        head_hash=head_hash,
        version=version,
        start_delay_us=MAIL_SECONDS * 1_000_000,
        debounce_key=f"fork {run_id}",
        priority=meta.priority or 0,
        run_timeout_us=meta.run_timeout_us,
        execution_timeout_us=meta.execution_timeout_us,
        id_reuse=id_reuse,
        search=search_at(recorded.events[: last - 1], meta),
    )


def search_at(kept: Sequence[Event], meta: StartMeta) -> bytes | None:
    """The search attributes at the cut: those of the start, and what the kept part set."""
    search = dict(meta.search)
    for event in kept:
        if event[1] == EventKind.ATTRIBUTES_SET and event[4] != MEMO and event[7] is not None:
            search = merged(search, decode_json(event[7]))
    return DEFAULT_CODEC.encode(search) if search else None


def fact_at(recorded: Recorded, last: int, run_id: str) -> list[Message]:
    """The fact at the cut as mail for the new run; the start itself is in its history."""
    if last == 1:
        return []
    _, kind, ref, _, name, _, meta, payload = recorded.events[last - 1]
    return [
        Message(
            kind=EventKind(kind),
            run_id=run_id,
            name=name,
            meta=meta,
            payload=payload,
            ref=ref,
            request_id=f"{run_id}:cut",
        )
    ]


def fork_point(
    to_event: int | None, before_activity: str | None, to_last_turn: bool
) -> dict[str, Any]:
    """A point of a history as one value."""
    return {
        "to_event": to_event,
        "before_activity": before_activity,
        "to_last_turn": to_last_turn,
    }
