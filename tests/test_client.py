"""The client: what it starts, what it refuses, and what it tells of a run."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest

from durable import RetryPolicy, activity, workflow
from durable.client import Client, WorkflowHandle
from durable.errors import (
    EncodeError,
    InvalidArgumentError,
    PayloadTooLargeError,
    SchemaVersionError,
    StoreUnavailableError,
    UnknownWorkflowError,
    WorkflowAlreadyStartedError,
    WorkflowFailedError,
    WorkflowNotFoundError,
)
from durable.events import IdReuse, RunState, TypeInfo
from durable.options import ID_LENGTH_MAX, PAYLOAD_BYTES_MAX
from durable.runtime.worker import Worker
from durable.store.postgres import PostgresStore

SOON = 20.0


@dataclass
class Order:
    item: str
    pieces: int = 1


@workflow.defn
async def ship(order: Order, *, express: bool = False) -> Order:
    workflow.set_vars(item=order.item, express=express)
    extra = await workflow.wait_signal("more", type=int)
    workflow.set_vars(extra=extra)
    return Order(order.item, order.pieces + extra)


@workflow.defn
async def echo(value: str) -> str:
    return value


@workflow.defn
async def refuse(value: str) -> str:
    raise LookupError(value)


@workflow.defn
async def told() -> dict[str, Any]:
    workflow.upsert_search_attributes(status="read", customer=None)
    return dict(workflow.info().memo)


@workflow.defn
async def collect(count: int) -> list[int]:
    return [await workflow.wait_signal("more", type=int) for _ in range(count)]


class CountingStore(PostgresStore):
    """Notes which statements are sent."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.fetched: list[str] = []

    async def fetch(self, name: str, params: Any) -> list[tuple[Any, ...]]:
        self.fetched.append(name)
        return await super().fetch(name, params)


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with Client.connect(dsn) as connected:
        yield connected


async def views(client: Client) -> list[str]:
    return [view.workflow_id for view in await client.list()]


# -- memo and search attributes ---------------------------------------------------------------


async def test_a_memo_is_read_by_the_code_and_by_people(client: Client, dsn: str) -> None:
    memo = {"page": 7, "until": date(2026, 12, 1), "order": Order("book")}
    plain = {"page": 7, "until": "2026-12-01", "order": {"item": "book", "pieces": 1}}
    handle = await client.start(told, id="m", memo=memo, search={"customer": "Ann", "day": "Mo"})

    assert await handle.memo() == plain
    async with Worker(dsn, workflows=[told]):
        assert await handle.result(SOON) == plain
    assert await client.get_handle("m").memo() == plain
    assert await (await client.start(told, id="none")).memo() == {}


async def test_attributes_of_the_start_are_merged_with_those_of_the_code(
    client: Client, dsn: str
) -> None:
    handle = await client.start(told, id="s", search={"customer": "Ann", "day": "Mo"})
    assert [v.workflow_id for v in await client.list(search={"customer": "Ann"})] == ["s"]

    async with Worker(dsn, workflows=[told]):
        await handle.result(SOON)

    assert await client.list(search={"customer": "Ann"}) == []
    (view,) = await client.list(search={"day": "Mo", "status": "read"})
    assert json.loads(view.search or b"") == {"day": "Mo", "status": "read"}


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"search": {"": 1}}, InvalidArgumentError, "a name in search"),
        ({"search": {"a\0": 1}}, InvalidArgumentError, "a name in search"),
        ({"search": {"a": ["x\0"]}}, InvalidArgumentError, "search attribute 'a'"),
        ({"search": {"a": {"\0": 1}}}, InvalidArgumentError, "search attribute 'a'"),
        ({"search": "customer"}, InvalidArgumentError, "search is a dict"),
        ({"search": {"a": object()}}, EncodeError, "object"),
        ({"search": {"a": "x" * 40_000}}, PayloadTooLargeError, "search attributes"),
        ({"headers": {"": 1}}, InvalidArgumentError, "a name in headers"),
        ({"headers": {"durable.job": 1}}, InvalidArgumentError, "the library's own"),
        ({"headers": {"a": "x" * 17_000}}, PayloadTooLargeError, "the headers"),
        ({"memo": {3: 1}}, InvalidArgumentError, "a name in memo"),
        ({"memo": {"a": "x" * (PAYLOAD_BYTES_MAX + 1)}}, PayloadTooLargeError, "the memo"),
    ],
)
async def test_a_memo_header_or_attribute_that_cannot_be_kept_starts_nothing(
    client: Client, options: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        await client.start(echo, "x", id="bad", **options)
    assert await views(client) == []


async def test_a_backslash_that_only_looks_like_a_zero_is_kept(client: Client) -> None:
    await client.start(echo, "x", id="a", search={"path": "c:\\u0000"})
    assert len(await client.list(search={"path": "c:\\u0000"})) == 1


async def test_nothing_is_found_by_none(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be None"):
        await client.list(search={"customer": None})


async def test_starts_of_many_may_have_options_of_their_own(client: Client) -> None:
    handles = await client.start_many(
        echo,
        [("a", ["x"]), ("b", ["x"], {"search": {"customer": "Ann"}, "memo": {"n": 1}})],
        search={"customer": "Bob"},
        memo={"n": 0},
    )

    assert [v.workflow_id for v in await client.list(search={"customer": "Bob"})] == ["a"]
    assert [v.workflow_id for v in await client.list(search={"customer": "Ann"})] == ["b"]
    memos = [await h.memo() for h in handles if isinstance(h, WorkflowHandle)]
    assert memos == [{"n": 0}, {"n": 1}]


async def test_an_unknown_option_of_many_starts_is_an_error(client: Client) -> None:
    starts: Any = [("a", ["x"], {"prioriti": 1})]
    with pytest.raises(InvalidArgumentError, match="no option 'prioriti'; it has queue"):
        await client.start_many(echo, starts)


# -- starting --------------------------------------------------------------------------------


async def test_the_result_comes_back_as_its_annotation(client: Client, dsn: str) -> None:
    handle = await client.start(ship, Order("book"), id="order-1", express=True)
    await handle.signal("more", 2)
    async with Worker(dsn, workflows=[ship]):
        assert await handle.result(SOON) == Order("book", 3)
    by_id = client.get_handle("order-1")
    assert await by_id.result(SOON) == {"item": "book", "pieces": 3}
    assert await client.get_handle("order-1", workflow=ship).result(SOON) == Order("book", 3)


async def test_a_taken_id_names_the_run_that_has_it(client: Client) -> None:
    first = await client.start(echo, "a", id="echo")
    with pytest.raises(WorkflowAlreadyStartedError, match="running") as caught:
        await client.start(echo, "b", id="echo")
    assert caught.value.run_id == first.run_id


async def test_an_id_may_be_used_again_when_the_caller_says_so(client: Client, dsn: str) -> None:
    async with Worker(dsn, workflows=[echo, refuse]):
        assert await (await client.start(echo, "a", id="id")).result(SOON) == "a"
        with pytest.raises(WorkflowAlreadyStartedError, match="completed"):
            await client.start(echo, "b", id="id", id_reuse=IdReuse.AFTER_FAILURE)
        again = await client.start(echo, "b", id="id", id_reuse=IdReuse.AFTER_CLOSE)
        assert await again.result(SOON) == "b"
        failed = await client.start(refuse, "c", id="failed")
        with pytest.raises(WorkflowFailedError):
            await failed.result(SOON)
        await client.start(echo, "d", id="failed", id_reuse=IdReuse.AFTER_FAILURE)


async def test_many_starts_tell_which_ids_were_taken(client: Client) -> None:
    await client.start(echo, "x", id="b")
    started = await client.start_many(echo, [("a", ["1"]), ("b", ["2"]), ("c", ["3"])])
    kinds = [type(each).__name__ for each in started]
    assert kinds == ["WorkflowHandle", "WorkflowAlreadyStartedError", "WorkflowHandle"]
    assert sorted(await views(client)) == ["a", "b", "c"]


async def test_many_signals_tell_which_were_taken_and_keep_their_order(
    client: Client, dsn: str
) -> None:
    await client.start_many(collect, [("a", [2]), ("b", [1])])
    signals: list[tuple[str, list[int]]] = [("a", [1]), ("ghost", [9]), ("b", [7]), ("a", [2])]

    assert await client.signal_many("more", signals) == [True, False, True, True]
    assert await client.signal_many("more", []) == []

    async with Worker(dsn, workflows=[collect]):
        assert await client.get_handle("a").result(SOON) == [1, 2]
        assert await client.get_handle("b").result(SOON) == [7]


async def test_many_signals_repeated_are_taken_once(client: Client, dsn: str) -> None:
    await client.start(collect, 3, id="a")
    for value in (1, 2):
        sent = await client.signal_many(
            "more", [("a", [value]), ("a", [5])], request_ids=["first", f"r{value}"]
        )
        assert sent == [True, True]
    with pytest.raises(InvalidArgumentError, match="request ids"):
        await client.signal_many("more", [("a", [1])], request_ids=[])
    async with Worker(dsn, workflows=[collect]):
        assert await client.get_handle("a").result(SOON) == [1, 5, 5]


async def test_many_starts_and_signals_are_one_statement_each(dsn: str) -> None:
    store = CountingStore(dsn)
    async with Client.connect(store) as client:
        await client.start(echo, "a", id="first")
        store.fetched.clear()
        await client.start_many(collect, [(f"c{n}", [1]) for n in range(500)])
        await client.signal_many("more", [(f"c{n}", [n]) for n in range(500)])
        await client.hinter.flush()
    assert [name for name in store.fetched if name != "notify"] == ["start_runs", "send"]


async def test_a_start_belongs_to_the_callers_transaction(client: Client, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await client.start(echo, "a", id="rolled-back", conn=conn)
        await conn.rollback()
        await client.start(echo, "a", id="kept", conn=conn)
        assert await views(client) == []
        await conn.commit()
    assert await views(client) == ["kept"]


async def test_a_delayed_start_waits_for_its_time(client: Client, dsn: str) -> None:
    later = await client.start(echo, "later", id="later", start_delay=timedelta(hours=1))
    soon = await client.start(echo, "soon", id="soon", start_delay=0.2)
    past = await client.start(echo, "past", id="past", start_at=datetime(2020, 1, 1, tzinfo=UTC))
    async with Worker(dsn, workflows=[echo]):
        assert await soon.result(SOON) == "soon"
        assert await past.result(SOON) == "past"
        assert (await later.describe()).state == RunState.RUNNING
        with pytest.raises(TimeoutError, match="still running"):
            await later.result(timeout=0.01)


async def test_a_workflow_started_by_name_needs_a_known_name(client: Client, dsn: str) -> None:
    with pytest.raises(UnknownWorkflowError, match="none"):
        await client.start("echo", "a", id="a")
    async with Worker(dsn, workflows=[echo, ship]):
        with pytest.raises(UnknownWorkflowError, match="registered: echo, ship"):
            await client.start("ehco", "a", id="a")
        assert await (await client.start("echo", "a", id="a")).result(SOON) == "a"
    assert await views(client) == ["a"]


async def test_a_workflow_started_by_name_goes_to_the_queue_it_is_registered_for(
    client: Client, dsn: str
) -> None:
    await client.store.register_types([TypeInfo("Talk", "workflow", "talks", "Talk()")])
    await client.start("Talk", id="a")
    await client.start("Talk", id="b", queue="others")
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        cursor = await conn.execute("SELECT queue FROM durable.run ORDER BY workflow_id")
        assert await cursor.fetchall() == [("talks",), ("others",)]


# -- what is refused, before anything is written ---------------------------------------------


@pytest.mark.parametrize(
    ("args", "kwargs", "says"),
    [
        ((), {}, "order"),
        ((Order("a"), 1), {}, "ship"),
        ((Order("a"),), {"fast": True}, "fast"),
        (("not an order",), {}, "order"),
        ((Order("a"),), {"express": "maybe"}, "express"),
        ((Order("a", "many"),), {}, "order"),  # type: ignore[arg-type]
    ],
)
async def test_arguments_that_do_not_fit_are_refused(
    client: Client, args: Any, kwargs: Any, says: str
) -> None:
    with pytest.raises((InvalidArgumentError, EncodeError), match=says):
        await client.start(ship, *args, id="bad", **kwargs)
    assert await views(client) == []


@pytest.mark.parametrize("bad", [7, "seven", None])
async def test_arguments_of_many_that_are_no_list_are_refused(client: Client, bad: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="workflow one are a list or a tuple"):
        await client.start_many(echo, [("one", bad)])
    with pytest.raises(InvalidArgumentError, match="the signal to one are a list"):
        await client.signal_many("more", [("one", bad)])
    with pytest.raises(InvalidArgumentError, match="a job are a list"):
        await client.enqueue_many("any", [bad])
    assert await views(client) == []


async def test_a_value_that_cannot_be_written_is_refused(client: Client) -> None:
    with pytest.raises((EncodeError, InvalidArgumentError)):
        await client.start(echo, object(), id="bad")  # type: ignore[arg-type]
    assert await views(client) == []


async def test_arguments_over_the_limit_are_refused(client: Client) -> None:
    with pytest.raises(PayloadTooLargeError):
        await client.start(echo, "x" * (PAYLOAD_BYTES_MAX + 1), id="bad")
    assert await views(client) == []


@pytest.mark.parametrize("bad", ["", "x" * (ID_LENGTH_MAX + 1), "a\nb", "a\x00b", "\ud800", 7])
async def test_a_malformed_id_is_refused(client: Client, bad: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="workflow id"):
        await client.start(echo, "a", id=bad)
    assert await views(client) == []


@pytest.mark.parametrize(
    "options",
    [
        {"queue": ""},
        {"version": "a\tb"},
        {"priority": 1 << 20},
        {"start_delay": -1},
        {"start_delay": float("nan")},
        {"run_timeout": -0.5},
        {"start_delay": 1, "start_at": datetime.now(UTC)},
    ],
    ids=str,
)
async def test_options_that_make_no_sense_are_refused(client: Client, options: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        await client.start(echo, "a", id="a", **options)
    assert await views(client) == []


async def test_what_is_not_a_workflow_is_refused(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match=r"workflow\.defn"):
        await client.start(json.dumps, "a", id="a")  # type: ignore[call-overload]


# -- the database ----------------------------------------------------------------------------


async def test_a_database_that_is_not_there_is_told_quickly() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with asyncio.timeout(SOON):
            with pytest.raises(StoreUnavailableError):
                async with Client.connect(f"host=127.0.0.1 port={port} user=nobody dbname=none"):
                    raise AssertionError("connected to nothing")


async def test_a_database_without_tables_says_what_to_run(empty_dsn: str) -> None:
    with pytest.raises(SchemaVersionError, match="durable migrate"):
        async with Client.connect(empty_dsn):
            raise AssertionError("there are no tables")


# -- talking to a run ------------------------------------------------------------------------


async def test_what_is_not_there_is_told(client: Client) -> None:
    handle = client.get_handle("nobody")
    for ask in (handle.result, handle.describe, handle.cancel, handle.vars, handle.history):
        with pytest.raises(WorkflowNotFoundError, match="nobody"):
            await ask()
    with pytest.raises(InvalidArgumentError, match="UUID"):
        client.get_handle("nobody", "not-a-uuid")


async def test_a_signal_to_a_closed_run_says_how_it_ended(client: Client, dsn: str) -> None:
    handle = await client.start(echo, "a", id="a")
    async with Worker(dsn, workflows=[echo]):
        await handle.result(SOON)
    with pytest.raises(WorkflowNotFoundError, match="completed"):
        await handle.signal("late")


async def test_a_signal_sent_again_under_its_id_arrives_once(client: Client, dsn: str) -> None:
    @workflow.defn
    async def two() -> list[int]:
        channel = workflow.signal_channel("number", int)
        return [await channel.receive(), await channel.receive()]

    handle = await client.start(two, id="two")
    for _ in range(3):
        await handle.signal("number", 1, request_id="first")
    await handle.signal("number", 2)
    async with Worker(dsn, workflows=[two]):
        assert await handle.result(SOON) == [1, 2]


async def test_vars_are_those_of_a_pending_an_open_and_a_closed_run(
    client: Client, dsn: str
) -> None:
    handle = await client.start(ship, Order("book"), id="vars", start_delay=0.05)
    pending = await handle.vars()
    assert pending == {"item": "book", "express": False}
    await handle.signal("more", 2)
    assert await handle.vars() == {**pending, "extra": 2}
    async with Worker(dsn, workflows=[ship]):
        await handle.result(SOON)
    assert await handle.vars() == {**pending, "extra": 2}
    with pytest.raises(UnknownWorkflowError, match="workflow="):
        await client.get_handle("vars").vars()


async def test_a_client_given_workflows_knows_their_runs_by_id(client: Client, dsn: str) -> None:
    await client.start(ship, Order("book"), id="known")
    async with Client.connect(dsn, workflows=[ship]) as knowing:
        assert (await knowing.get_handle("known").vars())["item"] == "book"


async def test_history_is_told_in_plain_values(client: Client, dsn: str) -> None:
    @activity.defn(retry=RetryPolicy(max_attempts=1))
    async def add(left: int, right: int) -> int:
        return left + right

    @workflow.defn
    async def sums() -> int:
        return await add(1, 2)

    handle = await client.start(sums, id="sums")
    async with Worker(dsn, workflows=[sums], activities=[add]):
        await handle.result(SOON)
    events = await handle.history()
    told = [(event.kind, event.ref, event.name, event.payload) for event in events]
    assert told == [
        ("RUN_STARTED", 0, "sums", []),
        ("ACTIVITY_SCHEDULED", 0, "add", [1, 2]),
        ("ACTIVITY_COMPLETED", 2, None, 3),
        ("RUN_COMPLETED", 0, None, 3),
    ]
    assert [event.time_us for event in events] == sorted(event.time_us for event in events)


async def test_many_results_are_waited_for_at_once(client: Client, dsn: str) -> None:
    handles = await client.start_many(echo, [(f"echo-{n}", [str(n)]) for n in range(200)])
    waiting = asyncio.gather(*(handle.result(SOON) for handle in handles))  # type: ignore[union-attr]
    async with Worker(dsn, workflows=[echo]):
        assert await waiting == [str(n) for n in range(200)]


async def test_a_closed_client_leaves_nobody_waiting(dsn: str) -> None:
    async with Client.connect(dsn) as client:
        handle = await client.start(echo, "a", id="a")
        waiting = asyncio.create_task(handle.result())
        while not client.waiter._runs:
            await asyncio.sleep(0)
    with pytest.raises(Exception, match="closed"):
        await waiting
