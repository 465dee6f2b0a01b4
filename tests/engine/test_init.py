"""`@workflow.init`: the ``__init__`` of a workflow class gets the run's arguments."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import pytest
from support.memory_run import MemoryRun

from durable import DefinitionError, activity, workflow
from durable.testing import Replayer, WorkflowEnvironment


@dataclass
class Order:
    item: str
    count: int


@activity.defn
async def double(number: int) -> int:
    return number * 2


@workflow.defn
class Basket:
    """What it holds is there before any handler runs."""

    @workflow.init
    def __init__(self, order: Order, *, gift: bool = False) -> None:
        self.items = {order.item: order.count}
        self.is_gift = gift
        self.begun = (workflow.now(), workflow.info().run_id, workflow.uuid4())

    @workflow.run
    async def run(self, order: Order, *, gift: bool = False) -> dict[str, int]:
        assert gift == self.is_gift
        assert self.begun[:2] == (workflow.start_time(), workflow.info().run_id)
        await workflow.wait_condition(lambda: self.items[order.item] > 9)
        return self.items

    @workflow.signal
    def add(self, order: Order) -> None:
        self.items[order.item] += order.count

    @workflow.query
    def count(self, item: str) -> int:
        return self.items[item]

    @workflow.update
    async def double(self, item: str) -> int:
        self.items[item] = await double(self.items[item])
        return self.items[item]


def test_init_gets_the_arguments_and_replays() -> None:
    run = MemoryRun(Basket, Order("tea", 3))
    assert run.query("count", "tea") == 3
    assert run.update("double", "tea", request_id="r1") is None
    run.complete("double", 6)
    run.signal("add", Order("tea", 5))
    assert run.result == {"tea": 11}
    run.check_replays()


async def test_init_runs_again_with_the_same_arguments_at_each_crash() -> None:
    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        handle = await env.start(Basket.run, Order("tea", 3), gift=True)
        assert await handle.update(Basket.double, "tea") == 6
        await handle.signal(Basket.add, Order("tea", 4))
        assert await handle.result() == {"tea": 10}
        Replayer([Basket]).replay(await handle.history())


def test_signals_that_a_run_did_not_take_come_after_init() -> None:
    payload = b'[{"item":"tea","count":8}]'
    run = MemoryRun(Basket, Order("tea", 3), signals=[("add", payload)])
    assert run.result == {"tea": 11}
    run.check_replays()


async def test_outside_a_workflow_the_class_takes_its_arguments() -> None:
    @workflow.defn
    class Plain:
        @workflow.init
        def __init__(self, number: int) -> None:
            self.number = number

        @workflow.run
        async def run(self, number: int) -> int:
            return self.number + number

    made: Any = Plain(1)
    assert made.number == 1


def test_what_init_raises_fails_the_run() -> None:
    @workflow.defn
    class Picky:
        @workflow.init
        def __init__(self, number: int) -> None:
            if number < 0:
                raise ValueError("below zero")

        @workflow.run
        async def run(self, number: int) -> int:
            return number

    assert MemoryRun(Picky, 1).result == 1
    run = MemoryRun(Picky, -1)
    assert run.failure["message"] == "below zero"
    run.check_replays()


def test_init_may_schedule_and_may_continue_as_new() -> None:
    @workflow.defn
    class Eager:
        @workflow.init
        def __init__(self, number: int) -> None:
            if number > 9:
                workflow.continue_as_new(0)
            self.doubled = double.start(number)

        @workflow.run
        async def run(self, number: int) -> int:
            return await self.doubled

    run = MemoryRun(Eager, 4)
    run.complete("double", 8)
    assert run.result == 8
    run.check_replays()
    over = MemoryRun(Eager, 10)
    (turn,) = over.turns
    assert turn.successor is not None
    over.check_replays()


def test_init_is_guarded_as_the_rest_of_the_code() -> None:
    @workflow.defn
    class Sleepy:
        @workflow.init
        def __init__(self) -> None:
            time.sleep(1)

        @workflow.run
        async def run(self) -> None:
            await asyncio.sleep(1)

    run = MemoryRun(Sleepy)
    assert "time.sleep" in run.failure["message"]


def test_an_inherited_init_counts() -> None:
    class Base:
        @workflow.init
        def __init__(self, number: int) -> None:
            self.number = number

    @workflow.defn
    class Derived(Base):
        @workflow.run
        async def run(self, number: int) -> int:
            return self.number

    assert MemoryRun(Derived, 7).result == 7


def test_init_must_have_the_parameters_of_run() -> None:
    with pytest.raises(DefinitionError, match=r"Other.*__init__\(count: int\).*run\(number: int\)"):

        @workflow.defn
        class Other:
            @workflow.init
            def __init__(self, count: int) -> None: ...

            @workflow.run
            async def run(self, number: int) -> None: ...

    with pytest.raises(DefinitionError, match=r"parameters of its @workflow\.run"):

        @workflow.defn
        class OtherType:
            @workflow.init
            def __init__(self, number: str) -> None: ...

            @workflow.run
            async def run(self, number: int) -> None: ...

    with pytest.raises(DefinitionError, match=r"parameters of its @workflow\.run"):

        @workflow.defn
        class OtherDefault:
            @workflow.init
            def __init__(self, number: int = 1) -> None: ...

            @workflow.run
            async def run(self, number: int = 2) -> None: ...


def test_arguments_without_the_mark_are_refused() -> None:
    with pytest.raises(DefinitionError, match=r"needs number: put @workflow\.init on it"):

        @workflow.defn
        class Unmarked:
            def __init__(self, number: int, *rest: int) -> None: ...

            @workflow.run
            async def run(self, number: int) -> None: ...


def test_the_mark_goes_on_init_only() -> None:
    with pytest.raises(DefinitionError, match=r"not on setup\(\)"):

        class Misplaced:
            @workflow.init
            def setup(self, number: int) -> None: ...
