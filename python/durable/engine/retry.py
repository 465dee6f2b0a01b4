"""Retry: when to try an activity again, and how its options are recorded.

Pure. The caller supplies the attempt, the failure and the random fraction, so the same decision can
be taken, and tested, anywhere.

Options are recorded with every scheduled activity as compact JSON, defaults left out, keys in one
order; all defaults are the empty text. Times are seconds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any

import orjson

from durable.errors import ConfigurationError, DecodeError
from durable.options import ActivityOptions, RetryPolicy, seconds

EXPLICIT_DELAY_SECONDS_MAX = 10 * 366 * 86400.0
"""The longest wait that an activity may ask for by itself: ten years."""

EXACT_MAX = 2.0**53
"""Up to here every whole float is an integer that any JSON reader keeps."""

GROWTH_FLOAT_MAX = 700.0
"""Logarithm of about the largest float."""
DEFAULT_POLICY = RetryPolicy()
DEFAULT_OPTIONS = ActivityOptions()

TIMEOUTS = {
    "start_to_close": "start_to_close_timeout",
    "schedule_to_start": "schedule_to_start_timeout",
    "schedule_to_close": "schedule_to_close_timeout",
    "heartbeat": "heartbeat_timeout",
}


# -- the decision ----------------------------------------------------------------------------


def next_delay_seconds(
    policy: RetryPolicy,
    attempt: int,
    failure_type_names: Collection[str],
    fraction: float,
    explicit_delay: float | None = None,
    *,
    is_final: bool = False,
) -> float | None:
    """Return the seconds to wait before the next attempt, or None to give up.

    ``attempt`` is the one that failed, from 1. ``fraction`` is a random number from 0 to 1.
    ``explicit_delay`` is what the failure itself asks for (`RetryAfter`); it replaces the computed
    delay and nothing else. ``is_final`` is a failure that says it must not be tried again.
    """
    assert attempt >= 1
    if is_final or not is_retryable(policy, failure_type_names):
        return None
    if policy.max_attempts is not None and attempt >= policy.max_attempts:
        return None
    if explicit_delay is not None:
        if not explicit_delay > 0:  # also NaN
            return 0.0
        return min(float(explicit_delay), EXPLICIT_DELAY_SECONDS_MAX)
    delay = backoff_seconds(policy, attempt)
    if policy.jitter:
        delay *= 0.5 + 0.5 * min(max(fraction, 0.0), 1.0)
    return delay


def backoff_seconds(policy: RetryPolicy, attempt: int) -> float:
    """The delay after ``attempt`` without jitter: grows, and stays at ``max_interval``."""
    first = seconds(policy.initial_interval, "initial_interval")
    most = seconds(policy.max_interval, "max_interval")
    if attempt == 1 or first == 0 or first >= most:
        return min(first, most)
    # As logarithms: backoff ** 10**6 is not a float, nor is most / first when first is tiny.
    growth = (attempt - 1) * math.log(policy.backoff)
    if growth >= math.log(most) - math.log(first):
        return most
    if growth > GROWTH_FLOAT_MAX:
        return min(math.exp(growth + math.log(first)), most)
    return min(first * policy.backoff ** (attempt - 1), most)


def is_retryable(policy: RetryPolicy, failure_type_names: Collection[str]) -> bool:
    """Whether the policy names none of the failure's types."""
    return not any(name in failure_type_names for name in names_of(policy.non_retryable))


def names_of(types: Collection[type[BaseException] | str]) -> list[str]:
    """Classes and names as names: a class by its qualified name, so that namesakes differ."""
    return [t if isinstance(t, str) else f"{t.__module__}.{t.__qualname__}" for t in types]


# -- options as JSON -------------------------------------------------------------------------


def policy_to_dict(policy: RetryPolicy) -> dict[str, Any]:
    """What of ``policy`` differs from the default. ``attempts`` of None is no limit."""
    default = DEFAULT_POLICY
    values: dict[str, tuple[Any, Any]] = {
        "initial": (_number(policy.initial_interval), _number(default.initial_interval)),
        "backoff": (_shorter(min(policy.backoff, sys.float_info.max)), _shorter(default.backoff)),
        "max": (_number(policy.max_interval), _number(default.max_interval)),
        "attempts": (policy.max_attempts, default.max_attempts),
        "non_retryable": (names_of(policy.non_retryable), []),
        "jitter": (policy.jitter, default.jitter),
    }
    return {key: value for key, (value, usual) in values.items() if value != usual}


def policy_from_dict(recorded: Mapping[str, Any]) -> RetryPolicy:
    """Undo `policy_to_dict`. Keys of a newer build are passed over."""
    default = DEFAULT_POLICY
    return RetryPolicy(
        initial_interval=recorded.get("initial", default.initial_interval),
        backoff=recorded.get("backoff", default.backoff),
        max_interval=recorded.get("max", default.max_interval),
        max_attempts=recorded.get("attempts", default.max_attempts),
        non_retryable=tuple(recorded.get("non_retryable", ())),
        jitter=recorded.get("jitter", default.jitter),
    )


def options_to_json(options: ActivityOptions) -> str:
    """Return what of ``options`` differs from the defaults, or "" when nothing does.

    Raise ConfigurationError for what JSON cannot hold (a queue name that is not text).
    """
    recorded: dict[str, Any] = {}
    if options.queue is not None:
        recorded["queue"] = options.queue
    if options.priority:
        recorded["priority"] = options.priority
    if options.fairness_key is not None:
        recorded["fairness_key"] = options.fairness_key
        if options.fairness_weight != 1:
            recorded["fairness_weight"] = _shorter(options.fairness_weight)
    retry = policy_to_dict(options.retry)
    if retry:
        recorded["retry"] = retry
    for key, name in TIMEOUTS.items():
        value = getattr(options, name)
        if value is not None:
            recorded[key] = _shorter(seconds(value, name))
    if options.wait_cancel:
        recorded["wait_cancel"] = True
    try:
        return orjson.dumps(recorded).decode() if recorded else ""
    except TypeError as error:
        raise ConfigurationError(f"activity options cannot be recorded: {error}") from None


@lru_cache(maxsize=1024)
def options_from_json(text: str) -> ActivityOptions:
    """Undo `options_to_json`; raise DecodeError for what it cannot have written."""
    if not text:
        return DEFAULT_OPTIONS
    try:
        recorded = orjson.loads(text)
        return ActivityOptions(
            queue=recorded.get("queue"),
            priority=recorded.get("priority", 0),
            fairness_key=recorded.get("fairness_key"),
            fairness_weight=recorded.get("fairness_weight", 1.0),
            retry=policy_from_dict(recorded.get("retry", {})),
            wait_cancel=recorded.get("wait_cancel", False),
            **{name: recorded.get(key) for key, name in TIMEOUTS.items()},
        )
    except (ValueError, TypeError, AttributeError, ConfigurationError) as error:
        raise DecodeError(f"recorded activity options cannot be read: {error}") from None


def _number(value: timedelta | float) -> float:
    return _shorter(seconds(value, "an interval"))


def _shorter(value: float) -> float:
    """``5.0`` as ``5``: the same number in fewer bytes, whichever way it was given."""
    return int(value) if abs(value) < EXACT_MAX and value == int(value) else value
