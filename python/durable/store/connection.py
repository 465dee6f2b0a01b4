"""Connections: made with every time limit there is, used by role, thrown away at the first doubt.

A *lane* is one connection, opened when it is needed and replaced when it breaks. `Lanes.call`
runs one piece of work on a free lane of a role, and does again what can be done again:

* the server rolled it back (deadlock, lock timeout): nothing happened, once more;
* the connection was lost or overran its deadline: whether it happened is not known. The work is
  called again with ``unsure=True`` and has to be safe for that.

A deadline shuts the socket down from our side, so that a peer which keeps the line open but does
not answer costs seconds, not hours. PgBouncer in transaction mode is noticed when the server's
process id is not the one that was announced; then nothing is kept on the connection.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import socket
import time
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from durable.errors import ConfigurationError, StoreError, StoreUnavailableError
from durable.store.arrays import register

logger = logging.getLogger("durable.store")

T = TypeVar("T")
Conn = AsyncConnection[tuple[Any, ...]]
Work = Callable[[Conn, bool], Awaitable[T]]

CONNECT_SECONDS_MAX = 5
CALL_SECONDS_MAX = 8.0
"""One try. A dead peer is given up after this long."""
TOTAL_SECONDS_MAX = 25.0
"""All tries of one call, and the waits between them."""
BACKOFF_SECONDS = 0.02
BACKOFF_SECONDS_MAX = 2.0

KEEPALIVE = {
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "8000",
    "target_session_attrs": "read-write",
    "connect_timeout": str(CONNECT_SECONDS_MAX),
}
SERVER_SETTINGS = (
    "-c statement_timeout=7500 -c lock_timeout=3000 -c idle_in_transaction_session_timeout=5000 "
    "-c synchronous_commit=on -c timezone=UTC -c jit=off "
    "-c enable_hashjoin=off -c enable_mergejoin=off -c enable_seqscan=off"
)
"""The plan settings keep small lookups on their indexes whatever the statistics say."""

ROLLED_BACK = {"40001", "40P01", "55P03", "57014", "25P03"}
"""Serialization, deadlock, lock timeout, statement timeout, idle transaction."""
RESOURCES = "53"
DATA = ("22", "54", "23502", "23514")
SCHEMA_GONE = {"42P01", "42883", "3F000", "42703"}
STALE_PLAN = "0A000"
READ_ONLY = "25006"


FIRST_SECONDS = 0.25
"""The pause after the first refusal of a connection that never was; it doubles."""
TELL_SECONDS = 10.0
"""How often the log says that somebody waits for a database."""
NOT_YET = ("the database system is", "too many clients", "too many connections", "connection slots")
"""What a server says that will take connections in a moment. Refusals to connect have no code."""
NOT_THERE = (
    "Connection refused",
    "No such file or directory",
    "No route to host",
    "timeout expired",
    "closed the connection unexpectedly",
)
"""What the system says of a server that is not up."""


class DataRejectedError(StoreError):
    """The server cannot store these values; nothing was written."""


@dataclass
class Target:
    """Where and how to connect."""

    dsn: str
    application_name: str
    pooler: bool = False
    """A PgBouncer in transaction mode is in between: no prepared statements, no settings."""
    kept: dict[str, str] = field(default_factory=dict)
    reached: bool = False
    """A connection was had before: what refuses one now may be a restart, and is waited for."""

    def where(self) -> str:
        """Host and port, for messages: ``db.example:5432``. Nothing else of the DSN."""
        given = conninfo_to_dict(self.dsn)
        host = given.get("host") or given.get("hostaddr") or os.environ.get("PGHOST")
        port = str(given.get("port") or os.environ.get("PGPORT") or 5432)
        if not host:
            return f"the local socket, port {port}"
        hosts, ports = str(host).split(","), port.split(",")
        ports += ports[-1:] * (len(hosts) - len(ports))
        return ", ".join(f"{each}:{number}" for each, number in zip(hosts, ports, strict=False))

    def conninfo(self) -> str:
        """The connection string with our settings; what the DSN says itself wins."""
        try:
            given = conninfo_to_dict(self.dsn)
        except psycopg.ProgrammingError:
            # The reason quotes the DSN, and that may have a password in it.
            raise ConfigurationError(
                "the DSN cannot be read; write postgresql://user:password@host:port/name"
            ) from None
        ours = {**KEEPALIVE, "application_name": self.application_name}
        merged: dict[str, Any] = {**ours, **given}
        if not self.pooler:
            merged["options"] = f"{SERVER_SETTINGS} {given.get('options') or ''}".strip()
        return make_conninfo(**merged)

    async def connect(self) -> Conn:
        """Open one connection; find out whether a pooler is in between."""
        try:
            conn = await self.connect_once()
        except psycopg.OperationalError as error:
            if self.pooler or "unsupported startup parameter" not in str(error):
                raise
            self.pooler = True
            conn = await self.connect_once()
        self.reached = True
        if not self.pooler:
            watchdog = asyncio.get_running_loop().call_later(CALL_SECONDS_MAX, sever, conn)
            try:
                cursor = await conn.execute("SELECT pg_backend_pid()")
                row = await cursor.fetchone()
            except BaseException:
                await conn.close()
                raise
            finally:
                watchdog.cancel()
            if row is not None and row[0] != conn.info.backend_pid:
                self.pooler = True
                conn.prepare_threshold = None
        return conn

    async def connect_once(self) -> Conn:
        """Open one connection."""
        try:
            conn = await AsyncConnection.connect(
                self.conninfo(),
                autocommit=True,
                prepare_threshold=None if self.pooler else 0,
                cursor_factory=AsyncRawCursor,
            )
        except BaseException as error:
            # The frames of a connect that was cancelled or took too long have its socket. Until it
            # closes, the server waits with half a login, and DROP DATABASE waits with it.
            traceback.clear_frames(error.__traceback__)
            raise
        register(conn)
        return conn


def sever(conn: Conn) -> None:
    """End the connection's socket under whatever waits for it; that wait fails at once."""
    try:
        with socket.socket(fileno=os.dup(conn.pgconn.socket)) as line:
            line.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg.Error):
        # Closed already, or the peer was faster.
        return


def is_lost(conn: Conn | None, error: BaseException) -> bool:
    """Whether the connection cannot be used any more after this error."""
    if not isinstance(error, psycopg.Error) or conn is None or conn.closed or conn.broken:
        return True
    state = error.sqlstate or ""
    return state.startswith(("08", "57P", "XX")) or state in (STALE_PLAN, READ_ONLY)


def refusal(error: psycopg.Error) -> Exception | None:
    """The error to raise when trying again is pointless, else None."""
    state = error.sqlstate or ""
    said = error.diag.message_primary or str(error)
    if state.startswith(DATA) or (not state and isinstance(error, psycopg.DataError)):
        return DataRejectedError(f"the database cannot store a value: {said}")
    if state in SCHEMA_GONE:
        return ConfigurationError(f"the schema does not fit ({said}): run `durable migrate`")
    if state == "42501":
        return ConfigurationError(f"the role lacks a right: {said}")
    if state[:2] in ("28", "3D"):
        return ConfigurationError(f"the database refuses the connection: {said}")
    if not state or state in ROLLED_BACK or state.startswith((RESOURCES, "08", "57P", "XX")):
        return None
    if state in (STALE_PLAN, READ_ONLY):
        return None
    return StoreError(f"the database refused: {said} ({state})")


def unreachable(error: psycopg.Error, target: Target) -> StoreUnavailableError | None:
    """The error to raise when no connection was ever had and waiting for one is pointless."""
    said = str(error)
    if target.reached or any(words in said for words in NOT_YET):
        return None
    # psycopg says first what it was doing; the server, or the system, says why it failed.
    why = said.partition("\n")[0].rpartition("failed: ")[2] or type(error).__name__
    return StoreUnavailableError(
        f"the database at {target.where()} did not answer: {why}; is the DSN right, and is it "
        "running?"
    )


async def patiently(target: Target, seconds: float, work: Callable[[], Awaitable[T]]) -> T:
    """Do ``work``; for ``seconds`` again while the server was never reached and may yet come up.

    What the server itself refuses (a password, a database that it does not have) and a host that
    has no address are raised at once: waiting changes nothing about them.
    """
    deadline = time.monotonic() + seconds
    tell_at = -math.inf
    pause = FIRST_SECONDS
    while True:
        try:
            return await work()
        except StoreUnavailableError as error:
            now = time.monotonic()
            if target.reached or now >= deadline or not may_come(error.__cause__):
                raise
            if now >= tell_at:
                tell_at = now + TELL_SECONDS
                logger.warning("%s Waiting for it, for %.0f s at most", error, deadline - now)
        await asyncio.sleep(min(pause * random.uniform(0.5, 1.0), deadline - now))
        pause = min(pause * 2, BACKOFF_SECONDS_MAX)


def may_come(cause: BaseException | None) -> bool:
    """Whether who refused the connection may take the next one."""
    said = str(cause)
    if any(words in said for words in NOT_YET):
        return True
    return "FATAL" not in said and any(words in said for words in NOT_THERE)


class Lane:
    """One connection, opened on first use."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.conn: Conn | None = None
        self.asked = False
        """Whether the last run got as far as its work: before that, nothing can have happened."""

    async def run(self, work: Work[T], unsure: bool) -> T:
        """Run ``work`` once within the deadline."""
        self.asked = False
        if self.conn is None or self.conn.closed:
            self.conn = None
            self.conn = await self.target.connect()
        conn = self.conn
        watchdog = asyncio.get_running_loop().call_later(CALL_SECONDS_MAX, sever, conn)
        self.asked = True
        try:
            return await work(conn, unsure)
        except BaseException as error:
            if is_lost(conn, error):
                await self.close()
            raise
        finally:
            watchdog.cancel()

    async def close(self) -> None:
        """Drop the connection."""
        conn, self.conn = self.conn, None
        if conn is not None:
            await conn.close()


class Lanes:
    """The lanes of one role: at most ``size`` connections, each used by one call at a time."""

    def __init__(self, target: Target, size: int) -> None:
        self.target = target
        self.size = size
        self.idle = [Lane(target) for _ in range(size)]
        self.free = asyncio.Semaphore(size)
        self.is_closed = False
        """Nothing is to be run any more, until somebody opens them again."""

    async def call(self, work: Work[T]) -> T:
        """Run ``work`` on a free lane; again where that is safe, until the time is up."""
        deadline = time.monotonic() + TOTAL_SECONDS_MAX
        tries = 0
        unsure = False
        while True:
            async with self.free:
                if self.is_closed:
                    raise StoreError("the store is closed: open it again, or make a new client")
                # The lane used last has its statements prepared.
                lane = self.idle.pop()
                try:
                    return await lane.run(work, unsure)
                except psycopg.Error as error:
                    refused = refusal(error)
                    if refused is None and not lane.asked:
                        refused = unreachable(error, self.target)
                    if refused is not None:
                        raise refused from error
                    unsure = unsure or (lane.asked and lane.conn is None)
                    problem: Exception = error
                except OSError as error:
                    unsure = unsure or lane.asked
                    problem = error
                finally:
                    self.idle.append(lane)
                    if self.is_closed:
                        await lane.close()
            tries += 1
            pause = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2**tries) * (0.5 + random.random())
            if time.monotonic() + pause > deadline:
                raise StoreUnavailableError(
                    f"the database at {self.target.where()} did not answer after {tries} tries: "
                    f"{problem}"
                ) from problem
            if tries == 1:
                logger.info("trying the database again: %s", problem)
            await asyncio.sleep(pause)

    async def close(self) -> None:
        """Drop every connection; those in use right now when their call ends."""
        self.is_closed = True
        for lane in self.idle:
            await lane.close()
