"""Profiles: what the workers' own time went to, by function and by part of the program."""

import pstats
from pathlib import Path
from typing import Any

import click

PARTS = (
    ("bench/flows", "user code"),
    ("durable/engine", "engine"),
    ("durable/codec", "codec"),
    ("durable/runtime", "runtime"),
    ("durable/store", "store"),
    ("durable/", "durable (other)"),
    ("psycopg_pool", "psycopg pool"),
    ("psycopg", "psycopg"),
    ("asyncio", "asyncio"),
    ("durable._core", "core (Rust)"),
    ("select", "waiting"),
)
"""Where a function belongs, by what its file or its builtin's text contains; first match counts."""


def part_of(file: str, name: str) -> str:
    """The part a function belongs to."""
    where = file if file != "~" else name
    if "epoll" in name or "select.select" in name:
        return "waiting"
    for text, part in PARTS:
        if text in where:
            return part
    return "builtins" if file == "~" else "other Python"


def show(path: Path, count: int = 25) -> None:
    """Print the costliest functions of all workers together, and the shares of the parts."""
    files = sorted(path.parent.glob(path.name + ".*"))
    if not files:
        click.echo(f"no profile was written to {path}.*")
        return
    stats: Any = pstats.Stats(str(files[0]))
    for file in files[1:]:
        stats.add(str(file))
    shares: dict[str, float] = {}
    rows = []
    for (file, line, name), (_, calls, own, total, _) in stats.stats.items():
        part = part_of(file, name)
        shares[part] = shares.get(part, 0.0) + own
        where = name if file == "~" else f"{'/'.join(Path(file).parts[-3:])}:{line} {name}"
        rows.append((own, total, calls, where))
    busy = sum(own for part, own in shares.items() if part != "waiting") or 1.0
    click.echo(f"\nprofile of {len(files)} worker processes: {path}.*; own time {busy:.2f} s busy")
    for part, own in sorted(shares.items(), key=lambda item: -item[1]):
        share = "" if part == "waiting" else f"{100 * own / busy:5.1f} %"
        click.echo(f"  {part:16} {own:8.2f} s {share}")
    click.echo("   own s  total s     calls  function")
    for own, total, calls, where in sorted(rows, reverse=True)[:count]:
        click.echo(f"{own:8.2f} {total:8.2f} {calls:9d}  {where}")
