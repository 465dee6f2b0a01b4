"""Migrations: numbered SQL files, each applied once, in order, in its own transaction.

Only `durable migrate` and `durable dev` run them. Workers and clients check the version and refuse
to start when it is not theirs. Concurrent migrations wait for each other on an advisory lock, and
give up rather than wait for long on a table that is in use.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import errors

from durable.errors import ConfigurationError, SchemaVersionError, StoreUnavailableError
from durable.store.queries import DEFAULT_SCHEMA, load_migrations, quote_schema, render

LOCK_KEY = 0x6475_7261_626C_6500
LOCK_TIMEOUT = "5s"
CONNECT_SECONDS_MAX = 10


def latest_version() -> int:
    """The schema version this build works with."""
    return load_migrations()[-1][0]


def connect(dsn: str) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection on which nothing is prepared: PgBouncer may be in between."""
    return psycopg.connect(
        dsn, connect_timeout=CONNECT_SECONDS_MAX, autocommit=True, prepare_threshold=None
    )


def migrate(dsn: str, schema: str = DEFAULT_SCHEMA, *, to: int | None = None) -> list[str]:
    """Bring the schema up to version ``to`` (default: this build's). Return what was applied.

    Raise SchemaVersionError when the schema is newer than this build, ConfigurationError when the
    role lacks the right, StoreUnavailableError when a table stayed locked or nobody answered.
    """
    target = latest_version() if to is None else to
    if not 0 < target <= latest_version():
        raise ConfigurationError(f"version must be between 1 and {latest_version()}, not {target}")
    applied: list[str] = []
    try:
        with connect(dsn) as conn:
            for number, name, text in load_migrations():
                if number <= target and apply(conn, schema, number, text):
                    applied.append(f"{number:04d}_{name}")
    except errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"the role may not change schema {schema!r} ({error.diag.message_primary}): run "
            "`durable migrate` as the owner of the schema"
        ) from error
    except (errors.LockNotAvailable, psycopg.OperationalError) as error:
        raise StoreUnavailableError(f"migration stopped: {error}; run it again") from error
    return applied


def apply(conn: psycopg.Connection, schema: str, number: int, text: str) -> bool:
    """Apply one migration unless it was. The version is read under the lock."""
    with conn.transaction():
        conn.execute("SELECT set_config('lock_timeout', %s, true)", (LOCK_TIMEOUT,))
        conn.execute("SELECT set_config('client_min_messages', 'warning', true)")
        conn.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK_KEY,))
        found = read_version(conn, schema)
        if found is not None and found > latest_version():
            raise SchemaVersionError(version_message(schema, found), found, latest_version())
        if found is not None and found >= number:
            return False
        # The text is ours, and the schema's name is quoted.
        conn.execute(migration_sql(schema, number, text).encode())
        return True


def migration_sql(schema: str, number: int, text: str) -> str:
    """One migration as it is run, with the version that it leads to."""
    version = f"UPDATE {{s}}.meta SET value = '{number}' WHERE name = 'schema_version';\n"
    return render(text + version, schema)


def render_sql(schema: str = DEFAULT_SCHEMA, *, since: int = 0) -> str:
    """The migrations after version ``since`` as a script for psql, for `durable migrate --sql`."""
    parts = ["BEGIN;\n", f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';\n"]
    parts += [
        migration_sql(schema, number, text)
        for number, _, text in load_migrations()
        if number > since
    ]
    return "\n".join([*parts, "COMMIT;\n"])


def read_version(conn: psycopg.Connection, schema: str) -> int | None:
    """The version of the schema, None when it is not there."""
    row = conn.execute(
        "SELECT to_regclass(%s) IS NOT NULL", (quote_schema(schema) + ".meta",)
    ).fetchone()
    if row is None or not row[0]:
        return None
    query = render("SELECT value::integer FROM {s}.meta WHERE name = 'schema_version'", schema)
    row = conn.execute(query.encode()).fetchone()
    return int(row[0]) if row is not None else None


def current_version(dsn: str, schema: str = DEFAULT_SCHEMA) -> int | None:
    """The version that the database has, None when the schema is not there."""
    try:
        with connect(dsn) as conn:
            return read_version(conn, schema)
    except psycopg.OperationalError as error:
        raise StoreUnavailableError(f"the database did not answer: {error}") from error


def check_version(schema: str, found: int | None) -> None:
    """Raise SchemaVersionError unless ``found`` is what this build works with."""
    if found != latest_version():
        raise SchemaVersionError(version_message(schema, found), found, latest_version())


def version_message(schema: str, found: int | None) -> str:
    """What is wrong with the version, and what to do."""
    if found is None:
        return f"there is no schema {schema!r} in this database: run `durable migrate`"
    if found < latest_version():
        return (
            f"schema {schema!r} has version {found}, this build needs {latest_version()}: "
            "run `durable migrate`"
        )
    return (
        f"schema {schema!r} has version {found}, this build knows up to {latest_version()}: "
        "install the build that ran `durable migrate` here last"
    )
