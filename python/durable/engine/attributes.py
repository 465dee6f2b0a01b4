"""Search attributes, memos and headers: what a run carries beside its arguments.

All are plain JSON by the time they are recorded, so code sees the same values in its first run
and in every replay. Search attributes are stored as they are (`jsonb`, never sealed), because the
database has to look into them; memo and headers lie in the run's history and are sealed with it.
Headers go on to children, activities and the next runs of the chain. With an activity that waits in
a queue they are written in front of its arguments, so that they are sealed with these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from durable.codec import DEFAULT_CODEC, Codec, check_size
from durable.engine.info import NO_HEADERS
from durable.errors import InvalidArgumentError, PayloadTooLargeError
from durable.options import ID_LENGTH_MAX

MEMO = "memo"
"""The name of an ATTRIBUTES_SET that is about the memo; one about search attributes has none."""
SEARCH_BYTES_MAX = 32 * 1024
"""The attributes of one run, as JSON: they are part of a row that each step of the run touches."""

HEADERS_BYTES_MAX = 16 * 1024
"""The headers of one run, as JSON: each run that comes of it has a copy."""
RESERVED_HEADERS = "durable."
"""Headers whose names begin so are the library's own."""
HEADERS_MARK = b"\x01"
"""Begins an input with headers in front; arguments are JSON, which never does."""

read_json = DEFAULT_CODEC.decoder(Any)


def plain_headers(values: Mapping[str, Any], codec: Codec) -> dict[str, Any]:
    """Headers as JSON values; raise InvalidArgumentError, EncodeError or PayloadTooLargeError."""
    check_names(values, "headers")
    for name in values:
        if name.startswith(RESERVED_HEADERS):
            raise InvalidArgumentError(
                f"headers whose names begin with {RESERVED_HEADERS!r} are the library's own; "
                f"give {name!r} another name"
            )
    payload = codec.encode(dict(values))
    if len(payload) > HEADERS_BYTES_MAX:
        raise PayloadTooLargeError(
            f"the headers are {len(payload):,} bytes, over the limit of {HEADERS_BYTES_MAX:,}; "
            "put what only this run needs in its arguments",
            len(payload),
            HEADERS_BYTES_MAX,
        )
    plain: dict[str, Any] = codec.decode(payload)
    return plain


def own_headers(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The headers that users gave, without the library's own."""
    if not values:
        return values
    if any(name.startswith(RESERVED_HEADERS) for name in values):
        return {k: v for k, v in values.items() if not k.startswith(RESERVED_HEADERS)}
    return values


def message_meta(headers: Mapping[str, Any], **facts: Any) -> bytes | None:
    """What goes along with a message: its headers, and ``facts`` about it. None for nothing."""
    meta = {**facts, "headers": dict(headers)} if headers else facts
    return DEFAULT_CODEC.encode(meta) if meta else None


def headers_in(meta: bytes | None) -> dict[str, Any]:
    """The headers in what `message_meta` made."""
    data = read_json(meta) if meta else None
    found = data.get("headers") if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


class HeadedSignal(bytes):
    """The arguments of a signal that has headers, until a handler takes it."""

    headers: Mapping[str, Any]


def headed(payload: bytes | None, headers: Mapping[str, Any] = NO_HEADERS) -> bytes | None:
    """A signal's arguments, with what came along with it."""
    if not headers:
        return payload
    signal = HeadedSignal(payload or b"[]")
    signal.headers = headers
    return signal


def headers_of_signal(payload: bytes | None) -> dict[str, Any]:
    """Those that `headed` added."""
    return dict(payload.headers) if isinstance(payload, HeadedSignal) else {}


def with_headers(input: bytes, headers: Mapping[str, Any]) -> bytes:
    """The arguments of an activity for its queue row, with its headers in front, if it has any."""
    if not headers:
        return input
    front = DEFAULT_CODEC.encode(dict(headers))
    return HEADERS_MARK + len(front).to_bytes(4, "big") + front + input


def split_headers(input: bytes) -> tuple[Mapping[str, Any], bytes]:
    """Undo `with_headers`."""
    if input[:1] != HEADERS_MARK:
        return NO_HEADERS, input
    end = 5 + int.from_bytes(input[1:5], "big")
    return read_json(input[5:end]), input[end:]


def plain_memo(values: Mapping[str, Any], codec: Codec) -> dict[str, Any]:
    """A memo as JSON values; raise InvalidArgumentError, EncodeError or PayloadTooLargeError."""
    check_names(values, "memo")
    payload = codec.encode(dict(values))
    check_size(payload, "the memo")
    plain: dict[str, Any] = codec.decode(payload)
    return plain


def merged(old: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` with some values set, and those removed that are None in ``changes``."""
    return {name: value for name, value in {**old, **changes}.items() if value is not None}


def plain_search(values: Mapping[str, Any], codec: Codec) -> dict[str, Any]:
    """Search attributes as JSON values; None stays None, for what is to be removed.

    Raise InvalidArgumentError for what the database cannot hold, EncodeError.
    """
    check_names(values, "search")
    payload = codec.encode(dict(values))
    check_search_size(payload)
    plain: dict[str, Any] = codec.decode(payload)
    if b"\\u0000" in payload:
        for name, value in plain.items():
            check_storable(value, name)
    return plain


def wanted_search(values: Mapping[str, Any] | None, codec: Codec) -> bytes | None:
    """What runs are to be found by, as JSON; None for nothing. Raise InvalidArgumentError."""
    if not values:
        return None
    plain = plain_search(values, codec)
    for name, value in plain.items():
        if value is None:
            raise InvalidArgumentError(
                f"search attribute {name!r} cannot be None: that removes an attribute"
            )
    return DEFAULT_CODEC.encode(plain)


def check_search_size(payload: bytes) -> None:
    """Raise PayloadTooLargeError for attributes that are too many or too long."""
    if len(payload) > SEARCH_BYTES_MAX:
        raise PayloadTooLargeError(
            f"the search attributes are {len(payload):,} bytes, over the limit of "
            f"{SEARCH_BYTES_MAX:,}; keep what the run is found by, and put the rest in its memo",
            len(payload),
            SEARCH_BYTES_MAX,
        )


def check_names(values: Mapping[str, Any], what: str) -> None:
    """Raise InvalidArgumentError unless it is a mapping with names that can be asked for."""
    if not isinstance(values, Mapping):
        raise InvalidArgumentError(
            f"{what} is a dict of names and values, not {type(values).__name__}"
        )
    for name in values:
        if not isinstance(name, str) or not 0 < len(name) <= ID_LENGTH_MAX or "\0" in name:
            raise InvalidArgumentError(
                f"a name in {what} is a text of 1 to {ID_LENGTH_MAX} characters, not {name!r}"
            )


def check_storable(value: Any, name: str) -> None:
    """Raise InvalidArgumentError for zero characters, which PostgreSQL cannot hold in JSON."""
    if isinstance(value, str):
        if "\0" in value:
            raise InvalidArgumentError(
                f"search attribute {name!r} has a zero character, which PostgreSQL cannot store"
            )
    elif isinstance(value, dict):
        for key, each in value.items():
            check_storable(key, name)
            check_storable(each, name)
    elif isinstance(value, list):
        for each in value:
            check_storable(each, name)
