"""Turn: what one step of a run changed, as the store is to be told.

`TurnBuilder` reads the commands the core recorded since the last take and sorts them by what has to
be done about each. Nothing is decided here that history does not already say.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from durable._core import decode
from durable.codec import DEFAULT_CODEC
from durable.engine.attributes import MEMO, message_meta
from durable.engine.context import WorkflowContext, child_run_id, child_workflow_id
from durable.engine.info import ParentInfo
from durable.engine.retry import options_from_json
from durable.engine.start import StartMeta, decode_json, new_run
from durable.events import Closing, EventKind, Message, NewRun, NewTimer, Response, RunState
from durable.options import ActivityOptions

if TYPE_CHECKING:
    from durable._core import Event

PARENT_CLOSE_POLICIES = ("terminate", "cancel", "abandon")


# Plain numbers: an enum's members are looked up more slowly, and this runs for every step.
ACTIVITY_SCHEDULED = int(EventKind.ACTIVITY_SCHEDULED)
ACTIVITY_CANCEL_REQUESTED = int(EventKind.ACTIVITY_CANCEL_REQUESTED)
TIMER_STARTED = int(EventKind.TIMER_STARTED)
RUN_COMPLETED = int(EventKind.RUN_COMPLETED)


class ScheduledActivity(msgspec.Struct, gc=False):
    """An activity that the code asked for and that has no outcome yet."""

    ref: int
    name: str
    queue: str
    priority: int
    options: ActivityOptions
    options_json: str
    input: bytes
    scheduled_us: int


class Turn(msgspec.Struct, gc=False):
    """Everything new since the last one, to be committed as one."""

    # Most turns have one of these or none: what is empty is no list of its own.

    batch: bytes | None
    """The history batch, or None when there are only responses."""
    head_hash: int
    first_event_id: int
    event_count: int
    scheduled: Sequence[ScheduledActivity] = ()
    cancelled_activities: Sequence[int] = ()
    unstarted_activities: Sequence[int] = ()
    """Asked for and cancelled in this turn: whoever commits it answers for them, as no one else
    will know of them. (An answer that nobody waits for is void.)"""
    timers: Sequence[NewTimer] = ()
    timers_done: Sequence[int] = ()
    """Refs of timers that the code cancelled. (What fired is known to whoever delivered it.)"""
    children: Sequence[NewRun] = ()
    messages: Sequence[Message] = ()
    responses: Sequence[Response] = ()
    closing: Closing | None = None
    successor: NewRun | None = None
    search: bytes | None = None


@lru_cache(maxsize=4096)
def activity_options(text: str) -> ActivityOptions:
    """Recorded options, parsed once per distinct text; those of an empty one are the defaults."""
    return options_from_json(text) if text else ActivityOptions()


def scheduled_by(event: Event, queue: str, now_us: int) -> ScheduledActivity:
    """The activity of an ACTIVITY_SCHEDULED."""
    ref, _, _, _, name, text, _, payload = event
    options = activity_options(text or "")
    return ScheduledActivity(
        ref,
        name or "",
        options.queue or queue,
        options.priority,
        options,
        text or "",
        payload or b"[]",
        now_us,
    )


def to_start(
    events: Iterable[Event], queue: str, now_us: int
) -> tuple[list[ScheduledActivity], list[NewTimer], bool]:
    """The activities and timers among commands, and whether there is nothing else."""
    scheduled, timers, is_all = [], [], True
    for event in events:
        kind = event[1]
        if kind == ACTIVITY_SCHEDULED:
            scheduled.append(scheduled_by(event, queue, now_us))
        elif kind == TIMER_STARTED:
            timers.append(NewTimer(event[0], event[3]))
        else:
            is_all = False
    return scheduled, timers, is_all


def cancelled_refs(run_id: str, batches: Sequence[bytes]) -> set[int]:
    """The activities that a recorded history asks to stop.

    One with `wait_cancel` is pending all the same. Reads the whole history once more.
    """
    events = decode(bytes.fromhex(run_id.replace("-", "")), batches)
    return {event[2] for event in events if event[1] == ACTIVITY_CANCEL_REQUESTED}


def message_to_child(run_id: str, ref: int, kind: EventKind) -> Message:
    """A request to the child that event ``ref`` of that run started."""
    return Message(
        kind=kind,
        run_id=child_run_id(run_id, ref),
        request_id=f"{run_id}:{ref}:{kind.name}",
    )


def close_of_child(event: Event) -> EventKind | None:
    """What the child of a CHILD_INITIATED is told when its parent is over; None: nothing."""
    policy = recorded_options(event).get("parent_close", "terminate")
    if policy == "abandon":
        return None
    return EventKind.CANCEL_REQUESTED if policy == "cancel" else EventKind.RUN_TERMINATED


def recorded_options(event: Event) -> Mapping[str, Any]:
    """The options of a command as a dict."""
    found: Mapping[str, Any] = decode_json(event[5].encode()) if event[5] else {}
    return found


class TurnBuilder:
    """Sorts the commands of one turn."""

    def __init__(self, context: WorkflowContext, now_us: int) -> None:
        self.context = context
        self.meta = context.meta
        self.now_us = now_us
        self.activities: dict[int, ScheduledActivity] = {}
        self.timers: dict[int, NewTimer] = {}
        self.children: dict[int, NewRun] = {}
        self.cancelled: list[int] = []
        self.unstarted: list[int] = []
        self.timers_done: list[int] = []
        self.messages: list[Message] = []
        self.responses: list[Response] = []
        self.ending: Event | None = None

    def build(self, events: Sequence[Event], turn: Turn) -> None:
        """Fill ``turn`` from the commands that the core gave."""
        for event in events:
            kind = event[1]
            if kind in (ACTIVITY_SCHEDULED, TIMER_STARTED):
                scheduled, timers, _ = to_start((event,), self.meta.queue, self.now_us)
                self.activities.update((each.ref, each) for each in scheduled)
                self.timers.update((each.ref, each) for each in timers)
            elif kind >= RUN_COMPLETED:
                self.ending = event
            else:
                self.add_other(event, turn)
        if self.ending is not None:
            self.close(self.ending, turn)
        turn.scheduled = list(self.activities.values())
        turn.timers = list(self.timers.values())
        turn.children = list(self.children.values())
        turn.cancelled_activities, turn.unstarted_activities = self.cancelled, self.unstarted
        turn.timers_done = self.timers_done
        turn.messages, turn.responses = self.messages, self.responses

    def add_other(self, event: Event, turn: Turn) -> None:
        """A command that is neither an activity, nor a timer, nor the end."""
        kind, ref = event[1], event[2]
        if kind == ACTIVITY_CANCEL_REQUESTED:
            # Started and cancelled in one turn: nobody else needs to know of it.
            if self.activities.pop(ref, None) is None:
                self.cancelled.append(ref)
            else:
                self.unstarted.append(ref)
        elif kind == EventKind.TIMER_CANCELLED:
            if self.timers.pop(ref, None) is None:
                self.timers_done.append(ref)
        elif kind == EventKind.CHILD_INITIATED:
            self.children[event[0]] = self.child(event)
        elif kind == EventKind.CHILD_CANCEL_REQUESTED:
            if self.children.pop(ref, None) is None:
                self.messages.append(self.to_child(ref, EventKind.CANCEL_REQUESTED))
        elif kind in (EventKind.EXTERNAL_SIGNAL, EventKind.EXTERNAL_CANCEL):
            self.messages.append(self.message(event))
        elif kind in (EventKind.UPDATE_COMPLETED, EventKind.UPDATE_FAILED):
            done = kind == EventKind.UPDATE_COMPLETED
            self.responses.append(
                Response(
                    request_id=event[4] or "",
                    payload=event[7] if done else None,
                    failure=None if done else event[7],
                )
            )
        elif kind == EventKind.ATTRIBUTES_SET and event[4] != MEMO:
            turn.search = DEFAULT_CODEC.encode(self.context.search)

    def child(self, event: Event) -> NewRun:
        """The run that a CHILD_INITIATED asks for."""
        info, options = self.context.info, recorded_options(event)
        given_id = options.get("id")
        last_result, last_failure = self.context.given.pop(event[0], (None, None))
        meta = StartMeta(
            workflow_id=given_id or child_workflow_id(info, event[0]),
            version=options.get("version"),
            queue=options.get("queue") or info.queue,
            parent=ParentInfo(info.run_id, info.workflow_id, event[0]),
            memo=options.get("memo", {}),
            headers={**self.context.headers, **options.get("headers", {})},
            fairness=self.meta.fairness,
            execution_timeout_us=self.meta.execution_timeout_us,
            last_result=last_result,
            last_failure=last_failure,
        )
        return new_run(
            event[4] or "",
            event[7],
            meta,
            run_id=child_run_id(info.run_id, event[0]),
            now_us=self.now_us,
            priority=options.get("priority", 0),
            run_timeout_us=options.get("run_timeout_us"),
            execution_timeout_us=options.get("execution_timeout_us"),
        )

    def to_child(self, ref: int, kind: EventKind) -> Message:
        """A request to the child that event ``ref`` started."""
        return message_to_child(self.context.run_id, ref, kind)

    def message(self, event: Event) -> Message:
        """The message that an EXTERNAL_SIGNAL or EXTERNAL_CANCEL asks for."""
        options = recorded_options(event)
        kind, headers = EventKind.CANCEL_REQUESTED, None
        if event[1] == EventKind.EXTERNAL_SIGNAL:
            kind, headers = EventKind.SIGNAL_RECEIVED, message_meta(self.context.headers)
        elif options.get("terminate"):
            kind = EventKind.RUN_TERMINATED
        return Message(
            kind=kind,
            workflow_id=options.get("workflow_id"),
            run_id=options.get("run_id"),
            name=event[4],
            meta=headers,
            payload=event[7],
            ref=event[0],
            request_id=f"{self.context.run_id}:{event[0]}",
        )

    def close(self, event: Event, turn: Turn) -> None:
        """The code ended: nothing that it asked for last is to be started any more."""
        kind, payload = event[1], event[7]
        self.activities.clear()
        self.timers.clear()
        if kind == EventKind.RUN_COMPLETED:
            turn.closing = Closing(RunState.COMPLETED, result=payload)
        elif kind == EventKind.RUN_FAILED:
            turn.closing = Closing(RunState.FAILED, failure=payload)
            if event[5]:
                turn.successor = self.successor(event, self.meta.attempt + 1)
        elif kind == EventKind.RUN_CANCELLED:
            turn.closing = Closing(RunState.CANCELLED, failure=payload)
        else:
            turn.closing = Closing(RunState.CONTINUED_AS_NEW)
            turn.successor = self.successor(event, 1)

    def successor(self, event: Event, attempt: int) -> NewRun:
        """The next run of the chain: after continue-as-new, or for the next attempt."""
        info, options = self.context.info, recorded_options(event)
        again = event[1] == EventKind.RUN_FAILED
        meta = StartMeta(
            workflow_id=info.workflow_id,
            version=options.get("version", info.version),
            queue=options.get("queue") or info.queue,
            parent=info.parent,
            attempt=attempt,
            memo=options.get("memo", info.memo),
            headers=info.headers,
            search=self.context.search,
            continued_from=info.run_id,
            fairness=self.meta.fairness,
            last_result=self.meta.last_result,
            last_failure=self.meta.last_failure,
            signals=self.context.unread_signals(),
        )
        return new_run(
            info.name if again else event[4] or info.name,
            self.context.input if again else event[7],
            meta,
            run_id=str(uuid.uuid5(uuid.UUID(info.run_id), f"next {event[0]}")),
            now_us=self.now_us,
            priority=options.get("priority", self.meta.priority or 0),
            start_delay_us=options.get("delay_us", 0),
            run_timeout_us=self.meta.run_timeout_us,
        )

    def leave_children(self, pending: Iterable[Event], turn: Turn) -> None:
        """Do to the children what their parent-close policy says, now that the run is over."""
        for event in pending:
            if event[1] != EventKind.CHILD_INITIATED:
                continue
            kind = close_of_child(event)
            if kind is not None and self.children.pop(event[0], None) is None:
                self.messages.append(self.to_child(event[0], kind))
        turn.children = list(self.children.values())
