"""`python -m bench.engine.layouts`: WAL that a step would write if its rows were kept elsewhere.

The statements of a group commit alone, on tables of their own with the columns and indexes of ours:
as it is; without the update of the run, its owner proved by a lock on the session's row; and with
the batches of an open run in its own row, newest first, so that an update logs what is new. No
tokens, claims, starts and ends, which all layouts have; the last would besides write its batches to
the history when the run ends. Batches are as long as those of `steps-10`.
"""

import secrets
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import click
import psycopg

from bench.database import Database, WorkMeter

DATABASE = "durable_bench"
RUNS = 400
STEPS = 10
GROUP = 20
BATCH_BYTES = 46
ROUNDS = 3

INPUT = "unnest(%(run)s::uuid[], %(seq)s::int[], %(batch)s::bytea[], %(head)s::bigint[])"
UPDATE = "UPDATE x.run r SET next_seq = r.next_seq + 1, head_hash = i.head, flush = %(flush)s"
FOUND = "FROM i WHERE r.run_id = ANY (ARRAY[i.run_id]) AND r.next_seq = i.seq"
GIVEN = f"WITH i AS (SELECT * FROM {INPUT} AS i(run_id, seq, batch, head))"
LAYOUTS: dict[str, Sequence[str]] = {
    "run and history, as it is": (
        f"{GIVEN}, ok AS ({UPDATE} {FOUND} RETURNING r.part, r.run_id, i.seq, i.batch) "
        "INSERT INTO x.history SELECT part, run_id, seq, batch FROM ok",
    ),
    "history alone": (
        "SELECT 1 FROM x.session WHERE session = 1 FOR SHARE",
        f"{GIVEN} INSERT INTO x.history SELECT 1, run_id, seq, batch FROM i",
    ),
    "run alone, newest first": (f"{GIVEN} {UPDATE}, young = i.batch || r.young {FOUND}",),
}
TABLES = """
    DROP SCHEMA IF EXISTS x CASCADE;
    CREATE SCHEMA x;
    CREATE TABLE x.run (LIKE durable.run INCLUDING ALL);
    ALTER TABLE x.run ADD young bytea NOT NULL DEFAULT '';
    ALTER TABLE x.run ALTER young SET STORAGE main;
    CREATE TABLE x.history (
        part int, run_id uuid, seq int, batch bytea NOT NULL, PRIMARY KEY (part, run_id, seq));
    ALTER TABLE x.history ALTER batch SET STORAGE external;
    CREATE TABLE x.session (session bigint PRIMARY KEY);
    INSERT INTO x.session VALUES (1);
    SET jit = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
"""
START = (
    "INSERT INTO x.run "
    "(run_id, workflow_id, workflow_type, queue, version, session, head_hash, part) "
    "VALUES (%s, 'order-' || %s, 'order_workflow', 'default', 'a1b2c3', 7, 0, 1)"
)


def fill(connection: psycopg.Connection[Any]) -> list[uuid.UUID]:
    """Make the tables and the runs; each page is written to after the last checkpoint."""
    connection.execute(TABLES)
    runs = sorted(uuid.uuid4() for _ in range(RUNS))
    with connection.cursor() as cursor:
        cursor.executemany(START, [(run, str(run)) for run in runs])
    connection.execute("VACUUM x.run")
    connection.execute("CHECKPOINT")
    connection.execute("UPDATE x.run SET flush = 1")
    connection.execute("VACUUM x.run")
    return runs


def commits(runs: list[uuid.UUID], first: int) -> Iterator[dict[str, Any]]:
    """The parameters of each commit: all runs take a step, in other groups each time."""
    for seq in range(first, first + STEPS):
        rest = list(runs)
        secrets.SystemRandom().shuffle(rest)
        for n in range(0, RUNS, GROUP):
            yield {
                "run": sorted(rest[n : n + GROUP]),
                "seq": [seq] * GROUP,
                "batch": [secrets.token_bytes(BATCH_BYTES) for _ in range(GROUP)],
                "head": [secrets.randbits(62) for _ in range(GROUP)],
                "flush": secrets.randbits(62),
            }


def bytes_per_step(database: Database, connection: psycopg.Connection[Any], layout: str) -> float:
    """WAL of a round of a layout, after one that has filled the pages; checks its rows."""
    runs = fill(connection)
    used = 0.0
    for first in (1, 1 + STEPS):
        connection.execute("UPDATE x.run SET young = ''")
        connection.execute("VACUUM x.run")
        meter = WorkMeter(database, DATABASE)
        for parameters in commits(runs, first):
            with connection.transaction():
                for statement in LAYOUTS[layout]:
                    connection.execute(statement, parameters if "%(" in statement else None)
        used = meter.stop().wal_bytes
    history, young = connection.execute(
        "SELECT (SELECT count(*) FROM x.history), (SELECT sum(length(young)) FROM x.run)"
    ).fetchone() or (0, 0)
    alone = layout.startswith("run alone")
    wanted = (0, RUNS * STEPS * BATCH_BYTES) if alone else (2 * RUNS * STEPS, 0)
    assert (history, young) == wanted, (layout, history, young)
    return used / RUNS / STEPS


@click.command()
def main() -> None:
    """Print how many bytes of WAL a step takes in each layout."""
    with Database() as database:
        dsn = database.create_ours(DATABASE)
        with psycopg.connect(dsn, autocommit=True) as connection:
            found: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
            for _ in range(ROUNDS):
                for layout, samples in found.items():
                    samples.append(bytes_per_step(database, connection, layout))
    click.echo(f"{'layout':<28}{'bytes per step, least to greatest':>36}")
    for layout, samples in found.items():
        click.echo(f"{layout:<28}{min(samples):28.0f} - {max(samples):.0f}")


if __name__ == "__main__":
    main()
