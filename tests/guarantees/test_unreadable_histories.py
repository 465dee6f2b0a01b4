"""A history that a worker cannot read stops its own run, where it is, and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from durable import activity, workflow
from durable.client import Client
from durable.errors import WorkflowParkedError
from durable.events import RunState
from durable.runtime.worker import Worker

SOON = 20.0
NEWER = "set_byte(batch, 0, 2)"
"""A batch says first which version of the format it is in."""
DAMAGED = "set_byte(batch, length(batch) / 2, get_byte(batch, length(batch) / 2) # 4)"


@activity.defn
async def double(number: int) -> int:
    return 2 * number


@workflow.defn
async def add_later(number: int) -> int:
    first = await double(number)
    return first + await workflow.wait_signal("more", type=int)


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [(NEWER, "unknown_type", "history format 2"), (DAMAGED, "corrupt", "checksum")],
)
async def test_what_cannot_be_read_parks_its_run_until_it_can(
    client: Client,
    dsn: str,
    until: Callable[[Callable[[], Awaitable[object]]], Awaitable[None]],
    change: str,
    reason: str,
    says: str,
) -> None:
    def serve() -> Worker:
        return Worker(dsn, workflows=[add_later], activities=[double])

    bad, good = [await client.start(add_later, number, id=f"add-{number}") for number in (1, 2)]

    async def both_wait() -> bool:
        histories = [await each.history() for each in (bad, good)]
        return all(len(events) == 3 for events in histories)

    async def is_parked() -> bool:
        return (await bad.describe()).state == RunState.PARKED

    async with serve():
        await until(both_wait)
    kept = await rewrite(dsn, bad.run_id, change)
    async with serve():
        await bad.signal("more", 10)
        await good.signal("more", 10)
        await until(is_parked)
        assert await good.result(SOON) == 14
        with pytest.raises(WorkflowParkedError) as caught:
            await bad.result(timeout=0.05)
        assert reason in str(caught.value)
        assert says in str(caught.value)

    # Nothing was lost: not the run, and not the signal that came meanwhile.
    await restore(dsn, bad.run_id, kept)
    async with serve():
        await bad.unpark()
        assert await bad.result(SOON) == 12


async def rewrite(dsn: str, run_id: str | None, change: str) -> list[tuple[Any, ...]]:
    """Change the last batch of a run in the database; return what its batches were."""
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    try:
        found = await connection.execute(
            "SELECT seq, batch FROM durable.history WHERE run_id = %s ORDER BY seq", (run_id,)
        )
        kept = await found.fetchall()
        done = await connection.execute(
            f"UPDATE durable.history SET batch = {change} WHERE run_id = %s AND seq = %s",
            (run_id, kept[-1][0]),
        )
        assert done.rowcount == 1
    finally:
        await connection.close()
    return kept


async def restore(dsn: str, run_id: str | None, kept: list[tuple[Any, ...]]) -> None:
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    try:
        for seq, batch in kept:
            await connection.execute(
                "UPDATE durable.history SET batch = %s WHERE run_id = %s AND seq = %s",
                (batch, run_id, seq),
            )
    finally:
        await connection.close()
