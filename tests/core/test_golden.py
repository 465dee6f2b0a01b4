"""Histories of every released format decode to what they meant, for ever."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from golden_program import program
from rig import Rig
from support import oracle

from durable._core import decode, verify
from durable.errors import HistoryCorruptError
from durable.events import EventKind

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = sorted(GOLDEN.glob("v*/*.json"))
assert FILES


class History:
    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text())
        self.run_id = bytes.fromhex(data["run_id"])
        self.head: int = data["head"]
        self.batches = [bytes.fromhex(batch["bytes"]) for batch in data["batches"]]
        self.groups = [[event_of(row) for row in batch["events"]] for batch in data["batches"]]
        self.events = [event for group in self.groups for event in group]


def event_of(row: list[Any]) -> oracle.Event:
    number, kind, ref, time, name, options, meta, payload = row
    data = [None if text is None else bytes.fromhex(text) for text in (meta, payload)]
    return (number, kind, ref, time, name, options, data[0], data[1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_golden_history_decodes_to_its_events(path: Path) -> None:
    history = History(path)

    assert history.events == decode(history.run_id, history.batches, history.head)
    assert len(history.events) == verify(history.run_id, history.batches, history.head)
    assert history.events == oracle.decode(history.run_id, history.batches, history.head)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_golden_history_is_written_the_same_today(path: Path) -> None:
    history = History(path)

    assert (history.batches, history.head) == oracle.encode(history.run_id, history.groups)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_golden_history_does_not_pass_for_another_run(path: Path) -> None:
    history = History(path)

    with pytest.raises(HistoryCorruptError):
        decode(bytes(16), history.batches, history.head)


def test_every_kind_has_a_golden_event() -> None:
    recorded = {event[1] for path in FILES for event in History(path).events}

    assert {int(kind) for kind in EventKind} <= recorded


@pytest.mark.parametrize("short_cut", [True, False])
def test_the_golden_program_still_replays(short_cut: bool) -> None:
    history = History(GOLDEN / "v1" / "program.json")

    rig = Rig(program, run_id=history.run_id, short_cut=short_cut)
    rig.load(history.batches, history.head)

    assert rig.loop.is_finished
    assert rig.loop.take() is None
    assert rig.main is not None
    assert history.events[-1][7] == repr(rig.main.result()).encode()


def test_golden_files_are_never_written_over() -> None:
    before = {path: path.read_bytes() for path in FILES}

    done = subprocess.run(
        [sys.executable, str(GOLDEN / "generate.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert before == {path: path.read_bytes() for path in FILES}
    assert done.stderr.count("exists and is kept") == len(list((GOLDEN / "v1").iterdir()))
