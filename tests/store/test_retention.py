"""Retention: closed runs go with their part when it is time; nothing else ever does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.store_rig import HOUR_US, QUEUE, TYPE, PostgresRig, change, new_run

from durable.errors import ConfigurationError
from durable.events import Closing, Message, RunState, Verdict
from durable.store.postgres import PostgresStore
from durable.store.retention import DAY_US, Upkeep

AGED = (
    ("part", "opened_at"),
    ("part", "ended_at"),
    ("closed_run", "closed_at"),
    ("inbox", "created_at"),
    ("lease", "expires_at"),
)


@pytest.fixture
def upkeep(postgres: PostgresRig) -> Upkeep:
    return Upkeep(postgres.store)


async def run_sql(dsn: str, query: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        cursor = await conn.execute(query.encode())
        return await cursor.fetchall() if cursor.description is not None else []


async def pass_days(rig: PostgresRig, days: float) -> None:
    """Let all that upkeep looks at be older."""
    for table, column in AGED:
        await run_sql(
            rig.dsn, f"UPDATE durable.{table} SET {column} = {column} - {days} * interval '1 day'"
        )


async def closed(rig: PostgresRig, workflow_id: str) -> str:
    """A run that has ended; its id."""
    run = await rig.owned(workflow_id)
    await rig.close(run)
    return run.run_id


async def partitions(rig: PostgresRig) -> list[str]:
    rows = await run_sql(
        rig.dsn,
        "SELECT relid::regclass::text FROM pg_partition_tree('durable.history') WHERE isleaf",
    )
    return sorted(str(row[0]) for row in rows)


async def test_thirty_days_are_kept_unless_told_otherwise(upkeep: Upkeep) -> None:
    assert await upkeep.retention_days() == 30
    await upkeep.set_retention(7)
    assert await upkeep.retention_days() == 7
    await upkeep.set_retention(None)
    assert await upkeep.retention_days() is None
    for bad in (0, -1, 10**9):
        with pytest.raises(ConfigurationError, match="retention"):
            await upkeep.set_retention(bad)


async def test_a_closed_run_goes_with_its_part(postgres: PostgresRig, upkeep: Upkeep) -> None:
    old = await closed(postgres, "old")
    assert await upkeep.rotate() == 1
    await pass_days(postgres, 6)
    assert await upkeep.rotate() == 2
    assert (await upkeep.expire()).dropped == 0
    assert await postgres.store.view(run_id=old) is not None

    await pass_days(postgres, 30)
    done = await upkeep.expire()

    assert (done.dropped, done.moved, done.left) == (1, 0, 0)
    assert await postgres.store.view(run_id=old) is None
    assert await run_sql(postgres.dsn, "SELECT 1 FROM durable.history") == []
    assert await partitions(postgres) == ["durable.history_p2"]
    assert (await upkeep.expire()).dropped == 0


async def test_the_next_part_is_ready_before_it_is_needed(
    postgres: PostgresRig, upkeep: Upkeep
) -> None:
    assert await upkeep.rotate() == 1
    assert await partitions(postgres) == ["durable.history_p1", "durable.history_p2"]
    assert [await upkeep.rotate() for _ in range(3)] == [1, 1, 1]
    await pass_days(postgres, 6)
    assert [await upkeep.rotate() for _ in range(3)] == [2, 2, 2]
    assert await partitions(postgres) == [f"durable.history_p{n}" for n in (1, 2, 3)]

    run = await postgres.owned("new")

    assert run.part == 2


async def test_a_prepared_part_is_like_the_first(postgres: PostgresRig, upkeep: Upkeep) -> None:
    await upkeep.rotate()
    shape = """
        SELECT replace(indexdef, '_p{0}', '') FROM pg_indexes
        WHERE tablename IN ('history_p{0}', 'closed_run_p{0}')
        UNION ALL
        SELECT concat(attname, atttypid, attnotnull, attstorage) FROM pg_attribute
        WHERE attnum > 0
          AND attrelid IN ('durable.history_p{0}'::regclass, 'durable.closed_run_p{0}'::regclass)
        ORDER BY 1
    """
    first = await run_sql(postgres.dsn, shape.format(1))
    assert await run_sql(postgres.dsn, shape.format(2)) == first
    assert len(first) > 20


async def test_open_and_recently_closed_runs_outlive_their_part(
    postgres: PostgresRig, upkeep: Upkeep
) -> None:
    session = await postgres.session()
    sleeper = await postgres.owned("sleeper", session)
    late = await postgres.owned("late", session)
    delayed = await postgres.start("delayed", start_delay_us=90 * DAY_US)
    gone = await closed(postgres, "gone")
    await postgres.accept(change(sleeper, b"first"), change(late, b"first"))
    await upkeep.rotate()
    await pass_days(postgres, 6)
    assert await upkeep.rotate() == 2
    await pass_days(postgres, 30)
    await postgres.accept(change(late, b"end", seq=2, closing=Closing(RunState.COMPLETED)))

    done = await upkeep.expire()

    assert (done.dropped, done.moved) == (1, 3)
    assert await postgres.store.view(run_id=gone) is None
    # Everybody still has the old part number, and nobody is the worse for it.
    loaded = await postgres.store.load({sleeper.run_id: 1, late.run_id: 1, delayed: 1})
    assert loaded == {
        sleeper.run_id: [b"started", b"first"],
        late.run_id: [b"started", b"first", b"end"],
        delayed: [b"started"],
    }
    packed = await postgres.store.load_packed(dict.fromkeys(loaded, 1))
    assert list(packed.unpack()) == list(loaded.values())
    await postgres.accept(change(sleeper, b"second", seq=2))
    assert (await postgres.store.load({sleeper.run_id: 2}))[sleeper.run_id][-1] == b"second"
    view = await postgres.store.view(run_id=late.run_id)
    assert view is not None
    assert (view.state, view.part) == (RunState.COMPLETED, 2)


async def test_many_stragglers_are_moved_in_bounded_steps(
    postgres: PostgresRig, upkeep: Upkeep
) -> None:
    await postgres.store.start_runs([new_run(f"w{n}") for n in range(1200)])
    await upkeep.rotate()
    await pass_days(postgres, 6)
    await upkeep.rotate()
    await pass_days(postgres, 30)

    first = await upkeep.expire(moves_max=1)
    assert (first.dropped, first.moved, first.left) == (0, 500, 1)
    second = await upkeep.expire()

    assert (second.dropped, second.moved, second.left) == (1, 700, 0)
    rows = await run_sql(postgres.dsn, "SELECT part, count(*) FROM durable.history GROUP BY 1")
    assert rows == [(2, 1200)]


async def test_a_run_that_somebody_holds_keeps_its_part(
    postgres: PostgresRig, upkeep: Upkeep
) -> None:
    await postgres.start("held")
    await upkeep.rotate()
    await pass_days(postgres, 6)
    await upkeep.rotate()
    await pass_days(postgres, 30)
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as holder:
        await holder.execute("SELECT FROM durable.run FOR NO KEY UPDATE")
        done = await upkeep.expire()
        assert (done.dropped, done.moved, done.left) == (0, 0, 1)

    assert (await upkeep.expire()).dropped == 1


async def test_a_part_in_use_is_left_for_later_at_once(
    postgres: PostgresRig, upkeep: Upkeep
) -> None:
    await closed(postgres, "old")
    await upkeep.rotate()
    await pass_days(postgres, 6)
    await upkeep.rotate()
    await pass_days(postgres, 30)
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as reader:
        await reader.execute("SELECT 1 FROM durable.history")
        assert (await upkeep.expire()).left == 1
        # Nothing stands in the way of the fleet meanwhile.
        await closed(postgres, "another")

    assert (await upkeep.expire()).dropped == 1


async def test_a_commit_that_waits_for_a_move_writes_to_the_new_part(
    postgres: PostgresRig, upkeep: Upkeep
) -> None:
    run = await postgres.owned("a")
    await upkeep.rotate()
    await pass_days(postgres, 6)
    await upkeep.rotate()
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as mover:
        await mover.execute(
            "SELECT durable.move_open_runs(1, '00000000-0000-0000-0000-000000000000', 10)"
        )
        commit = asyncio.create_task(postgres.commit(change(run, b"b")))
        await waits_for_a_lock(postgres.dsn)
        await mover.commit()

    assert await commit == [Verdict.ACCEPTED]
    assert (await postgres.store.load({run.run_id: 2}))[run.run_id] == [b"started", b"b"]
    rows = await run_sql(postgres.dsn, "SELECT DISTINCT part FROM durable.history")
    assert rows == [(2,)]


async def waits_for_a_lock(dsn: str) -> None:
    async with asyncio.timeout(20):
        while not await run_sql(
            dsn,
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND datname = current_database()",
        ):
            await asyncio.sleep(0.01)


async def test_off_keeps_everything(postgres: PostgresRig, upkeep: Upkeep) -> None:
    old = await closed(postgres, "old")
    await upkeep.rotate()
    await pass_days(postgres, 6)
    await upkeep.rotate()
    await upkeep.set_retention(None)
    await pass_days(postgres, 10_000)

    done = await upkeep.expire()
    await run_sql(postgres.dsn, "SELECT durable.drop_part(1)")

    assert (done.dropped, done.left) == (0, 0)
    assert await postgres.store.view(run_id=old) is not None


async def test_the_current_part_is_never_dropped(postgres: PostgresRig, upkeep: Upkeep) -> None:
    await closed(postgres, "a")
    await pass_days(postgres, 10_000)

    assert await run_sql(postgres.dsn, "SELECT durable.drop_part(1)") == [(False,)]
    assert (await upkeep.expire()).left == 0


async def test_upkeep_by_many_at_once_happens_once(postgres: PostgresRig, upkeep: Upkeep) -> None:
    await closed(postgres, "old")
    await upkeep.rotate()
    await pass_days(postgres, 6)
    others = [Upkeep(postgres.store), Upkeep(postgres.other), Upkeep(postgres.other)]

    parts = await asyncio.gather(*(each.rotate() for each in others))
    await pass_days(postgres, 30)
    done = await asyncio.gather(*(each.expire() for each in others))

    assert set(parts) == {2}
    assert sum(each.dropped for each in done) == 1


# -- the lease -------------------------------------------------------------------------------


async def test_one_leads_until_its_lease_is_over(postgres: PostgresRig, upkeep: Upkeep) -> None:
    assert await upkeep.lead(1, HOUR_US)
    assert not await upkeep.lead(2, HOUR_US)
    assert await upkeep.lead(1, HOUR_US)
    await pass_days(postgres, 1)
    assert await upkeep.lead(2, HOUR_US)
    assert not await upkeep.lead(1, HOUR_US)
    await upkeep.resign(1)
    assert not await upkeep.lead(1, HOUR_US)
    await upkeep.resign(2)
    assert await upkeep.lead(1, HOUR_US)


# -- wake-ups --------------------------------------------------------------------------------


async def test_no_wake_up_is_repaired_that_was_not_lost(
    postgres: PostgresRig, upkeep: Upkeep
) -> None:
    session = await postgres.session()
    owned = await postgres.owned("owned", session)
    parked = await postgres.owned("parked", session)
    await postgres.accept(change(parked, park=b"{}"))
    queued = await postgres.start("queued")
    await postgres.start("delayed", start_delay_us=HOUR_US)
    ids = ("owned", "queued", "delayed", "parked")
    sent = await postgres.store.send([Message(5, workflow_id=each) for each in ids])
    assert None not in sent
    assert await upkeep.repair_wakeups(0) == 0

    # Whoever reads it has the token in hand, and gives it back by dying.
    claimed, mail, _ = await postgres.store.claim_runs(session, [QUEUE], [TYPE], 10)
    assert ([run.run_id for run in claimed], mail) == ([queued], [owned.run_id])
    assert await upkeep.repair_wakeups(0) == 0
    await postgres.store.end_sessions([session])
    assert await upkeep.repair_wakeups(0) == 0


async def test_a_lost_wake_up_is_found(postgres: PostgresRig, upkeep: Upkeep) -> None:
    run_id = await postgres.start("a")
    await postgres.store.send([Message(5, workflow_id="a")])
    await run_sql(postgres.dsn, "DELETE FROM durable.task")
    assert await upkeep.repair_wakeups() == 0
    await pass_days(postgres, 1)

    assert await upkeep.repair_wakeups() == 1
    assert await upkeep.repair_wakeups() == 0

    (run,) = await postgres.claim(await postgres.session())
    assert run.run_id == run_id


async def test_gauges_tell_what_is_there(postgres: PostgresRig, upkeep: Upkeep) -> None:
    await postgres.start("a")
    await postgres.start("b", start_delay_us=HOUR_US)
    await closed(postgres, "c")
    gauges = await upkeep.gauges()
    assert (gauges.open_runs, gauges.parts, gauges.timer_lag_seconds) == (2, 1, 0.0)
    assert set(gauges.dead_rows) == {"run", "task", "timer", "inbox", "activity", "session"}

    await postgres.pass_time(2 * HOUR_US)

    assert (await upkeep.gauges()).timer_lag_seconds >= 3599


# -- rights ----------------------------------------------------------------------------------

GRANTS = """
    GRANT USAGE ON SCHEMA durable TO {role};
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA durable TO {role};
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA durable TO {role};
"""
UPKEEP_GRANT = (
    "GRANT EXECUTE ON FUNCTION durable.prepare_part(), durable.drop_part(integer) TO {role}"
)


@pytest.fixture
def worker_role(dsn: str) -> Iterator[str]:
    """The name of a role that owns nothing."""
    name = f"worker_{conninfo_to_dict(dsn)['dbname']}"
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(sql.Identifier(name)))
        yield name
        conn.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
        conn.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.fixture
async def humble(dsn: str, worker_role: str) -> AsyncIterator[PostgresStore]:
    """A store of that role, with the grants of the guide."""
    await run_sql(dsn, GRANTS.format(role=worker_role))
    store = PostgresStore(make_conninfo(dsn, user=worker_role, password="secret"))
    await store.open()
    yield store
    await store.close()


async def test_a_worker_needs_no_rights_on_the_schema(
    postgres: PostgresRig, humble: PostgresStore, worker_role: str
) -> None:
    upkeep = Upkeep(humble)
    with pytest.raises(ConfigurationError, match="lacks a right"):
        await upkeep.rotate()
    assert await upkeep.repair_wakeups() == 0

    await run_sql(postgres.dsn, UPKEEP_GRANT.format(role=worker_role))
    old = await closed(postgres, "old")
    assert await upkeep.rotate() == 1
    await pass_days(postgres, 6)
    assert await upkeep.rotate() == 2
    await pass_days(postgres, 30)
    assert (await upkeep.expire()).dropped == 1
    assert await humble.view(run_id=old) is None

    # And what it does all day goes to the partition that it did not make.
    rig = PostgresRig(postgres.dsn)
    rig.store = humble
    run = await rig.owned("new")
    await rig.close(run)
    assert (await humble.load({run.run_id: 2}))[run.run_id] == [b"started", b"end"]
