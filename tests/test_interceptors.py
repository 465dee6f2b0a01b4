"""Interceptors: what is around every start, message, workflow, handler and attempt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from contextvars import ContextVar
from typing import Any

import pytest

from durable import (
    Client,
    Interceptor,
    NonRetryable,
    RetryPolicy,
    SyncClient,
    WorkflowAlreadyStartedError,
    activity,
    workflow,
)
from durable.errors import (
    ActivityError,
    ConfigurationError,
    InvalidArgumentError,
    WorkflowFailedError,
)
from durable.interceptors import (
    ActivityCall,
    HandlerCall,
    MessageCall,
    Proceed,
    RunCall,
    StartCall,
)
from durable.options import WorkerOptions
from durable.runtime.worker import Worker
from durable.testing import Replayer, WorkflowEnvironment
from durable.testing.postgres import PostgresEnvironment

SOON = 20.0
tenant: ContextVar[str] = ContextVar("tenant", default="")
Serve = Callable[..., Awaitable[Worker]]


@activity.defn(retry=RetryPolicy(initial_interval=0.01, max_attempts=2))
async def again(text: str) -> dict[str, Any]:
    """Tried once on the worker of its run, then from its row in the queue."""
    if activity.info().attempt == 1:
        raise ValueError("not yet")
    return {"text": text, "headers": dict(activity.info().headers), "tenant": tenant.get()}


@activity.defn(heartbeat_timeout=60)
async def queued(text: str) -> dict[str, Any]:
    """Always from its row in the queue."""
    return {"text": text, "headers": dict(activity.info().headers), "tenant": tenant.get()}


@activity.defn
def on_thread(text: str) -> dict[str, Any]:
    return {"text": text, "headers": dict(activity.info().headers), "tenant": tenant.get()}


@activity.defn(executor="process")
def in_process(text: str) -> dict[str, Any]:
    if text == "fail":
        raise NonRetryable("as told")
    return {"text": text, "headers": dict(activity.info().headers)}


@activity.transactional
async def written(conn: Any, text: str) -> dict[str, Any]:
    row = await (await conn.execute("SELECT 1")).fetchone()
    return {"text": text, "row": row[0], "tenant": tenant.get()}


@workflow.defn
async def leaf() -> dict[str, Any]:
    return dict(workflow.info().headers)


@workflow.defn
async def everywhere() -> dict[str, Any]:
    return {
        "again": await again("a"),
        "queued": await queued("b"),
        "thread": await on_thread("c"),
        "child": await leaf(),
        "own": dict(workflow.info().headers),
    }


@workflow.defn
async def kinds() -> list[Any]:
    return [await in_process("p"), await written("t"), await on_thread("s")]


@workflow.defn
class Counter:
    def __init__(self) -> None:
        self.total = 0

    @workflow.run
    async def run(self) -> int:
        await workflow.wait_condition(lambda: self.total >= 10)
        return self.total

    @workflow.signal
    def add(self, amount: int) -> None:
        self.total += amount

    @workflow.query
    def now(self) -> int:
        return self.total

    @workflow.update
    async def set(self, amount: int) -> int:
        self.total = amount
        return amount


class Recorder(Interceptor):
    """Writes down what it surrounds."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    async def note(self, what: str, call: Any, proceed: Proceed[Any]) -> Any:
        self.log.append(f"{self.name} > {what}")
        try:
            return await proceed(call)
        finally:
            self.log.append(f"{self.name} < {what}")

    async def start_workflow(self, call: StartCall, proceed: Proceed[StartCall]) -> Any:
        return await self.note(f"start {call.workflow}", call, proceed)

    async def signal_workflow(self, call: MessageCall, proceed: Proceed[MessageCall]) -> Any:
        return await self.note(f"send {call.name}", call, proceed)

    async def run_workflow(self, call: RunCall, proceed: Proceed[RunCall]) -> Any:
        return await self.note(f"run {call.info.name}", call, proceed)

    async def run_activity(self, call: ActivityCall, proceed: Proceed[ActivityCall]) -> Any:
        return await self.note(f"{call.info.name} {call.info.attempt}", call, proceed)


class Tenants(Interceptor):
    """Carries a context variable along, in a header."""

    async def start_workflow(self, call: StartCall, proceed: Proceed[StartCall]) -> Any:
        call.headers["tenant"] = tenant.get()
        return await proceed(call)

    async def signal_workflow(self, call: MessageCall, proceed: Proceed[MessageCall]) -> Any:
        call.headers["tenant"] = tenant.get()
        return await proceed(call)

    query_workflow = update_workflow = signal_workflow

    async def run_workflow(self, call: RunCall, proceed: Proceed[RunCall]) -> Any:
        tenant.set(call.headers.get("tenant", ""))
        return await proceed(call)

    async def run_activity(self, call: ActivityCall, proceed: Proceed[ActivityCall]) -> Any:
        tenant.set(call.headers.get("tenant", ""))
        return await proceed(call)


@pytest.fixture
async def serve(dsn: str) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(*definitions: Any, interceptors: Any = (), **options: Any) -> Worker:
            worker = Worker(
                dsn,
                workflows=[each for each in definitions if hasattr(each, "handlers")],
                activities=[each for each in definitions if not hasattr(each, "handlers")],
                options=WorkerOptions(**{"drain_seconds": 1.0, **options}),
                interceptors=interceptors,
            )
            return await stack.enter_async_context(worker)

        yield start


# -- headers, without any interceptor -------------------------------------------------------------


async def test_activities_get_the_headers_of_their_run_at_once_and_from_the_queue(
    client: Client, serve: Serve
) -> None:
    await serve(everywhere, leaf, again, queued, on_thread)
    headers = {"trace": "4bf9", "deep": [1, {"yes": True}]}
    handle = await client.start(everywhere, id="h", headers=headers)
    found = await handle.result(SOON)
    assert found["own"] == found["child"] == headers
    assert {name: found[name]["headers"] for name in ("again", "queued", "thread")} == {
        "again": headers,
        "queued": headers,
        "thread": headers,
    }
    assert found["queued"]["text"] == "b"
    plain = await (await client.start(everywhere, id="n")).result(SOON)
    assert plain["again"]["headers"] == plain["queued"]["headers"] == plain["own"] == {}


async def test_jobs_do_not_show_the_headers_that_are_our_own(client: Client, serve: Serve) -> None:
    await serve(again)
    job = await client.enqueue(again, "x", priority=3)
    assert (await job.result(SOON))["headers"] == {}


async def test_headers_are_the_same_in_the_test_environment() -> None:
    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        handle = await env.start(everywhere, headers={"trace": "4bf9"})
        found = await handle.result()
    assert found["again"]["headers"] == found["thread"]["headers"] == {"trace": "4bf9"}
    assert found["child"] == {"trace": "4bf9"}


# -- context that travels -------------------------------------------------------------------------


async def test_a_context_variable_travels_from_the_client_to_activities_and_children(
    dsn: str, serve: Serve
) -> None:
    await serve(everywhere, leaf, again, queued, on_thread, interceptors=[Tenants()])
    async with Client.connect(dsn, interceptors=[Tenants()]) as client:
        tenant.set("acme")
        handle = await client.start(everywhere, id="c", headers={"own": 1})
        found = await handle.result(SOON)
    assert found["own"] == found["child"] == {"own": 1, "tenant": "acme"}
    assert [found[name]["tenant"] for name in ("again", "queued", "thread")] == ["acme"] * 3


async def test_attempts_of_every_kind_are_surrounded(dsn: str, serve: Serve) -> None:
    log: list[str] = []
    around = [Recorder("a", log), Tenants()]
    await serve(kinds, in_process, written, on_thread, interceptors=around)
    async with Client.connect(dsn, interceptors=[Tenants()]) as client:
        tenant.set("acme")
        handle = await client.start(kinds, id="k")
        process, transaction, thread = await handle.result(SOON)
    assert process == {"text": "p", "headers": {"tenant": "acme"}}
    assert transaction == {"text": "t", "row": 1, "tenant": "acme"}
    assert thread["tenant"] == "acme"
    assert log[:1] == ["a > run kinds"]
    assert [line for line in log if "run" not in line] == [
        "a > in_process 1",
        "a < in_process 1",
        "a > written 1",
        "a < written 1",
        "a > on_thread 1",
        "a < on_thread 1",
    ]


async def test_the_client_without_asyncio_sees_the_context_of_its_caller(
    dsn: str, serve: Serve
) -> None:
    await serve(leaf)

    def in_a_thread() -> Any:
        tenant.set("sync")
        with SyncClient.connect(dsn, interceptors=[Tenants()]) as client:
            return client.start(leaf, id="s").result(SOON)

    assert await asyncio.to_thread(in_a_thread) == {"tenant": "sync"}


async def test_each_of_many_starts_and_jobs_and_signals_is_surrounded(
    dsn: str, serve: Serve
) -> None:
    log: list[str] = []
    around = [Recorder("a", log), Tenants()]
    async with Client.connect(dsn, interceptors=around) as client:
        tenant.set("many")
        starts = [("m1", ()), ("m1", ()), ("m2", (), {"headers": {"own": 1}})]
        one, twice, two = await client.start_many(leaf, starts)
        jobs = await client.enqueue_many(queued, [("x",), ("y",)])
        assert isinstance(twice, WorkflowAlreadyStartedError)
        assert not isinstance(one, WorkflowAlreadyStartedError)
        assert not isinstance(two, WorkflowAlreadyStartedError)
        counters = await client.start_many(Counter, [("c1", ()), ("c2", ())])
        assert len(counters) == 2
        sent = await client.signal_many("add", [("c1", (4,)), ("none", (1,)), ("c1", (6,))])
        assert sent == [True, False, True]
        assert log.count("a > start leaf") == log.count("a < start leaf") == 3
        assert log.count("a > start job:queued") == 2
        assert log.count("a > send add") == 3
        await serve(leaf, queued, Counter)
        assert await one.result(SOON) == {"tenant": "many"}
        assert await two.result(SOON) == {"own": 1, "tenant": "many"}
        for job in jobs:
            assert not isinstance(job, WorkflowAlreadyStartedError)
            assert (await job.result(SOON))["headers"] == {"tenant": "many"}
        assert await client.get_handle("c1").result(SOON) == 10
        await client.get_handle("c2").terminate()


# -- order and errors -----------------------------------------------------------------------------


async def test_the_first_is_the_outermost(dsn: str, serve: Serve) -> None:
    log: list[str] = []
    both = [Recorder("a", log), Recorder("b", log)]
    async with Client.connect(dsn, interceptors=both) as client:
        await client.start(leaf, id="o")
        assert log == ["a > start leaf", "b > start leaf", "b < start leaf", "a < start leaf"]
        log.clear()
        await serve(leaf, interceptors=both)
        await client.get_handle("o").result(SOON)
        assert log == ["a > run leaf", "b > run leaf", "b < run leaf", "a < run leaf"]


class Strict(Interceptor):
    """Refuses what has the word ``bad`` in it."""

    async def start_workflow(self, call: StartCall, proceed: Proceed[StartCall]) -> Any:
        if call.id == "bad":
            raise PermissionError("not that one")
        return await proceed(call)

    async def run_workflow(self, call: RunCall, proceed: Proceed[RunCall]) -> Any:
        if call.info.workflow_id == "bad run":
            raise PermissionError("not here")
        return await proceed(call)

    async def run_activity(self, call: ActivityCall, proceed: Proceed[ActivityCall]) -> Any:
        if call.args == ("bad",) and call.info.attempt == 1:
            raise PermissionError("not now")
        return await proceed(call)


@workflow.defn
async def retried(text: str) -> dict[str, Any]:
    return await again(text)


@workflow.defn
async def processed(text: str) -> Any:
    try:
        return await in_process(text)
    except ActivityError as error:
        return [type(error.__cause__).__name__, str(error.__cause__), error.attempt]


async def test_an_error_of_an_interceptor_is_one_of_what_it_surrounds(
    dsn: str, serve: Serve
) -> None:
    await serve(leaf, retried, again, processed, in_process, interceptors=[Strict()])
    async with Client.connect(dsn, interceptors=[Strict()]) as client:
        with pytest.raises(PermissionError, match="not that one"):
            await client.start(leaf, id="bad")
        with pytest.raises(PermissionError, match="not that one"):
            await client.start_many(leaf, [("good", ()), ("bad", ())])
        assert await client.list(workflow_type="leaf") == []
        run = await client.start(leaf, id="bad run")
        with pytest.raises(WorkflowFailedError, match="not here"):
            await run.result(SOON)
        # Tried again as the policy of the activity says.
        tried = await client.start(retried, "bad", id="t")
        assert (await tried.result(SOON))["text"] == "bad"
        # What another process raised passes through as it is.
        failed = await client.start(processed, "fail", id="p")
        assert await failed.result(SOON) == ["NonRetryable", "as told", 1]


def test_what_is_no_interceptor_is_refused() -> None:
    class Wrong(Interceptor):
        def run_activity(self, call: Any, proceed: Any) -> Any:
            return proceed(call)

    for bad, said in ((object(), "derive"), (Tenants, r"write \(\)"), (Wrong(), "async def")):
        with pytest.raises(ConfigurationError, match=said):
            WorkflowEnvironment(interceptors=[bad])  # type: ignore[list-item]


# -- handlers -------------------------------------------------------------------------------------


class Audit(Interceptor):
    """Shows who asked, and lets nobody else touch the counter."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def look(self, kind: str, call: HandlerCall) -> None:
        if not call.is_replaying:
            self.seen.append((kind, call.name, call.args, call.headers.get("tenant")))

    async def handle_signal(self, call: HandlerCall, proceed: Proceed[HandlerCall]) -> Any:
        self.look("signal", call)
        call.args = (call.args[0] * 2,)
        return await proceed(call)

    async def handle_update(self, call: HandlerCall, proceed: Proceed[HandlerCall]) -> Any:
        self.look("update", call)
        if call.args == (13,):
            raise PermissionError("unlucky")
        return await proceed(call) + 100

    def handle_query(self, call: HandlerCall, proceed: Callable[[HandlerCall], Any]) -> Any:
        self.look("query", call)
        return proceed(call) + 1000


async def test_handlers_are_surrounded_and_told_the_headers_of_their_message(
    dsn: str, serve: Serve
) -> None:
    audit = Audit()
    await serve(Counter, interceptors=[audit])
    async with Client.connect(dsn, interceptors=[Tenants(), audit], workflows=[Counter]) as client:
        tenant.set("acme")
        handle = await client.start(Counter, id="c")
        await handle.signal(Counter.add, 2)
        assert await handle.query(Counter.now, timeout=SOON) == 1004
        assert await handle.update(Counter.set, 5, timeout=SOON) == 105
        with pytest.raises(PermissionError, match="unlucky"):
            await handle.update(Counter.set, 13, timeout=SOON)
        await client.signal_with_start(Counter, id="c", signal=Counter.add, signal_args=(4,))
        assert await handle.result(SOON) == 13
        assert audit.seen == [
            ("signal", "add", (2,), "acme"),
            ("query", "now", (), "acme"),
            ("update", "set", (5,), "acme"),
            ("update", "set", (13,), "acme"),
            ("signal", "add", (4,), "acme"),
        ]
        # Of a run that has ended, by a replay in the client.
        assert await handle.query(Counter.now) == 1013


@workflow.defn
async def forward(target: str) -> None:
    await workflow.signal_external(target, "add", 10)


async def test_signals_of_workflows_carry_the_headers_of_their_run(dsn: str, serve: Serve) -> None:
    audit = Audit()
    await serve(Counter, forward, interceptors=[Tenants(), audit])
    async with Client.connect(dsn, interceptors=[Tenants()]) as client:
        handle = await client.start(Counter, id="c")
        tenant.set("forwarder")
        await client.start(forward, "c", id="f")
        assert await handle.result(SOON) == 20
    assert audit.seen == [("signal", "add", (10,), "forwarder")]


@workflow.defn
class Late:
    """Takes its signals in its second run only."""

    @workflow.run
    async def run(self, runs: int) -> None:
        if runs == 1:
            await workflow.wait_signal("go")
            workflow.continue_as_new(2)
        got = asyncio.Event()

        def take(amount: int) -> None:
            got.set()

        workflow.on_signal("add", take)
        await got.wait()


async def test_a_signal_that_the_next_run_takes_has_its_headers_still(
    dsn: str, serve: Serve
) -> None:
    audit = Audit()
    await serve(Late, interceptors=[audit])
    async with Client.connect(dsn, interceptors=[Tenants()]) as client:
        tenant.set("patient")
        handle = await client.start(Late, 1, id="l")
        await handle.signal("add", 1)
        await handle.signal("go")
        await handle.result(SOON)
    assert audit.seen == [("signal", "add", (1,), "patient")]


# -- workflow code: replayed, and in charge of what goes on ---------------------------------------


class Deeper(Interceptor):
    """Counts how deep a run is below the first; says what was a replay."""

    def __init__(self) -> None:
        self.replays: list[bool] = []

    async def run_workflow(self, call: RunCall, proceed: Proceed[RunCall]) -> Any:
        self.replays.append(call.is_replaying)
        call.headers["depth"] = call.headers.get("depth", 0) + 1
        if call.info.name == "slow":
            await workflow.sleep(0.01)
        return await proceed(call)


@workflow.defn
async def slow() -> dict[str, Any]:
    return {"again": (await again("x"))["headers"], "child": await leaf()}


async def test_a_workflow_hook_decides_what_goes_on_to_activities_and_children() -> None:
    async with WorkflowEnvironment(interceptors=[Deeper()]) as env:
        assert await env.execute(slow) == {"again": {"depth": 1}, "child": {"depth": 1}}


async def test_a_workflow_hook_is_replayed_with_the_code_it_surrounds(
    dsn: str, serve: Serve
) -> None:
    deeper = Deeper()
    async with WorkflowEnvironment(interceptors=[deeper], crash_at_every_event=True) as env:
        handle = await env.start(slow)
        assert await handle.result() == {"again": {"depth": 1}, "child": {"depth": 1}}
        history = await handle.history()
    assert deeper.replays.count(True) >= 3
    Replayer([slow], interceptors=[deeper]).replay(history)
    # Its timer is a command of the run: without the hook the code parts from its history.
    assert Replayer([slow]).mismatch(history) is not None

    await serve(slow, leaf, again, interceptors=[Deeper()], cache_bytes=1)
    async with Client.connect(dsn, workflows=[slow], interceptors=[Deeper()]) as client:
        live = await client.start(slow, id="l")
        assert await live.result(SOON) == {"again": {"depth": 1}, "child": {"depth": 1}}
        assert await live.vars() == {}


class Unfit(Interceptor):
    async def run_workflow(self, call: RunCall, proceed: Proceed[RunCall]) -> Any:
        call.headers["durable.job"] = "ours"
        return await proceed(call)

    async def signal_workflow(self, call: MessageCall, proceed: Proceed[MessageCall]) -> Any:
        call.headers["durable.x"] = 1
        return await proceed(call)


async def test_headers_that_cannot_be_are_refused(client: Client, dsn: str, serve: Serve) -> None:
    await serve(leaf, Counter, interceptors=[Unfit()])
    handle = await client.start(leaf, id="u")
    with pytest.raises(WorkflowFailedError, match="library's own"):
        await handle.result(SOON)
    async with Client.connect(dsn, interceptors=[Unfit()]) as unfit:
        with pytest.raises(InvalidArgumentError, match="library's own"):
            await unfit.get_handle("u").signal("x")


class Cancels(Interceptor):
    def __init__(self) -> None:
        self.reasons: list[Any] = []

    async def cancel_workflow(self, call: MessageCall, proceed: Proceed[MessageCall]) -> Any:
        self.reasons.append((call.workflow_id, call.args))
        return await proceed(call)


async def test_a_cancel_request_is_surrounded(dsn: str, serve: Serve) -> None:
    cancels = Cancels()
    await serve(Counter)
    async with Client.connect(dsn, interceptors=[cancels]) as client:
        handle = await client.start(Counter, id="c")
        await handle.cancel("enough")
        with pytest.raises(Exception, match="enough"):
            await handle.result(SOON)
    assert cancels.reasons == [("c", ("enough",))]


@pytest.mark.parametrize("crashes", [False, True])
async def test_the_test_environment_is_a_client_too(crashes: bool) -> None:
    audit, cancels = Audit(), Cancels()
    around = [Tenants(), audit, cancels]
    async with WorkflowEnvironment(interceptors=around, crash_at_every_event=crashes) as env:
        tenant.set("acme")
        found = await (await env.start(everywhere, headers={"own": 1})).result()
        assert found["own"] == found["child"] == {"own": 1, "tenant": "acme"}
        assert [found[name]["tenant"] for name in ("again", "queued", "thread")] == ["acme"] * 3
        assert (await (await env.enqueue(queued, "j")).result())["tenant"] == "acme"

        handle = await env.start(Counter, id="c")
        await handle.signal("add", 2)
        assert await handle.query("now") == 1004
        assert await handle.update("set", 5) == 105
        await env.signal_with_start(Counter, id="c", signal="add", signal_args=(4,))
        assert await handle.result() == 13
        assert ("signal", "add", (4,), "acme") in audit.seen
        assert ("query", "now", (), "acme") in audit.seen
        assert ("update", "set", (5,), "acme") in audit.seen

        await env.signal_with_start(Counter, id="d", signal="add", signal_args=(1,))
        await env.get_handle("d").cancel("enough")
        assert cancels.reasons == [("d", ("enough",))]


async def test_the_test_environment_on_a_database_is_a_client_too(dsn: str) -> None:
    async with PostgresEnvironment(dsn, interceptors=[Tenants()]) as env:
        tenant.set("acme")
        handle = await env.start(everywhere, headers={"own": 1})
        found = await handle.result()
    assert found["own"] == {"own": 1, "tenant": "acme"}
    assert found["again"]["tenant"] == "acme"
