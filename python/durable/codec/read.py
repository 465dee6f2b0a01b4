"""In: JSON bytes to what an annotation says.

`msgspec` reads. An annotation is checked when its decoder is made: every type in it must have a way
back, or DefinitionError says which has none. What msgspec leaves to a hook are paths, pydantic
models and types with a registered converter. What msgspec refuses (unions whose members JSON does
not tell apart, enums of mixed values) is read by pydantic's TypeAdapter where pydantic is
installed; such a decoder is not ``exact``: whoever writes a value for it must show that it
reads back the same.

Classes come from annotations only, never from the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PosixPath, PurePath, PurePosixPath, PureWindowsPath
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
import msgspec.inspect
import orjson

from durable.codec.write import is_pydantic_model, type_name
from durable.errors import DecodeError, DefinitionError

PATH_TYPES = (Path, PurePath, PosixPath, PurePosixPath, PureWindowsPath)

KEY_TYPES = (
    msgspec.inspect.AnyType,
    msgspec.inspect.StrType,
    msgspec.inspect.IntType,
    msgspec.inspect.FloatType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.DateType,
    msgspec.inspect.TimeType,
    msgspec.inspect.TimeDeltaType,
    msgspec.inspect.DecimalType,
    msgspec.inspect.BytesType,
)

SCALARS = {NoneType: 1, None: 1, bool: 2, int: 4, str: 8}
"""The bit that the core knows each plain scalar by (``plain`` in ``_core.pyi``)."""
ALL_SCALARS = 15

_plain_decoder = msgspec.json.Decoder()


def scalars_of(annotation: Any) -> int:
    """Which JSON scalars mean themselves under an annotation that takes nothing else."""
    if annotation is Any:
        return ALL_SCALARS
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else [annotation]
    bits = 0
    for member in members:
        try:
            bits |= SCALARS[member]
        except (KeyError, TypeError):
            return 0
    return bits


def annotation_text(annotation: Any) -> str:
    """An annotation as one would write it, without module names."""
    if annotation is None or annotation is type(None):
        return "None"
    if annotation is Ellipsis:
        return "..."
    if isinstance(annotation, str):
        return annotation
    if isinstance(annotation, list):  # the parameters of a Callable
        return f"[{', '.join(map(annotation_text, annotation))}]"
    args = getattr(annotation, "__args__", ())
    origin = getattr(annotation, "__origin__", None)
    if not args:
        return str(getattr(annotation, "__name__", None) or repr(annotation).replace("typing.", ""))
    if hasattr(annotation, "__metadata__"):
        return annotation_text(origin)
    name = str(getattr(origin, "__name__", None) or type(annotation).__name__)
    if name in ("Union", "UnionType"):
        return " | ".join(map(annotation_text, args))
    if name == "Literal":
        return f"Literal[{', '.join(map(repr, args))}]"
    return f"{name}[{', '.join(map(annotation_text, args))}]"


def read_plain(payload: bytes | msgspec.Raw) -> Any:
    """JSON as it is: dict, list, str, int, float, bool, None. Raise DecodeError."""
    try:
        return _plain_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeError(f"the payload cannot be read as JSON: {error}") from None
    except RecursionError:
        raise DecodeError("the payload cannot be read as JSON: it is nested too deeply") from None


class Decoder:
    """Reads payloads as one type. Call it with bytes; it raises DecodeError.

    ``exact`` is False when a value of the annotated type may read back as another one.
    """

    __slots__ = ("annotation", "exact", "read", "scalars")

    def __init__(
        self, annotation: Any, read: Callable[[bytes | msgspec.Raw], Any], exact: bool
    ) -> None:
        self.annotation = annotation
        self.read = read
        """The same without words: whatever it raises, calling the decoder raises DecodeError."""
        self.exact = exact
        self.scalars = scalars_of(annotation)

    def __call__(self, payload: bytes | msgspec.Raw) -> Any:
        try:
            return self.read(payload)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            reason = str(error).replace(" - at `", " at `")
        except RecursionError:
            reason = "it is nested too deeply"
        except ValueError as error:
            # pydantic's ValidationError is one, and its details name the place.
            reason = _pydantic_reason(error)
        raise DecodeError(
            f"the payload does not fit {annotation_text(self.annotation)}: {reason}"
        ) from None


def _pydantic_reason(error: ValueError) -> str:
    details = getattr(error, "errors", None)
    if details is None:
        return str(error)
    # Without the input: a payload may hold what must not reach a log.
    found = details(include_url=False, include_context=False, include_input=False)
    return "; ".join(
        f"{detail['msg']} at `{'.'.join(['$', *map(str, detail['loc'])])}`" for detail in found[:5]
    )


class Reader:
    """Makes decoders. ``converters`` maps types to functions from plain JSON values."""

    def __init__(self, converters: Mapping[type, Callable[[Any], Any]]) -> None:
        self._converters = dict(converters)

    def decoder(self, annotation: Any) -> Decoder:
        """Raise DefinitionError for a type that cannot come back."""
        if isinstance(annotation, str):
            raise DefinitionError(f"the annotation {annotation!r} is text; resolve it first")
        if is_pydantic_model(annotation) and annotation not in self._converters:
            return Decoder(annotation, _pydantic_reader(annotation), exact=True)
        try:
            read = msgspec.json.Decoder(annotation, dec_hook=self._hook).decode
            info = msgspec.inspect.type_info(annotation)
        except (TypeError, ValueError, NameError) as error:
            return self._pydantic_decoder(annotation, error)
        self._check(info, annotation)
        return Decoder(annotation, read, exact=True)

    def list_reader(self, annotations: Sequence[Any]) -> Callable[[bytes], tuple[Any, ...]] | None:
        """Read a list of just these types; None when that is not the same as reading each."""
        if any(is_pydantic_model(each) for each in annotations):
            return None
        try:
            kind: Any = tuple.__class_getitem__(tuple(annotations))
            return msgspec.json.Decoder(kind, dec_hook=self._hook).decode
        except (TypeError, ValueError, NameError):
            return None

    def is_native(self, cls: type) -> bool:
        """Whether msgspec reads ``cls`` by itself, so that no converter would be asked."""
        try:
            return not isinstance(msgspec.inspect.type_info(cls), msgspec.inspect.CustomType)
        except TypeError:
            return True

    def _hook(self, cls: Any, value: Any) -> Any:
        """What msgspec asks for a type it does not know; ``value`` is plain JSON."""
        origin = getattr(cls, "__origin__", cls)
        convert = self._converters.get(cls) or self._converters.get(origin)
        if convert is not None:
            return convert(value)
        if is_pydantic_model(cls):
            # Through JSON, because pydantic reads JSON by other rules than Python values.
            try:
                return cls.model_validate_json(orjson.dumps(value))
            except ValueError as error:
                raise ValueError(_pydantic_reason(error)) from None
        if cls is object:
            return value
        if not isinstance(value, str):
            raise TypeError(f"Expected `str` for {type_name(cls)}, got `{type(value).__name__}`")
        return cls(value)

    def _check(self, info: msgspec.inspect.Type, annotation: Any) -> None:
        for node in _nodes(info):
            if isinstance(node, msgspec.inspect.DictType):
                for key in _members(node.key_type):
                    is_path = isinstance(key, msgspec.inspect.CustomType) and key.cls in PATH_TYPES
                    if not is_path and not isinstance(key, KEY_TYPES):
                        raise DefinitionError(
                            f"{annotation_text(annotation)}: JSON has no keys of that "
                            "type; use str keys, or a list of pairs"
                        )
            if isinstance(node, msgspec.inspect.CustomType):
                cls = node.cls
                origin = getattr(cls, "__origin__", cls)
                if (
                    cls not in self._converters
                    and origin not in self._converters
                    and cls not in PATH_TYPES
                    and cls is not object
                    and not is_pydantic_model(cls)
                ):
                    raise DefinitionError(
                        f"{annotation_text(annotation)}: a value of type {annotation_text(cls)} "
                        "cannot be read back from JSON; use a dataclass, a pydantic model or a "
                        "msgspec Struct, or register a Converter for it"
                    )

    def _pydantic_decoder(self, annotation: Any, refused: Exception) -> Decoder:
        try:
            # Optional, and slow to import: only those who need it pay.
            import pydantic
        except ImportError:
            raise DefinitionError(
                f"{annotation_text(annotation)} cannot be read back from JSON: {refused}. Give "
                "dataclasses of a union a tag (msgspec.Struct with tag=True), or install pydantic"
            ) from None
        try:
            # In a list, because pydantic takes no settings for a dataclass at the top.
            adapter = pydantic.TypeAdapter(
                list[annotation],
                config=pydantic.ConfigDict(val_json_bytes="base64", defer_build=False),
            )
        except (pydantic.PydanticUserError, TypeError, NameError, AttributeError) as error:
            raise DefinitionError(
                f"{annotation_text(annotation)} cannot be read back from JSON: {refused} "
                f"({str(error).splitlines()[0]})"
            ) from None
        has_model = any(is_pydantic_model(part) for part in _parts(annotation))
        # A model says itself how strict it is; a dataclass does not, and "1" is no int.
        strict = None if has_model else True

        def read(payload: bytes | msgspec.Raw) -> Any:
            found = adapter.validate_json(b"[%b]" % bytes(payload), strict=strict)
            if len(found) != 1:
                raise ValueError("it is not one JSON value")
            return found[0]

        return Decoder(annotation, read, exact=False)


def _pydantic_reader(cls: Any) -> Callable[[bytes | msgspec.Raw], Any]:
    def read(payload: bytes | msgspec.Raw) -> Any:
        return cls.model_validate_json(bytes(payload))

    return read


def _members(info: msgspec.inspect.Type) -> tuple[msgspec.inspect.Type, ...]:
    return info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)


def _nodes(info: msgspec.inspect.Type) -> Iterator[msgspec.inspect.Type]:
    """Every type in a description of a type, once."""
    seen: set[int] = set()
    stack: list[Any] = [info]
    while stack:
        node = stack.pop()
        if isinstance(node, tuple):
            stack.extend(node)
        elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field):
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, msgspec.inspect.Type):
                yield node
            stack.extend(getattr(node, name) for name in node.__struct_fields__)


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation and all its arguments."""
    yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _parts(argument)
