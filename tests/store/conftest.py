"""The two stores as fixtures."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from support.store_rig import MemoryRig, PostgresRig, Rig


@pytest.fixture(params=["memory", "postgres"])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """Each store in turn."""
    if request.param == "memory":
        yield MemoryRig()
        return
    made = PostgresRig(request.getfixturevalue("dsn"))
    await made.store.open()
    await made.other.open()
    yield made
    await made.store.close()
    await made.other.close()


@pytest.fixture
async def postgres(dsn: str) -> AsyncIterator[PostgresRig]:
    """The PostgreSQL store only."""
    made = PostgresRig(dsn)
    await made.store.open()
    await made.other.open()
    yield made
    await made.store.close()
    await made.other.close()
