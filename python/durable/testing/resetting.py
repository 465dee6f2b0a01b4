"""Resetting, in a test environment: the same plan and the same copy as on a database.

What the copied part had asked for and has no outcome of begins again here, as a worker does with
a run whose last owner is gone: after its mail was delivered, for that may answer it.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from durable._core import decode
from durable.client.forking import Recorded, fact_at, new_copy, plan_of, reset_failure
from durable.client.resetting import check_fork_id, to_children
from durable.codec import DEFAULT_CODEC
from durable.engine.definition import WorkflowDefinition
from durable.events import Closing, EventKind, IdReuse, Message, NewRun, RunState, RunView
from durable.testing.world import Fact, Run, World

if TYPE_CHECKING:
    from durable.client.forking import Signal


def record(run: Run) -> Recorded:
    """The run as it is now: its history, and the signals that wait for it."""
    new, kept = run.new, run.recorded()
    view = RunView(
        new.run_id,
        new.workflow_id,
        new.workflow_type,
        new.queue,
        new.version,
        run.state,
        0,
        None,
        len(run.batches),
        run.head_hash,
        1,
    )
    early = run.early if run.execution is None else []
    unread: list[Signal] = [
        (fact.name, fact.meta, fact.payload)
        for fact in (*early, *run.held)
        if fact.kind == EventKind.SIGNAL_RECEIVED
    ]
    return Recorded(view, decode(kept.run_id_bytes, kept.batches, kept.head_hash), unread, [])


def go_on(
    world: World,
    run: Run,
    point: dict[str, Any],
    *,
    target: WorkflowDefinition[Any, Any] | None,
    keep_signals: bool,
    fork_id: str | None = None,
    reason: str = "",
) -> Run:
    """Begin the run that goes on from a point of this one; without ``fork_id`` this one ends.

    Raises what `durable.WorkflowHandle.reset` raises.
    """
    recorded = record(run)
    last = plan_of(recorded, point, target).event_id
    run_id = str(uuid.uuid5(uuid.UUID(run.new.run_id), f"fork {next(world.request_numbers)}"))
    reuse = IdReuse.AFTER_CLOSE if fork_id is None else IdReuse.REJECT
    if fork_id is not None:
        check_fork_id(recorded.view, fork_id)
    if target is not None:
        world.registry.add(target)
    workflow_id = fork_id or run.new.workflow_id
    new = new_copy(
        world.registry, recorded, last, run_id, workflow_id, run.definition, reuse, target
    )
    signals = recorded.signals_after(last) if keep_signals else []
    if fork_id is None and run.closing is None:
        end(world, run, recorded, reset_failure(reason or f"reset to event {last}", run_id))
    return begin_copy(world, run, new, [*fact_at(recorded, last, run_id), *as_mail(signals)])


def as_mail(signals: Sequence[Signal]) -> list[Message]:
    """Signals that are sent again."""
    kind = EventKind.SIGNAL_RECEIVED
    return [Message(kind, name=name, meta=meta, payload=data) for name, meta, data in signals]


def end(world: World, run: Run, recorded: Recorded, failure: dict[str, Any]) -> None:
    """Terminate the run, also one that is parked."""
    payload = DEFAULT_CODEC.encode(failure)
    if run.is_open and run.execution is not None:
        world.tell(run, Fact(EventKind.RUN_TERMINATED, payload=payload))
        world.pump()
        return
    world.end_parked(run, Closing(RunState.TERMINATED, failure=payload))
    for message in to_children(recorded):
        world.send(message)


def begin_copy(world: World, old: Run, new: NewRun, mail: Sequence[Message]) -> Run:
    """Start the copy, give it its mail, and start again what it still waits for then."""
    now = replace(new, start_delay_us=0, debounce_key=None)
    run = world.start(now, old.definition)
    if run.execution is None:
        return run
    owed = run.execution.pending_activities(), run.execution.pending_timers()
    for message in mail:
        kind, ref = message.kind, message.ref
        world.tell(run, Fact(kind, ref, message.name, message.meta, message.payload))
    world.pump()
    world.start_again(run, *owed)
    return run
