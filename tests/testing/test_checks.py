"""What crash_at_every_event finds, and what the value check finds."""

import asyncio
import itertools
from dataclasses import dataclass

import pytest

from durable import activity, workflow
from durable.errors import NonDeterminismError, WorkflowFailedError
from durable.testing import WorkflowEnvironment

COUNTER = itertools.count()


@activity.defn
async def note(number: int) -> None: ...


async def test_arguments_from_outside_of_history_are_found() -> None:
    @workflow.defn
    async def draws() -> None:
        await note(next(COUNTER))
        await asyncio.sleep(1)

    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        with pytest.raises(NonDeterminismError) as caught:
            await env.execute(draws)

    assert "ACTIVITY_SCHEDULED note" in str(caught.value)


async def test_variables_from_outside_of_history_are_found() -> None:
    @workflow.defn
    async def shows() -> None:
        workflow.set_vars(number=next(COUNTER))
        await asyncio.sleep(1)

    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        with pytest.raises(NonDeterminismError, match="variables"):
            await env.execute(shows)


async def test_commands_that_depend_on_replaying_are_found() -> None:
    @workflow.defn
    async def skips() -> None:
        await asyncio.sleep(1)
        if not workflow.is_replaying():
            await note(1)
        await asyncio.sleep(1)

    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        with pytest.raises(NonDeterminismError):
            await env.execute(skips)


async def test_result_from_outside_of_history_is_found() -> None:
    @workflow.defn
    async def returns() -> int:
        return next(COUNTER)

    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        with pytest.raises(NonDeterminismError, match="two different things"):
            await env.execute(returns)


async def test_side_effects_may_differ() -> None:
    @workflow.defn
    async def draws() -> int:
        number = workflow.side_effect(lambda: next(COUNTER))
        await asyncio.sleep(number + 1)
        return number

    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        await env.execute(draws)


@dataclass
class Parcel:
    size: tuple[int, ...]
    label: object


async def test_value_that_reads_back_as_another_is_named() -> None:
    @activity.defn
    async def send(parcel: Parcel) -> None: ...

    @workflow.defn
    async def sends() -> None:
        await send(Parcel(size=(1, 2), label=frozenset({"a"})))

    async with WorkflowEnvironment() as env:
        with pytest.raises(WorkflowFailedError, match="argument parcel of send"):
            await env.execute(sends)

    async with WorkflowEnvironment(check_values=False) as env:
        await env.execute(sends)


async def test_every_event_means_every_event() -> None:
    """The run is built anew after each: its object is another one each time."""
    seen: list[int] = []

    @workflow.defn
    class Counts:
        def __init__(self) -> None:
            seen.append(1)

        @workflow.run
        async def run(self) -> None:
            for _ in range(3):
                await asyncio.sleep(1)

    async with WorkflowEnvironment(crash_at_every_event=True) as env:
        await env.execute(Counts)

    # The first turn, two that wait again, three replays of these, and the second run at the end.
    assert len(seen) == 1 + 3 + 1
