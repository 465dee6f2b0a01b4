"""Bulk: the commands that do the same to every run that fits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import click

from durable.cli.report import Commands, show_json, show_table
from durable.cli.reset import POINT
from durable.cli.runs import SEARCH, STATES, json_of, moment, with_client
from durable.cli.target import Moment, database_options, find_target
from durable.client import BulkResult, Client, RunFilter
from durable.events import RunState, RunView

F = TypeVar("F", bound=Callable[..., Any])

CLOSED = (
    click.option("--closed-after", type=Moment(), help="Closed then or later; with --state."),
    click.option("--closed-before", type=Moment(), help="Closed before; with --state."),
)
"""For what is done to closed runs."""

SHOWN = 5
"""Runs that --dry-run and the question show."""

Act = Callable[[Client, RunFilter, Callable[[BulkResult], None]], Awaitable[BulkResult]]


@click.group(cls=Commands)
def bulk() -> None:
    """Do the same to every open run that fits.

    Shows how many there are and asks first; --yes does not ask, --dry-run only shows. What is done
    is done page by page: after an interruption the same command goes on with the rest.

    \b
      durable bulk cancel --type order --search customer=Ann --dry-run
      durable bulk pause --queue gpu --reason "the driver is updated"
      durable bulk resume --queue gpu --yes
      durable bulk signal recheck --id-prefix order-2026-
      durable bulk unpark --all
      durable bulk terminate --ids-from ids.txt
      durable bulk reset --state failed --closed-after 2026-12-01T00:00:00Z --to-last-turn
    """


def filter_options(command: F) -> F:
    """The options that say which runs, and whether to ask."""
    options = (
        click.option("--type", "workflow_type", help="Only runs of this workflow type."),
        click.option(
            "--state",
            "states",
            multiple=True,
            type=click.Choice(STATES),
            help="May be repeated. Closed ones are for reset.",
        ),
        click.option("--queue", "-q", help="Only runs of this task queue."),
        click.option("--id-prefix", help="Only runs whose id begins so."),
        click.option("--search", "search", **SEARCH, help="Only with this attribute; repeatable."),
        click.option("--id", "ids", multiple=True, help="This workflow id; repeatable."),
        click.option(
            "--ids-from",
            type=click.File(),
            help="Workflow ids from a file, one to a line; - is what is piped in.",
        ),
        click.option("--started-after", type=Moment(), help="Started then or later."),
        click.option("--started-before", type=Moment(), help="Started before."),
        click.option("--all", "everything", is_flag=True, help="Every open run."),
        click.option("--dry-run", is_flag=True, help="Show how many fit, and the first few."),
        click.option("--yes", "-y", is_flag=True, help="Do not ask."),
    )
    for option in reversed(options):
        command = option(command)
    return database_options(command)


def ids_of(options: dict[str, Any]) -> list[str] | None:
    """The ids that were given, in both ways; None: none were."""
    ids, file = list(options.pop("ids")), options.pop("ids_from")
    if file is not None:
        ids += [line.strip() for line in file if line.strip()]
    return ids if ids or file is not None else None


def run(act: Act, verb: str, only: RunState | None, options: dict[str, Any]) -> None:
    """Show what fits, ask, do it, and print the counts as JSON."""
    options["ids"] = ids_of(options)
    is_dry, is_sure = options.pop("dry_run"), options.pop("yes")
    target = find_target(options.pop("dsn"), options.pop("schema"))
    states = [RunState[each.upper()] for each in options.pop("states")]
    if only is not None and states not in ([], [only]):
        raise click.UsageError(f"{verb} is for runs that are {only.name.lower()}")
    search = dict(options.pop("search"))
    asked = RunFilter(states=tuple(states), search=search or None, **options)
    if asked == RunFilter():
        raise click.UsageError("say which runs; --all for every open run")
    shown = asked if only is None else RunFilter(states=(only,), search=search or None, **options)

    async def look(client: Client) -> tuple[int, Sequence[RunView]]:
        if any(state >= RunState.COMPLETED for state in shown.states):
            return await first_of(client, shown)
        return await client.count(shown), await client.page(shown, limit=SHOWN)

    if is_dry or not is_sure:
        count, first = with_client(target, look)
        show_first(count, first, to_stderr=not is_dry)
        if is_dry:
            return
        click.confirm(f"{verb} {count} runs?", abort=True, err=True)

    def progress(result: BulkResult) -> None:
        click.echo(f"\r{verb}: {result.done} done, {result.skipped} skipped", nl=False, err=True)

    result = with_client(target, lambda client: act(client, asked, progress))
    click.echo("", err=True)
    shown_counts: dict[str, Any] = {"done": result.done, "skipped": result.skipped}
    if asked.ids is not None:
        shown_counts["missing"] = result.missing
    if result.failed:
        shown_counts |= {"failed": result.failed, "errors": dict(result.errors)}
    show_json(shown_counts)
    if result.failed:
        raise SystemExit(1)


async def first_of(client: Client, runs: RunFilter) -> tuple[int, Sequence[RunView]]:
    """How many runs fit, closed ones among them, and the first few."""
    count = 0
    first: list[RunView] = []
    async for view in client.list_all(
        workflow_type=runs.workflow_type,
        states=runs.states,
        search=runs.search,
        queue=runs.queue,
        id_prefix=runs.id_prefix,
        ids=runs.ids,
        started_after=runs.started_after,
        started_before=runs.started_before,
        closed_after=runs.closed_after,
        closed_before=runs.closed_before,
        limit=1000,
    ):
        count += 1
        if len(first) < SHOWN:
            first.append(view)
    return count, first


def show_first(count: int, first: Sequence[RunView], *, to_stderr: bool) -> None:
    """How many runs fit, and the first few."""
    more = f", the first {len(first)}:" if count > len(first) else ""
    click.echo(f"{count} runs{more}", err=to_stderr)
    if to_stderr or not first:
        return
    show_table(
        ("id", "type", "state", "started", "run"),
        [
            (
                view.workflow_id,
                view.workflow_type,
                view.state.name.lower(),
                moment(view.created_us),
                view.run_id,
            )
            for view in first
        ],
    )


@bulk.command()
@click.option("--reason", default="", help="Told to the runs.")
@filter_options
def cancel(reason: str, **options: Any) -> None:
    """Ask runs to end: their code gets a CancelledError and may clean up."""
    run(
        lambda client, runs, tell: client.cancel_many(runs, reason=reason, progress=tell),
        "cancel",
        None,
        options,
    )


@bulk.command()
@click.option("--reason", default="", help="Kept with the runs.")
@filter_options
def terminate(reason: str, **options: Any) -> None:
    """End runs from outside, without running their code."""
    run(
        lambda client, runs, tell: client.terminate_many(runs, reason=reason, progress=tell),
        "terminate",
        None,
        options,
    )


@bulk.command()
@click.argument("name")
@click.argument("value", required=False, metavar="[JSON]")
@click.option("--request-id", help="A repeated command with it signals no run twice.")
@filter_options
def signal(name: str, value: str | None, request_id: str | None, **options: Any) -> None:
    """Send signal NAME to runs."""
    args = [] if value is None else [json_of(value, "the signal's value")]
    run(
        lambda client, runs, tell: client.signal_matching(
            runs, name, *args, request_id=request_id, progress=tell
        ),
        "signal",
        None,
        options,
    )


@bulk.command()
@click.option("--reason", default="", help="Kept with the runs while they are paused.")
@filter_options
def pause(reason: str, **options: Any) -> None:
    """Stop runs until they are resumed."""
    run(
        lambda client, runs, tell: client.pause_many(runs, reason=reason, progress=tell),
        "pause",
        None,
        options,
    )


@bulk.command()
@filter_options
def resume(**options: Any) -> None:
    """Let paused runs go on where they were."""
    run(
        lambda client, runs, tell: client.resume_many(runs, progress=tell),
        "resume",
        RunState.PAUSED,
        options,
    )


@bulk.command()
@filter_options
def unpark(**options: Any) -> None:
    """Let parked runs be tried again now."""
    run(
        lambda client, runs, tell: client.unpark_many(runs, progress=tell),
        "unpark",
        RunState.PARKED,
        options,
    )


@bulk.command()
@POINT[0]
@POINT[1]
@POINT[2]
@click.option("--reason", default="", help="Kept with the runs that are ended.")
@click.option("--drop-signals", is_flag=True, help="Do not send later signals again.")
@CLOSED[0]
@CLOSED[1]
@filter_options
def reset(
    reason: str,
    drop_signals: bool,
    to_event: int | None,
    before_activity: str | None,
    to_last_turn: bool,
    **options: Any,
) -> None:
    """Let runs go on from an earlier point of their histories, as `durable reset` does.

    With `--state failed` and its like also closed runs, of each id the latest; `--closed-after` and
    `--closed-before` say when they ended.
    """
    run(
        lambda client, runs, tell: client.reset_many(
            runs,
            to_event=to_event,
            before_activity=before_activity,
            to_last_turn=to_last_turn,
            reason=reason,
            keep_signals=not drop_signals,
            progress=tell,
        ),
        "reset",
        None,
        options,
    )
