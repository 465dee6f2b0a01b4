"""Where a requirement is tried: in process, in process with a crash after every event, and on
PostgreSQL with the real worker.

`env` is all three; `skipping` the two in process, for what takes hours; `postgres` and `database`
the last one.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from durable import Client
from durable.testing import WorkflowEnvironment
from durable.testing.postgres import PostgresEnvironment

PATIENCE_SECONDS = 0.5


@pytest.fixture(scope="session")
def shared_dsn(server_dsn: str, entrance: str) -> Iterator[str]:
    """One database for all requirements; each test has a schema of its own in it."""
    name = f"durable_conformance_{secrets.token_hex(6)}"
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield make_conninfo(entrance, dbname=name)
    with psycopg.connect(server_dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(params=["memory", "crashing", "postgres"])
async def env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    """Everywhere: waits must be short, as PostgreSQL's clock is the real one."""
    around = getattr(request.module, "INTERCEPTORS", ())
    known = {
        "workflows": getattr(request.module, "WORKFLOWS", ()),
        "activities": getattr(request.module, "ACTIVITIES", ()),
    }
    if request.param == "postgres":
        dsn = request.getfixturevalue("shared_dsn")
        async with PostgresEnvironment(dsn, interceptors=around, **known) as made:
            yield made
    else:
        crash = request.param == "crashing"
        async with WorkflowEnvironment(
            crash_at_every_event=crash, patience=PATIENCE_SECONDS, interceptors=around, **known
        ) as made:
            yield made


@pytest.fixture(params=["memory", "crashing"])
async def skipping(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    """In process only, where a year takes no time."""
    crash = request.param == "crashing"
    async with WorkflowEnvironment(crash_at_every_event=crash, patience=PATIENCE_SECONDS) as made:
        yield made


@pytest.fixture
async def postgres(shared_dsn: str) -> AsyncIterator[PostgresEnvironment]:
    """On PostgreSQL only: what the environment in process does not model, such as queues."""
    async with PostgresEnvironment(shared_dsn) as made:
        yield made


@dataclass
class Database:
    """A migrated schema, and a client of it."""

    dsn: str
    client: Client


@pytest.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    """PostgreSQL only: the client's own promises, and those about several workers."""
    async with Client.connect(dsn) as client:
        yield Database(dsn, client)
