"""Every kind of write, by somebody whose session is dead: nothing in the database changes.

The whole schema is read before and after. Once with the run in other hands, once with nobody's: a
fence is worth the same in both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg import sql
from support.store_rig import HOUR_US, QUEUE, TYPE, PostgresRig, change, new_run

from durable.errors import ActivityNotFoundError
from durable.events import (
    ActivityOutcome,
    ClaimedActivity,
    ClaimedRun,
    Closing,
    EventKind,
    Hold,
    KeptFact,
    Message,
    NewTimer,
    QueuedActivity,
    Response,
    RunCommit,
    RunState,
    Verdict,
)
from durable.store.limits import Limits

POLICY = b'{"start_to_close":60,"heartbeat":30}'


@dataclass
class Zombie:
    """What a worker still holds in its hands when its session is dead."""

    rig: PostgresRig
    session: int
    run: ClaimedRun
    child: ClaimedRun
    attempt: ClaimedActivity

    def change(self, batch: bytes | None = b"b", **what: Any) -> RunCommit:
        return change(self.run, batch, seq=2, **what)

    def outcome(self, kind: int, **what: Any) -> ActivityOutcome:
        each = self.attempt
        return ActivityOutcome(each.run_id, each.ref, each.attempt, each.token, kind, b"1", **what)

    async def write(self, hold: Hold) -> None:
        """Add to a stream that is there and to a new one."""
        run_id = self.run.run_id
        for name in ("t", "new"):
            with contextlib.suppress(ActivityNotFoundError):
                await self.rig.store.append_stream(run_id, name, 1, [b"x"], 2, hold)


async def rows(dsn: str) -> dict[str, list[str]]:
    """Every row of every table of the schema, as text."""
    async with await psycopg.AsyncConnection.connect(dsn) as conn:
        cursor = await conn.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'durable'::regnamespace "
            "AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1"
        )
        tables = [name for (name,) in await cursor.fetchall()]
        found = {}
        for table in tables:
            query = sql.SQL("SELECT t::text FROM durable.{} t ORDER BY 1")
            cursor = await conn.execute(query.format(sql.Identifier(table)))
            found[table] = [text for (text,) in await cursor.fetchall()]
    return found


async def zombie(rig: PostgresRig) -> Zombie:
    """A worker that had a run with mail, timers and activities, and an attempt of one of them."""
    session = await rig.session()
    run = await rig.owned("a", session)
    made = [QueuedActivity(ref, "pay", QUEUE, 0, 1, b"[]", POLICY) for ref in (5, 6)]
    first = change(
        run,
        b"first",
        timers=[NewTimer(7, 1 << 50)],
        activities=made,
        children=[new_run("child", parent_ref=3)],
    )
    await rig.accept(first)
    (child,) = await rig.claim(session)
    (attempt,) = await rig.store.claim_activities(session, [QUEUE], ["pay"], 1)
    await rig.start("other", workflow_type="somebody else's")
    await rig.store.send([Message(EventKind.SIGNAL_RECEIVED, workflow_id="a", name="go")])
    await rig.store.append_stream(run.run_id, "t", 1, [b"x"], 1, Hold(0, run.fence))
    return Zombie(rig, session, run, child, attempt)


SIGNAL = Message(EventKind.SIGNAL_RECEIVED, workflow_id="other", name="go", ref=9)
DONE = Closing(RunState.COMPLETED, b"1")
FAILED = Closing(RunState.FAILED, None, b"{}")
END = Closing(RunState.TERMINATED, None, b"{}")

COMMITS: dict[str, Callable[[Zombie], RunCommit]] = {
    "batch": lambda z: z.change(),
    "mail that was read": lambda z: z.change(consumed=[1, 2, 3, 4, 5]),
    "timer": lambda z: z.change(timers=[NewTimer(8, 1)]),
    "timer that fired": lambda z: z.change(timers_done=[7]),
    "activity": lambda z: z.change(
        activities=[QueuedActivity(10, "pay", QUEUE, 0, 1, b"[]", POLICY)]
    ),
    "next attempt": lambda z: z.change(
        None, activities=[QueuedActivity(5, "pay", QUEUE, 0, 2, b"[]", POLICY)]
    ),
    "cancelled activity": lambda z: z.change(activities_done=[5, 6]),
    "child": lambda z: z.change(children=[new_run("second child", parent_ref=4)]),
    "message": lambda z: z.change(messages=[SIGNAL]),
    "answer": lambda z: z.change(responses=[Response("r", b"1")]),
    "search attributes": lambda z: z.change(search=b'{"x":1}'),
    "kept outcome": lambda z: z.change(None, kept=[KeptFact(2, 5, b"1")]),
    "end": lambda z: z.change(closing=DONE),
    "end without a batch": lambda z: z.change(None, closing=FAILED),
    "end whatever is unread": lambda z: z.change(closing=END),
    "end with an answer": lambda z: z.change(closing=END, responses=[Response("r", b"1")]),
    "continue as new": lambda z: z.change(
        closing=Closing(RunState.CONTINUED_AS_NEW), successor=new_run("a")
    ),
    "another try of the workflow": lambda z: z.change(closing=FAILED, successor=new_run("a")),
    "park": lambda z: z.change(None, park=b"{}", unpark_at_us=1),
    "release": lambda z: z.change(None, release=True),
    "end of a child, told to its parent": lambda z: change(z.child, b"e", closing=DONE),
}

CALLS: dict[str, Callable[[Zombie], Awaitable[object]]] = {
    "activity completed": lambda z: z.rig.store.finish_activities(
        [z.outcome(EventKind.ACTIVITY_COMPLETED)]
    ),
    "activity failed": lambda z: z.rig.store.finish_activities(
        [z.outcome(EventKind.ACTIVITY_FAILED)]
    ),
    "activity to be tried again": lambda z: z.rig.store.finish_activities([z.outcome(0)]),
    "activity handed back": lambda z: z.rig.store.finish_activities(
        [z.outcome(0, count_attempt=False)]
    ),
    "heartbeat of an activity": lambda z: z.rig.store.heartbeat_activity(
        z.attempt.run_id, z.attempt.ref, z.attempt.token, b"[50]"
    ),
    "stream of an attempt": lambda z: z.write(Hold(z.attempt.ref, z.attempt.token)),
    "stream of an attempt of the owner": lambda z: z.write(Hold(0, z.run.fence)),
    "heartbeat of the session": lambda z: z.rig.store.heartbeat([z.session], HOUR_US),
    "claim of runs": lambda z: z.rig.store.claim_runs(z.session, [QUEUE], [TYPE], 10),
    "claim of activities": lambda z: z.rig.store.claim_activities(z.session, [QUEUE], ["pay"], 10),
    "claim within limits": lambda z: z.rig.store.claim_activities(
        z.session, ["limited"], ["pay"], 10
    ),
    "run on trial": lambda z: z.rig.store.suspect(z.session, z.run.run_id),
    "end of the session": lambda z: z.rig.store.end_sessions([z.session]),
}


async def bury(rig: PostgresRig, dead: Zombie, heir: bool) -> None:
    """Its lease was over; others may have taken over since."""
    await rig.store.end_sessions([dead.session])
    await Limits(rig.store).set("limited", concurrency=1, rate=5)
    if heir:
        session = await rig.session()
        runs = await rig.claim(session)
        assert {run.run_id for run in runs} == {dead.run.run_id, dead.child.run_id}
        attempts = await rig.store.claim_activities(session, [QUEUE], ["pay"], 10)
        assert dead.attempt.ref in {each.ref for each in attempts}


@pytest.mark.parametrize("heir", [False, True], ids=["nobody's", "another's"])
@pytest.mark.parametrize("kind", COMMITS)
async def test_a_commit_of_the_dead_changes_nothing(
    postgres: PostgresRig, kind: str, heir: bool
) -> None:
    dead = await zombie(postgres)
    late = COMMITS[kind](dead)
    await bury(postgres, dead, heir)
    before = await rows(postgres.dsn)

    assert await postgres.commit(late) == [Verdict.STALE]

    assert await rows(postgres.dsn) == before
    # In one transaction with those of the living, too.
    alive = await postgres.owned("alive")
    assert await postgres.commit(late, change(alive, b"b")) in ([Verdict.STALE, Verdict.ACCEPTED],)


@pytest.mark.parametrize("heir", [False, True], ids=["nobody's", "another's"])
@pytest.mark.parametrize("kind", CALLS)
async def test_a_call_of_the_dead_changes_nothing(
    postgres: PostgresRig, kind: str, heir: bool
) -> None:
    dead = await zombie(postgres)
    await bury(postgres, dead, heir)
    before = await rows(postgres.dsn)

    await CALLS[kind](dead)

    assert await rows(postgres.dsn) == before


async def test_the_same_writes_of_the_living_change_something(postgres: PostgresRig) -> None:
    # Else the two above would show nothing.
    dsn = postgres.dsn
    for kind, made in COMMITS.items():
        alive = await zombie(postgres)
        before = await rows(dsn)
        verdicts = await postgres.commit(made(alive))
        assert verdicts in ([Verdict.ACCEPTED], [Verdict.UNREAD]), kind
        assert verdicts == [Verdict.UNREAD] or await rows(dsn) != before, kind
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
            await conn.execute(
                "TRUNCATE durable.run, durable.closed_run, durable.history, durable.task, "
                "durable.timer, durable.inbox, durable.request, durable.activity, durable.claim"
            )
