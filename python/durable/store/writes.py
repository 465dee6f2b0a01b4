"""Writes: starts, messages and the group commit on PostgreSQL.

A commit whose answer was lost is sent again under its flush id, which the server knows if it
happened; a start is known by its run id, a message by its request id. What is about one run alone
has statements of its own, because somebody may be waiting for just that.
"""

from __future__ import annotations

import logging
import random
import secrets
from collections.abc import Sequence
from typing import Any

from durable.errors import StoreError
from durable.events import (
    CommitResult,
    Message,
    NewRun,
    RunCommit,
    Started,
    Verdict,
)
from durable.store.commits import (
    RUN_ID,
    Params,
    build,
    keys,
    replace_params,
    send_params,
    start_and_send_params,
    start_params,
    start_run_params,
)
from durable.store.connection import Conn, DataRejectedError, sever
from durable.store.notify import channel
from durable.store.rows import view_state
from durable.store.statements import Rows, Statements
from durable.store.telling import is_single, join_ends, single_end, start_hint

logger = logging.getLogger("durable.store")

USED = "a run id was used before: every start needs a fresh one"
KEY_TRIES = 10
"""How often the holder of a key may be gone when it is looked at."""
VERDICTS = {str(int(v)): v for v in Verdict}


class PostgresWrites(Statements):
    """What clients start and send, and what workers commit."""

    async def start_runs(self, runs: Sequence[NewRun], conn: Any = None) -> list[Started]:
        """Start runs; a taken id yields the run that has it and writes nothing for that one."""
        if not runs:
            return []
        if is_single(runs):
            return [await self._start_run(runs[0], conn)]
        for _ in range(KEY_TRIES):
            hint = start_hint(self.schema, runs if conn is None else ())
            params = *start_params(runs), *keys(runs), *hint
            rows = await self._fetch_or_on(conn, "start_runs", params)
            if all(row[0] is not None for row in rows):
                return [
                    Started(found == run.run_id, found, view_state(state), holder, at_us, told)
                    for run, (found, state, holder, at_us, told) in zip(runs, rows, strict=True)
                ]
            if all(run.dedup_key is run.debounce_key is None for run in runs):
                raise StoreError(USED)
            # Who held a key was gone when we looked who it is. What is started stays so.
        raise StoreError("a key changed hands too often to be had; try again")

    async def _start_run(self, run: NewRun, conn: Any) -> Started:
        hint = start_hint(self.schema, [run] if conn is None else ())
        rows = await self._fetch_or_on(conn, "start_run", (*start_run_params(run), *hint))
        found, state, told = rows[0]
        if found is None:
            raise StoreError(USED)
        return Started(found == run.run_id, found, view_state(state), None, None, told)

    async def replace_start(self, run: NewRun, conn: Any = None) -> bool:
        """Give a debounced run another input and start time; False when it has begun."""
        rows = await self._fetch_or_on(conn, "replace_start", replace_params(run))
        return bool(rows[0][0])

    async def _fetch_or_on(self, conn: Any, name: str, params: Params) -> Rows:
        """On the caller's own connection, if there is one."""
        if conn is None:
            return await self.fetch(name, params)
        return await self.fetch_on(conn, name, params)

    async def start_and_send(
        self, runs: Sequence[NewRun], messages: Sequence[Message], conn: Any = None
    ) -> list[Started]:
        """Deliver each message to the open run of its workflow id, or start the run with it."""
        if not runs:
            return []
        params = start_and_send_params(runs, messages)
        rows = await self._fetch_or_on(conn, "start_and_send", params)
        if any(row[0] is None for row in rows):
            raise StoreError(USED)
        return [
            Started(found == run.run_id, found, view_state(state))
            for run, (found, state) in zip(runs, rows, strict=True)
        ]

    async def send(self, messages: Sequence[Message], conn: Any = None) -> list[str | None]:
        """Deliver messages; return the run id each went to, or None where no open run has it."""
        if not messages:
            return []
        # With an id of its own the call can be repeated when the answer is lost.
        params = *send_params(messages), secrets.token_hex(12)
        rows = await self._fetch_or_on(conn, "send", params)
        return [row[0] for row in rows]

    async def send_telling(self, message: Message) -> tuple[str | None, bool]:
        """Deliver one message; return the run it went to, and whether its worker was told."""
        params = *send_params([message]), secrets.token_hex(12), channel(self.schema, done=False)
        ((run_id, told),) = await self.fetch("send_and_tell", params)
        return run_id, told

    async def commit(self, commits: Sequence[RunCommit], flush: int = 0) -> CommitResult:
        """Group commit: one transaction, a verdict per run. Rows are locked in run id order.

        Where a value of one run cannot be stored, that run gets Verdict.REFUSED and the others
        are committed without it.
        """
        if not commits:
            return CommitResult([], await self.now_us())
        ordered = sorted(commits, key=RUN_ID)
        verdicts, now_us, told = await self.commit_ordered(ordered, flush)
        by_run = dict(zip([c.run_id for c in ordered], verdicts, strict=True))
        return CommitResult([by_run[c.run_id] for c in commits], now_us, told)

    async def commit_ordered(
        self, ordered: Sequence[RunCommit], flush: int
    ) -> tuple[list[Verdict], int, bool]:
        """Commit runs sorted by id; split in halves to find the one that cannot be stored."""
        flush = flush or random.getrandbits(62) + 1
        try:
            single = single_end(self.schema, ordered, flush)
            built = [single] if single else join_ends(self.schema, build(ordered, flush), ordered)
            calls = [(self.queries[name], params) for name, params in built]
            verdicts, now_us, *rest = await self.hot.call(
                lambda conn, unsure: transact(conn, calls)
            )
        except (DataRejectedError, UnicodeError) as error:
            if len(ordered) == 1:
                logger.error("run %s cannot be stored: %s", ordered[0].run_id, error)
                return [Verdict.REFUSED], await self.now_us(), False
            half = len(ordered) // 2
            first, _, told = await self.commit_ordered(ordered[:half], flush)
            second, now_us, also = await self.commit_ordered(ordered[half:], flush)
            return first + second, now_us, told and also
        return [VERDICTS[digit] for digit in verdicts], now_us, bool(rest and rest[-1])


async def transact(conn: Conn, calls: Sequence[tuple[bytes, Params]]) -> tuple[Any, ...]:
    """Run the calls in one transaction and one round trip; return what the first one says."""
    query, params = calls[0]
    if len(calls) == 1:
        cursor = await conn.execute(query, params, binary=True)
    else:
        async with conn.pipeline():
            try:
                cursor = await conn.execute(query, params, binary=True)
                for query, params in calls[1:]:
                    await conn.execute(query, params)
            except BaseException:
                # The pipeline ends with the commit: half of it must not get there.
                sever(conn)
                raise
    row = await cursor.fetchone()
    assert row is not None
    return row
