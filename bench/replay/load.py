"""Load: runs out of PostgreSQL and replayed, beside Absurd, which reads its checkpoints back; and
all open runs of a database checked against the code, beside Temporal's Replayer.

Ours: `Store.load` of 20 runs, then the replay of each. Absurd: the second attempt of a task whose
first one failed after its last step; timed from the SELECT of its checkpoints to the end of the
body (``absurd``), and for the body alone, which is a dict lookup per step (``absurd-body``).

The check is what ``durable check --replay --processes 2`` does, from listing the runs to the last
answer, the start of its processes included. Temporal's histories are in memory already.
"""

import asyncio
import compileall
import functools
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import durable
from bench import flows
from bench.database import Database
from bench.peers.link import Peer
from bench.replay.histories import Recorded, many, record
from bench.replay.workloads import OURS, US, Setting, Side, Temporal, Workload, answer_of
from bench.report import ROOT, Goal
from durable.engine.execution import Execution
from durable.engine.start import StartMeta, new_run
from durable.events import RunCommit, SessionInfo
from durable.runtime.replay_pool import ReplayPool, Source, list_runs
from durable.runtime.replay_work import Tally
from durable.store.postgres import PostgresStore

STEPS = 1000
RUNS = 20
SESSION = 1
LEASE_US = 3_600_000_000
ORDERS = 10
"""Activities of a run that is checked."""
CHUNK = 1000


class Loaded:
    """The database with our runs in it, and the peer; shared by all samples."""

    def __init__(self) -> None:
        self.database = Database()
        self.database.start()
        self.runner = asyncio.Runner()
        self.dsn = self.database.create_ours()
        self.store = PostgresStore(self.dsn)
        self.runner.run(self.store.open())
        self.peer: Peer | None = None
        self.parts = self.runner.run(self.fill())

    async def fill(self) -> dict[str, int]:
        """Store `RUNS` runs of `STEPS` steps, a batch per step; run id to partition."""
        await self.store.register_session(
            SessionInfo(SESSION, "bench", os.getpid(), "bench", ["default"]), LEASE_US
        )
        return await self.keep(many(flows.steps, STEPS, RUNS))

    async def keep(self, recorded: Sequence[Recorded]) -> dict[str, int]:
        """Store runs of one program and length as open ones; run id to partition."""
        workflow, by_id = recorded[0].workflow, {each.run_id: each for each in recorded}
        now_us = await self.store.now_us()
        runs = [
            new_run(workflow, b"[]", StartMeta(workflow_id=run_id), run_id=run_id, now_us=now_us)
            for run_id in by_id
        ]
        for run in runs:
            each = by_id[run.run_id]
            run.batch, run.head_hash = each.batches[0], each.heads[0]
        started = await self.store.start_runs(runs)
        assert all(each.accepted for each in started)
        claimed, _, _ = await self.store.claim_runs(
            SESSION, ["default"], [workflow.name], len(runs)
        )
        assert {run.run_id for run in claimed} == by_id.keys()
        for number in range(1, len(recorded[0].batches)):
            commits = [
                RunCommit(
                    run_id=run.run_id,
                    fence=run.fence,
                    part=run.part,
                    expected_seq=number,
                    batch=by_id[run.run_id].batches[number],
                    head_hash=by_id[run.run_id].heads[number],
                )
                for run in claimed
            ]
            await self.store.commit(commits)
        return {run.run_id: run.part for run in claimed}

    async def load_and_replay(self) -> list[Any]:
        """The answers of all runs."""
        loaded = await self.store.load(self.parts)
        answers = []
        for run_id, batches in loaded.items():
            execution = Execution(flows.steps, run_id, run_id)
            execution.load(batches)
            answers.append(answer_of(execution))
        return answers

    def absurd(self) -> Peer:
        """The peer, on a database of its own."""
        if self.peer is None:
            self.peer = Peer("absurd", self.database.create("absurd_replay"))
            self.peer.call("install")
        return self.peer

    def stop(self) -> None:
        """End everything."""
        if self.peer is not None:
            self.peer.stop()
        self.runner.run(self.store.close())
        self.runner.close()
        self.database.stop()


@functools.cache
def loaded() -> Loaded:
    """Made when it is first needed."""
    return Loaded()


def stop() -> None:
    """End what was made."""
    if loaded.cache_info().currsize:
        loaded().stop()
        loaded.cache_clear()


def load_replay(setting: Setting) -> Workload:
    """The workload."""

    def ours() -> Callable[[], Any]:
        made = loaded()
        return lambda: made.runner.run(made.load_and_replay())

    def absurd(key: str) -> Callable[[], Callable[[], Any]]:
        def prepare() -> Callable[[], Any]:
            peer = loaded().absurd()
            return lambda: STEPS / peer.call("replay", steps=STEPS)[key]

        return prepare

    answer = [flows.sum_below(STEPS)] * RUNS
    sides = [Side(OURS, STEPS * RUNS, ours, answer, setting.samples)]
    if setting.peers:
        samples = 3 if setting.quick else 7
        sides.append(Side("absurd", STEPS, absurd("total"), samples=samples, reports=True))
        sides.append(Side("absurd-body", STEPS, absurd("body"), samples=samples, reports=True))
    return Workload(
        "load-replay",
        "steps/s",
        sides,
        goals=[Goal(peer="absurd", ratio=1), Goal(peer="absurd-body", ratio=1)],
        scale=1.0,
        rises=True,
        note=f"{RUNS} runs of {STEPS} steps",
    )


@functools.cache
def filled(runs: int) -> None:
    """Have that many open runs of `flows.orders` in the database."""
    made = loaded()
    for first in range(0, runs, CHUNK):
        recorded = [
            record(flows.orders, ORDERS, leave=1, run_id=str(uuid.UUID(int=RUNS + number)))
            for number in range(first, min(first + CHUNK, runs))
        ]
        made.runner.run(made.keep(recorded))


def check_open_runs(setting: Setting) -> Workload:
    """The workload: every open run of a database replayed by two processes."""
    runs = 1000 if setting.quick else 10_000
    theirs = 50 if setting.quick else 1000

    def prepare() -> Callable[[], Any]:
        # As pip does when it installs: the start of the processes is timed, too.
        compileall.compile_dir(Path(durable.__file__).parent, quiet=1)
        filled(runs)
        made = loaded()
        source = Source("bench.flows", str(ROOT))

        async def work(pool: ReplayPool) -> Tally:
            store = PostgresStore(made.dsn)
            await store.open()
            try:
                pages = list_runs(store, workflow_type=flows.orders.name)
                return await pool.replay(source, store, pages)
            finally:
                await store.close()

        def check() -> tuple[int, int]:
            with ReplayPool(2) as pool:
                tally = made.runner.run(work(pool))
            return tally.replayed, len(tally.problems)

        return check

    return Workload(
        "check-10k",
        "us/history",
        [
            Side(OURS, runs, prepare, (runs, 0), samples=2 if setting.quick else 5),
            *Temporal.sides(setting, "orders", ORDERS, theirs, theirs, US),
        ],
        goals=[Goal(peer="temporal", ratio=300)],
        note=f"{runs} open runs with {ORDERS} activities, 2 processes from their start",
    )
