"""Failures of what a workflow called, as the exceptions its code gets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from durable.codec import failure_from_payload
from durable.engine.start import decode_json
from durable.errors import ActivityError, ChildWorkflowError, DecodeError, WorkflowNotFoundError

Known = Mapping[str, type[BaseException]]


def activity_error(name: str, payload: bytes | None, known: Known) -> BaseException:
    """What awaiting an activity raises: an ActivityError, or CancelledError where it agreed to."""
    failure = failure_data(payload)
    said = message_of(failure)
    if failure.get("type") == "CancelledError":
        return asyncio.CancelledError(said)
    attempt = failure.get("attempt", 1)
    tries = "1 attempt" if attempt == 1 else f"{attempt} attempts"
    error = ActivityError(
        f"activity {name} failed after {tries}: {said}",
        name=name,
        attempt=attempt,
        failure=failure,
    )
    error.__cause__ = cause_of(payload, known)
    return error


def child_error(name: str, payload: bytes | None, known: Known) -> ChildWorkflowError:
    """What awaiting a child workflow raises."""
    failure = failure_data(payload)
    said = message_of(failure)
    error = ChildWorkflowError(
        f"child workflow {name} did not end with a result: {said}", name=name, failure=failure
    )
    error.__cause__ = cause_of(payload, known)
    return error


def is_refusal(error: ChildWorkflowError) -> bool:
    """Whether the child was never started, because its id was taken."""
    return (error.failure or {}).get("type") == "WorkflowAlreadyStartedError"


def unreachable(payload: bytes | None) -> BaseException:
    """What a signal or cancel to another run raises when that is not there."""
    return WorkflowNotFoundError(
        f"the other workflow could not be reached: {message_of(failure_data(payload))}"
    )


def failure_data(payload: bytes | None) -> dict[str, Any]:
    """A recorded failure as plain data, whatever its bytes are."""
    try:
        data = decode_json(payload) if payload else {}
    except DecodeError as unreadable:
        data = str(unreadable)
    return data if isinstance(data, dict) else {"type": "Exception", "message": str(data)}


def message_of(failure: Mapping[str, Any]) -> str:
    """The failure in a few words."""
    kind, message = failure.get("type") or "", failure.get("message") or ""
    return f"{kind}: {message}" if kind and message else kind or message or "no reason was given"


def cause_of(payload: bytes | None, known: Known) -> BaseException | None:
    """What was raised elsewhere, rebuilt where its class is known here."""
    if not payload:
        return None
    try:
        return failure_from_payload(payload, known)
    except DecodeError as unreadable:
        return unreadable
