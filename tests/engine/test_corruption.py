"""Whatever happens to the stored bytes of a run is found on load, before its code runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest
from support.memory_run import RUN_ID, MemoryRun

from durable import activity, workflow
from durable.engine.execution import Execution
from durable.errors import HistoryCorruptError, HistoryUnsupportedError

OTHER_RUN_ID = "01890000-0000-7000-8000-000000000002"
ran: list[str] = []


@activity.defn
async def add(left: int, right: int) -> int:
    """The tests say what it answers."""
    return left + right


@workflow.defn
async def summing(count: int) -> int:
    ran.append("summing")
    total = 0
    for number in range(count):
        total = await add(total, number)
        await asyncio.sleep(1)
    return total


def recorded(run_id: str = RUN_ID) -> MemoryRun:
    """A run with several batches that waits for an activity."""
    run = MemoryRun(summing, 3, run_id=run_id)
    run.complete("add", 0)
    run.fire()
    run.complete("add", 1)
    run.fire()
    return run


def refused(run: MemoryRun, batches: Sequence[bytes]) -> tuple[int, int]:
    """Load these; check that they are refused without running code. The place that is named."""
    execution = Execution(summing, run.new.run_id, "wf")
    ran.clear()
    with pytest.raises((HistoryCorruptError, HistoryUnsupportedError)) as caught:
        execution.load(batches, run.heads[-1])
    error = caught.value
    assert isinstance(error, HistoryCorruptError | HistoryUnsupportedError)
    assert ran == []
    assert execution.is_dead
    assert error.run_id == run.new.run_id
    assert run.new.run_id in str(error)
    return error.seq, error.offset


def test_every_flipped_bit_is_found_in_its_batch() -> None:
    run = recorded()
    for seq, batch in enumerate(run.batches):
        for bit in range(len(batch) * 8):
            broken = bytearray(batch)
            broken[bit // 8] ^= 1 << bit % 8

            named, offset = refused(
                run, [*run.batches[:seq], bytes(broken), *run.batches[seq + 1 :]]
            )

            assert named == seq
            assert 0 <= offset <= len(batch)


def test_every_cut_is_found_in_its_batch() -> None:
    run = recorded()
    for seq, batch in enumerate(run.batches):
        for length in range(len(batch)):
            cut = [*run.batches[:seq], batch[:length], *run.batches[seq + 1 :]]

            assert refused(run, cut)[0] == seq


def test_every_byte_too_many_is_found_in_its_batch() -> None:
    run = recorded()
    for seq, batch in enumerate(run.batches):
        for at in range(len(batch) + 1):
            longer = [*run.batches[:seq], batch[:at] + b"\0" + batch[at:], *run.batches[seq + 1 :]]

            assert refused(run, longer)[0] == seq


def without(batches: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    for at in range(len(batches)):
        # A missing last batch is missed after the last one that is there.
        yield min(at, len(batches) - 1), batches[:at] + batches[at + 1 :]


def twice(batches: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    for batch in batches:
        for to in range(len(batches) + 1):
            doubled = [*batches[:to], batch, *batches[to:]]
            same = [left == right for left, right in zip(doubled, batches, strict=False)]
            yield [*same, False].index(False), doubled


def swapped(batches: list[bytes]) -> Iterator[tuple[int, list[bytes]]]:
    for first in range(len(batches)):
        for second in range(first + 1, len(batches)):
            order = list(batches)
            order[first], order[second] = order[second], order[first]
            yield first, order


@pytest.mark.parametrize("change", [without, twice, swapped], ids=lambda change: change.__name__)
def test_every_row_dropped_doubled_or_swapped_is_found_where_it_begins(
    change: Callable[[list[bytes]], Iterator[tuple[int, list[bytes]]]],
) -> None:
    run = recorded()
    for seq, batches in change(run.batches):
        assert refused(run, batches)[0] == seq


def test_every_row_of_another_run_is_found() -> None:
    run, other = recorded(), recorded(OTHER_RUN_ID)
    for seq, foreign in enumerate(other.batches):
        mixed = [*run.batches[:seq], foreign, *run.batches[seq + 1 :]]

        assert refused(run, mixed)[0] == seq
