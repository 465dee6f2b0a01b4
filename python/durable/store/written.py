"""Runs that were started by plain SQL, and how their first batch is made.

SQL cannot write a batch (0008_create_sql_functions.sql): it has no XXH3. So the row that holds the
first batch has what the batch is made of: an ``S``, 16 bytes of SHA-256, and JSON. Whoever reads it
makes the batch, which is the same one each time. The row stays as it is. The run's ``head_hash`` is
0 until its first commit: that tells such runs without a look at their history.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec

from durable._core import start_batch
from durable.events import ClaimedRun, RunView

R = TypeVar("R", ClaimedRun, RunView)

MARK = b"S"
"""No batch begins so (that begins with its version), and nothing that is sealed."""
DIGEST_BYTES = 16
FRONT_BYTES = len(MARK) + DIGEST_BYTES
NO_HEAD = 0
"""The head hash of a run whose first batch is yet to be made."""


class Written(msgspec.Struct):
    """What SQL wrote. Its parts go into the batch byte by byte as they are here."""

    type: str
    us: int
    meta: msgspec.Raw
    args: msgspec.Raw


decode_written = msgspec.json.Decoder(Written).decode


def first_batch(run_id: str, stored: bytes) -> bytes:
    """The first batch of a run, given what is stored in its place.

    What is damaged is given back as it is: no batch, and reported so by whoever decodes it.
    """
    if stored[: len(MARK)] != MARK:
        return stored
    body = stored[FRONT_BYTES:]
    if hashlib.sha256(body).digest()[:DIGEST_BYTES] != stored[len(MARK) : FRONT_BYTES]:
        return stored
    start = decode_written(body)
    run = uuid.UUID(run_id).bytes
    return start_batch(run, start.type, start.us, bytes(start.meta), bytes(start.args))[0]


def head_of(batch: bytes) -> int:
    """The head hash of a history that ends with this batch: the checksum is its end."""
    return int.from_bytes(batch[-8:], "little", signed=True)


def begin(runs: list[ClaimedRun]) -> list[ClaimedRun]:
    """Runs as they were claimed, with their first batch and its hash where SQL started them."""
    for run in runs:
        if run.head_hash == NO_HEAD and run.start is not None:
            run.start = first_batch(run.run_id, run.start)
            run.head_hash = head_of(run.start)
    return runs


async def give_heads(
    rows: list[R], first_batches: Callable[[Mapping[str, int]], Awaitable[dict[str, bytes]]]
) -> list[R]:
    """The same rows, with a head hash for those that have none yet; asks only when there are any.

    (One hash in 2^64 is `NO_HEAD` by chance. Such a history is reported as damaged.)
    """
    fresh = [row for row in rows if row.head_hash == NO_HEAD]
    if fresh:
        batches = await first_batches({row.run_id: row.part for row in fresh})
        for row in fresh:
            row.head_hash = head_of(batches.get(row.run_id, b""))
    return rows
