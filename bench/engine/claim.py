"""Claim: what taking work costs when the tables are full.

A million sleeping runs (with a timer each), a million that are ready (with a wake token each), and
ten million closed ones. One database grows through three sizes, so that growth shows and nothing is
filled in twice. Buffers are what pg_stat_statements counted for the claiming statement alone, with
everything inside of it.
"""

import asyncio
import os
import time
from dataclasses import dataclass
from typing import Any

import psycopg

from bench.engine.fleet import DATABASE, percentile
from bench.engine.setting import Setting
from bench.report import Goal, Row, number, progress
from durable.events import SessionInfo
from durable.store.postgres import PostgresStore

LEASE_US = 3_600_000_000
FILL_CHUNK = 500_000
BATCH = 100
WARM_UP = 20
TABLES = ("run", "task", "timer", "closed_run_p1")

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


SIZES = (Fill(1000, 20_000, 1000), Fill(10**5, 10**5, 10**6), Fill(10**6, 10**6, 10**7))
QUICK_SIZES = (Fill(1000, 20_000, 1000), Fill(4000, 20_000, 20_000), Fill(10**4, 20_000, 10**5))


@dataclass(frozen=True)
class Cost:
    """What one claim costs."""

    p50_ms: float
    p99_ms: float
    buffers: float
    """Pages touched, per call."""


@dataclass(frozen=True)
class Claimed:
    """What claiming cost at one size."""

    one: Cost
    batch: Cost
    """A claim of `BATCH` runs."""


class Crowd:
    """The runs of a database, of which more are made as needed."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection
        self.made = Fill(0, 0, 0)
        self.claimed = 0
        for table in TABLES:
            # We vacuum ourselves: in the middle of a measurement it would have all plans made anew.
            self.connection.execute(
                f"alter table durable.{table} set (autovacuum_enabled = off)".encode()
            )

    def grow(self, wanted: Fill) -> None:
        """Have this many, ready ones beside those claimed, and tables as after a vacuum."""
        target = Fill(wanted.sleeping, wanted.ready + self.claimed, wanted.closed)
        self.add("00000001", self.made.sleeping, target.sleeping, (RUNS, TIMERS))
        self.add("00000002", self.made.ready, target.ready, (RUNS, TOKENS))
        self.add("00000003", self.made.closed, target.closed, (CLOSED,))
        self.made = target
        for table in TABLES:
            self.connection.execute(f"vacuum (analyze) durable.{table}".encode())

    def add(self, prefix: str, made: int, wanted: int, texts: tuple[str, ...]) -> None:
        """Insert the runs from ``made`` to ``wanted``, in pieces that tell how far it is."""
        for begin in range(made + 1, wanted + 1, FILL_CHUNK):
            end = min(begin + FILL_CHUNK - 1, wanted)
            for text in texts:
                statement = text.format(prefix=prefix, begin=begin, end=end)
                self.connection.execute(statement.encode())
            if end < wanted:
                progress(f"claim: {end:,} of {wanted:,}")


async def claim_many(dsn: str, claims: int) -> Claimed:
    """Claim one run at a time, then batches."""
    store = PostgresStore(dsn)
    await store.open()
    try:
        session = int.from_bytes(os.urandom(6), "big")
        info = SessionInfo(session, "bench", os.getpid(), "bench", ["default"])
        await store.register_session(info, LEASE_US)
        await time_claims(store, session, WARM_UP, 1)
        one = await cost_of(dsn, store, session, claims, 1)
        batch = await cost_of(dsn, store, session, claims // 8, BATCH)
    finally:
        await store.close()
    return Claimed(one, batch)


async def cost_of(dsn: str, store: PostgresStore, session: int, claims: int, limit: int) -> Cost:
    """Time claims of ``limit`` runs, and have the server count their buffers."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("select pg_stat_statements_reset()")
        times = await time_claims(store, session, claims, limit)
        row = connection.execute(
            "select sum(shared_blks_hit + shared_blks_read)::float8 / sum(calls) "
            "from pg_stat_statements where query ilike '%claim_runs(%'"
        ).fetchone()
    assert row is not None
    return Cost(1e3 * percentile(times, 50), 1e3 * percentile(times, 99), float(row[0]))


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
    """`claim`: near empty, a tenth, full."""
    claims = 400
    sizes = QUICK_SIZES if setting.quick else SIZES
    found = []
    dsn = setting.database.create_ours(DATABASE)
    with psycopg.connect(dsn, autocommit=True) as connection:
        crowd = Crowd(connection)
        for amounts in sizes:
            progress(f"claim: filling up to {amounts.text()}")
            await asyncio.to_thread(crowd.grow, amounts)
            setting.database.checkpoint()
            cost = await claim_many(dsn, claims)
            crowd.claimed += WARM_UP + claims + claims // 8 * BATCH
            found.append(cost)
            progress(
                f"claim: one {number(cost.one.p50_ms)} ms, p99 {number(cost.one.p99_ms)} ms, "
                f"{number(cost.one.buffers)} buffers; {BATCH} at once p99 "
                f"{number(cost.batch.p99_ms)} ms, {number(cost.batch.buffers / BATCH)} per run"
            )
    # Ten million rows are of no use to anybody after this.
    setting.database.execute(f"drop database {DATABASE} with (force)")
    return rows_of(found, sizes[-1])


def rows_of(found: list[Claimed], full: Fill) -> list[Row]:
    """The table's rows: the largest size, beside the smaller ones."""
    one, batch = found[-1].one, found[-1].batch

    def grown(values: list[float]) -> str:
        return "three sizes: " + ", ".join(number(value) for value in values)

    note = f"{full.text()}; {BATCH} at once: p99 {number(batch.p99_ms)} ms"
    return [
        Row("claim", "ms p99", [one.p99_ms], goals=[Goal(value=10)], note=note),
        Row(
            "claim-buffers",
            "buffers",
            [one.buffers],
            goals=[Goal(value=20)],
            note=f"claim of one run; {grown([each.one.buffers for each in found])}",
        ),
        Row(
            "claim-buffers-batch",
            "buffers/run",
            [batch.buffers / BATCH],
            goals=[Goal(value=20)],
            note=f"{BATCH} at once; {grown([each.batch.buffers / BATCH for each in found])}",
        ),
        Row(
            "claim-flat",
            "x",
            [one.p50_ms / found[0].one.p50_ms],
            goals=[Goal(value=1.5)],
            note=f"p50 full over near empty; {grown([each.one.p50_ms for each in found])} ms",
        ),
    ]
