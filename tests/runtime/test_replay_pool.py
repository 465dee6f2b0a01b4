"""The processes that replay a database's runs: how many, what they know, and how they end."""

import asyncio
import io
import os
import uuid
from pathlib import Path

import pytest

from durable import workflow
from durable.engine.start import StartMeta, new_run
from durable.errors import ConfigurationError
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
    listed = await list_runs(store)
    assert len(listed) == count
    return store, listed


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
    done: list[int] = []

    with ReplayPool(source, 3) as pool:
        tally = await pool.replay(store, runs, done.append)

    assert (tally.replayed, tally.gone, tally.problems) == (len(runs), 0, [])
    assert tally.by_type == {"parcel": len(runs)}
    assert sum(done) == len(runs)
    started = started_in(tmp_path)
    assert len(started) == 3
    await all_gone(set(started))


async def test_few_runs_take_one_process(tmp_path: Path) -> None:
    store, runs = await runs_in_memory(FRAME_RUNS)

    with ReplayPool(app_in(tmp_path), 8) as pool:
        tally = await pool.replay(store, runs)

    assert tally.replayed == FRAME_RUNS
    assert len(started_in(tmp_path)) == 1


async def test_no_runs_are_nothing_to_do(tmp_path: Path) -> None:
    with ReplayPool(app_in(tmp_path), 2) as pool:
        assert await pool.replay(MemoryStore(), []) == Tally()


async def test_processes_know_neither_the_driver_nor_the_caller(tmp_path: Path) -> None:
    store, runs = await runs_in_memory(2 * FRAME_RUNS)
    more = 'assert not {"psycopg", "pytest", "multiprocessing"} & set(sys.modules)\n'

    with ReplayPool(app_in(tmp_path, more), 2) as pool:
        tally = await pool.replay(store, runs)

    assert tally.replayed == len(runs)


@pytest.mark.parametrize(
    "which",
    ["first", pytest.param("forked", marks=pytest.mark.skipif(not CAN_FORK, reason="no fork"))],
)
async def test_death_of_one_process_is_told_and_ends_the_others(tmp_path: Path, which: str) -> None:
    store, runs = await runs_in_memory(6 * FRAME_RUNS)
    test = f"os.getppid() {'==' if which == 'first' else '!='} {os.getpid()}"
    source = app_in(tmp_path, f"await_others(3)\nif {test}: os._exit(3)\n")

    died = pytest.raises(ConfigurationError, match="a replaying process died")
    with died, ReplayPool(source, 3) as pool:
        await pool.replay(store, runs)

    await all_gone(set(started_in(tmp_path)))


async def test_app_that_does_not_import_is_told(tmp_path: Path) -> None:
    store, runs = await runs_in_memory(1)

    source = app_in(tmp_path, "raise ValueError('no good: \\udce9')\n")
    failed = pytest.raises(ConfigurationError, match="no good: \\\\udce9")
    with failed, ReplayPool(source, 1) as pool:
        await pool.replay(store, runs)


async def test_giving_up_ends_processes_that_never_would(tmp_path: Path) -> None:
    store, runs = await runs_in_memory(3 * FRAME_RUNS)
    source = app_in(tmp_path, "await_others(2)\nwhile True: time.sleep(1)\n")

    with ReplayPool(source, 2) as pool:
        replay = asyncio.create_task(pool.replay(store, runs))
        async with asyncio.timeout(SOON):
            while len(started_in(tmp_path)) < 2:
                await asyncio.sleep(0.01)
        replay.cancel()
        with pytest.raises(asyncio.CancelledError):
            await replay

    await all_gone(set(started_in(tmp_path)))


async def test_a_process_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_pool, "ANSWER_SECONDS_MAX", 0.1)
    store, runs = await runs_in_memory(1)

    source = app_in(tmp_path, "while True: time.sleep(1)\n")
    stuck = pytest.raises(ConfigurationError, match="never awaits")
    with stuck, ReplayPool(source, 1) as pool:
        await pool.replay(store, runs)


async def test_runs_that_are_gone_and_histories_too_long_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, runs = await runs_in_memory(3)
    gone = runs[0]._replace(run_id=str(uuid.UUID(int=99)))
    done: list[int] = []

    with ReplayPool(app_in(tmp_path), 1) as pool:
        tally = await pool.replay(store, [gone, *runs], done.append)
    monkeypatch.setattr(replay_pool, "HISTORY_BYTES_MAX", 10)
    (tmp_path / "none").mkdir()
    with ReplayPool(app_in(tmp_path / "none"), 1) as pool:
        refused = await pool.replay(store, runs, done.append)

    assert (tally.replayed, tally.gone) == (3, 1)
    assert (refused.replayed, len(refused.problems)) == (3, 3)
    assert {problem.kind for problem in refused.problems} == {"unsupported"}
    assert sum(done) == 7


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
