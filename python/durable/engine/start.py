"""The first event of a run, from both ends: how a run is made, and what its first event says.

`new_run` is used by clients, for children, and for the next run of a chain. The circumstances of
the run (its id, queue, parent, attempt, ...) travel as JSON in the event's meta.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from durable._core import start_batch
from durable.codec import DEFAULT_CODEC
from durable.engine.attributes import headed, headers_of_signal
from durable.engine.definition import WorkflowDefinition
from durable.engine.info import ParentInfo
from durable.events import IdReuse, NewRun
from durable.options import DEFAULT_QUEUE

decode_json = DEFAULT_CODEC.decoder(Any)


class StartMeta(msgspec.Struct):
    """The circumstances of a run, as recorded with its start."""

    workflow_id: str = ""
    version: str | None = None
    queue: str = DEFAULT_QUEUE
    parent: ParentInfo | None = None
    attempt: int = 1
    memo: Mapping[str, Any] = {}
    headers: Mapping[str, Any] = {}
    search: Mapping[str, Any] = {}
    run_timeout_us: int | None = None
    """The limit of one run: the next run of the chain has it too."""
    execution_timeout_us: int | None = None
    """The limit of the whole chain from its beginning; the deadline itself is a timer."""
    priority: int | None = None
    """None is 0."""
    start_us: int | None = None
    """When the run was meant to begin; None is when it was recorded."""
    continued_from: str | None = None
    forked_from: str | None = None
    """The run whose history this one began with."""
    seed: str | None = None
    """The run whose random numbers this one has, for they are in its history; None: its own."""
    fairness: Sequence[Any] | None = None
    """Fairness key and weight of its activities, children and successors."""
    last_result: str | None = None
    """JSON: the newest result of its schedule before it; None when no run had one."""
    last_failure: str | None = None
    """JSON: why the newest run of its schedule before it had no result; None when it had one."""
    signals: Sequence[tuple[str, bytes | None]] = ()
    """Signals that the run before this one in a chain got and did not take."""

    def to_json(self) -> bytes:
        """Compact JSON without what is at its default."""
        meta: dict[str, Any] = {"workflow_id": self.workflow_id, "queue": self.queue}
        for name in OPTIONAL:
            if getattr(self, name) is not None:
                meta[name] = getattr(self, name)
        for name in ("memo", "headers", "search"):
            if getattr(self, name):
                meta[name] = dict(getattr(self, name))
        if self.parent is not None:
            meta["parent"] = vars(self.parent)
        if self.attempt != 1:
            meta["attempt"] = self.attempt
        if self.signals:
            meta["signals"] = [
                [
                    name,
                    None if payload is None else base64.b64encode(payload).decode(),
                    *filter(None, [headers_of_signal(payload)]),
                ]
                for name, payload in self.signals
            ]
        return DEFAULT_CODEC.encode(meta)

    @classmethod
    def from_json(cls, data: bytes | None) -> StartMeta:
        """Read what `to_json` wrote; unknown keys are ignored."""
        if not data:
            return cls()
        try:
            found = read_meta(data)
        except msgspec.MsgspecError:
            # Written by another hand, say in plain SQL: what is amiss there is taken as it is.
            return cls._from_dict(decode_json(data))
        found.queue = found.queue or DEFAULT_QUEUE
        return found

    @classmethod
    def _from_dict(cls, meta: Mapping[str, Any]) -> StartMeta:
        parent = meta.get("parent")
        return cls(
            workflow_id=meta.get("workflow_id", ""),
            version=meta.get("version"),
            queue=meta.get("queue") or DEFAULT_QUEUE,
            parent=None if parent is None else ParentInfo(**parent),
            attempt=meta.get("attempt", 1),
            memo=meta.get("memo", {}),
            headers=meta.get("headers", {}),
            search=meta.get("search", {}),
            run_timeout_us=meta.get("run_timeout_us"),
            execution_timeout_us=meta.get("execution_timeout_us"),
            priority=meta.get("priority"),
            start_us=meta.get("start_us"),
            continued_from=meta.get("continued_from"),
            forked_from=meta.get("forked_from"),
            seed=meta.get("seed"),
            fairness=meta.get("fairness"),
            last_result=meta.get("last_result"),
            last_failure=meta.get("last_failure"),
            signals=[
                (name, None if payload is None else headed(base64.b64decode(payload), *headers))
                for name, payload, *headers in meta.get("signals", ())
            ],
        )


OPTIONAL = (
    "version",
    "run_timeout_us",
    "execution_timeout_us",
    "priority",
    "start_us",
    "continued_from",
    "forked_from",
    "seed",
    "fairness",
    "last_result",
    "last_failure",
)
"""Fields that are written where they are not None."""
read_meta = msgspec.json.Decoder(StartMeta).decode


def new_run(
    workflow: WorkflowDefinition[Any, Any] | str,
    payload: bytes | None,
    meta: StartMeta,
    *,
    run_id: str,
    now_us: int,
    priority: int = 0,
    start_delay_us: int = 0,
    start_at_us: int | None = None,
    run_timeout_us: int | None = None,
    execution_timeout_us: int | None = None,
    id_reuse: IdReuse = IdReuse.REJECT,
    dedup_key: str | None = None,
    debounce_key: str | None = None,
) -> NewRun:
    """Make a run that is ready to be stored.

    ``payload`` is the encoded argument list, ``run_id`` a UUID, ``now_us`` the time of the start
    as the caller knows it: the database decides when the run begins, the code sees this time as
    its first now.
    """
    name = workflow if isinstance(workflow, str) else workflow.name
    begin_us = max(now_us + start_delay_us, start_at_us or 0)
    if meta.start_us is None and begin_us != now_us:
        meta.start_us = begin_us
    meta.run_timeout_us = run_timeout_us
    meta.execution_timeout_us = execution_timeout_us or meta.execution_timeout_us
    meta.priority = priority or None
    batch, head_hash = start_batch(uuid.UUID(run_id).bytes, name, begin_us, meta.to_json(), payload)
    return NewRun(
        run_id=run_id,
        workflow_id=meta.workflow_id,
        workflow_type=name,
        queue=meta.queue,
        batch=batch,
        head_hash=head_hash,
        priority=priority,
        version=meta.version,
        start_delay_us=start_delay_us,
        start_at_us=start_at_us,
        run_timeout_us=run_timeout_us,
        execution_timeout_us=execution_timeout_us,
        id_reuse=id_reuse,
        dedup_key=dedup_key,
        debounce_key=debounce_key,
        parent_run_id=meta.parent.run_id if meta.parent else None,
        parent_ref=meta.parent.ref if meta.parent else None,
        search=DEFAULT_CODEC.encode(dict(meta.search)) if meta.search else None,
    )
