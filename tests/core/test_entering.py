"""What a step leaves as it found it, and what it wakes up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from rig import START_US, Rig, first_batch, started

from durable.engine import guard
from durable.events import EventKind

guard.install()


def step(rig: Rig, ref: int) -> None:
    rig.loop.offer(EventKind.ACTIVITY_COMPLETED, ref, START_US + ref, None, None, b"7")


@pytest.mark.parametrize("outcome", ["value", "failure", "cancelled"])
def test_a_callback_is_given_the_future_that_it_was_added_to(outcome: str) -> None:
    given: list[Any] = []

    async def watches(rig: Rig) -> Any:
        future = rig.act("a")
        future.add_done_callback(given.append)
        future.add_done_callback(given.append)
        try:
            await future
        except BaseException as error:
            given.append(type(error).__name__)
        assert given[:2] == [future, future]
        given.append(future.done())
        return await rig.act("b")

    rig = started(watches)
    if outcome == "value":
        step(rig, 2)
    else:
        said = b'"cancelled"' if outcome == "cancelled" else b"no"
        rig.loop.offer(EventKind.ACTIVITY_FAILED, 2, START_US + 2, None, None, said)

    raised = {"value": [], "failure": ["Failed"], "cancelled": ["CancelledError"]}[outcome]
    assert given[2:] == [*raised, True]
    assert [event[4] for event in rig.commands] == ["b"]
    rig.evict()


def test_a_task_in_python_is_woken_up_as_well() -> None:
    async def waits(rig: Rig) -> Any:
        return await rig.act("a") + await rig.act("b")

    class PythonRig(Rig):
        def make_task(self, coro: Any, name: str | None, context: Any) -> Any:
            return vars(asyncio.tasks)["_PyTask"](coro, loop=self.loop, name=name)

    rig = PythonRig(waits).load([first_batch()[0]])
    step(rig, 2)
    step(rig, 4)

    assert rig.main is not None
    assert rig.main.result() == 14
    rig.evict()
