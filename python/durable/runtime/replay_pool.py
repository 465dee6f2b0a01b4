"""Replay pool: the runs of a database against the code at hand, in parallel processes.

The parent lists the runs once and deals them out in chunks; each process has the app, a connection
of its own and loads a chunk of histories with one query. What comes back are counts and problems,
as plain data. Nothing is written to the database, and runs may move on meanwhile: a history is
looked at as it was when it was listed.

To start a process and import the app takes as long as some thousand replays. So the first ones
start before the runs are listed, and none imports the program that started it.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import NamedTuple, Self

from durable.codec import DEFAULT_CODEC, Codec
from durable.engine.registry import Registry
from durable.errors import ConfigurationError, DurableError, StoreError
from durable.events import RunState, RunView
from durable.runtime.app import load_app
from durable.runtime.recorded import Problem, RecordedRun, find_problem
from durable.store.postgres import PostgresStore
from durable.store.sealed import seal_store

CHUNK_RUNS = 200
CHUNK_BATCHES = 5_000
"""A chunk of histories is in memory at once; long ones make a chunk of fewer runs."""
CHUNK_SECONDS_MAX = 300
"""A chunk takes a fraction of a second; one that takes this long never ends."""
GARBAGE_MAX = 50_000
"""Objects made before garbage is looked for: not evicted runs, only what the user's code leaves."""
EARLY_PROCESSES = 2
"""So many start before it is known how much there is to do; the others start with their work."""
OPEN_RUNS_MAX = 1_000_000
OPEN_STATES = (RunState.RUNNING, RunState.PARKED, RunState.PAUSED)
CLOSED_STATES = tuple(state for state in RunState if state >= RunState.COMPLETED)


class Listed(NamedTuple):
    """A run as the parent listed it: what a process needs to load and check it."""

    run_id: str
    workflow_id: str
    workflow_type: str
    queue: str
    state: str
    part: int
    batch_count: int
    head_hash: int


@dataclass
class Tally:
    """What came out. Adds up over chunks."""

    replayed: int = 0
    gone: int = 0
    """Runs whose history was removed meanwhile."""
    by_type: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count another one in."""
        self.replayed += other.replayed
        self.gone += other.gone
        self.problems += other.problems
        for name, count in other.by_type.items():
            self.by_type[name] = self.by_type.get(name, 0) + count


@dataclass(frozen=True)
class Source:
    """The database and the app, as each process gets them."""

    dsn: str
    schema: str
    app: str
    folder: str


async def list_runs(
    dsn: str, schema: str, *, workflow_type: str | None = None, closed_max: int = 0
) -> list[Listed]:
    """All open runs, and the newest ``closed_max`` closed ones."""
    store = PostgresStore(dsn, schema=schema)
    await store.open()
    try:
        views = await store.views(
            workflow_type=workflow_type, states=OPEN_STATES, limit=OPEN_RUNS_MAX
        )
        if closed_max:
            views += await store.views(
                workflow_type=workflow_type, states=CLOSED_STATES, limit=closed_max
            )
    finally:
        await store.close()
    return [listed(view) for view in views]


def listed(view: RunView) -> Listed:
    """The parts of a view that travel to a process."""
    return Listed(
        view.run_id,
        view.workflow_id,
        view.workflow_type,
        view.queue,
        RunState(view.state).name.lower(),
        view.part,
        view.event_batches,
        view.head_hash,
    )


class ReplayPool:
    """Processes that replay runs of one source. A context manager; leaving it ends them.

    Raises ConfigurationError for less than one process.
    """

    def __init__(self, source: Source, processes: int) -> None:
        if processes < 1:
            raise ConfigurationError(f"replaying takes 1 or more processes, not {processes}")
        self._source = source
        self._processes = processes
        # Spawned, not forked: user code meets the same fresh interpreter as in a worker.
        context = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(processes, mp_context=context)

    def __enter__(self) -> Self:
        # One that died by then is told when there is work for it.
        with suppress(BrokenProcessPool), without_main():
            for _ in range(min(self._processes, EARLY_PROCESSES)):
                self._executor.submit(prepare, self._source)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._executor.shutdown()
            return
        # Without waiting: a process may be in a loop that never ends.
        self._executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()

    def replay(
        self,
        runs: Sequence[Listed],
        progress: Callable[[int], object] = lambda count: None,
    ) -> Tally:
        """Replay all of them; ``progress`` is called with the number of runs done since last time.

        Raises StoreError when the database cannot be read, ConfigurationError when the app cannot
        be imported or a process dies.
        """
        total = Tally()
        waiting: set[Future[Tally]] = set()
        try:
            for chunk in chunks(runs):
                with without_main():
                    waiting.add(self._executor.submit(replay_chunk, self._source, chunk))
                if len(waiting) >= 3 * self._processes:
                    waiting = collect(waiting, total, progress)
            while waiting:
                waiting = collect(waiting, total, progress)
        except BrokenProcessPool as error:
            raise ConfigurationError(
                f"a replaying process died; does importing {self._source.app} or running its "
                f"workflows end the process? ({error})"
            ) from error
        return total


@contextmanager
def without_main() -> Iterator[None]:
    """A process that starts here does not import the program that starts it.

    It would be the command line, or a test run: of no use to a replay, and slower than the app.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def collect(
    waiting: set[Future[Tally]], total: Tally, progress: Callable[[int], object]
) -> set[Future[Tally]]:
    """Wait for at least one chunk, count those that are done, and return the others."""
    done, rest = wait(waiting, timeout=CHUNK_SECONDS_MAX, return_when=FIRST_COMPLETED)
    if not done:
        raise ConfigurationError(
            f"nothing was replayed for {CHUNK_SECONDS_MAX} s; is there a loop in the workflow code "
            "that never awaits?"
        )
    for future in done:
        tally = future.result()
        total.add(tally)
        progress(tally.replayed + tally.gone)
    return rest


def chunks(runs: Iterable[Listed]) -> Iterator[list[Listed]]:
    """Runs in portions that fit in memory."""
    chunk: list[Listed] = []
    batch_count = 0
    for run in runs:
        if chunk and (len(chunk) >= CHUNK_RUNS or batch_count + run.batch_count > CHUNK_BATCHES):
            yield chunk
            chunk, batch_count = [], 0
        chunk.append(run)
        batch_count += run.batch_count
    if chunk:
        yield chunk


async def replay_here(
    dsn: str,
    schema: str,
    registry: Registry,
    *,
    workflow_type: str | None = None,
    closed_max: int = 0,
    codec: Codec = DEFAULT_CODEC,
) -> Tally:
    """As `ReplayPool.replay`, in this process and against definitions that are here."""
    runs = await list_runs(dsn, schema, workflow_type=workflow_type, closed_max=closed_max)
    tally = Tally()
    store = seal_store(PostgresStore(dsn, schema=schema), codec)
    await store.open()
    try:
        for chunk in chunks(runs):
            histories = await store.load({run.run_id: run.part for run in chunk})
            for run in chunk:
                check_run(registry, run, histories[run.run_id][: run.batch_count], tally)
    finally:
        await store.close()
    return tally


# -- in a process of the pool ------------------------------------------------------------------


class Station:
    """What one process keeps between chunks: the app, a loop and an open store."""

    def __init__(self, source: Source) -> None:
        self.source = source
        # What user code prints must not end up in the report.
        sys.stdout = sys.stderr
        app = load_app(source.app, Path(source.folder))
        self.registry = Registry(app.workflows, app.activities, interceptors=app.interceptors)
        factory = asyncio.SelectorEventLoop if sys.platform == "win32" else None
        self.runner = asyncio.Runner(loop_factory=factory)
        # Behind the app's codec: what the workers sealed is opened as they would.
        self.store = seal_store(PostgresStore(source.dsn, schema=source.schema), app.codec)
        self.runner.run(self.store.open())
        # Without the runner's own handling of signals, set up anew for every call.
        self.wait = self.runner.get_loop().run_until_complete
        # What is here now stays: the collector need not walk through it again and again. And by
        # its own measure it would start once every few runs.
        gc.freeze()
        gc.set_threshold(GARBAGE_MAX)


stations: list[Station] = []
"""The one station of this process, once it has one."""


def prepare(source: Source) -> None:
    """Import the app and connect. What is wrong with that is told by the first chunk."""
    with suppress(Exception):
        station_for(source)


def station_for(source: Source) -> Station:
    """The station of this process, made when it is first asked for."""
    if not stations:
        stations.append(Station(source))
    return stations[0]


def replay_chunk(source: Source, runs: list[Listed]) -> Tally:
    """Load and replay some runs."""
    try:
        station = station_for(source)
        parts = {run.run_id: run.part for run in runs}
        histories = station.wait(station.store.load(parts))
    except DurableError as error:
        # Errors with arguments of their own do not survive the way between processes.
        kind = StoreError if isinstance(error, StoreError) else ConfigurationError
        raise kind(str(error)) from None
    tally = Tally()
    for run in runs:
        # The run may have moved on: the first batches are what was listed.
        check_run(station.registry, run, histories[run.run_id][: run.batch_count], tally)
    return tally


def check_run(registry: Registry, run: Listed, batches: Sequence[bytes], tally: Tally) -> None:
    """Replay one run and count it."""
    if not batches:
        tally.gone += 1
        return
    recorded = RecordedRun(
        run.run_id,
        run.workflow_id,
        run.workflow_type,
        batches,
        run.head_hash,
        run.queue,
        run.state,
    )
    problem = find_problem(registry, recorded)
    tally.replayed += 1
    tally.by_type[run.workflow_type] = tally.by_type.get(run.workflow_type, 0) + 1
    if problem is not None:
        tally.problems.append(problem)
