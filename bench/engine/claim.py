"""Claim: what taking work costs when the tables are full.

A million sleeping runs (with a timer each), a million that are ready (with a wake token each), and
ten million closed ones; once almost empty and once full, so that growth shows. Buffers are what
pg_stat_statements counted for the claiming statement alone.
"""

import asyncio
import os
import time
from dataclasses import dataclass

import psycopg

from bench.engine.fleet import DATABASE, percentile
from bench.engine.setting import Setting
from bench.report import Goal, Row, number, progress
from durable.events import SessionInfo
from durable.store.postgres import PostgresStore

LEASE_US = 3_600_000_000
FILL_CHUNK = 500_000
BATCH = 50

RUNS = """
insert into durable.run (run_id, workflow_id, workflow_type, queue, head_hash, part)
select ('{prefix}' || lpad(to_hex(i), 24, '0'))::uuid, '{prefix}-' || i, 'steps', 'default', 0, 1
from generate_series({begin}, {end}) i
"""
TOKENS = """
insert into durable.task (queue, priority, kind, type, run_id)
select 'default', 0, 1, 'steps', ('{prefix}' || lpad(to_hex(i), 24, '0'))::uuid
from generate_series({begin}, {end}) i
"""
TIMERS = """
insert into durable.timer (run_id, ref, kind, due_at)
select ('{prefix}' || lpad(to_hex(i), 24, '0'))::uuid, 2, 1,
       now() + interval '1 day' + i * interval '1 second'
from generate_series({begin}, {end}) i
"""
CLOSED = """
insert into durable.closed_run (part, run_id, workflow_id, workflow_type, queue, state, next_seq,
                                head_hash, created_at, result)
select 1, ('{prefix}' || lpad(to_hex(i), 24, '0'))::uuid, '{prefix}-' || i, 'steps', 'default', 10,
       3, 0, now(), '45'
from generate_series({begin}, {end}) i
"""


@dataclass(frozen=True)
class Fill:
    """How many runs of each kind."""

    sleeping: int
    ready: int
    closed: int

    def text(self) -> str:
        """For people."""
        return f"{self.sleeping:,} sleeping, {self.ready:,} ready, {self.closed:,} closed"


@dataclass(frozen=True)
class Claimed:
    """What claiming cost."""

    p50_ms: float
    p99_ms: float
    buffers: float
    """Of a claim of one run."""
    batch_p99_ms: float
    """Of a claim of `BATCH` runs."""


def fill(connection: psycopg.Connection[object], amounts: Fill) -> None:
    """Put the runs there, and let the tables be as after a night's vacuum."""
    for prefix, count, texts in (
        ("00000001", amounts.sleeping, (RUNS, TIMERS)),
        ("00000002", amounts.ready, (RUNS, TOKENS)),
        ("00000003", amounts.closed, (CLOSED,)),
    ):
        for text in texts:
            for begin in range(1, count + 1, FILL_CHUNK):
                end = min(begin + FILL_CHUNK - 1, count)
                statement = text.format(prefix=prefix, begin=begin, end=end)
                connection.execute(statement.encode())
    connection.execute("vacuum (analyze) durable.run")
    connection.execute("vacuum (analyze) durable.task")
    connection.execute("vacuum (analyze) durable.timer")
    connection.execute("vacuum (analyze) durable.closed_run")


async def claim_many(dsn: str, claims: int) -> Claimed:
    """Claim one run at a time, then batches."""
    store = PostgresStore(dsn)
    await store.open()
    try:
        session = int.from_bytes(os.urandom(6), "big")
        info = SessionInfo(session, "bench", os.getpid(), "bench", ["default"])
        await store.register_session(info, LEASE_US)
        await time_claims(store, session, 20, 1)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("select pg_stat_statements_reset()")
        ones = await time_claims(store, session, claims, 1)
        with psycopg.connect(dsn, autocommit=True) as connection:
            row = connection.execute(
                "select sum(shared_blks_hit + shared_blks_read)::float8 / sum(calls) "
                "from pg_stat_statements where query ilike '%claim_runs(%'"
            ).fetchone()
        batches = await time_claims(store, session, claims // 4, BATCH)
    finally:
        await store.close()
    return Claimed(
        p50_ms=1e3 * percentile(ones, 50),
        p99_ms=1e3 * percentile(ones, 99),
        buffers=float(row[0]) if row and row[0] is not None else 0.0,
        batch_p99_ms=1e3 * percentile(batches, 99),
    )


async def time_claims(store: PostgresStore, session: int, claims: int, limit: int) -> list[float]:
    """Seconds of each claim; every claim must get what it asks for."""
    taken = []
    for _ in range(claims):
        begin = time.perf_counter()
        runs, _, _ = await store.claim_runs(session, ["default"], ["steps"], limit)
        taken.append(time.perf_counter() - begin)
        assert len(runs) == limit, f"claimed {len(runs)} of {limit}"
    return taken


async def claim(setting: Setting) -> list[Row]:
    """`claim`: near empty, then full."""
    claims = 400
    small = Fill(1000, 20_000, 1000)
    full = Fill(10_000, 20_000, 100_000) if setting.quick else Fill(10**6, 10**6, 10**7)
    found = []
    for amounts in (small, full):
        dsn = setting.database.create_ours(DATABASE)
        progress(f"claim: filling with {amounts.text()}")
        with psycopg.connect(dsn, autocommit=True) as connection:
            await asyncio.to_thread(fill, connection, amounts)
        setting.database.checkpoint()
        found.append(await claim_many(dsn, claims))
        progress(f"claim: p99 {number(found[-1].p99_ms)} ms, {number(found[-1].buffers)} buffers")
    empty, loaded = found
    note = f"{full.text()}; {BATCH} at once: p99 {number(loaded.batch_p99_ms)} ms"
    return [
        Row("claim", "ms p99", [loaded.p99_ms], goals=[Goal(value=10)], note=note),
        Row(
            "claim-buffers",
            "buffers",
            [loaded.buffers],
            goals=[Goal(value=20)],
            note=f"claim of one run; near empty: {number(empty.buffers)}",
        ),
        Row(
            "claim-flat",
            "x",
            [loaded.p50_ms / empty.p50_ms],
            goals=[Goal(value=1.5)],
            note="p50 full over p50 near empty",
        ),
    ]
