"""Claim: what taking work costs when the tables are full.

A million sleeping runs (with a timer each), a million that are ready (with a wake token each), and
ten million closed ones; beside it a database with a tenth of that, and one that is nearly empty.
The three are measured in turn, so that growth shows and the machine's moods do not. Buffers are
what pg_stat_statements counted for the claiming statement alone, with everything inside of it.
"""

import asyncio
import os
import statistics
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import psycopg

from bench.database import Database
from bench.engine.fleet import DATABASE, percentile
from bench.engine.setting import Setting
from bench.report import Goal, Row, number, progress
from durable.events import SessionInfo
from durable.store.postgres import PostgresStore

LEASE_US = 3_600_000_000
FILL_CHUNK = 500_000
BATCH = 100
WARM_UP = 20
ROUNDS = 4
CLAIMS = 100
"""Claims of one run in a round, and an eighth as many of a batch."""
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


def fill(connection: psycopg.Connection[Any], wanted: Fill) -> None:
    """Have this many runs, in tables as after a vacuum."""
    for table in TABLES:
        # We vacuum ourselves: in the middle of a measurement it would have all plans made anew.
        connection.execute(f"alter table durable.{table} set (autovacuum_enabled = off)".encode())
    add(connection, "00000001", wanted.sleeping, (RUNS, TIMERS))
    add(connection, "00000002", wanted.ready, (RUNS, TOKENS))
    add(connection, "00000003", wanted.closed, (CLOSED,))
    vacuum(connection, "vacuum (analyze)")


def vacuum(connection: psycopg.Connection[Any], how: str) -> None:
    """Clean up after what was claimed, which autovacuum is not here to do."""
    for table in TABLES:
        connection.execute(f"{how} durable.{table}".encode())


def add(
    connection: psycopg.Connection[Any], prefix: str, wanted: int, texts: tuple[str, ...]
) -> None:
    """Insert so many runs, in pieces that tell how far it is."""
    for begin in range(1, wanted + 1, FILL_CHUNK):
        end = min(begin + FILL_CHUNK - 1, wanted)
        for text in texts:
            statement = text.format(prefix=prefix, begin=begin, end=end)
            connection.execute(statement.encode())
        if end < wanted:
            progress(f"claim: {end:,} of {wanted:,}")


class Claimer:
    """Who claims from one database."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.store = PostgresStore(dsn)
        self.session = int.from_bytes(os.urandom(6), "big")

    async def __aenter__(self) -> "Claimer":
        await self.store.open()
        info = SessionInfo(self.session, "bench", os.getpid(), "bench", ["default"])
        await self.store.register_session(info, LEASE_US)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.store.close()

    async def claim(self) -> Claimed:
        """Claim one run at a time, then batches, in tables as after a vacuum."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            vacuum(connection, "vacuum")
        await time_claims(self.store, self.session, WARM_UP, 1)
        one = await cost_of(self.dsn, self.store, self.session, CLAIMS, 1)
        batch = await cost_of(self.dsn, self.store, self.session, CLAIMS // 8, BATCH)
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


def filled(database: Database, name: str, wanted: Fill) -> str:
    """A database of that size; its DSN."""
    progress(f"claim: filling in {wanted.text()}")
    dsn = database.create_ours(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        fill(connection, wanted)
    return dsn


async def claim(setting: Setting) -> list[Row]:
    """`claim`: near empty, a tenth, full."""
    sizes = QUICK_SIZES if setting.quick else SIZES
    names = [f"{DATABASE}_{which}" for which in ("empty", "tenth", "full")]
    dsns = [
        await asyncio.to_thread(filled, setting.database, name, amounts)
        for name, amounts in zip(names, sizes, strict=True)
    ]
    setting.database.checkpoint()
    found: list[list[Claimed]] = [[] for _ in sizes]
    async with AsyncExitStack() as stack:
        claimers = [await stack.enter_async_context(Claimer(dsn)) for dsn in dsns]
        for turn in range(ROUNDS):
            # Each is first as often as the others.
            for which in sorted(range(len(sizes)), key=lambda which: (which + turn) % len(sizes)):
                found[which].append(await claimers[which].claim())
            cost = found[-1][-1]
            progress(
                f"claim: one {number(cost.one.p50_ms)} ms, p99 {number(cost.one.p99_ms)} ms, "
                f"{number(cost.one.buffers)} buffers; {BATCH} at once p99 "
                f"{number(cost.batch.p99_ms)} ms, {number(cost.batch.buffers / BATCH)} per run"
            )
    for name in names:
        # Ten million rows are of no use to anybody after this.
        setting.database.execute(f"drop database {name} with (force)")
    return rows_of(found, sizes[-1])


def rows_of(found: list[list[Claimed]], full: Fill) -> list[Row]:
    """The table's rows: the largest size, beside the smaller ones."""
    largest = found[-1]

    def at_sizes(read: Callable[[Claimed], float]) -> str:
        medians = [statistics.median(map(read, each)) for each in found]
        return "three sizes: " + ", ".join(number(value) for value in medians)

    def buffers(cost: Claimed) -> float:
        return cost.one.buffers

    def batch_buffers(cost: Claimed) -> float:
        return cost.batch.buffers / BATCH

    def p50_ms(cost: Claimed) -> float:
        return cost.one.p50_ms

    batch_ms = statistics.median(each.batch.p99_ms for each in largest)
    note = f"{full.text()}; {BATCH} at once: p99 {number(batch_ms)} ms"
    return [
        Row(
            "claim",
            "ms p99",
            [each.one.p99_ms for each in largest],
            goals=[Goal(value=10)],
            note=note,
        ),
        Row(
            "claim-buffers",
            "buffers",
            [*map(buffers, largest)],
            goals=[Goal(value=20)],
            note=f"claim of one run; {at_sizes(buffers)}",
        ),
        Row(
            "claim-buffers-batch",
            "buffers/run",
            [*map(batch_buffers, largest)],
            goals=[Goal(value=20)],
            note=f"{BATCH} at once; {at_sizes(batch_buffers)}",
        ),
        Row(
            "claim-flat",
            "x",
            [p50_ms(big) / p50_ms(small) for big, small in zip(largest, found[0], strict=True)],
            goals=[Goal(value=1.5)],
            note=f"p50 full over near empty; {at_sizes(p50_ms)} ms",
        ),
    ]
