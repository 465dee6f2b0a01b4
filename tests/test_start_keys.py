"""Deduplication and debouncing as clients see them."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from durable import (
    Client,
    InvalidArgumentError,
    RunState,
    WorkflowAlreadyStartedError,
    activity,
    workflow,
)

SOON = 20.0


@workflow.defn
async def sync(account: str) -> str:
    return await workflow.wait_signal("go", str)


@workflow.defn
async def index(document: str, version: int) -> list[Any]:
    return [document, version, workflow.info().workflow_id]


@activity.defn
async def reindex(document: str, version: int) -> str:
    return f"{document} {version}"


async def test_a_second_start_gets_the_run_that_holds_the_key(client: Client, serve: Any) -> None:
    first = await client.start(sync, "acme", id="sync-1", dedup_key="acme")
    again = await client.start(sync, "acme", id="sync-2", dedup_key="acme")
    other = await client.start(sync, "initech", id="sync-3", dedup_key="initech")
    assert (again.workflow_id, again.run_id) == ("sync-1", first.run_id)
    assert other.workflow_id == "sync-3"
    await serve(sync)
    await first.signal("go", "done")
    assert await again.result(SOON) == "done"
    after = await client.start(sync, "acme", id="sync-4", dedup_key="acme")
    assert after.workflow_id == "sync-4"


async def test_a_duplicate_may_be_an_error_that_names_the_holder(client: Client) -> None:
    first = await client.enqueue(reindex, "d", 1, dedup_key="d")
    with pytest.raises(WorkflowAlreadyStartedError, match="dedup_key 'd' is held by") as caught:
        await client.enqueue(reindex, "d", 2, dedup_key="d", on_duplicate="error")
    assert (caught.value.run_id, caught.value.dedup_key) == (first.run_id, "d")


async def test_of_many_callers_one_starts_and_all_get_its_handle(client: Client, dsn: str) -> None:
    async with Client.connect(dsn) as other:
        handles = await asyncio.gather(
            *(
                each.start(sync, "acme", id=f"sync-{number}", dedup_key="acme")
                for number, each in enumerate([client, other] * 10)
            )
        )
    assert len({handle.run_id for handle in handles}) == 1
    assert len(await client.list()) == 1


async def test_start_many_knows_keys_of_each_start(client: Client) -> None:
    starts = [(f"s{n}", ["a"], {"dedup_key": f"k{n % 2}"}) for n in range(4)]
    handles = await client.start_many(sync, starts)  # type: ignore[arg-type]
    assert not any(isinstance(each, Exception) for each in handles)
    assert len({each.run_id for each in handles}) == 2  # type: ignore[union-attr]


async def test_debounced_starts_become_one_run_with_the_last_arguments(
    client: Client, serve: Any
) -> None:
    handles = [
        await client.start(
            index, "doc", version, id=f"i{version}", debounce_key="doc", debounce=3600
        )
        for version in range(3)
    ]
    assert {handle.workflow_id for handle in handles} == {"i0"}
    last = await client.start(index, "doc", 3, id="i3", debounce_key="doc", debounce=0.2)
    await serve(index)
    assert [await each.result(SOON) for each in (*handles, last)] == [["doc", 3, "i0"]] * 4
    (view,) = await client.list()
    assert view.state == RunState.COMPLETED


async def test_a_debounced_job_begins_at_the_latest_after_debounce_max(
    client: Client, serve: Any
) -> None:
    for version in range(3):
        handle = await client.enqueue(
            reindex, "doc", version, debounce_key="doc", debounce=0.2, debounce_max=0.2
        )
    late = client.enqueue(reindex, "doc", 3, debounce_key="doc", debounce=3600, debounce_max=3600)
    await serve(reindex)
    assert await handle.result(SOON) == "doc 2"
    # It began, so its key was free.
    assert (await late).workflow_id != handle.workflow_id


async def test_parallel_debounced_starts_lose_none_and_leave_one(
    client: Client, dsn: str, serve: Any
) -> None:
    async with Client.connect(dsn) as other:
        handles = await asyncio.gather(
            *(
                each.enqueue(reindex, "doc", number, debounce_key="doc", debounce=0.5)
                for number, each in enumerate([client, other] * 10)
            )
        )
    assert len({handle.run_id for handle in handles}) == 1
    await serve(reindex)
    assert (await handles[0].result(SOON)).startswith("doc ")
    assert len(await client.list()) == 1


async def test_a_cancelled_debounced_run_is_not_brought_back(client: Client) -> None:
    first = await client.enqueue(reindex, "doc", 1, debounce_key="doc", debounce=3600)
    await first.cancel()
    again = await client.enqueue(reindex, "doc", 2, debounce_key="doc", debounce=3600)
    assert again.workflow_id != first.workflow_id


async def test_keys_belong_to_the_transaction_of_the_caller(client: Client, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await client.enqueue(reindex, "doc", 1, debounce_key="doc", debounce=60, conn=conn)
        await client.enqueue(reindex, "doc", 2, debounce_key="doc", debounce=60, conn=conn)
        await client.enqueue(reindex, "doc", 1, dedup_key="doc", conn=conn)
        await conn.rollback()
    assert await client.list() == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"dedup_key": ""}, "dedup_key"),
        ({"dedup_key": "a", "on_duplicate": "ignore"}, "on_duplicate"),
        ({"debounce_key": "a"}, "needs debounce="),
        ({"debounce_key": "a", "debounce": 0}, "more than zero"),
        ({"debounce": 5}, "debounce_key"),
        ({"debounce_key": "a", "debounce": 5, "debounce_max": 4}, "shorter"),
        ({"debounce_key": "a", "debounce": 5, "dedup_key": "a"}, "not both"),
        ({"debounce_key": "a", "debounce": 5, "start_delay": 1}, "leave out"),
    ],
)
async def test_keys_that_make_no_sense_are_refused(
    client: Client, wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        await client.start(sync, "a", id="x", **wrong)
    assert await client.list() == []


async def test_start_many_does_not_debounce(client: Client) -> None:
    with pytest.raises(InvalidArgumentError, match="one by one"):
        await client.start_many(sync, [("a", ["x"])], debounce_key="k", debounce=1)
