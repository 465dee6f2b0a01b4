"""Replica: a run as its history tells it, for somebody who only looks.

The history is read and decoded, or replayed with the workflow's code in this process; unread mail
is delivered to the copy as a preview. Nothing is written and no worker is asked, so this works for
runs that are pending, open, parked or closed.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from durable import _core
from durable.codec import DEFAULT_CODEC, NO_CODEC, is_sealed
from durable.engine.attributes import MEMO, merged
from durable.engine.definition import WorkflowDefinition
from durable.engine.execution import Execution
from durable.engine.registry import Registry
from durable.errors import DecodeError, UnreadablePayloadError
from durable.events import EventKind, InboxItem, MessageKind, RunView
from durable.store.base import Store

READS_MAX = 5
"""How often a run that keeps moving is read again to get history and inbox of one moment."""

decode_json = DEFAULT_CODEC.decoder(Any)


@dataclass(frozen=True)
class HistoryEvent:
    """One recorded event, for people.

    ``kind`` is the name of an `EventKind`; ``ref`` the id of the event it answers (0: none);
    ``time_us`` when it was recorded; ``due_us`` when a timer is due; ``options``, ``meta`` and
    ``payload`` are JSON values.
    """

    id: int
    kind: str
    ref: int
    time_us: int
    name: str | None
    payload: Any
    options: Any = None
    meta: Any = None
    due_us: int | None = None


def events_of(run_id: str, batches: list[bytes]) -> list[HistoryEvent]:
    """Decode a history; raise HistoryCorruptError when it fails its checks."""
    if batches and is_sealed(batches[0]):
        raise UnreadablePayloadError(NO_CODEC)
    found = []
    now_us = 0
    for event_id, kind, ref, time_us, name, options, meta, payload in _core.decode(
        uuid.UUID(run_id).bytes, batches
    ):
        is_timer = kind == EventKind.TIMER_STARTED
        if time_us and not is_timer:
            now_us = time_us
        found.append(
            HistoryEvent(
                id=event_id,
                kind=EventKind(kind).name,
                ref=ref,
                time_us=now_us,
                name=name,
                payload=readable(payload),
                options=readable(options.encode()) if options else None,
                meta=readable(meta),
                due_us=time_us if is_timer else None,
            )
        )
    return found


def memo_of(history: Sequence[HistoryEvent]) -> dict[str, Any]:
    """What a run carries for people at the end of its history."""
    memo: dict[str, Any] = {}
    for event in history:
        if event.kind == "RUN_STARTED" and isinstance(event.meta, dict):
            memo = event.meta.get("memo", {})
        elif event.kind == "ATTRIBUTES_SET" and event.name == MEMO:
            memo = merged(memo, event.payload)
    return memo


def readable(payload: bytes | None) -> Any:
    """A payload as JSON value; what is not JSON (encrypted, compressed) as its size."""
    if payload is None:
        return None
    try:
        return decode_json(payload)
    except DecodeError:
        return f"({len(payload)} bytes)"


async def read_moment(store: Store, view: RunView) -> tuple[list[bytes], list[InboxItem]]:
    """The history and the unread inbox of a run, as they were together.

    A run that moves faster than it can be read yields its history without the inbox.
    """
    for _ in range(READS_MAX):
        items = await store.inbox([view.run_id])
        histories = await store.load({view.run_id: view.part})
        batches = histories.get(view.run_id, [])
        after = await store.view(run_id=view.run_id)
        if after is None or after.event_batches == view.event_batches == len(batches):
            return batches, items
        view = after
    return batches, []


def rebuild(
    view: RunView,
    definition: WorkflowDefinition[Any, Any],
    registry: Registry,
    batches: list[bytes],
    items: list[InboxItem],
) -> Execution:
    """Replay a run in this process. The caller evicts it.

    Raises NonDeterminismError or HistoryCorruptError as a worker would.
    """
    execution = Execution(
        definition,
        view.run_id,
        view.workflow_id,
        queue=view.queue,
        codec=definition.codec,
        registry=registry,
    )
    head_hash = view.head_hash if view.event_batches == len(batches) else None
    execution.load(batches, head_hash)
    for item in items:
        if item.unreadable is not None:
            raise item.unreadable
        if item.kind < MessageKind.QUERY:
            execution.deliver(
                item.kind, item.ref, item.created_us, item.name, item.meta, item.payload
            )
    return execution
