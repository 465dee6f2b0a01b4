"""Scratch: a schema that somebody made to throw away, such as a test's."""

from __future__ import annotations

import psycopg
from psycopg import sql

from durable.errors import StoreError, StoreUnavailableError

CONNECT_SECONDS_MAX = 5


def drop_schema(dsn: str, schema: str) -> None:
    """Remove a schema with all its tables and rows. Nothing when it is not there."""
    statement = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema))
    try:
        # One transaction, and nothing prepared: PgBouncer may be in between.
        with psycopg.connect(
            dsn, connect_timeout=CONNECT_SECONDS_MAX, prepare_threshold=None
        ) as conn:
            conn.execute("SELECT set_config('client_min_messages', 'warning', true)")
            conn.execute(statement)
    except psycopg.OperationalError as error:
        raise StoreUnavailableError(f"the database did not answer: {error}") from error
    except psycopg.Error as error:
        raise StoreError(f"schema {schema!r} cannot be removed: {error}") from error
