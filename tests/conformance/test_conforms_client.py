"""Requirements on clients: starting, finding, waiting, and the caller's own transaction."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from durable import (
    Client,
    IdReuse,
    RunFilter,
    RunState,
    SyncClient,
    Worker,
    activity,
    workflow,
)
from durable.errors import (
    InvalidArgumentError,
    UnknownWorkflowError,
    WorkflowAlreadyStartedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durable.options import WorkerOptions
from durable.testing import WorkflowEnvironment

OPTIONS = WorkerOptions(poll_max_seconds=0.2, drain_seconds=1.0)


@activity.defn
async def double(number: int) -> int:
    return number * 2


@workflow.defn
async def doubled(number: int) -> int:
    workflow.set_vars(number=number)
    return await double(number)


@workflow.defn
async def takes(count: int) -> list[int]:
    return [await workflow.wait_signal("number", int) for _ in range(count)]


@workflow.defn
class Tally:
    def __init__(self) -> None:
        self.total = 0

    @workflow.run
    async def run(self, goal: int) -> int:
        await workflow.wait_condition(lambda: self.total >= goal)
        return self.total

    @workflow.update
    async def add(self, number: int) -> int:
        self.total += number
        return self.total


def serve(database: Any) -> Worker:
    return Worker(
        database.dsn, workflows=[doubled, takes, Tally], activities=[double], options=OPTIONS
    )


async def test_client_01(env: WorkflowEnvironment) -> None:
    """client-1: A start returns a handle; the handle returns the typed result."""
    handle = await env.start(doubled, 21, id="answer")
    assert handle.workflow_id == "answer"
    assert await handle.result() == 42


async def test_client_02(env: WorkflowEnvironment) -> None:
    """client-2: A second start with a workflow id that is taken is refused, open or closed."""
    handle = await env.start(doubled, 1, id="one")
    with pytest.raises(WorkflowAlreadyStartedError):
        await env.start(doubled, 2, id="one")
    assert await handle.result() == 2
    with pytest.raises(WorkflowAlreadyStartedError):
        await env.start(doubled, 2, id="one")


async def test_client_03(env: WorkflowEnvironment) -> None:
    """client-3: When the caller says so an id may be used again, once its run has ended."""
    await (await env.start(doubled, 1, id="one")).result()
    again = await env.start(doubled, 2, id="one", id_reuse=IdReuse.AFTER_CLOSE)
    assert await again.result() == 4
    with pytest.raises(WorkflowAlreadyStartedError):
        await env.start(doubled, 3, id="one", id_reuse=IdReuse.AFTER_FAILURE)


async def test_client_04(env: WorkflowEnvironment) -> None:
    """client-4: After a failure only, if that is what the caller says."""

    @workflow.defn
    async def fails() -> None:
        raise ValueError("no")

    with pytest.raises(Exception, match="no"):
        await (await env.start(fails, id="one")).result()
    again = await env.start(doubled, 2, id="one", id_reuse=IdReuse.AFTER_FAILURE)
    assert await again.result() == 4


async def test_client_05(env: WorkflowEnvironment) -> None:
    """client-5: An open run keeps its id, whatever the caller says."""
    await env.start(takes, 1, id="one")
    for reuse in IdReuse:
        with pytest.raises(WorkflowAlreadyStartedError):
            await env.start(takes, 1, id="one", id_reuse=reuse)


async def test_client_06(env: WorkflowEnvironment) -> None:
    """client-6: A start may be delayed, by a duration or to a time."""

    @workflow.defn
    async def flow() -> bool:
        return workflow.now() >= workflow.start_time()

    begin = datetime.now(UTC) if env.now.year < 2030 else env.now
    by_delay = await env.start(flow, start_delay=timedelta(seconds=0.1))
    by_time = await env.start(flow, start_at=begin + timedelta(seconds=0.2))
    assert await by_delay.result() is True
    assert await by_time.result() is True


async def test_client_07(database: Any) -> None:
    """client-7: A workflow can be started by its name, once a worker has registered it."""
    with pytest.raises(UnknownWorkflowError):
        await database.client.start("doubled", 4, id="by-name")
    async with serve(database):
        handle = await database.client.start("doubled", 4, id="by-name")
        assert await handle.result(20) == 8


async def test_client_08(database: Any) -> None:
    """client-8: A start in the caller's transaction exists when that commits, and not before."""
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await database.client.start(doubled, 4, id="outbox", conn=conn)
        with pytest.raises(WorkflowNotFoundError):
            await database.client.get_handle("outbox").describe()
        await conn.commit()
    assert (await database.client.get_handle("outbox").describe()).state == RunState.RUNNING


async def test_client_09(database: Any) -> None:
    """client-9: A start in a transaction that is rolled back never happened."""
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await database.client.start(doubled, 4, id="outbox", conn=conn)
        await conn.rollback()
    with pytest.raises(WorkflowNotFoundError):
        await database.client.get_handle("outbox").describe()
    await database.client.start(doubled, 4, id="outbox")


async def test_client_10(database: Any) -> None:
    """client-10: A signal in the caller's transaction arrives when that commits, or never."""
    handle = await database.client.start(takes, 1, id="signalled")
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await handle.signal("number", 1, conn=conn)
        await conn.rollback()
        await handle.signal("number", 2, conn=conn)
        await conn.commit()
    async with serve(database):
        assert await handle.result(20) == [2]


async def test_client_11(database: Any) -> None:
    """client-11: Many runs start in one transaction; the taken ids are told one by one."""
    await database.client.start(doubled, 0, id="many-1")
    started = await database.client.start_many(doubled, [(f"many-{n}", [n]) for n in range(3)])
    assert isinstance(started[1], WorkflowAlreadyStartedError)
    async with serve(database):
        assert [await started[n].result(20) for n in (0, 2)] == [0, 4]


async def test_client_12(database: Any) -> None:
    """client-12: What is there can be listed, by type and by state."""
    await database.client.start(takes, 1, id="open")
    async with serve(database):
        await (await database.client.start(doubled, 1, id="done")).result(20)
    views = await database.client.list()
    assert {view.workflow_id for view in views} == {"open", "done"}
    (done,) = await database.client.list(states=[RunState.COMPLETED])
    assert done.workflow_id == "done"
    (waits,) = await database.client.list(workflow_type="takes")
    assert waits.workflow_id == "open"


async def test_client_13(database: Any) -> None:
    """client-13: Variables of a run that no worker has touched yet can be read."""
    handle = await database.client.start(doubled, 7, id="pending")
    assert await handle.vars() == {"number": 7}


async def test_client_14(database: Any) -> None:
    """client-14: Waiting may have a limit; the run goes on regardless."""
    handle = await database.client.start(takes, 1, id="slow")
    with pytest.raises(TimeoutError, match="slow"):
        await handle.result(0.1)
    async with serve(database):
        await handle.signal("number", 3)
        assert await handle.result(20) == [3]


async def test_client_15(database: Any) -> None:
    """client-15: A signal repeated under its request id arrives once."""
    handle = await database.client.start(takes, 2, id="twice")
    for number in (1, 1, 1):
        await handle.signal("number", number, request_id="same")
    await handle.signal("number", 2)
    async with serve(database):
        assert await handle.result(20) == [1, 2]


async def test_client_16(database: Any) -> None:
    """client-16: An update repeated under its request id is done once."""
    handle = await database.client.start(Tally, 5, id="tally")
    async with serve(database):
        assert await handle.update("add", 2, request_id="same") == 2
        assert await handle.update("add", 2, request_id="same") == 2
        assert await handle.update("add", 3) == 5
        assert await handle.result(20) == 5


@pytest.mark.parametrize("bad", ["", "x" * 600, "a\x00b", "a\nb", None, 7], ids=repr)
async def test_client_17(database: Any, bad: Any) -> None:
    """client-17: A malformed workflow id is refused before anything is written."""
    with pytest.raises(InvalidArgumentError):
        await database.client.start(doubled, 1, id=bad)
    assert await database.client.list() == []


async def test_client_18(database: Any) -> None:
    """client-18: What is not there is told, whatever is asked of it."""
    nobody = database.client.get_handle("nobody")
    for ask in (
        nobody.describe(),
        nobody.result(),
        nobody.signal("x"),
        nobody.cancel(),
        nobody.query("x"),
        nobody.history(),
        nobody.vars(),
    ):
        with pytest.raises(WorkflowNotFoundError):
            await ask


async def test_client_19(database: Any) -> None:
    """client-19: Another process needs the id to wait for a result, and the code to type it."""
    await database.client.start(doubled, 4, id="shared")
    async with serve(database), Client.connect(database.dsn, workflows=[doubled]) as other:
        assert await other.get_handle("shared").result(20) == 8


async def test_client_20(database: Any) -> None:
    """client-20: History can be read as events, of an open run and of a closed one."""
    handle = await database.client.start(doubled, 4, id="read")
    assert [event.kind for event in await handle.history()] == ["RUN_STARTED"]
    async with serve(database):
        await handle.result(20)
    kinds = [event.kind for event in await handle.history()]
    assert kinds == ["RUN_STARTED", "ACTIVITY_SCHEDULED", "ACTIVITY_COMPLETED", "RUN_COMPLETED"]


async def test_client_21(database: Any) -> None:
    """client-21: A hundred results are waited for at once."""
    handles = [await database.client.start(doubled, n, id=f"run-{n}") for n in range(100)]
    async with serve(database):
        results = await asyncio.gather(*(handle.result(60) for handle in handles))
    assert results == [2 * number for number in range(100)]


async def test_client_22(database: Any) -> None:
    """client-22: A run that no worker serves waits, and is served when one does."""
    handle = await database.client.start(doubled, 4, id="early", queue="special")
    async with serve(database):
        with pytest.raises(TimeoutError):
            await handle.result(0.5)
    options = WorkerOptions(queues=("special",), poll_max_seconds=0.2)
    async with Worker(database.dsn, workflows=[doubled], activities=[double], options=options):
        assert await handle.result(20) == 8


async def test_client_23(database: Any) -> None:
    """client-23: Of two starts with one id at the same time one wins, and the other is told."""
    outcomes = await asyncio.gather(
        *(database.client.start(doubled, n, id="race") for n in range(8)), return_exceptions=True
    )
    losers = [each for each in outcomes if isinstance(each, WorkflowAlreadyStartedError)]
    assert len(losers) == 7
    assert len(await database.client.list()) == 1


async def test_client_24(database: Any) -> None:
    """client-24: Runs are found by their search attributes."""

    @workflow.defn
    async def tagged(customer: str) -> None:
        workflow.upsert_search_attributes(customer=customer)

    async with Worker(database.dsn, workflows=[tagged], options=OPTIONS):
        for customer in ("Ann", "Bob"):
            await (await database.client.start(tagged, customer, id=customer)).result(20)
    (found,) = await database.client.list(search={"customer": "Ann"})
    assert found.workflow_id == "Ann"


async def test_client_25(database: Any) -> None:
    """client-25: A start may bring a memo and search attributes."""

    @workflow.defn
    async def reads() -> Any:
        return workflow.info().memo

    async with Worker(database.dsn, workflows=[reads], options=OPTIONS):
        handle = await database.client.start(
            reads, id="memo", memo={"page": 7}, search={"customer": "Ann"}
        )
        assert await handle.result(20) == {"page": 7}


async def test_client_26(database: Any) -> None:
    """client-26: A limit on the whole execution holds for all runs of its chain together."""

    @workflow.defn
    async def endless() -> None:
        await workflow.sleep(0.05)
        workflow.continue_as_new()

    async with Worker(database.dsn, workflows=[endless], options=OPTIONS):
        handle = await database.client.start(endless, id="endless", execution_timeout=0.5)
        with pytest.raises(WorkflowTimedOutError):
            await handle.result(10)


async def test_client_27(database: Any) -> None:
    """client-27: A run can be paused, and goes on where it was when it is resumed."""
    handle = await database.client.start(takes, 1, id="paused")
    await handle.pause("looking into it")
    async with serve(database):
        await handle.signal("number", 1)
        with pytest.raises(TimeoutError):
            await handle.result(0.5)
        await handle.resume()
        assert await handle.result(20) == [1]


async def test_client_28(database: Any) -> None:
    """client-28: Code without asyncio starts runs and waits for results too."""

    def plain() -> int:
        with SyncClient.connect(database.dsn) as client:
            return client.start(doubled, 21, id="plain").result(20)

    async with serve(database):
        assert await asyncio.to_thread(plain) == 42


async def test_client_29(database: Any) -> None:
    """client-29: Many signals are sent in one transaction."""
    handles = [await database.client.start(takes, 1, id=f"run-{n}") for n in range(3)]
    taken = await database.client.signal_many("number", [(f"run-{n}", [n]) for n in range(4)])
    assert taken == [True, True, True, False]
    async with serve(database):
        results = await asyncio.gather(*(handle.result(20) for handle in handles))
    assert results == [[0], [1], [2]]


async def test_client_30(database: Any) -> None:
    """client-30: While an open run holds a deduplication key, a second start gets that run."""
    client = database.client
    first = await client.start(takes, 1, id="run-1", dedup_key="one")
    second = await client.start(takes, 1, id="run-2", dedup_key="one")
    assert second.run_id == first.run_id
    await first.signal("number", 5)
    async with serve(database):
        assert await second.result(20) == [5]
    assert (await client.start(takes, 1, id="run-3", dedup_key="one")).run_id != first.run_id


async def test_client_31(database: Any) -> None:
    """client-31: Debounced starts are one run, with the last arguments, some time after them."""
    options = {"debounce_key": "one", "debounce": 0.3}
    handles = [
        await database.client.start(doubled, number, id=f"run-{number}", **options)
        for number in range(4)
    ]
    async with serve(database):
        assert [await handle.result(20) for handle in handles] == [6, 6, 6, 6]
    assert len(await database.client.list()) == 1


async def test_client_33(database: Any) -> None:
    """client-33: Open runs are found, counted and ended by what they have in common."""
    client = database.client
    for id in ("old-0", "old-1", "old-2", "new-1"):
        await client.start(takes, 1, id=id)
    chosen = RunFilter(workflow_type="takes", id_prefix="old-")
    assert await client.count(chosen) == 3
    assert {view.workflow_id async for view in client.iterate(chosen)} == {
        "old-0",
        "old-1",
        "old-2",
    }
    async with serve(database):
        result = await client.terminate_many(chosen, reason="enough")
        assert result.done == 3
        for number in range(3):
            with pytest.raises(WorkflowTerminatedError):
                await client.get_handle(f"old-{number}").result(20)
    assert await client.count(RunFilter(everything=True)) == 1


async def test_client_34(database: Any) -> None:
    """client-34: Open and closed runs are listed, the newest first, in pages that nothing moves."""
    client = database.client
    async with serve(database):
        for number in range(4):
            handle = await client.start(doubled, number, id=f"run-{number}")
            assert await handle.result(20) == 2 * number
        first = await client.list(limit=3, states=[RunState.COMPLETED])
        await (await client.start(doubled, 9, id="late")).result(20)
        rest = await client.list(limit=3, states=[RunState.COMPLETED], cursor=first.cursor)
    assert [view.workflow_id for view in (*first, *rest)] == ["run-3", "run-2", "run-1", "run-0"]


async def test_client_35(database: Any) -> None:
    """client-35: Many runs, closed ones too, are reset together, by ids or by when they closed."""
    client = database.client
    async with serve(database):
        for number in range(3):
            handle = await client.start(doubled, number, id=f"run-{number}")
            await handle.result(20)
        chosen = RunFilter(ids=["run-0", "run-2", "nobody"], states=[RunState.COMPLETED])
        result = await client.reset_many(chosen, to_last_turn=True)
        assert (result.done, result.failed, result.missing) == (2, 0, 1)
        assert await client.get_handle("run-0").result(20) == 0
        assert await client.get_handle("run-2").result(20) == 4
        assert len(await client.list(ids=["run-0", "run-1"])) == 3
        since = await client.store.now_us() / 1e6
        handle = await client.start(doubled, 5, id="run-5")
        await handle.result(20)
        recent = RunFilter(
            states=[RunState.COMPLETED], closed_after=datetime.fromtimestamp(since, UTC)
        )
        assert (await client.reset_many(recent, to_last_turn=True)).done == 1
    assert len(await client.list(ids=["run-1", "run-5"])) == 3


async def test_client_32(database: Any) -> None:
    """client-32: Plain SQL starts and signals a run, in any transaction, without a client."""
    async with (
        serve(database),
        await psycopg.AsyncConnection.connect(database.dsn) as conn,
        conn.transaction(),
    ):
        await conn.execute("SELECT durable.start_workflow('takes', 'by-sql', '[1]')")
        await conn.execute("SELECT durable.signal_workflow('by-sql', 'number', '7')")
    async with serve(database):
        assert await database.client.get_handle("by-sql").result(20) == [7]
