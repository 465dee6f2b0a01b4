"""Answers: the arguments of signals, queries and updates on their way out, and what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from durable.client.connected import ConnectedClient
from durable.codec import NO_CODEC, Codec, Signature, check_size, failure_from_payload, is_sealed
from durable.engine.start import decode_json
from durable.errors import InvalidArgumentError, PayloadError
from durable.events import Response


def encode_call(codec: Codec, handler: str | Callable[..., Any], args: Sequence[Any]) -> bytes:
    """The arguments of a signal, query or update, proven to fit where its method is given.

    Raise InvalidArgumentError where they do not, EncodeError or PayloadTooLargeError.
    """
    if isinstance(handler, str):
        payload = codec.encode(list(args))
        check_size(payload, f"the arguments of {handler!r}")
        return payload
    # An update method wraps the function that was decorated.
    signature = Signature.of(getattr(handler, "fn", handler), codec, skip=1)
    payload = signature.encode_args(tuple(args), {})
    try:
        signature.decode_args(payload)
    except PayloadError as error:
        raise InvalidArgumentError(str(error)) from error
    return payload


async def wait_for_answer(
    client: ConnectedClient, workflow_id: str, name: str, request_id: str, limit: float
) -> Response:
    """Wait ``limit`` seconds for the answer to a query or update; raise TimeoutError."""
    try:
        async with asyncio.timeout(limit):
            return await client.waiter.answer(request_id)
    except TimeoutError:
        raise TimeoutError(
            f"workflow {workflow_id} did not answer {name!r} in {limit:g} s; "
            "is a worker with its code running?"
        ) from None


def read_answer(
    codec: Codec, response: Response, handler: str | Callable[..., Any], result_type: Any
) -> Any:
    """The answer of a handler, read as ``result_type`` or, by default, as its annotation says.

    Raise what the handler raised.
    """
    if response.failure is not None:
        raise failure_from_payload(response.failure)
    if response.payload is None:
        return None
    return decode_answer(codec, response.payload, handler, result_type)


def decode_answer(
    codec: Codec, payload: bytes, handler: str | Callable[..., Any], result_type: Any
) -> Any:
    """As `read_answer`, for an answer that came as bytes."""
    if result_type is Any and not isinstance(handler, str):
        fn = getattr(handler, "fn", handler)
        return Signature.of(fn, codec, skip=1).decode_result(payload)
    return codec.decode(payload, result_type)


def plain_failure(payload: bytes | None) -> dict[str, Any]:
    """A recorded failure as a dict; empty when there is none."""
    if is_sealed(payload):
        return {"reason": "sealed", "message": NO_CODEC}
    data = decode_json(payload) if payload else None
    return data if isinstance(data, dict) else {}
