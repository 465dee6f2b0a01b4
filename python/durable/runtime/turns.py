"""Turns: what happens to a warm run in memory.

A turn begins with a fact (an activity's outcome, a due timer, mail), runs the workflow code until
it waits again, and ends in a commit. Everything here is synchronous, on the loop thread; the
`Committer` does the writing and reports the verdict. Nothing takes effect outside this process
before its commit is accepted, with one exception: the activities of a run's very first turn, whose
only cause (the start) is durable already, begin at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from durable.codec import NO_CODEC, is_sealed
from durable.engine.attributes import with_headers
from durable.engine.execution import Execution, ScheduledActivity
from durable.engine.info import NO_HEADERS, ActivityContext
from durable.engine.registry import Registry
from durable.engine.retry import options_from_json
from durable.engine.turn import cancelled_refs
from durable.errors import StoreError, UnreadablePayloadError
from durable.events import (
    ClaimedRun,
    Closing,
    EventKind,
    InboxItem,
    MessageKind,
    QueuedActivity,
    RunCommit,
    TimerKind,
)
from durable.runtime.attempt import Attempt, Ending, waiting_seconds
from durable.runtime.building import build, queued, shared_options, starts_here
from durable.runtime.committer import Committer
from durable.runtime.executor import Executor
from durable.runtime.failures import cancelled_payload
from durable.runtime.metrics import Metrics
from durable.runtime.news import News
from durable.runtime.parking import ParkingLot
from durable.runtime.pausing import ENDINGS, ending_of, may_leave, says_paused, words_of
from durable.runtime.timers import TimerHeap
from durable.runtime.warm import Cache, Fact, WarmRun
from durable.store.clock import StoreClock

TIMER_FIRED = int(EventKind.TIMER_FIRED)
ACTIVITY_FAILED = int(EventKind.ACTIVITY_FAILED)
LEAVE_AT_ONCE = 3
LEAVE_SECONDS, LEAVE_SECONDS_MAX = 0.005, 1.0
"""How soon a run that cannot leave for a message on its way tries again: a few times at once."""
WAITING_MAX = 50
"""Runs that wait to be written above which due timers wait, so that others need not wait long."""


class Turns:
    """The runs' side of a worker: implements `CommitHandler` and, for eager attempts, `Source`."""

    def __init__(
        self,
        *,
        registry: Registry,
        cache: Cache,
        cache_bytes: int,
        clock: StoreClock,
        executor: Executor,
        parking: ParkingLot,
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._cache = cache
        self._cache_bytes = cache_bytes
        self._clock = clock
        self._executor = executor
        self._parking = parking
        self._metrics = metrics
        self.timers = TimerHeap(cache, clock, self._fire, self._is_busy)
        self.committer: Committer
        """Set by the worker: the two need each other."""
        self.on_unread: Callable[[WarmRun], None]
        """Called for a run that must read its mail again before it may close."""
        self.on_more: Callable[[WarmRun], None]
        """Called when a run has written what it read and has more mail."""
        self.on_cleared: Callable[[], None]
        """Called when a run has written something since a worker died with it."""
        self.on_stale: Callable[[], None]
        """Called when a commit was refused: perhaps the whole session is dead."""
        self.on_news: Callable[[News], None]
        """Called after a flush that made work for others, or answered somebody."""
        self.on_slot: Callable[[], None]
        """Called when a slot became free."""
        self.on_room: Callable[[], None]
        """Called after a flush: fewer runs wait for one."""
        self.on_due: Callable[[int], None]
        """Called with the time at which a row that was written is due."""
        self.on_cancelled: Callable[[str, int], None]
        """Called for an activity whose queue row is gone because its run cancelled it."""
        self.drop_count = 0
        """How many runs were dropped so far: tells whether what the store said is still so."""
        self._news = News()

    # -- making a run warm -------------------------------------------------------------------

    def open(self, claimed: ClaimedRun) -> WarmRun:
        """Take in a claimed run; its code is run by `replay`."""
        old = self._cache.get(claimed.run_id)
        if old is not None:
            self.drop(old)
        run = WarmRun(claimed)
        run.frozen = True
        self._cache.add(run)
        return run

    def replay(self, run: WarmRun, batches: list[bytes]) -> bool:
        """Build the run's coroutine from its history; False when it had to be parked."""
        try:
            definition = self._registry.workflow(run.workflow_type)
            execution = Execution(
                definition,
                run.run_id,
                run.workflow_id,
                queue=run.queue,
                codec=definition.codec,
                registry=self._registry,
            )
            execution.load(batches, run.head_hash)
        except BaseException as error:
            # Whatever workflow code raises out of the engine, the worker goes on.
            self.park(run, error)
            return False
        run.execution = execution
        run.frozen = False
        self._cache.touch(run, execution.bytes_estimate)
        for timer in execution.pending_timers():
            self.timers.push(run, timer.ref, timer.due_us)
        return True

    def begin(self, run: WarmRun) -> None:
        """Start what a run's very first turn asked for, whose only cause is durable already."""
        execution = run.execution
        assert execution is not None
        # Has it recorded something of its own (a side effect)? That may be in the arguments of
        # these activities, which must see the same again: so it has to be durable first.
        if execution.event_count == 1 + execution.pending_count:
            for each in execution.pending_activities():
                if starts_here(each, self._executor.slots.reserve):
                    run.early.add(each.ref)
                    self._start(run, each)
        self._settle(run)

    def owed(self, run: WarmRun) -> list[ScheduledActivity]:
        """The activities that the run waits for now."""
        execution = run.execution
        if execution is None:
            return []
        # What its code asked for beyond its history is started by the commit that records it.
        pending = execution.pending_activities()
        return [each for each in pending if each.ref <= execution.recorded]

    def rearm(self, run: WarmRun) -> None:
        """Have the timers of a copied history written: what was copied has no rows."""
        execution = run.execution
        if execution is not None and not execution.is_finished:
            timers = execution.pending_timers()
            run.rearmed = [each for each in timers if each.ref <= execution.recorded]

    def resume(
        self,
        run: WarmRun,
        owed: list[ScheduledActivity],
        waiting: set[int],
        batches: list[bytes],
    ) -> None:
        """Start again what was running when the run lost its last owner.

        ``owed`` are the activities that its recorded history, ``batches``, waits for; those that
        its mail answered since, and those in ``waiting``, which have a row, are not to be started.
        Those that the history asks to stop are answered as cancelled.
        """
        owed = [each for each in owed if each.ref not in waiting]
        if any(each.options.wait_cancel for each in owed):
            stopped = cancelled_refs(run.run_id, batches)
            for each in owed:
                if each.ref in stopped:
                    payload = cancelled_payload(each.name, 0)
                    self._deliver(run, Fact(ACTIVITY_FAILED, each.ref, None, None, payload, 0))
            owed = [each for each in owed if each.ref not in stopped]
        execution = run.execution
        if execution is None:
            return
        pending = {each.ref for each in execution.pending_activities()} if owed else set()
        for each in owed:
            if each.ref not in pending:
                continue
            run.early.add(each.ref)
            if starts_here(each, self._executor.slots.reserve):
                self._start(run, each)
            else:
                run.activities.append(queued(each, run))
        self._settle(run)

    def _settle(self, run: WarmRun) -> None:
        # Nothing of it runs here, so it is not what kills workers. (What runs has to end first.)
        run.settles = run.crashes > 0 and not run.running
        self.committer.mark(run)

    # -- facts -------------------------------------------------------------------------------

    def deliver_mail(
        self, run: WarmRun, items: list[InboxItem], *, is_rebuilt: bool = False
    ) -> None:
        """Deliver inbox rows that were not delivered yet, in their order.

        ``is_rebuilt``: the run was just built from its history and has heard of nothing since.
        What then follows on a row that ends the run changes nothing any more, and is read with
        it; but when a successor follows, it stays in the inbox for that.
        """
        self._heed(run, items, is_rebuilt)
        ended = run.execution is not None and run.execution.is_finished and not is_rebuilt
        for item in items:
            if item.id in run.seen:
                continue
            execution = run.execution
            if run.frozen or execution is None or ended or execution.goes_on:
                # It stays in the inbox; a closing commit that misses it comes back UNREAD.
                return
            if run.held is not None and item.kind not in ENDINGS:
                # It stays in the inbox until the run is resumed.
                continue
            if item.unreadable is not None or is_sealed(item.payload):
                if item.kind != MessageKind.QUERY:
                    self.park(run, item.unreadable or UnreadablePayloadError(NO_CODEC))
                    return
                # No part of the run: whoever asks with another key gets no answer.
                run.seen.add(item.id)
                run.consumed.append(item.id)
                self.committer.mark(run)
                continue
            run.seen.add(item.id)
            fact = Fact(item.kind, item.ref, item.name, item.meta, item.payload, item.id)
            self._deliver(run, fact)

    def _is_busy(self) -> bool:
        return self.committer.waiting >= WAITING_MAX

    def _heed(self, run: WarmRun, items: list[InboxItem], is_rebuilt: bool) -> None:
        """Act on the word, if there is one, that the run was paused or resumed.

        Before all other mail, wherever it stands: that may end the run, whose commit is refused
        for as long as the word is unread.
        """
        words = [each for each in words_of(items) if each.id not in run.seen]
        execution = run.execution
        if not words or run.frozen or execution is None:
            return
        if execution.is_finished and not is_rebuilt:
            return
        if execution.is_finished and says_paused(words[0]):
            # Its history leads to its end by itself. The word stays where it is: it keeps the run
            # from closing, now and when it is built again.
            ending = ending_of(items)
            if ending is None:
                self.release(run)
            else:
                self.terminate(run, ending)
            return
        run.seen.update(each.id for each in words)
        run.consumed += [each.id for each in words]
        self.committer.mark(run)
        if says_paused(words[0]):
            run.held = run.held or []
        elif run.held is not None:
            run.facts = run.held + run.facts
            run.held = None
            self._start_over(run)

    def _fire(self, run: WarmRun, ref: int) -> None:
        if run.held is not None:
            # Its row stays due, and becomes mail.
            return
        run.timers_done.append(ref)
        self._deliver(run, Fact(TIMER_FIRED, ref, None, None, None, 0))

    def _deliver(self, run: WarmRun, fact: Fact) -> None:
        if run.held is not None and fact.kind not in ENDINGS:
            run.held.append(fact)
            self.committer.mark(run)
            return
        run.facts.append(fact)
        execution = run.execution
        if run.frozen or execution is None or (execution.is_finished and not fact.item_id):
            # Kept: should the commit that ends the run be refused, this is delivered then.
            return
        try:
            response = execution.deliver(
                fact.kind, fact.ref, self._clock.now_us(), fact.name, fact.meta, fact.payload
            )
        except BaseException as error:
            self.park(run, error)
            return
        if response is not None:
            run.responses.append(response)
        if fact.item_id:
            run.consumed.append(fact.item_id)
        if execution.is_dead:
            # A query did what only commands may do. It is answered; the run starts over.
            run.facts.pop()
            self._start_over(run)
            return
        self.committer.mark(run)

    def _start_over(self, run: WarmRun) -> None:
        """Build the run again from its history, once no commit of it is in flight."""
        run.frozen = True
        if run.flight is None:
            self.on_unread(run)

    def redo(self, run: WarmRun, batches: list[bytes], mail: list[InboxItem]) -> None:
        """Build the run again after UNREAD: its unread mail first, then what was not committed."""
        # What was read before and not committed is in the mail again, in its place.
        unread = {item.id for item in mail}
        again = {fact.item_id for fact in run.facts}
        run.seen -= again & unread
        run.consumed = [each for each in run.consumed if each not in again]
        facts = [fact for fact in run.facts if fact.item_id not in unread]
        run.facts = []
        run.timers_done.clear()
        run.timers.clear()
        if not self.replay(run, batches):
            return
        self.deliver_mail(run, mail, is_rebuilt=True)
        for fact in facts:
            if fact.kind == TIMER_FIRED and not fact.item_id and run.held is None:
                run.timers.pop(fact.ref, None)
                run.timers_done.append(fact.ref)
            self._deliver(run, fact)
        self.committer.mark(run)

    # -- commits (CommitHandler) -------------------------------------------------------------

    def build(self, run: WarmRun) -> RunCommit | None:
        """See `CommitHandler`."""
        commit = build(run, self._executor.slots.reserve)
        if commit is None and may_leave(run):
            run.release = True
            self._freeze(run)
            commit = build(run, self._executor.slots.reserve)
        return commit

    def accepted(self, run: WarmRun) -> None:
        """See `CommitHandler`."""
        flight = run.flight
        assert flight is not None
        run.flight = None
        commit = flight.commit
        run.settles = False
        if run.crashes and not (commit.batch is not None and run.next_seq == 1):
            # The first batch only says what the start caused: nothing that may crash has run yet.
            run.crashes = 0
            self.on_cleared()
        run.unread_count = 0
        if commit.batch is not None:
            run.parks = 0
            run.next_seq += 1
            run.head_hash = commit.head_hash
            run.early.clear()
            self._metrics.inc("durable_workflow_tasks_total", outcome="committed")
        run.rearmed.clear()
        self._news.add(commit)
        for activity in commit.activities:
            self._expect(activity)
        if commit.closing is not None or commit.park is not None or commit.release:
            for ref in flight.cancelled:
                self.on_cancelled(run.run_id, ref)
            self.drop(run)
            return
        if commit.consumed:
            if run.reading:
                run.read_back += commit.consumed
            else:
                run.seen.difference_update(commit.consumed)
            if run.has_more and not run.consumed:
                run.has_more = False
                self.on_more(run)
        for timer in commit.timers:
            self.on_due(timer.due_us)
            if timer.kind == TimerKind.WORKFLOW and timer.ref not in run.timers_done:
                self.timers.push(run, timer.ref, timer.due_us)
        for each in flight.starts:
            self._start(run, each)
        for ref in flight.cancelled:
            self._cancel(run, ref)
        execution = run.execution
        if execution is not None:
            self._cache.touch(run, execution.bytes_estimate)
            if run.frozen:
                self._start_over(run)
            elif run.held is not None:
                self.committer.mark(run)

    def _expect(self, activity: QueuedActivity) -> None:
        """A queued activity is due when its wait is over, and when it has waited for too long."""
        if activity.delay_us:
            self.on_due(self._clock.now_us() + activity.delay_us)
        limit = waiting_seconds(options_from_json(activity.options.decode()))
        if limit is not None:
            self.on_due(self._clock.now_us() + activity.delay_us + round(limit * 1e6))

    def stale(self, run: WarmRun) -> None:
        """See `CommitHandler`."""
        self._metrics.inc("durable_stale_commits_total")
        self._metrics.inc("durable_workflow_tasks_total", outcome="stale")
        self.drop(run)
        self.on_stale()

    def unread(self, run: WarmRun) -> None:
        """See `CommitHandler`."""
        self._metrics.inc("durable_workflow_tasks_total", outcome="unread")
        flight = run.flight
        assert flight is not None
        run.flight = None
        run.unread_count += 1
        if flight.commit.release or flight.commit.park is not None:
            # A message is on its way, whose sender still takes us for the owner: after that.
            run.activities = flight.commit.activities + run.activities
            self._leave_later(run)
            return
        run.facts = flight.facts + run.facts
        refused = {fact.item_id for fact in run.facts}
        # What is consumed without being a fact (an answered query) stays so.
        run.consumed = [each for each in flight.commit.consumed + run.consumed
                        if each not in refused]  # fmt: skip
        # A commit that closes holds no newly scheduled ones: these are owed whatever comes.
        run.activities = flight.commit.activities + run.activities
        run.frozen = True
        self.on_unread(run)

    def _leave_later(self, run: WarmRun) -> None:
        if run.unread_count <= LEAVE_AT_ONCE:
            self.committer.mark(run)
            return
        # Its sender keeps a transaction open: that of a user, perhaps.
        pause = min(LEAVE_SECONDS * 2.0 ** min(run.unread_count, 10), LEAVE_SECONDS_MAX)
        asyncio.get_running_loop().call_later(pause, self._leave_if_here, run)

    def _leave_if_here(self, run: WarmRun) -> None:
        if not run.gone:
            self.committer.mark(run)

    def refused(self, run: WarmRun, error: StoreError) -> None:
        """See `CommitHandler`."""
        self._metrics.inc("durable_workflow_tasks_total", outcome="failed")
        self._return_starts(run)
        flight, run.flight = run.flight, None
        run.terminate = None
        if flight is not None and flight.commit.park is not None:
            # Not even the reason can be written: let the lease decide.
            self.drop(run)
            return
        self.park(run, error)

    def flushed(self, now_us: int, *, told: bool) -> None:
        """See `CommitHandler`."""
        if told:
            self._news.closed.clear()
            self._news.answers = False
        metrics = self._metrics
        metrics.set("durable_cache_runs", len(self._cache))
        metrics.set("durable_cache_bytes", self._cache.bytes)
        if self._cache.bytes > self._cache_bytes:
            self.evict_surplus()
        self.on_room()
        if self._news:
            news, self._news = self._news, News()
            self.on_news(news)

    def _return_starts(self, run: WarmRun) -> None:
        if run.flight is not None:
            for each in run.flight.starts:
                self._executor.slots.give_back(each.name, each.queue)

    # -- leaving -----------------------------------------------------------------------------

    def evict_surplus(self) -> None:
        """Give up idle runs until the cache is within its budget."""
        for run in self._cache.idle_surplus(self._cache_bytes):
            self._metrics.inc("durable_cache_evictions_total")
            self.release(run)

    def release(self, run: WarmRun) -> None:
        """Give a run up with the next flush; somebody else may claim it then."""
        run.release = True
        self._freeze(run)
        self.committer.mark(run)

    def park(self, run: WarmRun, error: BaseException) -> None:
        """Set a run aside with the next flush."""
        run.park, pause_us = self._parking.park(run, error)
        run.unpark_at_us = self._clock.now_us() + pause_us if pause_us else None
        self._metrics.inc("durable_workflow_tasks_total", outcome="parked")
        self._freeze(run)
        self.committer.mark(run)

    def terminate(self, run: WarmRun, closing: Closing) -> None:
        """End a run whose code is not to run, with the next flush."""
        run.terminate = closing
        self.committer.mark(run)

    def _freeze(self, run: WarmRun) -> None:
        run.frozen = True
        run.timers.clear()
        if run.execution is not None:
            run.execution.evict()
            run.execution = None

    def drop(self, run: WarmRun) -> None:
        """Forget a run that is not ours any more, and everything that was going on for it."""
        self._cache.remove(run)
        self.drop_count += 1
        self._return_starts(run)
        run.flight = None
        for attempt in list(run.running.values()):
            self._executor.void(attempt)
        run.running.clear()
        self._freeze(run)

    def drop_all(self) -> None:
        """Forget every run: the session is dead."""
        for run in self._cache:
            self.drop(run)
        self.timers.clear()

    # -- eager activities (Source) -----------------------------------------------------------

    def _start(self, run: WarmRun, each: ScheduledActivity) -> None:
        context = ActivityContext(
            name=each.name,
            attempt=1,
            workflow_id=run.workflow_id,
            run_id=run.run_id,
            workflow_type=run.workflow_type,
            queue=each.queue,
            ref=each.ref,
            scheduled_us=each.scheduled_us,
            headers=run.execution.context.headers if run.execution is not None else NO_HEADERS,
        )
        attempt = Attempt(
            self,
            self._executor.definition(each.name),
            context,
            input=each.input,
            options=each.options,
            options_json=each.options_json.encode() or b"{}",
            fence=run.fence,
        )
        context.on_heartbeat = attempt.beat
        run.running[each.ref] = attempt
        self._executor.start(attempt)

    def _cancel(self, run: WarmRun, ref: int) -> None:
        attempt = run.running.get(ref)
        if attempt is not None:
            self._executor.cancel(attempt)
            return
        self.on_cancelled(run.run_id, ref)
        # It was in the queue table and is gone from there: nobody else will answer for it.
        payload = cancelled_payload("(queued)", 0)
        self._deliver(run, Fact(ACTIVITY_FAILED, ref, None, None, payload, 0))

    def ended(self, attempt: Attempt, ending: Ending) -> None:
        """See `Source`: the outcome of an eager attempt becomes a fact of its run."""
        run = self._cache.get(attempt.run_id)
        if run is None or run.running.pop(attempt.ref, None) is not attempt:
            return
        if not ending.is_retry:
            self._deliver(run, Fact(ending.kind, attempt.ref, None, None, ending.payload, 0))
            return
        context = attempt.context
        run.activities.append(
            QueuedActivity(
                ref=attempt.ref,
                name=attempt.name,
                queue=context.queue,
                priority=attempt.options.priority,
                attempt=attempt.number + (1 if ending.count_attempt else 0),
                input=with_headers(attempt.input, context.headers),
                options=shared_options(run, attempt.options_json),
                delay_us=ending.delay_us,
                last_failure=ending.payload,
                details=attempt.details,
                scheduled_us=context.scheduled_us,
            )
        )
        self.committer.mark(run)

    def released(self, attempt: Attempt) -> None:
        """See `Source`."""
        self.on_slot()
