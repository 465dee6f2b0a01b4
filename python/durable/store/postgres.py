"""The PostgreSQL store: psycopg 3, one transaction and nearly always one statement per method.

The statements are functions of the schema (sql/migrations), called with arrays. What they run on is
in `statements`, what starts and commits runs in `writes`, streams in `streams`; the rest is here.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import psycopg

from durable.errors import ConfigurationError, StoreError, StoreUnavailableError
from durable.events import (
    ActivityOutcome,
    ClaimedActivity,
    ClaimedRun,
    DueReport,
    InboxItem,
    QueueDepth,
    QueueLimits,
    Response,
    RunView,
    SessionInfo,
    TypeInfo,
)
from durable.store.arrays import TextArray, blobs, literal, texts, uuids
from durable.store.base import WORK, Hint
from durable.store.commits import Params
from durable.store.connection import Conn, Target
from durable.store.histories import PostgresHistories
from durable.store.notify import channel, hints, write
from durable.store.pages import ALL_RUNS, OpenRuns, Place, Runs
from durable.store.queries import DEFAULT_SCHEMA
from durable.store.rows import run_view
from durable.store.settled import NO_FLOOR, Floor, Settled
from durable.store.statements import Rows
from durable.store.streams import PostgresStreams
from durable.store.writes import PostgresWrites
from durable.store.written import begin, give_heads

PURGE_SECONDS = 60.0
"""Pause between two purges of answers that nobody fetched."""
TIDY_SECONDS = 10.0
"""Pause between two looks for claims that are over."""
NO_SESSION = "DUR01"
NOW_COLUMN = 12
"""Where the last row of a claim has the store's time: in the place of created_us."""


class PostgresStore(PostgresWrites, PostgresHistories, PostgresStreams):
    """The durable state of workflows in one schema of a PostgreSQL database.

    ``dsn`` may lead through PgBouncer in transaction mode (``pooler=True`` where that cannot be
    noticed); LISTEN then needs ``listen_dsn``, straight to the server. ``connect_seconds`` is how
    long `open` waits for a server that is not up; 0 fails at once.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = DEFAULT_SCHEMA,
        listen_dsn: str | None = None,
        application_name: str = "durable",
        pooler: bool = False,
        connect_seconds: float = 0.0,
    ) -> None:
        super().__init__(
            dsn,
            schema=schema,
            listen_dsn=listen_dsn,
            application_name=application_name,
            pooler=pooler,
            connect_seconds=connect_seconds,
        )
        self.purged_at = -math.inf
        self.tidied_at = -math.inf
        self._mail_settled = Settled()

    # -- sessions ----------------------------------------------------------------------------

    async def register_session(self, info: SessionInfo, lease_us: int) -> None:
        """Make the session known, alive for ``lease_us`` from now."""
        query = self.queries["register_session"]
        params = (info.id, info.host, info.pid, info.build_id, list(info.queues), lease_us)

        async def work(conn: Conn, unsure: bool) -> None:
            await conn.execute(query, params)

        await self.rest.call(work)

    async def heartbeat(self, sessions: Sequence[int], lease_us: int) -> set[int]:
        """Extend the leases; return the sessions that are still alive (the others are dead)."""
        rows = await self.fetch("heartbeat", (literal(sessions), lease_us))
        return {row[0] for row in rows}

    async def end_sessions(self, sessions: Sequence[int], *, crashed: bool = True) -> int:
        """Declare sessions dead and hand over all they own at once; return the number of runs."""
        rows = await self.fetch("end_sessions", (literal(sessions), crashed, False))
        return int(rows[0][1])

    async def suspect(self, session: int, run_id: str | None) -> None:
        """Name the run that is on trial in the session: if that crashes, it alone is counted."""
        await self.fetch("suspect", (session, run_id))

    async def reap_sessions(self) -> int:
        """End every session whose lease is over; forget old responses and claims. Return how many
        ended."""
        rows = await self.fetch("end_sessions", ("{}", True, True))
        now = time.monotonic()
        if now - self.tidied_at >= TIDY_SECONDS:
            self.tidied_at = now
            await self.fetch("tidy_claims", ())
        if now - self.purged_at >= PURGE_SECONDS:
            self.purged_at = now
            query = self.queries["purge_responses"]

            async def work(conn: Conn, unsure: bool) -> None:
                await conn.execute(query)

            await self.rest.call(work)
        return int(rows[0][0])

    async def register_types(self, types: Sequence[TypeInfo]) -> None:
        """Remember which workflow and activity types exist."""
        known = list({(t.kind, t.name): t for t in types}.values())
        columns = [
            [getattr(t, f) for t in known] for f in ("kind", "name", "queue", "signature", "doc")
        ]
        plain = literal(t.takes_plain for t in known)
        params = (*(texts(column) for column in columns), plain)
        query = self.queries["register_types"]

        async def work(conn: Conn, unsure: bool) -> None:
            await conn.execute(query, params)

        await self.rest.call(work)

    async def types(self) -> list[TypeInfo]:
        """All types that any worker registered."""
        return [TypeInfo(*row) for row in await self.fetch("types", ())]

    # -- clients -----------------------------------------------------------------------------

    async def unpark(self, run_ids: Sequence[str]) -> int:
        """Make parked runs claimable again; return how many were parked."""
        rows = await self.fetch("unpark", (uuids(run_ids),))
        return int(rows[0][0])

    async def pause(self, reasons: Mapping[str, bytes]) -> int:
        """Pause open runs, each with its reason (JSON); return how many of them are open."""
        rows = await self.fetch("pause", (uuids(list(reasons)), blobs(list(reasons.values()))))
        return int(rows[0][0])

    async def resume(self, run_ids: Sequence[str]) -> int:
        """Let paused runs go on; return how many were paused."""
        rows = await self.fetch("resume", (uuids(run_ids),))
        return int(rows[0][0])

    async def view(
        self, *, workflow_id: str | None = None, run_id: str | None = None
    ) -> RunView | None:
        """The run, or the latest run of the id; open runs first."""
        rows = await self.fetch("view_run", (run_id, workflow_id))
        found = await give_heads([run_view(row) for row in rows], self.first_batches)
        return found[0] if found else None

    async def views(
        self, wanted: Runs = ALL_RUNS, *, before: Place | None = None, limit: int = 100
    ) -> list[RunView]:
        """Runs that fit, the newest first, without results and failures."""
        params: Params = (
            wanted.wants_open,
            wanted.wants_closed,
            wanted.workflow_type,
            literal(int(state) for state in wanted.states),
            wanted.queue,
            wanted.id_prefix,
            wanted.from_us,
            wanted.started_until_us,
            wanted.closed_from_us,
            wanted.closed_until_us,
            ids_of(wanted),
            *(before or (None, None)),
            limit,
        )
        if any(each is not None for each in (wanted.search, wanted.closed_from_us, wanted.ids)):
            search = None if wanted.search is None else wanted.search.decode()
            rows = await self.fetch("find_runs", (search, *params))
        else:
            rows = await self.fetch("list_runs", params)
        return await give_heads([run_view(row) for row in rows], self.first_batches)

    async def open_page(
        self, wanted: OpenRuns, *, after: str | None = None, limit: int = 200
    ) -> list[RunView]:
        """The next open runs by run id, without the reasons of parked and paused ones."""
        rows = await self.fetch("open_page", (*page_params(wanted), after, limit, ids_of(wanted)))
        return await give_heads([run_view(row) for row in rows], self.first_batches)

    async def count_open(self, wanted: OpenRuns) -> int:
        """How many open runs fit."""
        return int((await self.fetch("count_open", (*page_params(wanted), ids_of(wanted))))[0][0])

    async def closed(self, run_ids: Sequence[str]) -> list[RunView]:
        """Those of the runs that are closed, with results."""
        if not run_ids:
            return []
        rows = await self.fetch("closed", (uuids(run_ids),))
        return await give_heads([run_view(row) for row in rows], self.first_batches)

    async def responses(self, request_ids: Sequence[str]) -> list[Response]:
        """Those of the answers that are there."""
        if not request_ids:
            return []
        return [Response(*row) for row in await self.fetch("responses", (texts(request_ids),))]

    async def notify(self, hint: Hint = WORK) -> None:
        """Tell whoever listens. Best effort, and a transaction of its own: a commit that notifies
        holds a lock of the whole database until it is on disk."""
        await self.fetch("notify", (channel(self.schema, done=hint.done), write(hint)))

    def listen(self, *, done: bool = False) -> AbstractAsyncContextManager[AsyncIterator[Hint]]:
        """Yield each hint. Raises ConfigurationError where hints cannot be had."""
        if self.target.pooler and self.listen_dsn is None:
            raise ConfigurationError(
                "LISTEN does not work through a transaction pooler: give listen_dsn, "
                "the address of the server itself (or rely on polling)"
            )
        target = Target(self.listen_dsn or self.target.dsn, "durable listen")
        return hints(target, self.schema, done=done)

    # -- queues ------------------------------------------------------------------------------

    async def set_queue_limits(self, limits: QueueLimits) -> None:
        """Give a queue these limits instead of those it has; empty ones remove them."""
        params = (limits.queue, limits.concurrency, limits.rate, limits.burst)
        await self.fetch("set_queue_limit", (*params, limits.key_concurrency))

    async def queue_limits(self) -> list[QueueLimits]:
        """Those of every queue that has any, by name."""
        return [QueueLimits(*row) for row in await self.fetch("queue_limits", ())]

    async def queue_depths(self) -> list[QueueDepth]:
        """Every queue that has activities with a row, by name. Reads all of them."""
        return [QueueDepth(*row) for row in await self.fetch("queue_depths", ())]

    # -- workers: runs -----------------------------------------------------------------------

    async def claim_runs(
        self, session: int, queues: Sequence[str], types: Sequence[str], limit: int
    ) -> tuple[list[ClaimedRun], list[str], int]:
        """Take wake tokens and own their runs: new runs, own runs with mail, the time.

        A session that is not alive gets nothing.
        """
        rows = await self.claim("claim_runs", session, queues, types, limit)
        if not rows:
            return [], [], await self.now_us()
        now_us = int(rows.pop()[NOW_COLUMN])
        mail = [row[0] for row in rows if row[1] is None]
        runs = [ClaimedRun(*row) for row in rows if row[1] is not None]
        return begin(runs), mail, now_us

    async def claim(
        self, name: str, session: int, queues: Sequence[str], types: Sequence[str], limit: int
    ) -> Rows:
        """Run a claim once. No rows for a dead session; StoreUnavailableError when the answer was
        lost, for then the session may own what it does not know of (see `owned`)."""
        query = self.queries[name]
        params = (session, texts(queues), texts(types), limit)

        async def work(conn: Conn, unsure: bool) -> Rows:
            if unsure:
                raise StoreUnavailableError(f"{name}: the answer was lost; ask for what is owned")
            cursor = await conn.execute(query, params, binary=True)
            return await cursor.fetchall()

        try:
            return await self.rest.call(work)
        except StoreError as error:
            if is_dead_session(error):
                return []
            raise

    async def look(self, sessions: Sequence[int], queues: Sequence[str]) -> tuple[set[int], bool]:
        """Which of the sessions have mail, and whether there is work for any."""
        mail, work = (await self.fetch("look", (literal(sessions), texts(queues))))[0]
        return set(mail), work

    async def owned(self, session: int) -> tuple[list[ClaimedRun], list[ClaimedActivity]]:
        """All runs and claimed attempts of a session, without claiming anything."""
        runs = await self.fetch("owned_runs", (session,))
        attempts = await self.fetch("owned_activities", (session,))
        claimed = await give_heads([ClaimedRun(*row) for row in runs], self.first_batches)
        return claimed, [ClaimedActivity(*row) for row in attempts]

    async def waiting(self, run_ids: Sequence[str]) -> dict[str, set[int]]:
        """Refs of the activities that have a row: queued, claimed, or before another attempt."""
        found: dict[str, set[int]] = {run_id: set() for run_id in run_ids}
        if found:
            for run_id, ref in await self.fetch("waiting", (uuids(list(found)),)):
                found[run_id].add(ref)
        return found

    async def inbox(
        self, run_ids: Sequence[str], limit: int | None = None, kinds: Sequence[int] | None = None
    ) -> list[InboxItem]:
        """Unread items in order of id; with ``limit`` at most so many of each run."""
        if not run_ids:
            return []
        params = uuids(run_ids), limit, None if kinds is None else literal(kinds)
        return [InboxItem(*row) for row in await self.fetch("inbox", params)]

    async def mail_after(
        self, floors: Mapping[str, Floor], limit: int
    ) -> tuple[list[InboxItem], Floor]:
        """Unread items over the floors, and up to which id none can come any more."""
        if not floors:
            return [], NO_FLOOR
        ids, servers = (
            [each.id for each in floors.values()],
            [each.server for each in floors.values()],
        )
        params = uuids([*floors]), limit, literal(ids), literal(servers)
        rows = await self.fetch("mail_after", params)
        if not rows:
            return [], NO_FLOOR
        *_, server, xmin, xmax = rows[-1]
        items = [InboxItem(*row[:-3]) for row in rows]
        return items, self._mail_settled.note(server, xmin, xmax, items[-1].id)

    async def promote_due(self, limit: int) -> DueReport:
        """Turn due timers into inbox rows, wake tokens and claimable activities."""
        rows = await self.fetch("promote_due", (limit,))
        return DueReport(*rows[0])

    # -- workers: activities -----------------------------------------------------------------

    async def claim_activities(
        self, session: int, queues: Sequence[str], names: Sequence[str], limit: int
    ) -> list[ClaimedActivity]:
        """Take queued attempts by priority and age. A session that is not alive gets nothing."""
        rows = await self.claim("claim_activities", session, queues, names, limit)
        return [ClaimedActivity(*row) for row in rows]

    async def finish_activities(self, outcomes: Sequence[ActivityOutcome]) -> list[bool]:
        """Record outcomes of claimed attempts; False where the attempt's token is void."""
        if not outcomes:
            return []
        query = self.queries["finish_activities"]
        params = (
            uuids([o.run_id for o in outcomes]),
            literal([o.ref for o in outcomes]),
            literal([o.attempt for o in outcomes]),
            literal([o.token for o in outcomes]),
            literal([int(o.kind) for o in outcomes]),
            blobs([o.payload for o in outcomes]),
            literal([o.delay_us for o in outcomes]),
            blobs([o.details for o in outcomes]),
            literal([o.count_attempt for o in outcomes]),
        )

        async def work(conn: Conn, unsure: bool) -> list[bool]:
            cursor = await conn.execute(query, params, binary=True)
            # A token that is void at the second try was, most likely, spent by the first. Either
            # way the caller has nothing left to do for that attempt.
            return [good or unsure for (good,) in await cursor.fetchall()]

        return await self.hot.call(work)

    async def detach_activity(self, run_id: str, ref: int, token: int) -> bool:
        """Let a claimed attempt outlive its session; False when its token is void."""
        return bool(await self.fetch("detach_activity", (run_id, ref, token)))

    async def heartbeat_activity(self, run_id: str, ref: int, token: int, details: bytes) -> bool:
        """Keep the progress details of a claimed attempt; False when its token is void."""
        rows = await self.fetch("heartbeat_activity", (run_id, ref, token, details))
        return bool(rows[0][0])


def is_dead_session(error: StoreError) -> bool:
    """Whether the database refused because the session has ended."""
    cause = error.__cause__
    return isinstance(cause, psycopg.Error) and cause.sqlstate == NO_SESSION


def ids_of(wanted: OpenRuns) -> TextArray | None:
    """The ids of a filter as the statements take them."""
    return None if wanted.ids is None else texts(wanted.ids)


def page_params(wanted: OpenRuns) -> Params:
    """A filter as the statements take it."""
    search = None if wanted.search is None else wanted.search.decode()
    plain = wanted.workflow_type, literal(wanted.states), wanted.queue, wanted.id_prefix
    return (*plain, search, wanted.from_us, wanted.until_us)
