"""Report: measured values as rows, a table on the screen, and a JSON file.

`python -m bench.report` fills the tables of bench/README.md from the files in results/, so that no
number there is typed by hand.

A row is the median of several samples, with the least and the greatest. A peer's ratio says how
many times better we are than it, whether the unit is a rate or a duration: above 1 we are ahead.
"""

import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
README = ROOT / "bench" / "README.md"
SECTION = re.compile(r"(<!-- results: (\w+) -->)\n.*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Goal:
    """What a row should reach: a value, or a ratio to a peer (at least)."""

    value: float | None = None
    peer: str | None = None
    ratio: float | None = None

    def text(self, rises: bool) -> str:
        """As in the table."""
        if self.value is not None:
            return f"{'>=' if rises else '<='} {number(self.value)}"
        return f">= {number(self.ratio or 0)}x {self.peer}"

    def is_met(self, value: float, ratios: Mapping[str, float], rises: bool) -> bool | None:
        """Whether it is reached; None when that peer was not measured."""
        if self.value is not None:
            return value >= self.value if rises else value <= self.value
        found = ratios.get(self.peer or "")
        return None if found is None else found >= (self.ratio or 0)


@dataclass
class Row:
    """One workload: our samples and those of the peers, all in ``unit``."""

    workload: str
    unit: str
    samples: list[float]
    rises: bool = False
    """Whether more is better."""
    peers: dict[str, list[float]] = field(default_factory=dict)
    goals: Sequence[Goal] = ()
    note: str = ""

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    def ratios(self) -> dict[str, float]:
        """How many times better we are than each peer."""
        found = {}
        for peer, samples in self.peers.items():
            theirs = statistics.median(samples)
            above, below = (self.value, theirs) if self.rises else (theirs, self.value)
            found[peer] = above / below if below else 0.0
        return found

    def to_json(self) -> dict[str, Any]:
        """As in the results file."""
        ratios = self.ratios()
        row: dict[str, Any] = {
            "workload": self.workload,
            "value": significant(self.value),
            "unit": self.unit,
            "min": significant(min(self.samples)),
            "max": significant(max(self.samples)),
            "samples": len(self.samples),
            "peers": {
                peer: {
                    "value": significant(statistics.median(samples)),
                    "min": significant(min(samples)),
                    "max": significant(max(samples)),
                    "ratio": significant(ratios[peer]),
                }
                for peer, samples in self.peers.items()
            },
        }
        goals = [
            {"text": goal.text(self.rises), "met": goal.is_met(self.value, ratios, self.rises)}
            for goal in self.goals
        ]
        if goals:
            row["goals"] = goals
        if self.note:
            row["note"] = self.note
        return row


def significant(value: float) -> float:
    """Rounded to four digits that mean something."""
    return float(f"{value:.4g}")


def number(value: float) -> str:
    """For people: 12,345 or 12.3 or 0.123."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def git(*arguments: str) -> str:
    """What git says, or nothing where there is no git."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def commit() -> str:
    """The commit that is measured; ``+`` when the product's files differ from it."""
    dirty = git("status", "--porcelain", "--", "python", "rust_core", "bench")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if dirty else "")


def machine() -> str:
    """Processor, cores, memory, system and Python, in one line."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):
        memory = 0.0
    return (
        f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}"
    )


def save(name: str, rows: Sequence[Row], **facts: Any) -> Path:
    """Write ``bench/results/<name>.json``; ``facts`` go into every row."""
    RESULTS.mkdir(exist_ok=True)
    common = {
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(),
        **facts,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps([row.to_json() | common for row in rows], indent=1) + "\n")
    return path


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of a results file as a table in Markdown."""
    head = ["workload", "unit", "median", "min - max", "goal", "peer: median (ratio)", "note"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        marks = {True: " yes", False: " **no**", None: ""}
        goals = [f"{goal['text']}{marks[goal['met']]}" for goal in row.get("goals", ())]
        peers = [
            f"{peer}: {number(found['value'])} ({number(found['ratio'])}x)"
            for peer, found in row["peers"].items()
        ]
        lines.append(
            [
                row["workload"],
                row["unit"],
                number(row["value"]),
                f"{number(row['min'])} - {number(row['max'])}",
                "; ".join(goals),
                "; ".join(peers),
                row.get("note", ""),
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = [
        [cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def section(name: str) -> str:
    """What README.md shows of one results file."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return f"Not measured yet: `make bench-{name}` writes `results/{name}.json`."
    rows = json.loads(path.read_text())
    first = rows[0]
    facts = [f"commit {first['commit']}", first["date"], first["machine"]]
    if "postgres" in first:
        facts.append(f"PostgreSQL {first['postgres']}")
    return f"{'; '.join(facts)}.\n\n{table(rows)}"


def fill(text: str) -> str:
    """The text with each ``<!-- results: name -->`` section filled from its file."""
    return SECTION.sub(
        lambda found: f"{found[1]}\n{section(found[2])}\n{found[3]}",
        text,
    )


def finish(name: str, rows: Sequence[Row], *, quick: bool, **facts: Any) -> None:
    """Show the table and write the file. A quick run is marked as one and has its own file."""
    if not rows:
        return
    path = save(f"{name}-quick" if quick else name, rows, **facts)
    click.echo(f"\n{machine()}; commit {commit()}\n")
    click.echo(table([row.to_json() for row in rows]))
    click.echo(f"\nRatios say how many times better we are. Written to {path.relative_to(ROOT)}")


def progress(text: str) -> None:
    """One line of progress."""
    click.echo(f"  {datetime.now():%H:%M:%S} {text}")


if __name__ == "__main__":
    README.write_text(fill(README.read_text()))
    click.echo(f"filled {README.relative_to(ROOT)}")
