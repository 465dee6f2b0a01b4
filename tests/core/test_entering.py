"""What a step leaves as it found it, and what it wakes up."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from rig import OTHER_RUN_ID, START_US, Rig, first_batch, started

from durable.engine import guard
from durable.events import EventKind

guard.install()


class Hook:
    """A hook for async generators, or nothing but an object."""

    def __call__(self, agen: Any) -> None:
        raise AssertionError("an async generator of a run reached the hooks of its caller")


@pytest.fixture(autouse=True)
def same_hooks_after() -> Iterator[None]:
    before = sys.get_asyncgen_hooks()
    yield
    sys.set_asyncgen_hooks(*before)


async def three_in_a_row(rig: Rig) -> Any:
    return [await rig.act(name) for name in "abc"]


def step(rig: Rig, ref: int) -> None:
    rig.loop.offer(EventKind.ACTIVITY_COMPLETED, ref, START_US + ref, None, None, b"7")


def test_each_step_puts_back_the_hooks_that_its_caller_has_then() -> None:
    rig = started(three_in_a_row)
    for ref, hooks in ((2, (None, None)), (4, (Hook(), Hook())), (6, (None, Hook()))):
        sys.set_asyncgen_hooks(*hooks)

        step(rig, ref)

        assert sys.get_asyncgen_hooks() == hooks
    assert rig.loop.is_finished
    rig.evict()


def test_hooks_are_those_of_the_thread_that_steps() -> None:
    rig = started(three_in_a_row)
    ours, theirs = (Hook(), Hook()), (Hook(), Hook())
    found: list[Any] = []
    sys.set_asyncgen_hooks(*ours)
    step(rig, 2)

    def elsewhere() -> None:
        sys.set_asyncgen_hooks(*theirs)
        step(rig, 4)
        found.append(sys.get_asyncgen_hooks())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    step(rig, 6)

    assert found == [theirs]
    assert sys.get_asyncgen_hooks() == ours
    rig.evict()


def test_a_step_inside_a_step_leaves_both_as_they_were() -> None:
    inner = Rig(three_in_a_row, run_id=OTHER_RUN_ID).load([first_batch(OTHER_RUN_ID)[0]])
    seen: list[Any] = []

    async def outer_code(rig: Rig) -> Any:
        for ref in (2, 4):
            await rig.act("x")
            before = sys.get_asyncgen_hooks()
            step(inner, ref)
            seen.append(sys.get_asyncgen_hooks() == before)
            seen.append(asyncio.get_running_loop() is rig.loop)

    outer = started(outer_code)
    hooks = (Hook(), Hook())
    sys.set_asyncgen_hooks(*hooks)

    step(outer, 2)
    step(outer, 4)

    assert seen == [True] * 4
    assert sys.get_asyncgen_hooks() == hooks
    outer.evict()
    inner.evict()


def test_hooks_that_the_code_sets_end_with_its_step() -> None:
    async def sets_hooks(rig: Rig) -> Any:
        await rig.act("a")
        sys.set_asyncgen_hooks(None, None)
        await rig.act("b")

    rig = started(sets_hooks)
    hooks = (Hook(), Hook())
    sys.set_asyncgen_hooks(*hooks)

    step(rig, 2)

    assert sys.get_asyncgen_hooks() == hooks
    rig.evict()


def test_nothing_keeps_hooks_that_their_owner_took_back() -> None:
    rig = started(three_in_a_row)
    hook = Hook()
    left = weakref.ref(hook)
    sys.set_asyncgen_hooks(hook, hook)
    step(rig, 2)

    sys.set_asyncgen_hooks(None, None)
    del hook
    gc.collect()

    assert left() is None
    rig.evict()


def test_an_async_generator_is_closed_by_the_loop_of_its_run() -> None:
    closed: list[Any] = []

    async def numbers() -> Any:
        try:
            while True:
                yield 1
        finally:
            closed.append(asyncio.get_running_loop())

    async def leaves_one(rig: Rig) -> Any:
        for _ in range(2):
            async for _ in numbers():
                break
            await rig.act("a")

    sys.set_asyncgen_hooks(Hook(), Hook())
    rig = started(leaves_one)
    step(rig, 2)
    gc.collect()
    step(rig, 4)

    assert closed == [rig.loop, rig.loop]
    rig.evict()


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
