"""The pytest plugin: the fixture ``workflow_env``, in process or on a database by a flag.

async def test_order(workflow_env):
    workflow_env.mock(charge, "receipt-7")
    assert await workflow_env.execute(order, 12) == "receipt-7"

pytest                                             in process, skipping time
pytest --durable-dsn postgresql://localhost/test   the same on PostgreSQL
pytest --durable-crash                             replayed cold after every event
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from durable.testing.environment import WorkflowEnvironment

# anyio, and the auto mode of pytest-asyncio, take plain fixtures; its strict mode does not.
HAS_PYTEST_ASYNCIO = find_spec("pytest_asyncio") is not None
async_fixture: Any = import_module("pytest_asyncio" if HAS_PYTEST_ASYNCIO else "pytest").fixture


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --durable-dsn and --durable-crash."""
    group = parser.getgroup("durable", "durable workflows")
    group.addoption(
        "--durable-dsn",
        metavar="DSN",
        help="run workflow_env on this PostgreSQL database, each test in a schema of its own",
    )
    group.addoption(
        "--durable-crash",
        action="store_true",
        help="evict and replay each run of workflow_env after every event",
    )


@async_fixture  # type: ignore[untyped-decorator]
async def workflow_env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    """An environment for one test, in process unless --durable-dsn names a database."""
    crash: bool = request.config.getoption("--durable-crash")
    dsn: str | None = request.config.getoption("--durable-dsn")
    if dsn is None:
        environment = WorkflowEnvironment(crash_at_every_event=crash)
    else:
        # Here, because every pytest session imports this plugin and few need the database driver.
        postgres = import_module("durable.testing.postgres")
        environment = postgres.PostgresEnvironment(dsn, crash_at_every_event=crash)
    async with environment as opened:
        yield opened
