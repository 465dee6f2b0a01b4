"""Load: runs out of PostgreSQL and replayed, beside Absurd, which reads its checkpoints back.

Ours: `Store.load` of 20 runs, then the replay of each. Absurd: the second attempt of a task whose
first one failed after its last step; timed from the SELECT of its checkpoints to the end of the
body (``absurd``), and for the body alone, which is a dict lookup per step (``absurd-body``).
"""

import asyncio
import functools
import os
from collections.abc import Callable
from typing import Any

from bench import flows
from bench.database import Database
from bench.peers.link import Peer
from bench.replay.histories import many
from bench.replay.workloads import OURS, Setting, Side, Workload, answer_of
from bench.report import Goal
from durable.engine.execution import Execution
from durable.engine.start import StartMeta, new_run
from durable.events import RunCommit, SessionInfo
from durable.store.postgres import PostgresStore

STEPS = 1000
RUNS = 20
SESSION = 1
LEASE_US = 3_600_000_000


class Loaded:
    """The database with our runs in it, and the peer; shared by all samples."""

    def __init__(self) -> None:
        self.database = Database()
        self.database.start()
        self.runner = asyncio.Runner()
        self.store = PostgresStore(self.database.create_ours())
        self.runner.run(self.store.open())
        self.peer: Peer | None = None
        self.parts = self.runner.run(self.fill())

    async def fill(self) -> dict[str, int]:
        """Store `RUNS` runs of `STEPS` steps, a batch per step; run id to partition."""
        recorded = many(flows.steps, STEPS, RUNS)
        await self.store.register_session(
            SessionInfo(SESSION, "bench", os.getpid(), "bench", ["default"]), LEASE_US
        )
        now_us = await self.store.now_us()
        runs = [
            new_run(
                flows.steps,
                b"[%d]" % STEPS,
                StartMeta(workflow_id=each.run_id),
                run_id=each.run_id,
                now_us=now_us,
            )
            for each in recorded
        ]
        for run, each in zip(runs, recorded, strict=True):
            run.batch, run.head_hash = each.batches[0], each.heads[0]
        started = await self.store.start_runs(runs)
        assert all(each.accepted for each in started)
        claimed, _, _ = await self.store.claim_runs(SESSION, ["default"], ["steps"], RUNS)
        assert len(claimed) == RUNS
        by_id = {each.run_id: each for each in recorded}
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
