"""Interceptors around what a client asks for, one by one or many in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar, cast

from durable.engine.definition import WorkflowDefinition
from durable.engine.interceptors import StartCall, surround

C = TypeVar("C")
Options = TypeVar("Options")


def start_call(
    workflow: WorkflowDefinition[Any, Any] | str,
    id: str | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: Any,
    message: str | None = None,
) -> StartCall:
    """A start, as interceptors are told of it."""
    name = workflow if isinstance(workflow, str) else getattr(workflow, "name", repr(workflow))
    return StartCall(name, id, args, kwargs, dict(options.get("headers") or {}), options, message)


def started_with(call: StartCall, kind: type[Options]) -> Options:
    """The options of a start, as interceptors left them."""
    return cast(Options, {**call.options, "headers": call.headers})


async def surround_all(
    hooks: Sequence[Callable[..., Any]],
    calls: Sequence[C],
    do_all: Callable[[list[C]], Awaitable[Sequence[Any]]],
) -> list[Any]:
    """The outcomes of many calls with hooks around each, but done in one go, in order.

    ``do_all`` is called when each call has either come through its hooks or been ended by one. When
    a hook raises before that, nothing is done, and this raises what it raised.
    """
    gate = Gate(do_all, len(calls))
    tasks = [
        asyncio.ensure_future(gate.surrounded(hooks, call, index))
        for index, call in enumerate(calls)
    ]
    try:
        await gate.open_when_all_came()
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Gate(Generic[C]):
    """Where calls wait for each other."""

    def __init__(
        self, do_all: Callable[[list[C]], Awaitable[Sequence[Any]]], expected: int
    ) -> None:
        self._do_all = do_all
        self._expected = expected
        self._came: dict[int, tuple[C, asyncio.Future[Any]]] = {}
        self._settled = 0
        self._all_came = asyncio.Event()
        self._error: BaseException | None = None

    async def surrounded(self, hooks: Sequence[Callable[..., Any]], call: C, index: int) -> Any:
        """One call through its hooks."""
        has_come = False

        async def innermost(call: C) -> Any:
            nonlocal has_come
            if has_come:
                # A second try of a hook is on its own.
                return (await self._do_all([call]))[0]
            has_come = True
            future = asyncio.get_running_loop().create_future()
            self._came[index] = call, future
            self._settle()
            return await future

        try:
            return await surround(hooks, innermost)(call)
        except BaseException as error:
            if not has_come and self._error is None:
                self._error = error
            raise
        finally:
            if not has_come:
                has_come = True
                self._settle()

    def _settle(self) -> None:
        self._settled += 1
        if self._settled >= self._expected or self._error is not None:
            self._all_came.set()

    async def open_when_all_came(self) -> None:
        """Do what came, and tell each its outcome; raise what a hook raised before."""
        if self._expected:
            await self._all_came.wait()
        if self._error is not None:
            raise self._error
        # In the order of the calls, whichever came first.
        came = [self._came[index] for index in sorted(self._came)]
        error = None
        outcomes: Sequence[Any] = [None] * len(came)
        try:
            outcomes = await self._do_all([call for call, _ in came])
        except Exception as raised:
            error = raised
        for (_, future), outcome in zip(came, outcomes, strict=True):
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(outcome)
