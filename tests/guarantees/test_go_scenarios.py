"""Everything the Go system's end-to-end tests show, over PostgreSQL and two worker processes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from scenarios import (
    await_event,
    bank_transfer,
    forty_at_once,
    handle_events,
    sum_of_two_random_numbers,
    two_stations,
)

from durable import Client, Supervisor, SupervisorOptions, WorkflowFailedError

APP = str(Path(__file__).with_name("scenarios.py"))


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    options = SupervisorOptions(processes=2, http_port=None)
    async with Supervisor(APP, dsn, options=options), Client.connect(dsn) as client:
        yield client


async def until(
    read: Callable[[], Coroutine[Any, Any, dict[str, Any]]], holds: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The variables of a run, once they are as wanted."""
    async with asyncio.timeout(30):
        while not holds(found := await read()):
            await asyncio.sleep(0.02)
    return found


async def test_sum_of_two_random_numbers(client: Client) -> None:
    handle = await client.start(sum_of_two_random_numbers, 1000, id="sum")
    result = await handle.result(30)
    assert result.total == sum(result.parts)
    assert await handle.vars() == {"left": result.parts[0], "right": result.parts[1]}


async def test_forty_activities_at_once_add_up(client: Client) -> None:
    handle = await client.start(forty_at_once, 40, id="forty")
    result = await handle.result(30)
    assert len(result.parts) == 40
    assert result.total == sum(result.parts)


async def test_a_bank_transfer_moves_money_once(client: Client) -> None:
    handle = await client.start(bank_transfer, "ann", "bob", 40, id="transfer")
    minus, plus = await handle.result(30)
    assert minus.endswith(": -40 ann")
    assert plus.endswith(": +40 bob")


async def test_a_transfer_to_a_locked_account_is_paid_back(client: Client) -> None:
    handle = await client.start(bank_transfer, "ann", "locked", 40, id="transfer")
    with pytest.raises(WorkflowFailedError, match="account locked"):
        await handle.result(30)
    moves = (await handle.vars())["moves"]
    assert [move.partition(": ")[2] for move in moves] == ["-40 ann", "+40 ann"]


async def test_a_workflow_waits_for_an_event(client: Client) -> None:
    handle = await client.start(await_event, id="event")
    await until(handle.vars, lambda found: found.get("waits") is True)
    await handle.signal("hello", "Hello, world!")
    assert await handle.result(30) == "Hello, world!"


async def test_an_event_that_comes_before_anyone_waits_is_kept(client: Client) -> None:
    handle = await client.start(await_event, id="event", start_delay=0.3)
    await handle.signal("hello", "early")
    assert await handle.result(30) == "early"


async def test_events_are_handled_during_a_timer(client: Client) -> None:
    handle = await client.start(handle_events, 1.0, id="events")
    for word in ("one", "two", "three"):
        await handle.signal("word", word)
    await until(handle.vars, lambda found: found.get("heard") == ["one", "two", "three"])
    assert await handle.result(30) == ["one", "two", "three"]


async def test_the_debugger_shows_a_pending_a_running_and_an_ended_run(client: Client) -> None:
    pending = await client.start(two_stations, 60.0, id="pending", start_delay=3600)
    # It has not begun: what its code would do first.
    assert await pending.vars() == {}
    running = await client.start(two_stations, 60.0, id="running")
    await until(running.vars, lambda found: found == {"first": 3})
    ended = await client.start(two_stations, 0.01, id="ended")
    assert await ended.result(30) == "arrived"
    assert await ended.vars() == {"first": 3, "second": 7}
    await pending.terminate("not needed")
    await running.terminate("not needed")
