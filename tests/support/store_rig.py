"""Both stores behind one face: a rig makes runs, claims them, and lets time pass."""

from __future__ import annotations

import uuid
from typing import Any

import psycopg

from durable.events import (
    ClaimedRun,
    Closing,
    IdReuse,
    InboxItem,
    NewRun,
    RunCommit,
    RunState,
    SessionInfo,
    Verdict,
)
from durable.store.base import Store
from durable.store.memory import MemoryStore
from durable.store.postgres import PostgresStore

HOUR_US = 3_600_000_000
QUEUE = "q"
TYPE = "order"


class Rig:
    """A store, and a second one on the same data as another process would have it."""

    def __init__(self, store: Store, other: Store) -> None:
        self.store = store
        self.other = other
        self.session_count = 0

    async def pass_time(self, us: int) -> None:
        """Let everything that is timed be ``us`` closer."""
        raise NotImplementedError

    async def session(self, lease_us: int = HOUR_US) -> int:
        """Register a new session; return its id."""
        self.session_count += 1
        session = 1000 + self.session_count
        await self.store.register_session(SessionInfo(session, "host", 1, "", [QUEUE]), lease_us)
        return session

    async def start(self, workflow_id: str, **options: Any) -> str:
        """Start a run that must be accepted; return its id."""
        new = new_run(workflow_id, **options)
        (started,) = await self.store.start_runs([new])
        assert started.accepted
        return new.run_id

    async def claim(self, session: int, limit: int = 100) -> list[ClaimedRun]:
        """The runs newly owned by the session."""
        runs, _, _ = await self.store.claim_runs(session, [QUEUE], [TYPE], limit)
        return runs

    async def mail(self, session: int) -> list[str]:
        """The session's own runs that have mail."""
        runs, mail, _ = await self.store.claim_runs(session, [QUEUE], [TYPE], 100)
        assert runs == []
        return mail

    async def owned(self, workflow_id: str, session: int | None = None, **o: Any) -> ClaimedRun:
        """Start a run and claim it."""
        run_id = await self.start(workflow_id, **o)
        runs = await self.claim(session if session is not None else await self.session())
        return next(run for run in runs if run.run_id == run_id)

    async def commit(self, *changes: RunCommit) -> list[Verdict]:
        """The verdicts of one group commit."""
        return (await self.store.commit(changes)).verdicts

    async def accept(self, *changes: RunCommit) -> None:
        """Commit what must go through."""
        assert await self.commit(*changes) == [Verdict.ACCEPTED] * len(changes)

    async def inbox(self, run_id: str) -> list[InboxItem]:
        """What the run has not read."""
        return await self.store.inbox([run_id])

    async def close(self, run: ClaimedRun, state: RunState = RunState.COMPLETED) -> None:
        """End a run of which nothing but RUN_STARTED was written."""
        await self.accept(change(run, b"end", closing=Closing(state, result=b"1")))


class MemoryRig(Rig):
    def __init__(self) -> None:
        self.time_us = 1_700_000_000_000_000
        store = MemoryStore(clock_us=self.tick)
        super().__init__(store, store)

    def tick(self) -> int:
        self.time_us += 1
        return self.time_us

    async def pass_time(self, us: int) -> None:
        self.time_us += us


class PostgresRig(Rig):
    def __init__(self, dsn: str) -> None:
        super().__init__(PostgresStore(dsn), PostgresStore(dsn))
        self.dsn = dsn

    async def pass_time(self, us: int) -> None:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as conn:
            for table, columns in (
                ("timer", ("due_at",)),
                ("session", ("expires_at",)),
                ("activity", ("scheduled_at", "started_at")),
                ("queue_limit", ("refilled_at",)),
            ):
                moves = ", ".join(f"{c} = {c} - %(us)s * interval '1 us'" for c in columns)
                await conn.execute(f"UPDATE durable.{table} SET {moves}", {"us": us})


def new_run(workflow_id: str, **options: Any) -> NewRun:
    """A run to start."""
    defaults: dict[str, Any] = {
        "workflow_type": TYPE,
        "queue": QUEUE,
        "batch": b"started",
        "head_hash": 1,
        "id_reuse": IdReuse.REJECT,
    }
    return NewRun(str(uuid.uuid4()), workflow_id, **{**defaults, **options})


def change(
    run: ClaimedRun, batch: bytes | None = None, *, seq: int = 1, **changes: Any
) -> RunCommit:
    """A flush of the run that has written nothing else yet (or ``seq`` batches)."""
    return RunCommit(run.run_id, run.fence, run.part, seq, batch, seq + 1, **changes)
