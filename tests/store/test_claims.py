"""What a session owns is found by the claims that it made, and those are forgotten in time."""

from __future__ import annotations

import psycopg
from support.store_rig import PostgresRig, change, new_run

from durable.events import ClaimedRun, Closing, RunState

MANY = 1100
"""More than what a session may claim before its claims are gone over."""


async def noted(rig: PostgresRig) -> tuple[int, int]:
    """How many rows of claims there are, and how many runs they name."""
    async with await psycopg.AsyncConnection.connect(rig.dsn) as conn:
        cursor = await conn.execute(
            "SELECT count(*), coalesce(sum(cardinality(runs)), 0) FROM durable.claim"
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


async def tidy(rig: PostgresRig) -> int:
    """Forget claims; return how many were gone over."""
    ((count,),) = await rig.store.fetch("tidy_claims", ())  # type: ignore[attr-defined]
    return int(count)


async def claim_many(rig: PostgresRig, session: int, name: str, count: int) -> list[ClaimedRun]:
    """Runs that the session has newly claimed."""
    await rig.store.start_runs([new_run(f"{name}{n}") for n in range(count)])
    runs: list[ClaimedRun] = []
    while len(runs) < count:
        runs += await rig.claim(session, 250)
    return runs


async def end(rig: PostgresRig, runs: list[ClaimedRun]) -> None:
    """Close runs that have done nothing."""
    closing = Closing(RunState.COMPLETED, result=b"1")
    await rig.accept(*[change(run, b"end", closing=closing) for run in runs])


async def test_a_claim_names_a_hundred_runs_in_a_row(postgres: PostgresRig) -> None:
    await claim_many(postgres, await postgres.session(), "a", 250)

    assert await noted(postgres) == (3, 250)


async def test_few_claims_are_left_alone(postgres: PostgresRig) -> None:
    session = await postgres.session()
    await end(postgres, await claim_many(postgres, session, "a", 900))

    assert await tidy(postgres) == 0


async def test_claims_of_runs_that_closed_are_forgotten(postgres: PostgresRig) -> None:
    session = await postgres.session()
    runs = await claim_many(postgres, session, "a", MANY)
    await end(postgres, runs[7:])

    assert await tidy(postgres) > 0
    assert await noted(postgres) == (1, 7)
    # What is left has been gone over, and waits for a thousand others.
    assert await tidy(postgres) == 0
    owned, _ = await postgres.store.owned(session)
    assert {run.run_id for run in owned} == {run.run_id for run in runs[:7]}


async def test_what_is_left_is_handed_over(postgres: PostgresRig) -> None:
    session, heir = await postgres.session(), await postgres.session()
    runs = await claim_many(postgres, session, "a", MANY)
    await end(postgres, runs[7:])
    await tidy(postgres)
    (late,) = await claim_many(postgres, session, "late", 1)

    assert await postgres.store.end_sessions([session]) == 8
    assert await noted(postgres) == (0, 0)
    taken = await postgres.claim(heir)
    assert {run.run_id for run in taken} == {run.run_id for run in [*runs[:7], late]}
    assert all(run.crashes == 1 for run in taken)


async def test_claims_of_runs_that_went_elsewhere_are_forgotten(postgres: PostgresRig) -> None:
    session, heir = await postgres.session(), await postgres.session()
    runs = await claim_many(postgres, session, "a", MANY)
    # One is given up and claimed by another session, one comes back.
    await postgres.accept(
        *[change(run, b"b", release=True) for run in runs[:2]],
        *[change(run, b"end", closing=Closing(RunState.COMPLETED)) for run in runs[2:]],
    )
    for owner, run in ((heir, runs[0]), (session, runs[1])):
        async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
            await conn.execute("SELECT durable.wake(%s::uuid[])", ([run.run_id],))
        assert [each.run_id for each in await postgres.claim(owner)] == [run.run_id]

    assert await tidy(postgres) > 0
    assert await postgres.store.end_sessions([session]) == 1
    assert await postgres.store.end_sessions([heir]) == 1


async def test_a_claim_that_is_under_way_is_not_forgotten(postgres: PostgresRig) -> None:
    session = await postgres.session()
    await end(postgres, await claim_many(postgres, session, "a", MANY))
    await postgres.start("last")
    conn = await psycopg.AsyncConnection.connect(postgres.dsn)
    try:
        # Claimed, and not committed yet, while the claims are gone over.
        await conn.execute(
            "SELECT * FROM durable.claim_runs(%s, ARRAY['q'], ARRAY['order'], 1)", (session,)
        )
        assert await tidy(postgres) > 0
        await conn.commit()
    finally:
        await conn.close()

    assert await noted(postgres) == (1, 1)
    assert await postgres.store.end_sessions([session]) == 1


async def test_what_the_next_look_does_not_reach_is_handed_over_all_the_same(
    postgres: PostgresRig,
) -> None:
    session = await postgres.session()
    runs = await claim_many(postgres, session, "a", MANY)
    await end(postgres, runs[3:])
    assert await tidy(postgres) > 0
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        await conn.execute("UPDATE durable.claim SET claimed_at = claimed_at - interval '1 hour'")

    await end(postgres, await claim_many(postgres, session, "b", MANY))
    assert await tidy(postgres) > 0

    assert await noted(postgres) == (1, 3)
    owned, _ = await postgres.store.owned(session)
    assert {run.run_id for run in owned} == {run.run_id for run in runs[:3]}
    assert await postgres.store.end_sessions([session]) == 3
