"""Interceptors at work around workflow code: a run, and the handlers of its messages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from durable.engine.attributes import plain_headers
from durable.engine.interceptors import HandlerCall, Hooks, RunCall, surround

if TYPE_CHECKING:
    from durable.engine.context import WorkflowContext
    from durable.engine.handlers import Handler


async def run_surrounded(
    hooks: Hooks,
    context: WorkflowContext,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """The code of a run with its interceptors around it."""

    async def innermost(call: RunCall) -> Any:
        if call.headers != context.headers:
            context.headers = plain_headers(call.headers, context.codec)
        return await fn(*call.args, **call.kwargs)

    call = RunCall(
        context.info,
        tuple(args),
        dict(kwargs),
        dict(context.headers),
        context.loop.is_replaying,
    )
    return await surround(hooks.around("run_workflow"), innermost)(call)


def handler_call(
    context: WorkflowContext,
    handler: Handler,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    headers: Mapping[str, Any],
) -> HandlerCall:
    """What the hooks around a handler are told."""
    return HandlerCall(
        context.info,
        handler.name,
        tuple(args),
        dict(kwargs),
        dict(headers),
        context.loop.is_replaying,
    )


async def handle_surrounded(hooks: Hooks, name: str, handler: Handler, call: HandlerCall) -> Any:
    """A signal or update handler with the hooks of that name around it."""

    async def innermost(call: HandlerCall) -> Any:
        value = handler.fn(*call.args, **call.kwargs)
        return await value if inspect.isawaitable(value) else value

    return await surround(hooks.around(name), innermost)(call)


def query_surrounded(hooks: Hooks, handler: Handler, call: HandlerCall) -> Any:
    """A query handler with its hooks around it."""
    return surround(
        hooks.around("handle_query"), lambda call: handler.fn(*call.args, **call.kwargs)
    )(call)
