"""Jobs: the command that enqueues an activity."""

from __future__ import annotations

from typing import Any

import click

from durable.cli.report import show_json
from durable.cli.runs import json_of, with_client
from durable.cli.target import Duration, Moment, Target, app_option, database_options, find_target
from durable.client import Client
from durable.errors import UnknownActivityError


def call_of(target: Target, name: str, text: str | None) -> tuple[Any, list[Any], dict[str, Any]]:
    """What to enqueue, and its arguments: checked against the code where the app is known."""
    app = target.load()
    if app is not None:
        definition = app.activity(name)
        if definition is None:
            known = ", ".join(sorted(each.name for each in app.activities)) or "none"
            raise UnknownActivityError(f"{app.name} has no activity {name!r}; it has: {known}")
        args, kwargs = definition.signature.parse_json_args(text or "[]")
        return definition, list(args), dict(kwargs)
    value = [] if text is None else json_of(text, "the arguments")
    return name, value if isinstance(value, list) else [value], {}


@click.command()
@click.argument("activity")
@click.argument("arguments", required=False, metavar="[JSON]")
@click.option("--id", "job_id", help="The job's id; else it gets one.")
@click.option("--queue", "-q", help="Task queue; else the activity's own.")
@click.option("--delay", type=Duration(), help="Start this much later.")
@click.option("--at", type=Moment(), help="Start at this time.")
@click.option("--priority", type=int, default=0, show_default=True, help="Smaller goes first.")
@click.option("--dedup-key", help="While an open job of ACTIVITY has this key, take that job.")
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@app_option
@database_options
def enqueue(
    activity: str,
    arguments: str | None,
    job_id: str | None,
    dsn: str | None,
    schema: str,
    app: str | None,
    wait: bool,
    **options: Any,
) -> None:
    """Have ACTIVITY done as a job, without a workflow. Prints the job's id.

    The arguments are JSON, as for `durable start`. A job is a run: `durable result`, `describe`,
    `history` and `cancel` take its id, and `durable list --type job:ACTIVITY` lists its like.

    With --dedup-key the id may be that of a job there is already.

    \b
      durable enqueue resize '["cat.png", 300]' --queue images
      durable enqueue report '["2026-11"]' --at 2026-12-01T06:00:00Z --id report-11
    """
    if options["delay"] is not None and options["at"] is not None:
        raise click.UsageError("give --delay or --at, not both")
    target = find_target(dsn, schema, app)
    step, args, kwargs = call_of(target, activity, arguments)

    async def work(client: Client) -> tuple[str, Any]:
        handle = await client.enqueue(step, *args, id=job_id, **options, **kwargs)
        return handle.workflow_id, await handle.result() if wait else None

    found, value = with_client(target, work)
    if wait:
        show_json(value)
    else:
        click.echo(found)
