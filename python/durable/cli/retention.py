"""Retention: the command that says how long closed runs are kept."""

from __future__ import annotations

from typing import Any

import click

from durable.cli.report import finish
from durable.cli.target import database_options, find_target
from durable.store.postgres import PostgresStore
from durable.store.retention import DAYS_MAX, Upkeep


class Days(click.ParamType):  # type: ignore[type-arg]
    """A number of days, or ``off``."""

    name = "days"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        text = str(value)
        if text == "off":
            return text
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= DAYS_MAX:
            self.fail(f"{value!r} is not 1 to {DAYS_MAX} or off", param, ctx)
        return int(text)


@click.command()
@click.option("--days", type=Days(), metavar="N|off", help="Keep closed runs this long.")
@database_options
def retention(days: int | str | None, dsn: str | None, schema: str) -> None:
    """Show, or set, how long closed runs are kept.

    After that their results and histories are dropped, some days at a time; open runs never are.
    The running supervisors do it. `off` keeps everything.

    \b
      durable retention --days 90
      durable retention --days off
    """
    target = find_target(dsn, schema)

    async def work() -> int | None:
        store = PostgresStore(target.dsn, schema=target.schema)
        await store.open()
        try:
            upkeep = Upkeep(store)
            if days is not None:
                await upkeep.set_retention(days if isinstance(days, int) else None)
            return await upkeep.retention_days()
        finally:
            await store.close()

    kept = finish(work)
    click.echo("off: closed runs are kept for ever" if kept is None else f"{kept} days")
