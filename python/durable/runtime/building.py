"""Building: from what became true of a warm run to the commit that says so.

One call takes everything since the last one. Which of the newly scheduled activities start here is
decided now, by reserving their slots: the others go to the queue in the same commit.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson

from durable.engine.attributes import with_headers
from durable.engine.execution import ScheduledActivity, Turn
from durable.engine.info import NO_HEADERS
from durable.events import QueuedActivity, RunCommit
from durable.runtime.pausing import kept
from durable.runtime.warm import Flight, WarmRun

Reserve = Callable[[str, str], bool]
"""Takes a slot for an activity of that name and queue, if there is one here."""


def build(run: WarmRun, reserve: Reserve) -> RunCommit | None:
    """What the run has to write now, or None. Sets ``run.flight``."""
    if run.park is not None or run.release or run.terminate is not None:
        return build_last(run)
    execution = run.execution
    if run.frozen or execution is None:
        return None
    turn = execution.take()
    commit = RunCommit(run.run_id, run.fence, run.part, run.next_seq, None, run.head_hash)
    starts: list[ScheduledActivity] = []
    cancelled: list[int] = []
    if turn is not None:
        put_turn(run, turn, commit)
        if turn.closing is None:
            divide(run, turn, commit, starts, reserve)
        for ref in turn.cancelled_activities:
            cancelled.append(ref)
            if ref not in run.running:
                commit.activities_done.append(ref)
        cancelled += turn.unstarted_activities
    elif not (
        run.consumed
        or run.activities
        or run.rearmed
        or run.responses
        or run.timers_done
        or run.settles
    ):
        run.facts.clear()
        return None
    put_side_rows(run, commit)
    run.flight = Flight(commit, starts, cancelled, run.facts)
    run.facts = []
    return commit


def put_turn(run: WarmRun, turn: Turn, commit: RunCommit) -> None:
    """What the code did."""
    if turn.batch is not None:
        commit.batch = turn.batch
        commit.head_hash = turn.head_hash
    commit.closing = turn.closing
    commit.parent_run_id, commit.parent_ref = run.parent_run_id, run.parent_ref
    if turn.timers:
        fired = {*run.timers_done, *turn.timers_done}
        commit.timers = [timer for timer in turn.timers if timer.ref not in fired]
    # Lists of the commit's own: what the worker did is added to them.
    if turn.timers_done:
        commit.timers_done = [*turn.timers_done]
    if turn.children:
        commit.children = [*turn.children]
    if turn.messages:
        commit.messages = [*turn.messages]
    if turn.responses:
        commit.responses = [*turn.responses]
    commit.successor = turn.successor
    commit.search = turn.search


def divide(
    run: WarmRun,
    turn: Turn,
    commit: RunCommit,
    starts: list[ScheduledActivity],
    reserve: Reserve,
) -> None:
    """Which activities start here when the commit is accepted, and which go to the queue."""
    for each in turn.scheduled:
        if each.ref in run.early or each.ref in run.running:
            continue
        if starts_here(each, reserve):
            starts.append(each)
        else:
            commit.activities.append(queued(each, run))


def starts_here(each: ScheduledActivity, reserve: Reserve) -> bool:
    """Whether it starts at once in this process; takes the slot.

    One with a heartbeat timeout is meant to be picked up where it was left: its progress has to
    outlive this process, so it gets a row.
    """
    return each.options.heartbeat_timeout is None and reserve(each.name, each.queue)


def put_side_rows(run: WarmRun, commit: RunCommit) -> None:
    """What the worker did."""
    commit.consumed, run.consumed = run.consumed, []
    if run.activities:
        commit.activities += run.activities
        run.activities = []
    if run.responses:
        commit.responses += run.responses
        run.responses = []
    if run.timers_done:
        commit.timers_done += run.timers_done
        run.timers_done = []
    if run.rearmed:
        commit.timers += [each for each in run.rearmed if each.ref not in commit.timers_done]


def build_last(run: WarmRun) -> RunCommit:
    """The commit by which a run leaves this worker without its code having ended."""
    commit = RunCommit(run.run_id, run.fence, run.part, run.next_seq, None, run.head_hash)
    if run.terminate is not None:
        commit.closing = run.terminate
        commit.parent_run_id, commit.parent_ref = run.parent_run_id, run.parent_ref
    elif run.park is not None:
        commit.park = run.park
        commit.kept = kept(run)
        commit.unpark_at_us = run.unpark_at_us
    else:
        commit.release = True
        commit.activities, run.activities = run.activities, []
        commit.kept = kept(run)
    run.flight = Flight(commit, [], [], [])
    return commit


def shared_options(run: WarmRun, options: bytes) -> bytes:
    """Options of an activity for the queue: with its run's fairness key, if it has no other."""
    fairness = run.execution.fairness if run.execution is not None else None
    if fairness is None or b'"fairness_key":' in options:
        return options or b"{}"
    key, weight = fairness
    return orjson.dumps(
        {**orjson.loads(options or b"{}"), "fairness_key": key, "fairness_weight": weight}
    )


def queued(each: ScheduledActivity, run: WarmRun) -> QueuedActivity:
    """The queue row of an activity that does not start here."""
    return QueuedActivity(
        ref=each.ref,
        name=each.name,
        queue=each.queue,
        priority=each.priority,
        attempt=1,
        input=with_headers(
            each.input, run.execution.context.headers if run.execution else NO_HEADERS
        ),
        options=shared_options(run, each.options_json.encode()),
        scheduled_us=each.scheduled_us,
    )
