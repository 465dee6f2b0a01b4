"""Runs: the commands about one workflow run, or the list of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import orjson

from durable.cli.report import finish, plain, show_json, show_table
from durable.cli.target import (
    Attribute,
    Duration,
    Moment,
    Target,
    app_option,
    database_options,
    find_target,
)
from durable.client import Client
from durable.codec import DEFAULT_CODEC, Codec
from durable.errors import InvalidArgumentError, UnknownWorkflowError, UnreadablePayloadError
from durable.events import RunState, RunView
from durable.runtime.app import AppError

SEARCH: dict[str, Any] = {"multiple": True, "type": Attribute(), "metavar": "NAME=VALUE"}
STATES = [state.name.lower() for state in RunState]


def with_client(target: Target, work: Callable[[Client], Awaitable[Any]]) -> Any:
    """Run ``work`` with a connected client."""

    async def connected() -> Any:
        codec = codec_of(target)
        async with Client.connect(target.dsn, schema=target.schema, codec=codec) as client:
            return await work(client)

    return finish(connected)


def codec_of(target: Target) -> Codec:
    """The app's codec; the usual one where no app is known. Runs can be listed without either."""
    try:
        app = target.load()
    except AppError:
        return DEFAULT_CODEC
    return DEFAULT_CODEC if app is None else app.codec


def moment(time_us: int | None) -> str:
    """A time of the store for people: UTC, to the second."""
    if time_us is None:
        return ""
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def json_of(text: str, what: str) -> Any:
    """Parse JSON from the command line; raise InvalidArgumentError saying where it is wrong."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidArgumentError(f"{what} is not JSON: {error}") from error


def arguments_of(
    target: Target, type: str, text: str | None
) -> tuple[Any, list[Any], dict[str, Any]]:
    """What to start, and its arguments: checked against the code where the app is known."""
    app = target.load()
    if app is not None:
        definition = app.workflow(type)
        if definition is None:
            known = ", ".join(sorted(each.name for each in app.workflows if each.name)) or "none"
            raise UnknownWorkflowError(f"{app.name} has no workflow {type!r}; it has: {known}")
        args, kwargs = definition.signature.parse_json_args(text or "[]")
        return definition, list(args), dict(kwargs)
    value = [] if text is None else json_of(text, "the arguments")
    return type, value if isinstance(value, list) else [value], {}


@click.command()
@click.argument("type")
@click.argument("arguments", required=False, metavar="[JSON]")
@click.option("--id", "workflow_id", required=True, help="The workflow's id; yours to choose.")
@click.option("--queue", "-q", help="Task queue; else the workflow's own.")
@click.option("--delay", type=Duration(), help="Start this much later.")
@click.option("--at", type=Moment(), help="Start at this time.")
@click.option("--version", help="Version to record with the run.")
@click.option("--priority", type=int, default=0, show_default=True, help="Smaller goes first.")
@click.option("--run-timeout", type=Duration(), help="End each run after this long.")
@click.option(
    "--execution-timeout",
    type=Duration(),
    help="End the whole chain of runs, if it continues as new, after this long.",
)
@click.option("--memo", help="A JSON object for its code and for people.", metavar="JSON")
@click.option("--search", "search", **SEARCH, help="A search attribute to find it by; repeatable.")
@click.option("--dedup-key", help="While an open run of TYPE has this key, take that run.")
@click.option("--wait", is_flag=True, help="Wait for the result and print it.")
@app_option
@database_options
def start(
    type: str,
    arguments: str | None,
    workflow_id: str,
    dsn: str | None,
    schema: str,
    app: str | None,
    wait: bool,
    **options: Any,
) -> None:
    """Start a workflow of TYPE. Prints its run id.

    The arguments are JSON: an array of them, an object of them by name, or the one argument itself.
    With --app (or under `durable dev`) they are checked against the code before anything is
    written. An id that is taken is an error that names the run that has it.

    \b
      durable start subscription '{"total": 100, "cycles": 3, "cycle": "PT2S"}' --id sub-7
      durable start report '["2026-11"]' --id report-11 --at 2026-12-01T06:00:00Z
      durable start order '[7]' --id order-7 --search customer=Ann --memo '{"page": 3}'
    """
    if options["delay"] is not None and options["at"] is not None:
        raise click.UsageError("give --delay or --at, not both")
    target = find_target(dsn, schema, app)
    workflow, args, kwargs = arguments_of(target, type, arguments)
    memo = None if options["memo"] is None else json_of(options["memo"], "the memo")

    async def work(client: Client) -> tuple[str | None, Any]:
        handle = await client.start(
            workflow,
            *args,
            id=workflow_id,
            queue=options["queue"],
            version=options["version"],
            priority=options["priority"],
            dedup_key=options["dedup_key"],
            start_delay=options["delay"],
            start_at=options["at"],
            run_timeout=options["run_timeout"],
            execution_timeout=options["execution_timeout"],
            memo=memo,
            search=dict(options["search"]),
            **kwargs,
        )
        return handle.run_id, await handle.result() if wait else None

    run_id, value = with_client(target, work)
    if wait:
        show_json(value)
    else:
        click.echo(run_id)


@click.command()
@click.argument("workflow_id", metavar="ID")
@click.argument("name")
@click.argument("value", required=False, metavar="[JSON]")
@database_options
def signal(workflow_id: str, name: str, value: str | None, dsn: str | None, schema: str) -> None:
    """Send signal NAME to an open run. It is kept until the workflow asks for it.

    \b
      durable signal sub-7 pause
      durable signal order-12 approved '{"by": "ann"}'
    """
    args = [] if value is None else [json_of(value, "the signal's value")]
    target = find_target(dsn, schema)
    with_client(target, lambda client: client.get_handle(workflow_id).signal(name, *args))


@click.command()
@click.argument("workflow_id", metavar="ID")
@click.option("--timeout", type=Duration(), help="Give up after this long; else wait for ever.")
@database_options
def result(workflow_id: str, timeout: timedelta | None, dsn: str | None, schema: str) -> None:
    """Wait for the result of a run and print it as JSON.

    A run that did not end well is an error with its reason, and exit code 1.

    \b
      durable result sub-7 --timeout 1m
    """
    target = find_target(dsn, schema)
    seconds = None if timeout is None else timeout.total_seconds()
    show_json(with_client(target, lambda client: client.get_handle(workflow_id).result(seconds)))


@click.command("vars")
@click.argument("workflow_id", metavar="ID")
@app_option
@database_options
def variables(workflow_id: str, app: str | None, dsn: str | None, schema: str) -> None:
    """Print the variables of a run (`workflow.set_vars`), rebuilt by replay.

    Works for a run that has not started, that runs, or that ended; asks no worker, changes nothing.
    Needs the workflow's code.

    \b
      durable vars sub-7 --app subscription.py
    """
    target = find_target(dsn, schema, app)
    registry = target.load_needed().registry()

    async def work(client: Client) -> Any:
        view = await client.get_handle(workflow_id).describe()
        definition = registry.find_workflow(view.workflow_type)
        if definition is None:
            raise UnknownWorkflowError(
                f"{workflow_id} is a {view.workflow_type!r}, which {target.app} does not have; "
                "give the app that has it by --app"
            )
        # Its interceptors are around the code in each replay, so in this one.
        client.registry = registry
        return await client.get_handle(workflow_id, workflow=definition).vars()

    show_json({name: plain(value) for name, value in with_client(target, work).items()})


@click.command()
@click.argument("workflow_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@database_options
def history(workflow_id: str, as_json: bool, dsn: str | None, schema: str) -> None:
    """Print what happened in a run, event by event.

    \b
      durable history sub-7
      durable history sub-7 --json | jq .kind
    """
    target = find_target(dsn, schema)
    events = with_client(target, lambda client: client.get_handle(workflow_id).history())
    rows = [event_row(event) for event in events]
    if as_json:
        for row in rows:
            click.echo(orjson.dumps(row).decode())
        return
    show_table(
        ("id", "time", "event", "of", "name", "payload"),
        [
            (
                str(row["id"]),
                row["time"] or "",
                row["kind"],
                str(row["ref"] or ""),
                row["name"] or "",
                shorten(orjson.dumps(row["payload"]).decode())
                if row["payload"] is not None
                else "",
            )
            for row in rows
        ],
    )


def event_row(event: Any) -> dict[str, Any]:
    """An event as JSON shows it."""
    return {
        "id": event.id,
        "kind": event.kind,
        "time": moment(event.time_us),
        "ref": event.ref,
        "name": event.name,
        "payload": event.payload,
    }


def shorten(text: str, most: int = 60) -> str:
    """At most so many characters of a text."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


@click.command("list")
@click.option("--type", "workflow_type", help="Only runs of this workflow type.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES), help="May be repeated."
)
@click.option("--search", "search", **SEARCH, help="Only runs with this attribute; repeatable.")
@click.option("--queue", "-q", help="Only runs of this task queue.")
@click.option("--id-prefix", help="Only runs whose id begins so.")
@click.option("--started-after", type=Moment(), help="Started then or later.")
@click.option("--started-before", type=Moment(), help="Started before.")
@click.option("--closed-after", type=Moment(), help="Closed then or later.")
@click.option("--closed-before", type=Moment(), help="Closed before.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)
@click.option("--cursor", help="Go on after a page; it says with which cursor.")
@click.option("--json", "as_json", is_flag=True, help="Print the page and its cursor as JSON.")
@database_options
def list_runs(
    states: tuple[str, ...],
    search: tuple[tuple[str, Any], ...],
    as_json: bool,
    dsn: str | None,
    schema: str,
    **wanted: Any,
) -> None:
    """List runs, the newest first.

    A search attribute's value is JSON where it can be read so, else text: `count=3` is a number,
    `'count="3"'` is text, `customer=Ann` is text.

    \b
      durable list --state parked
      durable list --search customer=Ann --search priority=1
      durable list --state failed --closed-after 2026-12-01T00:00:00Z --json
    """
    target = find_target(dsn, schema)
    numbers = [RunState[each.upper()] for each in states]
    views = with_client(
        target, lambda client: client.list(states=numbers, search=dict(search), **wanted)
    )
    if as_json:
        show_json({"runs": [run_row(view) for view in views], "cursor": views.cursor})
        return
    show_table(
        ("id", "type", "state", "started", "closed", "run"),
        [
            (
                view.workflow_id,
                view.workflow_type,
                view.state.name.lower(),
                moment(view.created_us),
                moment(view.closed_us),
                view.run_id,
            )
            for view in views
        ],
    )
    if views.cursor is not None:
        click.echo(f"more: --cursor {views.cursor}", err=True)


def run_row(view: RunView) -> dict[str, Any]:
    """A run of a list as JSON shows it."""
    return {
        "id": view.workflow_id,
        "run": view.run_id,
        "type": view.workflow_type,
        "queue": view.queue,
        "state": view.state.name.lower(),
        "started": moment(view.created_us),
        "closed": moment(view.closed_us) or None,
        "search": None if view.search is None else orjson.loads(view.search),
    }


@click.command()
@click.argument("workflow_id", metavar="ID")
@database_options
def describe(workflow_id: str, dsn: str | None, schema: str) -> None:
    """Print where a run stands, as JSON.

    \b
      durable describe sub-7
    """
    target = find_target(dsn, schema)

    async def work(client: Client) -> tuple[RunView, dict[str, Any] | str]:
        view = await client.get_handle(workflow_id).describe()
        try:
            return view, await client.get_handle(workflow_id, view.run_id).memo()
        except UnreadablePayloadError as error:
            return view, f"({error})"

    view, memo = with_client(target, work)
    show_json(
        {
            "workflow_id": view.workflow_id,
            "run_id": view.run_id,
            "type": view.workflow_type,
            "state": view.state.name.lower(),
            "queue": view.queue,
            "version": view.version,
            "created": moment(view.created_us),
            "closed": moment(view.closed_us) or None,
            "history_batches": view.event_batches,
            "search": {} if view.search is None else json_of(view.search.decode(), "search"),
            "memo": memo,
            "failure": None if view.failure is None else json_of(view.failure.decode(), "failure"),
        }
    )


@click.command()
@click.argument("workflow_id", metavar="ID")
@database_options
def cancel(workflow_id: str, dsn: str | None, schema: str) -> None:
    """Ask a run to end: its code gets a CancelledError and may clean up.

    \b
      durable cancel sub-7
    """
    target = find_target(dsn, schema)
    with_client(target, lambda client: client.get_handle(workflow_id).cancel())


@click.command()
@click.argument("workflow_id", metavar="ID")
@click.option("--reason", default="", help="Kept with the run.")
@database_options
def terminate(workflow_id: str, reason: str, dsn: str | None, schema: str) -> None:
    """End a run from outside, without running its code.

    \b
      durable terminate sub-7 --reason "ordered twice"
    """
    target = find_target(dsn, schema)
    with_client(target, lambda client: client.get_handle(workflow_id).terminate(reason))


@click.command()
@click.argument("workflow_id", metavar="ID")
@click.option("--reason", default="", help="Kept with the run while it is paused.")
@database_options
def pause(workflow_id: str, reason: str, dsn: str | None, schema: str) -> None:
    """Stop a run until it is resumed.

    Its code gets no more turns; what reaches it waits, and activities that run now end. Its time
    limits go on. `durable list --state paused` shows all that are paused, `durable describe` why.

    \b
      durable pause sub-7 --reason "the bank looks into it"
      durable resume sub-7
    """
    target = find_target(dsn, schema)
    with_client(target, lambda client: client.get_handle(workflow_id).pause(reason))


@click.command()
@click.argument("workflow_id", metavar="ID")
@database_options
def resume(workflow_id: str, dsn: str | None, schema: str) -> None:
    """Let a paused run go on where it was.

    \b
      durable resume sub-7
    """
    target = find_target(dsn, schema)
    if not with_client(target, lambda client: client.get_handle(workflow_id).resume()):
        raise click.ClickException(f"{workflow_id} is not paused; `durable describe` shows it")


@click.command()
@click.argument("workflow_id", metavar="ID")
@database_options
def unpark(workflow_id: str, dsn: str | None, schema: str) -> None:
    """Let a parked run be tried again now, and not only when its pause is over.

    A run is parked when its code no longer matches its history, or cannot run it: `durable
    describe` shows why. Deploy code that fits, then:

    \b
      durable unpark sub-7
    """
    target = find_target(dsn, schema)
    if not with_client(target, lambda client: client.get_handle(workflow_id).unpark()):
        raise click.ClickException(f"{workflow_id} is not parked; `durable describe` shows it")


COMMANDS: tuple[click.Command, ...] = (
    start,
    signal,
    result,
    variables,
    history,
    list_runs,
    describe,
    cancel,
    terminate,
    pause,
    resume,
    unpark,
)
