"""Mocks: activities replaced for a test, held to the signature of the real one.

A function gets the arguments decoded as the real activity would get them, and what it returns must
fit the real result annotation. A value is returned by every call, an exception raised by every call
(and tried again, as the retry policy says). What can be checked is checked when the mock is set.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeGuard, get_type_hints

from durable.codec import DEFAULT_CODEC, Signature
from durable.engine.definition import ActivityDefinition
from durable.errors import DecodeError, DefinitionError, EncodeError, InvalidArgumentError

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Mock:
    """A replaced activity, and the calls it got (each attempt counts)."""

    name: str
    fn: Callable[..., Any]
    signature: Signature
    is_async: bool
    calls: list[Call] = field(default_factory=list)

    @property
    def call_count(self) -> int:
        """The number of attempts so far."""
        return len(self.calls)

    @property
    def args(self) -> tuple[Any, ...]:
        """The positional arguments of the last call; raise InvalidArgumentError before any."""
        if not self.calls:
            raise InvalidArgumentError(f"the mock of {self.name!r} was not called")
        return self.calls[-1][0]


def make_mock(target: ActivityDefinition[..., Any] | str, known: Any, replacement: Any) -> Mock:
    """A mock for an activity, given as its definition or by name.

    ``known`` is the real definition behind a name, or None. Raises InvalidArgumentError when the
    replacement does not fit.
    """
    real = target if isinstance(target, ActivityDefinition) else known
    name = target.name if isinstance(target, ActivityDefinition) else target
    if not isinstance(name, str):
        raise DefinitionError(f"{target!r} is not an activity; give one, or its name")
    fn = as_function(replacement)
    if real is None:
        signature = Signature.of(fn, DEFAULT_CODEC, name=name)
        return Mock(name, fn, signature, inspect.iscoroutinefunction(fn))
    if callable(replacement) and not isinstance(replacement, type | BaseException):
        check_parameters(real, replacement)
    elif not is_exception(replacement):
        try:
            real.signature.check_result(replacement)
        except (EncodeError, DecodeError) as error:
            raise InvalidArgumentError(
                f"{replacement!r} cannot be what {real.signature.describe()} returns: {error}"
            ) from None
    return Mock(name, fn, real.signature, inspect.iscoroutinefunction(fn))


def is_exception(value: Any) -> bool:
    """Whether ``value`` can be raised."""
    return isinstance(value, BaseException) or (
        isinstance(value, type) and issubclass(value, BaseException)
    )


def as_function(replacement: Any) -> Callable[..., Any]:
    """A function that does what the replacement stands for."""
    if is_exception(replacement):

        def fail(*args: Any, **kwargs: Any) -> Any:
            raise replacement

        return fail
    if isinstance(replacement, ActivityDefinition):
        inner: Callable[..., Any] = replacement.fn
        return inner
    if callable(replacement) and not isinstance(replacement, type):
        found: Callable[..., Any] = replacement
        return found

    def give(*args: Any, **kwargs: Any) -> Any:
        return replacement

    return give


def check_parameters(real: ActivityDefinition[..., Any], fn: Callable[..., Any]) -> None:
    """Raise InvalidArgumentError when ``fn`` cannot be called as the real activity can."""
    fn = fn.fn if isinstance(fn, ActivityDefinition) else fn
    try:
        shape = inspect.signature(fn)
    except (TypeError, ValueError):
        return
    names = inspect.signature(real.fn).parameters
    in_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [each for each in names.values() if each.kind in in_place]
    keywords = {each.name: None for each in names.values() if each.kind == each.KEYWORD_ONLY}
    least = [each for each in positional if each.default is each.empty]
    for given in (least, positional):
        try:
            shape.bind(*given, **keywords)
        except TypeError as error:
            raise InvalidArgumentError(
                f"the mock of {real.signature.describe()} cannot take its arguments: {error}"
            ) from None
    check_annotations(real, fn)


def is_class(annotation: Any) -> TypeGuard[type]:
    """Whether an annotation is a plain class. ``Any`` is one to Python."""
    return isinstance(annotation, type) and annotation is not Any


def check_annotations(real: ActivityDefinition[..., Any], fn: Callable[..., Any]) -> None:
    """Raise InvalidArgumentError when ``fn`` is annotated for classes that the real one is not.

    Only plain classes are compared, and only where both sides have one: a mock may be vague.
    """
    try:
        wanted, given = get_type_hints(real.fn), get_type_hints(fn)
    except NameError:
        # A class that is local to the test; values are checked when the mock is called.
        return
    names = list(inspect.signature(real.fn).parameters)
    pairs = list(zip(names, inspect.signature(fn).parameters, strict=False))
    for real_name, mock_name in [*pairs, ("return", "return")]:
        expected, found = wanted.get(real_name), given.get(mock_name)
        if not is_class(expected) or not is_class(found):
            continue
        wide, narrow = (expected, found) if real_name == "return" else (found, expected)
        # As type checkers have it, and JSON: an int is a float.
        if not issubclass(narrow, wide) and (narrow, wide) != (int, float):
            what = "returns" if real_name == "return" else f"takes as {mock_name}"
            raise InvalidArgumentError(
                f"the mock of {real.signature.describe()} {what} {found.__name__}, "
                f"not {expected.__name__}"
            )
