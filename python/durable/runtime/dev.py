"""Dev: what ``durable dev`` adds to a supervisor: its notes for the other commands, and reload.

The notes (``.durable/dev.json``) tell a ``durable start`` in the same folder, or below it, where
the database is and which app the workers serve. They hold a DSN, so only their owner may read them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from durable.errors import ConfigurationError

FOLDER = ".durable"
NOTES = "dev.json"
WATCH_SECONDS = 0.5
WATCH_FILES_MAX = 5000
"""Files looked at in one round; a larger tree is not watched to its end."""
WATCH_DEPTH_MAX = 8
SKIPPED = {"__pycache__", "node_modules", "site-packages", "target", "venv"}

log = logging.getLogger("durable.dev")


@dataclass(frozen=True)
class DevNotes:
    """What a running ``durable dev`` tells the other commands."""

    dsn: str
    app: str
    folder: str
    """Where the app is looked for."""
    metrics_url: str | None
    pid: int

    def save(self, folder: Path) -> Path:
        """Write the notes into ``folder``/.durable, readable by the owner only."""
        path = folder / FOLDER / NOTES
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self), file, indent=2)
        draft.replace(path)
        return path

    @classmethod
    def find(cls, folder: Path) -> DevNotes | None:
        """The notes of ``folder`` or the nearest folder above it; None when there are none.

        Raise ConfigurationError when they cannot be read.
        """
        for each in (folder, *folder.parents):
            path = each / FOLDER / NOTES
            if not path.is_file():
                continue
            try:
                data = json.loads(path.read_text())
                return cls(**{each.name: data[each.name] for each in fields(cls)})
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigurationError(
                    f"cannot read {path} ({error}); delete it, or give --dsn"
                ) from error
        return None


def source_folder(app: str, cwd: Path) -> Path:
    """The folder whose Python files an app is made of."""
    name = app.partition(":")[0]
    return (cwd / name).resolve().parent if name.endswith(".py") or "/" in name else cwd


def source_files(folder: Path) -> Iterator[tuple[str, int]]:
    """Path and time of change of the Python files in a folder, in bounded number and depth."""
    count = 0
    stack = [(os.fspath(folder), 0)]
    while stack:
        current, depth = stack.pop()
        try:
            entries = sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SKIPPED:
                continue
            if entry.is_dir(follow_symlinks=False) and depth < WATCH_DEPTH_MAX:
                stack.append((entry.path, depth + 1))
            elif entry.name.endswith(".py"):
                count += 1
                if count > WATCH_FILES_MAX:
                    return
                try:
                    yield entry.path, entry.stat().st_mtime_ns
                except OSError:
                    continue


async def changes(folder: Path) -> AsyncIterator[list[str]]:
    """Yield the files that changed, appeared or went, whenever some did."""
    before = await asyncio.to_thread(lambda: dict(source_files(folder)))
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        now = await asyncio.to_thread(lambda: dict(source_files(folder)))
        changed = sorted(path for path, _ in before.items() ^ now.items())
        before = now
        if changed:
            yield list(dict.fromkeys(changed))
