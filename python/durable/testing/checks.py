"""Checks: is the code a function of its history? Asked after every event of a test.

`check_cold` throws the run out of memory and builds it again from its bytes, as the next worker
would; what it waits for must be what it waited for before. `check_twice` runs a whole run once
more from the facts alone, not guided by the recorded commands, and compares everything that it
recorded, results and side values included.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from durable._core import decode, verify
from durable.engine.definition import WorkflowDefinition
from durable.engine.execution import Execution
from durable.engine.registry import Registry
from durable.errors import NonDeterminismError
from durable.events import EventKind
from durable.runtime.recorded import RecordedRun

if TYPE_CHECKING:
    from durable._core import Event

INBOUND_MAX = 63

logger = logging.getLogger("durable.workflow")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Where an object lies in memory, as Python's default repr has it."""


def check_cold(warm: Execution, load: Callable[[Any], Execution], run: Any) -> Execution:
    """Evict and replay; return the cold run, which is to go on.

    Raises NonDeterminismError when it differs from the one that was in memory.
    """
    before = state_of(warm)
    warm.evict()
    cold = load(run)
    beyond = cold.take()
    if beyond is not None and beyond.batch is not None:
        raise NonDeterminismError(
            beyond.first_event_id,
            None,
            "more commands, when it is replayed",
            source=first(cold.where()),
            hint="the code did less when it ran first: does it ask is_replaying(), a clock, or "
            "something outside of the workflow?",
            run_id=cold.run_id,
        )
    after = state_of(cold)
    for what, value in before.items():
        if value != after[what]:
            raise NonDeterminismError(
                verify(run.recorded().run_id_bytes, run.batches, run.head_hash),
                f"{what}: {value}",
                f"{what}: {after[what]}",
                source=first(cold.where()),
                hint="after a replay the run is in another state: does the code use something "
                "that is not in its history (clock, randomness, globals, set order)?",
                run_id=cold.run_id,
            )
    return cold


def state_of(execution: Execution) -> dict[str, Any]:
    """What must be the same in a warm run and a cold one."""
    return {
        "variables": ADDRESS.sub("", repr(execution.vars)),
        "status": execution.status,
        "waits at": [ADDRESS.sub("", place) for place in execution.where()],
        "activities": [each.ref for each in execution.pending_activities()],
        "timers": [(each.ref, each.due_us) for each in execution.pending_timers()],
    }


def first(lines: list[str]) -> str | None:
    return lines[0] if lines else None


def check_twice(
    definition: WorkflowDefinition[Any, Any], recorded: RecordedRun, registry: Registry
) -> None:
    """Run it again from its facts alone; raise NonDeterminismError where the two runs differ.

    A run with side effects is left alone: those may differ, and all that follows from them.
    """
    events = decode(recorded.run_id_bytes, list(recorded.batches), recorded.head_hash)
    if any(event[1] == EventKind.SIDE_EFFECT for event in events):
        return
    second = Execution(
        definition,
        recorded.run_id,
        recorded.workflow_id,
        queue=recorded.queue,
        codec=definition.codec,
        registry=registry,
    )
    batches, head = [recorded.batches[0]], None
    # To the code the second run is no replay, but what it says was said before.
    said, logger.disabled = logger.disabled, True
    try:
        second.load(batches)
        for event in [None, *events[1:]]:
            if event is not None and event[1] <= INBOUND_MAX and not second.is_finished:
                second.deliver(event[1], event[2], event[3], event[4], event[6], event[7])
            turn = second.take()
            if turn is not None and turn.batch is not None:
                batches.append(turn.batch)
                head = turn.head_hash
    finally:
        second.evict()
        logger.disabled = said
    again = decode(recorded.run_id_bytes, batches, head)
    compare(commands(events), commands(again), recorded)


def commands(events: list[Event]) -> list[Event]:
    """Those of the events that the code made."""
    return [event for event in events if event[1] > INBOUND_MAX]


def compare(once: list[Event], again: list[Event], recorded: RecordedRun) -> None:
    """Raise at the first command that the two executions do not share."""
    for index in range(max(len(once), len(again))):
        one = once[index] if index < len(once) else None
        two = again[index] if index < len(again) else None
        if one is None or two is None or comparable(one) != comparable(two):
            raise NonDeterminismError(
                (one or two or (0,))[0],
                None if one is None else describe(one),
                None if two is None else describe(two),
                hint="run twice on the same facts, the code did two different things: does it "
                "use a clock, randomness, globals or set order?",
                run_id=recorded.run_id,
            )


def comparable(event: Event) -> Any:
    """The parts of a command that the code decides. Failures carry tracebacks, which may differ."""
    if event[1] in (EventKind.RUN_FAILED, EventKind.UPDATE_FAILED, EventKind.RUN_CANCELLED):
        return event[1:5]
    return event[1:]


def describe(event: Event) -> str:
    """A command in one line."""
    shown = (event[7] or b"").decode(errors="replace")
    text = f"{EventKind(event[1]).name} {event[4] or ''} {shown}".strip()
    return text if len(text) <= 200 else text[:199] + "…"
