"""A store that fails, or succeeds without saying so, costs time and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import pytest

from durable import activity, workflow
from durable.client import Client
from durable.errors import StoreUnavailableError
from durable.events import (
    ActivityOutcome,
    ClaimedActivity,
    ClaimedRun,
    CommitResult,
    EventKind,
    Message,
    RunCommit,
    Verdict,
)
from durable.store.postgres import PostgresStore
from durable.store.settled import Floor

SOON = 30.0
GONE = StoreUnavailableError("the connection was lost")


class Unreliable(PostgresStore):
    """Loses some calls of the worker, before or after they took effect."""

    def __init__(self, dsn: str, share: float, seed: int) -> None:
        super().__init__(dsn)
        self.share = share
        self.random = Random(seed)
        self.losses = 0

    def fate(self) -> str:
        """What becomes of the next call."""
        if self.random.random() >= self.share:
            return "answered"
        self.losses += 1
        return self.random.choice(["lost before", "lost after"])

    async def lose(self, call: Any) -> Any:
        fate = self.fate()
        if fate == "lost before":
            call.close()
            raise GONE
        answer = await call
        if fate == "lost after":
            raise GONE
        return answer

    async def commit(self, commits: Sequence[RunCommit], flush: int = 0) -> CommitResult:
        return await self.lose(super().commit(commits, flush))

    async def claim_runs(
        self, session: int, queues: Sequence[str], types: Sequence[str], limit: int
    ) -> tuple[list[ClaimedRun], list[str], int]:
        return await self.lose(super().claim_runs(session, queues, types, limit))

    async def claim_activities(
        self, session: int, queues: Sequence[str], names: Sequence[str], limit: int
    ) -> list[ClaimedActivity]:
        return await self.lose(super().claim_activities(session, queues, names, limit))

    async def finish_activities(self, outcomes: Sequence[ActivityOutcome]) -> list[bool]:
        return await self.lose(super().finish_activities(outcomes))

    async def inbox(
        self, run_ids: Sequence[str], limit: int | None = None, kinds: Sequence[int] | None = None
    ) -> Any:
        return await self.lose(super().inbox(run_ids, limit, kinds))

    async def mail_after(self, floors: Mapping[str, Floor], limit: int) -> Any:
        return await self.lose(super().mail_after(floors, limit))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("seed", [1, 2])
async def test_every_activity_runs_once_and_every_run_ends(
    client: Client, serve: Any, dsn: str, share: float, seed: int
) -> None:
    ledger: list[tuple[str, int]] = []

    @activity.defn
    async def pay(amount: int) -> int:
        ledger.append((activity.info().workflow_id, amount))
        return amount

    @workflow.defn
    async def order(items: int) -> int:
        total = 0
        for item in range(items):
            total += await pay(item)
        total += sum(await asyncio.gather(*(pay(100 + item) for item in range(items))))
        return total + await workflow.wait_signal("tip", type=int)

    # Few slots, so that some activities go through the queue.
    store = Unreliable(dsn, share, seed)
    await serve(order, pay, store=store, activity_slots=4, poll_max_seconds=0.2)
    handles = [await client.start(order, 5, id=f"order-{number}") for number in range(8)]
    for number, handle in enumerate(handles):
        await handle.signal("tip", number)
    results = [await handle.result(SOON) for handle in handles]
    assert results == [10 + 510 + number for number in range(8)]
    assert store.losses > 0
    assert sorted(ledger) == sorted(set(ledger))
    assert len(ledger) == 8 * 10


async def test_a_store_that_is_away_for_a_while_stops_nothing_for_good(
    client: Client, serve: Any, dsn: str
) -> None:
    away, back = asyncio.Event(), asyncio.Event()
    ran: list[int] = []

    class Away(PostgresStore):
        async def commit(self, commits: Sequence[RunCommit], flush: int = 0) -> CommitResult:
            if len(ran) == 3 and not back.is_set():
                away.set()
                raise GONE
            return await super().commit(commits, flush)

    @activity.defn
    async def step(number: int) -> int:
        ran.append(number)
        return number

    @workflow.defn
    async def steps() -> int:
        return sum([await step(number) for number in range(6)])

    await serve(steps, step, store=Away(dsn))
    handle = await client.start(steps, id="steps")
    async with asyncio.timeout(SOON):
        await away.wait()
    back.set()
    assert await handle.result(SOON) == 15
    assert ran == list(range(6))


async def test_a_signal_that_meets_the_end_of_its_run_is_read(
    client: Client, serve: Any, dsn: str
) -> None:
    refused: list[Verdict] = []

    class Late(PostgresStore):
        """A signal arrives after the code has ended and before that is written."""

        async def commit(self, commits: Sequence[RunCommit], flush: int = 0) -> CommitResult:
            if any(each.closing for each in commits) and not refused:
                signal = Message(
                    EventKind.SIGNAL_RECEIVED, workflow_id="till", name="coin", payload=b"[5]"
                )
                await self.send([signal])
                result = await super().commit(commits, flush)
                refused.extend(result.verdicts)
                return result
            return await super().commit(commits, flush)

    ran: list[int] = []

    @activity.defn
    async def look() -> int:
        ran.append(1)
        return 1

    @workflow.defn
    async def till() -> list[int]:
        coins = workflow.signal_channel("coin", int)
        await look()
        return [coins.receive_nowait() for _ in range(len(coins))]

    await serve(till, look, store=Late(dsn))
    handle = await client.start(till, id="till")
    assert await handle.result(SOON) == [5]
    assert Verdict.UNREAD in refused
    assert ran == [1]
