"""Resetting: end a run and go on, or go on beside it, from a point of its history.

A run that no worker has is ended by the client itself, with one commit under the run's fence: it
goes through only if the run is as it was read and nothing has come since, and it writes down, in
the failure of the run, what was unread. So no signal is lost: what comes before that commit is
read, what comes after it is refused to its sender, and a client that dies has lost nothing. A run
that a worker has is told to end, and waited for.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from durable.client.connected import ConnectedClient
from durable.client.forking import (
    Recorded,
    Signal,
    fact_at,
    new_copy,
    plan_of,
    read_mail,
    read_run,
    reset_failure,
    signals_behind,
)
from durable.engine.definition import WorkflowDefinition
from durable.engine.forking import open_work
from durable.engine.start import StartMeta
from durable.engine.turn import close_of_child, message_to_child
from durable.errors import InvalidArgumentError, WorkflowAlreadyStartedError
from durable.events import (
    Closing,
    EventKind,
    IdReuse,
    Message,
    NewRun,
    RunCommit,
    RunState,
    RunView,
    Verdict,
)

LOOKS_MAX = 100
"""How often a run that gets message after message is read again, in some seconds all told."""
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.002, 0.1
"""How much longer each pause between two looks is, and the longest."""


async def reset_run(
    client: ConnectedClient,
    view: RunView,
    point: dict[str, Any],
    limit: float,
    *,
    definition: WorkflowDefinition[Any, Any] | None,
    target: WorkflowDefinition[Any, Any] | None,
    reason: str,
    keep_signals: bool,
) -> str:
    """See `WorkflowHandle.reset`; return the id of the new run."""
    before = await read_run(client, view)
    last = plan_of(before, point, target).event_id
    definition = definition or client.known(view.workflow_type)
    run_id, reuse = str(uuid.uuid4()), IdReuse.AFTER_CLOSE
    run = new_copy(
        client.registry, before, last, run_id, view.workflow_id, definition, reuse, target
    )
    message = reason or f"reset to event {last}"
    before = await end_unowned(client, before, message, run_id)
    signals = before.signals_after(last)
    if before.view.state < RunState.COMPLETED:
        payload = client.codec.encode(reset_failure(message, run_id))
        closed = await end_run(client, before.view, payload, limit)
        signals = signals_behind(before, await read_run(client, closed), last)
    facts = fact_at(before, last, run_id)
    await start_copy(client, run, facts, signals if keep_signals else ())
    return run_id


async def fork_run(
    client: ConnectedClient,
    view: RunView,
    workflow_id: str,
    point: dict[str, Any],
    *,
    definition: WorkflowDefinition[Any, Any] | None,
    target: WorkflowDefinition[Any, Any] | None,
    keep_signals: bool,
) -> str:
    """See `WorkflowHandle.fork`; return the id of the new run."""
    check_fork_id(view, workflow_id)
    recorded = await read_run(client, view)
    last = plan_of(recorded, point, target).event_id
    definition = definition or client.known(view.workflow_type)
    run_id, reuse = str(uuid.uuid4()), IdReuse.REJECT
    run = new_copy(client.registry, recorded, last, run_id, workflow_id, definition, reuse, target)
    signals = recorded.signals_after(last) if keep_signals else ()
    await start_copy(client, run, fact_at(recorded, last, run_id), signals)
    return run_id


async def end_unowned(
    client: ConnectedClient, recorded: Recorded, message: str, run_id: str
) -> Recorded:
    """End the run if no worker has it; return it as it is then, read to the last message.

    It is read again when it has moved or something has come since. Raises TimeoutError when that
    never ends.
    """
    for look in range(LOOKS_MAX):
        view = recorded.view
        if view.state >= RunState.COMPLETED or view.session is not None:
            return recorded
        failure = client.codec.encode(reset_failure(message, run_id, recorded.unread))
        result = await client.store.commit([last_commit(recorded, failure)])
        if result.verdicts[0] == Verdict.ACCEPTED:
            client.hinter.work(runs_only=True)
            client.hinter.done([view.run_id])
            return replace(recorded, view=replace(view, state=RunState.TERMINATED))
        if result.verdicts[0] == Verdict.UNREAD:
            # Nobody has claimed it since, so its history is as it was. A sender may be under way in
            # a transaction of its own: that takes its time.
            await asyncio.sleep(min(look * PAUSE_SECONDS, PAUSE_SECONDS_MAX))
            recorded = await read_mail(client, recorded)
            continue
        found = await client.store.view(run_id=view.run_id)
        if found is None:
            return recorded
        recorded = await read_run(client, found)
    raise TimeoutError(
        f"run {view.run_id} of workflow {view.workflow_id} gets messages faster than it can be "
        "read, or a transaction that sends it one stays open; reset it when fewer come"
    )


def last_commit(recorded: Recorded, failure: bytes) -> RunCommit:
    """The end of a run that nobody has, if it is still as it was read."""
    view = recorded.view
    parent = StartMeta.from_json(recorded.events[0][6]).parent
    return RunCommit(
        view.run_id,
        view.fence,
        view.part,
        view.event_batches,
        None,
        view.head_hash,
        consumed=recorded.inbox_ids,
        messages=to_children(recorded),
        closing=Closing(RunState.TERMINATED, failure=failure),
        all_read=True,
        parent_run_id=parent.run_id if parent is not None else None,
        parent_ref=parent.ref if parent is not None else None,
    )


def to_children(recorded: Recorded) -> list[Message]:
    """What its open children are told, by their parent-close policies, now that it is over."""
    run_id, told = recorded.view.run_id, []
    for event in open_work(recorded.events):
        kind = close_of_child(event) if event[1] == EventKind.CHILD_INITIATED else None
        if kind is not None:
            told.append(message_to_child(run_id, event[0], kind))
    return told


async def start_copy(
    client: ConnectedClient, run: NewRun, facts: list[Message], signals: Sequence[Signal]
) -> None:
    """Store the run and send it its mail; raise WorkflowAlreadyStartedError."""
    started = (await client.store.start_runs([run]))[0]
    if not started.accepted:
        state = started.state.name.lower()
        raise WorkflowAlreadyStartedError(run.workflow_id, started.run_id, state)
    again = [
        Message(
            kind=EventKind.SIGNAL_RECEIVED,
            run_id=run.run_id,
            name=name,
            meta=meta,
            payload=payload,
            request_id=f"{run.run_id}:copy:{number}",
        )
        for number, (name, meta, payload) in enumerate(signals)
    ]
    await client.store.send(facts + again)
    await client.store.replace_start(replace(run, start_at_us=await client.store.now_us()))
    client.hinter.work()


async def end_run(client: ConnectedClient, view: RunView, payload: bytes, limit: float) -> RunView:
    """Terminate a run that is open, and return it closed; raise TimeoutError after ``limit`` s."""
    message = Message(
        kind=EventKind.RUN_TERMINATED,
        run_id=view.run_id,
        payload=payload,
        request_id=f"{view.run_id}:reset",
    )
    if (await client.store.send([message]))[0] is not None:
        await client.store.unpark([view.run_id])
        client.hinter.work(runs_only=True)
    try:
        async with asyncio.timeout(limit):
            return await client.waiter.closed(view.run_id)
    except TimeoutError:
        raise TimeoutError(
            f"run {view.run_id} of workflow {view.workflow_id} was told to end and has not in "
            f"{limit:g} s; is a worker with its code running? When it has ended, reset it again"
        ) from None


def check_fork_id(view: RunView, workflow_id: str) -> None:
    """A fork is another workflow; raise InvalidArgumentError for one under the same id."""
    if workflow_id == view.workflow_id:
        raise InvalidArgumentError(
            f"a fork of {workflow_id} needs an id of its own; reset() goes on under the same id"
        )
