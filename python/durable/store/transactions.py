"""Transactions of activities: the user's writes and the recorded result in one commit.

A transactional activity gets a connection of its own pool, plain psycopg with the server's own
settings, inside a transaction. Its outcome is written on that connection before the commit, fenced
by the attempt's token, so either both are there or neither. The row lock of the outcome also
decides between a commit whose answer was lost and whoever tries the activity again: the second one
waits for the first, and finds the token spent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from durable.errors import ConfigurationError, StoreUnavailableError
from durable.events import ActivityOutcome
from durable.store.arrays import blobs, literal, uuids
from durable.store.base import Store
from durable.store.postgres import PostgresStore
from durable.store.sealed import SealedStore

CONNECTIONS_MAX = 10
"""Transactions that run at once in one worker; the others wait for theirs."""
WAIT_SECONDS_MAX = 30.0
IDLE_SECONDS_MAX = 60.0


class Transactions:
    """The connections of one worker's transactional activities. Opened when first needed."""

    def __init__(self, store: Store) -> None:
        self._sealed = store if isinstance(store, SealedStore) else None
        self._store = store.inner if isinstance(store, SealedStore) else store
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[Any]] | None = None

    def _postgres(self) -> PostgresStore:
        if not isinstance(self._store, PostgresStore):
            raise ConfigurationError(
                "a transactional activity needs a worker on PostgreSQL; mock it in other tests"
            )
        return self._store

    async def _opened(self) -> AsyncConnectionPool[psycopg.AsyncConnection[Any]]:
        if self._pool is None:
            target = self._postgres().target
            # Prepared statements do not survive a pooler in between.
            kwargs = {"prepare_threshold": None} if target.pooler else {}
            self._pool = AsyncConnectionPool(
                target.dsn,
                kwargs=kwargs,
                min_size=0,
                max_size=CONNECTIONS_MAX,
                timeout=WAIT_SECONDS_MAX,
                max_idle=IDLE_SECONDS_MAX,
                open=False,
                check=AsyncConnectionPool.check_connection,
                name="durable-activity",
            )
            await self._pool.open()
        return self._pool

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A transaction that commits when the block ends, and is rolled back when it raises.

        Raises StoreUnavailableError when no connection can be had in time.
        """
        pool = await self._opened()
        try:
            conn = await pool.getconn()
        except PoolTimeout as error:
            raise StoreUnavailableError(
                f"no connection for a transactional activity: {error}"
            ) from error
        try:
            async with conn.transaction():
                yield conn
        finally:
            await pool.putconn(conn)

    async def record(self, conn: psycopg.AsyncConnection[Any], outcome: ActivityOutcome) -> bool:
        """Write the outcome into the transaction; False when the attempt's token is void."""
        if self._sealed is not None:
            outcome = self._sealed.outcome(outcome)
        params = (
            uuids([outcome.run_id]),
            literal([outcome.ref]),
            literal([outcome.attempt]),
            literal([outcome.token]),
            literal([int(outcome.kind)]),
            blobs([outcome.payload]),
            literal([outcome.delay_us]),
            blobs([outcome.details]),
            literal([outcome.count_attempt]),
        )
        rows = await self._postgres().fetch_on(conn, "finish_activities", params)
        return bool(rows[0][0])

    async def close(self) -> None:
        """Close the connections. Safe twice."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()
