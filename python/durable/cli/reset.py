"""Reset: the commands by which a run goes on from an earlier point of its history."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from durable.cli.runs import with_client
from durable.cli.target import database_options, find_target
from durable.client import Client
from durable.client.forking import ForkPlan


def point_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that name a point of a history, and whether to go there."""
    for option in reversed(
        (
            click.option("--to-event", type=int, help="Keep the history up to this event."),
            click.option(
                "--before-activity", metavar="NAME", help="Before the last call of this activity."
            ),
            click.option(
                "--to-last-turn", is_flag=True, help="Before what its code asked for last."
            ),
            click.option("--dry-run", is_flag=True, help="Show the point; change nothing."),
        )
    ):
        command = option(command)
    return command


def describe_plan(plan: ForkPlan) -> str:
    """What would be done, for people."""
    lines = [f"run {plan.run_id} goes on after event {plan.event_id} of {plan.event_count}"]
    if plan.activities:
        lines.append(f"begin again: {', '.join(plan.activities)}")
    if plan.timers:
        lines.append(f"timers that run on: {plan.timers}")
    if plan.signals:
        lines.append(f"signals after that point: {', '.join(plan.signals)}")
    return "\n".join(lines)


@click.command()
@click.argument("workflow_id", metavar="ID")
@point_options
@click.option("--reason", default="", help="Kept with the run that is ended.")
@click.option("--drop-signals", is_flag=True, help="Do not send later signals again.")
@database_options
def reset(
    workflow_id: str,
    dsn: str | None,
    schema: str,
    dry_run: bool,
    reason: str,
    drop_signals: bool,
    **point: Any,
) -> None:
    """Go on from an earlier point of a run's history. Prints the new run's id.

    An open run is ended first; then a new run of the same id begins with the history up to that
    point. `durable history ID` shows the numbers of the events. What activities did after the point
    stays done in the world, and the code may ask for it again. Signals that came later are sent
    again.

    \b
      durable reset order-7 --before-activity charge --dry-run
      durable reset order-7 --before-activity charge --reason "wrong price"
      durable reset order-7 --to-event 12 --drop-signals
    """

    async def work(client: Client) -> str:
        handle = client.get_handle(workflow_id)
        if dry_run:
            return describe_plan(await handle.plan_reset(**point))
        again = await handle.reset(**point, reason=reason, keep_signals=not drop_signals)
        return str(again.run_id)

    click.echo(with_client(find_target(dsn, schema), work))


@click.command()
@click.argument("workflow_id", metavar="ID")
@click.argument("new_id", metavar="NEW_ID")
@point_options
@click.option("--keep-signals", is_flag=True, help="Send later signals to the new run too.")
@database_options
def fork(
    workflow_id: str,
    new_id: str,
    dsn: str | None,
    schema: str,
    dry_run: bool,
    keep_signals: bool,
    **point: Any,
) -> None:
    """Start a workflow NEW_ID with the first part of another's history. Prints its run id.

    The workflow ID goes on as it was; `durable reset` ends it.

    \b
      durable fork order-7 order-7-again --to-event 12
    """

    async def work(client: Client) -> str:
        handle = client.get_handle(workflow_id)
        if dry_run:
            return describe_plan(await handle.plan_reset(**point))
        copied = await handle.fork(new_id, **point, keep_signals=keep_signals)
        return str(copied.run_id)

    click.echo(with_client(find_target(dsn, schema), work))
