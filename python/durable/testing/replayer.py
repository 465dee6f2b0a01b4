"""Replayer: do recorded runs still fit the code?

    def test_old_orders_replay():
        Replayer(workflows=[order]).replay_all("tests/histories").check()

A history comes from a file (``durable export ID > order-7.json``, `History.save`), from a test, or
from a database (`durable check --replay` does that for all of them, in parallel).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType

from durable.codec import DEFAULT_CODEC, Codec
from durable.engine.interceptors import Interceptor
from durable.engine.registry import Registry
from durable.errors import InvalidArgumentError, NonDeterminismError, UnknownWorkflowError
from durable.runtime.recorded import Problem, RecordedRun, find_problem, replay
from durable.testing.history import History

Source = RecordedRun | History | str | Path


@dataclass
class ReplayReport:
    """What became of a number of replays."""

    replayed: int = 0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every run replayed."""
        return not self.problems

    @property
    def mismatches(self) -> list[Problem]:
        """The runs that the code no longer matches."""
        return [each for each in self.problems if each.kind == "nondeterminism"]

    def check(self) -> ReplayReport:
        """Return the report; raise AssertionError with every problem when there is one."""
        if self.problems:
            raise AssertionError(self.render())
        return self

    def render(self) -> str:
        """A summary for people: one example for each kind of problem, with how often it came."""
        lines = [f"{self.replayed} replayed, {len(self.problems)} with a problem"]
        counts = Counter(each.signature for each in self.problems)
        shown: set[tuple[str, ...]] = set()
        for each in self.problems:
            if each.signature in shown:
                continue
            shown.add(each.signature)
            lines.append("")
            lines.append(
                f"{each.workflow_type}: {each.kind}, {counts[each.signature]} of them, "
                f"such as {each.workflow_id} (run {each.run_id})"
            )
            lines.extend(f"  {line}" for line in each.message.splitlines())
        return "\n".join(lines)


class Replayer:
    """Replays histories against ``workflows`` (definitions, or modules that hold some)."""

    def __init__(
        self, workflows: Iterable[object], *, interceptors: Iterable[Interceptor] = ()
    ) -> None:
        """``interceptors`` are the workers': they are around workflow code in each replay."""
        self._registry = Registry(interceptors=interceptors)
        for each in workflows:
            if isinstance(each, ModuleType):
                self._registry.collect(each)
            else:
                self._registry.add(each)
        if not self._registry.workflow_types:
            raise InvalidArgumentError("a Replayer needs the workflows to replay against")

    def replay(self, source: Source) -> None:
        """Replay one history.

        Raises NonDeterminismError, whose text is the diff; HistoryCorruptError and
        HistoryUnsupportedError for the bytes; UnknownWorkflowError; InvalidArgumentError for a
        file that is none of ours.
        """
        recorded = as_recorded(source)
        replay(self._registry.workflow(recorded.workflow_type), recorded, self._registry)

    def replay_all(self, sources: Iterable[Source] | str | Path) -> ReplayReport:
        """Replay many, or all ``*.json`` files below a folder, and report; never stops half-way.

        Raises InvalidArgumentError when a folder has no such file: an empty test proves nothing.
        """
        if isinstance(sources, str | Path):
            found = sorted(Path(sources).rglob("*.json"))
            if not found:
                raise InvalidArgumentError(f"there are no histories (*.json) in {sources}")
            sources = found
        report = ReplayReport()
        for source in sources:
            problem = find_problem(self._registry, as_recorded(source))
            report.replayed += 1
            if problem is not None:
                report.problems.append(problem)
        return report

    async def replay_database(
        self,
        dsn: str,
        *,
        schema: str = "durable",
        workflow_type: str | None = None,
        closed_max: int = 1000,
        codec: Codec = DEFAULT_CODEC,
    ) -> ReplayReport:
        """Replay all open runs of a database and its newest closed ones, and report.

        In this process; ``durable check --replay`` uses all cores. ``codec`` is that of the
        workers. Raises StoreError, also for what the codec cannot open.
        """
        # Here, because every pytest session imports this module and few need the database driver.
        pool = import_module("durable.runtime.replay_pool")
        tally = await pool.replay_here(
            dsn,
            schema,
            self._registry,
            workflow_type=workflow_type,
            closed_max=closed_max,
            codec=codec,
        )
        return ReplayReport(tally.replayed, tally.problems)

    def mismatch(self, source: Source) -> NonDeterminismError | None:
        """The mismatch of one history, or None when it replays."""
        try:
            self.replay(source)
        except NonDeterminismError as error:
            return error
        return None

    def has(self, workflow_type: str) -> bool:
        """Whether there is code for that type."""
        try:
            self._registry.workflow(workflow_type)
        except UnknownWorkflowError:
            return False
        return True


def as_recorded(source: Source) -> RecordedRun:
    """A run from wherever it is."""
    if isinstance(source, History):
        return source.recorded
    return source if isinstance(source, RecordedRun) else RecordedRun.load(source)
