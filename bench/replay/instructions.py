"""Instructions: how many the processor executes per replayed activity. Stable where time is not.

Two histories of different length are replayed under callgrind in processes of their own; the
difference leaves out the interpreter's start. Needs `valgrind`.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from bench import flows
from bench.replay.histories import record
from bench.report import Row, finish, progress

SHORT, LONG = 200, 2200
REPEATS = 5
"""How often `fresh repeat` replays."""
SECONDS_MAX = 600.0


def executed(path: Path) -> int:
    """Instructions of a process that replays the history in ``path``."""
    command = [
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        sys.executable,
        "-m",
        "bench.replay.fresh",
        "repeat",
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None, done.stderr[-2000:]
    return int(found[1])


def count_instructions() -> None:
    """Count for the sequential and the parallel program; print and save the rows."""
    if shutil.which("valgrind") is None:
        raise click.ClickException("this needs valgrind")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, workflow in (("seq", flows.steps), ("par", flows.fan_out)):
            counts = []
            for length in (SHORT, LONG):
                progress(f"{name}: {length} activities under callgrind")
                path = Path(folder) / f"{name}{length}"
                record(workflow, length).save(path)
                counts.append(executed(path))
            per_activity = (counts[1] - counts[0]) / ((LONG - SHORT) * REPEATS)
            rows.append(Row(f"instructions-{name}", "instructions/activity", [per_activity]))
    finish("replay-instructions", rows, quick=False)
