"""Payloads through a pipeline: nothing readable in the database, nothing lost with a wrong key."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
from psycopg import sql

from durable import ActivityError, RetryPolicy, activity, workflow
from durable.client import Client
from durable.codec import DEFAULT_CODEC, AesGcmCodec, Codec, Converter, ZlibCodec
from durable.errors import (
    UnreadablePayloadError,
    UpdateRejectedError,
    WorkflowFailedError,
    WorkflowParkedError,
)
from durable.events import RunState
from durable.options import WorkerOptions
from durable.runtime.worker import Worker
from durable.store.postgres import PostgresStore
from durable.store.sealed import seal_store

SOON = 20.0
CANARY = "canary-7f3a"
KEYS = {"one": b"1" * 32}
Serve = Callable[..., Awaitable[Worker]]


def secret(keys: dict[str, bytes] = KEYS, **options: Any) -> Codec:
    return Codec(pipeline=[ZlibCodec(min_bytes=64), AesGcmCodec(keys, next(iter(keys)), **options)])


@pytest.fixture
async def serve(dsn: str) -> AsyncIterator[Serve]:
    async with AsyncExitStack() as stack:

        async def start(*definitions: Any, codec: Codec, **options: Any) -> Worker:
            worker = Worker(
                dsn,
                workflows=[each for each in definitions if hasattr(each, "handlers")],
                activities=[each for each in definitions if not hasattr(each, "handlers")],
                options=WorkerOptions(**{"drain_seconds": 1.0, **options}),
                codec=codec,
            )
            return await stack.enter_async_context(worker)

        yield start


async def columns_with(dsn: str, text: str) -> list[str]:
    """The columns of our schema in which a text can be read, also compressed."""
    found = []
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        rows = await conn.execute(
            "SELECT table_name, column_name, data_type FROM information_schema.columns"
            " JOIN information_schema.tables USING (table_schema, table_name)"
            " WHERE table_schema = 'durable' AND table_type = 'BASE TABLE'"
        )
        for table, column, kind in await rows.fetchall():
            # Python has no time that is infinite.
            as_text = sql.SQL("::text") if kind.startswith("timestamp") else sql.SQL("")
            cells = await conn.execute(
                sql.SQL("SELECT {}{} FROM durable.{}").format(
                    sql.Identifier(column), as_text, sql.Identifier(table)
                )
            )
            for (cell,) in await cells.fetchall():
                data = bytes(cell) if isinstance(cell, bytes) else str(cell).encode()
                if text.encode() in data or text.encode() in unpacked(data):
                    found.append(f"{table}.{column}")
    return found


def unpacked(data: bytes) -> bytes:
    for at in range(min(len(data), 64)):
        try:
            return zlib.decompress(data[at:])
        except zlib.error:
            continue
    return b""


@activity.defn(retry=RetryPolicy(initial_interval=0.01, max_attempts=2))
async def shout(text: str) -> str:
    if activity.info().attempt == 1:
        activity.heartbeat(f"{CANARY} beat")
        raise RuntimeError(f"{CANARY} first attempt")
    assert activity.info().heartbeat_details == (f"{CANARY} beat",)
    return text.upper() + CANARY


@activity.defn(retry=RetryPolicy(max_attempts=1), queue="slow")
async def break_down(text: str) -> None:
    raise LookupError(f"{text} broke")


@workflow.defn
async def child(text: str) -> str:
    if text.startswith("again "):
        workflow.continue_as_new(text.removeprefix("again "))
    if text.startswith("bad "):
        raise ValueError(text)
    return f"{text} child"


@workflow.defn
class Parent:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.left = False

    @workflow.signal
    def hear(self, text: str) -> None:
        self.heard.append(text)

    @workflow.update
    async def change(self, text: str) -> str:
        self.heard.append(text)
        return f"{text} changed"

    @workflow.query
    def all_heard(self) -> list[str]:
        return self.heard

    @workflow.signal
    def leave(self) -> None:
        self.left = True

    @workflow.run
    async def run(self, text: str) -> list[str]:
        workflow.set_vars(text=text)
        found = [await shout(text), await child(f"again {text}")]
        try:
            await break_down(text)
        except ActivityError as error:
            found.append(str(error.__cause__))
        try:
            await child(f"bad {text}")
        except Exception as error:
            found.append(str(error.__cause__))
        await workflow.wait_condition(lambda: self.left)
        return [*found, *self.heard]


async def test_no_column_holds_a_value_in_the_clear(dsn: str, serve: Serve) -> None:
    codec = secret()
    await serve(Parent, child, shout, break_down, codec=codec, queues=("default", "slow"))
    async with Client.connect(dsn, codec=codec, workflows=[Parent]) as client:
        handle = await client.start(
            Parent,
            CANARY,
            id="p",
            memo={"note": CANARY},
            headers={"trace": CANARY},
            search={"customer": "Ann"},
        )
        assert await handle.memo() == {"note": CANARY}
        await handle.signal(Parent.hear, f"{CANARY} one")
        assert await handle.update(Parent.change, f"{CANARY} two") == f"{CANARY} two changed"
        assert await handle.query(Parent.all_heard) == [f"{CANARY} one", f"{CANARY} two"]
        assert await handle.vars() == {"text": CANARY}
        assert await columns_with(dsn, CANARY) == []
        # Attributes are there to be looked for: they are the one thing that is not encrypted.
        assert await columns_with(dsn, "Ann") == ["run.search"]
        assert [view.workflow_id for view in await client.list(search={"customer": "Ann"})] == ["p"]
        by_id = client.get_handle("p", workflow=Parent)
        await by_id.signal("leave")
        result = await handle.result(SOON)
        assert result == [
            CANARY.upper() + CANARY,
            f"{CANARY} child",
            f"{CANARY} broke",
            f"bad {CANARY}",
            f"{CANARY} one",
            f"{CANARY} two",
        ]
        assert await columns_with(dsn, CANARY) == []
        assert any(event.payload == [CANARY] for event in await handle.history())


@workflow.defn
async def waits_in_the_queue() -> str:
    return await shout("x")


@pytest.mark.parametrize("is_sealed", [True, False])
async def test_headers_of_an_activity_that_waits_are_sealed_with_its_arguments(
    dsn: str, serve: Serve, is_sealed: bool
) -> None:
    codec = secret() if is_sealed else DEFAULT_CODEC
    await serve(waits_in_the_queue, codec=codec)
    async with (
        Client.connect(dsn, codec=codec) as client,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
    ):
        await client.start(waits_in_the_queue, id="w", headers={"trace": CANARY})
        async with asyncio.timeout(SOON):
            while True:
                rows = await (await conn.execute("SELECT 1 FROM durable.activity")).fetchall()
                if rows:
                    break
                await asyncio.sleep(0.02)
        assert ("activity.input" in await columns_with(dsn, CANARY)) is not is_sealed


async def test_the_canary_is_found_without_a_pipeline(dsn: str, serve: Serve) -> None:
    await serve(child, codec=DEFAULT_CODEC)
    async with Client.connect(dsn) as client:
        await (await client.start(child, CANARY, id="c")).result(SOON)
    assert any(each.endswith(".batch") for each in await columns_with(dsn, CANARY))


async def test_a_debounced_start_is_replaced_sealed(dsn: str, serve: Serve) -> None:
    codec = secret()
    async with Client.connect(dsn, codec=codec) as client:
        for number in range(2):
            text, wait = f"{CANARY} {number}", 3600.0 if number == 0 else 0.05
            handle = await client.enqueue(shout, text, debounce_key="k", debounce=wait)
            assert await columns_with(dsn, CANARY) == []
        await serve(shout, codec=codec)
        assert (await handle.result(SOON)).startswith(f"{CANARY} 1".upper())
        assert await columns_with(dsn, CANARY) == []


async def test_mail_waits_sealed_for_a_worker(dsn: str) -> None:
    async with Client.connect(dsn, codec=secret()) as client:
        handle = await client.start(Parent, CANARY, id="p")
        await handle.signal(Parent.hear, f"{CANARY} one")
        await client.get_handle("p").signal("hear", f"{CANARY} two")
        await handle.cancel(CANARY)
        assert await columns_with(dsn, CANARY) == []


async def parked(client: Client, handle: Any) -> None:
    async with asyncio.timeout(SOON):
        while (await handle.describe()).state != RunState.PARKED:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("other", [secret({"two": b"2" * 32}), secret({"one": b"2" * 32}), Codec()])
async def test_a_run_whose_key_is_missing_waits_for_it(
    dsn: str, serve: Serve, other: Codec
) -> None:
    calls = []

    @workflow.defn
    async def greet(name: str) -> str:
        calls.append(name)
        return f"hello {name}"

    async with Client.connect(dsn, codec=secret()) as client:
        handle = await client.start(greet, "Ada", id="g")
        first = await serve(greet, codec=other)
        await parked(client, handle)
        view = await handle.describe()
        assert b"UnreadablePayloadError" in (view.failure or b"")
        with pytest.raises(WorkflowParkedError, match="undecodable"):
            await handle.result(0.01)
        assert calls == []
        first.request_stop()
        await serve(greet, codec=secret())
        await handle.unpark()
        assert await handle.result(SOON) == "hello Ada"


async def test_mail_with_another_key_parks_the_run_and_is_kept(dsn: str, serve: Serve) -> None:
    @workflow.defn
    async def listen() -> str:
        return await workflow.signal_channel("word", str).receive()

    await serve(listen, codec=secret())
    async with Client.connect(dsn, codec=secret()) as client:
        handle = await client.start(listen, id="l")
        async with Client.connect(dsn, codec=secret({"two": b"2" * 32})) as stranger:
            await stranger.get_handle("l").signal("word", "psst")
        await parked(client, handle)
        assert await client.store.inbox([handle.run_id or ""]) != []


async def test_what_a_paused_run_keeps_is_sealed(dsn: str, serve: Serve) -> None:
    began, ends = asyncio.Event(), asyncio.Event()

    @activity.defn
    async def reveal() -> str:
        began.set()
        await ends.wait()
        return CANARY

    @workflow.defn
    async def asks() -> str:
        return await reveal()

    await serve(asks, reveal, codec=secret())
    async with Client.connect(dsn, codec=secret()) as client:
        handle = await client.start(asks, id="paused")
        await began.wait()
        await handle.pause(CANARY)
        view = await handle.describe()
        assert CANARY.encode() in (view.failure or b"")
        while await client.store.inbox([view.run_id]):
            await asyncio.sleep(0.01)
        ends.set()
        while (await handle.describe()).session is not None:
            await asyncio.sleep(0.01)
        assert await columns_with(dsn, CANARY) == []
        (item,) = await client.store.inbox([view.run_id])
        assert item.payload == f'"{CANARY}"'.encode()
        await handle.resume()
        assert await handle.result(SOON) == CANARY


async def test_the_key_can_be_rotated_under_open_runs(dsn: str, serve: Serve) -> None:
    @workflow.defn
    async def listen() -> str:
        return await workflow.signal_channel("word", str).receive()

    both = Codec(pipeline=AesGcmCodec({"one": b"1" * 32, "two": b"2" * 32}, "two"))
    old = Codec(pipeline=AesGcmCodec({"one": b"1" * 32}, "one"))
    async with Client.connect(dsn, codec=old) as client:
        handle = await client.start(listen, id="l")
    await serve(listen, codec=both)
    async with Client.connect(dsn, codec=both) as client:
        await client.get_handle("l").signal("word", "rotated")
        assert await client.get_handle("l").result(SOON) == "rotated"
    assert handle.run_id


async def test_runs_from_before_encryption_go_on_where_that_is_allowed(
    dsn: str, serve: Serve
) -> None:
    @workflow.defn
    async def listen() -> str:
        return await workflow.signal_channel("word", str).receive()

    async with Client.connect(dsn) as client:
        await client.start(listen, id="old")
        await client.get_handle("old").signal("word", "plain")
    lenient = secret(allow_plaintext=True)
    await serve(listen, codec=lenient)
    async with Client.connect(dsn, codec=lenient) as client:
        assert await client.get_handle("old").result(SOON) == "plain"


async def test_plain_history_is_refused_where_all_must_be_encrypted(dsn: str, serve: Serve) -> None:
    @workflow.defn
    async def quick() -> None:
        return None

    async with Client.connect(dsn) as client:
        handle = await client.start(quick, id="forged")
        await serve(quick, codec=secret())
        await parked(client, handle)


async def test_a_batch_of_another_run_is_refused(dsn: str) -> None:
    store = seal_store(PostgresStore(dsn), secret())
    async with Client(store) as client:
        first = await client.start(child, "a", id="a")
        second = await client.start(child, "b", id="b")
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await conn.execute(
                "UPDATE durable.history SET batch ="
                " (SELECT batch FROM durable.history WHERE run_id = %s) WHERE run_id = %s",
                (first.run_id, second.run_id),
            )
        assert await first.history()
        with pytest.raises(UnreadablePayloadError):
            await second.history()


async def test_a_result_of_another_run_is_refused(dsn: str, serve: Serve) -> None:
    await serve(child, codec=secret())
    async with Client.connect(dsn, codec=secret()) as client:
        first = await client.start(child, "a", id="a")
        second = await client.start(child, "b", id="b")
        await first.result(SOON)
        await second.result(SOON)
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            await conn.execute(
                "UPDATE durable.closed_run SET result ="
                " (SELECT result FROM durable.closed_run WHERE run_id = %s) WHERE run_id = %s",
                (first.run_id, second.run_id),
            )
        with pytest.raises(UnreadablePayloadError, match="another place"):
            await client.get_handle("b", workflow=child).result(SOON)


async def test_an_answer_that_cannot_be_read_says_so(dsn: str, serve: Serve) -> None:
    @workflow.defn
    class Desk:
        @workflow.query
        def ask(self) -> str:
            return CANARY

        @workflow.run
        async def run(self) -> None:
            await workflow.sleep(3600)

    await serve(Desk, codec=secret())
    async with Client.connect(dsn, codec=secret()) as client:
        handle = await client.start(Desk, id="d")
        assert await handle.query("ask") == CANARY
        with pytest.raises(UpdateRejectedError):
            await handle.update("nothing")
        await handle.terminate("enough")
        with pytest.raises(Exception, match="enough"):
            await handle.result(SOON)


async def test_a_failure_keeps_its_text_for_those_with_the_key(dsn: str, serve: Serve) -> None:
    await serve(child, codec=secret())
    async with Client.connect(dsn, codec=secret()) as client:
        handle = await client.start(child, f"bad {CANARY}", id="b")
        with pytest.raises(WorkflowFailedError, match=CANARY):
            await handle.result(SOON)
    assert await columns_with(dsn, CANARY) == []
    async with Client.connect(dsn) as keyless:
        with pytest.raises(WorkflowFailedError, match="codec pipeline"):
            await keyless.get_handle("b").result(SOON)


async def test_a_timeout_that_the_database_found_is_understood(dsn: str, serve: Serve) -> None:
    @activity.defn(queue="nobody", schedule_to_start_timeout=0.05)
    async def never() -> None:
        raise AssertionError

    @workflow.defn
    async def impatient() -> str:
        try:
            await never()
        except ActivityError as error:
            return str(error)
        return ""

    await serve(impatient, codec=secret())
    async with Client.connect(dsn, codec=secret()) as client:
        handle = await client.start(impatient, id="i")
        assert "schedule-to-start timeout" in await handle.result(SOON)


def test_without_a_pipeline_the_store_is_used_as_it_is() -> None:
    store = PostgresStore("")
    assert seal_store(store, Codec()) is store


class Money:
    """A type that JSON does not know."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents


MONEY = Codec([Converter(Money, lambda money: money.cents, Money)])


@activity.defn(codec=MONEY)
async def double(money: Money) -> Money:
    return Money(money.cents * 2)


@activity.defn
async def huge() -> Any:
    return [2**70, 2**64]


@workflow.defn(codec=MONEY)
async def savings(money: Money) -> Money:
    assert await huge() == [2**70, 2**64]
    return await double(money)


async def test_converters_reach_workflows_and_activities(dsn: str, serve: Serve) -> None:
    await serve(savings, double, huge, codec=DEFAULT_CODEC, verify_values=True)
    try:
        async with Client.connect(dsn) as client:
            handle = await client.start(savings, Money(21), id="s")
            assert await handle.result(SOON) == Money(42)
        assert MONEY.verify
    finally:
        MONEY.verify = DEFAULT_CODEC.verify = False


async def test_a_copied_history_is_sealed_again_for_its_new_run(dsn: str, serve: Serve) -> None:
    codec = secret()
    await serve(Parent, child, shout, break_down, codec=codec, queues=("default", "slow"))
    async with Client.connect(dsn, codec=codec) as client:
        handle = await client.start(Parent, CANARY, id="p")
        await handle.signal(Parent.leave)
        before = await handle.result(30)
        again = await handle.reset(before_activity="break_down")
        assert await again.result(30) == before
        copied = await again.fork("q", to_last_turn=True, keep_signals=True)
        assert await copied.result(30) == before
    assert await columns_with(dsn, CANARY) == []


async def test_a_stream_is_encrypted_and_read_with_the_key(dsn: str, serve: Serve) -> None:
    @activity.defn
    async def tells() -> None:
        await activity.stream("tokens").write(CANARY)

    @workflow.defn
    async def telling() -> None:
        await tells()

    await serve(telling, tells, codec=secret())
    async with Client.connect(dsn, codec=secret()) as client, asyncio.timeout(30):
        handle = await client.start(telling, id="t")
        assert [item.value async for item in handle.stream("tokens")] == [CANARY]
    assert await columns_with(dsn, CANARY) == []
    async with Client.connect(dsn) as keyless:
        with pytest.raises(UnreadablePayloadError):
            await anext(keyless.get_handle("t").stream("tokens"))


async def test_the_last_result_of_a_schedule_is_sealed_wherever_it_is_kept(
    dsn: str, serve: Serve
) -> None:
    @workflow.defn
    async def tells() -> str:
        if workflow.last_failure() is not None:
            return f"{workflow.last_result()} {workflow.last_failure()}"
        if workflow.has_last_result():
            raise RuntimeError(CANARY)
        return CANARY

    await serve(tells, codec=secret())
    async with Client.connect(dsn, codec=secret()) as client, asyncio.timeout(30):
        schedule = await client.create_schedule("s", tells, every=3600, paused=True)
        for number in range(3):
            await schedule.trigger()
            shown = await schedule.describe()
            while shown["started"] <= number or shown["running"]:
                await asyncio.sleep(0.02)
                shown = await schedule.describe()
        last = client.get_handle(shown["recent"][-1])
        assert await last.result(SOON) == f"{CANARY} {CANARY}"
        await schedule.delete()
    assert await columns_with(dsn, CANARY) == []
