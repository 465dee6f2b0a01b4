"""`Signature`: a function's arguments and result as payloads.

An argument list travels as a JSON array of positional values. Arguments given by keyword are put
in their positions; defaults at the end that were not given are not written, so that a default may
change between builds. Only where a function has keyword-only parameters (or ``**kwargs``) and they
are used, it is an object ``{"args": [...], "kwargs": {...}}``.

Annotations that cannot be resolved yet when the function is defined (a class further down in the
file) are looked up at first use.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any, get_type_hints

import msgspec

from durable.codec.arguments import parse_arguments
from durable.codec.read import Decoder, annotation_text
from durable.codec.value import DEFAULT_CODEC, Codec, check_size
from durable.codec.write import Records
from durable.errors import (
    DecodeError,
    DefinitionError,
    EncodeError,
    InvalidArgumentError,
    PayloadError,
)
from durable.hints import option_hint
from durable.options import PAYLOAD_BYTES_WARN

POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
INT64_MIN = -(2**63)
POSITIONS_MAX = 2**31 - 1
"""The arity of a function with ``*args``."""

_known: weakref.WeakKeyDictionary[Any, dict[Any, Signature]] = weakref.WeakKeyDictionary()
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])


class _Wrapped(msgspec.Struct, forbid_unknown_fields=True):
    """An argument list with keyword-only arguments."""

    args: list[msgspec.Raw]
    kwargs: dict[str, msgspec.Raw]


_wrapped = msgspec.json.Decoder(_Wrapped)


class Signature:
    """How the arguments and the result of one function are written and read."""

    name: str
    arity: tuple[int, int]
    """Least and most number of positional arguments that need no binding."""
    result_decoder: Callable[[bytes], Any] | None
    """Reads results; None when they are plain JSON."""
    result_read: Callable[[bytes], Any] | None = None
    """The same without words for what is wrong (`Decoder.read`), where it is known already."""
    result_scalars: int
    """Which plain scalars the result takes as they are (`Decoder.scalars`)."""

    @classmethod
    def of(
        cls,
        fn: Callable[..., Any],
        codec: Codec = DEFAULT_CODEC,
        *,
        skip: int = 0,
        name: str | None = None,
        localns: Mapping[str, Any] | None = None,
    ) -> Signature:
        """The signature of ``fn``; raise DefinitionError for a type that cannot come back.

        ``skip`` drops so many parameters at the front (``self``, the connection of a transactional
        activity, the name that something dynamic is given). ``localns`` are names that annotations
        may use besides the function's globals.
        """
        if localns is not None:
            return cls(fn, codec, skip=skip, name=name, localns=localns)
        key = (id(codec), skip, name, inspect.ismethod(fn))
        owner = getattr(fn, "__func__", fn)
        try:
            known = _known.setdefault(owner, {})
        except TypeError:  # not weakly referable
            known = {}
        found = known.get(key)
        if found is None or found.codec is not codec:
            found = cls(fn, codec, skip=skip, name=name)
            known[key] = found
        return found

    def __init__(
        self,
        fn: Callable[..., Any],
        codec: Codec = DEFAULT_CODEC,
        *,
        skip: int = 0,
        name: str | None = None,
        localns: Mapping[str, Any] | None = None,
    ) -> None:
        self.codec = codec
        self.name = name or str(getattr(fn, "__name__", type(fn).__name__))
        # Not the function itself: signatures are kept by a weak reference to it.
        self._globals = getattr(inspect.unwrap(fn), "__globals__", {})
        self._localns = dict(localns or {})
        try:
            shape = inspect.signature(fn)
        except (TypeError, ValueError) as error:
            raise DefinitionError(f"{self.name} has no signature to read: {error}") from None
        parameters = list(shape.parameters.values())
        for _ in range(skip):
            if not parameters or parameters[0].kind not in POSITIONAL:
                raise DefinitionError(
                    f"{self.name} needs a first parameter (self, conn, or the name it is called by)"
                )
            parameters = parameters[1:]
        self._shape = shape.replace(parameters=parameters)
        self._positional = [p for p in parameters if p.kind in POSITIONAL]
        self._named = {p.name: p for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
        kinds = {p.kind: p for p in parameters}
        self._rest = kinds.get(Parameter.VAR_POSITIONAL)
        self._extra = kinds.get(Parameter.VAR_KEYWORD)
        self._required = sum(p.default is Parameter.empty for p in self._positional)
        most = POSITIONS_MAX if self._rest is not None else len(self._positional)
        needs_names = any(p.default is Parameter.empty for p in self._named.values())
        self.arity = (most + 1, most) if needs_names else (self._required, most)
        self._decoders: dict[str, Decoder] | None = None
        self._is_exact = False
        self._read_list: Callable[[bytes], tuple[Any, ...]] | None = None
        self._resolve_early()

    # -- annotations -------------------------------------------------------------------------

    def _resolve_early(self) -> None:
        try:
            decoders = self._resolve()
        except NameError:
            # A class that is defined later: looked up when the first value needs it.
            self.result_decoder = self.decode_result
            self.result_scalars = 0
            return
        result = decoders["return"]
        self.result_scalars = result.scalars
        if result.annotation is Any:
            self.result_decoder = None
        else:
            self.result_decoder, self.result_read = result, result.read

    def _resolve(self) -> dict[str, Decoder]:
        """A decoder per parameter and for ``return``; raise NameError for an unknown name."""
        if self._decoders is not None:
            return self._decoders
        annotations = {p.name: p.annotation for p in self._shape.parameters.values()}
        annotations["return"] = self._shape.return_annotation
        given = {k: v for k, v in annotations.items() if v is not Parameter.empty}
        hints = _hints(given, self._globals, self._localns)
        decoders = {}
        for parameter in annotations:
            what = "result" if parameter == "return" else f"argument {parameter}"
            try:
                decoders[parameter] = self.codec.decoder(hints.get(parameter, Any))
            except DefinitionError as error:
                raise DefinitionError(f"{what} of {self.name}(): {error}") from None
        self._decoders = decoders
        self._is_exact = all(d.exact for name, d in decoders.items() if name != "return")
        if not self._named and self._rest is None:
            positions = [hints.get(p.name, Any) for p in self._positional]
            self._read_list = self.codec.list_reader(positions)
        return decoders

    def _decoder(self, parameter: str) -> Decoder:
        decoders = self._decoders
        if decoders is None:
            try:
                decoders = self._resolve()
            except NameError as error:
                raise DefinitionError(
                    f"an annotation of {self.name}() cannot be resolved: {error}; define or import "
                    "the class at module level (not under TYPE_CHECKING)"
                ) from None
        return decoders[parameter]

    def _parameter_at(self, index: int) -> str:
        if index < len(self._positional):
            return self._positional[index].name
        assert self._rest is not None
        return self._rest.name

    # -- arguments ---------------------------------------------------------------------------

    @property
    def records(self) -> Records | None:
        """The types that the core may write in an argument; None where all are read back."""
        return self.codec.records if self._is_exact else None

    def encode_args(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Bind and write; raise InvalidArgumentError, EncodeError or PayloadTooLargeError."""
        least, most = self.arity
        if kwargs or not least <= len(args) <= most:
            args, kwargs = self._bind(args, kwargs)
        if kwargs:
            return self._encode_each(args, kwargs)
        if self.codec.verify or not self._is_exact:
            return self._encode_each(args, kwargs)
        try:
            payload = self.codec.encode(args)
        except EncodeError:
            # Again, one by one: names the argument, and knows the types of its keys.
            return self._encode_each(args, kwargs)
        if len(payload) > PAYLOAD_BYTES_WARN:
            self._check_args_size(payload, args, kwargs)
        return payload

    def _bind(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            bound = self._shape.bind(*args, **kwargs)
        except TypeError as error:
            strange = kwargs.keys() - self._shape.parameters.keys()
            raise InvalidArgumentError(
                f"{self.name}(): {error}; it is {self.describe()}{option_hint(strange)}"
            ) from None
        given = bound.arguments
        last = max((i for i, p in enumerate(self._positional) if p.name in given), default=-1)
        values = [given.get(p.name, p.default) for p in self._positional[: last + 1]]
        if self._rest is not None:
            values.extend(given.get(self._rest.name, ()))
        named = {name: given[name] for name in self._named if name in given}
        if self._extra is not None:
            named.update(given.get(self._extra.name, {}))
        return tuple(values), named

    def _encode_each(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        parts = [
            self._encode_one(self._parameter_at(index), value) for index, value in enumerate(args)
        ]
        payload = b"[" + b",".join(parts) + b"]"
        if kwargs:
            pairs = [
                self.codec.encode(name) + b":" + self._encode_one(self._keyword(name), value, name)
                for name, value in kwargs.items()
            ]
            payload = b'{"args":' + payload + b',"kwargs":{' + b",".join(pairs) + b"}}"
        if len(payload) > PAYLOAD_BYTES_WARN:
            self._check_args_size(payload, args, kwargs)
        return payload

    def _keyword(self, name: str) -> str:
        if name in self._named:
            return name
        assert self._extra is not None
        return self._extra.name

    def _encode_one(self, parameter: str, value: Any, name: str | None = None) -> bytes:
        try:
            return self.codec.encode(value, self._decoder(parameter))
        except EncodeError as error:
            raise EncodeError(f"argument {name or parameter} of {self.name}(): {error}") from error

    def _check_args_size(
        self, payload: bytes, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        sizes = {
            self._parameter_at(i): len(self._encode_plain(arg, self._parameter_at(i)))
            for i, arg in enumerate(args)
        }
        for name, value in kwargs.items():
            sizes[name] = len(self._encode_plain(value, self._keyword(name)))
        largest = max(sizes, key=lambda name: sizes[name])
        check_size(
            payload,
            f"the arguments of {self.name}() (the largest is {largest}: {sizes[largest]:,} bytes)"
            if len(sizes) > 1
            else f"argument {largest} of {self.name}()",
        )

    def _encode_plain(self, value: Any, parameter: str) -> bytes:
        return self.codec.encode(value, self._decoder(parameter))

    def decode_args(self, payload: bytes | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read an argument list; raise DecodeError naming the argument that does not fit."""
        if self._read_list is not None and payload:
            try:
                return self._read_list(payload), {}
            except Exception:
                # Read once more below, one by one: that names the argument.
                pass
        if not payload:
            payload = b"[]"
        try:
            if payload[:1] == b"{":
                wrapped = _wrapped.decode(payload)
                raw, named = wrapped.args, wrapped.kwargs
            else:
                raw, named = _raw_list.decode(payload), {}
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise DecodeError(f"the arguments of {self.name}() cannot be read: {error}") from None
        self._check_shape(len(raw), named)
        args = tuple(self._decode_one(self._parameter_at(i), part) for i, part in enumerate(raw))
        kwargs = {
            name: self._decode_one(self._keyword(name), part, name) for name, part in named.items()
        }
        return args, kwargs

    def _check_shape(self, count: int, named: Mapping[str, Any]) -> None:
        most = POSITIONS_MAX if self._rest is not None else len(self._positional)
        if count > most:
            raise DecodeError(f"{count} arguments are too many for {self.describe()}")
        missing = [p.name for p in self._positional[count : self._required]]
        missing += [
            name
            for name, p in self._named.items()
            if p.default is Parameter.empty and name not in named
        ]
        if missing:
            raise DecodeError(
                f"there is no value for {', '.join(missing)} of {self.describe()}; "
                "a new parameter needs a default"
            )
        unknown = [name for name in named if name not in self._named]
        if unknown and self._extra is None:
            raise DecodeError(f"{self.describe()} has no {', '.join(unknown)}")

    def _decode_one(self, parameter: str, part: msgspec.Raw, name: str | None = None) -> Any:
        try:
            return self._decoder(parameter)(part)
        except DecodeError as error:
            raise DecodeError(f"argument {name or parameter} of {self.name}(): {error}") from None

    def parse_json_args(self, text: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments typed by a person: see `durable.codec.arguments.parse_arguments`."""
        parameters = [*(p.name for p in self._positional), *self._named]
        return parse_arguments(self, parameters, {p: self._decoder(p) for p in parameters}, text)

    # -- result ------------------------------------------------------------------------------

    def decode_result(self, payload: bytes | None) -> Any:
        """Read a result; raise DecodeError. No payload is None."""
        if not payload:
            return None
        try:
            return self._decoder("return")(payload)
        except DecodeError as error:
            raise DecodeError(f"result of {self.name}(): {error}") from None

    def check_result(self, value: Any) -> bytes:
        """Write a result and show that it fits the return annotation by reading it.

        Raise EncodeError, DecodeError or PayloadTooLargeError.
        """
        decoder = self._decoder("return")
        kind = type(value)
        if kind is decoder.annotation or (value is None and decoder.annotation is None):
            # What cannot but read back the same needs no showing.
            if kind is int and INT64_MIN <= value < -INT64_MIN:
                return b"%d" % value
            if kind is bool:
                return b"true" if value else b"false"
            if value is None:
                return b"null"
        try:
            payload = self.codec.encode(value, decoder)
            if decoder.annotation is not Any and not (kind is float is decoder.annotation):
                decoder(payload)
        except PayloadError as error:
            raise type(error)(f"result of {self.name}(): {error}") from error
        if len(payload) > PAYLOAD_BYTES_WARN:
            check_size(payload, f"result of {self.name}()")
        return payload

    # -- for people --------------------------------------------------------------------------

    def parameters(self) -> list[tuple[str, Any, Any, str]]:
        """Name, kind, default and annotation text of each: what two functions can be compared by.

        An annotation is the same whether its module has annotations as text or as objects.
        """
        return [
            (p.name, p.kind, p.default, annotation_text(p.annotation))
            for p in self._shape.parameters.values()
        ]

    def describe(self) -> str:
        """The signature on one line: ``subscription(plan: Plan) -> Receipt``."""
        parts: list[str] = []
        is_marked = False
        for parameter in self._shape.parameters.values():
            if parameter.kind is Parameter.KEYWORD_ONLY and self._rest is None and not is_marked:
                parts.append("*")
                is_marked = True
            parts.append(_parameter_text(parameter))
        text = f"{self.name}({', '.join(parts)})"
        result = self._shape.return_annotation
        return text if result is Parameter.empty else f"{text} -> {annotation_text(result)}"

    def __repr__(self) -> str:
        return f"<Signature {self.describe()}>"


def _parameter_text(parameter: Parameter) -> str:
    stars: dict[Any, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}
    text = stars.get(parameter.kind, "") + parameter.name
    if parameter.annotation is not Parameter.empty:
        text += f": {annotation_text(parameter.annotation)}"
    if parameter.default is not Parameter.empty:
        shown = repr(parameter.default)
        text += f" = {shown if len(shown) <= 40 else '...'}"
    return text


def _hints(
    annotations: dict[str, Any], globalns: dict[str, Any], localns: dict[str, Any]
) -> dict[str, Any]:
    """Resolve annotations given as text; raise NameError for a name that is not there."""

    class Carrier:
        __annotations__ = annotations

    try:
        return get_type_hints(Carrier, globalns, localns, include_extras=True)
    except (TypeError, SyntaxError, AttributeError) as error:
        raise DefinitionError(f"an annotation cannot be read: {error}") from None
