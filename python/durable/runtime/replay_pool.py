"""Replay pool: the runs of a database against the code at hand, in parallel processes.

The parent lists the runs, page by page, and sends their histories, those of some runs at a time and
as the database put them together, to whichever process (`durable.runtime.replay_child`) has least
to do. What comes back are counts and problems, as plain data. Nothing is written to the database,
and runs may move on meanwhile: a history is looked at as it was when it was listed.

To start an interpreter takes as long as thousands of replays. So the first process is a fork of
this one, if that can be; else it imports nothing but what a replay needs, and starts before the
runs are listed. It forks the others where it can.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from durable.codec import DEFAULT_CODEC, Codec
from durable.engine.registry import Registry
from durable.errors import ConfigurationError, StoreError
from durable.events import RunState, RunView
from durable.runtime.frames import pack, read_frame
from durable.runtime.recorded import Problem, find_problem
from durable.runtime.replay_child import CAN_FORK, FORKS_MAX, Fork, can_fork_here
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
LOADERS = 2
"""Queries at a time: while one is answered, what another gave is passed on."""
UNDER_WAY_MAX = 2
"""Frames that a process has: the one it replays, and the next."""
ANSWER_SECONDS_MAX = 300
"""A frame takes some milliseconds; one that takes this long never ends."""
OPEN_RUNS_MAX = 1_000_000
PAGE_RUNS = 1000
"""Runs listed at a time: more than any number of processes has to do at once."""
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
) -> AsyncIterator[list[Listed]]:
    """All open runs, and then the newest ``closed_max`` closed ones, in pages; the last one is
    shorter than `PAGE_RUNS`."""
    page: list[Listed] = []
    for states, count in ((OPEN_STATES, OPEN_RUNS_MAX), (CLOSED_STATES, closed_max)):
        wanted, before = Runs(workflow_type, states), None
        while count > 0:
            limit = min(count, PAGE_RUNS - len(page))
            views = await store.views(wanted, before=before, limit=limit)
            page += map(listed, views)
            if len(page) == PAGE_RUNS:
                yield page
                page = []
            if len(views) < limit:
                break
            count -= limit
            before = views[-1].created_us, views[-1].run_id
    yield page


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

    Entered best where no event loop runs, no thread was started and nothing of the app is imported:
    then the processes are forks. Raises ConfigurationError for less than one process.
    """

    def __init__(self, processes: int) -> None:
        if processes < 1:
            raise ConfigurationError(f"replaying takes 1 or more processes, not {processes}")
        self._processes_max = processes
        self._processes: list[subprocess.Popen[bytes] | Fork] = []
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
        source: Source,
        store: Store,
        pages: AsyncIterator[Sequence[Listed]],
        progress: Callable[[int, int], object] = lambda listed, done: None,
    ) -> Tally:
        """Replay all of them, once; ``store`` is without a codec, which the processes have.

        ``pages`` is what `list_runs` gives. ``progress`` is called with the number of runs that
        were listed, and of those done, since last time. Raises StoreError when the database cannot
        be read, ConfigurationError when the app cannot be imported or a process dies.
        """
        total = Tally()
        first = await anext(pages)
        if not first:
            return total
        count = -(-len(first) // FRAME_RUNS) if len(first) < PAGE_RUNS else self._processes_max
        self._staff(min(self._processes_max, count))
        portions, shelf = Portions(first, pages, progress), Shelf(LOADERS)
        work = [
            self._feed(source, self._links.pop(), shelf, total, progress) for _ in list(self._links)
        ]
        work += [load_some(store, portions, shelf, total) for _ in range(LOADERS)]
        tasks = [asyncio.create_task(each) for each in work]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await portions.close()
            # Not one by one as they run out of work: forked ones end with the one that forked them.
            for writer in self._writers:
                writer.close()
        return total

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        try:
            with blocked_interrupt():
                first = not self._processes and can_fork_here()
                self._processes.append(Fork(ours, theirs) if first else launch(theirs, MODULE))
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
        self,
        source: Source,
        link: socket.socket,
        shelf: Shelf,
        total: Tally,
        progress: Callable[[int, int], object],
    ) -> None:
        """Give one process what it can do, until there is no more."""
        reader, writer = await asyncio.open_connection(sock=link)
        self._writers.append(writer)
        writer.write(pack({"orders": {"app": source.app, "folder": source.folder}}))
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
            tally = await self._answer(reader, source.app)
            under_way -= 1
            total.add(tally)
            progress(0, tally.replayed + tally.gone)

    async def _answer(self, reader: asyncio.StreamReader, app: str) -> Tally:
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
                f"a replaying process died; does importing {app} or running its workflows end the "
                "process?"
            ) from None
        if "failed" in head:
            raise (StoreError if head["by_store"] else ConfigurationError)(head["failed"])
        return Tally.from_head(head)


class Shelf:
    """Frames that are loaded and wait for a process, in order; bounded by their bytes.

    ``fillers`` is how many say at the end that they have no more.
    """

    def __init__(self, fillers: int = 1) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._fillers = fillers
        self._changed = asyncio.Condition()

    async def put(self, frame: bytes) -> None:
        """Add one, as soon as there is room."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._bytes < AHEAD_BYTES_MAX)
            self._frames.append(frame)
            self._bytes += len(frame)
            self._changed.notify_all()

    async def end(self) -> None:
        """No more will come from one of those that fill it."""
        async with self._changed:
            self._fillers -= 1
            self._changed.notify_all()

    async def take(self, *, waits: bool) -> bytes | None:
        """The first one; None when there is none any more, or (not ``waits``) none yet."""
        async with self._changed:
            if waits:
                await self._changed.wait_for(lambda: self._frames or not self._fillers)
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._bytes -= len(frame)
            self._changed.notify_all()
            return frame


class Portions:
    """What was listed, in portions for a frame; while one page is used up, the next is read."""

    def __init__(
        self,
        first: Sequence[Listed],
        pages: AsyncIterator[Sequence[Listed]],
        progress: Callable[[int, int], object],
    ) -> None:
        self._pages = pages
        self.progress = progress
        self._waiting: deque[list[Listed]] = deque()
        self._lock = asyncio.Lock()
        self._take(first)

    def _take(self, page: Sequence[Listed]) -> None:
        self._waiting.extend(chunks(page))
        self.progress(len(page), 0)
        self._next = asyncio.create_task(self._read())

    async def _read(self) -> Sequence[Listed] | None:
        return await anext(self._pages, None)

    async def next(self) -> list[Listed] | None:
        """One portion; None when there are no more."""
        async with self._lock:
            if not self._waiting and (page := await asyncio.shield(self._next)) is not None:
                self._take(page)
            return self._waiting.popleft() if self._waiting else None

    async def close(self) -> None:
        """Read no further."""
        self._next.cancel()
        # What went wrong with it has been raised to those who waited, or is of no use any more.
        await asyncio.gather(self._next, return_exceptions=True)


async def load_some(store: Store, portions: Portions, shelf: Shelf, total: Tally) -> None:
    """Put the histories of some runs on the shelf, as long as there are any."""
    while (portion := await portions.next()) is not None:
        waiting = deque([portion])
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
                portions.progress(0, 1)
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
        async for page in list_runs(store, workflow_type=workflow_type, closed_max=closed_max):
            for chunk in chunks(page):
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
