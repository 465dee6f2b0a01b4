"""Connecting for the first time: what is told at once, and what is waited for."""

import socket

import psycopg
import pytest

from durable.client import Client
from durable.errors import ConfigurationError, StoreUnavailableError
from durable.store.connection import Conn, Target
from durable.store.postgres import PostgresStore


@pytest.fixture
def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


def failing(monkeypatch: pytest.MonkeyPatch, said: str, times: int, after: int = 0) -> list[Target]:
    """Let some connects fail with these words; return what they were asked of."""
    asked: list[Target] = []
    real = Target.connect_once

    async def connect_once(self: Target) -> Conn:
        asked.append(self)
        if after < len(asked) <= after + times:
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
    asked = failing(monkeypatch, "Connection refused", 2, after=1)
    store = PostgresStore(dsn)
    await store.open()
    await store.close()
    assert await store.now_us() > 0
    assert len(asked) == 4
    await store.close()


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
