"""Serve: the commands that run workers (dev, worker) and prepare the database (migrate)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from durable.cli.report import finish
from durable.cli.target import Duration, database_options, find_target
from durable.options import SupervisorOptions, WorkerOptions
from durable.runtime.dev import FOLDER, DevNotes, changes, source_folder
from durable.runtime.embedded import EmbeddedPostgres
from durable.runtime.supervisor import Supervisor
from durable.store.migrate import latest_version, render_sql
from durable.store.migrate import migrate as migrate_schema

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

log = logging.getLogger("durable.dev")


def start_logging(verbose: bool) -> None:
    """Log to stderr."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, format=LOG_FORMAT)


@click.command()
@click.argument("app")
@click.option("--dsn", envvar="DURABLE_DSN", metavar="DSN", help="Use this database instead.")
@click.option("--schema", envvar="DURABLE_SCHEMA", default="durable", show_default=True)
@click.option("--processes", "-n", type=click.IntRange(1, 1024), default=2, show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Of /metrics; 0: any.")
@click.option("--reload/--no-reload", default=True, help="Restart workers when a file changes.")
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
def dev(
    app: str,
    dsn: str | None,
    schema: str,
    processes: int,
    port: int,
    reload: bool,
    verbose: bool,
) -> None:
    """Run APP on this machine: a PostgreSQL of its own, a supervisor, two workers.

    The database lives in ./.durable and is there again at the next start. Other commands in this
    folder find it, and APP, by themselves. Workers restart when a Python file changes.

    \b
      durable dev subscription.py
      durable start subscription '{"total": 100, "cycles": 3, "cycle": "PT2S"}' --id sub-7
    """
    start_logging(verbose)
    folder = Path.cwd()
    with contextlib.ExitStack() as stack:
        if dsn is None:
            dsn = stack.enter_context(own_postgres(folder))
        migrate_schema(dsn, schema)
        supervisor = Supervisor(
            app,
            dsn,
            schema=schema,
            options=SupervisorOptions(processes=processes, http_port=port),
            worker_options=WorkerOptions(verify_values=True),
        )
        finish(lambda: serve_dev(supervisor, app, dsn, folder, reload=reload))


@contextlib.contextmanager
def own_postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL in ``folder``/.durable; stopped at the end if it was started here."""
    postgres = EmbeddedPostgres(folder / FOLDER / "postgres")
    started_here = postgres.pid is None
    try:
        yield postgres.start()
    finally:
        if started_here:
            postgres.stop()


async def serve_dev(
    supervisor: Supervisor, app: str, dsn: str, folder: Path, *, reload: bool
) -> None:
    """Serve until stopped; tell where things are; reload on changes."""
    running = asyncio.create_task(supervisor.run(handle_signals=True))
    ready = asyncio.create_task(supervisor.ready())
    reloading: asyncio.Task[None] | None = None
    try:
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done():
            notes = DevNotes(
                dsn=dsn,
                app=app,
                folder=os.fspath(folder),
                metrics_url=supervisor.metrics_url,
                pid=os.getpid(),
            )
            notes.save(folder)
            click.echo(f"database  {dsn}")
            click.echo(f"metrics   {supervisor.metrics_url}")
            click.echo("ready     start a workflow from another terminal; stop with Ctrl-C")
            if reload:
                reloading = asyncio.create_task(reload_on_change(supervisor, app, folder))
        await running
    finally:
        ready.cancel()
        if reloading is not None:
            reloading.cancel()


async def reload_on_change(supervisor: Supervisor, app: str, folder: Path) -> None:
    """Replace the workers whenever a source file of the app changes."""
    async for files in changes(source_folder(app, folder)):
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        log.info("%s%s changed; reloading", files[0], more)
        if await supervisor.reload():
            log.info("reloaded")


@click.command()
@click.argument("app")
@database_options
@click.option("--processes", "-n", type=click.IntRange(1, 1024), default=2, show_default=True)
@click.option("--queue", "-q", "queues", multiple=True, help="Queue to serve; may be repeated.")
@click.option(
    "--slots",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Activities that run at once in one process.",
)
@click.option(
    "--process-slots",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Processes for activities with executor=process, in each worker process.",
)
@click.option(
    "--queue-slots",
    type=(str, click.IntRange(1)),
    multiple=True,
    metavar="QUEUE N",
    help="Activities of a queue that run at once in one process; may be repeated.",
)
@click.option(
    "--queue-rate",
    "queue_rates",
    type=(str, click.FloatRange(0, min_open=True)),
    multiple=True,
    metavar="QUEUE N",
    help="Activities of a queue that one process starts per second; may be repeated.",
)
@click.option(
    "--lease",
    type=Duration(),
    default="10s",
    show_default=True,
    help="How long a silent worker keeps its runs.",
)
@click.option(
    "--drain",
    type=Duration(),
    default="20s",
    show_default=True,
    help="How long running activities may take to end after SIGTERM.",
)
@click.option(
    "--connect",
    type=Duration(),
    default="60s",
    show_default=True,
    help="How long to wait for a database that is not up yet.",
)
@click.option(
    "--hang",
    type=Duration(),
    default="30s",
    show_default=True,
    help="A worker that does not move this long is killed.",
)
@click.option("--build-id", help="What the code is called in `durable describe`.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where /metrics listens.")
@click.option("--port", type=click.IntRange(0, 65535), default=9464, show_default=True)
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
def worker(app: str, dsn: str | None, schema: str, verbose: bool, **settings: Any) -> None:
    """Run APP in production: a supervisor that keeps worker processes alive.

    APP is a module (shop.flows), a name in it (shop.flows:app) or a file (flows.py). The database
    must have our tables (`durable migrate`). SIGTERM and Ctrl-C drain, a second one stops at once,
    SIGHUP restarts the workers one by one. /metrics, /healthz and /readyz are on --host and --port.

    \b
      durable worker shop.flows --dsn postgresql://app@db/shop --processes 4 --queue default
    """
    start_logging(verbose)
    target = find_target(dsn, schema)
    options = SupervisorOptions(
        processes=settings["processes"],
        hang_seconds=settings["hang"].total_seconds(),
        http_host=settings["host"],
        http_port=settings["port"],
    )
    worker_options = WorkerOptions(
        queues=tuple(dict.fromkeys(settings["queues"])) or WorkerOptions().queues,
        activity_slots=settings["slots"],
        process_slots=settings["process_slots"],
        queue_slots=dict(settings["queue_slots"]),
        queue_rates=dict(settings["queue_rates"]),
        lease_seconds=settings["lease"].total_seconds(),
        drain_seconds=settings["drain"].total_seconds(),
        connect_seconds=settings["connect"].total_seconds(),
    )
    supervisor = Supervisor(
        app,
        target.dsn,
        schema=target.schema,
        options=options,
        worker_options=worker_options,
        build_id=settings["build_id"],
    )
    finish(lambda: supervisor.run(handle_signals=True))


@click.command()
@database_options
@click.option("--sql", is_flag=True, help="Print the SQL instead of running it.")
def migrate(dsn: str | None, schema: str, sql: bool) -> None:
    """Create our tables, or bring them up to date.

    Safe to run twice, and from several hosts at once. Workers never change tables; they refuse a
    database that is not up to date.

    \b
      durable migrate --dsn postgresql://owner@db/shop
      durable migrate --sql > tables.sql
    """
    if sql:
        click.echo(render_sql(schema))
        return
    target = find_target(dsn, schema)
    for name in migrate_schema(target.dsn, target.schema):
        click.echo(f"applied {name}")
    click.echo(f"schema {schema!r} is at version {latest_version()}")
