"""The group commit of the in-memory store: all of one run's flush, or nothing of it."""

from __future__ import annotations

from dataclasses import replace

import orjson

from durable.errors import StoreError
from durable.events import (
    WHOLE_EXECUTION,
    EventKind,
    InboxItem,
    MessageKind,
    QueuedActivity,
    RunCommit,
    RunState,
    TimerKind,
    Verdict,
)
from durable.store.memory_tables import (
    ENDINGS,
    MOVES_ON,
    Activity,
    Run,
    Tables,
    failure_json,
)

MUST_BE_READ = (
    EventKind.SIGNAL_RECEIVED,
    EventKind.CANCEL_REQUESTED,
    MessageKind.UPDATE_REQUESTED,
    MessageKind.PAUSE,
)


def commit_run(tables: Tables, change: RunCommit) -> Verdict:
    """Write one run's flush and return the verdict."""
    run = tables.runs.get(change.run_id)
    if run is None or run.fence != change.fence or len(run.batches) != change.expected_seq:
        return Verdict.STALE
    inbox = tables.inbox[run.run_id]
    read = set(change.consumed)
    must_read = must_be_read(change)
    if any(item.kind in must_read and item.id not in read for item in inbox):
        return Verdict.UNREAD
    if not is_storable(change):
        return Verdict.REFUSED
    if change.batch is None or change.expected_seq > 1:
        # A run's first batch only says what its start made it ask for: nothing has run yet.
        run.crashes = 0
    if change.batch is not None:
        run.parks = 0
        run.batches.append(change.batch)
    run.head_hash = change.head_hash
    inbox[:] = [item for item in inbox if item.id not in read]
    write_side_rows(tables, run, change)
    for fact in change.kept:
        tables.deliver(run.run_id, fact.kind, fact.ref, fact.payload)
    if change.park is not None or change.release:
        give_up(tables, run, change)
    if change.closing is not None:
        close(tables, run, change)
    return Verdict.ACCEPTED


def must_be_read(change: RunCommit) -> tuple[int, ...]:
    """Kinds of messages that keep the run from closing."""
    state = None if change.closing is None else change.closing.state
    if change.all_read and state is not None:
        return MUST_BE_READ
    if state in (None, RunState.TERMINATED, RunState.TIMED_OUT):
        return ()
    goes_on = change.successor is not None or state == RunState.CONTINUED_AS_NEW
    return (MessageKind.PAUSE,) if goes_on else MUST_BE_READ


def is_storable(change: RunCommit) -> bool:
    """What PostgreSQL would refuse: zero bytes in text, options or attributes that are not JSON."""
    names = [a.name for a in change.activities] + [c.workflow_id for c in change.children]
    try:
        for document in (change.search, *(a.options or None for a in change.activities)):
            if document is not None:
                orjson.loads(document)
        "".join(names).encode()
    except ValueError:
        return False
    return not any("\0" in name for name in names)


def write_side_rows(tables: Tables, run: Run, change: RunCommit) -> None:
    """Timers, activities, responses, children, messages and search attributes."""
    run_id = run.run_id
    for ref in change.timers_done:
        tables.timers.pop((run_id, ref, TimerKind.WORKFLOW), None)
    for timer in change.timers:
        tables.timers[run_id, timer.ref, timer.kind] = timer.due_us
    for made in change.activities:
        queue_activity(tables, run_id, made)
    for ref in change.activities_done:
        tables.forget_activity((run_id, ref))
    for response in change.responses:
        tables.responses[response.request_id] = (response, tables.clock_us())
    for child in change.children:
        started = tables.start(replace(child, parent_run_id=run_id))
        if started.run_id == child.run_id:
            kind, payload = EventKind.CHILD_STARTED, orjson.dumps({"run_id": child.run_id})
        else:
            kind = EventKind.CHILD_FAILED
            payload = failure_json(
                "WorkflowAlreadyStartedError",
                f"workflow id {child.workflow_id} is taken by run {started.run_id}",
            )
        tables.deliver(run_id, kind, child.parent_ref or 0, payload)
    for message in change.messages:
        went = tables.send(replace(message, ref=0))
        if message.ref and went is not None:
            tables.deliver(run_id, EventKind.EXTERNAL_DONE, message.ref)
        elif message.ref:
            failure = failure_json("WorkflowNotFoundError", "no open run has that id")
            tables.deliver(run_id, EventKind.EXTERNAL_FAILED, message.ref, failure)
    if change.search is not None:
        run.search = change.search


def queue_activity(tables: Tables, run_id: str, made: QueuedActivity) -> None:
    """Write an activity and put it on its queue or under a timer."""
    before = tables.activities.get((run_id, made.ref))
    activity = Activity(
        run_id,
        made,
        made.attempt,
        before.scheduled_us if before else made.scheduled_us or tables.clock_us(),
        made.last_failure,
        made.details,
        policy=orjson.loads(made.options) if made.options else {},
    )
    tables.activities[run_id, made.ref] = activity
    tables.enqueue(activity, made.delay_us)


def give_up(tables: Tables, run: Run, change: RunCommit) -> None:
    """Park or release the run. What is unread gets a token."""
    run.session = None
    run.fence += 1
    kinds = {item.kind for item in tables.inbox[run.run_id]}
    if change.park is not None:
        run.state = RunState.PARKED
        run.park = change.park
        run.parks = min(run.parks + 1, 1000)
        if change.unpark_at_us is not None:
            tables.timers[run.run_id, 0, TimerKind.UNPARK] = change.unpark_at_us
    if not run.is_ready:
        kinds &= set(ENDINGS)
    if kinds:
        tables.wake(run.run_id)


def close(tables: Tables, run: Run, change: RunCommit) -> None:
    """End the run: its rows go, its parent is told, its successor starts."""
    closing = change.closing
    assert closing is not None
    run_id = run.run_id
    del tables.runs[run_id]
    del tables.by_workflow_id[run.start.workflow_id]
    tables.closed[run_id] = run
    run.state, run.result, run.failure = closing.state, closing.result, closing.failure
    run.closed_us = tables.clock_us()
    run.session = run.pause = None
    deadline = tables.timers.get((run_id, 0, TimerKind.EXECUTION_TIMEOUT))
    unread = tables.inbox.pop(run_id, [])
    requests = tables.requests.pop(run_id, set())
    for timer in [key for key in tables.timers if key[0] == run_id]:
        del tables.timers[timer]
    for activity in [key for key in tables.activities if key[0] == run_id]:
        del tables.activities[activity]
    if run.start.parent_run_id is not None and change.successor is None:
        done = closing.state == RunState.COMPLETED
        kind = EventKind.CHILD_COMPLETED if done else EventKind.CHILD_FAILED
        payload = closing.result if closing.result is not None else closing.failure
        tables.deliver(run.start.parent_run_id, kind, run.start.parent_ref or 0, payload)
    if change.successor is not None:
        succeed(tables, run, change, unread)
        tables.requests[change.successor.run_id] |= requests
        if deadline is not None:
            tables.timers[change.successor.run_id, 0, TimerKind.EXECUTION_TIMEOUT] = deadline


def succeed(tables: Tables, run: Run, change: RunCommit, unread: list[InboxItem]) -> None:
    """Start the next run of the chain; what nobody has read is for it."""
    new = change.successor
    assert new is not None
    if new.run_id in tables.runs or new.run_id in tables.closed:
        raise StoreError("a run id was used before: every start needs a fresh one")
    # On another queue, or as another type, the key may be somebody else's.
    is_same = (new.queue, new.workflow_type) == (run.start.queue, run.start.workflow_type)
    inherited = replace(
        new,
        workflow_id=run.start.workflow_id,
        parent_run_id=new.parent_run_id or run.start.parent_run_id,
        parent_ref=new.parent_ref if new.parent_ref is not None else run.start.parent_ref,
        search=new.search if new.search is not None else run.search,
        execution_timeout_us=None,
        dedup_key=run.start.dedup_key if is_same else None,
        id_reuse=type(new.id_reuse).AFTER_CLOSE,
    )
    tables.start(inherited)
    moved = [
        replace(item, run_id=new.run_id)
        for item in unread
        if item.kind in MOVES_ON
        or (item.kind == EventKind.RUN_TIMED_OUT and item.name == WHOLE_EXECUTION)
    ]
    tables.inbox[new.run_id] = moved
