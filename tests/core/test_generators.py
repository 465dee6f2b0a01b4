"""Async generators: those of a run are the run's, all others are left to who had them before."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from rig import OTHER_RUN_ID, START_US, Rig, first_batch, started

from durable.engine import guard
from durable.events import EventKind

guard.install()

closed: list[Any] = []


class Hook:
    """A hook for async generators, which notes whom it is told of."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def __call__(self, agen: Any) -> None:
        self.told.append(id(agen))


@pytest.fixture(autouse=True)
def same_hooks_after() -> Iterator[None]:
    before = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    closed.clear()
    yield
    sys.set_asyncgen_hooks(*before)


async def three_in_a_row(rig: Rig) -> Any:
    return [await rig.act(name) for name in "abc"]


async def numbers() -> AsyncGenerator[int]:
    try:
        while True:
            yield 1
    finally:
        closed.append(current_name())


def current_name() -> Any:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def begun() -> AsyncGenerator[int]:
    """An async generator that was asked for its first value, by nobody's loop."""
    agen = numbers()
    with pytest.raises(StopIteration):
        agen.__anext__().send(None)
    return agen


def step(rig: Rig, ref: int) -> None:
    rig.loop.offer(EventKind.ACTIVITY_COMPLETED, ref, START_US + ref, None, None, b"7")


def test_the_hooks_of_the_caller_are_told_of_what_is_the_callers() -> None:
    rig = started(three_in_a_row)
    for ref in (2, 4, 6):
        begins, closes = Hook(), Hook()
        sys.set_asyncgen_hooks(begins, closes)

        step(rig, ref)
        agen = begun()
        address = id(agen)
        del agen

        assert begins.told == [address]
        assert closes.told == [address]
    assert rig.loop.is_finished
    assert closed == []
    rig.evict()


@pytest.mark.parametrize("which", [0, 1])
def test_a_caller_may_have_one_hook(which: int) -> None:
    rig = started(three_in_a_row)
    hook = Hook()
    sys.set_asyncgen_hooks(*((hook, None) if which == 0 else (None, hook)))

    step(rig, 2)
    agen = begun()
    address = id(agen)
    del agen

    assert hook.told == [address]
    assert closed == ([None] if which == 0 else [])
    rig.evict()


def test_without_hooks_what_is_let_go_of_is_closed_at_once() -> None:
    rig = started(three_in_a_row)
    step(rig, 2)

    begun()

    assert closed == [None]
    rig.evict()


def test_without_hooks_one_that_goes_on_is_told_of() -> None:
    async def refuses() -> AsyncGenerator[int]:
        try:
            yield 1
        except GeneratorExit:
            yield 2

    async def raises() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            raise KeyError("its own")

    rig = started(three_in_a_row)
    step(rig, 2)
    told: list[str] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda it: told.append(str(it.exc_value))
    try:
        for which in (refuses, raises):
            agen = which()
            with pytest.raises(StopIteration):
                agen.__anext__().send(None)
            del agen
            gc.collect()
    finally:
        sys.unraisablehook = before

    assert told == ["async generator ignored GeneratorExit", "'its own'"]
    rig.evict()


def test_hooks_are_those_of_the_thread_that_steps() -> None:
    rig = started(three_in_a_row)
    ours, theirs = Hook(), Hook()
    addresses: list[int] = []

    def begin_one() -> None:
        agen = begun()
        addresses.append(id(agen))
        del agen

    def elsewhere() -> None:
        sys.set_asyncgen_hooks(None, theirs)
        step(rig, 4)
        begin_one()

    sys.set_asyncgen_hooks(None, ours)
    step(rig, 2)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    step(rig, 6)
    begin_one()

    assert theirs.told == addresses[:1]
    assert ours.told == addresses[1:]
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
    hook = Hook()
    sys.set_asyncgen_hooks(hook, hook)

    step(outer, 2)
    step(outer, 4)

    assert seen == [True] * 4
    assert hook.told == []
    outer.evict()
    inner.evict()


def test_hooks_that_the_code_sets_end_with_its_step() -> None:
    async def sets_hooks(rig: Rig) -> Any:
        for _ in range(3):
            await rig.act("a")
            sys.set_asyncgen_hooks(None, None)

    rig = started(sets_hooks)
    hook = Hook()
    sys.set_asyncgen_hooks(hook, hook)

    for number, ref in enumerate((2, 4), 1):
        step(rig, ref)
        begun()

        assert len(hook.told) == 2 * number
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


async def leaves_one(rig: Rig) -> Any:
    for _ in range(3):
        async for _ in numbers():
            break
        await rig.act("a")


def test_an_async_generator_is_closed_by_the_loop_of_its_run() -> None:
    hook = Hook()
    sys.set_asyncgen_hooks(hook, hook)

    rig = started(leaves_one)
    step(rig, 2)
    gc.collect()
    step(rig, 4)

    assert closed == [rig.loop] * 3
    assert hook.told == []
    rig.evict()


def test_one_that_is_let_go_of_between_steps_is_still_its_runs() -> None:
    kept: list[Any] = []

    async def keeps_one(rig: Rig) -> Any:
        agen = numbers()
        kept.append(agen)
        await agen.__anext__()
        del agen
        await rig.act("a")
        await rig.act("b")

    hook = Hook()
    sys.set_asyncgen_hooks(hook, hook)
    rig = started(keeps_one)

    kept.clear()
    gc.collect()
    assert closed == []
    step(rig, 2)

    assert closed == [rig.loop]
    assert hook.told == []
    rig.evict()


@pytest.mark.parametrize("is_evicted", [True, False])
def test_what_a_run_that_is_gone_left_is_not_run(is_evicted: bool) -> None:
    kept: list[Any] = []

    async def keeps_one(rig: Rig) -> Any:
        agen = numbers()
        kept.append(agen)
        await agen.__anext__()
        await rig.act("a")

    hook = Hook()
    sys.set_asyncgen_hooks(hook, hook)
    rig = started(keeps_one)
    if is_evicted:
        rig.evict()
    left = weakref.ref(rig.loop)
    del rig
    gc.collect()

    kept.clear()
    gc.collect()

    assert closed == []
    assert hook.told == []
    if is_evicted:
        assert left() is None


def test_where_one_of_a_run_ended_another_may_begin() -> None:
    async def ends() -> AsyncGenerator[int]:
        yield 1

    async def uses_many(rig: Rig) -> Any:
        addresses = set()
        for _ in range(100):
            agen = ends()
            addresses.add(id(agen))
            async for _ in agen:
                pass
        await rig.act("a")
        return addresses

    hook = Hook()
    sys.set_asyncgen_hooks(None, hook)
    rig = started(uses_many)

    for _ in range(100):
        begun()

    assert len(hook.told) == 100
    assert closed == []
    rig.evict()


async def test_a_loop_closes_its_own_and_no_others() -> None:
    rig = started(leaves_one)
    theirs = numbers()
    await theirs.__anext__()
    step(rig, 2)
    ours = numbers()
    await ours.__anext__()

    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()

    assert closed == [rig.loop] * 2 + [loop] * 2
    rig.evict()
