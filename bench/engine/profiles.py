"""Profiles: what the workers' own time went to, by function and by part of the program."""

import pstats
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

GROUPS = {
    "user-code": ("user code",),
    "durable": ("engine", "codec", "runtime", "store", "durable (other)", "core (Rust)"),
    "psycopg": ("psycopg", "psycopg pool"),
    "python": ("asyncio", "builtins", "other Python"),
}
"""Whose code a part is."""


@dataclass
class Profile:
    """Own CPU seconds of all workers together."""

    processes: int
    parts: dict[str, float] = field(default_factory=dict)
    functions: list[tuple[float, float, int, str]] = field(default_factory=list)
    """Own seconds, seconds with what it calls, calls, place; the costliest first."""

    @property
    def busy(self) -> float:
        """Without waiting."""
        return sum(own for part, own in self.parts.items() if part != "waiting") or 1.0


def part_of(file: str, name: str) -> str:
    """The part a function belongs to."""
    where = file if file != "~" else name
    if "epoll" in name or "select.select" in name:
        return "waiting"
    for text, part in PARTS:
        if text in where:
            return part
    return "builtins" if file == "~" else "other Python"


def read(path: Path) -> Profile:
    """The profiles of all workers that wrote to ``path.*``, added up."""
    files = sorted(path.parent.glob(path.name + ".*"))
    if not files:
        raise FileNotFoundError(f"no profile was written to {path}.*")
    stats: Any = pstats.Stats(str(files[0]))
    for file in files[1:]:
        stats.add(str(file))
    profile = Profile(len(files))
    for (file, line, name), (_, calls, own, total, _) in stats.stats.items():
        part = part_of(file, name)
        profile.parts[part] = profile.parts.get(part, 0.0) + own
        where = name if file == "~" else f"{'/'.join(Path(file).parts[-3:])}:{line} {name}"
        profile.functions.append((own, total, calls, where))
    profile.functions.sort(reverse=True)
    return profile


def groups_of(profile: Profile) -> dict[str, tuple[float, str]]:
    """Share of the busy time, and what is in it, by the owner of the code."""
    busy = profile.busy
    found = {}
    for group, parts in GROUPS.items():
        share = sum(profile.parts.get(part, 0.0) for part in parts) / busy
        found[group] = share, ", ".join(parts)
    return found


def top_of(profile: Profile, count: int) -> list[str]:
    """The costliest functions and their shares, without waiting and the benchmark's own."""
    return [
        f"{where} {100 * own / profile.busy:.1f} %"
        for own, _, _, where in profile.functions
        if "epoll" not in where and "gc.collect" not in where
    ][:count]


def text_of(profile: Profile, count: int = 25) -> str:
    """The shares of the parts and the costliest functions, for people."""
    lines = [f"{profile.processes} worker processes; own time {profile.busy:.2f} s busy"]
    for part, own in sorted(profile.parts.items(), key=lambda item: -item[1]):
        share = "" if part == "waiting" else f"{100 * own / profile.busy:5.1f} %"
        lines.append(f"  {part:16} {own:8.2f} s {share}")
    lines.append("   own s  total s     calls  function")
    for own, total, calls, where in profile.functions[:count]:
        lines.append(f"{own:8.2f} {total:8.2f} {calls:9d}  {where}")
    return "\n".join(lines) + "\n"
