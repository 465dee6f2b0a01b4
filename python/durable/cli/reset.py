"""Reset: the commands by which a run goes on from an earlier point of its history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import click

from durable.cli.report import show_json
from durable.cli.runs import with_client
from durable.cli.target import Duration, database_options, find_target
from durable.client import Client, WorkflowHandle
from durable.client.forking import ForkPlan

POINT = (
    click.option("--to-event", type=int, help="Keep the history up to this event."),
    click.option(
        "--before-activity", metavar="NAME", help="Before the last call of this activity."
    ),
    click.option("--to-last-turn", is_flag=True, help="Before what its code asked for last."),
)
"""Options that name a point of a history."""


def point_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that name a point of a history, and whether to go there."""
    for option in reversed(
        (
            *POINT,
            click.option("--dry-run", is_flag=True, help="Show the point; change nothing."),
            click.option("--json", "as_json", is_flag=True, help="The answer as a JSON object."),
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


def show(answer: ForkPlan | WorkflowHandle[Any], as_json: bool) -> None:
    """Print a plan, or the run that goes on."""
    if isinstance(answer, ForkPlan):
        if as_json:
            show_json(asdict(answer))
        else:
            click.echo(describe_plan(answer))
    elif as_json:
        show_json({"workflow_id": answer.workflow_id, "run_id": answer.run_id})
    else:
        click.echo(answer.run_id)


@click.command()
@click.argument("workflow_id", metavar="ID")
@point_options
@click.option("--reason", default="", help="Kept with the run that is ended.")
@click.option("--drop-signals", is_flag=True, help="Do not send later signals again.")
@click.option(
    "--timeout",
    type=Duration(),
    default=timedelta(seconds=10),
    show_default="10 s",
    help="How long a worker may take to end a run that it has, such as 30s.",
)
@database_options
def reset(
    workflow_id: str,
    dsn: str | None,
    schema: str,
    dry_run: bool,
    as_json: bool,
    reason: str,
    drop_signals: bool,
    timeout: timedelta,
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

    async def work(client: Client) -> ForkPlan | WorkflowHandle[Any]:
        handle = client.get_handle(workflow_id)
        if dry_run:
            return await handle.plan_reset(**point)
        return await handle.reset(
            **point, reason=reason, keep_signals=not drop_signals, timeout=timeout
        )

    show(with_client(find_target(dsn, schema), work), as_json)


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
    as_json: bool,
    keep_signals: bool,
    **point: Any,
) -> None:
    """Start a workflow NEW_ID with the first part of another's history. Prints its run id.

    The workflow ID goes on as it was; `durable reset` ends it.

    \b
      durable fork order-7 order-7-again --to-event 12
    """

    async def work(client: Client) -> ForkPlan | WorkflowHandle[Any]:
        handle = client.get_handle(workflow_id)
        if dry_run:
            return await handle.plan_reset(**point)
        return await handle.fork(new_id, **point, keep_signals=keep_signals)

    show(with_client(find_target(dsn, schema), work), as_json)
