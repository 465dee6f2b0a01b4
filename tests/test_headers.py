"""Headers: what a start sends along with the work reaches every run that comes of it."""

from __future__ import annotations

from typing import Any

from durable import Client, RetryPolicy, workflow
from durable.runtime.worker import Worker
from durable.testing import WorkflowEnvironment

SOON = 20.0
TRACE = {"trace": "4bf92f35", "depth": [1, {"sampled": True}]}

Seen = dict[str, Any]


@workflow.defn
async def leaf() -> Seen:
    return dict(workflow.info().headers)


@workflow.defn
async def middle() -> list[Seen]:
    return [dict(workflow.info().headers), await leaf()]


@workflow.defn
async def chain(runs_left: int) -> list[Seen]:
    if runs_left:
        workflow.continue_as_new(runs_left - 1)
    return await middle()


@workflow.defn(retry=RetryPolicy(max_attempts=2, initial_interval=0.01))
async def second_try() -> Seen:
    if workflow.info().attempt == 1:
        raise ValueError("not yet")
    return dict(workflow.info().headers)


async def test_headers_reach_children_grandchildren_and_successors(
    client: Client, dsn: str
) -> None:
    async with Worker(dsn, workflows=[leaf, middle, chain, second_try]):
        handle = await client.start(chain, 2, id="c", headers=TRACE)
        assert await handle.result(SOON) == [TRACE, TRACE]
        again = await client.start(second_try, id="s", headers=TRACE)
        assert await again.result(SOON) == TRACE
        plain = await client.start(leaf, id="plain")
        assert await plain.result(SOON) == {}


async def test_every_way_to_start_takes_headers(client: Client, dsn: str) -> None:
    starts = [("m1", ()), ("m2", (), {"headers": {"trace": "own"}})]
    many = await client.start_many(leaf, starts, headers=TRACE)
    one = await client.signal_with_start(leaf, id="w", signal="x", headers=TRACE)
    async with Worker(dsn, workflows=[leaf]):
        results = [await client.get_handle(f"m{n}").result(SOON) for n in (1, 2)]
        assert (len(many), results) == (2, [TRACE, {"trace": "own"}])
        assert await one.result(SOON) == TRACE


async def test_headers_are_the_same_in_the_test_environment() -> None:
    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        handle = await env.start(chain, 2, headers=TRACE)
        assert await handle.result() == [TRACE, TRACE]
