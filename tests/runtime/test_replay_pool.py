"""The processes that replay a database's runs: how many, what they know, and how they end."""

import asyncio
import io
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.store_rig import MemoryRig

from durable import workflow
from durable.engine.start import StartMeta, new_run
from durable.errors import ConfigurationError, StoreUnavailableError
from durable.runtime import replay_pool
from durable.runtime.frames import take_frame
from durable.runtime.recorded import Problem
from durable.runtime.replay_child import CAN_FORK
from durable.runtime.replay_pool import ReplayPool, Shelf, Source, list_runs
from durable.runtime.replay_work import FRAME_RUNS, Listed, Tally
from durable.store.memory import MemoryStore

APP = """
import os, pathlib, sys, time
from durable import workflow

started = pathlib.Path(__file__).parent / "started"
(started / f"{os.getpid()}-{os.getppid()}").touch()

def await_others(count):
    deadline = time.monotonic() + 20
    while len(list(started.iterdir())) < count:
        assert time.monotonic() < deadline, "the others did not start"
        time.sleep(0.005)

@workflow.defn
async def parcel(item: str) -> str:
    await workflow.sleep(3600)
    return item
"""
SOON = 20.0


@workflow.defn
async def parcel(item: str) -> str:
    """As in `APP`."""
    await workflow.sleep(3600)
    return item


async def runs_in_memory(count: int) -> tuple[MemoryStore, list[Listed]]:
    store = MemoryStore()
    await store.open()
    runs = [
        new_run(
            parcel,
            b'["x"]',
            StartMeta(workflow_id=f"parcel-{number}"),
            run_id=str(uuid.UUID(int=number + 1)),
            now_us=1_700_000_000_000_000,
        )
        for number in range(count)
    ]
    await store.start_runs(runs)
    listed = [run async for page in list_runs(store) for run in page]
    assert len(listed) == count
    return store, listed


class Counted:
    """What a replay says on its way."""

    def __init__(self) -> None:
        self.listed = self.done = 0

    def __call__(self, listed: int, done: int) -> None:
        self.listed += listed
        self.done += done


async def paged(runs: list[Listed]) -> AsyncIterator[list[Listed]]:
    yield runs


def app_in(folder: Path, more: str = "") -> Source:
    (folder / "started").mkdir()
    (folder / "pool_app.py").write_text(APP + more)
    return Source("pool_app", str(folder))


def started_in(folder: Path) -> dict[int, int]:
    """The processes that imported the app, and who started each."""
    names = [path.name.split("-") for path in (folder / "started").iterdir()]
    return {int(pid): int(parent) for pid, parent in names}


async def all_gone(pids: set[int]) -> None:
    async with asyncio.timeout(SOON):
        while any(is_there(pid) for pid in pids):
            await asyncio.sleep(0.01)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # What nobody waited for is a zombie until init does.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


async def test_each_process_imports_the_app_and_every_run_is_replayed_once(tmp_path: Path) -> None:
    store, runs = await runs_in_memory(5 * FRAME_RUNS + 7)
    source = app_in(tmp_path, "await_others(3)\n")
    counted = Counted()

    with ReplayPool(3) as pool:
        tally = await pool.replay(source, store, paged(runs), counted)

    assert (tally.replayed, tally.gone, tally.problems) == (len(runs), 0, [])
    assert tally.by_type == {"parcel": len(runs)}
    assert (counted.listed, counted.done) == (len(runs), len(runs))
    started = started_in(tmp_path)
    assert len(started) == 3
    await all_gone(set(started))


async def test_few_runs_take_one_process(tmp_path: Path) -> None:
    store, runs = await runs_in_memory(FRAME_RUNS)

    with ReplayPool(8) as pool:
        tally = await pool.replay(app_in(tmp_path), store, paged(runs))

    assert tally.replayed == FRAME_RUNS
    assert len(started_in(tmp_path)) == 1


async def test_no_runs_are_nothing_to_do(tmp_path: Path) -> None:
    with ReplayPool(2) as pool:
        assert await pool.replay(app_in(tmp_path), MemoryStore(), paged([])) == Tally()


async def test_processes_know_neither_the_driver_nor_the_caller(tmp_path: Path) -> None:
    store, runs = await runs_in_memory(2 * FRAME_RUNS)
    more = 'assert not {"psycopg", "pytest", "multiprocessing"} & set(sys.modules)\n'

    with ReplayPool(2) as pool:
        tally = await pool.replay(app_in(tmp_path, more), store, paged(runs))

    assert tally.replayed == len(runs)


@pytest.mark.parametrize(
    "which",
    ["first", pytest.param("forked", marks=pytest.mark.skipif(not CAN_FORK, reason="no fork"))],
)
async def test_death_of_one_process_is_told_and_ends_the_others(tmp_path: Path, which: str) -> None:
    store, runs = await runs_in_memory(6 * FRAME_RUNS)
    test = f"os.getppid() {'==' if which == 'first' else '!='} {os.getpid()}"
    source = app_in(tmp_path, f"await_others(3)\nif {test}: os._exit(3)\n")

    died = pytest.raises(
        ConfigurationError, match="a replaying process died; does importing pool_app"
    )
    with died, ReplayPool(3) as pool:
        await pool.replay(source, store, paged(runs))

    await all_gone(set(started_in(tmp_path)))


async def test_app_that_does_not_import_is_told(tmp_path: Path) -> None:
    store, runs = await runs_in_memory(1)

    source = app_in(tmp_path, "raise ValueError('no good: \\udce9')\n")
    failed = pytest.raises(ConfigurationError, match="no good: \\\\udce9")
    with failed, ReplayPool(1) as pool:
        await pool.replay(source, store, paged(runs))


async def test_giving_up_ends_processes_that_never_would(tmp_path: Path) -> None:
    store, runs = await runs_in_memory(3 * FRAME_RUNS)
    source = app_in(tmp_path, "await_others(2)\nwhile True: time.sleep(1)\n")

    with ReplayPool(2) as pool:
        replay = asyncio.create_task(pool.replay(source, store, paged(runs)))
        async with asyncio.timeout(SOON):
            while len(started_in(tmp_path)) < 2:
                await asyncio.sleep(0.01)
        replay.cancel()
        with pytest.raises(asyncio.CancelledError):
            await replay

    await all_gone(set(started_in(tmp_path)))


async def test_a_page_that_cannot_be_read_ends_the_replay(tmp_path: Path) -> None:
    store, runs = await runs_in_memory(2)

    async def pages() -> AsyncIterator[list[Listed]]:
        yield runs
        raise StoreUnavailableError("away")

    away = pytest.raises(StoreUnavailableError, match="away")
    with away, ReplayPool(1) as pool:
        await pool.replay(app_in(tmp_path), store, pages())


async def test_a_process_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_pool, "ANSWER_SECONDS_MAX", 0.1)
    store, runs = await runs_in_memory(1)

    source = app_in(tmp_path, "while True: time.sleep(1)\n")
    stuck = pytest.raises(ConfigurationError, match="never awaits")
    with stuck, ReplayPool(1) as pool:
        await pool.replay(source, store, paged(runs))


async def test_runs_that_are_gone_and_histories_too_long_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, runs = await runs_in_memory(3)
    gone = runs[0]._replace(run_id=str(uuid.UUID(int=99)))
    counted = Counted()

    with ReplayPool(1) as pool:
        tally = await pool.replay(app_in(tmp_path), store, paged([gone, *runs]), counted)
    monkeypatch.setattr(replay_pool, "HISTORY_BYTES_MAX", 10)
    (tmp_path / "none").mkdir()
    with ReplayPool(1) as pool:
        refused = await pool.replay(app_in(tmp_path / "none"), store, paged(runs), counted)

    assert (tally.replayed, tally.gone) == (3, 1)
    assert (refused.replayed, len(refused.problems)) == (3, 3)
    assert {problem.kind for problem in refused.problems} == {"unsupported"}
    assert (counted.listed, counted.done) == (7, 7)


async def test_runs_are_listed_in_pages_and_the_newest_closed_ones_after_the_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replay_pool, "PAGE_RUNS", 2)
    rig = MemoryRig()
    for number in range(4):
        await rig.close(await rig.owned(f"closed-{number}"))
    for number in range(5):
        await rig.start(f"open-{number}")

    pages = [page async for page in list_runs(rig.store, closed_max=3)]

    assert [[run.workflow_id for run in page] for page in pages] == [
        ["open-4", "open-3"],
        ["open-2", "open-1"],
        ["open-0", "closed-3"],
        ["closed-2", "closed-1"],
        [],
    ]
    assert [run.state for run in pages[2]] == ["running", "completed"]


CALLER = """
import asyncio, sys, threading
sys.path.insert(0, {tests!r})
from pathlib import Path
from runtime.test_replay_pool import app_in, paged, runs_in_memory
from durable.runtime.replay_pool import ReplayPool

async def replay(pool):
    store, runs = await runs_in_memory(200)
    return await pool.replay(app_in(Path({folder!r}), {more!r}), store, paged(runs))

async def in_loop():
    with ReplayPool(2) as pool:
        return await replay(pool)

if __name__ == "__main__":
    sys.caller_was_here = True
    print("before", end=" ")
    if {how!r} == "thread":
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if {how!r} == "loop":
        tally = asyncio.run(in_loop())
    else:
        with ReplayPool(2) as pool:
            tally = asyncio.run(replay(pool))
    print(tally.replayed, len(tally.problems), "after")
"""


@pytest.mark.skipif(
    not CAN_FORK, reason="only on Linux is it forked; elsewhere each has an interpreter of its own"
)
@pytest.mark.parametrize("how", ["alone", "thread", "loop"])
def test_caller_is_forked_where_nothing_else_goes_on_in_it(tmp_path: Path, how: str) -> None:
    more = f"""
assert hasattr(sys, "caller_was_here") == {how == "alone"}
assert sys.stdin.read() == "" and os.read(0, 1) == b""
await_others(2)
print("by the app")
"""
    tests = str(Path(__file__).parent.parent)
    (tmp_path / "caller.py").write_text(
        CALLER.format(tests=tests, folder=str(tmp_path), how=how, more=more)
    )

    done = subprocess.run(
        [sys.executable, str(tmp_path / "caller.py")],
        input="for the caller",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "before 200 0 after\n"
    assert done.stderr.count("by the app") == 2
    (first,) = set(started_in(tmp_path)) & set(started_in(tmp_path).values())
    assert not is_there(first)


async def test_what_is_loaded_ahead_is_bounded() -> None:
    shelf = Shelf()
    large = b"x" * replay_pool.AHEAD_BYTES_MAX
    await shelf.put(large)
    blocked = asyncio.create_task(shelf.put(b"y"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not blocked.done()

    assert await shelf.take(waits=True) == large
    await blocked
    await shelf.end()

    assert await shelf.take(waits=True) == b"y"
    assert await shelf.take(waits=True) is None


def test_a_tally_survives_the_way_between_processes() -> None:
    long = Problem("error", "r", "w", "t", "\udce9" + "x" * 1_000_000, 7, None, "é", None)
    tally = Tally(3, 1, {"t": 3}, [long])

    frame = tally.to_frame()
    found = take_frame(io.BytesIO(frame))
    assert found is not None
    back = Tally.from_head(found[0])

    assert (back.replayed, back.gone, back.by_type) == (3, 1, {"t": 3})
    (problem,) = back.problems
    assert problem.message.startswith("\\udce9xxx")
    assert len(problem.message) < 30_000
    assert (problem.event_id, problem.expected, problem.found) == (7, None, "é")
