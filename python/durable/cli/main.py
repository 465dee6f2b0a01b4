"""Main: the command ``durable`` and what hangs on it."""

from __future__ import annotations

import click

from durable.cli.bulk import bulk
from durable.cli.check import check, export
from durable.cli.jobs import enqueue
from durable.cli.queues import queue
from durable.cli.report import Commands
from durable.cli.reset import fork, reset
from durable.cli.retention import retention
from durable.cli.runs import COMMANDS
from durable.cli.schedules import schedule
from durable.cli.serve import dev, migrate, worker
from durable.cli.streams import stream


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="durable-fleet", prog_name="durable")
def main() -> None:
    """Durable workflows on PostgreSQL.

    Try it: `durable dev subscription.py` in one terminal, `durable start ...` in another. Each
    command has an example in its --help. Exit codes: 0 done, 1 it failed, 2 asked wrongly.
    """


for command in (
    dev,
    worker,
    migrate,
    retention,
    queue,
    enqueue,
    schedule,
    *COMMANDS,
    stream,
    reset,
    fork,
    bulk,
    check,
    export,
):
    main.add_command(command)
