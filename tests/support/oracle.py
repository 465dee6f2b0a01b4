"""The history format and the matching once more, as plainly as they can be said.

Written from docs/internals/history-format.md and docs/internals/replay.md alone, to be compared
with the core in tests. Slow, and never shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import xxhash

Event = tuple[int, int, int, int, str | None, str | None, bytes | None, bytes | None]
"""id, kind, ref, time, name, options, meta, payload: as `durable._core.decode` gives it."""

KINDS = {*range(1, 15), *range(64, 77), *range(128, 132)}
REF, TIME, NAME, OPTIONS, META, PAYLOAD = 1, 2, 4, 8, 16, 32
COMPARED = {
    64: {"name", "payload"},  # ACTIVITY_SCHEDULED
    65: {"ref"},  # ACTIVITY_CANCEL_REQUESTED
    66: {"time"},  # TIMER_STARTED
    67: {"ref"},  # TIMER_CANCELLED
    68: {"name", "payload"},  # CHILD_INITIATED
    69: {"ref"},  # CHILD_CANCEL_REQUESTED
    70: {"name", "payload"},  # EXTERNAL_SIGNAL
    71: {"name"},  # EXTERNAL_CANCEL
    72: {"name"},  # SIDE_EFFECT
    73: {"name"},  # PATCH_MARKER
    74: {"ref"},  # UPDATE_COMPLETED
    75: {"ref"},  # UPDATE_FAILED
}
BATCH_BYTES_MAX = 64 << 20
NAME_BYTES_MAX = 64 << 10
NAMES_MAX = 1 << 20


class Bad(Exception):
    """A history that is refused: ``seq`` is the batch."""

    def __init__(self, seq: int, why: str) -> None:
        super().__init__(f"batch {seq}: {why}")
        self.seq = seq


class Corrupt(Bad):
    pass


class Unsupported(Bad):
    pass


class TooLarge(Bad):
    pass


def is_inbound(kind: int) -> bool:
    return kind < 64


def chain_start(run_id: bytes) -> int:
    return xxhash.xxh3_64_intdigest(run_id)


def chain_next(chain: int, body: bytes) -> int:
    return xxhash.xxh3_64_intdigest(body, seed=chain)


def signed(chain: int) -> int:
    return chain - (1 << 64) if chain >> 63 else chain


# -- writing -----------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(run_id: bytes, groups: Sequence[Sequence[Event]]) -> tuple[list[bytes], int]:
    """The batches of some groups of events, and the head as it is stored (signed)."""
    names: dict[str, int] = {}
    now = 0
    chain = chain_start(run_id)
    batches = []
    for group in groups:
        known = len(names)
        body = b""
        for event in group:
            body += encode_event(event, now, names)
            if is_inbound(event[1]):
                now = event[3]
        first_id = group[0][0]
        out = b"\x01" + varint(first_id) + varint(len(group)) + varint(len(names) - known)
        for name in list(names)[known:]:
            out += varint(len(name.encode())) + name.encode()
        out += body
        chain = chain_next(chain, out)
        batches.append(out + chain.to_bytes(8, "little"))
    return batches, signed(chain)


def encode_event(event: Event, now: int, names: dict[str, int]) -> bytes:
    _, kind, ref, time, name, options, meta, payload = event
    flags = 0
    fields = b""
    if ref:
        flags |= REF
        fields += varint(ref)
    if time or is_inbound(kind):
        flags |= TIME
        fields += varint(time - now)
    if name is not None:
        flags |= NAME
        fields += varint(names.setdefault(name, len(names)))
    if options is not None:
        flags |= OPTIONS
        fields += varint(names.setdefault(options, len(names)))
    if meta is not None:
        flags |= META
        fields += varint(len(meta)) + meta
    if payload is not None:
        flags |= PAYLOAD
        fields += payload
    return bytes([kind]) + varint(1 + len(fields)) + bytes([flags]) + fields


# -- reading -----------------------------------------------------------------------------------


@dataclass
class Bytes:
    """What is left to read of a batch, or of the body of an event."""

    data: bytes
    seq: int
    at: int = 0

    @property
    def is_empty(self) -> bool:
        return self.at == len(self.data)

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise Corrupt(self.seq, "cut short")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, bits: int = 64) -> int:
        value = 0
        for place in range(10):
            byte = self.take(1)[0]
            value |= (byte & 127) << (7 * place)
            if byte < 128:
                if place and byte == 0:
                    raise Corrupt(self.seq, "not the shortest form")
                if value >> bits:
                    raise Corrupt(self.seq, "number too large")
                return value
        raise Corrupt(self.seq, "number too large")


def decode(run_id: bytes, batches: Sequence[bytes], head: int | None = None) -> list[Event]:
    """Check and decode a history; raise Bad."""
    chain = chain_start(run_id)
    names: list[str] = []
    sections: list[tuple[Bytes, int]] = []
    count = 0
    for seq, batch in enumerate(batches):
        chain, section, events = open_batch(batch, seq, chain, count, names)
        sections.append((section, events))
        count += events
    if head is not None and head != signed(chain):
        raise Corrupt(len(batches), "not the head")
    decoded: list[Event] = []
    now = 0
    for section, events in sections:
        for _ in range(events):
            event = read_event(section, len(decoded) + 1, now, names)
            if is_inbound(event[1]):
                now = event[3]
            decoded.append(event)
        if not section.is_empty:
            raise Corrupt(section.seq, "bytes after the last event")
    return decoded


def open_batch(
    batch: bytes, seq: int, chain: int, count: int, names: list[str]
) -> tuple[int, Bytes, int]:
    if len(batch) > BATCH_BYTES_MAX:
        raise TooLarge(seq, "batch")
    if not batch:
        raise Corrupt(seq, "empty")
    if batch[0] != 1:
        raise Unsupported(seq, "version")
    if len(batch) < 8:
        raise Corrupt(seq, "cut short")
    body, checksum = batch[:-8], batch[-8:]
    chain = chain_next(chain, body)
    if chain.to_bytes(8, "little") != checksum:
        raise Corrupt(seq, "checksum")
    reader = Bytes(body[1:], seq)
    if reader.number(32) != count + 1:
        raise Corrupt(seq, "not in sequence")
    events = reader.number(32)
    if events > len(body) // 3:
        raise Corrupt(seq, "more events than bytes")
    new_names = reader.number(32)
    if new_names > len(body):
        raise Corrupt(seq, "more names than bytes")
    if len(names) + new_names > NAMES_MAX:
        raise TooLarge(seq, "names")
    for _ in range(new_names):
        length = reader.number(32)
        if length > NAME_BYTES_MAX:
            raise TooLarge(seq, "name")
        try:
            names.append(reader.take(length).decode())
        except UnicodeDecodeError:
            raise Corrupt(seq, "not UTF-8") from None
    return chain, reader, events


def read_event(section: Bytes, number: int, now: int, names: Sequence[str]) -> Event:
    kind = section.take(1)[0]
    body = Bytes(section.take(section.number()), section.seq)
    if kind not in KINDS:
        raise Unsupported(section.seq, f"kind {kind}")
    flags = body.take(1)[0]
    if flags > 63:
        raise Unsupported(section.seq, f"flags {flags}")
    ref, time = 0, now if is_inbound(kind) else 0
    name = options = meta = payload = None
    if flags & REF:
        ref = body.number(32)
        if not 0 < ref < number:
            raise Corrupt(section.seq, "refers to nothing")
    if flags & TIME:
        time = now + body.number()
        if time >> 64:
            raise Corrupt(section.seq, "time too large")
    if flags & NAME:
        name = pick(names, body)
    if flags & OPTIONS:
        options = pick(names, body)
    if flags & META:
        meta = body.take(body.number(32))
    if flags & PAYLOAD:
        payload = body.take(len(body.data) - body.at)
    return (number, kind, ref, time, name, options, meta, payload)


def pick(names: Sequence[str], body: Bytes) -> str:
    index = body.number(32)
    if index >= len(names):
        raise Corrupt(body.seq, "unknown name")
    return names[index]


# -- matching ----------------------------------------------------------------------------------


class Parted(Exception):
    """Code and history part at this event."""

    def __init__(self, event_id: int) -> None:
        super().__init__(f"at event {event_id}")
        self.event_id = event_id


Code = Callable[[Event], Iterable[Event]]
"""A program: the commands it makes when it is given a fact (their ids are not looked at)."""


def replay(events: Sequence[Event], code: Code) -> list[Event]:
    """The commands that the code makes, each of which history must have in its place."""
    made: list[Event] = []
    at = 0
    while at < len(events):
        fact = events[at]
        at += 1
        if not is_inbound(fact[1]):
            raise Parted(fact[0])
        for command in code(fact):
            recorded = events[at] if at < len(events) else None
            if len(events) > 1 and (recorded is None or not agrees(recorded, command)):
                raise Parted(at + 1)
            made.append(recorded or command)
            at += 1
    return made


def agrees(recorded: Event, command: Event) -> bool:
    compared = COMPARED.get(recorded[1], set())
    return (
        recorded[1] == command[1]
        and all(
            what not in compared or recorded[field] == command[field]
            for what, field in (("ref", 2), ("time", 3), ("payload", 7))
        )
        and ("name" not in compared or (recorded[4] or "") == (command[4] or ""))
    )
