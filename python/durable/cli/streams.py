"""Stream: the command that prints what a run gives out."""

from __future__ import annotations

import click
import orjson

from durable.cli.runs import with_client
from durable.cli.target import database_options, find_target
from durable.client import Client


@click.command()
@click.argument("workflow_id", metavar="ID")
@click.argument("name", metavar="NAME")
@click.option("--after", default=0, type=click.IntRange(0), help="Only items behind this offset.")
@click.option("--follow/--no-follow", default=True, help="Wait for more until it ends.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@database_options
def stream(
    workflow_id: str,
    name: str,
    after: int,
    follow: bool,
    as_json: bool,
    dsn: str | None,
    schema: str,
) -> None:
    """Print the items of a run's stream, as they come.

    \b
      durable stream chat-7 tokens
      durable stream chat-7 tokens --after 100 --no-follow --json
    """
    target = find_target(dsn, schema)

    async def work(client: Client) -> None:
        handle = client.get_handle(workflow_id)
        async for item in handle.stream(name, after, follow=follow):
            if as_json:
                row = {"offset": item.offset, "attempt": item.attempt, "value": item.value}
                click.echo(orjson.dumps(row).decode())
            else:
                is_text = isinstance(item.value, str)
                click.echo(item.value if is_text else orjson.dumps(item.value).decode())

    with_client(target, work)
