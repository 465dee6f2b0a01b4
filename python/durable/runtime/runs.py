"""Runs from the store: claim them, load them, read their mail.

The poller takes wake tokens. A token of a run that is not warm here makes this session its owner:
the run's history and inbox are read and it is replayed. A token of a warm run means mail. What a
token promised is remembered until it was really read, so that a store that stops answering in
between costs time and no wake-up; after a claim with an unknown outcome the store is asked what
this session owns.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from durable.engine.forking import is_copy
from durable.errors import StoreError, StoreUnavailableError
from durable.events import ClaimedRun, EventKind, InboxItem
from durable.runtime.committer import Committer
from durable.runtime.metrics import Metrics
from durable.runtime.parking import CRASHES_MAX, PoisonError
from durable.runtime.pausing import ENDINGS, HEEDED, ending_of
from durable.runtime.service import Service
from durable.runtime.sessions import Session
from durable.runtime.suspects import Suspects
from durable.runtime.turns import Turns
from durable.runtime.wakeup import Backoff, Wakeup
from durable.runtime.warm import Cache, WarmRun
from durable.store.base import Store
from durable.store.clock import StoreClock
from durable.store.settled import NO_FLOOR, Floor

CLAIM_MAX = 100
LOAD_BATCHES_MAX = 5000
"""History batches loaded at a time: bounds the memory a claim can take."""
INBOX_RUNS_MAX = 1000
MAIL_MAX = 500
"""Messages of a warm run that are read at a time; they are one turn, and go into one commit."""
MAIL_CHUNK = 100
"""Messages of one run that are delivered before others may get a turn."""
REDO_FIRST_SECONDS = 0.01
REDO_LONGEST_SECONDS = 1.0
ENDS = (EventKind.CANCEL_REQUESTED, EventKind.RUN_TERMINATED, EventKind.RUN_TIMED_OUT)
TRIAL_LOOK_SECONDS = 0.5
BLOCK_SECONDS = 0.01
"""Replays may hold the loop this long before others get a turn."""

log = logging.getLogger("durable.worker")


class RunPoller(Service):
    """Claims runs while there is room, and brings them their mail."""

    name = "run-poller"

    def __init__(
        self,
        store: Store,
        session: Session,
        turns: Turns,
        cache: Cache,
        committer: Committer,
        clock: StoreClock,
        metrics: Metrics,
        *,
        queues: Sequence[str],
        types: Sequence[str],
        poll_max_seconds: float,
        room: Callable[[], int],
        least_room: int,
    ) -> None:
        super().__init__()
        self._store = store
        self._session = session
        self._turns = turns
        self._cache = cache
        self._committer = committer
        self._clock = clock
        self._metrics = metrics
        self._queues = list(queues)
        self._types = list(types)
        self._room = room
        self._least_room = least_room
        self.on_caught_up: Callable[[], None] = lambda: None
        """Called after a claim that found less than there was room for."""
        self._wakeup = Wakeup(poll_max_seconds)
        self._backoff = Backoff()
        self._mail: dict[str, None] = {}
        self._redo: list[WarmRun] = []
        self._opened: list[ClaimedRun] = []
        self._suspects = Suspects(store, cache)
        self._must_recover = False
        self._is_hungry = False
        self._told = False

    def wake(self) -> None:
        self._wakeup.hint()

    def hint(self, *, told: bool = False) -> None:
        """There may be something to claim, or mail; ``told`` by others, who do so each time."""
        self._told = self._told or told
        self._wakeup.hint()

    def room_made(self) -> None:
        """Some work is done: claim again, if the last claim left runs behind for lack of room."""
        if self._is_hungry and self._room() >= self._least_room:
            self._is_hungry = False
            self._wakeup.hint()

    def redo(self, run: WarmRun) -> None:
        """Read the run's mail and build it again; called for UNREAD verdicts."""
        delay = REDO_FIRST_SECONDS * 2 ** min(run.unread_count - 1, 10)
        # Mostly the mail is there already. Waiting longer each time is for a sender that keeps
        # its own transaction open.
        if run.unread_count <= 1:
            self._redo_now(run)
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(min(delay, REDO_LONGEST_SECONDS), self._redo_now, run)

    def _redo_now(self, run: WarmRun) -> None:
        self._redo.append(run)
        self._wakeup.hint()

    def read_on(self, run: WarmRun) -> None:
        """Read the rest of a run's mail; called when the first part of it is written."""
        self._mail[run.run_id] = None
        self._wakeup.hint()

    def recover(self) -> None:
        """Compare with the store what this session owns."""
        self._must_recover = True
        self._wakeup.hint()

    def drop_all(self) -> None:
        """The session is dead: nothing is owned."""
        self._mail.clear()
        self._redo.clear()
        self._opened.clear()
        self._suspects.clear()
        self._must_recover = False

    async def run(self) -> None:
        self.ready()
        while not self.stopping:
            told, self._told = self._told, False
            try:
                found, is_full = await self._poll()
            except StoreError as error:
                self._metrics.inc("durable_store_errors_total")
                if self._backoff.failures == 0:
                    log.warning("cannot read runs, will go on trying: %s", error)
                await self._wakeup.wait_hint(self._backoff.next_seconds())
                continue
            self._backoff.reset()
            if is_full:
                continue
            await self._wakeup.wait(found=found, told=told)
            self._metrics.set("durable_poll_interval_seconds", self._wakeup.pause_seconds)

    async def _poll(self) -> tuple[bool, bool]:
        """One round; return whether there was anything, and whether there may be more."""
        if self._must_recover:
            await self._recover()
        # What earlier rounds left undone goes first.
        await self._read_all()
        limit = min(self._room(), CLAIM_MAX)
        if self._committer.is_stalled:
            return False, False
        claimed, mail = await self._claim(limit)
        self._is_hungry = limit <= len(claimed)
        if limit > len(claimed):
            self.on_caught_up()
        self._opened += self._suspects.sort_out(claimed)
        self._mail.update(dict.fromkeys(mail))
        await self._read_all()
        return bool(claimed or mail), self._is_hungry and self._room() >= self._least_room

    async def _read_all(self) -> None:
        while self._opened:
            await self._warm()
        while self._mail:
            await self._read_mail()
        while self._redo:
            await self._redo_some()
        while (suspect := await self._suspects.next(self._session.id)) is not None:
            self._opened.append(suspect)
            while self._opened:
                await self._warm()
        if self._suspects.are_left:
            # Looked at again when the trial ends, or a little later if nobody says so.
            asyncio.get_running_loop().call_later(TRIAL_LOOK_SECONDS, self._wakeup.hint)

    async def _claim(self, limit: int) -> tuple[list[ClaimedRun], list[str]]:
        session = self._session.id
        # Without room only mail is wanted, and that comes from no queue.
        queues = self._queues if limit > 0 else []
        try:
            claimed, mail, now_us = await self._store.claim_runs(
                session, queues, self._types, limit if limit > 0 else CLAIM_MAX
            )
        except StoreUnavailableError:
            self._must_recover = True
            raise
        if session != self._session.id:
            return [], []
        self._clock.observe(now_us)
        if claimed:
            self._metrics.inc("durable_runs_claimed_total", len(claimed))
        return claimed, mail

    async def _recover(self) -> None:
        """Find what a claim of unknown outcome took: runs not known here, mail not read."""
        session, drop_count = self._session.id, self._turns.drop_count
        owned, _ = await self._store.owned(session)
        if session != self._session.id or drop_count != self._turns.drop_count:
            # What was owned when the store looked may have been given up since: ask again.
            return
        self._must_recover = False
        known = {each.run_id for each in self._opened} | self._suspects.run_ids
        for claimed in owned:
            if self._cache.get(claimed.run_id) is not None:
                self._mail[claimed.run_id] = None
            elif claimed.run_id not in known:
                self._opened += self._suspects.sort_out([claimed])

    # -- cold runs ---------------------------------------------------------------------------

    async def _warm(self) -> None:
        """Read and replay some of the claimed runs."""
        session = self._session.id
        chunk: list[ClaimedRun] = []
        batches = 0
        # Runs that only begin need no history, and do not wait until those of the others are read.
        self._opened.sort(key=is_cold)
        for claimed in self._opened:
            if chunk and (
                batches + claimed.next_seq > LOAD_BATCHES_MAX
                or is_cold(claimed) > is_cold(chunk[0])
            ):
                break
            chunk.append(claimed)
            batches += claimed.next_seq
        started = [
            claimed.run_id
            for claimed in chunk
            if claimed.next_seq > 1 or claimed.start is None or is_copy(claimed.start)
        ]
        # In this order: an activity whose outcome came between the two reads is then in the inbox.
        waiting = await self._store.waiting(started) if started else {}
        histories: dict[str, list[bytes] | StoreError] = {
            claimed.run_id: [claimed.start] for claimed in chunk if claimed.start is not None
        }
        cold = list(filter(is_cold, chunk))
        if cold:
            histories |= await self._load({claimed.run_id: claimed.part for claimed in cold})
        # Also of a run that had no mail when it was claimed: it may have come since.
        ids = [each.run_id for each in chunk if each.has_mail or each.next_seq > 1]
        mail = by_run(await self._store.inbox(ids)) if ids else {}
        if session != self._session.id:
            return
        del self._opened[: len(chunk)]
        began = time.monotonic()
        for claimed in chunk:
            history = histories.get(claimed.run_id)
            items = mail.get(claimed.run_id, [])
            self._begin(claimed, history, waiting.get(claimed.run_id, set()), items)
            if time.monotonic() - began > BLOCK_SECONDS:
                await asyncio.sleep(0)
                began = time.monotonic()
                if session != self._session.id:
                    return

    async def _load(self, runs: dict[str, int]) -> dict[str, list[bytes] | StoreError]:
        """Histories by run id; the error of one that cannot be had stands in its place."""
        try:
            return dict(await self._store.load(runs))
        except StoreUnavailableError:
            raise
        except StoreError as error:
            if len(runs) == 1:
                return dict.fromkeys(runs, error)
        found: dict[str, list[bytes] | StoreError] = {}
        for run_id, part in runs.items():
            found |= await self._load({run_id: part})
        return found

    def _begin(
        self,
        claimed: ClaimedRun,
        history: list[bytes] | StoreError | None,
        waiting: set[int],
        items: list[InboxItem],
    ) -> None:
        turns = self._turns
        run = turns.open(claimed)
        if claimed.is_paused and not any(item.kind in ENDINGS for item in items):
            # Paused since it was claimed: nothing of it is to run.
            turns.release(run)
            return
        if claimed.crashes >= CRASHES_MAX:
            turns.park(run, PoisonError(
                f"its worker died {claimed.crashes} times in a row while it had this run"
            ))  # fmt: skip
        elif isinstance(history, StoreError):
            turns.park(run, history)
        else:
            began = time.monotonic()
            if turns.replay(run, history or []):
                self._metrics.observe("durable_replay_seconds", time.monotonic() - began)
                assert run.execution is not None
                self._metrics.inc("durable_replay_events_total", run.execution.event_count)
                is_new = claimed.next_seq == 1 and not (history and is_copy(history[0]))
                if is_new and not any(item.kind in ENDS for item in items):
                    # Its start is all it knows, and is durable: what it asks for can begin.
                    turns.begin(run)
                    turns.deliver_mail(run, items, is_rebuilt=True)
                else:
                    # What the mail causes begins when the commit that has the mail is durable.
                    owed = [] if is_new else turns.owed(run)
                    turns.deliver_mail(run, items, is_rebuilt=True)
                    if claimed.next_seq == 1 and not is_new:
                        turns.rearm(run)
                    turns.resume(run, owed, waiting, history or [])
                return
        ending = ending_of(item for item in items if item.kind == EventKind.RUN_TERMINATED)
        if ending is not None:
            turns.terminate(run, ending)

    # -- warm runs ---------------------------------------------------------------------------

    async def _read_mail(self) -> None:
        """Deliver the mail of some of the warm runs that have any."""
        names = list(self._mail)[:INBOX_RUNS_MAX]
        runs: list[WarmRun] = []
        for run_id in names:
            run = self._cache.get(run_id)
            if run is None:
                # Ours by the store's word and not known here: see what else was missed.
                self._must_recover = True
            elif not (run.frozen or run.has_more):
                # What has more is read on when the part before is written.
                run.reading = True
                runs.append(run)
        held = [run for run in runs if run.held is not None]
        try:
            mail, settled = await self._inbox([run for run in runs if run.held is None])
            if held:
                ids = [run.run_id for run in held]
                mail |= by_run(await self._store.inbox(ids, kinds=HEEDED))
            for run_id in names:
                self._mail.pop(run_id, None)
            began = time.monotonic()
            for run in runs:
                items = mail.get(run.run_id, [])
                for first in range(0, len(items), MAIL_CHUNK):
                    if run.gone or run.frozen:
                        break
                    self._turns.deliver_mail(run, items[first : first + MAIL_CHUNK])
                    if time.monotonic() - began > BLOCK_SECONDS:
                        await asyncio.sleep(0)
                        began = time.monotonic()
                if run not in held:
                    raise_floor(run, items, settled)
            for run in held:
                if run.held is None and not run.gone:
                    # It was resumed: now it takes the rest.
                    self.read_on(run)
        finally:
            for run in runs:
                end_reading(run)

    async def _inbox(self, runs: Sequence[WarmRun]) -> tuple[dict[str, list[InboxItem]], Floor]:
        """The mail of warm runs, beyond what was delivered to them and is not written yet; and up
        to which id no more will come."""
        if not runs:
            return {}, NO_FLOOR
        limit = MAIL_MAX + max(len(run.seen) for run in runs)
        floors = {run.run_id: run.floor for run in runs}
        items, settled = await self._store.mail_after(floors, limit)
        mail = by_run(items)
        for run in runs:
            # A paused run reads on when it is resumed; that word stands before all other mail.
            run.has_more = run.held is None and len(mail.get(run.run_id, ())) >= limit
        return mail, settled

    async def _redo_some(self) -> None:
        """Build some of the runs again that were told to read their mail first."""
        chosen = self._redo[:CLAIM_MAX]
        runs = [run for run in chosen if not run.gone]
        for run in runs:
            run.reading = True
            # What was delivered and not written is to be there again, in its place.
            run.floor = NO_FLOOR
        try:
            histories = await self._load({run.run_id: run.part for run in runs}) if runs else {}
            mail, _ = await self._inbox(runs)
        except BaseException:
            for run in runs:
                end_reading(run)
            raise
        # First, because building one may ask for another round of it.
        self._redo = [run for run in self._redo if run not in chosen]
        for run in runs:
            history = histories.get(run.run_id, [])
            if run.gone:
                continue
            if isinstance(history, StoreError):
                self._turns.park(run, history)
            else:
                self._turns.redo(run, history, mail.get(run.run_id, []))
            end_reading(run)


def raise_floor(run: WarmRun, items: Sequence[InboxItem], settled: Floor) -> None:
    """Begin the next look after what is settled, if all that was found now has been delivered."""
    if run.has_more:
        settled = Floor(settled.server, min(settled.id, items[-1].id))
    is_higher = settled.server != run.floor.server or settled.id > run.floor.id
    if is_higher and all(item.id in run.seen for item in items):
        run.floor = settled


def end_reading(run: WarmRun) -> None:
    """What was read is delivered: rows that a commit deleted meanwhile cannot come again."""
    run.reading = False
    run.seen.difference_update(run.read_back)
    run.read_back.clear()


def is_cold(claimed: ClaimedRun) -> bool:
    """Whether the run's history has to be read before it can go on."""
    return claimed.start is None


def by_run(items: Iterable[InboxItem]) -> dict[str, list[InboxItem]]:
    """Inbox rows by the run they are for, each in order."""
    found: dict[str, list[InboxItem]] = defaultdict(list)
    for item in items:
        found[item.run_id].append(item)
    return found
