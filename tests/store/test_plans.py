"""Cost stays flat: no call of the store reads more rows because there are many others.

Measured by what the server counted, with statistics that are right, and with statistics that say
every table is empty.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import psycopg
import pytest
from support.store_rig import HOUR_US, QUEUE, TYPE, PostgresRig, change, new_run

from durable.events import (
    ActivityOutcome,
    Closing,
    EventKind,
    Message,
    NewTimer,
    QueuedActivity,
    Response,
    RunState,
)
from durable.store.limits import Limits
from durable.store.postgres import PostgresStore

ROWS = 30_000
READS_MAX = 400
"""Index entries one call may read: it touches fewer than ten runs."""

SEED = """
    INSERT INTO durable.run
        (run_id, workflow_id, workflow_type, queue, head_hash, part, state, search)
    SELECT gen_random_uuid(), 'sleeping' || n, 'order', 'q', 1, 1, 0,
           jsonb_build_object('status', 'sleeping', 'customer', n)
    FROM generate_series(1, %(rows)s) n;
    INSERT INTO durable.history SELECT 1, run_id, 0, 'x' FROM durable.run;
    INSERT INTO durable.timer SELECT run_id, 3, 1, now() + interval '1 day' FROM durable.run;
    INSERT INTO durable.inbox (run_id, kind) SELECT run_id, 4 FROM durable.run;
    INSERT INTO durable.request SELECT run_id, 'r' FROM durable.run;
    INSERT INTO durable.activity
        (run_id, ref, attempt, state, priority, scheduled_at, name, queue, input, options, policy)
    SELECT run_id, 4, 1, 0, 0, now(), 'pay', 'q', '', '', '{}' FROM durable.run;
    INSERT INTO durable.response SELECT 'r' || n FROM generate_series(1, %(rows)s) n;
    INSERT INTO durable.closed_run (part, run_id, workflow_id, workflow_type, queue, state,
                                    next_seq, head_hash, created_at, search)
    SELECT 1, gen_random_uuid(), 'closed' || n, 'order', 'q', 10, 1, 1, now(),
           jsonb_build_object('status', 'done', 'customer', n)
    FROM generate_series(1, %(rows)s) n;
    INSERT INTO durable.task (queue, priority, kind, type, run_id)
    SELECT 'elsewhere', 0, 1, 'order', run_id FROM durable.run
"""
TABLES = "run timer inbox request activity response closed_run task history session"
COUNTED = """
    SELECT relname, sum(coalesce(seq_tup_read, 0)) FROM pg_stat_user_tables GROUP BY 1
    UNION ALL
    SELECT indexrelname, sum(idx_tup_read) FROM pg_stat_user_indexes GROUP BY 1
"""

Call = Callable[[], Awaitable[object]]


@pytest.fixture(params=["right", "empty"])
async def crowded(request: pytest.FixtureRequest, postgres: PostgresRig) -> PostgresRig:
    """A database with many of everything, and statistics as named."""
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as conn:
        for table in TABLES.split():
            if table not in ("history", "closed_run"):
                await conn.execute(f"ALTER TABLE durable.{table} SET (autovacuum_enabled = off)")
        await conn.execute("ANALYZE")
        for statement in SEED.split(";"):
            await conn.execute(statement, {"rows": ROWS})
        if request.param == "right":
            await conn.execute("VACUUM ANALYZE")
    return postgres


async def reads(dsn: str) -> dict[str, int]:
    """Rows read so far, by table (sequentially) and by index."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        rows = await (await conn.execute(COUNTED)).fetchall()
    return {name: int(count) for name, count in rows if not name.startswith(("pg_", "meta"))}


async def calls(rig: PostgresRig) -> AsyncIterator[tuple[str, Call]]:
    """Every call of the hot paths, one after the other, each with something to do."""
    store = rig.store
    assert isinstance(store, PostgresStore)
    session = await rig.session(9 * HOUR_US)
    worker = await rig.session(9 * HOUR_US)
    yield "start_runs", lambda: store.start_runs([new_run(f"w{n}") for n in range(8)])
    yield "start_runs, taken", lambda: store.start_runs([new_run("w1"), new_run("closed7")])
    runs = await rig.claim(session, 4)
    yield "claim_runs", lambda: store.claim_runs(session, [QUEUE], [TYPE], 4)
    yield "claim_runs, idle", lambda: store.claim_runs(session, [QUEUE], [TYPE], 10)
    yield "send", lambda: store.send([Message(5, workflow_id="w1", request_id="r")])
    yield "inbox", lambda: store.inbox([run.run_id for run in runs])
    yield "load", lambda: store.load({run.run_id: run.part for run in runs})
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
            messages=[Message(5, workflow_id="w2", ref=4)],
            responses=[Response(run.run_id)],
        )
        for run in runs
    ]
    yield "commit", lambda: store.commit(flush)
    yield "promote_due", lambda: store.promote_due(100)
    yield "promote_due, idle", lambda: store.promote_due(100)
    attempts = await store.claim_activities(worker, [QUEUE], ["pay"], 2)
    yield "claim_activities", lambda: store.claim_activities(worker, [QUEUE], ["pay"], 10)
    await Limits(store).set(QUEUE, concurrency=100, rate=100)
    yield "claim_activities, limited", lambda: store.claim_activities(worker, [QUEUE], ["pay"], 9)
    await Limits(store).set(QUEUE)
    done = [
        ActivityOutcome(a.run_id, a.ref, a.attempt, a.token, EventKind.ACTIVITY_COMPLETED)
        for a in attempts
    ]
    yield "finish_activities", lambda: store.finish_activities(done)
    yield "owned", lambda: store.owned(session)
    yield "heartbeat", lambda: store.heartbeat([session], HOUR_US)
    yield "view", lambda: store.view(workflow_id="w1")
    yield "view, closed", lambda: store.view(workflow_id="closed7")
    few = b'{"customer":7}'
    yield "views, by attributes", lambda: store.views(search=few, workflow_type=TYPE)
    yield "first_batches", lambda: store.first_batches({run.run_id: run.part for run in runs})
    yield "closed", lambda: store.closed([run.run_id for run in runs])
    yield "responses", lambda: store.responses([run.run_id for run in runs])
    yield "end_sessions", lambda: store.end_sessions([worker])
    await store.commit([change(runs[0], seq=2, park=b"{}")])
    yield "unpark", lambda: store.unpark([runs[0].run_id])
    ends = [change(run, b"e", seq=2, closing=Closing(RunState.TERMINATED)) for run in runs[1:]]
    yield "close", lambda: store.commit(ends)
    yield "reap_sessions", store.reap_sessions


@pytest.mark.slow
async def test_no_call_reads_the_crowd(crowded: PostgresRig) -> None:
    await crowded.other.close()
    await crowded.store.close()
    before = await settled_reads(crowded.dsn)
    names = []
    async for name, call in calls(crowded):
        # Connections end, so that the server has counted what they did.
        await call()
        await crowded.store.close()
        after = await settled_reads(crowded.dsn)
        much = {
            k: n - before.get(k, 0) for k, n in after.items() if n - before.get(k, 0) > READS_MAX
        }
        assert not much, f"{name} reads {much}"
        before = after
        names.append(name)
    assert len(names) == 26

    # The measure itself: a listing does read them all.
    await crowded.store.views()
    await crowded.store.close()
    after = await settled_reads(crowded.dsn)
    assert after["run"] + after["run_pkey"] - before["run"] - before["run_pkey"] >= ROWS


async def settled_reads(dsn: str) -> dict[str, int]:
    """What the server has counted once no other connection to this database is left."""
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
                break
    return await reads(dsn)


async def test_flushes_and_heartbeats_touch_no_index(postgres: PostgresRig) -> None:
    session = await postgres.session()
    run = await postgres.owned("a", session)

    for seq in range(1, 31):
        await postgres.accept(change(run, b"b", seq=seq, timers=[NewTimer(seq, 1)]))
        await postgres.store.heartbeat([session], HOUR_US)

    await postgres.store.close()
    await postgres.other.close()
    await settled_reads(postgres.dsn)
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        rows = await (
            await conn.execute(
                "SELECT relname, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables "
                "WHERE relname IN ('run', 'session') ORDER BY 1"
            )
        ).fetchall()
    # The claim is the one update of an indexed column.
    assert rows == [("run", 31, 30), ("session", 30, 30)]
