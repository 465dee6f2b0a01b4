"""Requirements on updates: validated requests that change a run and answer."""

import asyncio
from typing import Any

import pytest

from durable import GuardError, NonRetryable, Worker, activity, workflow
from durable.errors import ActivityError, UpdateRejectedError, WorkflowNotFoundError
from durable.testing import WorkflowEnvironment


@activity.defn
async def price(item: str) -> int:
    if item == "gold":
        raise NonRetryable("not for sale")
    return len(item)


@workflow.defn
class Basket:
    """Takes items until it is closed."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self.total = 0
        self.is_closed = False

    @workflow.run
    async def run(self) -> int:
        await workflow.wait_condition(lambda: self.is_closed)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self.total

    @workflow.update
    async def put(self, item: str) -> int:
        cents = await price(item)
        self.total += cents
        self.items.append(item)
        return self.total

    @put.validator
    def may_put(self, item: str) -> None:
        if not item:
            raise ValueError("an item has a name")

    @workflow.update
    def clear(self) -> list[str]:
        items, self.items = self.items, []
        return items

    @workflow.update
    async def meddled(self) -> str:
        return "done"

    @meddled.validator
    def check_meddled(self) -> None:
        price.start("tea")

    @workflow.update(name="set.limit")
    async def limit(self, number: int) -> dict[str, int]:
        return {"limit": number}

    @workflow.query
    def content(self) -> list[str]:
        return self.items

    @workflow.signal
    def close(self) -> None:
        self.is_closed = True


async def test_update_01(env: WorkflowEnvironment) -> None:
    """update-1: An update changes the run and returns its handler's answer."""
    handle = await env.start(Basket)
    assert await handle.update("put", "tea") == 3
    assert await handle.query("content") == ["tea"]


async def test_update_02(env: WorkflowEnvironment) -> None:
    """update-2: What the validator refuses leaves no trace."""
    handle = await env.start(Basket)
    await handle.update("put", "tea")
    before = list((await handle.history()).kinds)
    with pytest.raises(UpdateRejectedError, match="an item has a name") as refused:
        await handle.update("put", "")
    assert isinstance(refused.value.__cause__, ValueError)
    assert str(refused.value.__cause__) == "an item has a name"
    assert (await handle.history()).kinds == before
    assert await handle.query("content") == ["tea"]


async def test_update_03(env: WorkflowEnvironment) -> None:
    """update-3: A handler that fails tells the caller why, and the run goes on."""
    handle = await env.start(Basket)
    with pytest.raises(ActivityError, match="not for sale"):
        await handle.update("put", "gold")
    assert await handle.update("put", "tea") == 3


async def test_update_04(env: WorkflowEnvironment) -> None:
    """update-4: An unknown update is rejected, naming those there are."""
    handle = await env.start(Basket)
    with pytest.raises(UpdateRejectedError, match="put"):
        await handle.update("nonsense")


async def test_update_05(env: WorkflowEnvironment) -> None:
    """update-5: A run that has ended takes no update, and the caller is told."""
    handle = await env.start(Basket)
    await handle.signal("close")
    await handle.result()
    with pytest.raises(WorkflowNotFoundError):
        await handle.update("put", "tea")


async def test_update_06(env: WorkflowEnvironment) -> None:
    """update-6: A plain method answers at once; the answer has the annotated type."""
    handle = await env.start(Basket)
    await handle.update("put", "tea")
    assert await handle.update(Basket.clear) == ["tea"]
    assert await handle.update("clear") == []


async def test_update_07(env: WorkflowEnvironment) -> None:
    """update-7: An update may have a name of its own."""
    handle = await env.start(Basket)
    assert await handle.update("set.limit", 7) == {"limit": 7}


async def test_update_08(env: WorkflowEnvironment) -> None:
    """update-8: Updates sent at the same time are each done once and each answered."""
    handle = await env.start(Basket)
    answers = await asyncio.gather(*(handle.update("put", "x") for _ in range(5)))
    assert sorted(answers) == [1, 2, 3, 4, 5]


async def test_update_09(env: WorkflowEnvironment) -> None:
    """update-9: Arguments that do not fit are refused without a trace."""
    handle = await env.start(Basket)
    before = list((await handle.history()).kinds)
    with pytest.raises(UpdateRejectedError, match="limit"):
        await handle.update("set.limit", "many")
    assert (await handle.history()).kinds == before


async def test_update_10(env: WorkflowEnvironment) -> None:
    """update-10: A validator may only look: what it would change is refused."""
    handle = await env.start(Basket)
    with pytest.raises(GuardError):
        await handle.update("meddled")
    assert await handle.update("put", "tea") == 3


async def test_update_11(env: WorkflowEnvironment) -> None:
    """update-11: A function takes updates too, with a validator."""

    @workflow.defn
    async def flow() -> int:
        total = 0

        async def add(number: int) -> int:
            nonlocal total
            total += number
            return total

        def only_positive(number: int) -> None:
            if number <= 0:
                raise ValueError("more than zero, please")

        workflow.on_update("add", add, validator=only_positive)
        await workflow.wait_condition(lambda: total >= 10)
        return total

    handle = await env.start(flow)
    assert await handle.update("add", 4) == 4
    with pytest.raises(UpdateRejectedError, match="more than zero"):
        await handle.update("add", -1)
    assert await handle.update("add", 6) == 10
    assert await handle.result() == 10


async def test_update_12(env: WorkflowEnvironment) -> None:
    """update-12: A run may wait until all its handlers have finished."""
    gate, begun = asyncio.Event(), asyncio.Event()

    async def slow(item: str) -> int:
        begun.set()
        await gate.wait()
        return 5

    env.mock(price, slow)
    handle = await env.start(Basket)
    asking = asyncio.create_task(handle.update("put", "tea"))
    await asyncio.wait_for(begun.wait(), 10)
    await handle.signal("close")
    gate.set()
    assert await asking == 5
    assert await handle.result() == 5


async def test_update_13(env: WorkflowEnvironment) -> None:
    """update-13: The end of a run answers the updates that still wait."""

    @workflow.defn
    async def flow() -> str:
        async def never() -> None:
            await asyncio.sleep(3600)

        workflow.on_update("never", never)
        await workflow.wait_signal("stop")
        return "ended"

    handle = await env.start(flow)
    asking = asyncio.create_task(handle.update("never"))
    while "UPDATE_ACCEPTED" not in (await handle.history()).kinds:
        await asyncio.sleep(0)
    await handle.signal("stop")
    with pytest.raises(UpdateRejectedError, match="ended"):
        await asking
    assert await handle.result() == "ended"


async def test_update_14(env: WorkflowEnvironment) -> None:
    """update-14: Queries and signals are served while an update waits."""
    gate, begun = asyncio.Event(), asyncio.Event()

    async def slow(item: str) -> int:
        begun.set()
        await gate.wait()
        return 5

    env.mock(price, slow)
    handle = await env.start(Basket)
    asking = asyncio.create_task(handle.update("put", "tea"))
    await asyncio.wait_for(begun.wait(), 10)
    assert await handle.query("content") == []
    gate.set()
    assert await asking == 5
    assert await handle.query("content") == ["tea"]


async def test_update_15(env: WorkflowEnvironment) -> None:
    """update-15: Handlers may take turns with a lock."""

    @workflow.defn
    class Turns:
        def __init__(self) -> None:
            self.lock = asyncio.Lock()
            self.log: list[str] = []

        @workflow.run
        async def run(self) -> list[str]:
            await workflow.wait_condition(lambda: len(self.log) == 4)
            return self.log

        @workflow.update
        async def turn(self, name: str) -> None:
            async with self.lock:
                self.log.append(f"{name} in")
                await asyncio.sleep(0.02)
                self.log.append(f"{name} out")

    handle = await env.start(Turns)
    await asyncio.gather(handle.update("turn", "a"), handle.update("turn", "b"))
    log = await handle.result()
    assert log in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])


async def test_update_16(database: Any) -> None:
    """update-16: One call updates a run, and starts it when it is not there."""
    async with Worker(database.dsn, workflows=[Basket], activities=[price]):
        for total in (3, 6):
            answer = await database.client.update_with_start(
                Basket, id="basket-1", update="put", update_args=["tea"]
            )
            assert answer == total
