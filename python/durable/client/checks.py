"""Checks of what a caller gives: ids and durations, before anything is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from durable.errors import ConfigurationError, InvalidArgumentError
from durable.events import IdReuse
from durable.options import ID_LENGTH_MAX, seconds

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def check_id(value: object, what: str) -> str:
    """Return ``value`` as an id; raise InvalidArgumentError when it cannot be one."""
    if not isinstance(value, str) or not value:
        raise InvalidArgumentError(f"{what} must be a text that is not empty, not {value!r}")
    if len(value) > ID_LENGTH_MAX:
        raise InvalidArgumentError(
            f"{what} has {len(value)} characters; at most {ID_LENGTH_MAX} are allowed"
        )
    if CONTROL_CHARACTERS.search(value):
        raise InvalidArgumentError(f"{what} must not have control characters: {value!r}")
    return value


def micros(duration: timedelta | float | None, what: str) -> int | None:
    """A duration in microseconds; raise InvalidArgumentError when it is not one."""
    if duration is None:
        return None
    try:
        return round(seconds(duration, what) * 1e6)
    except (ConfigurationError, TypeError, ValueError) as error:
        raise InvalidArgumentError(str(error)) from error


def checked_reuse(value: Any) -> IdReuse:
    """When an id may be used again; raise InvalidArgumentError for what does not say it."""
    try:
        return IdReuse(value)
    except ValueError:
        known = ", ".join(f"IdReuse.{each}" for each in IdReuse.__members__)
        raise InvalidArgumentError(f"id_reuse is one of {known}, not {value!r}") from None


def check_args(args: Any, what: str) -> tuple[Any, ...]:
    """The arguments of one of many calls; raise InvalidArgumentError unless they are a sequence."""
    if isinstance(args, str | bytes) or not isinstance(args, Sequence):
        raise InvalidArgumentError(
            f"the arguments of {what} are a list or a tuple, not {args!r}; one alone is [value]"
        )
    return tuple(args)
