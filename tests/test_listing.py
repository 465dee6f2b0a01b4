"""Listings: which runs, in which order, and pages that nothing moves; on both stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable import Client, IdReuse, RunState, SyncClient, Worker, workflow
from durable.errors import InvalidArgumentError
from durable.events import RunView
from durable.store.memory import MemoryStore
from durable.store.postgres import PostgresStore

SOON = 30.0


@workflow.defn
async def waits() -> str:
    return await workflow.wait_signal("go", type=str)


@workflow.defn
async def ends(number: int) -> int:
    return number


@pytest.fixture(params=["memory", "postgres"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """With runs o-0 to o-5, of which the even ones have ended, then two that wait."""
    is_memory = request.param == "memory"
    store = MemoryStore() if is_memory else PostgresStore(request.getfixturevalue("dsn"))
    async with Client.connect(store) as made, Worker(store, workflows=[waits, ends]):
        for number in range(6):
            search = {"parity": number % 2}
            if number % 2:
                await made.start(waits, id=f"o-{number}", search=search)
            else:
                handle = await made.start(ends, number, id=f"o-{number}", search=search)
                assert await handle.result(SOON) == number
        await made.start(waits, id="far", queue="far")
        await made.start(waits, id="later")
        yield made


def ids(views: list[RunView]) -> list[str]:
    return [view.workflow_id for view in views]


ALL = ["later", "far", "o-5", "o-4", "o-3", "o-2", "o-1", "o-0"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, ALL),
        ({"states": [RunState.COMPLETED]}, ["o-4", "o-2", "o-0"]),
        ({"states": [RunState.RUNNING, RunState.COMPLETED]}, ALL),
        ({"states": [RunState.RUNNING], "id_prefix": "o-"}, ["o-5", "o-3", "o-1"]),
        ({"workflow_type": "ends", "search": {"parity": 0}}, ["o-4", "o-2", "o-0"]),
        ({"search": {"parity": 1}}, ["o-5", "o-3", "o-1"]),
        ({"queue": "far"}, ["far"]),
        ({"id_prefix": "o_"}, []),
        ({"limit": 3}, ["later", "far", "o-5"]),
        ({"closed_after": datetime(2000, 1, 1, tzinfo=UTC)}, ["o-4", "o-2", "o-0"]),
        ({"closed_before": datetime(2000, 1, 1, tzinfo=UTC)}, []),
        ({"started_before": datetime(2000, 1, 1, tzinfo=UTC)}, []),
        ({"started_after": datetime(2000, 1, 1, tzinfo=UTC), "limit": 1}, ["later"]),
    ],
)
async def test_what_fits_is_listed_the_newest_first(
    client: Client, wanted: dict[str, Any], found: list[str]
) -> None:
    assert ids(await client.list(**wanted)) == found


async def test_times_of_start_and_end_bound_a_listing(client: Client) -> None:
    views = {view.workflow_id: view for view in await client.list()}

    def at(time_us: int | None) -> datetime:
        assert time_us is not None
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_us)

    begun, ended = at(views["o-2"].created_us), at(views["o-2"].closed_us)
    assert ids(await client.list(started_after=begun, id_prefix="o-")) == ALL[2:6]
    assert ids(await client.list(started_before=begun)) == ALL[6:]
    assert ids(await client.list(closed_after=ended)) == ["o-4", "o-2"]
    assert ids(await client.list(closed_before=ended)) == ["o-0"]
    assert ids(await client.list(closed_after=ended, closed_before=at(views["o-4"].closed_us))) == [
        "o-2"
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9])
async def test_pages_are_the_whole_listing(client: Client, size: int) -> None:
    found, cursor = [], None
    while True:
        page = await client.list(limit=size, cursor=cursor)
        assert len(page) <= size
        found += ids(page)
        cursor = page.cursor
        if cursor is None:
            break
    assert found == ALL
    assert [view.workflow_id async for view in client.list_all(limit=size)] == ALL


async def test_what_starts_and_ends_between_two_pages_moves_nothing(client: Client) -> None:
    first = await client.list(limit=3)
    await client.get_handle("o-3").signal("go", "on")
    await client.get_handle("o-3").result(SOON)
    await client.start(waits, id="new")
    again = await client.start(ends, 7, id="o-0", id_reuse=IdReuse.AFTER_CLOSE)
    await again.result(SOON)

    rest = await client.list(limit=100, cursor=first.cursor)

    assert ids(first) == ALL[:3]
    assert ids(rest) == ALL[3:]
    assert {view.workflow_id: view.state for view in rest}["o-3"] == RunState.COMPLETED
    assert rest.cursor is None


@pytest.mark.parametrize(
    "bad",
    [
        {"cursor": "nonsense"},
        {"cursor": ""},
        {"cursor": "é"},
        {"cursor": 7},
        {"cursor": "MTIzIDQ1Ng"},
        {"limit": 0},
        {"limit": 10_001},
        {"workflow_type": ""},
        {"id_prefix": "a\x00b"},
        {"started_after": datetime(2026, 1, 1)},
        {"closed_before": datetime(2026, 1, 1)},
    ],
)
async def test_what_no_page_can_be_is_refused(client: Client, bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        await client.list(**bad)


async def test_code_without_asyncio_goes_over_the_same_runs(dsn: str) -> None:
    async with Client.connect(dsn) as client:
        for number in range(5):
            await client.start(waits, id=f"s-{number}")
    with SyncClient.connect(dsn) as sync:
        assert ids(list(sync.list_all(limit=2))) == [f"s-{n}" for n in (4, 3, 2, 1, 0)]
        assert ids(sync.list(limit=2)) == ["s-4", "s-3"]
        assert sorted(ids(list(sync.iterate()))) == [f"s-{n}" for n in range(5)]
