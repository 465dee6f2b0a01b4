"""`python -m bench.soak`: many runs on two hosts, while workers, hosts and database are broken.

At the end every workflow must have returned what it has to return, each row of a transactional
activity must be there once, nothing may be left in the tables of open runs, and every history must
replay. Exit code 1 where that is not so.
"""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
import psycopg

from bench.database import Database
from bench.report import RESULTS, ROOT, progress
from bench.soak import app
from bench.soak.faults import Faults, Host
from durable.client import Client
from durable.errors import StoreUnavailableError

T = TypeVar("T")
DATABASE = "durable_soak"
IN_FLIGHT = 60
TELL_SECONDS = 10.0
RESULT_SECONDS_MAX = 240.0
AGAIN_SECONDS = 0.3
SETTLE_SECONDS = 5.0
"""Hints and ends of sessions that are still under way when the last result is there."""
OPEN_TABLES = ("run", "task", "timer", "activity", "inbox")


class Soak:
    """The load, and what came of it."""

    def __init__(self, client: Client, seed: int) -> None:
        self.client = client
        self.seed = seed
        self.started = 0
        self.done = 0
        self.wrong: list[str] = []

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """As a caller does who knows that a database may be away for a while."""
        while True:
            try:
                return await call()
            except StoreUnavailableError:
                await asyncio.sleep(AGAIN_SECONDS)

    async def one(self, number: int) -> None:
        """Start a workflow, signal it, and compare its result."""
        workflow_id = f"soak-{self.seed}-{number}"
        try:
            handle = await self.insist(
                lambda: self.client.start(app.mixture, number, id=workflow_id)
            )
            self.started += 1
            for n in range(app.SIGNALS):
                key = f"{workflow_id}-{n}"
                await self.insist(partial(handle.signal, "tick", n, request_id=key))
            result = await self.insist(lambda: handle.result(RESULT_SECONDS_MAX))
            if result != app.answer(number):
                self.wrong.append(f"{workflow_id} returned {result}, not {app.answer(number)}")
            self.done += 1
        except Exception as error:
            self.wrong.append(f"{workflow_id}: {type(error).__name__}: {error}")

    async def load(self, until: float) -> None:
        """Keep so many in flight until then; wait for the last."""
        clock = asyncio.get_running_loop().time
        room = asyncio.Semaphore(IN_FLIGHT)

        async def lane(number: int) -> None:
            try:
                await self.one(number)
            finally:
                room.release()

        number = 0
        async with asyncio.TaskGroup() as group:
            while clock() < until:
                await room.acquire()
                group.create_task(lane(number))
                number += 1

    async def tell(self, faults: Faults) -> None:
        """A line every few seconds."""
        while True:
            await asyncio.sleep(TELL_SECONDS)
            progress(
                f"{self.done} of {self.started} done, {len(self.wrong)} wrong; "
                f"faults: {sum(faults.seen.values())}"
            )


def leftovers(dsn: str, done: int) -> list[str]:
    """What is in the tables that should not be, or is not that should."""
    wrong = []
    with psycopg.connect(dsn, autocommit=True) as connection:
        for table in OPEN_TABLES:
            (count,) = connection.execute(f"SELECT count(*) FROM durable.{table}").fetchone() or (
                0,
            )
            if count:
                wrong.append(f"{count} rows are left in {table}")
        rows, different = connection.execute(
            "SELECT count(*), count(DISTINCT (workflow_id, number)) FROM booking"
        ).fetchone() or (0, 0)
    if not rows == different == app.BOOKINGS * done:
        wrong.append(f"{rows} bookings, {different} different, of {app.BOOKINGS * done}")
    return wrong


def replay_all(dsn: str, done: int) -> list[str]:
    """Whether every history replays, said by `durable check`."""
    command = [sys.executable, "-m", "durable", "check", "--replay", "--closed", str(2 * done)]
    done_process = subprocess.run(
        [*command, "--dsn", dsn, "bench.soak.app"], cwd=ROOT, capture_output=True, text=True
    )
    progress(done_process.stdout.strip().splitlines()[-1] if done_process.stdout else "no replay")
    if done_process.returncode:
        return [f"replay: {done_process.stdout[-2000:]}{done_process.stderr[-2000:]}"]
    return []


async def soak(database: Database, seconds: float, seed: int, log: Path) -> Soak:
    """Work and break for so long; then wait for the last result and look at what is left."""
    dsn = database.create_ours(DATABASE)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(app.SCHEMA)
    hosts = [Host(dsn, log) for _ in range(2)]
    faults = Faults(database, dsn, hosts, seed)
    try:
        async with Client.connect(dsn) as client:
            work = Soak(client, seed)
            until = asyncio.get_running_loop().time() + seconds
            telling = asyncio.create_task(work.tell(faults))
            async with asyncio.TaskGroup() as group:
                group.create_task(faults.go_on(until))
                group.create_task(work.load(until))
            telling.cancel()
        await asyncio.sleep(SETTLE_SECONDS)
        work.wrong += leftovers(dsn, work.done)
        for host in hosts:
            await host.drain()
    finally:
        for host in hosts:
            host.destroy()
    progress("faults: " + ", ".join(f"{count} {name}" for name, count in faults.seen.items()))
    work.wrong += replay_all(dsn, work.done)
    return work


@click.command()
@click.option("--seconds", type=click.FloatRange(1), default=120.0, show_default=True)
@click.option("--seed", type=int, help="Of the faults. Default: another one each time.")
def main(seconds: float, seed: int | None) -> None:
    """Break workers, hosts and the database under load; tell whether anything was lost."""
    seed = seed if seed is not None else int(time.time())
    RESULTS.mkdir(exist_ok=True)
    log = RESULTS / "soak.log"
    progress(f"seed {seed}, {seconds:.0f} seconds and what the last runs take; log: {log}")
    with Database() as database:
        work = asyncio.run(soak(database, seconds, seed, log))
    for line in work.wrong[:20]:
        click.echo(line)
    click.echo(f"{work.done} workflows done, {len(work.wrong)} things wrong (seed {seed})")
    sys.exit(1 if work.wrong or not work.done else 0)


if __name__ == "__main__":
    main()
