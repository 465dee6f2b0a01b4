"""Failures: what the executor keeps of an exception that ended an attempt.

An attempt that ran in another process has no exception here. So the retry policy is asked about a
`Failure`, which either side can make: its recorded form, and what a policy wants to know of it.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from durable.codec import failure_to_payload, is_final, type_names
from durable.errors import AttemptLostError, RetryAfter


class Failure(NamedTuple):
    """How an attempt failed. ``payload`` is as recorded, but for the number of the attempt."""

    payload: bytes
    names: tuple[str, ...]
    """The names by which a retry policy may mean it."""
    is_final: bool = False
    """The error itself says that trying again cannot help."""
    retry_after: float | None = None
    """Seconds to the next attempt, by the error's own choice."""


def failure_of(error: BaseException) -> Failure:
    """What is kept of ``error``."""
    after = float(error.delay_seconds) if isinstance(error, RetryAfter) else None
    return Failure(failure_to_payload(error), type_names(error), is_final(error), after)


def numbered(payload: bytes, attempt: int) -> bytes:
    """A failure as it is recorded for an activity: with the attempt that gave up."""
    failure = orjson.loads(payload)
    failure["attempt"] = attempt
    return orjson.dumps(failure)


def failure_payload(error: BaseException, attempt: int) -> bytes:
    """``error`` as it is recorded for an activity."""
    return numbered(failure_to_payload(error), attempt)


def cancelled_payload(name: str, attempt: int) -> bytes:
    """The failure of an activity that was cancelled by its workflow."""
    message = f"activity {name} was cancelled"
    return orjson.dumps({"type": "CancelledError", "message": message, "attempt": attempt})


def lost_payload(name: str, attempt: int) -> bytes:
    """The failure of an at-most-once activity that began and must not begin again."""
    return failure_payload(
        AttemptLostError(
            f"activity {name} began and was interrupted; whether it took effect is not known"
        ),
        attempt,
    )
