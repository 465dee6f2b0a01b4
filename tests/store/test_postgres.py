"""What only a real database can show: locks, lost answers, poolers, plans of concurrent work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from support.store_rig import HOUR_US, QUEUE, TYPE, PostgresRig, change, new_run

from durable.errors import ConfigurationError, StoreError, StoreUnavailableError
from durable.events import (
    ActivityOutcome,
    Closing,
    EventKind,
    Message,
    NewTimer,
    QueuedActivity,
    RunState,
    Verdict,
)
from durable.store import connection
from durable.store.base import WORK, Hint
from durable.store.connection import Conn, sever
from durable.store.pages import Runs
from durable.store.postgres import PostgresStore

SIGNAL = EventKind.SIGNAL_RECEIVED


def lose_answers(store: PostgresStore, monkeypatch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Cut the connection after the server has done the work, ``count`` times."""
    lost: list[str] = []
    run = connection.Lane.run

    async def run_and_lose(self: connection.Lane, work: Any, unsure: bool) -> Any:
        async def then_lose(conn: Conn, unsure: bool) -> Any:
            result = await work(conn, unsure)
            if len(lost) < count:
                lost.append("lost")
                sever(conn)
                await conn.execute("SELECT 1")
            return result

        return await run(self, then_lose, unsure)

    monkeypatch.setattr(connection.Lane, "run", run_and_lose)
    return lost


async def count(rig: PostgresRig, table: str) -> int:
    async with await psycopg.AsyncConnection.connect(rig.dsn) as conn:
        row = await (await conn.execute(f"SELECT count(*) FROM durable.{table}")).fetchone()
    assert row is not None
    return int(row[0])


# -- lost answers ----------------------------------------------------------------------------


async def test_a_commit_whose_answer_is_lost_happens_once(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await postgres.session()
    run, target = await postgres.owned("a", session), await postgres.owned("b", session)
    lost = lose_answers(postgres.store, monkeypatch, 1)
    made = QueuedActivity(5, "pay", QUEUE, 0, 1, b"", b"")

    await postgres.accept(
        change(
            run,
            b"b",
            activities=[made],
            children=[new_run("child", parent_ref=4)],
            messages=[Message(SIGNAL, workflow_id="b", ref=6)],
        )
    )

    assert lost == ["lost"]
    assert await postgres.store.load({run.run_id: 1}) == {run.run_id: [b"started", b"b"]}
    assert len(await postgres.inbox(target.run_id)) == 1
    assert [i.kind for i in await postgres.inbox(run.run_id)] == [
        EventKind.CHILD_STARTED,
        EventKind.EXTERNAL_DONE,
    ]
    assert len(await postgres.store.claim_activities(session, [QUEUE], ["pay"], 9)) == 1


async def test_a_commit_without_a_batch_whose_answer_is_lost_happens_once(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await postgres.session()
    run, target = await postgres.owned("a", session), await postgres.owned("b", session)
    lost = lose_answers(postgres.store, monkeypatch, 2)

    await postgres.accept(change(run, messages=[Message(SIGNAL, workflow_id="b")]))

    assert len(lost) == 2
    assert len(await postgres.inbox(target.run_id)) == 1


async def test_a_close_whose_answer_is_lost_is_accepted(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = await postgres.owned("a"), await postgres.owned("b")
    lose_answers(postgres.store, monkeypatch, 1)

    await postgres.accept(
        change(run, b"end", closing=Closing(RunState.COMPLETED, b"1")), change(other, b"b")
    )

    assert len(await postgres.store.closed([run.run_id])) == 1


async def test_a_start_and_a_message_whose_answers_are_lost_happen_once(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    lose_answers(postgres.store, monkeypatch, 1)
    run_id = await postgres.start("a")
    monkeypatch.undo()
    lose_answers(postgres.store, monkeypatch, 1)
    assert await postgres.store.send([Message(SIGNAL, workflow_id="a")]) == [run_id]

    assert len(await postgres.inbox(run_id)) == 1
    assert len(await postgres.claim(await postgres.session())) == 1


async def test_a_result_whose_answer_is_lost_is_recorded_once(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await postgres.session()
    run = await postgres.owned("a", session)
    made = QueuedActivity(5, "pay", QUEUE, 0, 1, b"", b"")
    await postgres.accept(change(run, b"b", activities=[made]))
    (attempt,) = await postgres.store.claim_activities(session, [QUEUE], ["pay"], 9)
    lose_answers(postgres.store, monkeypatch, 1)
    outcome = ActivityOutcome(run.run_id, 5, 1, attempt.token, EventKind.ACTIVITY_COMPLETED, b"1")

    assert await postgres.store.finish_activities([outcome]) == [True]

    assert len(await postgres.inbox(run.run_id)) == 1


async def test_a_claim_whose_answer_is_lost_says_so_and_owned_tells(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await postgres.start("a")
    session = await postgres.session()
    lose_answers(postgres.store, monkeypatch, 1)

    with pytest.raises(StoreUnavailableError):
        await postgres.claim(session)

    runs, _ = await postgres.store.owned(session)
    assert [run.run_id for run in runs] == [run_id]


async def test_terminated_connections_cost_nothing(postgres: PostgresRig) -> None:
    run = await postgres.owned("a")
    await postgres.accept(change(run, b"b"))
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as conn:
        for seq in range(2, 6):
            await conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
            await postgres.accept(change(run, b"b", seq=seq))
            assert len((await postgres.store.load({run.run_id: 1}))[run.run_id]) == seq + 1


async def test_a_server_that_does_not_answer_is_given_up(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CALL_SECONDS_MAX", 0.05)
    monkeypatch.setattr(connection, "TOTAL_SECONDS_MAX", 0.2)
    run = await postgres.owned("a")
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        await conn.execute("LOCK TABLE durable.run IN ACCESS EXCLUSIVE MODE")

        with pytest.raises(StoreUnavailableError):
            await postgres.commit(change(run, b"b"))


class Line:
    """A proxy in front of the server whose open connections can be made to go silent."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.silent: set[str] = set()
        self.tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Line:
        self.server = await asyncio.start_server(self.accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    @property
    def proxied(self) -> str:
        port = self.server.sockets[0].getsockname()[1]
        return make_conninfo(self.dsn, host="127.0.0.1", port=port)

    async def accept(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        info = conninfo_to_dict(self.dsn)
        replies, server = await asyncio.open_connection(info["host"], int(info["port"] or 5432))
        # What is silent is this connection, not those that come after it.
        silent = self.silent
        for way, source, target in (("out", client, server), ("back", replies, answers)):
            task = asyncio.create_task(self.forward(way, source, target, silent))
            self.tasks.add(task)

    async def forward(
        self, way: str, source: asyncio.StreamReader, target: asyncio.StreamWriter, silent: set[str]
    ) -> None:
        try:
            while data := await source.read(65536):
                if way not in silent:
                    target.write(data)
                    await target.drain()
        except ConnectionError:
            pass
        finally:
            target.close()

    def fall_silent(self, way: str) -> None:
        """Swallow what the open connections carry this way; keep them open."""
        self.silent.add(way)
        self.silent = set()


@pytest.mark.parametrize("way", ["out", "back"])
async def test_a_line_that_goes_silent_costs_a_deadline_and_nothing_else(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    session = await postgres.session()
    run, target = await postgres.owned("a", session), await postgres.owned("b", session)
    async with Line(postgres.dsn) as line:
        store = PostgresStore(line.proxied)
        await store.commit([change(run, b"b")])
        monkeypatch.setattr(connection, "CALL_SECONDS_MAX", 0.5)
        line.fall_silent(way)

        result = await store.commit(
            [change(run, b"c", seq=2, messages=[Message(SIGNAL, workflow_id="b")])]
        )

        await store.close()
    assert result.verdicts == [Verdict.ACCEPTED]
    assert await postgres.store.load({run.run_id: 1}) == {run.run_id: [b"started", b"b", b"c"]}
    assert len(await postgres.inbox(target.run_id)) == 1


async def test_a_cancelled_commit_is_all_or_nothing(postgres: PostgresRig) -> None:
    run = await postgres.owned("a")
    made = [QueuedActivity(n, "pay", QUEUE, 0, 1, b"", b"") for n in range(5)]
    changes = change(
        run, b"b", activities=made, timers=[NewTimer(9, 1)], children=[new_run("c", parent_ref=1)]
    )
    task = asyncio.create_task(postgres.commit(changes))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    batches = (await postgres.store.load({run.run_id: 1}))[run.run_id]
    waiting = (await postgres.store.waiting([run.run_id]))[run.run_id]
    child = await postgres.store.view(workflow_id="c")

    assert (len(batches), len(waiting), child is None) in [(1, 0, True), (2, 5, False)]


# -- locks -----------------------------------------------------------------------------------


async def test_a_senders_open_transaction_stops_no_flush_and_only_delays_a_close(
    postgres: PostgresRig,
) -> None:
    run = await postgres.owned("a")
    end = change(run, b"end", seq=2, closing=Closing(RunState.COMPLETED, b"1"))
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        sent = await postgres.store.send([Message(SIGNAL, workflow_id="a")], conn=conn)
        assert sent == [run.run_id]

        await postgres.accept(change(run, b"b"))
        assert await postgres.commit(end) == [Verdict.UNREAD]
        assert await postgres.inbox(run.run_id) == []
        await conn.commit()

    assert await postgres.commit(end) == [Verdict.UNREAD]
    (item,) = await postgres.inbox(run.run_id)
    end.consumed.append(item.id)
    await postgres.accept(end)


@pytest.mark.parametrize("reason", [None, b'{"reason":"nondeterminism"}'])
async def test_a_run_is_not_given_up_while_a_message_to_it_is_on_its_way(
    postgres: PostgresRig, reason: bytes | None
) -> None:
    session = await postgres.session()
    run = await postgres.owned("a", session)
    await postgres.accept(change(run, b"b"))
    leave = change(run, None, seq=2, release=reason is None, park=reason)
    kind = EventKind.SIGNAL_RECEIVED if reason is None else EventKind.RUN_TERMINATED
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        await postgres.store.send([Message(kind, workflow_id="a")], conn=conn)
        assert await postgres.commit(leave) == [Verdict.UNREAD]
        await conn.commit()

    # The token names us. Taken while we leave it must not be the only one.
    _, mail, _ = await postgres.store.claim_runs(session, [QUEUE], [TYPE], 10)
    assert mail == [run.run_id]
    await postgres.accept(leave)
    (again,), _, _ = await postgres.store.claim_runs(session, [QUEUE], [TYPE], 10)
    assert again.run_id == run.run_id
    assert again.has_mail


async def test_a_message_that_waits_for_a_close_goes_to_the_successor(
    postgres: PostgresRig,
) -> None:
    run = await postgres.owned("a")
    following = new_run("a")
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as blocker:
        # A close that is under way: it holds the row as commit_runs does.
        await blocker.execute("SELECT FROM durable.run WHERE run_id = %s FOR UPDATE", (run.run_id,))
        sending = asyncio.create_task(postgres.other.send([Message(SIGNAL, workflow_id="a")]))
        await wait_for_lock(blocker)
        await blocker.execute("DELETE FROM durable.run WHERE run_id = %s", (run.run_id,))
        await blocker.execute(
            "INSERT INTO durable.run (run_id, workflow_id, workflow_type, queue, head_hash, part) "
            "VALUES (%s, 'a', %s, %s, 1, 1)",
            (following.run_id, TYPE, QUEUE),
        )
        await blocker.commit()

    assert await sending == [following.run_id]
    assert len(await postgres.inbox(following.run_id)) == 1


async def wait_for_lock(conn: psycopg.AsyncConnection[Any]) -> None:
    """Return when some backend waits for a lock of this database."""
    async with asyncio.timeout(20):
        while True:
            cursor = await conn.execute(
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            row = await cursor.fetchone()
            if row is not None and row[0] > 0:
                return


async def test_a_claim_that_races_the_end_of_its_session_gets_nothing(
    postgres: PostgresRig,
) -> None:
    session = await postgres.session()
    run_id = await postgres.start("a")
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as ending:
        await ending.execute(
            "SELECT durable.end_sessions(ARRAY[%s]::bigint[], true, false)", (session,)
        )
        claiming = asyncio.create_task(postgres.claim(session))
        await wait_for_lock(ending)
        await ending.commit()

    assert await claiming == []
    runs = await postgres.claim(await postgres.session())
    assert [run.run_id for run in runs] == [run_id]


async def test_a_token_for_a_session_that_just_ended_is_found(postgres: PostgresRig) -> None:
    session = await postgres.session()
    run = await postgres.owned("a", session)
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        await postgres.store.send([Message(SIGNAL, workflow_id="a")], conn=conn)
        await postgres.store.end_sessions([session], crashed=False)
        other = await postgres.session()
        assert [r.run_id for r in await postgres.claim(other)] == [run.run_id]
        await conn.commit()
    assert await postgres.mail(other) == []

    await postgres.store.promote_due(10)

    assert await postgres.mail(other) == [run.run_id]


async def test_a_timer_of_a_run_that_is_held_stays_due(postgres: PostgresRig) -> None:
    run = await postgres.owned("a")
    await postgres.accept(change(run, b"b", timers=[NewTimer(3, 1)]))
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        await conn.execute("SELECT FROM durable.run WHERE run_id = %s FOR UPDATE", (run.run_id,))
        assert (await postgres.store.promote_due(10)).promoted == 0

    assert (await postgres.store.promote_due(10)).promoted == 1
    assert len(await postgres.inbox(run.run_id)) == 1


# -- the caller's transaction ----------------------------------------------------------------


@pytest.mark.parametrize("park", [b"{}", None], ids=["parked", "free"])
async def test_a_claim_that_finds_a_run_held_leaves_its_token(
    postgres: PostgresRig, park: bytes | None
) -> None:
    session = await postgres.session()
    run = await postgres.owned("a", session)
    await postgres.accept(change(run, park=park, release=park is None))
    await postgres.store.send([Message(EventKind.RUN_TERMINATED, workflow_id="a")])
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as upkeep:
        await upkeep.execute("UPDATE durable.run SET part = part")
        assert await postgres.claim(session) == []
        await upkeep.rollback()

    assert [each.run_id for each in await postgres.claim(session)] == [run.run_id]


async def test_a_start_belongs_to_the_callers_transaction(postgres: PostgresRig) -> None:
    session = await postgres.session()
    kept, gone = new_run("kept"), new_run("gone")
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        await postgres.store.start_runs([gone], conn=conn)
        await conn.rollback()
        (started,) = await postgres.store.start_runs([kept], conn=conn)
        assert started.accepted
        assert await postgres.claim(session) == []
        await conn.commit()

    assert [run.run_id for run in await postgres.claim(session)] == [kept.run_id]


async def test_a_connection_of_another_kind_is_refused(postgres: PostgresRig) -> None:
    with pytest.raises(ConfigurationError, match="AsyncConnection"):
        await postgres.store.start_runs([new_run("a")], conn=object())


# -- hints that go along ---------------------------------------------------------------------


async def test_workers_are_told_of_a_start_by_its_own_transaction(postgres: PostgresRig) -> None:
    async with postgres.other.listen() as hints:
        (started,) = await postgres.store.start_runs([new_run("a")])
        assert started.told
        assert await anext(hints) == Hint(runs_only=True)
        (delayed,) = await postgres.store.start_runs(
            [replace(new_run("b"), start_delay_us=HOUR_US)]
        )
        assert delayed.told
        assert await anext(hints) == WORK


async def test_many_starts_and_those_of_a_caller_are_not_told_along(postgres: PostgresRig) -> None:
    many = await postgres.store.start_runs([new_run("a"), new_run("b")])
    assert [started.told for started in many] == [False, False]
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        (started,) = await postgres.store.start_runs([new_run("c")], conn=conn)
        assert not started.told
        await conn.commit()


async def test_clients_are_told_of_an_end_by_its_own_transaction(postgres: PostgresRig) -> None:
    session = await postgres.session()
    await postgres.start("a")
    (run,) = await postgres.claim(session)
    ending = change(run, b"end", closing=Closing(RunState.COMPLETED, b"1"))
    async with postgres.other.listen(done=True) as hints:
        result = await postgres.store.commit([ending])
        assert (result.verdicts, result.told) == ([Verdict.ACCEPTED], True)
        assert await anext(hints) == Hint(done=True, run_ids=(run.run_id,))
    (view,) = await postgres.store.closed([run.run_id])
    assert (view.state, view.result) == (RunState.COMPLETED, b"1")


async def test_only_one_transaction_at_a_time_tells(postgres: PostgresRig) -> None:
    """A commit that notifies holds a lock of the whole server while it waits for the disk."""
    session = await postgres.session()
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        await conn.execute("SELECT durable.tell('durable', '')")
        (started,) = await postgres.store.start_runs([new_run("a")])
        (run,) = await postgres.claim(session)
        ending = change(run, b"end", closing=Closing(RunState.COMPLETED, b"1"))
        result = await postgres.store.commit([ending])
        assert (started.accepted, started.told) == (True, False)
        assert (result.verdicts, result.told) == ([Verdict.ACCEPTED], False)


async def test_an_end_that_is_refused_is_told_with_its_verdict(postgres: PostgresRig) -> None:
    session = await postgres.session()
    await postgres.start("a")
    (run,) = await postgres.claim(session)
    ending = change(run, b"end", closing=Closing(RunState.COMPLETED, b"1"))
    stale = replace(ending, fence=run.fence + 1)
    assert (await postgres.store.commit([stale])).verdicts == [Verdict.STALE]
    assert await count(postgres, "closed_run") == 0
    assert (await postgres.store.commit([ending])).verdicts == [Verdict.ACCEPTED]


async def test_a_page_of_runs_is_one_statement(
    postgres: PostgresRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So a run that closes just then is open in it, or closed.
    await postgres.start("a")
    fetch, asked = postgres.store.fetch, []  # type: ignore[attr-defined]

    async def counted(name: str, params: Any) -> Any:
        asked.append(name)
        return await fetch(name, params)

    monkeypatch.setattr(postgres.store, "fetch", counted)
    assert len(await postgres.store.views()) == 1
    assert len(await postgres.store.views(Runs(search=b"{}"))) == 0
    assert asked == ["list_runs", "find_runs"]


# -- claims and crashes ----------------------------------------------------------------------


async def test_the_fence_of_a_claim_that_a_crash_undid_is_not_given_again(
    postgres: PostgresRig,
) -> None:
    one, two = await postgres.session(), await postgres.session()
    await postgres.start("a")
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        query = "SELECT fence FROM durable.claim_runs(%s, %s, %s, 1)"
        cursor = await conn.execute(query, (one, [QUEUE], [TYPE]))
        lost = (await cursor.fetchone() or (None,))[0]
        # The server dies before the claim is on disk.
        await conn.rollback()
    (run,) = await postgres.claim(two)
    assert lost is not None
    assert run.fence != lost
    late = change(replace(run, fence=lost), b"by the first owner")
    assert (await postgres.store.commit([late])).verdicts == [Verdict.STALE]
    assert (await postgres.store.commit([change(run, b"mine")])).verdicts == [Verdict.ACCEPTED]


async def test_a_claim_does_not_wait_for_the_disk_and_all_else_does(postgres: PostgresRig) -> None:
    session = await postgres.session()
    await postgres.start("a")
    async with await psycopg.AsyncConnection.connect(postgres.dsn) as conn:
        setting = "SELECT current_setting('synchronous_commit')"
        for arguments, expected in (((session, [], []), "on"), ((session, [QUEUE], [TYPE]), "off")):
            await conn.execute(
                "SELECT durable.claim_runs(%s, %s::text[], %s::text[], 1)", arguments
            )
            assert await (await conn.execute(setting)).fetchone() == (expected,)
        await conn.commit()
        assert await (await conn.execute(setting)).fetchone() == ("on",)


# -- many at once ----------------------------------------------------------------------------


class Workers:
    """Sessions that claim, read and consume, and give runs up or die at random."""

    def __init__(self, rig: PostgresRig, seed: int) -> None:
        self.rig = rig
        self.random = random.Random(seed)
        self.read: list[bytes] = []
        self.sent = 0
        self.senders_done = asyncio.Event()

    async def send(self, runs: Sequence[str], times: int) -> None:
        for _ in range(times):
            self.sent += 1
            payload = b"%d" % self.sent
            (went,) = await self.rig.other.send(
                [Message(SIGNAL, run_id=self.random.choice(runs), payload=payload)]
            )
            assert went is not None

    async def work(self) -> None:
        session = await self.rig.session()
        owned: dict[str, list[int]] = {}
        idle = 0
        while idle < 3:
            runs, mail, _ = await self.rig.store.claim_runs(session, [QUEUE], [TYPE], 2)
            owned.update({run.run_id: [run.fence, run.next_seq] for run in runs})
            ready = [r.run_id for r in runs] + [m for m in mail if m in owned]
            # Nothing arrives any more, and three polls in a row found nothing: what is left
            # unread now was forgotten.
            idle = idle + 1 if not ready and self.senders_done.is_set() else 0
            for run_id in ready:
                await self.turn(run_id, owned)
            if self.random.random() < 0.1:
                await self.rig.store.end_sessions([session])
                owned.clear()
                session = await self.rig.session()
            await self.rig.store.promote_due(10)
        await self.rig.store.end_sessions([session], crashed=False)

    async def turn(self, run_id: str, owned: dict[str, list[int]]) -> None:
        """Read the inbox and commit; now and then give the run up."""
        items = await self.rig.store.inbox([run_id])
        fence, seq = owned[run_id]
        release = self.random.random() < 0.5
        commit = change(
            self.template(run_id, fence),
            b"b",
            seq=seq,
            consumed=[i.id for i in items],
            release=release,
        )
        (verdict,) = await self.rig.commit(commit)
        if release and verdict == Verdict.UNREAD:
            # A message is on its way: it is kept for this time.
            commit.release = release = False
            (verdict,) = await self.rig.commit(commit)
        assert verdict == Verdict.ACCEPTED
        self.read += [i.payload or b"" for i in items]
        owned[run_id][1] += 1
        if release:
            del owned[run_id]

    def template(self, run_id: str, fence: int) -> Any:
        class Owned:
            pass

        run: Any = Owned()
        run.run_id, run.fence, run.part = run_id, fence, 1
        return run


@pytest.mark.parametrize("seed", range(3))
async def test_no_message_is_overlooked_or_read_twice(postgres: PostgresRig, seed: int) -> None:
    workers = Workers(postgres, seed)
    runs = [await postgres.start(f"w{n}") for n in range(4)]

    async with asyncio.TaskGroup() as group:
        working = [group.create_task(workers.work()) for _ in range(3)]
        async with asyncio.TaskGroup() as sending:
            for _ in range(3):
                sending.create_task(workers.send(runs, 40))
        workers.senders_done.set()
    assert all(task.done() for task in working)

    # What the last workers handed over when they ended is read by one more.
    await workers.work()
    assert sorted(workers.read, key=int) == [b"%d" % n for n in range(1, workers.sent + 1)]


async def test_crossing_messages_and_closes_end(postgres: PostgresRig) -> None:
    session = await postgres.session()
    runs = [await postgres.owned(f"w{n}", session) for n in range(6)]
    stores = [postgres.store, postgres.other]

    async def end(number: int) -> Verdict:
        run = runs[number]
        following = f"w{(number + 1) % len(runs)}"
        closing = change(
            run,
            b"end",
            messages=[Message(SIGNAL, workflow_id=following)],
            closing=Closing(RunState.TERMINATED),
        )
        while True:
            (verdict,) = (await stores[number % 2].commit([closing])).verdicts
            if verdict != Verdict.UNREAD:
                return verdict

    verdicts = await asyncio.gather(*map(end, range(len(runs))))

    assert verdicts == [Verdict.ACCEPTED] * len(runs)


async def test_finishing_and_timing_out_at_once_gives_one_outcome(postgres: PostgresRig) -> None:
    session = await postgres.session(1000 * HOUR_US)
    run = await postgres.owned("a", session)
    options = b'{"start_to_close": 1, "retry": {"attempts": 1}}'
    made = [QueuedActivity(n, "pay", QUEUE, 0, 1, b"", options) for n in range(1, 41)]
    await postgres.accept(change(run, b"b", activities=made))
    attempts = await postgres.store.claim_activities(session, [QUEUE], ["pay"], 100)
    await postgres.pass_time(2_000_000)

    async def finish(attempt: Any) -> None:
        await postgres.other.finish_activities(
            [ActivityOutcome(run.run_id, attempt.ref, 1, attempt.token, 2, b"1")]
        )

    async def promote() -> None:
        for _ in range(20):
            await postgres.store.promote_due(3)

    await asyncio.gather(promote(), *(finish(a) for a in attempts))
    while (await postgres.store.promote_due(10)).promoted:
        pass

    assert sorted(i.ref for i in await postgres.inbox(run.run_id)) == list(range(1, 41))
    assert await count(postgres, "activity") == 0
    assert await count(postgres, "timer") == 0


# -- partitions and poolers ------------------------------------------------------------------


async def test_new_runs_go_to_the_new_partition_and_old_ones_stay(postgres: PostgresRig) -> None:
    session = await postgres.session()
    old = await postgres.owned("old", session)
    async with await psycopg.AsyncConnection.connect(postgres.dsn, autocommit=True) as conn:
        await conn.execute("SELECT durable.add_part()")
    new = await postgres.owned("new", session)

    await postgres.accept(change(old, b"b"), change(new, b"b"))

    assert (old.part, new.part) == (1, 2)
    loaded = await postgres.store.load({old.run_id: 1, new.run_id: 2})
    assert [len(batches) for batches in loaded.values()] == [2, 2]


async def test_a_pooler_needs_another_address_to_listen(dsn: str) -> None:
    store = PostgresStore(dsn, pooler=True)

    with pytest.raises(ConfigurationError, match="listen_dsn"):
        store.listen()

    async with PostgresStore(dsn, pooler=True, listen_dsn=dsn).listen() as heard:
        await store.notify()
        async with asyncio.timeout(20):
            await anext(heard)
    await store.close()


async def test_nothing_is_kept_on_the_connections_of_a_pooler(dsn: str) -> None:
    store = PostgresStore(dsn, pooler=True)
    await store.open()
    for _ in range(10):
        await store.now_us()

    rows = await store.rest.call(prepared_statements)

    assert rows == []
    await store.close()


async def prepared_statements(conn: Conn, unsure: bool) -> list[tuple[Any, ...]]:
    return await (await conn.execute("SELECT name FROM pg_prepared_statements")).fetchall()


async def test_a_run_occurs_once_in_a_commit(postgres: PostgresRig) -> None:
    run = await postgres.owned("a")

    with pytest.raises(StoreError, match="once"):
        await postgres.commit(change(run, b"b"), change(run, b"c"))


async def test_histories_too_long_for_one_row_are_packed_from_many(postgres: PostgresRig) -> None:
    run = await postgres.owned("a")
    await postgres.accept(change(run, b"second"))
    parts = {run.run_id: run.part}
    # What the server says of more than a gigabyte, at a smaller price.
    put_together = b"string_agg(p.batches, '')"
    statement = postgres.store.queries["load_packed"]
    assert put_together in statement
    refused = b"repeat('xx', 1 << 30)::bytea || " + put_together
    postgres.store.queries = {
        **postgres.store.queries,
        "load_packed": statement.replace(put_together, refused),
    }

    packed = await postgres.store.load_packed(parts)

    assert list(packed.unpack()) == list((await postgres.store.load(parts)).values())
