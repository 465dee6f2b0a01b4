"""Requirements on queries, variables, and on looking into a run."""

from dataclasses import dataclass
from typing import Any

import pytest

from durable import GuardError, Worker, activity, workflow
from durable.errors import UpdateRejectedError
from durable.testing import WorkflowEnvironment


@dataclass
class Progress:
    done: int
    total: int


@activity.defn
async def work(number: int) -> int:
    return number


@workflow.defn
class Job:
    """Counts ticks until it is told to stop."""

    def __init__(self) -> None:
        self.done = 0
        self.is_over = False

    @workflow.run
    async def run(self, total: int) -> int:
        self.total = total
        workflow.set_vars(done=0, total=total)
        await workflow.wait_condition(lambda: self.is_over)
        return self.done

    @workflow.signal
    def tick(self) -> None:
        self.done += 1
        workflow.set_vars(done=self.done)

    @workflow.signal
    def stop(self) -> None:
        self.is_over = True

    @workflow.query
    def progress(self) -> Progress:
        return Progress(self.done, self.total)

    @workflow.query
    def left(self, unit: int = 1) -> int:
        return (self.total - self.done) // unit

    @workflow.query(name="fails")
    def broken(self) -> int:
        raise ValueError("no such number")


@workflow.defn
class Meddler:
    """Its query does what a query must not."""

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_signal("stop")
        return "unharmed"

    @workflow.query
    def meddle(self) -> str:
        work.start(1)
        return "meddled"

    @workflow.query
    def fine(self) -> str:
        return "fine"


async def test_query_01(env: WorkflowEnvironment) -> None:
    """query-1: A query returns the run's state as it is now."""
    handle = await env.start(Job, 5)
    await handle.signal("tick")
    await handle.signal("tick")
    assert await handle.query("left") == 3


async def test_query_02(env: WorkflowEnvironment) -> None:
    """query-2: A query takes arguments, and the defaults of its handler."""
    handle = await env.start(Job, 10)
    assert await handle.query("left", 5) == 2
    assert await handle.query(Job.left) == 10


async def test_query_03(env: WorkflowEnvironment) -> None:
    """query-3: The answer comes back as the handler's annotation says."""
    handle = await env.start(Job, 5)
    assert await handle.query("progress") == Progress(0, 5)


async def test_query_04(env: WorkflowEnvironment) -> None:
    """query-4: A query writes nothing into history."""
    handle = await env.start(Job, 5)
    await handle.query("left")
    before = list((await handle.history()).kinds)
    for _ in range(3):
        await handle.query("left")
    assert (await handle.history()).kinds == before


async def test_query_05(env: WorkflowEnvironment) -> None:
    """query-5: A run that has ended still answers."""
    handle = await env.start(Job, 5)
    await handle.signal("tick")
    await handle.signal("stop")
    assert await handle.result() == 1
    assert await handle.query("left") == 4


async def test_query_06(env: WorkflowEnvironment) -> None:
    """query-6: An unknown query is an error that names those there are."""
    handle = await env.start(Job, 5)
    with pytest.raises(UpdateRejectedError, match="progress"):
        await handle.query("nonsense")


async def test_query_07(env: WorkflowEnvironment) -> None:
    """query-7: What a handler raises reaches the asker, and the run goes on."""
    handle = await env.start(Job, 5)
    with pytest.raises(ValueError, match="no such number"):
        await handle.query("fails")
    await handle.signal("stop")
    assert await handle.result() == 0


async def test_query_08(env: WorkflowEnvironment) -> None:
    """query-8: A query that would change the run is refused, and the run is unharmed."""
    handle = await env.start(Meddler)
    with pytest.raises(GuardError):
        await handle.query("meddle")
    assert await handle.query("fine") == "fine"
    await handle.signal("stop")
    assert await handle.result() == "unharmed"
    assert not (await handle.history()).activities


async def test_query_09(env: WorkflowEnvironment) -> None:
    """query-9: A function answers queries too."""

    @workflow.defn
    async def flow() -> int:
        total = 0
        workflow.on_query("total", lambda: total)
        for _ in range(2):
            total += await workflow.wait_signal("add", int)
        return total

    handle = await env.start(flow)
    await handle.signal("add", 4)
    assert await handle.query("total") == 4
    await handle.signal("add", 5)
    assert await handle.result() == 9


async def test_query_10(env: WorkflowEnvironment) -> None:
    """query-10: A query sees every signal that was sent before it."""
    handle = await env.start(Job, 100)
    for count in range(1, 11):
        await handle.signal("tick")
        assert await handle.query("left") == 100 - count


async def test_query_11(env: WorkflowEnvironment) -> None:
    """query-11: Variables can be read of an open run, and change with it."""
    handle = await env.start(Job, 5)
    assert await handle.vars() == {"done": 0, "total": 5}
    await handle.signal("tick")
    assert await handle.vars() == {"done": 1, "total": 5}


async def test_query_12(env: WorkflowEnvironment) -> None:
    """query-12: Variables can be read of a run that has ended."""
    handle = await env.start(Job, 5)
    await handle.signal("tick")
    await handle.signal("stop")
    await handle.result()
    assert await handle.vars() == {"done": 1, "total": 5}


async def test_query_13(env: WorkflowEnvironment) -> None:
    """query-13: One can ask where the code of a run waits, by file, line and function."""
    handle = await env.start(Job, 5)
    (place,) = await handle.where()
    assert place.startswith("main: test_conforms_query.py:")
    assert place.endswith("Job.run")


async def test_query_14(env: WorkflowEnvironment) -> None:
    """query-14: Arguments that do not fit the handler are an error for the asker only."""
    handle = await env.start(Job, 5)
    with pytest.raises(Exception, match="left"):
        await handle.query("left", "many", "more")
    assert await handle.query("left") == 5


async def test_query_15(env: WorkflowEnvironment) -> None:
    """query-15: Search attributes and the status word are recorded, and seen without a replay."""

    @workflow.defn
    async def flow() -> str:
        workflow.set_status("packing")
        workflow.upsert_search_attributes(customer="Ann", cents=350)
        await work(1)
        workflow.upsert_search_attributes(cents=None)
        return "done"

    handle = await env.start(flow)
    assert await handle.result() == "done"
    set_events = [event for event in await handle.history() if event.kind.name == "ATTRIBUTES_SET"]
    assert [event.value for event in set_events] == [
        {"status": "packing"},
        {"customer": "Ann", "cents": 350},
        {"cents": None},
    ]


@workflow.defn
async def remembers(turn: int) -> dict[str, Any]:
    if turn == 1:
        workflow.upsert_memo(page=7, note=None)
        await work(1)
        workflow.upsert_memo(draft="x" * 10, page=8)
        workflow.continue_as_new(2)
    return dict(workflow.info().memo)


async def test_query_16(env: WorkflowEnvironment) -> None:
    """query-16: A run changes its memo piece by piece; the next run of the chain has it."""
    handle = await env.start(remembers, 1, memo={"note": "first", "by": "Ann"})
    assert await handle.result() == {"by": "Ann", "page": 8, "draft": "x" * 10}


async def test_query_17(database: Any) -> None:
    """query-17: A handle shows the memo as the run has it now, without its code."""

    @workflow.defn
    async def flow() -> None:
        workflow.upsert_memo(page=7, note=None)
        await workflow.wait_signal("stop")

    memo = {"note": "first", "by": "Ann"}
    handle = await database.client.start(flow, id="book-1", memo=memo)
    assert await handle.memo() == memo
    async with Worker(database.dsn, workflows=[flow]):
        await handle.signal("stop")
        await handle.result()
    assert await database.client.get_handle("book-1").memo() == {"by": "Ann", "page": 7}
