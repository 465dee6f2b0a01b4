"""Attempts from the queue: claimed by free slots, run here, answered in batches.

An activity that no owner of its run could start at once is a row that any worker with the right
queue and code may claim. Slots are taken before the claim, so what is claimed starts at once. Its
outcome goes back through the store to whoever owns the run. An attempt's token becomes void when
its workflow cancels it, its run ends, or its time is over; long ones are asked after now and then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from durable.codec import DEFAULT_CODEC, NO_CODEC, is_sealed
from durable.engine.attributes import split_headers
from durable.engine.info import ActivityContext
from durable.engine.retry import options_from_json
from durable.errors import StoreError, StoreUnavailableError
from durable.events import ClaimedActivity
from durable.options import ActivityOptions, seconds
from durable.runtime.answers import Answers, answer
from durable.runtime.attempt import FAILED, RETRY, Attempt, Ending, running_seconds
from durable.runtime.executor import Executor
from durable.runtime.failures import failure_payload, lost_payload
from durable.runtime.metrics import Metrics
from durable.runtime.service import Service
from durable.runtime.sessions import Session
from durable.runtime.slots import Offer
from durable.runtime.wakeup import Backoff, Wakeup
from durable.store.base import Store
from durable.store.clock import StoreClock

BEAT_SECONDS = 1.0
"""How often new heartbeat details are written."""
IDLE_SECONDS = 60.0
"""The pause while no attempt is open: the first one ends it."""
UNREADABLE_SECONDS = 10.0
"""How long an attempt that needs another key waits before it is offered again."""
BEAT_SECONDS_MIN = 0.05
GRACE_SECONDS = 0.5
"""How long an attempt's own worker has to say itself that its time is over."""
CHECK_SECONDS = 5.0
"""How often an attempt without news is asked after: this bounds how late a cancellation arrives."""

log = logging.getLogger("durable.worker")
decode_list = DEFAULT_CODEC.decoder(list[Any])


class AttemptPoller(Service):
    """Claims attempts while there are free slots; the `Source` of what it claimed."""

    name = "attempt-poller"

    def __init__(
        self,
        store: Store,
        session: Session,
        executor: Executor,
        metrics: Metrics,
        clock: StoreClock,
        *,
        poll_max_seconds: float,
        is_stalled: Callable[[], bool],
        on_outcomes: Callable[[], None],
        on_due: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._store = store
        self._session = session
        self._executor = executor
        self._slots = executor.slots
        self._metrics = metrics
        self._clock = clock
        self._is_stalled = is_stalled
        self._on_outcomes = on_outcomes
        self._on_due = on_due
        self._wakeup = Wakeup(poll_max_seconds)
        self._backoff = Backoff()
        self._is_hungry = False
        self._must_recover = False
        self._claimed: dict[tuple[str, int], Attempt] = {}
        self._marking: set[asyncio.Task[None]] = set()
        self.answers = Answers(store, metrics, on_outcomes)
        self.beats = Beats(store, self)

    def wake(self) -> None:
        self._wakeup.hint()

    def hint(self) -> None:
        """There may be something to claim."""
        self._wakeup.hint()

    def slot_freed(self) -> None:
        """A slot became free: claim again, if the last claim wanted more than there were."""
        if self._is_hungry:
            self._is_hungry = False
            self._wakeup.hint()

    @property
    def attempts(self) -> list[Attempt]:
        """Those whose outcome is open."""
        return list(self._claimed.values())

    def cancel(self, run_id: str, ref: int) -> None:
        """The attempt's run cancelled it; its token is void."""
        attempt = self._claimed.pop((run_id, ref), None)
        if attempt is not None:
            self._executor.void(attempt)

    def drop_all(self) -> None:
        """The session is dead: so is every token."""
        for attempt in self.attempts:
            self._executor.void(attempt)
        self._claimed.clear()
        self.answers.forget()

    async def run(self) -> None:
        self.ready()
        while not self.stopping:
            offers = [] if self._is_stalled() else self._slots.offers()
            if not offers:
                self._is_hungry = True
                await self._wakeup.wait_hint(min(0.5, self._slots.seconds_to_room or 0.5))
                continue
            found = more = False
            try:
                await self._recover()
                for offer in offers:
                    limit = self._slots.room(offer)
                    count = await self._take(offer, limit) if limit > 0 else 0
                    found |= count > 0
                    more |= 0 < limit <= count
            except StoreError as error:
                self._metrics.inc("durable_store_errors_total")
                if self._backoff.failures == 0:
                    log.warning("cannot claim activities, will go on trying: %s", error)
                self._must_recover |= isinstance(error, StoreUnavailableError)
                await self._wakeup.wait_hint(self._backoff.next_seconds())
                continue
            self._backoff.reset()
            if more:
                continue
            self._is_hungry |= self._slots.is_short
            await self._wakeup.wait(found=found, at_most=self._slots.seconds_to_room)

    async def _take(self, offer: Offer, limit: int) -> int:
        """Claim attempts and begin them; return how many."""
        session, queue = self._session.id, offer.queues[0]
        claimed: list[ClaimedActivity] = []
        self._slots.hold(queue, limit)
        try:
            names = self._slots.names(offer)
            claimed = await self._store.claim_activities(session, offer.queues, names, limit)
            if session != self._session.id:
                claimed = []
        finally:
            self._slots.let_go(queue, limit - len(claimed))
        if not self._slots.limited.isdisjoint(offer.queues):
            outcome = "all" if len(claimed) >= limit else "some" if claimed else "none"
            self._metrics.inc("durable_limited_claims_total", outcome=outcome)
        for each in claimed:
            self._begin(each)
        return len(claimed)

    async def _recover(self) -> None:
        """Begin what a claim whose outcome is not known has taken: it is ours to run."""
        if not self._must_recover:
            return
        # Those that run here, or have run and are being answered, are known.
        known = self.answers.tokens | {each.token for each in self._claimed.values()}
        _, owned = await self._store.owned(self._session.id)
        self._must_recover = False
        for each in owned:
            if each.token in known or self._executor.definitions.find(each.name) is None:
                continue
            if self._slots.free <= 0:
                self._must_recover = True
                return
            self._slots.hold(each.queue, 1)
            self._begin(each)

    def _begin(self, each: ClaimedActivity) -> None:
        key = (each.run_id, each.ref)
        if not self._slots.use_held(each.name, each.queue):
            self.answers.put(answer(each, Ending(RETRY, None, count_attempt=False)))
            return
        if each.unreadable is not None or is_sealed(each.input):
            # For a worker that can. The attempt has not begun, so it does not count.
            log.error("activity %s of run %s cannot be read here: %s",
                      each.name, each.run_id, each.unreadable or NO_CODEC)  # fmt: skip
            self._slots.give_back(each.name, each.queue)
            pause_us = round(UNREADABLE_SECONDS * 1e6)
            each.details = None
            self.answers.put(answer(each, Ending(RETRY, None, pause_us, count_attempt=False)))
            return
        options = options_from_json(each.options.decode())
        if self._is_too_late(each, options):
            text = f"schedule-to-start timeout of activity {each.name}"
            failure = failure_payload(TimeoutError(text), each.attempt)
            self._slots.give_back(each.name, each.queue)
            self._metrics.inc("durable_activity_attempts_total", outcome="timed_out")
            self.answers.put(answer(each, Ending(FAILED, failure)))
            return
        definition = self._executor.definition(each.name)
        traits = definition.traits
        if traits.is_at_most_once and each.details is not None:
            # A worker marked it as begun, and is gone.
            self._slots.give_back(each.name, each.queue)
            failure = lost_payload(each.name, each.attempt)
            self.answers.put(answer(each, Ending(FAILED, failure)))
            return
        headers, input = split_headers(each.input)
        context = ActivityContext(
            name=each.name,
            attempt=each.attempt,
            workflow_id=each.workflow_id,
            run_id=each.run_id,
            workflow_type=each.workflow_type,
            queue=each.queue,
            ref=each.ref,
            details=tuple(decode_list(each.details)) if each.details else (),
            scheduled_us=each.scheduled_us,
            task_token=token_text(each) if traits.completes_later else "",
            headers=headers,
        )
        attempt = Attempt(
            self,
            definition,
            context,
            input=input,
            options=options,
            options_json=each.options,
            token=each.token,
        )
        attempt.details = each.details
        context.on_heartbeat = attempt.beat
        self._claimed[key] = attempt
        if attempt.beat_limit is not None or len(self._claimed) == 1:
            self.beats.wake()
        limit = running_seconds(options)
        if limit is not None:
            # The database times it out should this worker not, which knows better why.
            self._on_due(self._clock.now_us() + round((limit + GRACE_SECONDS) * 1e6))
        if traits.is_at_most_once:
            marking = asyncio.create_task(self._mark(attempt))
            self._marking.add(marking)
            marking.add_done_callback(self._marking.discard)
        else:
            self._executor.start(attempt)

    async def _mark(self, attempt: Attempt) -> None:
        """Record that an at-most-once attempt begins, then begin it."""
        try:
            is_valid = await self._store.heartbeat_activity(
                attempt.run_id, attempt.ref, attempt.token, b"[]"
            )
        except StoreError:
            is_valid = True
            # Perhaps it is recorded; then the next claim takes it for begun. It never was twice.
            self._claimed.pop((attempt.run_id, attempt.ref), None)
            self.answers.put(attempt.outcome(Ending(RETRY, None, count_attempt=False)))
        if is_valid and self._claimed.get((attempt.run_id, attempt.ref)) is attempt:
            self._executor.start(attempt)
        else:
            self._slots.give_back(attempt.name, attempt.context.queue)
            if not is_valid:
                self.cancel(attempt.run_id, attempt.ref)

    def _is_too_late(self, each: ClaimedActivity, options: ActivityOptions) -> bool:
        if options.schedule_to_start_timeout is None or each.attempt > 1:
            return False
        limit = seconds(options.schedule_to_start_timeout, "schedule_to_start_timeout")
        return self._clock.now_us() > each.scheduled_us + round(limit * 1e6)

    def ended(self, attempt: Attempt, ending: Ending) -> None:
        """See `Source`."""
        key = (attempt.run_id, attempt.ref)
        if self._claimed.get(key) is attempt:
            del self._claimed[key]
            if attempt.is_detached:
                # Somebody else answers for it; only the database knows when its time is over.
                limit = running_seconds(attempt.options)
                if limit is not None:
                    passed = time.monotonic() - attempt.started_at
                    self._on_due(self._clock.now_us() + round((limit - passed) * 1e6))
                return
            if attempt.is_recorded:
                self._on_outcomes()
            else:
                self.answers.put(attempt.outcome(ending))

    def released(self, attempt: Attempt) -> None:
        """See `Source`."""
        self.slot_freed()


def token_text(each: ClaimedActivity) -> str:
    """The task token by which others name this attempt."""
    return f"{each.run_id}:{each.ref}:{each.attempt}:{each.token}"


class Beats(Service):
    """Writes heartbeat details of claimed attempts, and learns which of them are void."""

    name = "beats"

    def __init__(self, store: Store, poller: AttemptPoller) -> None:
        super().__init__()
        self._store = store
        self._poller = poller
        self._wakeup = Wakeup(BEAT_SECONDS)
        self._written: dict[Attempt, tuple[float, bytes | None]] = {}

    def wake(self) -> None:
        self._wakeup.hint()

    async def run(self) -> None:
        self.ready()
        while not self.stopping:
            open_attempts = self._poller.attempts
            if not open_attempts:
                self._written.clear()
                await self._wakeup.wait_hint(IDLE_SECONDS)
                continue
            limits = [each.beat_limit / 3 for each in open_attempts if each.beat_limit is not None]
            await self._wakeup.wait_hint(max(min([BEAT_SECONDS, *limits]), BEAT_SECONDS_MIN))
            open_attempts = self._poller.attempts
            kept = set(open_attempts)
            self._written = {each: mark for each, mark in self._written.items() if each in kept}
            for attempt in open_attempts:
                if self.stopping:
                    return
                await self._beat(attempt)

    async def _beat(self, attempt: Attempt) -> None:
        now = time.monotonic()
        details = attempt.details
        written_at, written = self._written.get(attempt, (attempt.started_at, None))
        is_news = details is not None and details != written
        if attempt.beat_limit is not None:
            # The database has the limit too: it must hear of every beat, with news or without.
            is_news = is_news or attempt.beaten_at > written_at
        if not is_news and now - written_at < CHECK_SECONDS:
            return
        try:
            is_valid = await self._store.heartbeat_activity(
                attempt.run_id, attempt.ref, attempt.token, details or b"[]"
            )
        except StoreError:
            return
        self._written[attempt] = (now, details)
        if not is_valid:
            self._poller.cancel(attempt.run_id, attempt.ref)
