"""SyncClient: the client without asyncio, from plain threads, interrupted, forked, shared."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from durable import (
    Client,
    ScheduleHandle,
    SyncClient,
    SyncScheduleHandle,
    SyncWorkflowHandle,
    WorkflowHandle,
    activity,
    workflow,
)
from durable.client import portal as portal_module
from durable.client.portal import Portal
from durable.errors import (
    ConfigurationError,
    ContextError,
    StoreUnavailableError,
    UpdateRejectedError,
    WorkflowAlreadyStartedError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
)
from durable.events import RunState
from durable.options import WorkerOptions
from durable.runtime.worker import Worker

SOON = 20.0


@activity.defn
async def double(number: int) -> int:
    return number * 2


@workflow.defn
async def doubled(number: int) -> int:
    return await double(number)


@workflow.defn
class Tally:
    def __init__(self) -> None:
        self.total = 0

    @workflow.run
    async def run(self, wanted: int) -> int:
        await workflow.wait_condition(lambda: self.total >= wanted)
        return self.total

    @workflow.signal
    def add(self, number: int) -> None:
        self.total += number

    @workflow.query
    def so_far(self) -> int:
        return self.total

    @workflow.update
    async def put(self, number: int) -> int:
        self.total += number
        return self.total

    @put.validator
    def may_put(self, number: int) -> None:
        if number < 0:
            raise ValueError("only up")


@workflow.defn
async def fails() -> None:
    raise ValueError("no such order")


@contextmanager
def served(dsn: str) -> Iterator[None]:
    """A worker on a thread of its own, as in another process."""
    up, over = threading.Event(), threading.Event()

    async def serve() -> None:
        options = WorkerOptions(poll_max_seconds=0.1, drain_seconds=1.0)
        workflows = [doubled, Tally, fails]
        async with Worker(dsn, workflows=workflows, activities=[double], options=options):
            up.set()
            while not over.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert up.wait(SOON)
    try:
        yield
    finally:
        over.set()
        thread.join(SOON)


@pytest.fixture
def client(dsn: str) -> Iterator[SyncClient]:
    with SyncClient.connect(dsn) as connected:
        yield connected


def client_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "durable-client"]


def test_a_plain_function_starts_and_waits(dsn: str, client: SyncClient) -> None:
    with served(dsn):
        handle = client.start(doubled, 21, id="one")
        assert handle.result(SOON) == 42
        assert handle.describe().state == RunState.COMPLETED
        assert [view.workflow_id for view in client.list()] == ["one"]
        assert client.get_handle("one", workflow=doubled).result() == 42


def test_every_verb_of_a_run_is_there(dsn: str, client: SyncClient) -> None:
    with served(dsn):
        handle = client.start(Tally, 10, id="tally")
        handle.signal(Tally.add, 3)
        assert handle.update(Tally.put, 4) == 7
        assert handle.query(Tally.so_far) == 7
        handle.pause("for a while")
        assert handle.describe().state == RunState.PAUSED
        assert handle.resume() is True
        assert client.signal_many("add", [("tally", [1]), ("nobody", [1])]) == [True, False]
        handle.terminate("enough")
        with pytest.raises(WorkflowTerminatedError, match="enough"):
            handle.result(SOON)
        assert handle.history()[-1].kind == "RUN_TERMINATED"


def test_many_start_at_once_and_each_is_told(dsn: str, client: SyncClient) -> None:
    client.start(doubled, 0, id="run-0")
    first, second = client.start_many(doubled, [("run-0", [0]), ("run-1", [1])])
    assert isinstance(first, WorkflowAlreadyStartedError)
    assert isinstance(second, SyncWorkflowHandle)
    with served(dsn):
        assert second.result(SOON) == 2


def test_a_run_that_is_not_there_is_started_and_told(dsn: str, client: SyncClient) -> None:
    call: Any = {"id": "t", "signal": Tally.add, "signal_args": (1,)}
    handle = client.signal_with_start(Tally.run, 4, **call)
    assert client.signal_with_start(Tally.run, 4, **call).run_id == handle.run_id
    with served(dsn):
        put: Any = {"id": "t", "update": Tally.put, "update_args": (2,)}
        with pytest.raises(UpdateRejectedError, match="only up") as refused:
            client.update_with_start(Tally.run, 4, **put | {"update_args": (-1,)})
        assert isinstance(refused.value.__cause__, ValueError)
        assert client.update_with_start(Tally.run, 4, **put) == 4
        assert handle.result(SOON) == 4


def test_jobs_are_enqueued(dsn: str, client: SyncClient) -> None:
    one = client.enqueue(double, 4)
    (two,) = client.enqueue_many(double, [[5]])
    assert isinstance(two, SyncWorkflowHandle)
    with served(dsn):
        assert (one.result(SOON), two.result(SOON)) == (8, 10)


def test_errors_are_those_of_the_client(dsn: str, client: SyncClient) -> None:
    with pytest.raises(WorkflowNotFoundError):
        client.get_handle("nobody").signal("x")
    client.start(doubled, 1, id="one")
    with pytest.raises(WorkflowAlreadyStartedError):
        client.start(doubled, 1, id="one")
    with served(dsn), pytest.raises(WorkflowFailedError) as caught:
        client.start(fails, id="bad").result(SOON)
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(TimeoutError, match="has no result"):
        client.start(doubled, 1, id="two").result(0.01)


def test_threads_share_one_client(dsn: str, client: SyncClient) -> None:
    def work(number: int) -> int:
        return client.start(doubled, number, id=f"run-{number}").result(SOON)

    with served(dsn), ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(64))) == [2 * number for number in range(64)]
    assert len(client_threads()) == 1


async def test_it_works_where_a_loop_runs(dsn: str) -> None:
    with SyncClient.connect(dsn) as client:
        assert client.start(doubled, 1, id="one").describe().state == RunState.RUNNING


def test_it_connects_when_it_is_used_and_closes_for_good(dsn: str) -> None:
    before = len(client_threads())
    client = SyncClient.connect(dsn)
    assert len(client_threads()) == before
    handle = client.start(doubled, 1, id="one")
    assert len(client_threads()) == before + 1
    client.close()
    client.close()
    assert len(client_threads()) == before
    for call in (client.list, handle.describe, handle.result):
        with pytest.raises(ConfigurationError, match="closed"):
            call()


def test_a_client_that_nobody_keeps_leaves_no_thread(dsn: str) -> None:
    before = len(client_threads())
    SyncClient.connect(dsn).list()
    assert len(client_threads()) == before


def test_a_database_that_is_not_there_leaves_no_thread() -> None:
    before = len(client_threads())
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1"):
        SyncClient.connect("postgresql://127.0.0.1:1/nothing").__enter__()
    assert len(client_threads()) == before


def test_a_connection_of_the_caller_is_refused(client: SyncClient) -> None:
    with pytest.raises(ConfigurationError, match="conn="):
        client.start(doubled, 1, id="one", conn=object())
    with pytest.raises(ConfigurationError, match="conn="):
        client.get_handle("one").signal("x", conn=object())


def test_a_call_over_its_time_is_cancelled() -> None:
    portal = Portal()
    ended = threading.Event()

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        portal.call(slow(), 0.01)
    assert ended.wait(SOON)
    portal.stop(asyncio.sleep(0))


def test_an_interrupted_call_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    portal = Portal()
    began, ended = threading.Event(), threading.Event()

    async def slow() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    def interrupted(*_: Any) -> Any:
        assert began.wait(SOON)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(portal_module.concurrent.futures, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            portal.call(slow(), None)
    assert ended.wait(SOON)
    portal.stop(asyncio.sleep(0))


def test_a_call_from_its_own_thread_is_refused() -> None:
    portal = Portal()

    async def inner() -> None:
        portal.call(asyncio.sleep(0), 1.0)

    with pytest.raises(ContextError, match="own thread"):
        portal.call(inner(), SOON)
    portal.stop(asyncio.sleep(0))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_begins_anew(client: SyncClient) -> None:
    handle = client.start(doubled, 1, id="parent")
    child = os.fork()
    if child == 0:
        # No assertion must escape into a second run of the test suite.
        status = 1
        try:
            client.start(doubled, 1, id="child")
            status = 0 if handle.describe().workflow_id == "parent" else 1
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert {view.workflow_id for view in client.list()} == {"parent", "child"}


@pytest.mark.parametrize(
    ("sync", "original"),
    [
        (SyncClient, Client),
        (SyncWorkflowHandle, WorkflowHandle),
        (SyncScheduleHandle, ScheduleHandle),
    ],
    ids=["client", "handle", "schedule"],
)
def test_no_verb_is_missing(sync: type, original: type) -> None:
    """What the asyncio client can do, this one can, under the same name."""
    internal = {"begin", "begin_all", "new_run"}
    for name, _ in inspect.getmembers(original, inspect.iscoroutinefunction):
        if not name.startswith("_") and name not in internal:
            assert inspect.getdoc(getattr(sync, name)), name
