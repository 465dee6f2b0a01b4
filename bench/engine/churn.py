"""Churn: what `steps-10` leaves for vacuum, by table: rows written, dead rows, updates in place.

Read from pg_stat_user_tables when the fleet has gone, for then its connections have told all.
"""

from dataclasses import dataclass

import psycopg

from bench.engine.fleet import DATABASE, serving
from bench.engine.setting import Setting
from bench.engine.throughput import Ours
from bench.report import Goal, Row, progress

STEPS = 10
HOT_GOAL = 0.95
LEAST_SHOWN = 0.001
"""Of rows per step."""
WRITTEN = """
    select relname, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del from pg_stat_user_tables
    where schemaname = 'durable' and n_tup_ins + n_tup_upd + n_tup_del > 0 order by relname
"""


@dataclass(frozen=True)
class Table:
    """What was done to one table, its parts together."""

    name: str
    inserts: int
    updates: int
    hot: int
    """Updates that touched no index."""
    deletes: int


def tables_of(dsn: str) -> list[Table]:
    """All tables that were written."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        return [Table(*row) for row in connection.execute(WRITTEN).fetchall()]


async def churn(setting: Setting) -> list[Row]:
    """`churn`: one sample of `steps-10`."""
    ours = Ours(setting, STEPS)
    done = 0
    async with serving(setting, setting.processes) as (_, client):
        for _ in range(2):
            count = ours.count
            ours.rate = await ours.run(client, count)
            done += count
    tables = tables_of(setting.database.dsn(DATABASE))
    steps = done * STEPS
    for table in tables:
        if table.inserts + table.updates < LEAST_SHOWN * steps:
            continue
        progress(
            f"churn: {table.name}: per step {table.inserts / steps:.3f} inserted, "
            f"{table.updates / steps:.3f} updated ({table.hot / steps:.3f} in place), "
            f"{table.deletes / steps:.3f} deleted"
        )
    runs = next(table for table in tables if table.name == "run")
    dead = sum(table.updates + table.deletes for table in tables)
    in_place = sum(table.hot for table in tables)
    # Claims and flushes: none of them changes an indexed column.
    flushes = runs.updates
    return [
        Row("dead-per-step", "rows/step", [dead / steps], note=f"{in_place / dead:.0%} in place"),
        Row(
            "hot-flushes",
            "of flushes",
            [runs.hot / flushes],
            goals=[Goal(value=HOT_GOAL)],
            rises=True,
        ),
    ]
