"""A run survives the death of its worker at any point, of all workers, and of the database."""

import asyncio
import os
import signal
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from shop import Order, Receipt, ambling, charge, holding, note, poison

from durable import Client, Supervisor, SupervisorOptions, WorkerOptions
from durable.events import EventKind, RunState
from durable.runtime.embedded import EmbeddedPostgres
from durable.runtime.parking import CRASHES_MAX
from durable.store.migrate import migrate

APP = str(Path(__file__).with_name("shop.py"))
OUTCOMES = {EventKind.ACTIVITY_COMPLETED, EventKind.ACTIVITY_FAILED}

pytestmark = pytest.mark.chaos


@asynccontextmanager
async def fleet(dsn: str, **options: Any) -> AsyncIterator[tuple[Supervisor, Client]]:
    """Two worker processes and a client."""
    supervisor = Supervisor(
        APP,
        dsn,
        options=SupervisorOptions(processes=2, http_port=0, restart_initial_seconds=0.01),
        worker_options=WorkerOptions(**options),
    )
    async with supervisor, Client.connect(dsn) as client:
        yield supervisor, client


async def until(holds: Callable[[], object]) -> None:
    """Wait for what other processes do."""
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


def paid(ledger: str) -> list[str]:
    return Path(ledger).read_text().splitlines() if Path(ledger).exists() else []


async def check_history(client: Client, workflow_id: str) -> None:
    """One start, one end, one outcome for each activity."""
    events = await client.get_handle(workflow_id).history()
    kinds = Counter(event.kind for event in events)
    assert kinds["RUN_STARTED"] == kinds["RUN_COMPLETED"] == 1
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    outcomes = Counter(e.ref for e in events if EventKind[e.kind] in OUTCOMES)
    scheduled = [event.id for event in events if event.kind == "ACTIVITY_SCHEDULED"]
    assert outcomes == dict.fromkeys(scheduled, 1)


@pytest.mark.parametrize("where", ["turn", "before", "after"])
async def test_a_worker_may_die_between_any_two_steps(dsn: str, tmp_path: Path, where: str) -> None:
    async with fleet(dsn) as (supervisor, client):
        for cycle in range(4):
            ledger = str(tmp_path / f"ledger-{cycle}")
            order = Order(ledger, strike=f"{where}:{cycle}")
            handle = await client.start(charge, order, id=f"{where}-{cycle}")
            assert await handle.result(30) == Receipt(paid=100, overdue=0)
            await check_history(client, f"{where}-{cycle}")
            # Cycle 2 is declined; a payment is seen twice only if the fault hit right after it.
            lines = Counter(paid(ledger))
            assert set(lines) == {"0 25", "1 25", "3 50"}
            struck = [line for line in lines if line.startswith(f"{cycle} ")]
            assert all(n == 1 for line, n in lines.items() if line not in struck)
            assert all(lines[line] <= 2 for line in struck)
        # After a declined payment there is no line to die at.
        kills = 3.0 if where == "after" else 4.0
        restarts = partial(supervisor.fleet.value, "durable_worker_restarts_total", reason="killed")
        await until(lambda: restarts() >= kills)
        assert restarts() == kills
        assert supervisor.metrics_url is not None
        answer = await asyncio.to_thread(urllib.request.urlopen, supervisor.metrics_url)
        with answer:
            text = answer.read().decode()
        assert f'durable_worker_restarts_total{{reason="killed"}} {kills}' in text


async def test_all_workers_may_die_again_and_again(dsn: str, tmp_path: Path) -> None:
    async with fleet(dsn) as (supervisor, client):
        orders = [Order(str(tmp_path / f"ledger-{n}"), cycle_seconds=0.4) for n in range(10)]
        handles = [
            await client.start(charge, order, id=f"many-{n}") for n, order in enumerate(orders)
        ]
        for step in range(2):
            await until(lambda: sum(len(paid(o.ledger)) for o in orders) >= 10 * (step + 1))  # noqa: B023
            await until(lambda: len(supervisor.pids) == 2)
            for pid in supervisor.pids:
                os.kill(pid, signal.SIGKILL)
        for number, handle in enumerate(handles):
            assert await handle.result(60) == Receipt(paid=100, overdue=0)
            await check_history(client, f"many-{number}")
        restarts = partial(supervisor.fleet.value, "durable_worker_restarts_total", reason="killed")
        await until(lambda: restarts() >= 4)
        assert restarts() == 4


async def test_a_fleet_that_was_stopped_and_wakes_changes_nothing(dsn: str, tmp_path: Path) -> None:
    """Zombies: their leases ran out while they were stopped, others went on."""
    ledger = str(tmp_path / "ledger")
    command = [sys.executable, "-m", "durable", "worker", APP, "--dsn", dsn, "--lease", "1s"]
    first = await asyncio.create_subprocess_exec(*command, "--port", "0", start_new_session=True)
    try:
        async with Client.connect(dsn) as client:
            handle = await client.start(charge, Order(ledger, cycle_seconds=0.5), id="zombie")
            await until(lambda: len(paid(ledger)) == 1)
            os.killpg(first.pid, signal.SIGSTOP)
            async with fleet(dsn, lease_seconds=1.0):
                assert await handle.result(60) == Receipt(paid=100, overdue=0)
                os.killpg(first.pid, signal.SIGCONT)
                # Awake again, with new sessions, it serves as before.
                second = await client.start(charge, Order(f"{ledger}-2"), id="after")
                assert await second.result(60) == Receipt(paid=100, overdue=0)
            await check_history(client, "zombie")
            third = await client.start(charge, Order(f"{ledger}-3"), id="alone")
            assert await third.result(60) == Receipt(paid=100, overdue=0)
        first.send_signal(signal.SIGTERM)
        assert await first.wait() == 0
    finally:
        if first.returncode is None:
            os.killpg(first.pid, signal.SIGKILL)
            await first.wait()


@pytest.mark.parametrize("crash", [False, True])
async def test_the_database_may_stop_and_start(tmp_path: Path, crash: bool) -> None:
    with EmbeddedPostgres(tmp_path / "postgres") as postgres:
        migrate(postgres.dsn)
        ledger = str(tmp_path / "ledger")
        async with fleet(postgres.dsn) as (supervisor, client):
            pids = supervisor.pids
            handle = await client.start(charge, Order(ledger, cycle_seconds=0.5), id="outage")
            await until(lambda: len(paid(ledger)) == 1)
            await asyncio.to_thread(postgres.kill if crash else postgres.stop)
            await asyncio.to_thread(postgres.start)
            assert await handle.result(60) == Receipt(paid=100, overdue=0)
            await check_history(client, "outage")
            assert supervisor.pids == pids


async def test_a_drain_hands_back_what_it_could_not_end(dsn: str, tmp_path: Path) -> None:
    ledger = str(tmp_path / "ledger")
    async with Client.connect(dsn) as client:
        async with fleet(dsn, drain_seconds=0.2) as (supervisor, _):
            handle = await client.start(holding, ledger, id="held")
            await until(lambda: paid(ledger))
        assert supervisor.fleet.value("durable_worker_restarts_total", reason="killed") == 0
        note(f"{ledger}.go", "on")
        async with fleet(dsn):
            assert await handle.result(30) == "done"
        await check_history(client, "held")


async def test_of_many_runs_only_the_one_that_kills_its_workers_is_parked(dsn: str) -> None:
    options = SupervisorOptions(processes=1, http_port=0, restart_initial_seconds=0.01)
    async with Client.connect(dsn) as client:
        good = [await client.start(ambling, 3, id=f"good-{n}") for n in range(10)]
        bad = await client.start(poison, id="poison")
        async with Supervisor(APP, dsn, options=options) as supervisor:
            for handle in good:
                assert await handle.result(60) == "arrived"
            async with asyncio.timeout(60):
                while (await bad.describe()).state != RunState.PARKED:
                    await asyncio.sleep(0.05)
            kills = supervisor.fleet.value("durable_worker_restarts_total", reason="killed")
            assert kills == CRASHES_MAX
            # It comes with the next beat of the worker that parked it.
            await until(
                lambda: supervisor.fleet.value("durable_parked_total", reason="poison") == 1
            )
