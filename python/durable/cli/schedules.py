"""Schedules: the commands that make, show, change and remove them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

import click

from durable.cli.report import Commands, show_json, show_table
from durable.cli.runs import SEARCH, arguments_of, json_of, moment, with_client
from durable.cli.target import Duration, Moment, app_option, database_options, find_target
from durable.client import Client, ScheduleHandle
from durable.engine.schedules import OVERLAPS
from durable.events import RunView

F = TypeVar("F", bound=Callable[..., Any])


def plan_options(command: F) -> F:
    """The options that say when runs start. What is not given is the default, or stays."""
    for option in reversed(
        [
            click.option("--cron", metavar="LINE", help="Five fields: '0 9 * * 1-5'."),
            click.option("--every", type=Duration(), help="So often, counted from 1970, UTC."),
            click.option("--timezone", metavar="ZONE", help="Of --cron: Europe/Berlin. Else UTC."),
            click.option("--jitter", type=Duration(), help="Start each run up to this much later."),
            click.option("--overlap", type=click.Choice(OVERLAPS), help="While a run is open."),
            click.option("--catch-up", type=Duration(), help="Make up what is so late at most."),
        ]
    ):
        command = option(command)
    return command


def plan_of(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that were given."""
    names = ("cron", "every", "timezone", "jitter", "overlap", "catch_up")
    return {name: options[name] for name in names if options[name] is not None}


def with_schedule(
    id: str,
    dsn: str | None,
    schema: str,
    work: Callable[[ScheduleHandle], Awaitable[Any]],
    app: str | None = None,
) -> Any:
    """Run ``work`` on the schedule that a command means."""
    return with_client(find_target(dsn, schema, app), lambda client: work(client.get_schedule(id)))


@click.group(cls=Commands)
def schedule() -> None:
    """Start workflows at the times of a plan.

    A schedule is a run of its own, under the id you give it, and its runs have the id and the time.

    \b
      durable schedule create nightly report '["all"]' --cron '0 3 * * *' --timezone Europe/Berlin
      durable schedule list
      durable schedule describe nightly
      durable schedule pause nightly --reason holiday
      durable schedule resume nightly
      durable schedule trigger nightly
      durable schedule backfill nightly --from 2026-01-01T00:00Z --to 2026-01-08T00:00Z
      durable schedule update nightly --cron '0 4 * * *'
      durable schedule delete nightly
    """


@schedule.command("create")
@click.argument("id")
@click.argument("type")
@click.argument("arguments", required=False, metavar="[JSON]")
@plan_options
@click.option("--paused", is_flag=True, help="Start nothing before `durable schedule resume`.")
@click.option("--queue", "-q", help="Task queue of the schedule and its runs.")
@click.option("--priority", type=int, default=0, show_default=True, help="Smaller goes first.")
@click.option("--run-timeout", type=Duration(), help="End each run after this long.")
@click.option("--search", "search", **SEARCH, help="An attribute to find it by; repeatable.")
@app_option
@database_options
def create(
    id: str,
    type: str,
    arguments: str | None,
    dsn: str | None,
    schema: str,
    app: str | None,
    **options: Any,
) -> None:
    """Start a workflow of TYPE at the times of a plan, under the schedule ID.

    The arguments of each run are JSON: an array of them, or the one argument itself.

    \b
      durable schedule create nightly report --cron '0 3 * * *' --overlap buffer_one
      durable schedule create poll 'job:fetch' '["https://example.org"]' --every 5m
    """
    target = find_target(dsn, schema, app)
    workflow, args, kwargs = (
        (type, positional(arguments), {})
        if type.startswith("job:")
        else arguments_of(target, type, arguments)
    )
    if kwargs:
        raise click.UsageError("give the arguments of a schedule as an array")

    async def work(client: Client) -> None:
        await client.create_schedule(
            id,
            workflow,
            *args,
            **plan_of(options),
            paused=options["paused"],
            queue=options["queue"],
            priority=options["priority"],
            run_timeout=options["run_timeout"],
            search=dict(options["search"]) or None,
        )

    with_client(target, work)


def positional(text: str | None) -> list[Any]:
    """Arguments whose function is not known: an array, or the one argument itself."""
    value = [] if text is None else json_of(text, "the arguments")
    return value if isinstance(value, list) else [value]


@schedule.command("list")
@click.option("--search", "search", **SEARCH, help="Only those with this attribute; repeatable.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@database_options
def list_schedules(search: Any, limit: int, dsn: str | None, schema: str) -> None:
    """List the schedules, the newest first.

    \b
      durable schedule list --search team=shop
    """
    target = find_target(dsn, schema)
    found: list[RunView] = with_client(
        target, lambda client: client.list_schedules(search=dict(search) or None, limit=limit)
    )
    show_table(
        ("ID", "STATE", "QUEUE", "CREATED"),
        [
            (view.workflow_id, view.state.name.lower(), view.queue, moment(view.created_us))
            for view in found
        ],
    )


@schedule.command("describe")
@click.argument("id")
@database_options
def describe(id: str, dsn: str | None, schema: str) -> None:
    """Show the plan of a schedule, its next time, its runs and its counts, as JSON.

    \b
      durable schedule describe nightly
    """
    show_json(with_schedule(id, dsn, schema, lambda handle: handle.describe()))


@schedule.command("pause")
@click.argument("id")
@click.option("--reason", default="", help="Why, for whoever looks.")
@database_options
def pause(id: str, reason: str, dsn: str | None, schema: str) -> None:
    """Start no run at any time, until it is resumed.

    \b
      durable schedule pause nightly --reason holiday
    """
    with_schedule(id, dsn, schema, lambda handle: handle.pause(reason))


@schedule.command("resume")
@click.argument("id")
@database_options
def resume(id: str, dsn: str | None, schema: str) -> None:
    """Go on with the next time; those that passed meanwhile are not made up.

    \b
      durable schedule resume nightly
    """
    with_schedule(id, dsn, schema, lambda handle: handle.resume())


@schedule.command("trigger")
@click.argument("id")
@database_options
def trigger(id: str, dsn: str | None, schema: str) -> None:
    """Start a run now, whatever else runs.

    \b
      durable schedule trigger nightly
    """
    with_schedule(id, dsn, schema, lambda handle: handle.trigger())


@schedule.command("update")
@click.argument("id")
@plan_options
@click.option("--arguments", metavar="JSON", help="Of each run from now on: an array of them.")
@app_option
@database_options
def update(
    id: str,
    arguments: str | None,
    dsn: str | None,
    schema: str,
    app: str | None,
    **options: Any,
) -> None:
    """Change what is given; the rest of the plan stays as it is.

    \b
      durable schedule update nightly --cron '0 4 * * *' --overlap skip
    """
    changes = plan_of(options)
    if arguments is not None:
        changes["arguments"] = positional(arguments)
    if not changes:
        raise click.UsageError("nothing to change was given")
    with_schedule(id, dsn, schema, lambda handle: handle.update(**changes), app)


@schedule.command("backfill")
@click.argument("id")
@click.option("--from", "start", type=Moment(), required=True, help="The first time.")
@click.option("--to", "end", type=Moment(), required=True, help="The last time.")
@database_options
def backfill(id: str, start: datetime, end: datetime, dsn: str | None, schema: str) -> None:
    """Start the runs of past times now. Prints how many times there are.

    \b
      durable schedule backfill nightly --from 2026-01-01T00:00Z --to 2026-01-08T00:00Z
    """
    click.echo(with_schedule(id, dsn, schema, lambda handle: handle.backfill(start, end)))


@schedule.command("delete")
@click.argument("id")
@click.option("--reason", default="schedule deleted", show_default=True, help="Why.")
@database_options
def delete(id: str, reason: str, dsn: str | None, schema: str) -> None:
    """End the schedule. Runs that it started go on.

    \b
      durable schedule delete nightly
    """
    with_schedule(id, dsn, schema, lambda handle: handle.delete(reason))
