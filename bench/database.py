"""Database: the PostgreSQL that everything is measured on, and what it says about its own work.

A server of our own in a temporary directory, durable as it comes: fsync, synchronous_commit and
full_page_writes are on. Each system gets a database of its own in it.
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg

from durable.runtime.embedded import EmbeddedPostgres
from durable.store.migrate import migrate

SETTINGS = {
    "shared_buffers": "1GB",
    "max_connections": "200",
    "max_wal_size": "4GB",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.max": "2000",
}
SHOWN = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "wal_sync_method")
TRANSACTION_CONTROL = r"^\s*(begin|commit|rollback|start transaction|savepoint|release)"


class Database:
    """The server; ``folder`` None is a temporary one that is removed at the end."""

    def __init__(self, folder: Path | None = None) -> None:
        self._temporary = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="bench-pg-"))
        self.server = EmbeddedPostgres(self.folder / "data", settings=SETTINGS)
        self._admin: psycopg.Connection[Any] | None = None

    def start(self) -> None:
        """Start the server."""
        self.server.start()
        self._admin = psycopg.connect(self.server.dsn, autocommit=True)

    def stop(self) -> None:
        """Stop it, and remove a temporary one. Safe twice."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        self.server.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def restart(self, mode: str) -> None:
        """Stop it by this mode of pg_ctl, and start it again on the same port."""
        if self._admin is not None:
            self._admin.close()
        log = self.server.data_dir / "server.log"
        done = self.server.pg_ctl("restart", "-m", mode, "-l", log, "-w")
        assert done.returncode == 0, done.stdout
        self._admin = psycopg.connect(self.server.dsn, autocommit=True)

    def __enter__(self) -> "Database":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def admin(self) -> psycopg.Connection[Any]:
        """A connection to the database ``postgres``, in autocommit."""
        assert self._admin is not None
        return self._admin

    def dsn(self, name: str) -> str:
        """How to connect to one of the databases."""
        return self.server.dsn.rsplit("/", 1)[0] + "/" + name

    def create(self, name: str) -> str:
        """Make the database anew, empty; return its DSN."""
        assert re.fullmatch(r"[a-z_]+", name)
        self.execute(f"drop database if exists {name} with (force)")
        self.execute(f"create database {name}")
        with psycopg.connect(self.dsn(name), autocommit=True) as connection:
            connection.execute("create extension if not exists pg_stat_statements")
        return self.dsn(name)

    def create_ours(self, name: str = "durable_bench") -> str:
        """Make a database with our schema; return its DSN."""
        dsn = self.create(name)
        migrate(dsn, "durable")
        return dsn

    def execute(self, text: str, *parameters: Any) -> list[Any]:
        """Run a statement of ours on the database ``postgres``; its rows."""
        cursor = self.admin.execute(text, parameters or None)
        return cursor.fetchall() if cursor.description else []

    def settings(self) -> dict[str, str]:
        """The settings that decide durability, as the server has them."""
        found = {name: self.execute(f"show {name}")[0][0] for name in SHOWN}
        assert found["fsync"] == found["synchronous_commit"] == "on", found
        return found | SETTINGS

    def checkpoint(self) -> None:
        """So that full-page images of one side are not written by the next."""
        self.execute("checkpoint")


@dataclass(frozen=True)
class Work:
    """What the server did between two readings."""

    wal_bytes: float
    statements: float
    """Without transaction control."""
    transactions: float
    """That wrote something."""
    buffers: float


class WorkMeter:
    """Reads the server's counters for one of its databases."""

    def __init__(self, database: Database, name: str) -> None:
        self.database = database
        self.name = name
        self.before = self.read()

    def read(self) -> Work:
        """The counters now."""
        wal, xid = self.database.execute(
            "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8, "
            "pg_snapshot_xmax(pg_current_snapshot())::text::float8"
        )[0]
        with psycopg.connect(self.database.dsn(self.name), autocommit=True) as connection:
            statements, buffers = connection.execute(
                "select coalesce(sum(calls) filter (where query !~* %s), 0)::float8, "
                "coalesce(sum(shared_blks_hit + shared_blks_read), 0)::float8 "
                "from pg_stat_statements s join pg_database d on d.oid = s.dbid "
                "where d.datname = %s and query !~ 'pg_stat_statements'",
                (TRANSACTION_CONTROL, self.name),
            ).fetchone() or (0.0, 0.0)
        return Work(wal, statements, xid, buffers)

    def stop(self) -> Work:
        """What was done since it was made."""
        after, before = self.read(), self.before
        return Work(
            after.wal_bytes - before.wal_bytes,
            after.statements - before.statements,
            after.transactions - before.transactions,
            after.buffers - before.buffers,
        )

    def top(self, count: int = 12) -> list[tuple[int, float, float, str]]:
        """The costliest statements: calls, total ms, buffers per call, text."""
        with psycopg.connect(self.database.dsn(self.name), autocommit=True) as connection:
            return connection.execute(
                "select calls, total_exec_time, "
                "(shared_blks_hit + shared_blks_read)::float8 / calls, "
                "left(regexp_replace(query, '\\s+', ' ', 'g'), 110) from pg_stat_statements s "
                "join pg_database d on d.oid = s.dbid where d.datname = %s "
                "order by total_exec_time desc limit %s",
                (self.name, count),
            ).fetchall()


def cpu_seconds(root: int) -> float:
    """User and system time of a process and all below it, with those that ended."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(root)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def peak_rss(root: int) -> int:
    """The greatest peak of resident memory of any process below ``root``, in bytes."""
    peak = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(root)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{each.pid}/status").read_text()
                found = re.search(r"VmHWM:\s+(\d+)", text)
                peak = max(peak, int(found[1]) * 1024 if found else 0)
    return peak


@contextlib.contextmanager
def running(folder: Path | None = None) -> Iterator[Database]:
    """A started server."""
    with Database(folder) as database:
        yield database
