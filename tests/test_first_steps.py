"""What a newcomer tries first with a client and a worker: it works, or the error says how."""

from __future__ import annotations

from typing import Any

import pytest

from durable import ConfigurationError, InvalidArgumentError, RunState, activity, workflow
from durable.client import Client
from durable.runtime.worker import Worker

SOON = 20.0


@activity.defn
async def add(number: int) -> int:
    return number + 1


@workflow.defn
async def adding(number: int) -> int:
    return await add(number)


async def test_client_may_be_awaited_and_closed(dsn: str) -> None:
    client = await Client.connect(dsn)
    try:
        async with Worker(dsn, workflows=[adding], activities=[add]):
            handle = await client.start(adding, 1, id="adding")
            assert await handle.result(SOON) == 2
    finally:
        await client.close()


async def test_awaited_client_may_still_be_a_block(dsn: str) -> None:
    async with await Client.connect(dsn) as client:
        assert (await client.list()).cursor is None


async def test_wait_for_a_run_that_no_worker_takes_says_so(client: Client) -> None:
    handle = await client.start(adding, 1, id="lost", queue="oders")

    with pytest.raises(TimeoutError, match="none serves queue 'oders' with workflow 'adding'"):
        await handle.result(timeout=0.01)


async def test_worker_that_is_given_a_client_asks_for_the_dsn(client: Client) -> None:
    wrong: Any = client
    with pytest.raises(ConfigurationError, match="a worker gets the DSN"):
        Worker(wrong, workflows=[adding])


def test_worker_asks_for_lists(dsn: str) -> None:
    wrong: Any = adding
    with pytest.raises(ConfigurationError, match=r"workflows are a list: workflows=\[\.\.\.\]"):
        Worker(dsn, workflows=wrong)


async def test_words_for_states_and_reuse_are_refused_with_what_is_meant(client: Client) -> None:
    wrong: Any
    for wrong in (["running"], "running"):
        with pytest.raises(InvalidArgumentError, match=r"such as \[RunState.FAILED\]"):
            await client.list(states=wrong)
    assert len(await client.list(states=[RunState.RUNNING])) == 0
    wrong = "allow"
    with pytest.raises(InvalidArgumentError, match=r"id_reuse is one of IdReuse\.REJECT"):
        await client.start(adding, 1, id="a", id_reuse=wrong)
    wrong = "high"
    with pytest.raises(InvalidArgumentError, match="a priority is"):
        await client.start(adding, 1, id="a", priority=wrong)
