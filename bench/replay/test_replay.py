"""One sample of one side, timed by pytest-benchmark. The plan is in conftest.py."""

from typing import Any

import pytest

from bench.replay.conftest import Book, check
from bench.replay.workloads import Side, Workload


@pytest.mark.timeout(600)
def test_replay(workload: Workload, side: Side, book: Book, benchmark: Any) -> None:
    call = book.call(workload, side)
    outcome = benchmark.pedantic(call, rounds=1, iterations=1)
    if side.reports:
        book.add(workload, side, outcome)
        return
    check(side, outcome)
    seconds = benchmark.stats.stats.data[0]
    rate = side.units / seconds
    sample = rate * workload.scale if workload.rises else workload.scale / rate
    book.add(workload, side, sample)
