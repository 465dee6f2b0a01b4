"""Arguments typed by a person, as JSON on a command line or in a form.

An array is the list of positional arguments, an object the keyword arguments, and anything else the
one argument. A function with a single parameter also takes its value as it is: an object that
fits its type, or an array that does not fit as a list of one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from durable.codec.read import Decoder, read_plain
from durable.codec.value import field_names
from durable.errors import DecodeError, InvalidArgumentError

_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Callee(Protocol):
    """What is needed of a signature here."""

    name: str

    def describe(self) -> str:
        """One line."""

    def decode_args(self, payload: bytes | None) -> Arguments:
        """Read an argument list."""

    def encode_args(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Bind and write."""


def parse_arguments(
    callee: Callee, parameters: Sequence[str], decoders: Mapping[str, Decoder], text: str
) -> Arguments:
    """Return positional and keyword arguments, decoded by their types.

    Raise InvalidArgumentError naming the argument and the type it should have.
    """
    arguments = _parse(callee, parameters, decoders, text.strip().encode(errors="replace"))
    # Binds, so that a missing or unexpected argument is named here and not in a worker.
    callee.encode_args(*arguments)
    return arguments


def _parse(
    callee: Callee, parameters: Sequence[str], decoders: Mapping[str, Decoder], data: bytes
) -> Arguments:
    if not data:
        return (), {}
    try:
        read_plain(data)
    except DecodeError as error:
        raise InvalidArgumentError(
            f"the arguments are not JSON: {error}. A text needs quotes: '\"text\"'"
        ) from None
    single = parameters[0] if len(parameters) == 1 else None
    if data[:1] == b"[":
        try:
            return _parse_array(callee, data)
        except InvalidArgumentError:
            if single is None:
                raise
            return (_whole(callee, single, decoders[single], data),), {}
    if data[:1] == b"{":
        fields = _raw_fields.decode(data)
        if single is None or _is_keyword(single, decoders[single], fields):
            return (), {
                name: _value(callee, name, decoders.get(name), raw) for name, raw in fields.items()
            }
        return (_whole(callee, single, decoders[single], data),), {}
    if not parameters:
        raise InvalidArgumentError(f"{callee.describe()} takes no argument")
    return (_value(callee, parameters[0], decoders[parameters[0]], data),), {}


def _parse_array(callee: Callee, data: bytes) -> Arguments:
    try:
        arguments = callee.decode_args(data)
    except DecodeError as error:
        raise InvalidArgumentError(str(error)) from None
    callee.encode_args(*arguments)
    return arguments


def _is_keyword(single: str, decoder: Decoder, fields: Mapping[str, msgspec.Raw]) -> bool:
    """Whether an object names the one parameter, rather than being its value."""
    if list(fields) != [single]:
        return False
    cls = decoder.annotation
    names = field_names(cls) if isinstance(cls, type) else None
    if names is not None:
        return single not in names
    try:
        decoder(msgspec.json.encode(fields))
    except DecodeError:
        return True
    return False


def _whole(callee: Callee, name: str, decoder: Decoder, data: bytes) -> Any:
    """The one argument; a field that its type does not have is an error, as it is likely a typo."""
    value = _value(callee, name, decoder, data)
    names = field_names(type(value))
    config = getattr(type(value), "__struct_config__", None)
    if names is None or config is not None or data[:1] != b"{":
        return value
    if hasattr(type(value), "model_fields"):
        aliases = (field.alias for field in type(value).model_fields.values())
        names = [*names, *(alias for alias in aliases if alias)]
    for field in _raw_fields.decode(data):
        if field not in names:
            close = difflib.get_close_matches(field, names, n=1)
            raise InvalidArgumentError(
                f"argument {name} of {callee.describe()} has no field {field!r}"
                + (f"; did you mean {close[0]!r}?" if close else "")
            )
    return value


def _value(callee: Callee, name: str, decoder: Decoder | None, raw: bytes | msgspec.Raw) -> Any:
    if decoder is None:
        raise InvalidArgumentError(f"{callee.describe()} has no parameter {name!r}")
    try:
        return decoder(raw)
    except DecodeError as error:
        raise InvalidArgumentError(f"argument {name} of {callee.describe()}: {error}") from None
