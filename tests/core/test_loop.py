"""What the loop promises to code that is not kind to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from rig import (
    ANSWER,
    OTHER_RUN_ID,
    START_US,
    Fact,
    Failed,
    Program,
    Rig,
    activity,
    cold,
    first_batch,
    record,
    started,
)

from durable._core import current
from durable.errors import HistoryCorruptError, NonDeterminismError
from durable.events import EventKind

# -- suspension cannot be swallowed ------------------------------------------------------------


async def catches_exception(rig: Rig) -> str:
    try:
        return f"value {await rig.act('a')}"
    except Exception:
        return "swallowed"


async def catches_everything(rig: Rig) -> str:
    try:
        return f"value {await rig.act('a')}"
    except BaseException:
        await rig.act("emitted by except")
        return "swallowed"


async def never_lets_go(rig: Rig) -> str:
    waited = rig.act("a")
    while True:
        try:
            return f"value {await waited}"
        except BaseException:
            rig.act("emitted by except")


async def never_ends(rig: Rig) -> None:
    while True:
        with contextlib.suppress(BaseException):
            await rig.act("a")


async def returns_in_finally(rig: Rig) -> str:
    try:
        return f"value {await rig.act('a')}"
    finally:
        rig.act("emitted by finally")
        return "returned in finally"  # noqa: B012, SIM107


async def awaits_in_finally(rig: Rig) -> str:
    try:
        return f"value {await rig.act('a')}"
    finally:
        await rig.act("b")
        await rig.act("c")


async def starts_tasks_in_finally(rig: Rig) -> str:
    async def cleanup() -> None:
        await rig.act("b")

    try:
        return f"value {await rig.act('a')}"
    finally:
        await asyncio.gather(cleanup(), cleanup())


async def sleeps_in_finally(rig: Rig) -> str:
    try:
        return f"value {await rig.act('a')}"
    finally:
        await asyncio.sleep(1)
        rig.loop.record(EventKind.SIDE_EFFECT, "late", lambda: b"1")
        rig.loop.patched("late")


async def waits_inside_generators(rig: Rig) -> str:
    async def numbers() -> AsyncIterator[Any]:
        try:
            yield await rig.act("a")
        finally:
            await rig.act("emitted by generator")

    @contextlib.asynccontextmanager
    async def managed() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await rig.act("emitted by manager")

    async with managed():
        async for number in numbers():
            return f"value {number}"
    return "nothing"


async def in_a_task_group(rig: Rig) -> str:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(catches_everything(rig))
    return task.result()


UNKIND = [
    catches_exception,
    catches_everything,
    never_lets_go,
    never_ends,
    returns_in_finally,
    awaits_in_finally,
    starts_tasks_in_finally,
    sleeps_in_finally,
    waits_inside_generators,
    in_a_task_group,
]


@pytest.mark.parametrize("program", UNKIND)
def test_no_code_can_swallow_a_suspension(program: Program) -> None:
    rig = started(program)

    taken = rig.loop.take()

    assert taken is not None
    assert [(e[1], e[4]) for e in taken[4]] == [(EventKind.ACTIVITY_SCHEDULED, "a")]
    assert [event[0] for event in rig.commands] == [2]
    assert not rig.loop.is_finished
    rig.evict()


@pytest.mark.parametrize("program", UNKIND)
def test_no_code_can_make_a_command_at_eviction(program: Program) -> None:
    rig = started(program)
    rig.loop.take()

    rig.evict()

    assert rig.loop.is_dead
    assert rig.loop.take() is None
    assert rig.loop.event_count == 2
    assert rig.loop.pending() == []


KEPT = {never_lets_go, never_ends}
"""Kept for ever on purpose: freeing them would run their code once more."""


@pytest.mark.parametrize("program", [it for it in UNKIND if it not in KEPT])
def test_an_evicted_run_is_freed_however_it_is_written(program: Program) -> None:
    rig = started(program)
    loop = weakref.ref(rig.loop)
    rig.evict()
    del rig
    gc.collect()

    assert loop() is None


@pytest.mark.parametrize("program", [it for it in UNKIND if it is not never_ends])
@pytest.mark.parametrize("short_cut", [True, False])
def test_unkind_code_replays_to_what_it_did(program: Program, short_cut: bool) -> None:
    made = record(program, [2] * 10)

    rig = cold(program, made, short_cut=short_cut)

    assert made.is_finished
    assert rig.loop.is_finished
    assert rig.loop.take() is None
    rig.evict()


def test_an_activity_is_not_run_by_the_close_of_its_caller() -> None:
    ran = []
    called = type(activity("a"))(
        "a", ran.append, "", arity=(0, 4), encode=lambda args, kwargs: b"[]", decode=None
    )

    async def program(rig: Rig) -> None:
        try:
            await called(1)
        finally:
            await called(2)

    rig = started(program)
    rig.evict()
    del rig
    gc.collect()

    assert ran == []
    assert current() is None


def test_a_run_is_closed_from_the_inside_out() -> None:
    """Each `finally` sees that its coroutine is closed, and no error of an inner one's close."""
    seen: list[tuple[str, str]] = []

    async def inner(rig: Rig) -> None:
        try:
            await rig.act("a")
        except BaseException as error:
            seen.append(("inner", type(error).__name__))
            raise
        finally:
            for _ in range(3):
                with contextlib.suppress(GeneratorExit):
                    await rig.act("cleanup")

    async def program(rig: Rig) -> None:
        try:
            await inner(rig)
        except BaseException as error:
            seen.append(("outer", type(error).__name__))
            raise
        finally:
            await inner(rig)

    rig = started(program)
    rig.evict()
    loop = weakref.ref(rig.loop)
    del rig
    gc.collect()

    assert seen == [
        ("inner", "GeneratorExit"),
        ("outer", "GeneratorExit"),
        ("inner", "GeneratorExit"),
    ]
    assert loop() is None


# -- recorded values ---------------------------------------------------------------------------


@pytest.mark.parametrize("is_caught", [True, False])
def test_a_value_that_could_not_be_made_fails_the_same_way_on_replay(is_caught: bool) -> None:
    async def program(rig: Rig) -> Any:
        await rig.act("a")
        try:
            rig.loop.record(EventKind.SIDE_EFFECT, "x", lambda: bytes(1 // 0))
        except ZeroDivisionError:
            if not is_caught:
                raise
        return await rig.act("b")

    made = record(program, [2, 2])

    rig = cold(program, made)

    assert rig.loop.is_finished
    assert rig.loop.take() is None


def test_making_a_value_may_not_make_commands() -> None:
    refused: list[str] = []

    async def program(rig: Rig) -> Any:
        def greedy() -> bytes:
            for ask in (
                lambda: rig.act("b"),
                lambda: rig.loop.record(EventKind.SIDE_EFFECT, "y", lambda: b"2"),
                lambda: rig.loop.patched("z"),
                lambda: rig.loop.call_later(5, print),
            ):
                try:
                    ask()
                except RuntimeError as error:
                    refused.append(str(error))
            return b"1"

        value = rig.loop.record(EventKind.SIDE_EFFECT, "x", greedy)
        await rig.act("a")
        return value

    made = record(program, [2])
    kinds = [event[1] for event in made.commands]

    assert kinds == [EventKind.SIDE_EFFECT, EventKind.ACTIVITY_SCHEDULED, EventKind.RUN_COMPLETED]
    assert len(refused) == 4
    assert cold(program, made).loop.is_finished
    assert len(refused) == 4


# -- the short cut -----------------------------------------------------------------------------


@pytest.mark.parametrize("short_cut", [True, False])
def test_everyone_who_waits_for_an_outcome_gets_it(short_cut: bool) -> None:
    async def program(rig: Rig) -> list[Any]:
        future = rig.act("a")

        async def wait() -> Any:
            return await future

        other = asyncio.create_task(wait())
        await asyncio.sleep(0)
        return [await future, await other]

    made = record(program, [2])

    rig = cold(program, made, short_cut=short_cut)

    assert made.is_finished
    assert rig.main is not None
    assert rig.main.result() == [7, 7]


@pytest.mark.parametrize("short_cut", [True, False])
def test_the_run_ends_with_its_main_task_also_on_replay(short_cut: bool) -> None:
    """Code that no longer waits for its background task ends before that task's next outcome."""

    def program_that(waits: bool) -> Program:
        async def program(rig: Rig) -> None:
            future = rig.act("a")

            async def background() -> None:
                await asyncio.wait([future])
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                await rig.act("b")

            task = rig.loop.create_task(background())
            await asyncio.sleep(0)
            await future
            if waits:
                await task

        return program

    made = record(program_that(True), [0, 0])
    assert made.is_finished

    with pytest.raises(NonDeterminismError) as caught:
        cold(program_that(False), made, short_cut=short_cut)

    assert caught.value.event_id == 5


@pytest.mark.parametrize("short_cut", [True, False])
def test_a_cancelled_outcome_is_a_cancellation_with_its_message(short_cut: bool) -> None:
    async def program(rig: Rig) -> Any:
        future = rig.act("a")
        try:
            await future
        except asyncio.CancelledError as error:
            return [future.cancelled(), str(error)]

    made = record(program, [6])

    rig = cold(program, made, short_cut=short_cut)

    assert rig.main is not None
    assert rig.main.result() == [True, '"cancelled"']
    assert made.trace == rig.trace


def test_an_outcome_may_be_asked_for_again() -> None:
    async def program(rig: Rig) -> Any:
        future = rig.act("a")
        return [await future, await future, future.result(), future.done(), future.exception()]

    rig = cold(program, record(program, [2]))

    assert rig.main is not None
    assert rig.main.result() == [7, 7, 7, True, None]


# -- a command's future is a future ------------------------------------------------------------


async def gathered(rig: Rig) -> Any:
    return await asyncio.gather(rig.act("a"), rig.act("b"), return_exceptions=True)


async def waited(rig: Rig) -> Any:
    futures = [rig.act("a"), rig.act("b")]
    done, pending = await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    for future in pending:
        future.cancel()
    return [[future.event_id for future in group] for group in (done, pending)]


async def as_completed(rig: Rig) -> Any:
    return [await future for future in asyncio.as_completed([rig.act("a"), rig.act("b")])]


async def shielded(rig: Rig) -> Any:
    return await asyncio.shield(rig.act("a"))


async def waited_for(rig: Rig) -> Any:
    return await asyncio.wait_for(rig.act("a"), 5)


async def in_time(rig: Rig) -> Any:
    async with asyncio.timeout(5):
        return await rig.act("a")


async def ensured(rig: Rig) -> Any:
    future = rig.act("a")
    assert asyncio.isfuture(future)
    assert asyncio.ensure_future(future) is future
    return await future


async def grouped(rig: Rig) -> Any:
    async def one(name: str) -> Any:
        return await rig.act(name)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(name)) for name in "ab"]
    return [task.result() for task in tasks]


@pytest.mark.parametrize(
    ("program", "choices", "result"),
    [
        (gathered, [4, 2], [7, 7]),
        (waited, [4, 2], [[2], [3]]),
        (as_completed, [4, 2], [7, 7]),
        (shielded, [2], 7),
        (waited_for, [4], 7),
        (in_time, [4], 7),
        (ensured, [2], 7),
        (grouped, [4, 2], [7, 7]),
    ],
)
def test_asyncio_takes_a_command_for_its_own_future(
    program: Program, choices: list[int], result: Any
) -> None:
    made = record(program, choices)

    rig = cold(program, made)

    assert made.is_finished
    assert rig.main is not None
    assert result == rig.main.result()


@pytest.mark.parametrize("wait_cancel", [True, False])
def test_a_cancelled_activity_is_asked_to_stop_once(wait_cancel: bool) -> None:
    async def program(rig: Rig) -> Any:
        future = activity("a", wait_cancel=wait_cancel)()
        await asyncio.sleep(1)
        future.cancel()
        future.cancel()
        try:
            return await future
        except asyncio.CancelledError:
            return "cancelled"

    rig = started(program)
    rig.loop.take()
    rig.deliver(Fact(EventKind.TIMER_FIRED, 3, START_US + 1_000_000))

    taken = rig.loop.take()

    assert taken is not None
    asked = [(e[1], e[2]) for e in taken[4] if e[1] == EventKind.ACTIVITY_CANCEL_REQUESTED]
    assert asked == [(EventKind.ACTIVITY_CANCEL_REQUESTED, 2)]
    assert rig.loop.is_pending(2) is wait_cancel
    assert rig.loop.is_finished is not wait_cancel
    rig.evict()


# -- errors ------------------------------------------------------------------------------------


def test_code_cannot_swallow_that_it_parted_from_its_history() -> None:
    async def one(rig: Rig) -> None:
        await rig.act("a")
        await rig.act("b")

    async def other(rig: Rig) -> None:
        await rig.act("a")
        with contextlib.suppress(BaseException):
            await activity("c")()

    made = record(one, [0])
    rig = Rig(other)
    rig.loop.load(made.batches, made.head)

    with pytest.raises(NonDeterminismError) as caught:
        rig.loop.replay()

    assert caught.value.event_id == 4
    assert "test_loop.py" in str(caught.value.source)
    assert "in other" in str(caught.value)
    assert rig.loop.is_dead
    assert rig.loop.take() is None
    with pytest.raises(RuntimeError, match="no more facts"):
        rig.deliver(ANSWER)
    rig.evict()


def test_a_callback_may_raise_a_cancellation() -> None:
    told: list[Any] = []

    async def program(rig: Rig) -> Any:
        rig.loop.set_exception_handler(lambda loop, about: told.append(about["exception"]))
        task = asyncio.create_task(asyncio.sleep(5))
        task.add_done_callback(lambda done: done.result())
        await asyncio.sleep(0)
        task.cancel()
        return await rig.act("a")

    rig = started(program)
    ref = rig.commands[-1][0]
    rig.deliver(Fact(EventKind.ACTIVITY_COMPLETED, ref, START_US, payload=b"7"))

    assert rig.loop.is_finished
    assert [asyncio.CancelledError] == [type(error) for error in told]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_ends_the_process_goes_through(kind: type[BaseException]) -> None:
    async def program(rig: Rig) -> Any:
        raise kind("now")

    batch, head = first_batch()
    rig = Rig(program)
    rig.loop.load([batch], head)

    with pytest.raises(kind):
        rig.loop.replay()

    assert rig.loop.is_dead
    assert current() is None
    rig.evict()


def test_a_failure_is_raised_where_the_code_waits() -> None:
    async def program(rig: Rig) -> Any:
        try:
            await rig.act("a")
        except Failed as error:
            return str(error)

    rig = cold(program, record(program, [5]))

    assert rig.main is not None
    assert '"no luck"' == rig.main.result()  # noqa: SIM300


def test_a_history_of_another_run_is_refused() -> None:
    batch, head = first_batch(OTHER_RUN_ID)

    with pytest.raises(HistoryCorruptError):
        Rig(gathered).load([batch], head)
