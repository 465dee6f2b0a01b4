"""Requirements on headers and interceptors. Each environment here has the interceptors below."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from durable import Interceptor, RetryPolicy, activity, workflow
from durable.errors import WorkflowFailedError
from durable.interceptors import (
    ActivityCall,
    HandlerCall,
    MessageCall,
    Proceed,
    RunCall,
    StartCall,
)
from durable.testing import Replayer, WorkflowEnvironment

path: ContextVar[tuple[str, ...]] = ContextVar("path", default=())
user: ContextVar[str | None] = ContextVar("user", default=None)


class Outer(Interceptor):
    """Notes the order in a header and in a context variable, and changes what comes back."""

    async def start_workflow(self, call: StartCall, proceed: Proceed[StartCall]) -> Any:
        if user.get() is not None:
            call.headers["user"] = user.get()
        return await proceed(call)

    async def signal_workflow(self, call: MessageCall, proceed: Proceed[MessageCall]) -> Any:
        if user.get() is not None:
            call.headers["user"] = user.get()
        return await proceed(call)

    query_workflow = update_workflow = signal_workflow

    async def run_workflow(self, call: RunCall, proceed: Proceed[RunCall]) -> Any:
        path.set((*path.get(), "outer"))
        if "mark" in call.headers:
            call.headers["mark"] += " of its run"
        result = await proceed(call)
        return f"<{result}>" if call.info.name == "shown" else result

    async def handle_signal(self, call: HandlerCall, proceed: Proceed[HandlerCall]) -> Any:
        return await proceed(with_user(call))

    async def handle_update(self, call: HandlerCall, proceed: Proceed[HandlerCall]) -> Any:
        return await proceed(with_user(call))

    def handle_query(self, call: HandlerCall, proceed: Callable[[HandlerCall], Any]) -> Any:
        return f"{proceed(call)} for {call.headers.get('user')}"

    async def run_activity(self, call: ActivityCall, proceed: Proceed[ActivityCall]) -> Any:
        path.set((*path.get(), "outer"))
        if call.args == ("refused",):
            raise PermissionError("not this one")
        if call.args == ("once",) and call.info.attempt == 1:
            raise ConnectionError("not yet")
        return await proceed(call)


class Inner(Interceptor):
    """Inside of the other."""

    async def run_workflow(self, call: RunCall, proceed: Proceed[RunCall]) -> Any:
        path.set((*path.get(), "inner"))
        if call.info.name == "forbidden":
            raise PermissionError("nobody runs this")
        if call.info.name == "late":
            await workflow.sleep(0.01)
        return await proceed(call)

    async def run_activity(self, call: ActivityCall, proceed: Proceed[ActivityCall]) -> Any:
        path.set((*path.get(), "inner"))
        return await proceed(call)


INTERCEPTORS = [Outer(), Inner()]


def with_user(call: HandlerCall) -> HandlerCall:
    call.args = (f"{call.args[0]} by {call.headers.get('user')}",)
    return call


@activity.defn(retry=RetryPolicy(initial_interval=0.01, max_attempts=2))
async def look(word: str) -> list[Any]:
    return [word, dict(activity.info().headers), list(path.get()), activity.info().attempt]


@activity.defn
def look_on_thread() -> list[str]:
    return list(path.get())


@workflow.defn
async def inside() -> dict[str, Any]:
    return dict(workflow.info().headers)


@workflow.defn
async def outside() -> list[Any]:
    return [dict(workflow.info().headers), (await look("x"))[1], await inside()]


@workflow.defn
async def twice(runs: int) -> dict[str, Any]:
    if runs:
        workflow.continue_as_new(runs - 1)
    return dict(workflow.info().headers)


@workflow.defn
async def shown() -> str:
    return " ".join(path.get())


@workflow.defn
async def attempts(word: str) -> list[Any]:
    return [*(await look(word))[2:], await look_on_thread()]


@workflow.defn
async def forbidden() -> None:
    pass


@workflow.defn
async def late() -> str:
    return (await look("late"))[0]


@workflow.defn
class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: len(self.notes) == 2)
        return self.notes

    @workflow.signal
    def note(self, text: str) -> None:
        self.notes.append(text)

    @workflow.update
    async def add(self, text: str) -> int:
        self.notes.append(text)
        return len(self.notes)

    @workflow.query
    def count(self) -> Any:
        return len(self.notes)


async def test_header_01(env: WorkflowEnvironment) -> None:
    """header-1: The headers of a start are there in the run, its activities and its children."""
    handle = await env.start(outside, headers={"trace": {"id": "4b", "flags": [1]}})
    assert await handle.result() == [{"trace": {"id": "4b", "flags": [1]}}] * 3


async def test_header_02(env: WorkflowEnvironment) -> None:
    """header-2: The next runs of a chain have the headers of the first."""
    handle = await env.start(twice, 2, headers={"trace": "4b"})
    assert await handle.result() == {"trace": "4b"}


async def test_header_03(env: WorkflowEnvironment) -> None:
    """header-3: An attempt that is made again has the same headers as the first."""
    handle = await env.start(retried, headers={"trace": "4b"})
    assert await handle.result() == [{"trace": "4b"}, 2]


@workflow.defn
async def retried() -> list[Any]:
    found = await look("once")
    return [found[1], found[3]]


async def test_interceptor_01(env: WorkflowEnvironment) -> None:
    """interceptor-1: What a client's interceptor puts into the headers goes where the work goes."""
    user.set("Ann")
    assert await env.execute(outside) == [{"user": "Ann"}] * 3


async def test_interceptor_02(env: WorkflowEnvironment) -> None:
    """interceptor-2: The first is the outermost around a run, and gets what the rest returned."""
    assert await env.execute(shown) == "<outer inner>"


async def test_interceptor_03(env: WorkflowEnvironment) -> None:
    """interceptor-3: Context variables that are set around an attempt are there in the activity."""
    assert await env.execute(attempts, "x") == [["outer", "inner"], 1, ["outer", "inner"]]


async def test_interceptor_04(env: WorkflowEnvironment) -> None:
    """interceptor-4: What is raised around an attempt is tried again as the policy says."""
    assert (await env.execute(attempts, "once"))[1] == 2
    with pytest.raises(WorkflowFailedError, match="not this one"):
        await env.execute(attempts, "refused")


async def test_interceptor_05(env: WorkflowEnvironment) -> None:
    """interceptor-5: What is raised around a run fails the run."""
    with pytest.raises(WorkflowFailedError, match="nobody runs this"):
        await env.execute(forbidden)


async def test_interceptor_06(env: WorkflowEnvironment) -> None:
    """interceptor-6: Handlers of signals, updates and queries are told the sender's headers."""
    user.set("Ann")
    handle = await env.start(Notes)
    await handle.signal("note", "one")
    assert await handle.query("count") == "1 for Ann"
    assert await handle.update("add", "two") == 2
    assert await handle.result() == ["one by Ann", "two by Ann"]


async def test_interceptor_07(env: WorkflowEnvironment) -> None:
    """interceptor-7: What is around a run may change the headers of all that the run asks for."""
    handle = await env.start(outside, headers={"mark": "m"})
    changed = {"mark": "m of its run"}
    assert await handle.result() == [{"mark": "m"}, changed, changed]


async def test_interceptor_08(env: WorkflowEnvironment) -> None:
    """interceptor-8: What is around a run may await timers and activities, and is replayed."""
    handle = await env.start(late)
    assert await handle.result() == "late"
    Replayer([late], interceptors=INTERCEPTORS).replay(await handle.history())
