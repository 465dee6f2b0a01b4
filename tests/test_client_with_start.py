"""Calls that talk to a run, and start it when it is not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from durable import workflow
from durable.client import Client
from durable.errors import (
    ApplicationError,
    InvalidArgumentError,
    UnknownWorkflowError,
    UpdateRejectedError,
    WorkflowAlreadyStartedError,
)
from durable.events import IdReuse
from durable.runtime.worker import Worker

SOON = 20.0


@dataclass
class Item:
    name: str
    count: int = 1


@workflow.defn
class Basket:
    def __init__(self) -> None:
        self.items: list[Item] = []
        self.is_open = True

    @workflow.run
    async def run(self, owner: str) -> list[Item]:
        await workflow.wait_condition(lambda: not self.is_open)
        return [Item(owner), *self.items]

    @workflow.signal
    def add(self, item: Item, count: int = 1) -> None:
        self.items.append(Item(item.name, count))

    @workflow.signal
    def close(self) -> None:
        self.is_open = False

    @workflow.update
    async def put(self, item: Item) -> Item:
        if item.count > 9:
            raise ApplicationError("too many")
        self.items.append(item)
        return Item(item.name, len(self.items))

    @put.validator
    def check(self, item: Item) -> None:
        if item.count < 1:
            raise ValueError("none")

    @workflow.update
    def leave(self) -> str:
        self.is_open = False
        return "left"


@pytest.fixture
async def client(dsn: str) -> AsyncIterator[Client]:
    async with Client.connect(dsn, workflows=[Basket]) as connected:
        yield connected


async def ids(client: Client) -> list[str]:
    return [view.workflow_id for view in await client.list()]


async def test_the_signal_is_there_from_the_beginning(client: Client, dsn: str) -> None:
    handle = await client.signal_with_start(
        Basket.run,
        "Ann",
        id="b",
        signal=Basket.add,
        signal_args=(Item("tea"), 2),
        search={"customer": "Ann"},
    )
    again = await client.signal_with_start("Basket", "Bob", id="b", signal="close")

    assert again.run_id == handle.run_id
    assert len(await client.list(search={"customer": "Ann"})) == 1
    async with Worker(dsn, workflows=[Basket]):
        assert await handle.result(SOON) == [Item("Ann"), Item("tea", 2)]


async def test_many_at_once_start_one_run_and_lose_no_signal(client: Client, dsn: str) -> None:
    async def add(number: int) -> Any:
        item = Item(str(number))
        return await client.signal_with_start(
            Basket.run, "Ann", id="b", signal=Basket.add, signal_args=(item,)
        )

    async with Worker(dsn, workflows=[Basket]):
        handles = await asyncio.gather(*(add(number) for number in range(40)))
        await handles[0].signal(Basket.close)
        found = await handles[0].result(SOON)

    assert len({handle.run_id for handle in handles}) == 1
    assert sorted(int(item.name) for item in found[1:]) == list(range(40))


async def test_a_run_that_closes_meanwhile_makes_room_for_the_next(
    client: Client, dsn: str
) -> None:
    """Each call is taken by an open run, however often they close in between."""
    async with Worker(dsn, workflows=[Basket]):
        handles = [
            await client.signal_with_start(
                Basket.run, str(n), id="b", signal=Basket.close, id_reuse=IdReuse.AFTER_CLOSE
            )
            for n in range(30)
        ]
        results = await asyncio.gather(*(handle.result(SOON) for handle in handles))

    by_run = dict(zip([handle.run_id for handle in handles], results, strict=True))
    assert len(by_run) == len(await client.list())


async def test_it_belongs_to_the_transaction_of_the_caller(client: Client, dsn: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        await client.signal_with_start(Basket.run, "Ann", id="b", signal=Basket.close, conn=conn)
        await conn.rollback()
        assert await ids(client) == []
        for _ in range(2):
            handle = await client.signal_with_start(
                Basket.run, "Ann", id="b", signal=Basket.add, signal_args=(Item("a"),), conn=conn
            )
        await conn.commit()

    assert await ids(client) == ["b"]
    assert len(await client.store.inbox([handle.run_id or ""])) == 2


async def test_a_repeated_request_signals_once(client: Client) -> None:
    for owner in ("Ann", "Bob"):
        handle = await client.signal_with_start(
            Basket.run, owner, id="b", signal=Basket.close, request_id="r-1"
        )
    assert len(await client.store.inbox([handle.run_id or ""])) == 1


async def test_a_repeated_request_starts_no_second_run_after_the_first_has_ended(
    client: Client, dsn: str
) -> None:
    async def ask() -> Any:
        return await client.signal_with_start(
            Basket.run,
            "Ann",
            id="b",
            signal=Basket.close,
            request_id="r-1",
            id_reuse=IdReuse.AFTER_CLOSE,
        )

    async with Worker(dsn, workflows=[Basket]):
        first = await ask()
        await first.result(SOON)
        again = await ask()
        assert await again.result(SOON) == [Item("Ann")]

    assert again.run_id == first.run_id
    assert await ids(client) == ["b"]


async def test_an_id_whose_run_has_closed_is_refused_unless_it_may_be_used_again(
    client: Client, dsn: str
) -> None:
    async with Worker(dsn, workflows=[Basket]):
        first = await client.signal_with_start(Basket.run, "Ann", id="b", signal=Basket.close)
        await first.result(SOON)
    with pytest.raises(WorkflowAlreadyStartedError, match=str(first.run_id)):
        await client.signal_with_start(Basket.run, "Ann", id="b", signal=Basket.close)

    second = await client.signal_with_start(
        Basket.run, "Ann", id="b", signal=Basket.close, id_reuse=IdReuse.AFTER_CLOSE
    )
    assert second.run_id != first.run_id


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"signal": Basket.add}, InvalidArgumentError, "item"),
    ({"signal": Basket.add, "signal_args": ("tea",)}, InvalidArgumentError, "Item"),
    ({"id": ""}, InvalidArgumentError, "workflow id"),
    ({"request_id": "\0"}, InvalidArgumentError, "request id"),
    ({"priorite": 1}, InvalidArgumentError, "no option 'priorite'"),
    ({"start_delay": -1}, InvalidArgumentError, "start_delay"),
]


@pytest.mark.parametrize(("change", "error", "says"), WRONG)
async def test_what_is_wrong_is_refused_before_anything_is_written(
    client: Client, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    call: Any = {"id": "b", "signal": "close", **change}
    with pytest.raises(error, match=says):
        await client.signal_with_start(Basket.run, "Ann", **call)
    with pytest.raises(UnknownWorkflowError, match="nobody"):
        await client.signal_with_start("nobody", id="b", signal="close")
    assert await ids(client) == []


async def test_an_update_starts_the_run_and_is_answered(client: Client, dsn: str) -> None:
    async with Worker(dsn, workflows=[Basket]):
        answers = [
            await client.update_with_start(
                Basket.run, "Ann", id="b", update=Basket.put, update_args=(Item(name),)
            )
            for name in ("tea", "milk")
        ]
        assert answers == [Item("tea", 1), Item("milk", 2)]
        assert await client.update_with_start(Basket.run, "Ann", id="b", update=Basket.leave) == (
            "left"
        )
        items = [Item("Ann"), Item("tea"), Item("milk")]
        assert await client.get_handle("b").result(SOON) == items


async def test_an_update_by_name_is_read_as_it_is_told(client: Client, dsn: str) -> None:
    call: Any = {"id": "b", "update": "put", "update_args": [{"name": "tea", "count": 1}]}
    async with Worker(dsn, workflows=[Basket]):
        assert await client.update_with_start("Basket", "Ann", **call) == {
            "name": "tea",
            "count": 1,
        }
        typed = await client.update_with_start("Basket", "Ann", **call, result_type=Item)
        assert typed == Item("tea", 2)


async def test_an_update_that_is_asked_again_is_done_once(client: Client, dsn: str) -> None:
    async with Worker(dsn, workflows=[Basket]):
        answers = [
            await client.update_with_start(
                Basket.run,
                "Ann",
                id="b",
                update=Basket.put,
                update_args=(Item("tea"),),
                request_id="u-1",
            )
            for _ in range(2)
        ]
    assert answers == [Item("tea", 1)] * 2


async def test_what_an_update_raises_is_raised_here(client: Client, dsn: str) -> None:
    async with Worker(dsn, workflows=[Basket]):
        for item, error in (
            (Item("tea", 0), UpdateRejectedError),
            (Item("x", 10), ApplicationError),
        ):
            with pytest.raises(error) as caught:
                await client.update_with_start(
                    Basket.run, "Ann", id="b", update=Basket.put, update_args=(item,)
                )
            if error is UpdateRejectedError:
                assert isinstance(caught.value.__cause__, ValueError)
    assert await ids(client) == ["b"]


async def test_an_update_that_nobody_answers_is_a_timeout_and_can_be_asked_again(
    client: Client, dsn: str
) -> None:
    async def ask(timeout: float) -> Any:  # noqa: ASYNC109
        return await client.update_with_start(
            Basket.run, "Ann", id="b", update=Basket.leave, request_id="u", timeout=timeout
        )

    with pytest.raises(TimeoutError, match="is a worker with its code running"):
        await ask(0.01)
    async with Worker(dsn, workflows=[Basket]):
        assert await ask(SOON) == "left"


async def test_a_typed_answer_comes_back_as_the_method_says(client: Client, dsn: str) -> None:
    handle = await client.start(Basket.run, "Ann", id="b")
    async with Worker(dsn, workflows=[Basket]):
        assert await handle.update(Basket.put, Item("tea")) == Item("tea", 1)
        plain = await handle.update("put", Item("tea"))
        assert plain == {"name": "tea", "count": 2}


async def test_an_update_behind_the_end_of_the_run_is_told_so(client: Client, dsn: str) -> None:
    handle = await client.start(Basket.run, "Ann", id="b")
    await handle.signal(Basket.close)
    late = asyncio.create_task(handle.update(Basket.put, Item("tea")))
    async with asyncio.timeout(SOON):
        while len(await client.store.inbox([handle.run_id or ""])) < 2:
            await asyncio.sleep(0.01)

    async with Worker(dsn, workflows=[Basket]):
        with pytest.raises(UpdateRejectedError, match="the run has ended"):
            await late
        assert await handle.result(SOON) == [Item("Ann")]
