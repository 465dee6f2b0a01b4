"""Out: Python values to JSON bytes.

`orjson` writes. What it does not know, or would change without a word, comes to `Writer.default`:
dataclasses (orjson leaves out fields that begin with an underscore), times (it cuts offsets to
minutes), sets (whose order depends on the hash seed), bytes, decimals, paths, pydantic models,
msgspec structs, NamedTuples.

Three things need a second look. When orjson refuses a value, `_plain` walks it in Python, to write
what can be written after all (integers over 64 bits) or else to say where the value stands and
why it cannot be. When the output contains ``null``, the value is checked for NaN and infinity,
which orjson writes as ``null``. A dictionary whose keys are not strings is written only for a
caller who can show that it reads back the same (`prove`).
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import json
import math
import uuid
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import PurePath
from typing import Any

import msgspec
import orjson

from durable.errors import EncodeError

OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
DEPTH_MAX = 200
"""Levels of nesting. orjson stops at 254, readers in other languages often at 128 to 512."""
KNOWN_TYPES_MAX = 4096
"""Types whose way to JSON is remembered; more exist only where classes are made at run time."""

INT64_MIN, UINT64_MAX = -(2**63), 2**64 - 1

NATIVE = (str, int, float, bool, list, tuple, dict, enum.Enum)
"""What orjson writes by its own rules, subclasses included, before it asks `Writer.default`."""

Write = Callable[[Any], Any]
"""One value to something nearer to JSON."""


class Unwritable(Exception):
    """Why one value cannot be written; turned into EncodeError with its place."""


def is_pydantic_model(cls: Any) -> bool:
    """Whether ``cls`` is a pydantic v2 model class; does not import pydantic."""
    return (
        isinstance(cls, type) and hasattr(cls, "model_fields") and hasattr(cls, "model_dump_json")
    )


def type_name(cls: type) -> str:
    """The name of a class as a reader of an error message would write it."""
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def shown(value: Any) -> str:
    """A value in an error message: short, and whatever its ``__repr__`` does."""
    try:
        text = repr(value)
    except Exception:
        return f"<a {type_name(type(value))}>"
    return text if len(text) <= 80 else text[:77] + "..."


def _write_datetime(value: datetime | time) -> str:
    # fold says which of two equal wall times is meant; an offset in the text says it, too.
    offset = value.utcoffset()
    if offset is not None and offset.total_seconds() % 60:
        raise Unwritable(f"its UTC offset {offset} is not whole minutes; convert it to UTC first")
    if offset is None and value.tzinfo is not None:
        raise Unwritable("its time zone has no fixed UTC offset; use a datetime with a date")
    if offset is None and value.fold:
        raise Unwritable("fold=1 without a time zone cannot be written; attach the zone")
    return value.isoformat()


def _write_decimal(value: Decimal) -> str:
    if not value.is_finite():
        raise Unwritable(f"Decimal({str(value)!r}) is not a number that JSON has")
    return str(value)


def _write_float(value: float) -> float:
    return float(value)


def _write_bytes(value: bytes | bytearray | memoryview) -> str:
    return base64.b64encode(value).decode("ascii")


def _write_timedelta(value: timedelta) -> Any:
    return msgspec.to_builtins(timedelta(value.days, value.seconds, value.microseconds))


def _write_pydantic(value: Any) -> orjson.Fragment:
    try:
        text = value.model_dump_json(by_alias=True, round_trip=True, warnings="error")
    except Exception as error:  # pydantic's own, or whatever a custom serializer raises
        hint = ""
        if "utf-8" in str(error):
            hint = '; set ser_json_bytes="base64" and val_json_bytes="base64" in its model_config'
        raise Unwritable(f"pydantic cannot write it: {error}{hint}") from error
    data: bytes = text.encode()
    if b"NaN" in data or b"Infinity" in data:
        try:
            msgspec.json.decode(data)
        except msgspec.DecodeError:
            raise Unwritable("it contains NaN or infinity, which JSON does not have") from None
    return orjson.Fragment(data)


def record_fields(cls: Any) -> tuple[str, ...] | None:
    """The names of the fields of a dataclass or an attrs class; None for others."""
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    if hasattr(cls, "__attrs_attrs__"):
        return tuple(field.name for field in cls.__attrs_attrs__)
    return None


def _record_writer(names: tuple[str, ...]) -> Write:
    def write(value: Any) -> dict[str, Any]:
        return {name: getattr(value, name) for name in names}

    return write


def _struct_writer(cls: Any) -> Write:
    """One level of a msgspec Struct, as msgspec itself would write it."""
    config = cls.__struct_config__
    pairs = tuple(zip(cls.__struct_fields__, cls.__struct_encode_fields__, strict=True))

    def write_array(value: Any) -> list[Any]:
        head = [] if config.tag is None else [config.tag]
        return head + [getattr(value, name) for name, _ in pairs]

    def write_object(value: Any) -> dict[str, Any]:
        result = {} if config.tag is None else {config.tag_field: config.tag}
        for name, encoded in pairs:
            field = getattr(value, name)
            if field is not msgspec.UNSET:
                result[encoded] = field
        return result

    return write_array if config.array_like else write_object


_BY_TYPE: tuple[tuple[type | tuple[type, ...], Write], ...] = (
    ((datetime, time), _write_datetime),
    (date, date.isoformat),
    (timedelta, _write_timedelta),
    (Decimal, _write_decimal),
    ((bytes, bytearray, memoryview), _write_bytes),
    (uuid.UUID, str),
    (PurePath, str),
    (enum.Enum, lambda value: value.value),
    (tuple, list),
    (float, _write_float),
    (msgspec.Raw, lambda value: orjson.Fragment(bytes(value))),
)


class Writer:
    """Writes values. ``converters`` maps types to functions that return JSON-able values."""

    def __init__(self, converters: Mapping[type, Write]) -> None:
        self._converters = dict(converters)
        self._known: dict[type, Write] = {}

    def write(self, value: Any, prove: Callable[[bytes], Any] | None = None) -> bytes:
        """Return compact JSON; raise EncodeError naming the place and the type at fault.

        ``prove`` raises when the bytes do not read back as the value. It is called only when the
        JSON alone cannot tell (keys that are not strings); without it such values are refused.
        """
        try:
            data = orjson.dumps(value, self.default, OPTIONS)
        except TypeError:
            return self._write_slowly(value, prove)
        if b"null" in data and value is not None:
            self._check_finite(value)
        return data

    def default(self, value: Any) -> Any:
        """One level of ``value`` towards JSON; raise Unwritable where there is no way."""
        cls = type(value)
        write = self._known.get(cls)
        if write is None:
            write = self._find(cls)
            if len(self._known) >= KNOWN_TYPES_MAX:
                self._known.clear()
            self._known[cls] = write
        return write(value)

    def has_converter(self, cls: type) -> bool:
        """Whether a converter writes values of ``cls``."""
        return any(base in self._converters for base in cls.__mro__)

    def _find(self, cls: type) -> Write:
        for base in cls.__mro__:
            if base in self._converters:
                return self._converters[base]
        if is_pydantic_model(cls):
            return _write_pydantic
        names = record_fields(cls)
        if issubclass(cls, msgspec.Struct):
            return _struct_writer(cls)
        if names is not None:
            return _record_writer(names)
        if issubclass(cls, set | frozenset):
            return self._write_set
        for known, write in _BY_TYPE:
            if issubclass(cls, known):
                return write
        raise Unwritable(
            "there is no JSON for this type; use a dataclass, or register a Converter for it"
        )

    def _write_set(self, value: Any) -> list[orjson.Fragment]:
        # Sorted by what is written, so that two processes write the same bytes.
        return [orjson.Fragment(data) for data in sorted(self.write(item) for item in value)]

    def _check_finite(self, value: Any) -> None:
        """Raise EncodeError when ``value`` contains NaN or infinity."""
        try:
            json.JSONEncoder(check_circular=False, allow_nan=False, default=self._opened).encode(
                value
            )
        except ValueError:
            self._write_slowly(value, None)
            raise EncodeError(
                "the value contains NaN or infinity, which JSON does not have"
            ) from None

    def _opened(self, value: Any) -> Any:
        """Like `default`, but nothing hides in a fragment that is written already."""
        if isinstance(value, set | frozenset):
            return list(value)
        if is_pydantic_model(type(value)) and type(value) not in self._converters:
            return value.model_dump(mode="python", round_trip=True)
        written = self.default(value)
        return None if isinstance(written, orjson.Fragment) else written

    def _write_slowly(self, value: Any, prove: Callable[[bytes], Any] | None) -> bytes:
        walk = _Walk(self)
        try:
            plain = walk.plain(value, "$", 0)
            data = orjson.dumps(plain)
        except TypeError as error:
            raise EncodeError(f"cannot write a {type_name(type(value))}: {error}") from None
        if walk.odd_key is not None:
            if prove is None:
                raise EncodeError(walk.odd_key)
            try:
                prove(data)
            except Exception as error:
                raise EncodeError(f"{walk.odd_key} ({error})") from error
        return data


class Records(dict[type, tuple[tuple[str, bytes], ...] | None]):
    """The types that are written as an object of just their fields, under their own names.

    Type to (name, JSON of the name with its colon) per field, or to None for any other type. Asked
    for a type that is missing it finds out. While ``is_off``, no type is known.
    """

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self._writer = writer
        self.is_off = False

    def __missing__(self, cls: type) -> tuple[tuple[str, bytes], ...] | None:
        if self.is_off:
            return None
        names = None
        is_other = issubclass(cls, (*NATIVE, msgspec.Struct)) or is_pydantic_model(cls)
        if not is_other and not self._writer.has_converter(cls):
            names = record_fields(cls)
        if len(self) >= KNOWN_TYPES_MAX:
            self.clear()
        found = None if names is None else tuple((n, orjson.dumps(n) + b":") for n in names)
        self[cls] = found
        return found


class _Walk:
    """The slow way to JSON, which knows where it is."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.odd_key: str | None = None
        """What to say of the first key that is not a string."""

    def plain(self, value: Any, path: str, depth: int) -> Any:
        """``value`` in what orjson writes without a hook; raise EncodeError with the path."""
        if value is None or value is True or value is False:
            return value
        if depth > DEPTH_MAX:
            raise EncodeError(f"the value is nested deeper than {DEPTH_MAX} levels at {path[:200]}")
        if isinstance(value, enum.Enum):
            return self.plain(self._open(value, path), path, depth + 1)
        if isinstance(value, orjson.Fragment):
            return value
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, int):
            return self._integer(int(value), path)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise EncodeError(f"{path} is {value!r}: JSON has no NaN and no infinity")
            return float(value)
        cls = type(value)
        if isinstance(value, dict):
            return self._object(value, path, depth)
        if isinstance(value, list) or cls is tuple:
            return [self.plain(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
        return self.plain(self._open(value, path), path, depth + 1)

    def _open(self, value: Any, path: str) -> Any:
        try:
            return self._writer.default(value)
        except (Unwritable, EncodeError) as error:
            raise EncodeError(f"cannot write {path} ({type_name(type(value))}): {error}") from error
        except Exception as error:
            raise EncodeError(
                f"cannot write {path} ({type_name(type(value))}): "
                f"its conversion raised {type(error).__name__}: {error}"
            ) from error

    def _text(self, value: str, path: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise EncodeError(
                f"{path} contains a lone surrogate, which is not text; "
                'decode the bytes it came from with errors="replace", or pass bytes'
            ) from None
        return str(value)

    def _integer(self, value: int, path: str) -> Any:
        if INT64_MIN <= value <= UINT64_MAX:
            return value
        try:
            return orjson.Fragment(str(value))
        except ValueError:
            raise EncodeError(f"{path} is an integer of more than 4300 digits") from None

    def _object(self, value: dict[Any, Any], path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, item in value.items():
            name = self._key(key, path)
            if name in result:
                raise EncodeError(f"two keys of {path} are both written as {name!r}")
            result[name] = self.plain(item, f"{path}.{name}", depth + 1)
        return result

    def _key(self, key: Any, path: str) -> str:
        if type(key) is str:
            return self._text(key, f"a key of {path}")
        if self.odd_key is None and (not isinstance(key, str) or isinstance(key, enum.Enum)):
            self.odd_key = (
                f"a key of {path} is {shown(key)}: keys of JSON objects are strings; "
                "annotate the value with the type of its keys, as in dict[int, str]"
            )
        written = key
        for _ in range(8):
            if isinstance(written, bool | list | dict | tuple) or written is None:
                break
            if isinstance(written, str) and not isinstance(written, enum.Enum):
                return self._text(written, f"a key of {path}")
            if isinstance(written, int | float) and not isinstance(written, enum.Enum):
                self.plain(written, f"a key of {path}", 0)
                return str(written)
            written = self._open(written, f"a key of {path}")
        raise EncodeError(f"a key of {path} is {shown(key)}, a {type_name(type(key))}: use strings")
