"""Queues: the commands that show and set the limits of task queues."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import click

from durable.cli.report import Commands, finish, show_table
from durable.cli.target import database_options, find_target
from durable.events import QueueLimits
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
    """Show and set the limits of task queues.

    They are about activities, and hold for all workers of all hosts together.

    \b
      durable queue set gpu --concurrency 4
      durable queue set mail --rate 10
      durable queue list
    """


@queue.command("set")
@click.argument("name")
@click.option("--concurrency", type=int, help="Activities that run at once; 0 pauses the queue.")
@click.option("--rate", type=float, help="Attempts that start per second.")
@database_options
def set_limits(
    name: str, concurrency: int | None, rate: float | None, dsn: str | None, schema: str
) -> None:
    """Give the queue NAME these limits instead of those it has.

    What is not given is not limited, so that without options all limits are removed. A queue's
    first limit is known to all workers after 30 seconds; changes count at once.

    \b
      durable queue set gpu --concurrency 4 --rate 10
      durable queue set gpu
    """
    with_limits(dsn, schema, lambda limits: limits.set(name, concurrency=concurrency, rate=rate))


@queue.command("list")
@database_options
def list_limits(dsn: str | None, schema: str) -> None:
    """List the queues that have limits.

    \b
      durable queue list
    """
    found: list[QueueLimits] = with_limits(dsn, schema, lambda limits: limits.all())
    show_table(
        ("QUEUE", "CONCURRENCY", "RATE"),
        [(each.queue, shown(each.concurrency), shown(each.rate)) for each in found],
    )


def shown(limit: float | None) -> str:
    return "-" if limit is None else f"{limit:g}"
