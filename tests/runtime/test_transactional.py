"""Transactional activities: what they write and their result, both or neither."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from durable import ActivityError, RetryPolicy, activity, workflow
from durable.client import Client
from durable.codec import Codec, ZlibCodec
from durable.errors import DefinitionError
from durable.runtime.worker import Worker
from durable.store.postgres import PostgresStore
from durable.store.transactions import Transactions
from durable.testing import WorkflowEnvironment

SOON = 20.0
Conn = psycopg.AsyncConnection[Any]
AGAIN = RetryPolicy(initial_interval=0.01, max_interval=0.02, max_attempts=10)


@pytest.fixture
async def bank(dsn: str) -> AsyncIterator[Conn]:
    """Two accounts, and a connection to look at them."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("CREATE TABLE account (name text PRIMARY KEY, cents int)")
        await conn.execute("CREATE TABLE entry (key text)")
        await conn.execute("INSERT INTO account VALUES ('a', 1000), ('b', 0)")
        yield conn


async def balances(bank: Conn) -> dict[str, int]:
    rows = await bank.execute("SELECT name, cents FROM account")
    return dict(await rows.fetchall())


async def entries(bank: Conn) -> list[str]:
    rows = await bank.execute("SELECT key FROM entry ORDER BY key")
    return [key for (key,) in await rows.fetchall()]


async def move(conn: Conn, source: str, target: str, cents: int) -> None:
    await conn.execute("UPDATE account SET cents = cents - %s WHERE name = %s", (cents, source))
    await conn.execute("UPDATE account SET cents = cents + %s WHERE name = %s", (cents, target))
    await conn.execute("INSERT INTO entry VALUES (%s)", (activity.info().idempotency_key,))


async def outcome(client: Client, definition: Any) -> Any:
    handle = await client.start(definition, id=definition.name)
    return await handle.result(SOON)


async def test_each_transfer_happens_exactly_once_whatever_fails(
    client: Client, serve: Any, bank: Conn
) -> None:
    faults: list[str] = []

    @activity.transactional(retry=AGAIN)
    async def transfer(conn: Conn, cents: int) -> int:
        await move(conn, "a", "b", cents)
        if activity.info().attempt < 3:
            faults.append("raised")
            raise ConnectionError("after the writes")
        return cents

    @workflow.defn
    async def pay() -> int:
        return sum(await asyncio.gather(*(transfer(cents) for cents in range(1, 11))))

    await serve(pay, transfer)
    assert await outcome(client, pay) == 55
    assert await balances(bank) == {"a": 945, "b": 55}
    assert len(await entries(bank)) == 10
    assert len(faults) == 20


async def test_a_connection_lost_before_the_commit_costs_an_attempt(
    client: Client, serve: Any, bank: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Transactions.record
    lost: list[int] = []

    async def record_and_lose(self: Transactions, conn: Conn, outcome: Any) -> bool:
        is_good = await record(self, conn, outcome)
        if not lost:
            lost.append(outcome.attempt)
            await bank.execute("SELECT pg_terminate_backend(%s)", (conn.info.backend_pid,))
        return is_good

    monkeypatch.setattr(Transactions, "record", record_and_lose)

    @activity.transactional(retry=AGAIN)
    async def transfer(conn: Conn) -> str:
        await move(conn, "a", "b", 10)
        return "moved"

    @workflow.defn
    async def pay() -> str:
        return await transfer()

    await serve(pay, transfer)
    assert await outcome(client, pay) == "moved"
    assert await balances(bank) == {"a": 990, "b": 10}
    assert len(await entries(bank)) == 1
    assert lost == [1]


async def test_a_commit_whose_answer_is_lost_is_not_done_again(
    client: Client, serve: Any, bank: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Transactions.begin
    calls: list[int] = []

    @asynccontextmanager
    async def begin_and_lose(self: Transactions) -> AsyncIterator[Conn]:
        async with begin(self) as conn:
            yield conn
        if len(calls) == 1:
            raise psycopg.OperationalError("the connection is gone; committed or not?")

    monkeypatch.setattr(Transactions, "begin", begin_and_lose)

    @activity.transactional(retry=AGAIN)
    async def transfer(conn: Conn) -> str:
        calls.append(activity.info().attempt)
        await move(conn, "a", "b", 10)
        return "moved"

    @workflow.defn
    async def pay() -> str:
        return await transfer()

    await serve(pay, transfer)
    assert await outcome(client, pay) == "moved"
    assert calls == [1]
    assert await balances(bank) == {"a": 990, "b": 10}


async def test_a_worker_killed_between_write_and_commit_leaves_nothing(
    client: Client, serve: Any, bank: Conn, until: Any
) -> None:
    """The worker's session is ended under it; its transaction goes on, and is refused."""
    entered, go_on = asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    @activity.transactional(retry=AGAIN)
    async def transfer(conn: Conn) -> str:
        calls.append(len(calls))
        mine = len(calls)
        await conn.execute("INSERT INTO entry VALUES (%s)", (f"call {mine}",))
        if mine == 1:
            entered.set()
            try:
                await asyncio.shield(go_on.wait())
            except asyncio.CancelledError:
                # A zombie: it does not listen.
                await go_on.wait()
        return f"call {mine}"

    @workflow.defn
    async def pay() -> str:
        return await transfer()

    worker: Worker = await serve(pay, transfer)
    handle = await client.start(pay, id="pay")
    async with asyncio.timeout(SOON):
        await entered.wait()
    await client.store.end_sessions([worker.session_id])
    await serve(pay, transfer)
    assert await handle.result(SOON) == "call 2"
    go_on.set()
    await until(lambda: idle(bank))
    assert await entries(bank) == ["call 2"]


async def idle(bank: Conn) -> bool:
    rows = await bank.execute(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND state LIKE 'idle in transaction%'"
    )
    return (await rows.fetchall())[0][0] == 0


async def test_a_final_failure_rolls_back(client: Client, serve: Any, bank: Conn) -> None:
    @activity.transactional(retry=RetryPolicy(max_attempts=2, initial_interval=0.01))
    async def transfer(conn: Conn) -> None:
        await move(conn, "a", "b", 10)
        raise LookupError("no")

    @workflow.defn
    async def pay() -> str:
        try:
            await transfer()
        except ActivityError as error:
            return f"{error.attempt} {error.__cause__}"
        return ""

    await serve(pay, transfer)
    assert await outcome(client, pay) == "2 no"
    assert await balances(bank) == {"a": 1000, "b": 0}


async def test_it_must_not_commit_by_itself(client: Client, serve: Any, bank: Conn) -> None:
    @activity.transactional(retry=RetryPolicy(max_attempts=1))
    async def sneak(conn: Conn) -> None:
        await move(conn, "a", "b", 10)
        await conn.commit()

    @workflow.defn
    async def pay() -> str:
        try:
            await sneak()
        except ActivityError as error:
            return type(error.__cause__).__name__
        return ""

    await serve(pay, sneak)
    await outcome(client, pay)
    assert await balances(bank) == {"a": 1000, "b": 0}


async def test_a_cancelled_one_leaves_nothing(
    client: Client, serve: Any, bank: Conn, until: Any
) -> None:
    entered = asyncio.Event()

    @activity.transactional
    async def slow(conn: Conn) -> None:
        await move(conn, "a", "b", 10)
        entered.set()
        await asyncio.sleep(3600)

    @workflow.defn
    async def pay() -> None:
        await slow()

    await serve(pay, slow)
    handle = await client.start(pay, id="pay")
    async with asyncio.timeout(SOON):
        await entered.wait()
    await handle.cancel()
    with pytest.raises(Exception, match="cancelled"):
        await handle.result(SOON)
    await until(lambda: idle(bank))
    assert await balances(bank) == {"a": 1000, "b": 0}


async def test_its_result_goes_through_the_pipeline(dsn: str, bank: Conn) -> None:
    codec = Codec(pipeline=ZlibCodec())

    @activity.transactional
    async def transfer(conn: Conn, cents: int) -> str:
        await move(conn, "a", "b", cents)
        return "x" * 2000

    @workflow.defn
    async def pay() -> int:
        return len(await transfer(5))

    async with (
        Worker(dsn, workflows=[pay], activities=[transfer], codec=codec),
        Client.connect(dsn, codec=codec) as client,
    ):
        assert await outcome(client, pay) == 2000
    assert await balances(bank) == {"a": 995, "b": 5}


async def test_elsewhere_it_is_a_plain_function(bank: Conn) -> None:
    @activity.transactional
    async def count(conn: Conn) -> int:
        rows = await conn.execute("SELECT count(*) FROM account")
        return int((await rows.fetchall())[0][0])

    assert await count.fn(bank) == 2
    assert await count(bank) == 2  # type: ignore[call-arg]


def test_only_async_functions_with_a_connection_can_be_one() -> None:
    with pytest.raises(DefinitionError, match=r"async def sync\(conn"):

        @activity.transactional  # type: ignore[arg-type]
        def sync(conn: Conn) -> None: ...

    with pytest.raises(DefinitionError, match="first parameter"):

        @activity.transactional
        async def bare() -> None: ...


async def test_without_a_database_it_has_to_be_mocked() -> None:
    @activity.transactional(retry=RetryPolicy(max_attempts=1))
    async def transfer(conn: Conn, cents: int) -> int:
        return cents

    @workflow.defn
    async def pay() -> int:
        return await transfer(3)

    async with WorkflowEnvironment() as env:
        with pytest.raises(Exception, match="PostgreSQL"):
            await env.execute(pay)
    async with WorkflowEnvironment() as env:
        env.mock(transfer, 4)
        assert await env.execute(pay) == 4


async def test_the_connection_has_the_servers_own_settings(dsn: str) -> None:
    transactions = Transactions(PostgresStore(dsn))
    async with transactions.begin() as conn:
        rows = await conn.execute("SHOW enable_seqscan")
        assert await rows.fetchall() == [("on",)]
    await transactions.close()
