"""Everything works through PgBouncer in transaction mode, with two server connections.

What the store promises is asked again through it, and so is what workers do.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import test_conformance
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support import pgbouncer as pgbouncer_module
from support.pgbouncer import pgbouncer, shared_folder
from support.store_rig import PostgresRig

from durable import activity, workflow
from durable.client import Client
from durable.errors import ConfigurationError
from durable.options import WorkerOptions
from durable.runtime.worker import Worker
from durable.store.migrate import current_version, latest_version, migrate
from durable.store.postgres import PostgresStore
from durable.store.retention import Upkeep
from durable.store.scratch import drop_schema

SOON = 30.0

NOT_THROUGH_IT = {"test_a_hint_reaches_a_listener", "test_a_hint_says_what_to_look_at"}

# The promises of every store, with the fixture `rig` of this file.
for _name, _promise in vars(test_conformance).items():
    if _name.startswith("test_") and _name not in NOT_THROUGH_IT:
        globals()[_name] = _promise


@activity.defn
async def double(value: int) -> int:
    return 2 * value


@activity.defn
async def elsewhere(value: int) -> int:
    return value + 1


@workflow.defn
async def mixed(value: int) -> int:
    doubled = await double(value)
    await workflow.sleep(0.05)
    more = await workflow.wait_signal("more", type=int)
    return doubled + await elsewhere.with_options(queue="other")(more)


@pytest.fixture(scope="module")
def pooler(server_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pgbouncer(server_dsn, shared_folder(tmp_path_factory)) as dsn:
        yield dsn


@pytest.fixture
def through(pooler: str, dsn: str) -> str:
    """The way to the test's database through the pooler."""
    return make_conninfo(pooler, dbname=conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
async def rig(dsn: str, through: str) -> AsyncIterator[PostgresRig]:
    made = PostgresRig(dsn)
    made.store, made.other = PostgresStore(through), PostgresStore(through)
    await made.store.open()
    await made.other.open()
    yield made
    assert made.store.target.pooler  # type: ignore[attr-defined]
    await made.store.close()
    await made.other.close()


async def test_it_is_noticed_also_where_it_takes_our_settings(
    server_dsn: str, dsn: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = shared_folder(tmp_path_factory)
    with pgbouncer(server_dsn, folder, ignored="options") as pooled:
        store = PostgresStore(make_conninfo(pooled, dbname=conninfo_to_dict(dsn)["dbname"]))
        await store.open()
        for _ in range(10):
            await store.now_us()
        assert store.target.pooler
        with pytest.raises(ConfigurationError, match="listen_dsn"):
            store.listen()
        await store.close()


@pytest.mark.parametrize("listens", [False, True], ids=["by polling", "with listen_dsn"])
async def test_workers_do_everything_through_it(dsn: str, through: str, listens: bool) -> None:
    def store() -> PostgresStore:
        return PostgresStore(through, listen_dsn=dsn if listens else None)

    queues = ("default", "other")
    served: list[dict[str, Any]] = [
        {"workflows": [mixed], "activities": [double]},
        {"activities": [elsewhere], "options": WorkerOptions(queues=queues, poll_max_seconds=0.2)},
    ]
    async with (
        Client.connect(store()) as client,
        Worker(store(), **served[0]),
        Worker(store(), **served[1]),
    ):
        ids = [f"mixed-{n}" for n in range(40)]
        handles = await client.start_many(mixed, [(each, [n]) for n, each in enumerate(ids)])
        assert all(await client.signal_many("more", [(each, [100]) for each in ids]))
        results = [await client.get_handle(each).result(SOON) for each in ids]
        assert results == [2 * n + 101 for n in range(40)]
        assert len(handles) == 40


async def test_a_start_belongs_to_a_transaction_through_it(dsn: str, through: str) -> None:
    async with (
        Client.connect(through) as client,
        await psycopg.AsyncConnection.connect(through, prepare_threshold=None) as conn,
    ):
        await client.start(mixed, 1, id="rolled-back", conn=conn)
        await conn.rollback()
        await client.start(mixed, 1, id="kept", conn=conn)
        await conn.commit()
        assert [view.workflow_id for view in await client.list()] == ["kept"]


async def test_upkeep_works_through_it(rig: PostgresRig) -> None:
    upkeep = Upkeep(rig.store)  # type: ignore[arg-type]
    assert await upkeep.lead(1, 60_000_000)
    assert await upkeep.rotate() == 1
    assert (await upkeep.expire()).left == 0
    assert await upkeep.repair_wakeups() == 0
    assert (await upkeep.gauges()).parts == 1


def test_migrations_work_through_it(through: str) -> None:
    for name in ("one", "two", "three"):
        assert len(migrate(through, name)) == latest_version()
    assert migrate(through, "two") == []
    assert current_version(through, "two") == latest_version()
    for name in ("one", "two", "three"):
        drop_schema(through, name)
    assert current_version(through, "two") is None


async def test_more_callers_than_connections_wait_for_each_other(through: str) -> None:
    stores = [PostgresStore(through) for _ in range(6)]
    for store in stores:
        await store.open()
    times = await asyncio.gather(*(store.now_us() for store in stores for _ in range(20)))
    assert len(times) == 120
    for store in stores:
        await store.close()


def test_a_port_that_somebody_else_took_is_left_to_them(
    server_dsn: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [taken.getsockname()[1]] * 2
        found = pgbouncer_module.free_port
        monkeypatch.setattr(
            pgbouncer_module, "free_port", lambda: ports.pop() if ports else found()
        )
        with pgbouncer(server_dsn, shared_folder(tmp_path_factory)) as dsn:
            assert conninfo_to_dict(dsn)["port"] != str(taken.getsockname()[1])
            with psycopg.connect(dsn) as conn:
                assert conn.execute("SELECT 1").fetchone() == (1,)
    assert ports == []
