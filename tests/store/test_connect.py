"""Connecting for the first time: what is told at once, and what is waited for."""

import asyncio
import gc
import socket
from collections.abc import Iterator

import psycopg
import psycopg.conninfo
import pytest

from durable import activity
from durable.client import Client
from durable.errors import (
    ConfigurationError,
    StoreError,
    StoreUnavailableError,
    WorkflowNotFoundError,
)
from durable.runtime.worker import Worker
from durable.store import connection
from durable.store.connection import Conn, Target
from durable.store.postgres import PostgresStore


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nobody listens, and which nobody else can take meanwhile."""
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        yield int(line.getsockname()[1])


def failing(monkeypatch: pytest.MonkeyPatch, said: str, times: int) -> list[Target]:
    """Let the next connects fail with these words; return what they were asked of."""
    asked: list[Target] = []
    real = Target.connect_once

    async def connect_once(self: Target) -> Conn:
        asked.append(self)
        if len(asked) <= times:
            raise psycopg.OperationalError(f"connection failed: {said}")
        return await real(self)

    monkeypatch.setattr(Target, "connect_once", connect_once)
    return asked


async def test_a_refused_connection_is_told_with_its_address_and_no_password(
    closed_port: int,
) -> None:
    dsn = f"postgresql://someone:secret@127.0.0.1:{closed_port}/nothing"
    with pytest.raises(StoreUnavailableError) as caught:
        await Client.connect(dsn).__aenter__()
    said = str(caught.value)
    assert f"127.0.0.1:{closed_port}" in said
    assert "Connection refused" in said
    assert "secret" not in said


async def test_a_refused_connection_is_tried_once(
    monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    asked = failing(monkeypatch, "nothing", 0)
    with pytest.raises(StoreUnavailableError):
        await PostgresStore(f"postgresql://127.0.0.1:{closed_port}/nothing").open()
    assert len(asked) == 1


async def test_a_server_that_starts_up_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    asked = failing(monkeypatch, "FATAL:  the database system is starting up", 3)
    async with Client.connect(dsn) as client:
        assert await client.list() == []
    assert len(asked) >= 4


async def test_a_server_that_was_reached_before_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    store = PostgresStore(dsn)
    try:
        await store.open()
        for lane in (*store.hot.idle, *store.rest.idle):
            await lane.close()
        asked = failing(monkeypatch, "Connection refused", 2)
        assert await store.now_us() > 0
        assert len(asked) == 3
    finally:
        await store.close()


async def test_a_connect_that_is_cancelled_hangs_up_at_once() -> None:
    loop = asyncio.get_running_loop()
    gc.disable()
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.setblocking(False)
            target = Target(f"postgresql://127.0.0.1:{server.getsockname()[1]}/none", "durable")
            connecting = asyncio.ensure_future(target.connect())
            async with asyncio.timeout(60):
                line, _ = await loop.sock_accept(server)
                with line:
                    line.setblocking(False)
                    assert await loop.sock_recv(line, 4096)
                    connecting.cancel()
                    await asyncio.wait([connecting])
                    assert connecting.cancelled()
                    while await loop.sock_recv(line, 4096):
                        pass
    finally:
        gc.enable()


async def test_a_dsn_that_cannot_be_read_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigurationError, match="cannot be read") as caught:
        await PostgresStore("host=db password=secret and more").open()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("dsn", "where"),
    [
        ("postgresql://u:p@db.example/x", "db.example:5432"),
        ("postgresql://u:p@a:1,b:2/x", "a:1, b:2"),
        ("host=a,b port=7", "a:7, b:7"),
        ("hostaddr=10.0.0.1 port=7", "10.0.0.1:7"),
        ("dbname=x", "the local socket, port 5432"),
    ],
)
def test_where_a_database_is_has_no_more_than_hosts_and_ports(
    monkeypatch: pytest.MonkeyPatch, dsn: str, where: str
) -> None:
    monkeypatch.delenv("PGHOST", raising=False)
    monkeypatch.delenv("PGPORT", raising=False)
    assert Target(dsn, "durable").where() == where


@pytest.mark.parametrize(
    "said",
    [
        "Connection refused",
        "No such file or directory",
        "connection timeout expired",
        "server closed the connection unexpectedly",
    ],
)
async def test_a_server_that_is_not_up_is_waited_for_when_asked_to(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dsn: str,
    said: str,
) -> None:
    monkeypatch.setattr(connection, "FIRST_SECONDS", 0.001)
    asked = failing(monkeypatch, said, 3)
    store = PostgresStore(dsn, connect_seconds=60.0)
    try:
        await store.open()
        assert await store.now_us() > 0
    finally:
        await store.close()
    # A pooler that refuses our settings is asked once more.
    assert len(asked) >= 4
    assert "Waiting for it" in caplog.text


@pytest.mark.parametrize(
    "said",
    [
        'FATAL:  password authentication failed for user "someone"',
        'FATAL:  database "nothing" does not exist',
        "failed to resolve host 'nohost': Name or service not known",
    ],
)
async def test_what_waiting_does_not_change_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, dsn: str, said: str
) -> None:
    asked = failing(monkeypatch, said, 9)
    with pytest.raises(StoreUnavailableError):
        await PostgresStore(dsn, connect_seconds=60.0).open()
    assert len(asked) == 1


async def test_a_database_that_a_real_server_does_not_have_is_told_at_once(
    server_dsn: str,
) -> None:
    elsewhere = psycopg.conninfo.make_conninfo(server_dsn, dbname="no_such_database")
    async with asyncio.timeout(60):
        with pytest.raises(StoreUnavailableError, match="no_such_database"):
            await PostgresStore(elsewhere, connect_seconds=600.0).open()


async def test_the_wait_for_a_server_has_an_end(closed_port: int) -> None:
    store = PostgresStore(f"postgresql://127.0.0.1:{closed_port}/nothing", connect_seconds=0.3)
    with pytest.raises(StoreUnavailableError, match="is it running"):
        await store.open()


async def test_a_worker_that_starts_before_its_server_serves_when_it_is_up(
    monkeypatch: pytest.MonkeyPatch, dsn: str
) -> None:
    @activity.defn
    async def nothing() -> None:
        return None

    monkeypatch.setattr(connection, "FIRST_SECONDS", 0.001)
    asked = failing(monkeypatch, "Connection refused", 2)
    async with asyncio.timeout(60), Worker(dsn, activities=[nothing]):
        assert len(asked) > 2


async def test_a_handle_of_a_closed_client_opens_nothing(dsn: str) -> None:
    async with Client.connect(dsn) as client:
        handle = client.get_handle("nobody")
    with pytest.raises(StoreError, match="the store is closed"):
        await handle.describe()
    async with client:
        with pytest.raises(WorkflowNotFoundError):
            await handle.describe()


async def test_a_call_that_is_under_way_gives_its_connection_back_when_it_ends(dsn: str) -> None:
    store = PostgresStore(dsn)
    await store.open()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work(conn: Conn, unsure: bool) -> Conn:
        begun.set()
        await go_on.wait()
        return conn

    call = asyncio.create_task(store.rest.call(work))
    await begun.wait()
    await store.close()
    go_on.set()
    assert (await call).closed
