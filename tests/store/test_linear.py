"""Cost grows with what a call is about: no statement looks at each row once for each other row.

Everything that takes many is called with many, and the server tells what each node of each plan
has read and thrown away (support/plans.py): a join of two sets without an index shows there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from support.plans import Plan, WatchedStore
from support.store_rig import HOUR_US, QUEUE, TYPE, PostgresRig, change, new_run

from durable.events import (
    ActivityOutcome,
    ClaimedActivity,
    ClaimedRun,
    Closing,
    EventKind,
    Message,
    MessageKind,
    NewTimer,
    QueuedActivity,
    Response,
    RunState,
    Verdict,
)
from durable.store.limits import Limits
from durable.store.settled import NO_FLOOR

MANY = 120
ROWS_EACH = 12
"""Rows that a node may read for each run or message of a call. Each by each would be `MANY`."""
SIGNAL = EventKind.SIGNAL_RECEIVED

Call = Callable[[], Awaitable[object]]


def check(plan: Plan, call: str) -> None:
    """No node reads more rows than go with the size of the call."""
    for node in plan.nodes:
        assert node.rows <= ROWS_EACH * MANY, f"{call}: {node} in {plan.text}"


async def accepted(rig: PostgresRig, changes: list[object]) -> None:
    """Commit what must go through."""
    verdicts = (await rig.store.commit(changes)).verdicts  # type: ignore[arg-type]
    assert set(verdicts) == {Verdict.ACCEPTED}


async def claimed(rig: PostgresRig, session: int) -> list[ClaimedRun]:
    """All the runs there are."""
    runs = await rig.claim(session, 10 * MANY)
    assert len(runs) >= MANY
    return runs


def queued(ref: int) -> QueuedActivity:
    """An activity of a run."""
    return QueuedActivity(ref, "pay", QUEUE, 0, 1, b"", b'{"start_to_close":60}')


async def calls(rig: PostgresRig) -> AsyncIterator[tuple[str, Call]]:
    """Everything that takes many, with many; what a call leaves is what the next begins with."""
    store = rig.store
    session, other = await rig.session(9 * HOUR_US), await rig.session(9 * HOUR_US)
    new = [new_run(f"run{n}") for n in range(MANY)]
    yield "start_runs", lambda: store.start_runs(new)
    yield "start_runs, taken", lambda: store.start_runs([new_run(f"run{n}") for n in range(MANY)])
    keyed = [new_run(f"keyed{n}", queue="keyed", dedup_key=f"{n}") for n in range(MANY)]
    yield "start_runs, keyed", lambda: store.start_runs(keyed)
    again = [new_run(f"again{n}", queue="keyed", dedup_key=f"{n}") for n in range(MANY)]
    yield "start_runs, held", lambda: store.start_runs(again)

    ids = [f"run{n}" for n in range(MANY)]
    to_one = [Message(SIGNAL, run_id=new[0].run_id, request_id=f"one{n}") for n in range(MANY)]
    yield "send, to one", lambda: store.send(to_one)
    yield "send, to one, again", lambda: store.send(to_one)
    to_each = [Message(SIGNAL, workflow_id=each, request_id="each") for each in ids]
    yield "send, to each", lambda: store.send(to_each)
    plain = [Message(MessageKind.QUERY, run_id=each.run_id, request_id="q") for each in new]
    yield "send, queries", lambda: store.send(plain)
    mixed = [new_run(f"{'run' if n % 2 else 'mixed'}{n}", queue="mixed") for n in range(MANY)]
    mail = [Message(SIGNAL, workflow_id=run.workflow_id, request_id="m") for run in mixed]
    yield "start_and_send", lambda: store.start_and_send(mixed, mail)

    runs = await claimed(rig, session)
    mine = [run.run_id for run in runs]
    yield "claim_runs, mail", lambda: store.claim_runs(session, [QUEUE], [TYPE], MANY)
    yield "look", lambda: store.look([session, other], [QUEUE])
    yield "inbox", lambda: store.inbox(mine)
    yield "mail_after", lambda: store.mail_after(dict.fromkeys(mine, NO_FLOOR), MANY)
    yield "load", lambda: store.load({run.run_id: run.part for run in runs})
    yield "load_packed", lambda: store.load_packed({run.run_id: run.part for run in runs})
    yield "waiting", lambda: store.waiting(mine)
    yield "owned", lambda: store.owned(session)
    yield "first_batches", lambda: store.first_batches({run.run_id: run.part for run in runs})
    read = {item.run_id: item.id for item in await store.inbox(mine)}

    flush = [
        change(
            run,
            b"b",
            consumed=[read[run.run_id]] if run.run_id in read else [],
            timers=[NewTimer(7, 1), NewTimer(8, HOUR_US << 10)],
            activities=[queued(5), queued(6)],
            children=[new_run("child" + run.run_id, parent_ref=3, queue="child")],
            messages=[Message(SIGNAL, workflow_id=ids[n % MANY], ref=4, request_id=f"to{n}")],
            responses=[Response(run.run_id)],
            search=b'{"a":1}',
        )
        for n, run in enumerate(runs)
    ]
    yield "commit", lambda: accepted(rig, [*flush])
    settled = [change(run, b"b", seq=2, timers_done=[8], activities_done=[6]) for run in runs]
    yield "commit, what is done", lambda: accepted(rig, [*settled])
    yield "promote_due", lambda: store.promote_due(10 * MANY)
    yield "responses", lambda: store.responses(mine)

    await Limits(store).set(QUEUE, concurrency=10 * MANY, rate=10_000)
    attempts: list[ClaimedActivity] = []

    async def claim_activities() -> None:
        # The tokens of activities that are no more go with the claim that meets them.
        while len(attempts) < MANY:
            attempts.extend(await store.claim_activities(other, [QUEUE], ["pay"], MANY))

    yield "claim_activities, limited", claim_activities
    half = MANY // 2
    done = [
        ActivityOutcome(a.run_id, a.ref, a.attempt, a.token, EventKind.ACTIVITY_COMPLETED, b"1")
        for a in attempts[:half]
    ]
    retried = [
        ActivityOutcome(a.run_id, a.ref, a.attempt, a.token, 0, b"{}", 1) for a in attempts[half:]
    ]
    yield "finish_activities", lambda: store.finish_activities(done + retried)
    yield "promote_due, retries", lambda: store.promote_due(10 * MANY)
    yield "end_sessions, activities", lambda: store.end_sessions([other])

    parked = [change(run, seq=3, park=b"{}") for run in runs[:half]]
    yield "commit, parked", lambda: accepted(rig, [*parked])
    yield "unpark", lambda: store.unpark([run.run_id for run in runs[:half]])
    released = [change(run, seq=3, release=True) for run in runs[half:]]
    yield "commit, released", lambda: accepted(rig, [*released])
    session = await rig.session(9 * HOUR_US)
    runs = await claimed(rig, session)
    yield "end_sessions, runs", lambda: store.end_sessions([session])

    session = await rig.session(9 * HOUR_US)
    runs = await claimed(rig, session)
    mail_ids: dict[str, list[int]] = {run.run_id: [] for run in runs}
    for item in await store.inbox(list(mail_ids)):
        mail_ids[item.run_id].append(item.id)
    going_on = [
        change(
            run,
            b"e",
            seq=3,
            consumed=mail_ids[run.run_id],
            closing=Closing(RunState.CONTINUED_AS_NEW),
            successor=new_run(run.workflow_id),
        )
        for run in runs[:half]
    ]
    yield "commit, continued", lambda: accepted(rig, [*going_on])
    ends = [
        change(run, b"e", seq=3, consumed=mail_ids[run.run_id], closing=Closing(RunState.COMPLETED))
        for run in runs[half:]
    ]
    yield "commit, closed", lambda: accepted(rig, [*ends])
    yield "closed", lambda: store.closed(mine)


@pytest.mark.parametrize("mode", ["auto", "force_generic_plan", "force_custom_plan"])
async def test_no_statement_compares_each_row_with_each(dsn: str, mode: str) -> None:
    rig = PostgresRig(dsn)
    rig.store = rig.other = store = WatchedStore(dsn, mode)
    await store.open()
    try:
        async for name, call in calls(rig):
            store.take()
            await call()
            plans, _ = store.take()
            assert plans
            for plan in plans:
                check(plan, name)
    finally:
        await store.close()
