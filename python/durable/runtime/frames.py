"""Frames: what a process and those that it starts for activities or replays say to each other.

A frame is a head (a JSON object) and a body (a payload as it is stored), each with its length in
front. Nothing is ever unpickled. Both ends bound what they read. Those of activities:

    down  {"orders": ...}   modules to import and the log level; first
          {"job": ...}      run this; the body is the encoded arguments
          {"cancel": id}    nobody wants that job's result any more
          {"wrote": id}     so many items of its streams were taken, or why they could not be
    up    {"ready": 1}      the modules are imported
          {"beat": id}      a heartbeat; the body is its details, or empty
          {"item": id}      an item of a stream (the body), or the stream's end
          {"done": id}      the job has ended; the body is the result or the failure
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, BinaryIO

import orjson

from durable.options import PAYLOAD_BYTES_MAX

FRAME_BYTES_MAX = 4 * PAYLOAD_BYTES_MAX
"""A body and a head with heartbeat details, each of which a payload bounds."""
LENGTHS = struct.Struct("!II")


def pack(head: dict[str, Any], body: bytes = b"") -> bytes:
    """A frame."""
    packed = orjson.dumps(head)
    return LENGTHS.pack(len(packed), len(body)) + packed + body


def check_lengths(prefix: bytes, bytes_max: int = FRAME_BYTES_MAX) -> tuple[int, int]:
    """The lengths in a frame's prefix; raise ValueError when they cannot be."""
    head, body = LENGTHS.unpack(prefix)
    if head + body > bytes_max:
        raise ValueError(f"a frame of {head + body} bytes is over the limit of {bytes_max}")
    return head, body


async def read_frame(
    reader: asyncio.StreamReader, bytes_max: int = FRAME_BYTES_MAX
) -> tuple[dict[str, Any], bytes]:
    """The next frame; raise IncompleteReadError at the end, ValueError for what is none."""
    head, body = check_lengths(await reader.readexactly(LENGTHS.size), bytes_max)
    return orjson.loads(await reader.readexactly(head)), await reader.readexactly(body)


def take_frame(
    stream: BinaryIO, bytes_max: int = FRAME_BYTES_MAX
) -> tuple[dict[str, Any], bytes] | None:
    """The next frame of a blocking stream; None at its end, ValueError for what is none."""
    prefix = stream.read(LENGTHS.size)
    if len(prefix) < LENGTHS.size:
        return None
    head, body = check_lengths(prefix, bytes_max)
    data = stream.read(head + body)
    if len(data) < head + body:
        return None
    return orjson.loads(data[:head]), data[head:]
