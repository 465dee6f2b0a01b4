"""Shapes of data that make planners err: each fills a migrated database, in SQL, within seconds."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

ROWS = int(os.environ.get("DURABLE_PLAN_ROWS", "10000"))
"""Of whatever a shape has many of; ten times as many closed runs."""
SOME = 200
"""Of everything else."""

RUNS = """
    INSERT INTO durable.run (run_id, workflow_id, workflow_type, queue, head_hash, part, search)
    SELECT gen_random_uuid(), %(kind)s || n, 'order', 'q', 1, 1,
           jsonb_build_object('status', 'open', 'customer', n)
    FROM generate_series(1, %(rows)s) n;
    INSERT INTO durable.history
    SELECT 1, run_id, 0, 'x' FROM durable.run WHERE starts_with(workflow_id, %(kind)s);
"""
SLEEPING = (
    RUNS
    + """
    INSERT INTO durable.timer SELECT run_id, 3, 1, now() + interval '1 day' FROM durable.run
    WHERE starts_with(workflow_id, %(kind)s);
    INSERT INTO durable.inbox (run_id, kind) SELECT run_id, 5 FROM durable.run
    WHERE starts_with(workflow_id, %(kind)s);
    INSERT INTO durable.request SELECT run_id, 'r' FROM durable.run
    WHERE starts_with(workflow_id, %(kind)s);
    INSERT INTO durable.activity
        (run_id, ref, attempt, state, priority, scheduled_at, name, queue, input, options, policy)
    SELECT run_id, 4, 1, 0, 0, now(), 'pay', 'q', '', '', '{}' FROM durable.run
    WHERE starts_with(workflow_id, %(kind)s);
    INSERT INTO durable.response SELECT %(kind)s || n FROM generate_series(1, %(rows)s) n
"""
)
READY = (
    RUNS
    + """
    INSERT INTO durable.task (queue, priority, kind, type, run_id)
    SELECT queue, 0, 1, workflow_type, run_id FROM durable.run
    WHERE starts_with(workflow_id, %(kind)s);
    INSERT INTO durable.activity
        (run_id, ref, attempt, state, priority, scheduled_at, name, queue, input, options, policy)
    SELECT run_id, 4, 1, 1, 0, now(), 'pay', 'q', '', '', '{"start_to_close": 60}' FROM durable.run
    WHERE starts_with(workflow_id, %(kind)s);
    INSERT INTO durable.task (queue, priority, kind, type, run_id, ref)
    SELECT queue, 0, 2, name, run_id, ref FROM durable.activity WHERE state = 1
"""
)
CLOSED = """
    INSERT INTO durable.closed_run (part, run_id, workflow_id, workflow_type, queue, state,
                                    next_seq, head_hash, created_at, closed_at, result,
                                    search)
    SELECT 1, gen_random_uuid(), %(kind)s || n, 'order', 'q', 10, 2, 1,
           now() - n * interval '2 ms', now() - n * interval '1 ms', '1',
           jsonb_build_object('status', 'done', 'customer', n)
    FROM generate_series(1, %(rows)s) n;
    INSERT INTO durable.history SELECT 1, run_id, 0, 'x' FROM durable.closed_run
    WHERE starts_with(workflow_id, %(kind)s)
"""
ELSEWHERE = """
    INSERT INTO durable.task (queue, priority, kind, type, run_id, ref)
    SELECT 'crowded', 0, 1 + n %% 2, CASE n %% 2 WHEN 0 THEN 'order' ELSE 'pay' END,
           gen_random_uuid(), 4
    FROM generate_series(1, %(rows)s) n
"""
DEAD_TABLES = "task timer inbox activity request response run"
HOT_TABLES = "session run claim task timer inbox request activity response"

EMPTY_THEN_FULL = "empty, then full"
EMPTIED_THEN_FULL = "emptied, then full"
"""As after a quiet hour: statistics say that there are many pages and no row at all."""
FULL_THEN_EMPTY = "full, then empty"
SEEN_DEAD = "dead and still seen"

KINDS = {
    "sleeping": SLEEPING,
    "ready": READY,
    "closed": CLOSED,
    "elsewhere": ELSEWHERE,
}
SHAPES: dict[str, dict[str, int]] = {
    EMPTY_THEN_FULL: {"sleeping": ROWS, "closed": ROWS, "elsewhere": ROWS},
    "sleeping": {"sleeping": ROWS},
    "ready": {"ready": ROWS},
    "closed": {"closed": 10 * ROWS},
    SEEN_DEAD: {"sleeping": ROWS, "ready": ROWS},
    "one queue has nearly all": {"elsewhere": ROWS},
    FULL_THEN_EMPTY: {"sleeping": ROWS, "ready": ROWS},
    EMPTIED_THEN_FULL: {"sleeping": ROWS, "elsewhere": ROWS},
}


@asynccontextmanager
async def shaped(dsn: str, shape: str) -> AsyncIterator[None]:
    """Make the database have that shape, for as long as this is open."""
    counts = SHAPES[shape]
    connect = psycopg.AsyncConnection.connect
    async with await connect(dsn, autocommit=True) as conn, await connect(dsn) as reader:
        for table in HOT_TABLES.split():
            # Statistics are to be as the shape has them.
            await conn.execute(f"ALTER TABLE durable.{table} SET (autovacuum_enabled = off)")
        if shape == EMPTY_THEN_FULL:
            await conn.execute("ANALYZE")
        if shape == EMPTIED_THEN_FULL:
            await fill(conn, counts)
            for table in DEAD_TABLES.split():
                await conn.execute(f"DELETE FROM durable.{table}")
            await conn.execute("VACUUM (ANALYZE, TRUNCATE off)")
        await fill(conn, counts)
        if shape == SEEN_DEAD:
            await reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            await reader.execute("SELECT FROM durable.run LIMIT 1")
        late = shape in (EMPTY_THEN_FULL, EMPTIED_THEN_FULL)
        if not late:
            await conn.execute("ANALYZE")
        if shape in (SEEN_DEAD, FULL_THEN_EMPTY):
            for table in DEAD_TABLES.split():
                await conn.execute(f"DELETE FROM durable.{table}")
            await fill(conn, dict.fromkeys(KINDS, SOME), "again ")
        elif not late:
            await fill(conn, {kind: SOME for kind in KINDS if kind not in counts})
            await conn.execute("VACUUM ANALYZE")
        yield


async def fill(
    conn: psycopg.AsyncConnection[tuple[object, ...]], counts: dict[str, int], prefix: str = ""
) -> None:
    """Insert that many of each kind."""
    for kind, rows in counts.items():
        for statement in KINDS[kind].split(";"):
            parameters = {"kind": prefix + kind, "rows": rows}
            await conn.execute(statement.encode(), parameters)
