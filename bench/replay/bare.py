"""Bare: the yardsticks that are no product.

`BareLoop` is about the least that can be an asyncio event loop in Python: a deque of callbacks. On
it the very code object of the measured workflow runs, with activities that answer at once:

* *bare-asyncio*: each call is a future that the loop resolves in its next round. This is what a
  coroutine that really waits costs in Python, without any durability. The main yardstick.
* *ready-await*: each call is a future that has its result already, so nothing ever suspends. No
  event loop can be below this; it says what user code and futures alone cost.

`core_replay` is the Rust core with the least hook that works: what the engine above it adds is the
difference to the user-facing number.
"""

import asyncio
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from types import FunctionType
from typing import Any

from durable.codec import DEFAULT_CODEC
from durable.engine.tasks import WorkflowLoop
from durable.events import EventKind


class BareLoop:
    """Runs callbacks in order until there are none. It is what asyncio's C code asks for."""

    def __init__(self) -> None:
        self.ready: deque[tuple[Callable[..., object], tuple[Any, ...], Context | None]] = deque()

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> None:
        self.ready.append((callback, args, context))

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def create_task(self, coro: Coroutine[Any, Any, Any], **kwargs: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **kwargs)  # type: ignore[arg-type]

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise RuntimeError(context["message"])

    def run(self, coro: Coroutine[Any, Any, Any]) -> Any:
        """The result of ``coro``."""
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)  # type: ignore[arg-type]
        try:
            main = asyncio.Task(coro, loop=self)  # type: ignore[arg-type]
            ready, take = self.ready, self.ready.popleft
            while ready:
                callback, args, context = take()
                if context is None:
                    callback(*args)
                else:
                    context.run(callback, *args)
            return main.result()
        finally:
            asyncio._set_running_loop(before)


def with_activities(workflow: Any, **activities: Callable[..., Any]) -> Callable[..., Any]:
    """The workflow's own code, with other functions in the place of its activities."""
    plain: FunctionType = workflow.fn
    return FunctionType(plain.__code__, {**plain.__globals__, **activities}, plain.__name__)


def suspending(workflow: Any, count: int, name: str, answer: Callable[[Any], Any]) -> Any:
    """Run it on a bare loop; each activity's future is resolved in the loop's next round."""
    loop = BareLoop()
    make, soon = loop.create_future, loop.call_soon

    def call(argument: Any) -> asyncio.Future[Any]:
        future = make()
        soon(resolve, future, argument)
        return future

    def resolve(future: asyncio.Future[Any], argument: Any) -> None:
        future.set_result(answer(argument))

    def call_plain(argument: Any) -> asyncio.Future[Any]:
        future = make()
        soon(future.set_result, argument)
        return future

    activities = {name: call_plain if answer is itself else call}
    return loop.run(with_activities(workflow, **activities)(count))


def ready(workflow: Any, count: int, name: str, answer: Callable[[Any], Any]) -> Any:
    """Run it on a bare loop; each activity's future has its result when it is returned."""
    loop = BareLoop()

    def call(argument: Any) -> asyncio.Future[Any]:
        future = loop.create_future()
        future.set_result(answer(argument))
        return future

    return loop.run(with_activities(workflow, **{name: call})(count))


def decoding(answer: Any) -> Callable[[Any], Any]:
    """An activity that answers so, and costs what reading the answer costs."""
    decode, payload = DEFAULT_CODEC.decoder(type(answer)), DEFAULT_CODEC.encode(answer)
    return lambda argument: decode(payload)


def itself(argument: Any) -> Any:
    """What `echo` answers."""
    return argument


class LeastHook:
    """What the core needs of an engine to run `steps` and `fan_out`."""

    def __init__(self, workflow: Any, run_id: str, count: int) -> None:
        self.loop = WorkflowLoop(uuid.UUID(run_id).bytes, self)
        self.loop.context = self
        self.workflow = workflow
        self.count = count
        self.main: asyncio.Task[Any] | None = None

    def on_event(self, kind: int, *rest: Any) -> None:
        if kind == EventKind.RUN_STARTED:
            self.main = self.loop.create_task(self.workflow.fn(self.count))
            self.loop.set_main(self.main)

    def make_task(self, coro: Any, name: str | None, context: Context | None) -> Any:
        loop: Any = self.loop
        return asyncio.Task(coro, loop=loop, name=name, context=context)

    def on_idle(self) -> None:
        pass

    def on_finish(self) -> None:
        assert self.main is not None
        self.loop.emit(EventKind.RUN_COMPLETED, payload=str(self.main.result()).encode())

    def failure(self, *rest: Any) -> BaseException:
        raise AssertionError("nothing fails here")


def core_replay(workflow: Any, run_id: str, count: int, batches: list[bytes], head: int) -> Any:
    """Replay on the core alone."""
    hook = LeastHook(workflow, run_id, count)
    hook.loop.load(batches, head)
    hook.loop.replay()
    assert hook.main is not None
    return hook.main.result()
