"""Replay work: what the processes of a replay pool are sent, and what they send back.

Both are frames (`durable.runtime.frames`), never pickles. Histories travel as the database put them
together, those of many runs at a time:

    down  {"orders": ...}   the app to import; first
          {"runs": [...]}   replay these; the body are their histories (`durable.store.packing`)
    up    {"tally": ...}    what came out of one frame of runs
          {"failed": ...}   nothing can be replayed, and why
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, NamedTuple

from durable.codec import Codec
from durable.runtime.frames import pack
from durable.runtime.recorded import Problem, RecordedRun
from durable.store.opening import open_history
from durable.store.packing import PackedHistories
from durable.store.written import NO_HEAD, first_batch, head_of

FRAME_RUNS = 100
FRAME_BATCHES = 5_000
"""A frame is full with so many: some milliseconds of work, so that all processes end at once."""
HISTORY_BYTES_MAX = 1 << 30
"""A longer history is not replayed here; it is as much as an exported one may have."""
WORK_BYTES_MAX = 3 << 30
"""The longest frame: histories of that length, and what precedes them."""
MESSAGE_CHARS_MAX = 20_000
"""What a problem says is cut there; exceptions of user code are as long as they like."""


class Listed(NamedTuple):
    """A run as the parent listed it: what a process needs to load and check it."""

    run_id: str
    workflow_id: str
    workflow_type: str
    queue: str
    state: str
    part: int
    batch_count: int
    head_hash: int


@dataclass
class Tally:
    """What came out. Adds up over chunks."""

    replayed: int = 0
    gone: int = 0
    """Runs whose history was removed meanwhile."""
    by_type: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count another one in."""
        self.replayed += other.replayed
        self.gone += other.gone
        self.problems += other.problems
        for name, count in other.by_type.items():
            self.by_type[name] = self.by_type.get(name, 0) + count

    def count(self, workflow_type: str, problem: Problem | None) -> None:
        """Count one run that was replayed."""
        self.replayed += 1
        self.by_type[workflow_type] = self.by_type.get(workflow_type, 0) + 1
        if problem is not None:
            self.problems.append(problem)

    def to_frame(self) -> bytes:
        """As a process sends it."""
        problems = [astuple(shortened(problem)) for problem in self.problems]
        return pack({"tally": [self.replayed, self.gone, self.by_type, problems]})

    @classmethod
    def from_head(cls, head: dict[str, Any]) -> Tally:
        """As the parent reads it."""
        replayed, gone, by_type, problems = head["tally"]
        return cls(replayed, gone, by_type, [Problem(*each) for each in problems])


def shortened(problem: Problem) -> Problem:
    """A problem whose texts fit a frame, in characters that JSON has."""

    def fit(text: str | None) -> str | None:
        if text is None:
            return None
        return text[:MESSAGE_CHARS_MAX].encode(errors="backslashreplace").decode()

    return replace(
        problem,
        message=fit(problem.message) or "",
        expected=fit(problem.expected),
        found=fit(problem.found),
        source=fit(problem.source),
    )


def work_frame(runs: Sequence[Listed], packed: PackedHistories) -> bytes:
    """A frame of runs with their histories."""
    return pack({"runs": [tuple(run) for run in runs]}, b"".join(packed))


def runs_in(head: dict[str, Any], body: bytes, codec: Codec) -> Iterator[RecordedRun | None]:
    """The runs of a frame, opened by the app's codec, as its workers would; None for one without a
    history.

    Raises UnreadablePayloadError for a history that cannot be opened.
    """
    runs = [Listed(*each) for each in head["runs"]]
    packed = PackedHistories.from_bytes(len(runs), body)
    for run, batches in zip(runs, packed.unpack(), strict=True):
        # The run may have moved on: the first batches are what was listed.
        yield recorded(run, batches[: run.batch_count], codec) if batches else None


def recorded(run: Listed, batches: list[bytes], codec: Codec) -> RecordedRun:
    """A run with what is stored of its history."""
    batches[0] = first_batch(run.run_id, batches[0])
    opened = open_history(codec, run.run_id, batches)
    head_hash = head_of(opened[0]) if run.head_hash == NO_HEAD else run.head_hash
    return RecordedRun(
        run.run_id, run.workflow_id, run.workflow_type, opened, head_hash, run.queue, run.state
    )
