"""Supervisor: what it does with its processes. The workers here only talk; the store only notes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from durable.errors import ConfigurationError, StoreUnavailableError
from durable.options import SupervisorOptions, WorkerOptions
from durable.runtime import spawn
from durable.runtime.spawn import BootError, Orders, WorkerProcess
from durable.runtime.supervisor import Supervisor
from durable.store.base import WORK, Hint, Store

HERE = Path(__file__).parent
BOOT = (
    f"import sys; sys.path[:] = [{str(HERE)!r}, *{{path!r}}]; from child import main; main({{fd}})"
)


@dataclass
class NotingStore:
    """The few verbs a supervisor uses, noted."""

    beaten: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    fail_next_end: int = 0
    silent_beats: int = 0
    """So many heartbeats find none of the sessions alive."""
    hints: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    listens: bool = True
    mail: list[int] = field(default_factory=list)
    has_work: bool = False

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def heartbeat(self, sessions: Sequence[int], lease_us: int) -> set[int]:
        self.beaten += sessions
        if self.silent_beats and sessions:
            self.silent_beats -= 1
            return set()
        return set(sessions)

    async def end_sessions(self, sessions: Sequence[int], *, crashed: bool = True) -> int:
        if self.fail_next_end:
            self.fail_next_end -= 1
            raise StoreUnavailableError("the database is away")
        assert crashed
        self.ended += sessions
        return 5 * len(sessions)

    async def look(self, sessions: Sequence[int], queues: Sequence[str]) -> tuple[set[int], bool]:
        return set(self.mail) & set(sessions), self.has_work

    async def reap_sessions(self) -> int:
        return 0

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[AsyncIterator[Hint]]:
        if not self.listens:
            raise ConfigurationError("no hints behind this pooler")

        async def hints() -> AsyncIterator[Hint]:
            while True:
                await self.hints.get()
                yield WORK

        yield hints()


@pytest.fixture(autouse=True)
def talking_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "BOOT", BOOT)


@pytest.fixture
def notes() -> NotingStore:
    return NotingStore()


def make(notes: NotingStore, app: str = "well", **options: Any) -> Supervisor:
    lease_seconds = options.pop("lease_seconds", 0.6)
    poll_max_seconds = options.pop("poll_max_seconds", 5.0)
    options = {"processes": 2, "http_port": None, "restart_initial_seconds": 0.01, **options}
    return Supervisor(
        app,
        "postgresql://nobody@nowhere/nothing",
        options=SupervisorOptions(**options),
        worker_options=WorkerOptions(
            lease_seconds=lease_seconds, poll_max_seconds=poll_max_seconds
        ),
        store=cast(Store, notes),
    )


async def until(holds: Callable[[], object]) -> None:
    """Wait for what other processes do."""
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


async def test_every_worker_comes_up_and_keeps_its_lease(notes: NotingStore) -> None:
    async with make(notes, processes=3) as supervisor:
        assert len(set(supervisor.pids)) == 3
        await until(lambda: len(set(notes.beaten)) == 3)
        assert supervisor.fleet.value("durable_workers_wanted") == 3
        await until(lambda: supervisor.fleet.value("durable_workers") == 3)
        pids = supervisor.pids
    assert all(gone(pid) for pid in pids)
    assert notes.ended == []


async def test_a_killed_worker_is_handed_over_and_replaced(notes: NotingStore) -> None:
    async with make(notes) as supervisor:
        await until(lambda: len(set(notes.beaten)) == 2)
        before = supervisor.pids
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: notes.ended)
        assert notes.ended[0] in notes.beaten
        await until(lambda: len(supervisor.pids) == 2)
        assert before[0] not in supervisor.pids
        assert before[1] in supervisor.pids
        assert supervisor.fleet.value("durable_worker_restarts_total", reason="killed") == 1
        assert supervisor.fleet.value("durable_handover_runs_total") == 5
        assert supervisor.fleet.value("durable_degraded") == 0


async def test_what_is_killed_before_it_says_hello_is_handed_over_and_counted(
    notes: NotingStore, tmp_path: Path
) -> None:
    app = tmp_path / "app"
    app.write_text("well")
    async with make(notes, f"file:{app}", processes=1) as supervisor:
        app.write_text("dies")
        os.kill(supervisor.pids[0], signal.SIGKILL)
        await until(
            lambda: supervisor.fleet.value("durable_worker_restarts_total", reason="killed") >= 3
        )
        assert supervisor.fleet.value("durable_worker_restarts_total", reason="boot") == 0
        assert len(set(notes.ended)) >= 3


async def test_a_session_that_ended_well_a_moment_ago_is_no_alarm(
    notes: NotingStore, caplog: pytest.LogCaptureFixture
) -> None:
    notes.silent_beats = 1
    async with make(notes) as supervisor:
        await until(lambda: len(notes.beaten) >= 6)
        assert supervisor.fleet.value("durable_leases_lost_total") == 0
    assert "declared dead" not in caplog.text


async def test_a_session_that_stays_dead_is_told(
    notes: NotingStore, caplog: pytest.LogCaptureFixture
) -> None:
    notes.silent_beats = 1000
    async with make(notes) as supervisor:
        await until(lambda: supervisor.fleet.value("durable_leases_lost_total"))
        # The worker itself hears of it at once: it need not ask.
        await until(lambda: supervisor.fleet.value("durable_stale_commits_total"))
    assert "declared dead by others" in caplog.text


async def test_a_handover_the_database_missed_is_made_later(notes: NotingStore) -> None:
    async with make(notes) as supervisor:
        notes.fail_next_end = 2
        os.kill(supervisor.pids[0], signal.SIGKILL)
        await until(lambda: notes.ended)
        assert notes.fail_next_end == 0
        assert len(notes.ended) == 1


async def test_leases_are_kept_after_an_error_nobody_thought_of(
    notes: NotingStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heartbeat, errors = notes.heartbeat, iter([ValueError("what is this?")])

    async def fails_once(sessions: Sequence[int], lease_us: int) -> set[int]:
        for error in errors:
            raise error
        return await heartbeat(sessions, lease_us)

    monkeypatch.setattr(notes, "heartbeat", fails_once)
    async with make(notes):
        await until(lambda: notes.beaten)
    assert "what is this?" in caplog.text


async def test_a_supervisor_that_lost_a_part_of_itself_ends(
    notes: NotingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: Supervisor) -> None:
        raise ValueError("what is this?")

    supervisor = make(notes)
    monkeypatch.setattr(Supervisor, "_tick", fails)
    async with asyncio.timeout(30):
        with pytest.raises(ValueError, match="what is this"):
            await supervisor.run()


async def test_both_workers_may_be_killed_at_once(notes: NotingStore) -> None:
    async with make(notes) as supervisor:
        before = supervisor.pids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await until(lambda: len(notes.ended) == 2)
        await until(lambda: len(set(supervisor.pids) - set(before)) == 2)


async def test_a_worker_that_cannot_start_ends_it_with_its_own_words(notes: NotingStore) -> None:
    with pytest.raises(BootError, match="cannot import refuses: there is nothing there"):
        async with make(notes, "refuses"):
            pass


async def test_a_worker_that_does_not_move_loses_its_lease_and_its_life(
    notes: NotingStore,
) -> None:
    async with make(notes, "hangs", hang_seconds=0.3) as supervisor:
        await until(
            lambda: supervisor.fleet.value("durable_worker_restarts_total", reason="hung") >= 2
        )
        await until(lambda: len(notes.ended) >= 2)


async def test_a_crash_loop_is_slowed_down_and_shown(notes: NotingStore) -> None:
    async with make(notes, "exits", processes=1) as supervisor:
        await until(lambda: supervisor.fleet.value("durable_degraded") == 1)
        assert supervisor.fleet.value("durable_worker_restarts_total", reason="exited") >= 3


async def test_a_deaf_worker_is_killed_when_asked_twice(notes: NotingStore) -> None:
    async with make(notes, "deaf") as supervisor:
        pids = supervisor.pids
        supervisor.request_stop()
        supervisor.request_stop()
    assert all(gone(pid) for pid in pids)
    assert len(notes.ended) == 2


async def test_a_reload_replaces_every_worker_and_loses_none(notes: NotingStore) -> None:
    async with make(notes) as supervisor:
        before = supervisor.pids
        assert await supervisor.reload()
        assert len(supervisor.pids) == 2
        assert not set(before) & set(supervisor.pids)
        assert supervisor.fleet.value("durable_worker_restarts_total", reason="reload") == 2
        assert supervisor.fleet.value("durable_worker_restarts_total", reason="exited") == 0
    assert notes.ended == []


async def test_a_stop_right_after_a_reload_drains_the_new_workers(
    notes: NotingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = asyncio.Event()
    close = WorkerProcess.close

    async def close_later(worker: WorkerProcess) -> None:
        await stopped.wait()
        await close(worker)

    monkeypatch.setattr(WorkerProcess, "close", close_later)
    async with make(notes) as supervisor:
        assert await supervisor.reload()
        # The old workers are dead but not yet buried when the word to stop comes.
        stopped.set()
    assert notes.ended == []


async def test_a_reload_that_cannot_start_leaves_the_old_workers(
    notes: NotingStore, tmp_path: Path
) -> None:
    app = tmp_path / "app"
    app.write_text("well")
    async with make(notes, f"file:{app}") as supervisor:
        before = supervisor.pids
        app.write_text("refuses")
        assert not await supervisor.reload()
        assert supervisor.pids == before
        app.write_text("well")
        assert await supervisor.reload()
        assert not set(before) & set(supervisor.pids)


@pytest.mark.parametrize("listens", [True, False])
async def test_hints_reach_the_workers_with_and_without_the_database(
    notes: NotingStore, listens: bool
) -> None:
    notes.listens = listens
    async with make(notes) as supervisor:
        if listens:
            notes.hints.put_nowait(None)
        await until(lambda: supervisor.fleet.value("durable_runs_claimed_total") >= 2)


async def test_work_that_nobody_hinted_at_is_found_by_the_clock(notes: NotingStore) -> None:
    notes.has_work = True
    async with make(notes, poll_max_seconds=0.2) as supervisor:
        await until(lambda: supervisor.fleet.value("durable_runs_claimed_total") >= 2)


async def test_mail_that_nobody_hinted_at_is_told_to_whose_it_is(notes: NotingStore) -> None:
    async with make(notes, poll_max_seconds=0.2) as supervisor:
        await until(lambda: len(set(notes.beaten)) == 2)
        notes.mail.append(notes.beaten[0])
        await until(lambda: supervisor.fleet.value("durable_runs_claimed_total") >= 2)


async def test_a_worker_that_reads_nothing_costs_a_bounded_buffer(notes: NotingStore) -> None:
    async with make(notes, processes=1) as supervisor:
        pid = supervisor.pids[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(100_000):
                notes.hints.put_nowait(None)
            await until(notes.hints.empty)
            (worker,) = supervisor._workers.values()
            assert worker._writer is not None
            assert worker._writer.transport.get_write_buffer_size() < 2 * spawn.PENDING_BYTES_MAX
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_what_a_dead_worker_counted_stays_counted(notes: NotingStore) -> None:
    async with make(notes, processes=1) as supervisor:
        notes.hints.put_nowait(None)
        await until(lambda: supervisor.fleet.value("durable_runs_claimed_total") == 1)
        os.kill(supervisor.pids[0], signal.SIGKILL)
        await until(lambda: len(notes.ended) == 1)
        await until(lambda: supervisor.pids)
        assert supervisor.fleet.value("durable_runs_claimed_total") >= 1


RUN_ALONE = f"""
import asyncio, sys
sys.path[:] = [{str(HERE)!r}] + sys.path
from durable.runtime import spawn
spawn.BOOT = {BOOT!r}
from test_supervisor import NotingStore, make

async def main():
    supervisor = make(NotingStore(), app=sys.argv[1])
    running = asyncio.create_task(supervisor.run(handle_signals=True))
    await supervisor.ready()
    print(*supervisor.pids, flush=True)
    await running

asyncio.run(main())
"""


@contextlib.contextmanager
def alone(app: str) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A supervisor in a process of its own, and the pids of its workers."""
    with subprocess.Popen(
        [sys.executable, "-c", RUN_ALONE, app], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        try:
            yield process, pids
        finally:
            process.kill()


async def test_workers_die_with_their_supervisor() -> None:
    with alone("well") as (process, pids):
        assert len(pids) == 2
        process.kill()
        await until(lambda: all(gone(pid) for pid in pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_exit_code_is_0(number: int) -> None:
    with alone("well") as (process, pids):
        process.send_signal(number)
        assert process.wait(30) == 0
        assert all(gone(pid) for pid in pids)


def test_a_second_signal_stops_at_once() -> None:
    with alone("deaf") as (process, pids):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert all(gone(pid) for pid in pids)


async def test_hangup_restarts_the_workers() -> None:
    with alone("well") as (process, pids):
        process.send_signal(signal.SIGHUP)
        await until(lambda: all(gone(pid) for pid in pids))
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_orders_survive_the_socket() -> None:
    orders = Orders(
        app="shop.flows",
        dsn="postgresql://a:b%20c@d/e",
        schema="durable",
        options=WorkerOptions(queues=("a", "b"), lease_seconds=2.5),
        build_id="7",
    )
    assert Orders.from_line(orders.to_line()) == orders
    assert orders.to_line().count(b"\n") == 1
