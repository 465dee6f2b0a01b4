"""Instructions: how many the processor executes per replayed activity. Stable where time is not.

A shorter and a longer piece of work are done under callgrind in processes of their own; the
difference leaves out the interpreter's start. Needs `valgrind`.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from bench import flows
from bench.replay.histories import Recorded, record
from bench.report import Row, finish, progress

SHORT, LONG = 200, 2200
"""Activities of the histories whose difference is measured."""
FEW, MANY = 50, 550
"""How often a short history is replayed."""
WARM_FEW, WARM_MANY = 500, 4500
"""How often a warm run is stepped: the collector's round or two in so many do not show."""
REPEATS = 5
SECONDS_MAX = 600.0

History = tuple[Path, int]
"""A recorded history, and how often to repeat what is done with it."""


def executed(verb: str, history: History) -> int:
    """Instructions of a process that does ``verb`` (`bench.replay.fresh`)."""
    command = [
        "valgrind",
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        sys.executable,
        "-m",
        "bench.replay.fresh",
        verb,
        *map(str, history),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=True)
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None, done.stderr[-2000:]
    return int(found[1])


def counted(
    name: str, unit: str, verbs: Sequence[str], less: History, more: History, units: int
) -> Row:
    """The difference between less and more, per unit; the second verb is the yardstick's."""
    found = []
    for verb in verbs:
        progress(f"{name}: {verb} under callgrind")
        found.append((executed(verb, more) - executed(verb, less)) / units)
    peers = {"bare-asyncio": found[1:]} if len(found) > 1 else {}
    return Row(f"instructions-{name}", f"instructions/{unit}", found[:1], peers=peers)


def count_instructions() -> None:
    """Count for the programs that are timed; print and save the rows."""
    if shutil.which("valgrind") is None:
        raise click.ClickException("this needs valgrind")
    rows = []
    beside = ("repeat", "repeat_bare")
    with tempfile.TemporaryDirectory() as folder:

        def saved(run: Recorded) -> Path:
            path = Path(folder) / f"{run.workflow.name}{run.event_count}"
            run.save(path)
            return path

        for name, workflow in (("seq", flows.steps), ("par", flows.fan_out)):
            short, long = (saved(record(workflow, length)) for length in (SHORT, LONG))
            units = (LONG - SHORT) * REPEATS
            rows.append(counted(name, "activity", beside, (short, REPEATS), (long, REPEATS), units))
        orders = saved(record(flows.orders, 10))
        rows.append(counted("many", "history", beside, (orders, FEW), (orders, MANY), MANY - FEW))
        open_run = saved(record(flows.steps, 10**6, leave=10**6 - 3))
        rows.append(
            counted(
                *("warm", "step", ("warm",)),
                *((open_run, WARM_FEW), (open_run, WARM_MANY)),
                WARM_MANY - WARM_FEW,
            )
        )
    finish("replay-instructions", rows, quick=False)
