"""`Codec`: how values travel. One instance for all, or one of your own with converters.

A codec turns values into JSON and back by annotation, measures them, and, at the border to the
database, passes the bytes through its pipeline (compression, encryption).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Generic, TypeVar

import msgspec

from durable.codec.pipeline import PayloadCodec, PayloadContext
from durable.codec.read import Decoder, Reader, annotation_text, read_plain
from durable.codec.write import Records, Writer, is_pydantic_model, shown, type_name
from durable.errors import ConfigurationError, EncodeError, PayloadTooLargeError
from durable.options import PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_WARN

T = TypeVar("T")

logger = logging.getLogger("durable.codec")

DECODERS_MAX = 4096
"""Decoders kept by annotation; an application has some hundreds."""
WARNED_MAX = 1024

_warned: set[str] = set()


@dataclass(frozen=True)
class Converter(Generic[T]):
    """How values of ``type`` (and its subclasses) become JSON, and come back.

    ``to_json`` returns anything that can be written; ``from_json`` gets it as plain JSON and
    raises ValueError or TypeError when it does not fit.
    """

    type: type[T]
    to_json: Callable[[T], Any]
    from_json: Callable[[Any], T]


class Codec:
    """Writes values as JSON and reads them back as what an annotation says.

    ``verify`` also reads every argument and result back where it is written and compares: for
    tests and development. ``pipeline`` is applied by `seal`, first codec first, and undone
    by `open`.
    """

    def __init__(
        self,
        converters: Sequence[Converter[Any]] = (),
        pipeline: PayloadCodec | Sequence[PayloadCodec] | None = None,
        *,
        verify: bool = False,
    ) -> None:
        self._reader = Reader({converter.type: converter.from_json for converter in converters})
        for converter in converters:
            if self._reader.is_native(converter.type):
                raise ConfigurationError(
                    f"{type_name(converter.type)} has a JSON form already, which a converter "
                    "cannot replace; wrap it in a class of your own"
                )
        self._writer = Writer({converter.type: converter.to_json for converter in converters})
        if pipeline is None:
            self.pipeline: tuple[PayloadCodec, ...] = ()
        elif isinstance(pipeline, Sequence):
            self.pipeline = tuple(pipeline)
        else:
            self.pipeline = (pipeline,)
        self.records = Records(self._writer)
        """The types that the core may write in its place."""
        self.verify = verify
        self._decoders: dict[Any, Decoder] = {}
        self._plain = Decoder(Any, read_plain, exact=True)

    @property
    def verify(self) -> bool:
        """Whether every argument and result is read back and compared where it is written."""
        return self._verify

    @verify.setter
    def verify(self, verify: bool) -> None:
        self._verify = self.records.is_off = verify
        self.records.clear()

    def encode(self, value: Any, decoder: Callable[[bytes], Any] | None = None) -> bytes:
        """Return compact JSON; raise EncodeError naming the place and type that cannot be written.

        With ``decoder``, what JSON alone does not keep (keys that are not strings, members of an
        ambiguous union) is accepted when it reads back as the same value.
        """
        if decoder is None:
            return self._writer.write(value)

        def prove(data: bytes) -> None:
            back = decoder(data)
            if not same(value, back):
                raise EncodeError(f"it reads back as {shown(back)}, not {shown(value)}")

        data = self._writer.write(value, prove)
        if self.verify or not getattr(decoder, "exact", True):
            try:
                prove(data)
            except Exception as error:
                annotation = getattr(decoder, "annotation", Any)
                advice = "; annotate it with its type" if annotation is Any else ""
                raise EncodeError(
                    f"{shown(value)} does not survive as {annotation_text(annotation)}: "
                    f"{error}{advice}"
                ) from error
        return data

    def decoder(self, annotation: Any = Any) -> Decoder:
        """Return the function from bytes to a value of the annotated type.

        Any, or no annotation, is plain JSON. Raise DefinitionError for a type that cannot come
        back; the function raises DecodeError.
        """
        if annotation is Any or annotation is Parameter.empty:
            return self._plain
        try:
            found = self._decoders.get(annotation)
        except TypeError:  # unhashable metadata in an Annotated
            return self._reader.decoder(annotation)
        if found is None or found.annotation != annotation:
            found = self._reader.decoder(annotation)
            if len(self._decoders) >= DECODERS_MAX:
                self._decoders.clear()
            self._decoders[annotation] = found
        return found

    def list_reader(self, annotations: Sequence[Any]) -> Callable[[bytes], tuple[Any, ...]] | None:
        """Read a list of just these types in one go; None where some of them need a look of their
        own. What the function raises does not say which item is at fault."""
        if not annotations or not all(self.decoder(each).exact for each in annotations):
            return None
        return self._reader.list_reader(annotations)

    def decode(self, payload: bytes, annotation: Any = Any) -> Any:
        """Read one value; raise DecodeError."""
        return self.decoder(annotation)(payload)

    def seal(self, payload: bytes, context: PayloadContext) -> bytes:
        """What is stored for ``payload``: the pipeline applied."""
        for codec in self.pipeline:
            payload = codec.encode(payload, context)
        return payload

    def open(self, data: bytes, context: PayloadContext) -> bytes:
        """The payload of what was stored; raise DecodeError when it cannot be had."""
        for codec in reversed(self.pipeline):
            data = codec.decode(data, context)
        return data


def check_size(payload: bytes, what: str) -> None:
    """Raise PayloadTooLargeError over the limit; warn once per ``what`` over an eighth of it."""
    size = len(payload)
    if size <= PAYLOAD_BYTES_WARN:
        return
    if size > PAYLOAD_BYTES_MAX:
        raise PayloadTooLargeError(
            f"{what} is {size:,} bytes, over the limit of {PAYLOAD_BYTES_MAX:,}; "
            "store it elsewhere and pass a reference, or split it",
            size,
            PAYLOAD_BYTES_MAX,
        )
    if what not in _warned:
        if len(_warned) >= WARNED_MAX:
            _warned.clear()
        _warned.add(what)
        logger.warning(
            "%s is %d bytes; the limit is %d. Pass a reference instead of large data",
            what,
            size,
            PAYLOAD_BYTES_MAX,
        )


def same(value: Any, back: Any) -> bool:
    """Whether ``back`` is what a reader of ``value`` would call the same: equal, of equal type.

    Lists stand for tuples and whole floats for integers, where an annotation does not say.
    """
    if value is back:
        return True
    if isinstance(value, dict):
        return (
            isinstance(back, dict)
            and len(value) == len(back)
            and all(key in back and same(item, back[key]) for key, item in value.items())
            and all(
                type(one) is type(two)
                for one, two in zip(sorted_by_text(value), sorted_by_text(back), strict=True)
            )
        )
    fields = field_names(type(value))
    if fields is not None:
        return type(value) is type(back) and all(
            same(getattr(value, name, None), getattr(back, name, None)) for name in fields
        )
    if isinstance(value, list | tuple):
        return (
            isinstance(back, list | tuple)
            and len(value) == len(back)
            and all(map(same, value, back))
        )
    if isinstance(value, bool) or isinstance(back, bool):
        return False
    if isinstance(value, int | float) and isinstance(back, int | float):
        return value == back and (type(value) is type(back) or type(value) is int)
    comparable = type(back) is type(value) or (
        isinstance(value, str | set | frozenset | bytes | bytearray)
        and isinstance(value, type(back))
    )
    return comparable and bool(value == back)


def sorted_by_text(mapping: Mapping[Any, Any]) -> list[Any]:
    """The keys of ``mapping`` in an order that two equal mappings share."""
    return sorted(mapping, key=str)


def field_names(cls: Any) -> Sequence[str] | None:
    """The fields that make up a record of type ``cls``; None when it is not a record."""
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    if issubclass(cls, msgspec.Struct):
        return list(cls.__struct_fields__)
    if is_pydantic_model(cls):
        return list(cls.model_fields)
    if issubclass(cls, tuple):
        return list(getattr(cls, "_fields", ())) or None
    if hasattr(cls, "__attrs_attrs__"):
        return [field.name for field in cls.__attrs_attrs__]
    return None


DEFAULT_CODEC = Codec()
"""The codec of everything that does not bring its own."""
