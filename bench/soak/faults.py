"""Faults: what is done to the fleets and to the database while the work goes on."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg

from bench.database import Database
from bench.report import ROOT

LEASE_SECONDS = 3
STOP_SECONDS_MAX = 60.0
DROPPED_SHARE = 0.6
DROP = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    f"WHERE datname = current_database() AND pid <> pg_backend_pid() AND random() < {DROPPED_SHARE}"
)


class Host:
    """A supervisor with two workers, as if on a machine of its own: one group of processes."""

    def __init__(self, dsn: str, log: Path) -> None:
        self.dsn = dsn
        self.log = log
        self.process = self.begin()

    def begin(self) -> subprocess.Popen[bytes]:
        """Start the supervisor."""
        command = [sys.executable, "-m", "durable", "worker", "bench.soak.app"]
        command += ["--processes", "2", "--lease", f"{LEASE_SECONDS}s", "--port", "0"]
        environment = {"PYTHONPATH": os.pathsep.join(["python", "."]), "DURABLE_DSN": self.dsn}
        with self.log.open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(self.process.pid).children()]
        return []

    async def drain(self) -> None:
        """Stop it as a deploy does."""
        self.process.terminate()
        await asyncio.to_thread(self.process.wait, STOP_SECONDS_MAX)

    def destroy(self) -> None:
        """Kill all of it, and what of it was stopped."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS_MAX)


class Faults:
    """One fault after another, each chosen at random."""

    def __init__(self, database: Database, dsn: str, hosts: list[Host], seed: int) -> None:
        self.database = database
        self.dsn = dsn
        self.hosts = hosts
        self.random = random.Random(seed)
        self.seen: Counter[str] = Counter()
        kinds: list[tuple[int, str, Callable[[Host], Awaitable[None]]]] = [
            (45, "worker killed", self.kill_worker),
            (15, "worker stopped and continued", self.stop_worker),
            (10, "supervisor killed", self.kill_supervisor),
            (8, "host stopped and continued", self.stop_host),
            (7, "host drained", self.drain_host),
            (10, "connections dropped", self.drop_connections),
            (5, "database restarted", self.restart_database),
        ]
        self.weights, self.names, self.calls = zip(*kinds, strict=True)

    async def go_on(self, until: float) -> None:
        """Break something every second or two, until the loop's clock says ``until``."""
        clock = asyncio.get_running_loop().time
        while clock() < until:
            await asyncio.sleep(self.random.uniform(0.2, 2.5))
            (chosen,) = self.random.choices(range(len(self.calls)), self.weights)
            await self.calls[chosen](self.random.choice(self.hosts))
            self.seen[self.names[chosen]] += 1

    async def kill_worker(self, host: Host) -> None:
        """SIGKILL to one worker."""
        for pid in self.random.sample(host.workers()[:2], k=1) if host.workers() else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def stop_worker(self, host: Host) -> None:
        """A worker sleeps for less than its lease, or for longer."""
        for pid in host.workers()[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(self.random.uniform(0.5, 2 * LEASE_SECONDS))
                os.kill(pid, signal.SIGCONT)

    async def kill_supervisor(self, host: Host) -> None:
        """The supervisor dies, alone or with its workers, and is started again."""
        if self.random.random() < 0.5:
            host.process.kill()
            host.process.wait(STOP_SECONDS_MAX)
        else:
            host.destroy()
        host.process = host.begin()

    async def stop_host(self, host: Host) -> None:
        """All processes of a host sleep, as in a virtual machine that is moved."""
        os.killpg(host.process.pid, signal.SIGSTOP)
        await asyncio.sleep(self.random.uniform(2.0, 2.5 * LEASE_SECONDS))
        os.killpg(host.process.pid, signal.SIGCONT)

    async def drain_host(self, host: Host) -> None:
        """A deploy: stopped by SIGTERM, started again."""
        await host.drain()
        host.process = host.begin()

    async def drop_connections(self, _host: Host) -> None:
        """More than half of all connections end, those of clients too."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(DROP)

    async def restart_database(self, _host: Host) -> None:
        """The server is stopped with all its sessions, or crashes, and comes back."""
        mode = self.random.choice(["fast", "immediate"])
        await asyncio.to_thread(self.database.restart, mode)
