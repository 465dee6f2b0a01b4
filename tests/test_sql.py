"""Plain SQL starts, signals and cancels runs: what the page docs/guides/sql.md says."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import psycopg
import pytest

from durable import Client, Worker, workflow
from durable.codec import AesGcmCodec, Codec
from durable.errors import (
    WorkflowAlreadyStartedError,
    WorkflowCancelledError,
    WorkflowNotFoundError,
)
from durable.events import RunState, SessionInfo, TypeInfo
from durable.options import PAYLOAD_BYTES_MAX, WorkerOptions
from durable.store.migrate import migrate
from durable.store.postgres import PostgresStore
from durable.store.sealed import seal_store
from durable.testing import Replayer

SOON = 30.0
PAGE = Path(__file__).parents[1] / "docs" / "guides" / "sql.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

Conn = psycopg.AsyncConnection[Any]


@workflow.defn
class Talk:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    @workflow.signal
    def hear(self, *what: Any) -> None:
        self.heard.append(list(what))

    @workflow.run
    async def run(self, count: int = 1, name: str = "nobody") -> list[Any]:
        await workflow.wait_condition(lambda: len(self.heard) >= count)
        return [name, self.heard, dict(workflow.info().memo)]


@pytest.fixture
async def conn(dsn: str) -> AsyncIterator[Conn]:
    """A connection as any program has one, in a database that knows the workflow Talk."""
    store = PostgresStore(dsn)
    await store.register_types([TypeInfo("Talk", "workflow", "talks", "Talk()")])
    await store.close()
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    try:
        yield connection
    finally:
        await connection.close()


async def call(conn: Conn, call: str, *values: Any) -> str:
    row = await (await conn.execute(f"SELECT durable.{call}", values)).fetchone()
    assert row is not None
    return str(row[0])


def serve(dsn: str, **options: Any) -> Worker:
    chosen = WorkerOptions(queues=("talks", "default"), poll_max_seconds=0.2, drain_seconds=1.0)
    return Worker(dsn, workflows=[Talk], options=chosen, **options)


async def test_a_run_started_by_sql_is_a_run_like_any_other(dsn: str, conn: Conn) -> None:
    run_id = await call(
        conn,
        """start_workflow('Talk', 'one', '[2, "Ann"]', memo => '{"by": {"a": [1, null]}}',
                          search => '{"customer": "Ann", "none": null}')""",
    )
    await call(conn, """signal_workflow('one', 'hear', '{"a": 1.0}', request_id => 'first')""")
    await call(conn, """signal_workflow('one', 'hear', '{"a": 2}', request_id => 'first')""")
    await call(conn, "signal_workflow('one', 'hear')")

    async with Client.connect(dsn, workflows=[Talk]) as client:
        handle = client.get_handle("one")
        view = await handle.describe()
        assert (view.run_id, view.queue, view.state) == (run_id, "talks", RunState.RUNNING)
        assert await handle.memo() == {"by": {"a": [1, None]}}
        assert await handle.vars() == {}
        assert [each.workflow_id for each in await client.list(search={"customer": "Ann"})] == [
            "one"
        ]
        async with serve(dsn):
            heard = [[{"a": 1.0}], []]
            assert await handle.result(SOON) == ["Ann", heard, {"by": {"a": [1, None]}}]
        assert orjson.loads((await handle.describe()).search or b"") == {"customer": "Ann"}
        kinds = [event.kind for event in await handle.history()]
        assert kinds == ["RUN_STARTED", "SIGNAL_RECEIVED", "SIGNAL_RECEIVED", "RUN_COMPLETED"]


async def test_version_and_fairness_are_those_of_a_start(dsn: str, conn: Conn) -> None:
    options = "version => '7', fairness_key => 'Ann', fairness_weight => 2.5"
    run_id = await call(conn, f"start_workflow('Talk', 'one', {options})")
    async with Client.connect(dsn) as client:
        view = await client.get_handle("one").describe()
        assert (view.run_id, view.version) == (run_id, "7")
        (event,) = await client.get_handle("one").history()
        assert isinstance(event.meta, dict)
        assert (event.meta["version"], event.meta["fairness"]) == ("7", ["Ann", 2.5])


async def test_what_is_rolled_back_never_was(dsn: str, conn: Conn) -> None:
    async with conn.transaction(force_rollback=True):
        await call(conn, "start_workflow('Talk', 'one')")

    async with Client.connect(dsn) as client:
        assert await client.list() == []


async def test_every_reader_finds_the_same_first_batch(dsn: str, conn: Conn) -> None:
    run_id = await call(conn, """start_workflow('Talk', 'one', '[1, "ä"]')""")
    store = PostgresStore(dsn)
    try:
        view = await store.view(workflow_id="one")
        assert view is not None
        (listed,) = await store.views()
        loaded = await store.load({run_id: view.part})
        first = await store.first_batches({run_id: view.part})
        await store.register_session(SessionInfo(1, "host", 1, "", ["talks"]), 60_000_000)
        replayed = await Replayer([Talk]).replay_database(dsn)
        (claimed,), _, _ = await store.claim_runs(1, ["talks"], ["Talk"], 10)
        (owned,), _ = await store.owned(1)
    finally:
        await store.close()
    assert loaded[run_id] == [claimed.start] == [first[run_id]]
    assert view.head_hash == listed.head_hash == claimed.head_hash == owned.head_hash != 0
    assert (replayed.replayed, replayed.ok) == (1, True)


async def test_a_damaged_start_is_reported_and_not_run(dsn: str, conn: Conn) -> None:
    await call(conn, "start_workflow('Talk', 'one', '[1]')")
    await conn.execute("UPDATE durable.history SET batch = batch || '!'::bytea")

    async with Client.connect(dsn) as client, serve(dsn):
        async with asyncio.timeout(SOON):
            while (await client.get_handle("one").describe()).state != RunState.PARKED:
                await asyncio.sleep(0.02)


async def test_a_taken_id_is_refused_as_a_client_is(dsn: str, conn: Conn) -> None:
    run_id = await call(conn, "start_workflow('Talk', 'one')")

    with pytest.raises(psycopg.Error, match="workflow id 'one' is taken by run") as caught:
        await call(conn, "start_workflow('Talk', 'one')")

    assert caught.value.sqlstate == "DUR10"
    assert caught.value.diag.message_detail == run_id
    assert await call(conn, "start_workflow('Talk', 'one', on_conflict => 'existing')") == run_id
    async with Client.connect(dsn, workflows=[Talk]) as client:
        with pytest.raises(WorkflowAlreadyStartedError, match=run_id):
            await client.start(Talk.run, id="one", queue="talks")


async def test_an_id_may_be_used_again_when_that_is_said(dsn: str, conn: Conn) -> None:
    first = await call(conn, "start_workflow('Talk', 'one', '[0]')")
    async with Client.connect(dsn) as client, serve(dsn):
        await client.get_handle("one").result(SOON)
        with pytest.raises(psycopg.Error, match=r"\(completed\)"):
            await call(conn, "start_workflow('Talk', 'one', id_reuse => 'after_failure')")
        second = await call(conn, "start_workflow('Talk', 'one', '[0]', id_reuse => 'after_close')")
        assert second != first
        await client.get_handle("one").result(SOON)


async def test_a_key_that_is_held_yields_its_run(conn: Conn) -> None:
    first = await call(conn, "start_workflow('Talk', 'one', dedup_key => 'k')")
    assert await call(conn, "start_workflow('Talk', 'two', dedup_key => 'k')") == first
    assert await call(conn, "start_workflow('Talk', 'two')") != first


async def test_a_delayed_run_waits_and_limits_hold(dsn: str, conn: Conn) -> None:
    await call(conn, "start_workflow('Talk', 'later', '[0]', delay => '0.3 seconds')")
    await call(conn, "start_workflow('Talk', 'far', start_at => now() + interval '1 day')")
    await call(conn, "start_workflow('Talk', 'short', run_timeout => '0.2 seconds')")
    async with Client.connect(dsn) as client, serve(dsn):
        assert await client.get_handle("later").result(SOON) == ["nobody", [], {}]
        async with asyncio.timeout(SOON):
            while (await client.get_handle("short").describe()).state != RunState.TIMED_OUT:
                await asyncio.sleep(0.02)
        far = client.get_handle("far")
        assert (await far.describe()).event_batches == 1
        await far.cancel()
        with pytest.raises(WorkflowCancelledError):
            await far.result(SOON)


async def test_cancel_reaches_the_run(dsn: str, conn: Conn) -> None:
    run_id = await call(conn, "start_workflow('Talk', 'one')")
    assert await call(conn, "cancel_workflow('one', 'enough')") == run_id
    await call(conn, "start_workflow('Talk', 'two')")
    await call(conn, "cancel_workflow('two')")
    async with Client.connect(dsn) as client, serve(dsn):
        for workflow_id in ("one", "two"):
            with pytest.raises(WorkflowCancelledError):
                await client.get_handle(workflow_id).result(SOON)


async def test_workers_are_told_at_the_commit(
    dsn: str, conn: Conn, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--pooler"):
        pytest.skip("LISTEN needs a connection of its own")
    ear = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    try:
        await ear.execute("LISTEN durable")
        await call(conn, "start_workflow('Talk', 'quiet', notify => false)")
        await call(conn, "start_workflow('Talk', 'later', delay => '1 hour')")
        async with conn.transaction():
            await call(conn, "start_workflow('Talk', 'one')")
            await call(conn, "signal_workflow('one', 'hear')")
        await conn.execute("NOTIFY durable, 'end'")
        heard = []
        async with asyncio.timeout(SOON):
            async for note in ear.notifies():
                heard.append(note.payload)
                if note.payload == "end":
                    break
        assert heard == ["runs", "end"]
    finally:
        await ear.close()


BAD = {
    "an empty id": ("start_workflow('Talk', '')", "a workflow id must be a text"),
    "no id": ("start_workflow('Talk', NULL)", "a workflow id must be a text"),
    "a long id": ("start_workflow('Talk', repeat('x', 513))", "has 513 characters"),
    "control characters": ("start_workflow('Talk', E'a\\nb')", "control characters"),
    "a queue": ("start_workflow('Talk', 'a', queue => '')", "a queue must be"),
    "a priority": ("start_workflow('Talk', 'a', priority => 40000)", "a priority is"),
    "a delay": ("start_workflow('Talk', 'a', delay => '-1 second')", "delay must be between"),
    "two times": ("start_workflow('Talk', 'a', delay => '1s', start_at => now())", "not both"),
    "no time": ("start_workflow('Talk', 'a', start_at => 'infinity')", "start_at must be"),
    "a memo": ("start_workflow('Talk', 'a', memo => '[1]')", "memo is a JSON object"),
    "a name": ("""start_workflow('Talk', 'a', search => '{"": 1}')""", "a name in search"),
    "search": (
        "start_workflow('Talk', 'a', search => jsonb_build_object('a', repeat('x', 40000)))",
        "search has more than 32768 bytes",
    ),
    "reuse": ("start_workflow('Talk', 'a', id_reuse => 'yes')", "id_reuse is reject"),
    "conflict": ("start_workflow('Talk', 'a', on_conflict => 'no')", "on_conflict is error"),
    "arguments": (
        f"start_workflow('Talk', 'a', to_jsonb(repeat('x', {PAYLOAD_BYTES_MAX})))",
        f"over the limit of {PAYLOAD_BYTES_MAX}",
    ),
    "a version": ("start_workflow('Talk', 'a', version => '')", "a version must be"),
    "a fairness key": (
        "start_workflow('Talk', 'a', fairness_key => repeat('x', 129))",
        "a fairness_key has",
    ),
    "a fairness weight": (
        "start_workflow('Talk', 'a', fairness_weight => 'NaN')",
        "a fairness_weight is",
    ),
    "a signal": ("signal_workflow('a', '')", "a signal must be"),
}


@pytest.mark.parametrize("what", BAD)
async def test_a_bad_argument_is_named(conn: Conn, what: str) -> None:
    statement, message = BAD[what]
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=re.escape(message)):
        await call(conn, statement)


async def test_an_unknown_type_is_told_with_those_that_are_known(conn: Conn) -> None:
    with pytest.raises(psycopg.Error, match="no workflow is called 'Tlak'; registered: Talk") as e:
        await call(conn, "start_workflow('Tlak', 'one')")
    assert e.value.sqlstate == "DUR11"


async def test_a_run_that_is_not_open_cannot_be_told(dsn: str, conn: Conn) -> None:
    for statement in ("signal_workflow('none', 'hear')", "cancel_workflow('none')"):
        with pytest.raises(psycopg.Error, match="no run of workflow 'none' is open") as caught:
            await call(conn, statement)
        assert caught.value.sqlstate == "DUR12"
    async with Client.connect(dsn) as client:
        with pytest.raises(WorkflowNotFoundError):
            await client.get_handle("none").signal("hear")


def secret(**options: Any) -> Codec:
    return Codec(pipeline=[AesGcmCodec({"one": b"1" * 32}, "one", **options)])


async def test_encrypting_workers_are_sent_nothing_plain(dsn: str, conn: Conn) -> None:
    await call(conn, "start_workflow('Talk', 'before')")
    store = seal_store(PostgresStore(dsn), secret())
    await store.register_types([TypeInfo("Talk", "workflow", "talks", "Talk()")])
    await store.close()

    for statement in ("start_workflow('Talk', 'one')", "signal_workflow('before', 'hear', '[1]')"):
        with pytest.raises(psycopg.Error, match="SQL cannot encrypt") as caught:
            await call(conn, statement)
        assert caught.value.sqlstate == "DUR13"
        assert "allow_plaintext" in (caught.value.diag.message_hint or "")
    await call(conn, "cancel_workflow('before')")


async def test_encrypting_workers_may_allow_it(dsn: str, conn: Conn) -> None:
    codec = secret(allow_plaintext=True)
    async with serve(dsn, codec=codec), Client.connect(dsn, codec=codec) as client:
        await call(conn, """start_workflow('Talk', 'one', '[1, "Ann"]')""")
        await call(conn, "signal_workflow('one', 'hear', '[1]')")
        assert (await client.get_handle("one").result(SOON))[:2] == ["Ann", [[1]]]


async def test_it_works_in_a_schema_of_any_name(dsn: str) -> None:
    migrate(dsn, "Second one")
    store = PostgresStore(dsn, schema="Second one")
    await store.register_types([TypeInfo("Talk", "workflow", "talks", "Talk()")])
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await conn.execute("""SELECT "Second one".start_workflow('Talk', 'one')""")
        await conn.execute("""SELECT "Second one".signal_workflow('one', 'hear')""")
    view = await store.view(workflow_id="one")
    await store.close()
    assert view is not None


async def test_only_who_was_granted_it_may_and_needs_nothing_else(dsn: str, conn: Conn) -> None:
    role = f"shop_{conn.info.dbname}"
    blocks = [code for language, code in BLOCK.findall(PAGE.read_text()) if language == "sql"]
    grants = next(code for code in blocks if "GRANT" in code)
    *_, after = grants.partition("CREATE ROLE shop;")
    await conn.execute(f"CREATE ROLE {role}")
    try:
        await conn.execute(f"GRANT USAGE ON SCHEMA durable TO {role}")
        async with conn.transaction():
            await conn.execute(f"SET LOCAL ROLE {role}")
            for statement in (
                "start_workflow('Talk', 'one')",
                "signal_workflow('one', 'hear')",
                "cancel_workflow('one')",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    async with conn.transaction():
                        await call(conn, statement)
        await conn.execute(after.replace("TO shop", f"TO {role}"))
        async with conn.transaction():
            await conn.execute(f"SET LOCAL ROLE {role}")
            await call(conn, "start_workflow('Talk', 'one')")
            await call(conn, "signal_workflow('one', 'hear')")
            await call(conn, "cancel_workflow('one')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await conn.execute("SELECT FROM durable.run")
    finally:
        await conn.execute(f"DROP OWNED BY {role}")
        await conn.execute(f"DROP ROLE {role}")


async def test_the_page_does_what_it_says(dsn: str, conn: Conn) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    module = ModuleType("guide_sql")
    sys.modules[module.__name__] = module
    for language, code in blocks:
        if language == "python":
            exec(compile(code, str(PAGE), "exec"), vars(module))
    options = WorkerOptions(poll_max_seconds=0.2, drain_seconds=1.0)
    worker = Worker(dsn, workflows=[module.ship], options=options)
    calls, trigger = [code for language, code in blocks if language == "sql"][:2]
    async with worker, Client.connect(dsn) as client:
        await conn.execute(calls)
        assert await client.get_handle("order-7").result(SOON) == "tea for 350"
        with pytest.raises(WorkflowCancelledError):
            await client.get_handle("order-8").result(SOON)
        await conn.execute(trigger)
        await conn.execute("INSERT INTO shop_order VALUES (1, 'salt'), (2, 'soap')")
        await conn.execute("UPDATE shop_order SET paid = 20 * id")
        assert await client.get_handle("shop-1").result(SOON) == "salt for 20"
        assert await client.get_handle("shop-2").result(SOON) == "soap for 40"
