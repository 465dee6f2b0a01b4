"""One life of a run on each PostgreSQL that is installed here.

They are found where Debian and the packages of postgresql.org put them, and in the folders 14/bin,
15/bin and so on of DURABLE_TEST_SERVERS. All tests run on another one with
DURABLE_TEST_BIN_DIR=/usr/lib/postgresql/15/bin.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import psycopg
import pytest
from support.store_rig import QUEUE, PostgresRig, change

from durable.events import (
    ActivityOutcome,
    Closing,
    EventKind,
    Message,
    NewTimer,
    QueuedActivity,
    RunState,
)
from durable.runtime.embedded import EmbeddedPostgres
from durable.store.migrate import migrate
from durable.store.retention import Upkeep


def binaries(version: int) -> Path:
    """Where this version is."""
    folders = [Path(f"/usr/lib/postgresql/{version}/bin"), Path(f"/usr/pgsql-{version}/bin")]
    if given := os.environ.get("DURABLE_TEST_SERVERS"):
        folders.insert(0, Path(given, str(version), "bin"))
    for folder in folders:
        if (folder / "initdb").exists():
            return folder
    pytest.skip(f"PostgreSQL {version} is in none of {', '.join(map(str, folders))}")


@pytest.mark.slow
@pytest.mark.parametrize("version", [14, 15, 16, 17, 18])
async def test_a_run_lives_on_it(version: int, tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "data", bin_dir=binaries(version)) as server:
        dsn = server.dsn
        with psycopg.connect(dsn) as conn:
            assert conn.info.server_version // 10_000 == version
        migrate(dsn)
        rig = PostgresRig(dsn)
        await rig.store.open()
        await live(rig)
        await rig.store.close()


async def live(rig: PostgresRig) -> None:
    """A timer, an activity, a signal, an end, and the part goes."""
    store = rig.store
    session = await rig.session()
    run = await rig.owned("a", session)
    options = json.dumps({"start_to_close": 60}).encode()
    work = QueuedActivity(2, "pay", QUEUE, 0, 1, b"[]", options)
    await rig.accept(change(run, b"one", timers=[NewTimer(1, 1)], activities=[work]))
    await store.promote_due(10)
    (attempt,) = await store.claim_activities(session, [QUEUE], ["pay"], 10)
    done = ActivityOutcome(
        run.run_id, 2, attempt.attempt, attempt.token, EventKind.ACTIVITY_COMPLETED, b"1"
    )
    assert await store.finish_activities([done]) == [True]
    await store.send([Message(EventKind.SIGNAL_RECEIVED, workflow_id="a", name="go")])
    assert await rig.mail(session) == [run.run_id]
    items = await rig.inbox(run.run_id)
    assert [item.kind for item in items] == [4, EventKind.ACTIVITY_COMPLETED, 5]
    end = Closing(RunState.COMPLETED, result=b"1")
    read = [item.id for item in items]
    await rig.accept(change(run, b"two", seq=2, consumed=read, closing=end))

    upkeep = Upkeep(store)  # type: ignore[arg-type]
    await upkeep.rotate()
    async with await psycopg.AsyncConnection.connect(rig.dsn, autocommit=True) as conn:
        for statement in (
            "UPDATE durable.part SET opened_at = opened_at - interval '40 days'",
            "SELECT durable.advance_part(0)",
            "UPDATE durable.part SET ended_at = ended_at - interval '40 days'",
            "UPDATE durable.closed_run SET closed_at = closed_at - interval '40 days'",
        ):
            await conn.execute(statement.encode())
    assert (await upkeep.expire()).dropped == 1
    assert await store.view(run_id=run.run_id) is None
