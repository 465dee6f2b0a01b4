"""What a claim reads of a queue stays flat, whatever stands in it and whoever may not run now.

Counted in buffers of the whole call, on a connection that has made the same call before.
"""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest
from support.store_rig import QUEUE, PostgresRig

from durable.store.limits import Limits

CROWD = 100_000
FAIR_START = 1 << 61
BUFFERS_MAX = 45
"""Of a claim of one attempt: its token, its row and its four index entries, run and session."""

SEED = """
    INSERT INTO durable.run (run_id, workflow_id, workflow_type, queue, head_hash, part, state)
    SELECT gen_random_uuid(), 'w' || n, 'order', 'q', 1, 1, 0 FROM generate_series(1, 1000) n;
    INSERT INTO durable.activity (run_id, ref, attempt, state, priority, scheduled_at, name, queue,
                                  input, options, policy)
    SELECT run_id, n, 1, {state}, 0, now(), 'pay', 'q', '', '', '{{"fairness_key": "a"}}'
    FROM durable.run, generate_series(1, {count} / 1000) n;
    INSERT INTO durable.fair_clock VALUES ('q', 0, {start});
    INSERT INTO durable.fair_key VALUES ('q', 0, 'a', {start} + {count} * 1000000::bigint, 1000000)
"""
TOKENS = """
    INSERT INTO durable.task (id, queue, priority, kind, type, run_id, ref)
    OVERRIDING SYSTEM VALUE
    SELECT {start} + 1000000 * row_number() OVER (), queue, priority, 2, name, run_id, ref
    FROM durable.activity WHERE state = 1
"""
TOKENS_AGAIN = """
    WITH gone AS (DELETE FROM durable.task)
    INSERT INTO durable.task (queue, priority, kind, type, run_id, ref)
    SELECT queue, priority, 2, name, run_id, ref FROM durable.activity
"""
CLAIM = "SELECT * FROM durable.claim_activities({session}, '{{q}}', '{{pay}}', {limit})"


async def seed(conn: psycopg.AsyncConnection[Any], count: int, *, state: int = 1) -> None:
    """So many attempts of one key in the queue (or held), with right statistics."""
    for statement in (SEED + ";" + TOKENS).split(";"):
        text = statement.format(state=state, count=count, start=FAIR_START)
        await conn.execute(text.encode())
    await conn.execute("VACUUM ANALYZE durable.task, durable.activity, durable.run")


async def claim_cost(
    conn: psycopg.AsyncConnection[Any], session: int, limit: int = 1
) -> tuple[int, int]:
    """Buffers that a claim touches, and how many attempts it got."""
    text = "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + CLAIM.format(session=session, limit=limit)
    row = await (await conn.execute(text.encode())).fetchone()
    assert row is not None
    (found,) = json.loads(json.dumps(row[0]))
    plan = found["Plan"]
    return plan["Shared Hit Blocks"] + plan["Shared Read Blocks"], int(plan["Actual Rows"])


async def warm_costs(
    conn: psycopg.AsyncConnection[Any], session: int, count: int = 5
) -> list[tuple[int, int]]:
    await claim_cost(conn, session)
    return [await claim_cost(conn, session) for _ in range(count)]


@pytest.mark.slow
async def test_a_claim_reads_no_more_of_a_long_line_of_one_key(postgres: PostgresRig) -> None:
    session = await postgres.session()
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as conn:
        await seed(conn, CROWD)
        costs = await warm_costs(conn, session)
    assert all(rows == 1 and buffers <= BUFFERS_MAX for buffers, rows in costs), costs


@pytest.mark.slow
@pytest.mark.parametrize("state", [1, 3], ids=["queued", "held"])
async def test_a_full_key_is_not_read_over_and_over(postgres: PostgresRig, state: int) -> None:
    await Limits(postgres.other).set(QUEUE, key_concurrency=2)
    session = await postgres.session()
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as conn:
        await seed(conn, 20_000, state=state)
        taken = sum([(await claim_cost(conn, session))[1] for _ in range(4)])
        costs = await warm_costs(conn, session)
    assert taken == 2
    # A claim moves at most twenty blocked attempts for each that it may take out of the way, once.
    most = BUFFERS_MAX * 20 if state == 1 else BUFFERS_MAX
    assert all(rows == 0 and buffers <= most for buffers, rows in costs), costs


async def test_a_queue_without_limits_and_keys_pays_for_neither(postgres: PostgresRig) -> None:
    session = await postgres.session()
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as conn:
        await seed(conn, 1000)
        await conn.execute("UPDATE durable.activity SET policy = '{}'")
        await conn.execute("TRUNCATE durable.fair_clock, durable.fair_key")
        await conn.execute(TOKENS_AGAIN)
        await conn.execute("VACUUM ANALYZE durable.task, durable.activity")
        (*_, (plain, rows)) = await warm_costs(conn, session)
        async with conn.transaction():
            before = await scans(conn)
            await warm_costs(conn, session)
            after = await scans(conn)
    assert rows == 1
    assert plain <= BUFFERS_MAX - 8
    assert after == before
    assert len(after) == 2


async def scans(conn: psycopg.AsyncConnection[Any]) -> list[tuple[Any, ...]]:
    """How often this transaction looked at what only fair queues need."""
    cursor = await conn.execute(
        "SELECT relname, seq_scan + idx_scan FROM pg_stat_xact_user_tables "
        "WHERE relname IN ('fair_clock', 'fair_key') ORDER BY 1"
    )
    return await cursor.fetchall()
