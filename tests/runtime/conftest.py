"""A client and workers on the test's own database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from durable.client import Client
from durable.options import WorkerOptions
from durable.runtime.worker import Worker
from durable.store.postgres import PostgresStore

Serve = Callable[..., Any]
SOON = 20.0
"""Seconds within which anything that is to happen has happened, however slow the machine."""


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
async def serve(dsn: str) -> AsyncIterator[Serve]:
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
