"""Fleet: our side as a user runs it: a supervisor with workers, and a client in this process."""

import asyncio
import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg

from bench.engine.setting import READY_SECONDS_MAX, Setting
from bench.report import RESULTS, ROOT
from durable.client import Client

STOP_SECONDS_MAX = 40.0
RESULT_SECONDS_MAX = 120.0
APP = "bench.flows"
PROFILED_APP = "bench.engine.profiled"
DATABASE = "durable_bench"
START_MAX = 1000
ALL_ENDED = "select not exists (select from durable.run)"
DRAIN_POLL_SECONDS = 0.01

numbers = itertools.count()
"""For workflow ids that are never used twice."""


def free_port() -> int:
    """A TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Fleet:
    """A supervisor with its worker processes on a database of ours."""

    def __init__(self, dsn: str, processes: int, *, profile: Path | None = None) -> None:
        self.dsn = dsn
        self.processes = processes
        self.profile = profile
        self.port = free_port()
        RESULTS.mkdir(exist_ok=True)
        self.log = RESULTS / "durable.log"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(["python", "."])}
        if profile is not None:
            environment["BENCH_PROFILE"] = os.fspath(profile)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "bench.engine.supervise",
                    PROFILED_APP if profile else APP,
                    str(processes),
                    str(self.port),
                ],
                cwd=ROOT,
                env=environment | {"DURABLE_DSN": dsn},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def pid(self) -> int:
        """The supervisor's process id; the workers are its children."""
        return self.process.pid

    async def ready(self) -> None:
        """Wait until every worker serves."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not await asyncio.to_thread(self.answers):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the workers do not come up; see {self.log}")
            await asyncio.sleep(0.05)

    def answers(self) -> bool:
        """Whether the supervisor says that every worker is up."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        try:
            with urllib.request.urlopen(url, timeout=2) as reply:
                text = reply.read().decode()
        except (OSError, urllib.error.URLError):
            return False
        up = re.search(r"^durable_workers (\d+)", text, re.MULTILINE)
        return up is not None and int(up[1]) == self.processes

    def workers(self) -> list[int]:
        """Process ids of the workers."""
        return [child.pid for child in psutil.Process(self.pid).children()]

    def dump_profile(self) -> None:
        """Have each worker write down its profile, and wait for the files."""
        assert self.profile is not None
        files = [Path(f"{self.profile}.{pid}") for pid in self.workers()]
        for pid in self.workers():
            os.kill(pid, signal.SIGUSR1)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while not all(file.exists() for file in files) and time.monotonic() < deadline:
            time.sleep(0.05)

    def stop(self) -> None:
        """Drain and end it. Safe twice."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                for pid in self.workers():
                    os.kill(pid, signal.SIGKILL)
                self.process.kill()
                self.process.wait()


@contextlib.asynccontextmanager
async def serving(
    setting: Setting, processes: int | None = None, *, fresh: bool = True
) -> AsyncIterator[tuple[Fleet, Client]]:
    """A fleet that is up, and a client, on a new database (or the one of before)."""
    dsn = setting.database.create_ours(DATABASE) if fresh else setting.database.dsn(DATABASE)
    fleet = Fleet(dsn, processes or setting.processes, profile=setting.profile)
    try:
        await fleet.ready()
        async with Client.connect(dsn) as client:
            yield fleet, client
        if setting.profile is not None:
            fleet.dump_profile()
    finally:
        fleet.stop()


def new_ids(count: int) -> list[str]:
    """Workflow ids that are new."""
    return [f"bench-{next(numbers)}" for _ in range(count)]


async def start_many(client: Client, workflow: Any, count: int, *arguments: Any) -> list[Any]:
    """Start ``count`` runs in one transaction; their handles."""
    handles = await client.start_many(workflow, [(each, arguments) for each in new_ids(count)])
    refused = [handle for handle in handles if isinstance(handle, Exception)]
    assert not refused, refused[0]
    return handles


async def keep_in_flight(
    client: Client, workflow: Any, arguments: Sequence[Any], answer: Any, count: int, in_flight: int
) -> float:
    """Run ``count`` workflows, ``in_flight`` at a time; seconds. Every answer is checked."""
    begin = time.perf_counter()
    started, waiting = 0, set[asyncio.Task[Any]]()
    async with asyncio.timeout(RESULT_SECONDS_MAX):
        while started < count or waiting:
            room = min(in_flight - len(waiting), count - started)
            if room:
                started += room
                for handle in await start_many(client, workflow, room, *arguments):
                    waiting.add(asyncio.create_task(handle.result()))
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                assert task.result() == answer, task.result()
    return time.perf_counter() - begin


async def drain(
    client: Client,
    dsn: str,
    workflow: Any,
    arguments: Sequence[Any],
    answer: Any,
    count: int,
    begin: Callable[[], None],
) -> float:
    """Enqueue ``count`` workflows and let the fleet drain them; seconds from the enqueuing commit,
    which ``begin`` is called before, to the last one's end. Every answer is checked, untimed."""
    handles: list[Any] = []
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        for at in range(0, count, START_MAX):
            ids = new_ids(min(START_MAX, count - at))
            starts = [(each, arguments) for each in ids]
            handles += await client.start_many(workflow, starts, conn=conn)
        begin()
        began = time.perf_counter()
        await conn.commit()
        await client.store.notify()
        await conn.set_autocommit(True)
        async with asyncio.timeout(RESULT_SECONDS_MAX):
            while not (await (await conn.execute(ALL_ENDED)).fetchone() or [False])[0]:
                await asyncio.sleep(DRAIN_POLL_SECONDS)
        seconds = time.perf_counter() - began
    for at in range(0, count, START_MAX):
        chunk = handles[at : at + START_MAX]
        results = await asyncio.gather(*(handle.result() for handle in chunk))
        assert results == [answer] * len(results), results
    return seconds


@dataclass
class Probe:
    """Others at work: short workflows one after another in a few lanes, and how long each takes."""

    client: Client
    workflow: Any
    arguments: Sequence[Any]
    answer: Any
    lanes: int = 4
    seconds: list[float] = field(default_factory=list)

    async def run(self, until: Callable[[], bool]) -> None:
        """Work until told."""
        await asyncio.gather(*(self.lane(until) for _ in range(self.lanes)))

    async def lane(self, until: Callable[[], bool]) -> None:
        """One after another."""
        while not until():
            begin = time.perf_counter()
            handle = await self.client.start(self.workflow, *self.arguments, id=new_ids(1)[0])
            result = await handle.result(RESULT_SECONDS_MAX)
            self.seconds.append(time.perf_counter() - begin)
            assert result == self.answer, result

    async def run_times(self, count: int) -> None:
        """Run so many."""
        left = iter(range(count))
        await self.run(lambda: next(left, None) is None)

    async def run_for(self, seconds: float) -> list[float]:
        """Work for a time; how long each took."""
        self.seconds.clear()
        end = time.monotonic() + seconds
        await self.run(lambda: time.monotonic() > end)
        return list(self.seconds)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
