"""Recorded runs: a history outside of the database, and its replay against the code at hand.

A history travels as one JSON object with the very bytes that the database has, so that a file is
checked by the same checksums (the chain begins with the run id and ends in ``head_hash``):

    {"format": "durable-history", "version": 1,
     "run_id": "0192…", "workflow_id": "order-7", "workflow_type": "order", "queue": "default",
     "state": "running", "head_hash": "-1f03…", "batches": ["AQ…", …]}

``batches`` are base64, ``head_hash`` is hexadecimal with a sign. Unknown keys are ignored.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson

from durable._core import verify
from durable.engine.definition import WorkflowDefinition
from durable.engine.execution import Execution
from durable.engine.registry import Registry
from durable.errors import (
    HistoryCorruptError,
    HistoryUnsupportedError,
    InvalidArgumentError,
    NonDeterminismError,
)

FORMAT = "durable-history"
VERSION = 1
FILE_BYTES_MAX = 1 << 30


class RecordedRun(msgspec.Struct, frozen=True, gc=False):
    """A run's history and what it takes to replay it."""

    run_id: str
    workflow_id: str
    workflow_type: str
    batches: Sequence[bytes]
    head_hash: int
    queue: str = "default"
    state: str = "running"

    @property
    def run_id_bytes(self) -> bytes:
        """The run id as the core wants it."""
        return bytes.fromhex(self.run_id.replace("-", ""))

    def to_json(self) -> bytes:
        """The export form of the module's docstring."""
        return orjson.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "run_id": self.run_id,
                "workflow_id": self.workflow_id,
                "workflow_type": self.workflow_type,
                "queue": self.queue,
                "state": self.state,
                "head_hash": f"{self.head_hash:x}",
                "batches": [base64.b64encode(batch).decode() for batch in self.batches],
            }
        )

    @classmethod
    def from_json(cls, data: bytes | str) -> RecordedRun:
        """Read what `to_json` wrote, and check its bytes.

        Raises InvalidArgumentError when it is no such file, HistoryUnsupportedError when a newer
        build wrote it, HistoryCorruptError when the checksums fail.
        """
        try:
            fields: dict[str, Any] = orjson.loads(data)
            if fields["format"] != FORMAT:
                raise ValueError(f"its format is {fields['format']!r}")
            if fields["version"] > VERSION:
                raise HistoryUnsupportedError(f"export version {fields['version']}")
            recorded = cls(
                run_id=str(uuid.UUID(fields["run_id"])),
                workflow_id=fields["workflow_id"],
                workflow_type=fields["workflow_type"],
                batches=[base64.b64decode(batch, validate=True) for batch in fields["batches"]],
                head_hash=int(fields["head_hash"], 16),
                queue=fields.get("queue", "default"),
                state=fields.get("state", "running"),
            )
        except (ValueError, KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise InvalidArgumentError(
                f"not an exported history ({type(error).__name__}: {error}); "
                "write one with `durable export ID`"
            ) from None
        verify(recorded.run_id_bytes, list(recorded.batches), recorded.head_hash)
        return recorded

    @classmethod
    def load(cls, path: str | Path) -> RecordedRun:
        """Read an exported file; raise InvalidArgumentError when it cannot be read."""
        try:
            if Path(path).stat().st_size > FILE_BYTES_MAX:
                raise InvalidArgumentError(f"{path} is over {FILE_BYTES_MAX:,} bytes")
            data = Path(path).read_bytes()
        except OSError as error:
            raise InvalidArgumentError(f"cannot read {path}: {error.strerror}") from None
        return cls.from_json(data)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        Path(path).write_bytes(self.to_json())


@dataclass(frozen=True, slots=True)
class Problem:
    """Why one run does not replay. Plain data: it crosses processes.

    ``kind`` is "nondeterminism", "corrupt", "unsupported", "unknown" (no such workflow) or "error".
    """

    kind: str
    run_id: str
    workflow_id: str
    workflow_type: str
    message: str
    event_id: int = 0
    expected: str | None = None
    found: str | None = None
    source: str | None = None

    @property
    def signature(self) -> tuple[str, ...]:
        """What problems of the same cause share."""
        if self.kind == "nondeterminism":
            return (self.kind, self.workflow_type, shape(self.expected), shape(self.found))
        if self.kind in ("corrupt", "unknown"):
            return (self.kind, self.workflow_type)
        return (self.kind, self.workflow_type, self.message.partition("\n")[0])


NAMED = frozenset(
    {
        "ACTIVITY_SCHEDULED",
        "CHILD_INITIATED",
        "SIDE_EFFECT",
        "PATCH_MARKER",
        "EXTERNAL_SIGNAL",
        "EXTERNAL_CANCEL",
    }
)
"""Commands that are another thing under another name."""


def shape(command: str | None) -> str:
    """A described command without its arguments and times: its kind and, if that counts, name."""
    words = (command or "nothing").partition("(")[0].split()
    return " ".join(words[:2] if words[0] in NAMED else words[:1])


def replay(
    definition: WorkflowDefinition[Any, Any], recorded: RecordedRun, registry: Registry
) -> None:
    """Run the code against a history; raise what it raises.

    Raises NonDeterminismError, HistoryCorruptError, HistoryUnsupportedError or PayloadError.
    Commands that the code makes beyond the end of the history are no mismatch: a worker would
    write them next.
    """
    execution = Execution(
        definition,
        recorded.run_id,
        recorded.workflow_id,
        queue=recorded.queue,
        codec=definition.codec,
        registry=registry,
    )
    try:
        execution.load(recorded.batches, recorded.head_hash)
    finally:
        execution.evict()


def find_problem(registry: Registry, recorded: RecordedRun) -> Problem | None:
    """Replay one run; None when it replays. Never raises for what the run or its code does."""
    who = (recorded.run_id, recorded.workflow_id, recorded.workflow_type)
    definition = registry.find_workflow(recorded.workflow_type)
    if definition is None:
        return Problem("unknown", *who, f"no workflow is called {recorded.workflow_type!r}")
    try:
        replay(definition, recorded, registry)
    except NonDeterminismError as error:
        return Problem(
            "nondeterminism",
            *who,
            error.render(),
            error.event_id,
            error.expected,
            error.found,
            error.source,
        )
    except HistoryCorruptError as error:
        return Problem("corrupt", *who, str(error))
    except HistoryUnsupportedError as error:
        return Problem("unsupported", *who, str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # Whatever workflow code raises out of the engine (SystemExit too) is this run's problem.
        return Problem("error", *who, f"{type(error).__name__}: {error}")
    return None
