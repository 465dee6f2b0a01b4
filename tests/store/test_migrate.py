"""Migrations run once, in order, and only when asked to."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from support.store_rig import new_run

from durable.errors import ConfigurationError, SchemaVersionError, StoreUnavailableError
from durable.store import migrate as migration
from durable.store.migrate import current_version, latest_version, migrate, render_sql
from durable.store.postgres import PostgresStore
from durable.store.queries import load_migrations

DUMP = """
    SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    WHERE c.relnamespace = %(schema)s::regnamespace
    UNION ALL
    SELECT p.proname, pg_get_function_identity_arguments(p.oid), '', NULL
    FROM pg_proc p WHERE p.pronamespace = %(schema)s::regnamespace
    ORDER BY 1, 2
"""


def dump(dsn: str, schema: str = "durable") -> list[tuple[object, ...]]:
    with psycopg.connect(dsn) as conn:
        return conn.execute(DUMP, {"schema": schema}).fetchall()


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [number for number, _, _ in load_migrations()] == list(range(1, latest_version() + 1))


def test_migrating_twice_changes_nothing(empty_dsn: str) -> None:
    assert current_version(empty_dsn) is None
    assert len(migrate(empty_dsn)) == latest_version()
    before = dump(empty_dsn)

    assert migrate(empty_dsn) == []

    assert dump(empty_dsn) == before
    assert current_version(empty_dsn) == latest_version()


def test_the_script_does_what_migrate_does(empty_dsn: str, dsn: str) -> None:
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(render_sql().encode())

    assert dump(empty_dsn) == dump(dsn)
    assert current_version(empty_dsn) == latest_version()


def test_a_migration_can_stop_on_the_way_and_go_on(empty_dsn: str, dsn: str) -> None:
    for version in range(1, latest_version() + 1):
        assert len(migrate(empty_dsn, to=version)) == 1

    assert dump(empty_dsn) == dump(dsn)


def test_migrations_at_the_same_time_run_once(empty_dsn: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        applied = list(threads.map(lambda _: migrate(empty_dsn), range(4)))

    assert sorted(name for names in applied for name in names) == [
        f"{number:04d}_{name}" for number, name, _ in load_migrations()
    ]


def test_a_migration_does_not_wait_for_long(
    empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "LOCK_TIMEOUT", "50ms")
    with psycopg.connect(empty_dsn) as holder:
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (migration.LOCK_KEY,))

        with pytest.raises(StoreUnavailableError, match="run it again"):
            migrate(empty_dsn)


async def test_workers_refuse_a_schema_that_is_missing(empty_dsn: str) -> None:
    store = PostgresStore(empty_dsn)

    with pytest.raises(SchemaVersionError, match="durable migrate") as caught:
        await store.open()

    assert caught.value.found is None
    await store.close()
    assert current_version(empty_dsn) is None


@pytest.mark.parametrize(("version", "advice"), [(1, "durable migrate"), (999, "install")])
async def test_workers_refuse_a_schema_of_another_version(
    dsn: str, version: int, advice: str
) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(
            "UPDATE durable.meta SET value = %s WHERE name = 'schema_version'", (str(version),)
        )
    store = PostgresStore(dsn)

    with pytest.raises(SchemaVersionError, match=advice) as caught:
        await store.open()

    assert (caught.value.found, caught.value.expected) == (version, latest_version())
    await store.close()


def test_a_newer_schema_is_not_touched(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("UPDATE durable.meta SET value = '999' WHERE name = 'schema_version'")

    with pytest.raises(SchemaVersionError):
        migrate(dsn)


async def test_two_schemas_live_side_by_side(dsn: str) -> None:
    migrate(dsn, "Second one")
    one, two = PostgresStore(dsn), PostgresStore(dsn, schema="Second one")
    await one.open()
    await two.open()

    (first,) = await one.start_runs([new_run("a")])
    (second,) = await two.start_runs([new_run("a")])

    assert first.accepted
    assert second.accepted
    await one.close()
    await two.close()


@pytest.mark.parametrize("schema", ["", "x" * 60, "a'b", 'a"b', "a{s}", "a%s"])
def test_a_hopeless_schema_name_is_refused(schema: str) -> None:
    with pytest.raises(ConfigurationError, match="schema"):
        PostgresStore("", schema=schema)


@pytest.mark.parametrize("to", [0, 999])
def test_a_version_that_is_not_there_is_refused(empty_dsn: str, to: int) -> None:
    with pytest.raises(ConfigurationError, match="version"):
        migrate(empty_dsn, to=to)
