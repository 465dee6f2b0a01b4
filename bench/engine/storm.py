"""Storm: a process of its own that sends signals to one run at a given rate.

    python -m bench.engine.storm RUN_ID COUNT RATE              (the DSN in DURABLE_DSN)

It says "ready", begins at the first line on stdin, and prints the rate that it came to. Not in the
process of the benchmark, where its work would delay the others whose latency is measured.
"""

import asyncio
import os
import sys
import time

import click

from durable.client import Client
from durable.codec import DEFAULT_CODEC
from durable.events import EventKind, Message

CHUNK = 100


async def send(client: Client, run_id: str, count: int, rate: float) -> float:
    """Send ``count`` signals at the intended rate, or as fast as it goes; signals per second."""
    begin = time.perf_counter()
    for sent in range(0, count, CHUNK):
        messages = [
            Message(
                kind=EventKind.SIGNAL_RECEIVED,
                run_id=run_id,
                name="add",
                payload=DEFAULT_CODEC.encode([value]),
            )
            for value in range(sent, min(sent + CHUNK, count))
        ]
        delivered = await client.store.send(messages)
        assert all(delivered), "a signal went nowhere"
        client.hinter.work(runs_only=True)
        ahead = begin + (sent + CHUNK) / rate - time.perf_counter()
        await asyncio.sleep(max(0.0, ahead))
    return count / (time.perf_counter() - begin)


async def main(run_id: str, count: str, rate: str) -> None:
    """Connect, wait for the word, send."""
    async with Client.connect(os.environ["DURABLE_DSN"]) as client:
        click.echo("ready")
        sys.stdin.readline()
        click.echo(await send(client, run_id, int(count), float(rate)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
