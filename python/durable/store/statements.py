"""Statements: the connections of a PostgreSQL store, and running one of its named statements.

Connections go by role: one for the group commit, a few for everything else.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import AsyncRawCursor
from psycopg.rows import tuple_row

from durable.errors import ConfigurationError, StoreError
from durable.store.arrays import register
from durable.store.commits import Params
from durable.store.connection import Conn, Lanes, Target, patiently
from durable.store.migrate import check_version
from durable.store.queries import DEFAULT_SCHEMA, load_queries, quote_schema

Rows = list[tuple[Any, ...]]
LANES_MAX = 3
"""Connections besides the one of the group commit and that of LISTEN."""


class Statements:
    """The statements of one schema, and connections to run them on."""

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = DEFAULT_SCHEMA,
        listen_dsn: str | None = None,
        application_name: str = "durable",
        pooler: bool = False,
        connect_seconds: float = 0.0,
    ) -> None:
        self.schema = schema
        self.connect_seconds = connect_seconds
        self.queries = load_queries(schema)
        self.target = Target(dsn, application_name, pooler)
        self.listen_dsn = listen_dsn
        self.hot = Lanes(self.target, 1)
        self.rest = Lanes(self.target, LANES_MAX)

    async def open(self) -> None:
        """Connect and check the schema; raise SchemaVersionError or StoreUnavailableError."""
        await patiently(self.target, self.connect_seconds, self._open)

    async def _open(self) -> None:
        self.hot.is_closed = self.rest.is_closed = False
        name = quote_schema(self.schema)
        try:
            there = await self.fetch("has_meta", (name,))
            found = await self.fetch("check_version", ()) if there[0][0] else []
            check_version(self.schema, found[0][0] if found else None)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Give every connection back. Safe twice."""
        await self.hot.close()
        await self.rest.close()

    async def fetch(self, name: str, params: Params) -> Rows:
        """Run one named statement that is safe to run twice; return its rows."""
        query = self.queries[name]

        async def work(conn: Conn, unsure: bool) -> Rows:
            cursor = await conn.execute(query, params, binary=True)
            return await cursor.fetchall()

        return await self.rest.call(work)

    async def fetch_on(self, conn: Any, name: str, params: Params) -> Rows:
        """Run one named statement in the caller's own transaction."""
        if not isinstance(conn, psycopg.AsyncConnection):
            raise ConfigurationError(
                f"conn must be a psycopg.AsyncConnection, not {type(conn).__name__}"
            )
        async with AsyncRawCursor(conn, row_factory=tuple_row) as cursor:
            register(cursor)
            try:
                await cursor.execute(self.queries[name], params, binary=True)
            except psycopg.Error as error:
                raise StoreError(f"the caller's transaction failed: {error}") from error
            return await cursor.fetchall()

    async def now_us(self) -> int:
        """The database's time."""
        rows = await self.fetch("now", ())
        return int(rows[0][0])
