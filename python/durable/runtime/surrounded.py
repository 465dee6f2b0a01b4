"""Interceptors around an attempt: they run on the loop, wherever the attempt itself does.

So what runs on a thread or in another process is awaited here like an async activity. While it is,
the attempt has no task: a cancelled task would give its slot back too early, so the thread or the
process is told to stop, as without interceptors.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from durable.codec import failure_from_payload
from durable.engine.interceptors import ActivityCall, surround
from durable.errors import CompleteLater
from durable.runtime.activity_pool import ActivityPool
from durable.runtime.attempt import Attempt

Place = Callable[..., Awaitable[Any]]


async def call_surrounded(
    around: Sequence[Callable[..., Any]],
    attempt: Attempt,
    fn: Place,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """The result of the attempt, as the outermost interceptor wants it; ``fn`` runs its code."""

    async def innermost(call: ActivityCall) -> Any:
        return await fn(*call.args, **call.kwargs)

    call = ActivityCall(attempt.context.info, tuple(args), dict(kwargs))
    return await surround(around, innermost)(call)


def place_of(attempt: Attempt, pool: ThreadPoolExecutor, processes: ActivityPool) -> Place:
    """What runs the attempt's code where it belongs, and can be awaited."""
    executor = attempt.definition.executor
    if executor == "thread":
        return lambda *args, **kwargs: on_thread(attempt, pool, args, kwargs)
    if executor == "process":
        return lambda *args, **kwargs: in_process(attempt, processes, args, kwargs)
    place: Place = attempt.definition.fn
    return place


async def on_thread(
    attempt: Attempt, pool: ThreadPoolExecutor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Run it on a thread, with the context variables of here."""
    fn = attempt.definition.fn

    def run() -> tuple[Any, BaseException | None]:
        try:
            return fn(*args, **kwargs), None
        except BaseException as error:
            # Not left to the future, which takes no StopIteration.
            return None, error

    task, attempt.task = attempt.task, None
    try:
        context = contextvars.copy_context()
        value, error = await asyncio.get_running_loop().run_in_executor(pool, context.run, run)
    finally:
        attempt.task = task
    if error is not None:
        raise error
    return value


async def in_process(
    attempt: Attempt, processes: ActivityPool, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run it in a process of its own; raise what it raised there, as far as it is known here."""
    signature = attempt.definition.signature
    input = signature.encode_args(args, kwargs)
    attempt.job = processes.submit(attempt.definition, attempt.context, input, attempt.beaten)
    task, attempt.task = attempt.task, None
    try:
        reply = await attempt.job.done
    finally:
        attempt.task, attempt.job = task, None
    attempt.context.retry_delay_seconds = reply.retry_delay_seconds
    attempt.context.retry_at_us = reply.retry_at_us
    if reply.result is not None:
        return signature.decode_result(reply.result)
    if reply.failure is None:
        raise CompleteLater
    error = failure_from_payload(reply.failure.payload)
    attempt.reply = error, reply
    raise error
