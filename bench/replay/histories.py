"""Histories of the measured programs, made the way a worker makes them: by running the workflow.

One fact is delivered, the turn is taken, and its batch is appended, so a sequential program has one
batch per step, as a run that is alone on its worker would have. With ``per_batch`` more facts go
into one batch, as under load. Files hold them for fresh processes.
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import flows
from durable.codec import DEFAULT_CODEC
from durable.engine.execution import Execution
from durable.engine.start import StartMeta, new_run
from durable.events import EventKind, RunState

START_US = 1_760_000_000_000_000
STEP_US = 1000
RUN_ID = "8d5f6a54-54f0-4c0a-9d6a-0f3d0e7a9c11"

ANSWERS: dict[str, Callable[..., Any]] = {
    "echo": lambda value: value,
    "charge": lambda order: flows.receipt_of(flows.Order(**order)),
    "describe": flows.record_of,
}
"""What the activities answer, by name."""

decode_json = DEFAULT_CODEC.decoder(Any)


@dataclass(frozen=True)
class Recorded:
    """A run as it is stored."""

    workflow: Any
    run_id: str
    batches: list[bytes]
    heads: list[int]
    """The checksum of the chain after each batch."""
    event_count: int
    result: Any = None
    """The recorded result, or None when the run is still open."""

    @property
    def head_hash(self) -> int:
        """The checksum after the last batch."""
        return self.heads[-1]

    @property
    def size(self) -> int:
        """Bytes of all batches."""
        return sum(map(len, self.batches))

    def execution(self) -> Execution:
        """A fresh execution of this run, with nothing loaded."""
        return Execution(self.workflow, self.run_id, "bench")

    def replay(self) -> Execution:
        """Rebuild it from its history."""
        execution = self.execution()
        execution.load(self.batches, self.head_hash)
        return execution

    def save(self, path: Path) -> None:
        """Write it to a file for `load_recorded`."""
        head = [self.workflow.name, self.run_id, self.head_hash, self.event_count]
        with path.open("wb") as file:
            for part in (DEFAULT_CODEC.encode(head), *self.batches):
                file.write(len(part).to_bytes(4, "big") + part)


def load_recorded(path: Path) -> Recorded:
    """Read what `Recorded.save` wrote, without leaving holes in the heap behind."""
    parts = []
    with path.open("rb") as file:
        while length := file.read(4):
            parts.append(file.read(int.from_bytes(length, "big")))
    name, run_id, head_hash, count = decode_json(parts[0])
    return Recorded(getattr(flows, name), run_id, parts[1:], [head_hash], count)


def record(
    workflow: Any,
    count: int,
    *,
    leave: int = 0,
    per_batch: int = 1,
    run_id: str = RUN_ID,
) -> Recorded:
    """Run ``workflow(count)`` until it ends, or until ``leave`` activities are unanswered."""
    run = new_run(
        workflow,
        DEFAULT_CODEC.encode([count]),
        StartMeta(workflow_id="bench"),
        run_id=run_id,
        now_us=START_US,
    )
    batches, heads = [run.batch], [run.head_hash]
    execution = Execution(workflow, run_id, "bench")
    execution.load(batches, heads[0])
    answered, events, closing = 0, 1, None
    turn = execution.take()
    waiting: list[Any] = []
    while turn is not None:
        assert turn.batch is not None
        batches.append(turn.batch)
        heads.append(turn.head_hash)
        events += turn.event_count
        closing = turn.closing
        waiting += turn.scheduled
        for activity in waiting[: min(per_batch, count - leave - answered)]:
            value = ANSWERS[activity.name](*decode_json(activity.input))
            answered += 1
            execution.deliver(
                EventKind.ACTIVITY_COMPLETED,
                activity.ref,
                START_US + answered * STEP_US,
                payload=DEFAULT_CODEC.encode(value),
            )
        del waiting[:per_batch]
        turn = execution.take()
    assert (closing is not None) == (leave == 0), f"{workflow.name}({count}) did not end as meant"
    result = None
    if closing is not None:
        assert closing.state == RunState.COMPLETED, closing
        assert closing.result is not None
        result = decode_json(closing.result)
    execution.evict()
    return Recorded(workflow, run_id, batches, heads, events, result)


def many(workflow: Any, count: int, runs: int) -> list[Recorded]:
    """``runs`` runs of the same program, each with its own id."""
    return [record(workflow, count, run_id=str(uuid.UUID(int=number))) for number in range(runs)]
