"""Arrays as statement parameters, built in one pass instead of element by element by the driver.

Numbers and UUIDs go as text literals, which the server casts (``$1::bigint[]``); text and bytes go
in the binary format, where nothing needs escaping. None becomes NULL everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct

from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

OID_BYTEA, OID_BYTEA_ARRAY = 17, 1001
OID_TEXT, OID_TEXT_ARRAY = 25, 1009
HEADER = Struct("!iiIii")
"""Dimensions, whether there are NULLs, element type, length, lower bound."""
LENGTH = Struct("!i").pack
NULL = LENGTH(-1)
EMPTY = Struct("!iiI")


class TextArray(bytes):
    """A text[] in the binary format."""


class ByteaArray(bytes):
    """A bytea[] in the binary format."""


class TextArrayDumper(Dumper):
    """Pass a TextArray on as it is."""

    format = Format.BINARY
    oid = OID_TEXT_ARRAY

    def dump(self, obj: TextArray) -> Buffer:
        """The bytes themselves."""
        return obj


class ByteaArrayDumper(Dumper):
    """Pass a ByteaArray on as it is."""

    format = Format.BINARY
    oid = OID_BYTEA_ARRAY

    def dump(self, obj: ByteaArray) -> Buffer:
        """The bytes themselves."""
        return obj


def register(context: AdaptContext) -> None:
    """Teach a connection the two array types."""
    assert context.adapters is not None
    context.adapters.register_dumper(TextArray, TextArrayDumper)
    context.adapters.register_dumper(ByteaArray, ByteaArrayDumper)


def literal(values: Iterable[object]) -> str:
    """An array literal of numbers, booleans or UUIDs."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def uuids(values: Sequence[str]) -> str:
    """An array literal of UUIDs in text form, none of them None."""
    return "{" + ",".join(values) + "}"


def texts(values: Sequence[str | None]) -> TextArray:
    """A text[]. Raise UnicodeEncodeError for a lone surrogate."""
    return TextArray(pack(OID_TEXT, [None if v is None else v.encode() for v in values]))


def blobs(values: Sequence[bytes | None]) -> ByteaArray:
    """A bytea[]."""
    return ByteaArray(pack(OID_BYTEA, values))


def pack(oid: int, values: Sequence[bytes | None]) -> bytes:
    """An array of any type whose elements are given in their binary format."""
    if not values:
        return EMPTY.pack(0, 0, oid)
    parts = [HEADER.pack(1, 1, oid, len(values), 1)]
    for value in values:
        if value is None:
            parts.append(NULL)
        else:
            parts.append(LENGTH(len(value)))
            parts.append(value)
    return b"".join(parts)
