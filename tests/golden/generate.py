"""Writes the golden histories of the current format. Run once per format version, never again.

    python tests/golden/generate.py

Files that exist are left alone: what was recorded once must be readable for ever, so a golden file
never changes. A new format version gets a new folder. The bytes come from the oracle, which knows
nothing of the core; `program.json` was recorded by the core itself.

Each file: the run id, the head of the chain (signed, as stored) and the batches, each with its
bytes and the events in them: [id, kind, ref, time_us, name, options, meta, payload], bytes in hex.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "core")]

import golden_program  # noqa: E402
import rig  # noqa: E402
from support.oracle import Event, decode, encode  # noqa: E402

RUN_ID = bytes.fromhex("018f3a5e7c1b7d0e9a42c6d1f0b3e857")
START_US = 1_763_800_000_000_000

KINDS = [*range(1, 15), *range(64, 77), *range(128, 132)]


def every_kind() -> list[list[Event]]:
    """Each kind once, with the fields it is written with, three events a batch."""
    events: list[Event] = []
    for number, kind in enumerate(KINDS, 1):
        inbound = kind < 64
        ref = 0 if kind in (1, 5, 6, 7, 13, 14, 64, 66, 68, 70, 71, 72, 73, 76) else 1
        if kind >= 128:
            ref = 0
        time = START_US + number * 1_000_003 if inbound else 0
        if kind == 66:
            time = START_US + 86_400_000_000
        name = f"name of kind {kind}" if kind not in (66, 67) else None
        options = '{"queue":"gpu"}' if kind in (64, 68) else None
        meta = b'{"attempt":1}' if inbound else None
        events.append((number, kind, ref, time, name, options, meta, b'["%d"]' % kind))
    return [events[at : at + 3] for at in range(0, len(events), 3)]


def every_field_set() -> list[list[Event]]:
    """A signal and an activity with every set of fields. (An inbound fact always has a time.)"""
    events: list[Event] = [(1, 1, 0, START_US, None, None, None, None)]
    for kind in (5, 64):
        for fields in range(64):
            number = len(events) + 1
            inbound = kind < 64
            events.append(
                (
                    number,
                    kind,
                    number - 1 if fields & 1 else 0,
                    START_US + number if fields & 2 or inbound else 0,
                    f"n{fields % 5}" if fields & 4 else None,
                    "{}" if fields & 8 else None,
                    b"m" * (fields % 4) if fields & 16 else None,
                    b"p" * (fields % 7) if fields & 32 else None,
                )
            )
    return [events]


def names_over_batches() -> list[list[Event]]:
    """Names are interned once a history; batches without new names; one name as options too."""
    events: list[Event] = [(1, 1, 0, START_US, "workflow", None, None, None)]
    for number in range(2, 302):
        name = f"activity {(number * number) % 150}"
        options = name if number % 3 == 0 else "{}"
        events.append((number, 64, 0, 0, name, options, None, b"[]"))
    return [events[:1], events[1:2], events[2:150], events[150:151], events[151:]]


def big_payloads() -> list[list[Event]]:
    """Lengths of one to three varint bytes, in a payload and in meta."""
    events: list[Event] = [(1, 1, 0, START_US, "w", None, b"", b"")]
    for size in (1, 127, 128, 16_384):
        number = len(events) + 1
        data = bytes(at * 7 % 256 for at in range(size))
        events.append((number, 5, 0, START_US + number, "s", None, data, data[::-1]))
    return [events[:3], events[3:]]


def unicode() -> list[list[Event]]:
    texts = ["", "é", "e\u0301", "日本語", "🦀" * 40, "\x00\x1f\x7f", "\u202e", "a" * 300]
    events: list[Event] = [(1, 1, 0, START_US, "Überweisung", None, None, '["ß"]'.encode())]
    for text in texts:
        number = len(events) + 1
        events.append((number, 64, 0, 0, text, text[::-1], None, text.encode()))
    return [events]


def times() -> list[list[Event]]:
    """The epoch, no step, one microsecond, a year, and the end of 64 bits."""
    year = 31_557_600_000_000
    events: list[Event] = []
    for kind, time in [
        (1, 0),
        (5, 0),
        (66, 1),
        (5, START_US),
        (66, START_US),
        (66, START_US + year),
        (5, START_US),
        (4, START_US + year),
        (66, 2**64 - 1),
        (5, 2**63),
        (5, 2**64 - 1),
        (66, 2**64 - 1),
    ]:
        number = len(events) + 1
        events.append((number, kind, 6 if kind == 4 else 0, time, None, None, None, None))
    return [events[:5], events[5:6], events[6:]]


def written(groups: Sequence[Sequence[Event]]) -> dict[str, Any]:
    batches, head = encode(RUN_ID, groups)
    return as_json(RUN_ID, batches, head)


def as_json(run_id: bytes, batches: Sequence[bytes], head: int) -> dict[str, Any]:
    rows = []
    known = 0
    for count, batch in enumerate(batches, 1):
        events = decode(run_id, batches[:count])
        rows.append({"bytes": batch.hex(), "events": [plain(event) for event in events[known:]]})
        known = len(events)
    return {"run_id": run_id.hex(), "head": head, "batches": rows}


def plain(event: Event) -> list[Any]:
    return [item.hex() if isinstance(item, bytes) else item for item in event]


def recorded_program() -> dict[str, Any]:
    """What the core records of the program in tests/core/golden_program.py."""
    made = rig.record(golden_program.program, golden_program.CHOICES)
    return as_json(rig.RUN_ID, made.batches, made.head)


def main() -> None:
    files = {
        "every_kind": lambda: written(every_kind()),
        "every_field_set": lambda: written(every_field_set()),
        "names_over_batches": lambda: written(names_over_batches()),
        "big_payloads": lambda: written(big_payloads()),
        "unicode": lambda: written(unicode()),
        "times": lambda: written(times()),
        "program": recorded_program,
    }
    for name, make in files.items():
        path = HERE / "v1" / f"{name}.json"
        if path.exists():
            sys.stderr.write(f"{path} exists and is kept: golden files never change\n")
            continue
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(make(), indent=1) + "\n")


if __name__ == "__main__":
    main()
