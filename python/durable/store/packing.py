"""Packing: the histories of many runs as three pieces of bytes, made by whoever has them.

A process that only passes histories on need not take them apart: the database puts them together,
and who replays them unpacks them (`durable.runtime.replay_child`). They are as they are stored:
sealed, if they are, and with what plain SQL wrote in place of a first batch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice, pairwise
from typing import NamedTuple


class PackedHistories(NamedTuple):
    """Histories of runs that both sides know, in their order. Numbers have four bytes, big end
    first."""

    counts: bytes
    """Of each run, how many batches it has; none for a run without a history."""
    lengths: bytes
    """Of each batch."""
    batches: bytes
    """All of them, one after the other."""

    @classmethod
    def of(cls, histories: Iterable[Sequence[bytes]]) -> PackedHistories:
        """Pack histories that are at hand."""
        counts: list[int] = []
        batches: list[bytes] = []
        for history in histories:
            counts.append(len(history))
            batches += history
        return cls(numbers(counts), numbers(list(map(len, batches))), b"".join(batches))

    @property
    def has_all(self) -> bool:
        """Whether each run has a history."""
        return 0 not in struct.unpack(f"!{len(self.counts) // 4}I", self.counts)

    @classmethod
    def from_bytes(cls, run_count: int, data: bytes) -> PackedHistories:
        """From the three pieces in one; raise ValueError when they do not fit each other."""
        counts = data[: 4 * run_count]
        if len(counts) < 4 * run_count:
            raise ValueError(f"{len(data)} bytes are no {run_count} histories")
        begin = len(counts) + 4 * sum(struct.unpack(f"!{run_count}I", counts))
        return cls(counts, data[len(counts) : begin], data[begin:])

    def unpack(self) -> Iterator[list[bytes]]:
        """The batches of one run after the other."""
        data = self.batches
        lengths = struct.unpack(f"!{len(self.lengths) // 4}I", self.lengths)
        places = pairwise(accumulate(lengths, initial=0))
        for count in struct.unpack(f"!{len(self.counts) // 4}I", self.counts):
            yield [data[begin:end] for begin, end in islice(places, count)]


def numbers(values: Sequence[int]) -> bytes:
    """As they are in `PackedHistories`."""
    return struct.pack(f"!{len(values)}I", *values)
