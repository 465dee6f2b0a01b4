"""Cost stays flat: no statement reads more because there is much else.

Every call of the hot paths runs on each shape of data (support/shapes.py), with plans made for any
parameters and with plans made for these. The server tells what each statement did, those inside of
functions too (support/plans.py). DURABLE_PLAN_ROWS=1000000 does it at full size.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import psycopg
import pytest
from support.plans import Plan, WatchedStore
from support.shapes import EMPTIED_THEN_FULL, ROWS, SEEN_DEAD, SHAPES, shaped
from support.store_rig import HOUR_US, QUEUE, TYPE, PostgresRig, change, new_run

from durable.events import (
    ActivityOutcome,
    ClaimedActivity,
    ClaimedRun,
    Closing,
    EventKind,
    Hold,
    Message,
    NewTimer,
    QueuedActivity,
    Response,
    RunState,
    TypeInfo,
    Verdict,
)
from durable.store.limits import Limits
from durable.store.pages import OpenRuns, Runs
from durable.store.settled import NO_FLOOR

ROWS_MAX = 150
"""Rows that one node of a plan may read: the calls are about twelve runs, at most."""
SMALL = {"meta", "session", "queue_limit"}
"""Tables that may be read whole: a row per worker, per limit, per setting."""
NIL = "00000000-0000-0000-0000-000000000000"
JOINS_OF_SETS = {"Hash Join", "Merge Join"}

Call = Callable[[], Awaitable[object]]


async def plan_functions(dsn: str, mode: str) -> None:
    """Have the plans inside of the schema's functions made this way, but for those that are made
    anew for each call."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = await conn.execute(
            "SELECT oid::regprocedure::text FROM pg_proc "
            "WHERE proconfig::text ~ 'plan_cache_mode=force_generic_plan'"
        )
        for (function,) in await cursor.fetchall():
            await conn.execute(f"ALTER FUNCTION {function} SET plan_cache_mode = {mode}".encode())


def check(plan: Plan, call: str) -> None:
    """No table but a small one is read whole, no sets are joined, and no node reads many rows."""
    for node in plan.nodes:
        whole = node.kind == "Seq Scan" and node.table not in SMALL
        assert not whole, f"{call} reads all of {node.table}: {plan.text}"
        assert node.kind not in JOINS_OF_SETS, f"{call} has a {node.kind}: {plan.text}"
        assert node.rows <= ROWS_MAX, f"{call}: {node} in {plan.text}"


PLAIN_SQL = {
    "start_workflow": b"SELECT durable.start_workflow('order', $1, '[1]', search => '{\"a\": 1}')",
    "signal_workflow": b"SELECT durable.signal_workflow($1, 'paid', '[1]')",
    "cancel_workflow": b"SELECT durable.cancel_workflow($1, 'enough')",
}
"""What no client sends, but people do."""


async def claimed(rig: PostgresRig, session: int, count: int) -> list[ClaimedRun]:
    """So many runs. Tokens of those that have closed may stand before theirs."""
    runs: list[ClaimedRun] = []
    while len(runs) < count:
        runs += await rig.claim(session, count - len(runs))
    return runs


async def calls(rig: PostgresRig, turn: str) -> AsyncIterator[tuple[str, Call]]:
    """Every call of the hot paths, one after the other, each with something to do."""
    store = rig.store
    assert isinstance(store, WatchedStore)
    session = await rig.session(9 * HOUR_US)
    worker = await rig.session(9 * HOUR_US)
    store.queries = {**store.queries, **PLAIN_SQL}
    store.names.update((query.decode(), name) for name, query in PLAIN_SQL.items())
    await store.register_types([TypeInfo(TYPE, "workflow", "sql", "order()")])
    yield "SQL start", lambda: store.fetch("start_workflow", (f"{turn}sql",))
    yield "SQL signal", lambda: store.fetch("signal_workflow", (f"{turn}sql",))
    yield "SQL cancel", lambda: store.fetch("cancel_workflow", (f"{turn}sql",))
    yield "start_runs", lambda: store.start_runs([new_run(f"{turn}{n}") for n in range(8)])
    yield "start_run", lambda: store.start_runs([new_run(f"{turn}single")])
    yield "start_run, taken", lambda: store.start_runs([new_run(f"{turn}1")])
    yield (
        "start_runs, taken",
        lambda: store.start_runs([new_run(f"{turn}1"), new_run("closed7" + turn)]),
    )
    keyed = [new_run(f"{turn}keyed{n}", queue="keyed", dedup_key=f"{turn}{n}") for n in range(4)]
    yield "start_runs, keyed", lambda: store.start_runs(keyed)
    again = [replace(new_run(f"{turn}again"), queue="keyed", dedup_key=f"{turn}1")]
    yield "start_runs, held", lambda: store.start_runs(again)
    waits = new_run(f"{turn}waits", queue="keyed", debounce_key=turn, start_delay_us=HOUR_US)
    yield "start_runs, debounced", lambda: store.start_runs([waits])
    put_off = replace(waits, start_at_us=await store.now_us() + 9 * HOUR_US)
    yield "replace_start", lambda: store.replace_start(put_off)
    begun = replace(put_off, run_id=keyed[0].run_id)
    yield "replace_start, begun", lambda: store.replace_start(begun)
    runs = await claimed(rig, session, 4)
    yield "claim_runs", lambda: store.claim_runs(session, [QUEUE], [TYPE], 4)
    yield "look", lambda: store.look([session, worker], [QUEUE])
    yield "claim_runs, idle", lambda: store.claim_runs(session, [QUEUE], [TYPE], 10)
    yield "send", lambda: store.send([Message(5, workflow_id=f"{turn}1", request_id="r")])
    yield "send_and_tell", lambda: store.send_telling(Message(5, workflow_id=f"{turn}1"))
    pairs = [
        (new_run(w, queue="keyed"), Message(5, workflow_id=w, request_id="q"))
        for w in (f"{turn}3", f"{turn}fresh")
    ]
    first, mail = [run for run, _ in pairs], [message for _, message in pairs]
    yield "start_and_send", lambda: store.start_and_send(first, mail)
    yield "inbox", lambda: store.inbox([run.run_id for run in runs])
    yield "mail_after", lambda: store.mail_after({run.run_id: NO_FLOOR for run in runs}, 100)
    yield "load", lambda: store.load({run.run_id: run.part for run in runs})
    yield "load_packed", lambda: store.load_packed({run.run_id: run.part for run in runs})
    yield "waiting", lambda: store.waiting([run.run_id for run in runs])
    made = QueuedActivity(5, "pay", QUEUE, 0, 1, b"", b'{"start_to_close":60}')
    flush = [
        change(
            run,
            b"b",
            timers=[NewTimer(7, 1)],
            timers_done=[8],
            activities=[made],
            activities_done=[9],
            children=[new_run("child" + run.run_id, parent_ref=3)],
            messages=[Message(5, workflow_id=f"{turn}2", ref=4)],
            responses=[Response(run.run_id)],
        )
        for run in runs
    ]
    yield "commit", lambda: store.commit(flush)
    answers = [change(run, None, seq=2, responses=[Response("a" + run.run_id)]) for run in runs[:2]]
    yield "answer", lambda: store.commit(answers)
    yield "promote_due", lambda: store.promote_due(100)
    yield "promote_due, idle", lambda: store.promote_due(100)
    attempts: list[ClaimedActivity] = []
    while not attempts:
        # The tokens of activities that are no more go with the claim that meets them.
        attempts = await store.claim_activities(worker, [QUEUE], ["pay"], 2)
    yield "claim_activities", lambda: store.claim_activities(worker, [QUEUE], ["pay"], 10)
    await Limits(store).set(QUEUE, concurrency=100, rate=100)
    yield "claim_activities, limited", lambda: store.claim_activities(worker, [QUEUE], ["pay"], 9)
    await Limits(store).set(QUEUE)
    done = [
        ActivityOutcome(a.run_id, a.ref, a.attempt, a.token, EventKind.ACTIVITY_COMPLETED)
        for a in attempts
    ]
    beating = attempts[0]
    yield (
        "heartbeat_activity",
        lambda: store.heartbeat_activity(beating.run_id, beating.ref, beating.token, b"50 %"),
    )
    hold = Hold(beating.ref, beating.token)
    mine = (beating.run_id, "t", 1, [b"x"])
    yield "append_stream, the first", lambda: store.append_stream(*mine, 1, hold)
    yield "append_stream", lambda: store.append_stream(*mine, 2, hold)
    yield "read_stream", lambda: store.read_stream(beating.run_id, "t", 0, 10)
    yield "finish_activities", lambda: store.finish_activities(done)
    yield "owned", lambda: store.owned(session)
    yield "heartbeat", lambda: store.heartbeat([session], HOUR_US)
    yield "view", lambda: store.view(workflow_id=f"{turn}1")
    yield "view, closed", lambda: store.view(workflow_id="closed7")
    attributes = b'{"customer":7}'
    yield "views", lambda: store.views(limit=20)
    yield "views, the next", lambda: store.views(before=(1 << 51, NIL), limit=20)
    yield "views, closed", lambda: store.views(Runs(states=(RunState.COMPLETED,)), limit=20)
    recent = Runs(closed_from_us=await store.now_us() + 1_000_000)
    yield "views, closed since", lambda: store.views(recent)
    yield "views, closed before", lambda: store.views(Runs(closed_until_us=1 << 49))
    yield "views, by ids", lambda: store.views(Runs(ids=("closed7", f"{turn}1", "nobody")))
    yield "views, by attributes", lambda: store.views(Runs(TYPE, search=attributes))
    yield "first_batches", lambda: store.first_batches({run.run_id: run.part for run in runs})
    yield "closed", lambda: store.closed([run.run_id for run in runs])
    yield "responses", lambda: store.responses([run.run_id for run in runs])
    yield "end_sessions", lambda: store.end_sessions([worker])
    await store.commit([change(runs[0], seq=2, park=b"{}")])
    yield "unpark", lambda: store.unpark([runs[0].run_id])
    yield "release", lambda: store.commit([change(runs[1], seq=2, release=True, search=b"{}")])
    next_run = new_run(runs[2].workflow_id)
    end = Closing(RunState.CONTINUED_AS_NEW)
    yield (
        "continue as new",
        lambda: store.commit([change(runs[2], b"e", seq=2, closing=end, successor=next_run)]),
    )
    last = change(runs[3], b"e", seq=2, closing=Closing(RunState.TERMINATED))
    yield "close", lambda: store.commit([last])
    few = await claimed(rig, session, 2)
    ends = [change(run, b"e", closing=Closing(RunState.TERMINATED)) for run in few]
    yield "close, two", lambda: store.commit(ends)
    store.purged_at = store.tidied_at = -math.inf
    yield "reap_sessions", store.reap_sessions


BUDGETS = {
    "start_workflow": 120,
    "signal_workflow": 45,
    "cancel_workflow": 45,
    "start_run": 60,
    "start_runs": 300,
    "replace_start": 40,
    "start_and_send": 400,
    "claim_runs": 400,
    "look": 60,
    "send": 40,
    "send_and_tell": 45,
    "inbox": 15,
    "mail_after": 25,
    "load": 25,
    "load_packed": 25,
    "waiting": 25,
    "commit_runs": 160,
    "commit_timers": 80,
    "commit_activities": 200,
    "commit_activities_done": 45,
    "commit_responses": 65,
    "commit_children": 220,
    "commit_messages": 140,
    "commit_search": 30,
    "commit_releases": 40,
    "commit_and_close": 180,
    "commit_and_respond": 120,
    "close_run": 80,
    "commit_closes": 80,
    "commit_successors": 50,
    "promote_due": 160,
    "claim_activities": 500,
    "heartbeat_activity": 12,
    "append_stream": 45,
    "read_stream": 15,
    "finish_activities": 100,
    "owned_runs": 80,
    "owned_activities": 10,
    "heartbeat": 12,
    "view_run": 12,
    # With the list of entries that a GIN index has not sorted in yet: 512 kB, at most.
    "find_runs": 250,
    "list_runs": 150,
    "first_batches": 25,
    "closed": 20,
    "responses": 15,
    "end_sessions": 750,
    "tidy_claims": 15,
    "purge_responses": 8,
    "unpark": 32,
}
"""Buffers that one execution may touch, all told, with the rows of `calls`."""
WALKERS = {"claim_runs", "claim_activities", "promote_due", "look"}
"""These look for the first row of a queue, and so walk over dead ones that are still seen."""
DEAD_PER_BUFFER = 50


@pytest.mark.parametrize("mode", ["generic", "custom"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_no_statement_reads_the_crowd(dsn: str, shape: str, mode: str) -> None:
    await plan_functions(dsn, f"force_{mode}_plan")
    walk = ROWS // DEAD_PER_BUFFER if shape == SEEN_DEAD else 0
    budgets = {name: most + walk * (name in WALKERS) for name, most in BUDGETS.items()}
    over: dict[str, int] = {}
    async with shaped(dsn, shape):
        rig = PostgresRig(dsn)
        rig.store = rig.other = store = WatchedStore(dsn, f"force_{mode}_plan")
        await store.open()
        # The first turn fills the caches of the connections: plans, and what is in the catalogue.
        async for _, call in calls(rig, "warm"):
            await call()
        # Where autovacuum came by, a call reads the catalogue again, and that counts, too. What is
        # a call's own is there every time.
        for turn in "wvu":
            spent = await spend(rig, store, turn)
            assert spent.keys() == BUDGETS.keys()
            over = {name: count for name, count in spent.items() if count > budgets[name]}
            if not over:
                break
        await store.close()
    assert not over


async def spend(rig: PostgresRig, store: WatchedStore, turn: str) -> dict[str, int]:
    """Make every call once; return the buffers of each statement, and check its plans."""
    spent: dict[str, int] = {}
    async for name, call in calls(rig, turn):
        store.take()
        await call()
        plans, buffers = store.take()
        assert plans
        for plan in plans:
            check(plan, name)
        for statement, count in buffers.items():
            spent[statement] = max(count, spent.get(statement, 0))
    return spent


@pytest.mark.parametrize("mode", ["generic", "custom"])
async def test_runs_start_and_end_by_look_ups_after_a_quiet_hour(dsn: str, mode: str) -> None:
    await plan_functions(dsn, f"force_{mode}_plan")
    async with shaped(dsn, EMPTIED_THEN_FULL):
        rig = PostgresRig(dsn)
        rig.store = store = WatchedStore(dsn, f"force_{mode}_plan")
        await store.open()
        try:
            session = await rig.session()
            starts = [new_run(f"fresh{n}", queue="fresh") for n in range(8)]
            store.take()
            await store.start_runs(starts)
            await store.send([Message(5, workflow_id="fresh1", request_id="r")])
            runs, _, _ = await store.claim_runs(session, ["fresh"], [TYPE], 8)
            assert len(runs) == 8
            await store.commit([change(run, b"b") for run in runs])
            end = Closing(RunState.TERMINATED)
            ends = [change(run, b"e", seq=2, closing=end) for run in runs]
            assert set((await store.commit(ends)).verdicts) == {Verdict.ACCEPTED}
            plans, _ = store.take()
            for plan in plans:
                check(plan, "after a quiet hour")
        finally:
            await store.close()


@pytest.mark.parametrize("mode", ["generic", "custom"])
async def test_a_key_is_found_among_many(dsn: str, mode: str) -> None:
    await plan_functions(dsn, f"force_{mode}_plan")
    async with (
        shaped(dsn, "sleeping"),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
    ):
        await conn.execute(
            "UPDATE durable.run SET dedup_key = workflow_id, debounce_key = workflow_id, state = 2"
        )
        await conn.execute("VACUUM ANALYZE durable.run")
        store = WatchedStore(dsn, f"force_{mode}_plan")
        await store.open()
        for turn in "ab":
            store.take()
            held = [
                new_run(f"{turn}1", dedup_key="sleeping1"),
                new_run(f"{turn}2", debounce_key="sleeping2", start_delay_us=HOUR_US),
                new_run(f"{turn}3", dedup_key=f"{turn}3"),
            ]
            started = await store.start_runs(held)
            assert [each.holder_id for each in started] == ["sleeping1", "sleeping2", None]
            put_off = replace(held[1], run_id=started[1].run_id, start_at_us=1)
            assert await store.replace_start(put_off)
            plans, buffers = store.take()
        await store.close()
    for plan in plans:
        check(plan, "a start with a key")
    assert max(buffers.values()) < BUDGETS["start_runs"], buffers


@pytest.mark.parametrize("mode", ["generic", "custom"])
async def test_a_page_reads_no_further_than_its_last_run(dsn: str, mode: str) -> None:
    await plan_functions(dsn, f"force_{mode}_plan")
    async with shaped(dsn, "sleeping"):
        store = WatchedStore(dsn, f"force_{mode}_plan")
        await store.open()
        try:
            page = await store.open_page(OpenRuns(), limit=5)
            few = OpenRuns(ids=("sleeping1", "sleeping9999", "nobody"))
            await store.open_page(few)
            store.take()
            after = await store.open_page(OpenRuns(), after=page[-1].run_id, limit=5)
            named = await store.open_page(few)
            plans, buffers = store.take()
        finally:
            await store.close()
    assert [view.run_id > page[-1].run_id for view in after] == [True] * 5
    assert {view.workflow_id for view in named} == {"sleeping1", "sleeping9999"}
    for plan in plans:
        check(plan, "open_page")
    assert buffers["open_page"] < 60


async def test_a_listing_is_seen_to_read_them_all(dsn: str) -> None:
    # The measure itself: what reads the crowd is noticed.
    async with shaped(dsn, "sleeping"):
        store = WatchedStore(dsn, "force_generic_plan")
        await store.count_open(OpenRuns())
        plans, buffers = store.take()
        await store.close()

    (listing,) = [plan for plan in plans if any(node.table == "run" for node in plan.nodes)]
    with pytest.raises(AssertionError, match="count_open"):
        check(listing, "count_open")
    assert buffers["count_open"] > ROWS // 100


async def settle(dsn: str) -> None:
    """Wait until no connection of a store to this database is left: then all is counted."""
    async with (
        asyncio.timeout(20),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn,
    ):
        while True:
            cursor = await conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND backend_type = 'client backend' "
                "AND application_name = 'durable'"
            )
            row = await cursor.fetchone()
            if row is not None and row[0] == 0:
                return


async def test_claims_flushes_and_heartbeats_touch_no_index(postgres: PostgresRig) -> None:
    session = await postgres.session()
    run = await postgres.owned("a", session)

    for seq in range(1, 31):
        await postgres.accept(change(run, b"b", seq=seq, timers=[NewTimer(seq, 1)]))
        await postgres.store.heartbeat([session], HOUR_US)

    await postgres.store.close()
    await postgres.other.close()
    await settle(postgres.dsn)
    rows: list[tuple[str, int, int]] = []
    # PostgreSQL 14 counts in a process of its own, which may be behind.
    async with (
        asyncio.timeout(20),
        await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as conn,
    ):
        while sum(updates for _, updates, _ in rows) < 31 + 30:
            cursor = await conn.execute(
                "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables "
                "WHERE relname IN ('run', 'session') ORDER BY 1"
            )
            rows = await cursor.fetchall()
    assert rows == [("run", 31, 31), ("session", 30, 30)]
