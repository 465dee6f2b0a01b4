"""Replay pool: the runs of a database against the code at hand, in parallel processes.

The parent lists the runs once and sends their histories, those of some runs at a time and as the
database put them together, to whichever process (`durable.runtime.replay_child`) has least to do.
What comes back are counts and problems, as plain data. Nothing is written to the database, and runs
may move on meanwhile: a history is looked at as it was when it was listed.

To start a process takes as long as thousands of replays. So the first one starts before the runs
are listed, imports nothing but what a replay needs, and is there when the first histories are; it
forks the others where it can.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from durable.codec import DEFAULT_CODEC, Codec
from durable.engine.registry import Registry
from durable.errors import ConfigurationError, StoreError
from durable.events import RunState, RunView
from durable.runtime.frames import pack, read_frame
from durable.runtime.recorded import Problem, find_problem
from durable.runtime.replay_child import CAN_FORK, FORKS_MAX
from durable.runtime.replay_work import (
    FRAME_BATCHES,
    FRAME_RUNS,
    HISTORY_BYTES_MAX,
    WORK_BYTES_MAX,
    Listed,
    Tally,
    recorded,
    work_frame,
)
from durable.runtime.spawn import blocked_interrupt, launch
from durable.store.base import Store
from durable.store.pages import Runs
from durable.store.postgres import PostgresStore

MODULE = "durable.runtime.replay_child"
AHEAD_BYTES_MAX = 64 * 1024 * 1024
"""No more is loaded while so much waits for a process."""
UNDER_WAY_MAX = 2
"""Frames that a process has: the one it replays, and the next."""
ANSWER_SECONDS_MAX = 300
"""A frame takes some milliseconds; one that takes this long never ends."""
OPEN_RUNS_MAX = 1_000_000
OPEN_STATES = (RunState.RUNNING, RunState.PARKED, RunState.PAUSED)
CLOSED_STATES = tuple(state for state in RunState if state >= RunState.COMPLETED)
STATE_NAMES = {state: state.name.lower() for state in RunState}


@dataclass(frozen=True)
class Source:
    """The app to replay against, as each process gets it, and where it is looked for."""

    app: str
    folder: str


async def list_runs(
    store: Store, *, workflow_type: str | None = None, closed_max: int = 0
) -> list[Listed]:
    """All open runs, and the newest ``closed_max`` closed ones."""
    views = await store.views(Runs(workflow_type, OPEN_STATES), limit=OPEN_RUNS_MAX)
    if closed_max:
        views += await store.views(Runs(workflow_type, CLOSED_STATES), limit=closed_max)
    return [listed(view) for view in views]


def listed(view: RunView) -> Listed:
    """The parts of a view that a replay needs."""
    return Listed(
        view.run_id,
        view.workflow_id,
        view.workflow_type,
        view.queue,
        STATE_NAMES[view.state],
        view.part,
        view.event_batches,
        view.head_hash,
    )


class ReplayPool:
    """Processes that replay runs against one app. A context manager; leaving it ends them.

    Raises ConfigurationError for less than one process.
    """

    def __init__(self, source: Source, processes: int) -> None:
        if processes < 1:
            raise ConfigurationError(f"replaying takes 1 or more processes, not {processes}")
        self._source = source
        self._processes_max = processes
        self._processes: list[subprocess.Popen[bytes]] = []
        self._links: list[socket.socket] = []
        """Ours of the sockets to them, until a stream takes them over."""
        self._writers: list[asyncio.StreamWriter] = []

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # They have nothing to lose, and may be in a loop that never ends. Forked ones end with the
        # one that forked them.
        for popen in self._processes:
            popen.kill()
        for popen in self._processes:
            popen.wait()
        for link in self._links:
            link.close()

    async def replay(
        self,
        store: Store,
        runs: Sequence[Listed],
        progress: Callable[[int], object] = lambda count: None,
    ) -> Tally:
        """Replay all of them, once; ``store`` is without a codec, which the processes have.

        ``progress`` is called with the number of runs done since last time. Raises StoreError when
        the database cannot be read, ConfigurationError when the app cannot be imported or a process
        dies.
        """
        total = Tally()
        if not runs:
            return total
        self._staff(min(self._processes_max, -(-len(runs) // FRAME_RUNS)))
        shelf = Shelf()
        work = [self._feed(self._links.pop(), shelf, total, progress) for _ in list(self._links)]
        work.append(load_all(store, runs, shelf, total, progress))
        tasks = [asyncio.create_task(each) for each in work]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            # Not one by one as they run out of work: forked ones end with the one that forked them.
            for writer in self._writers:
                writer.close()
        return total

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            with blocked_interrupt():
                self._processes.append(launch(theirs, MODULE))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._links.append(ours)

    def _staff(self, count: int) -> None:
        """Have that many processes."""
        if sys.platform == "linux" and CAN_FORK:
            pairs = [socket.socketpair() for _ in range(min(count, FORKS_MAX) - 1)]
            first = self._links[0]
            self._links += [ours for ours, _ in pairs]
            with contextlib.suppress(OSError):
                # One that died by then is told by the next that it is sent.
                socket.send_fds(first, [b"+"], [theirs.fileno() for _, theirs in pairs])
            for _, theirs in pairs:
                theirs.close()
            return
        for _ in range(count - 1):
            self._start()

    async def _feed(
        self, link: socket.socket, shelf: Shelf, total: Tally, progress: Callable[[int], object]
    ) -> None:
        """Give one process what it can do, until there is no more."""
        reader, writer = await asyncio.open_connection(sock=link)
        self._writers.append(writer)
        orders = {"app": self._source.app, "folder": self._source.folder}
        writer.write(pack({"orders": orders}))
        under_way = 0
        while True:
            while under_way < UNDER_WAY_MAX:
                frame = await shelf.take(waits=not under_way)
                if frame is None:
                    break
                writer.write(frame)
                under_way += 1
            if not under_way:
                return
            tally = await self._answer(reader)
            under_way -= 1
            total.add(tally)
            progress(tally.replayed + tally.gone)

    async def _answer(self, reader: asyncio.StreamReader) -> Tally:
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                head, _ = await read_frame(reader, WORK_BYTES_MAX)
        except TimeoutError:
            raise ConfigurationError(
                f"nothing was replayed for {ANSWER_SECONDS_MAX} s; is there a loop in the workflow "
                "code that never awaits?"
            ) from None
        except (asyncio.IncompleteReadError, OSError):
            raise ConfigurationError(
                f"a replaying process died; does importing {self._source.app} or running its "
                "workflows end the process?"
            ) from None
        if "failed" in head:
            raise (StoreError if head["by_store"] else ConfigurationError)(head["failed"])
        return Tally.from_head(head)


class Shelf:
    """Frames that are loaded and wait for a process, in order; bounded by their bytes."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._is_over = False
        self._changed = asyncio.Condition()

    async def put(self, frame: bytes) -> None:
        """Add one, as soon as there is room."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._bytes < AHEAD_BYTES_MAX)
            self._frames.append(frame)
            self._bytes += len(frame)
            self._changed.notify_all()

    async def end(self) -> None:
        """No more will come."""
        async with self._changed:
            self._is_over = True
            self._changed.notify_all()

    async def take(self, *, waits: bool) -> bytes | None:
        """The first one; None when there is none any more, or (not ``waits``) none yet."""
        async with self._changed:
            if waits:
                await self._changed.wait_for(lambda: self._frames or self._is_over)
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._bytes -= len(frame)
            self._changed.notify_all()
            return frame


async def load_all(
    store: Store,
    runs: Sequence[Listed],
    shelf: Shelf,
    total: Tally,
    progress: Callable[[int], object],
) -> None:
    """Put the histories of all runs on the shelf."""
    waiting = deque(chunks(runs))
    while waiting:
        chunk = waiting.popleft()
        packed = await store.load_packed({run.run_id: run.part for run in chunk})
        if len(packed.batches) <= HISTORY_BYTES_MAX:
            await shelf.put(work_frame(chunk, packed))
        elif len(chunk) > 1:
            # Each on its own: most of them are of the usual length.
            waiting.extendleft([run] for run in reversed(chunk))
        else:
            total.count(chunk[0].workflow_type, too_long(chunk[0], len(packed.batches)))
            progress(1)
    await shelf.end()


def too_long(run: Listed, size: int) -> Problem:
    """Why a run is not replayed."""
    text = f"its history has {size:,} bytes; a check takes {HISTORY_BYTES_MAX:,} at most"
    return Problem("unsupported", run.run_id, run.workflow_id, run.workflow_type, text)


def chunks(runs: Iterable[Listed]) -> Iterator[list[Listed]]:
    """Runs in portions for a frame."""
    chunk: list[Listed] = []
    batch_count = 0
    for run in runs:
        if chunk and (len(chunk) >= FRAME_RUNS or batch_count + run.batch_count > FRAME_BATCHES):
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
    tally = Tally()
    store = PostgresStore(dsn, schema=schema)
    await store.open()
    try:
        runs = await list_runs(store, workflow_type=workflow_type, closed_max=closed_max)
        for chunk in chunks(runs):
            packed = await store.load_packed({run.run_id: run.part for run in chunk})
            for run, batches in zip(chunk, packed.unpack(), strict=True):
                if batches:
                    found = recorded(run, batches[: run.batch_count], codec)
                    tally.count(run.workflow_type, find_problem(registry, found))
                else:
                    tally.gone += 1
    finally:
        await store.close()
    return tally
