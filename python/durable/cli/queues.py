"""Queues: the commands that show task queues and set their limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import click

from durable.cli.report import Commands, finish, show_table
from durable.cli.target import database_options, find_target
from durable.events import QueueDepth, QueueLimits
from durable.store.limits import Limits
from durable.store.postgres import PostgresStore


def with_limits(dsn: str | None, schema: str, work: Callable[[Limits], Awaitable[Any]]) -> Any:
    """Run ``work`` on the database that a command means."""
    target = find_target(dsn, schema)

    async def connected() -> Any:
        store = PostgresStore(target.dsn, schema=target.schema)
        await store.open()
        try:
            return await work(Limits(store))
        finally:
            await store.close()

    return finish(connected)


@click.group(cls=Commands)
def queue() -> None:
    """Show task queues, and show and set their limits.

    Limits are about activities, and hold for all workers of all hosts together. A worker's own
    share of a queue is `durable worker --queue-slots` and `--queue-rate`.

    \b
      durable queue set gpu --concurrency 4
      durable queue set mail --rate 10
      durable queue set reports --per-key 1
      durable queue list
      durable queue show
    """


@queue.command("set")
@click.argument("name")
@click.option("--concurrency", type=int, help="Activities that run at once; 0 pauses the queue.")
@click.option("--rate", type=float, help="Attempts that start per second.")
@click.option("--per-key", type=int, help="Activities of one fairness key that run at once.")
@database_options
def set_limits(
    name: str,
    concurrency: int | None,
    rate: float | None,
    per_key: int | None,
    dsn: str | None,
    schema: str,
) -> None:
    """Give the queue NAME these limits instead of those it has.

    What is not given is not limited, so that without options all limits are removed. A queue's
    first limit is known to all workers after 30 seconds; changes count at once.

    \b
      durable queue set gpu --concurrency 4 --rate 10
      durable queue set gpu
    """
    with_limits(
        dsn,
        schema,
        lambda limits: limits.set(
            name, concurrency=concurrency, rate=rate, key_concurrency=per_key
        ),
    )


@queue.command("list")
@database_options
def list_limits(dsn: str | None, schema: str) -> None:
    """List the queues that have limits.

    \b
      durable queue list
    """
    found: list[QueueLimits] = with_limits(dsn, schema, lambda limits: limits.all())
    show_table(
        ("QUEUE", "CONCURRENCY", "RATE", "PER-KEY"),
        [
            (each.queue, shown(each.concurrency), shown(each.rate), shown(each.key_concurrency))
            for each in found
        ],
    )


@queue.command("show")
@database_options
def show_depths(dsn: str | None, schema: str) -> None:
    """Show how many activities wait in each queue, and for how long.

    HELD wait for a place of their fairness key, RETRYING for the time of their next attempt. What a
    worker runs straight from a workflow has not been in a queue and is not counted.

    \b
      durable queue show
    """

    async def look(limits: Limits) -> tuple[list[QueueDepth], int]:
        return await limits.store.queue_depths(), await limits.store.now_us()

    depths, now_us = with_limits(dsn, schema, look)
    show_table(
        ("QUEUE", "QUEUED", "HELD", "CLAIMED", "RETRYING", "OLDEST"),
        [
            (
                each.queue,
                str(each.queued),
                str(each.held),
                str(each.claimed),
                str(each.retrying),
                "-" if each.oldest_us is None else f"{max(now_us - each.oldest_us, 0) / 1e6:.0f}s",
            )
            for each in depths
        ],
    )


def shown(limit: float | None) -> str:
    return "-" if limit is None else f"{limit:g}"
