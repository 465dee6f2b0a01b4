"""The plan of a measurement, and the table at its end.

pytest-benchmark times each call. Every test is one sample of one side of one workload, and the
tests of a workload are ordered in rounds (ours, a, b, ours, a, b, ...), so that whatever the
machine does for a while happens to all sides.
"""

import gc
from collections.abc import Callable
from typing import Any

import pytest

from bench.peers import link
from bench.replay import load
from bench.replay.workloads import OURS, Setting, Side, Temporal, Workload, folders, workloads
from bench.report import Goal, Row, finish, progress


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--quick", action="store_true", help="fewer samples, three minutes")
    group.addoption("--no-peers", action="store_true", help="only ours and bare asyncio")
    group.addoption("--only", action="append", default=[], help="a workload; may be repeated")


class Book:
    """Prepared sides, and the samples so far."""

    def __init__(self) -> None:
        self.prepared: dict[tuple[str, str], Callable[[], Any]] = {}
        self.samples: dict[str, dict[str, list[float]]] = {}
        self.workloads: dict[str, Workload] = {}

    def call(self, workload: Workload, side: Side) -> Callable[[], Any]:
        """What to measure, prepared at the first time."""
        key = workload.name, side.name
        if key not in self.prepared:
            progress(f"{workload.name}: {side.name}")
            self.prepared[key] = side.prepare()
            if not side.reports:
                check(side, self.prepared[key]())
        return self.prepared[key]

    def add(self, workload: Workload, side: Side, sample: float) -> None:
        """Keep a sample, in the row's unit."""
        self.workloads[workload.name] = workload
        self.samples.setdefault(workload.name, {}).setdefault(side.name, []).append(sample)

    def rows(self) -> list[Row]:
        """All rows, with the one that judges growth."""
        rows = []
        for name, sides in self.samples.items():
            workload, sides = self.workloads[name], dict(sides)
            if OURS in sides:
                ours = sides.pop(OURS)
                rows.append(
                    Row(
                        name,
                        workload.unit,
                        ours,
                        workload.rises,
                        sides,
                        workload.goals,
                        workload.note,
                    )
                )
        by_name = {row.workload: row for row in rows}
        lengths = [f"growth-{length}" for length in (1000, 10_000, 100_000)]
        if all(length in by_name for length in lengths):
            rows.append(straightness(*(by_name[length].samples for length in lengths)))
        return rows


def straightness(short: list[float], middle: list[float], long: list[float]) -> Row:
    """How much steeper the line of time against length is at its end; 1 is straight."""
    slopes = [
        ((100_000 * end - 10_000 * mid) / 90_000) / ((10_000 * mid - 1000 * begin) / 9000)
        for begin, mid, end in zip(short, middle, long, strict=True)
    ]
    note = "time per further event from 10,000 to 100,000 events over that from 1,000 to 10,000"
    return Row("growth", "x", slopes, goals=[Goal(value=1.3)], note=note)


def check(side: Side, outcome: Any) -> None:
    """A wrong answer is a failure, not a fast run."""
    assert side.answer is None or outcome == side.answer, f"{side.name} answered {outcome!r:.200}"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[BOOK] = Book()
    if not config.getoption("--no-peers"):
        link.install()


BOOK = pytest.StashKey[Book]()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per sample."""
    config = metafunc.config
    setting = Setting(config.getoption("--quick"), not config.getoption("--no-peers"))
    only = set(config.getoption("--only"))
    plan, ids = [], []
    makers: list[Callable[[], list[Workload]]] = [
        lambda: workloads(setting),
        lambda: [load.load_replay(setting), load.check_open_runs(setting)],
    ]
    for workload in (each for make in makers for each in make()):
        if only and not only & {workload.name, workload.group}:
            continue
        for number in range(max(side.samples for side in workload.sides)):
            for side in workload.sides:
                if number < side.samples:
                    plan.append((workload, side))
                    ids.append(f"{workload.name}-{side.name}-{number}")
    metafunc.parametrize(("workload", "side"), plan, ids=ids)


@pytest.fixture
def book(request: pytest.FixtureRequest) -> Book:
    """The samples of this session."""
    return request.config.stash[BOOK]


@pytest.fixture(autouse=True)
def collected() -> None:
    """Garbage of the last sample is not this one's."""
    gc.collect()


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """No dot per sample; the progress lines say enough."""
    return ("passed", "", "PASSED") if report.passed and report.when == "call" else None


def pytest_unconfigure(config: pytest.Config) -> None:
    Temporal.stop()
    load.stop()
    for folder in folders:
        folder.cleanup()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    quick = config.getoption("--quick") or bool(config.getoption("--only"))
    finish("replay", config.stash[BOOK].rows(), quick=quick)
