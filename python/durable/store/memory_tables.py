"""The tables of the in-memory store, and the operations that the SQL functions of that name do.

Plain, slow and obvious on purpose: it is what the PostgreSQL store is compared with. Nothing here
waits, so every method is one transaction. docs/internals/database.md says what the tables are for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from durable.errors import StoreError
from durable.events import (
    DYNAMIC,
    ClaimedActivity,
    ClaimedRun,
    EventKind,
    IdReuse,
    InboxItem,
    Message,
    MessageKind,
    NewRun,
    QueuedActivity,
    QueueDepth,
    Response,
    RunState,
    RunView,
    SessionInfo,
    Started,
    TimerKind,
    TypeInfo,
    stand_in,
)
from durable.store.memory_queues import Buckets, KeyRooms, Shares
from durable.store.pages import OpenRuns

RUN, ACTIVITY = 1, 2
"""Kinds of tasks."""
DELAYED = 2
"""An open run that must not start yet."""
WAITS, QUEUED, CLAIMED, HELD = 0, 1, 2, 3
"""States of activities; held is queued, but for a place of its fairness key."""
LATE = 1000
"""So many places behind the last a run stands whose time has come."""
DOOMS = (EventKind.CANCEL_REQUESTED, EventKind.RUN_TERMINATED, EventKind.RUN_TIMED_OUT)
"""Mail that a delayed run is claimed for: it ends without having begun."""
ENDINGS = (EventKind.RUN_TERMINATED, EventKind.RUN_TIMED_OUT)
MOVES_ON = (
    EventKind.SIGNAL_RECEIVED,
    EventKind.CANCEL_REQUESTED,
    EventKind.RUN_TERMINATED,
    MessageKind.QUERY,
    MessageKind.UPDATE_REQUESTED,
)
"""What a successor takes over from an inbox."""


@dataclass
class Run:
    """A row of ``run``, with its history."""

    start: NewRun
    created_us: int
    state: int
    batches: list[bytes]
    head_hash: int
    search: bytes | None
    session: int | None = None
    fence: int = 0
    flush: int = 0
    crashes: int = 0
    parks: int = 0
    park: bytes | None = None
    pause: bytes | None = None
    closed_us: int | None = None
    result: bytes | None = None
    failure: bytes | None = None

    @property
    def run_id(self) -> str:
        return self.start.run_id

    @property
    def shown_state(self) -> RunState:
        """As clients see it."""
        if self.pause is not None:
            return RunState.PAUSED
        return RunState.RUNNING if self.state == DELAYED else RunState(self.state)

    @property
    def is_ready(self) -> bool:
        """Whether any message makes it claimable."""
        return self.state == RunState.RUNNING and self.pause is None

    def claimed(self) -> ClaimedRun:
        """As a claim returns it."""
        new = self.start
        return ClaimedRun(
            new.run_id,
            new.workflow_id,
            new.workflow_type,
            new.queue,
            new.version,
            self.fence,
            len(self.batches),
            self.head_hash,
            1,
            self.crashes,
            new.parent_run_id,
            new.parent_ref,
            self.created_us,
            is_paused=self.pause is not None,
            parks=self.parks,
        )

    def view(self, *, full: bool = True) -> RunView:
        """As a client sees it."""
        new = self.start
        return RunView(
            new.run_id,
            new.workflow_id,
            new.workflow_type,
            new.queue,
            new.version,
            self.shown_state,
            self.created_us,
            self.closed_us,
            len(self.batches),
            self.head_hash,
            1,
            self.result if full else None,
            (self.pause or self.park or self.failure) if full else None,
            self.search,
            self.session,
            self.fence,
        )


@dataclass
class Task:
    """A wake token of a run, or a claimable attempt."""

    id: int
    kind: int
    queue: str
    priority: int
    type: str
    run_id: str
    ref: int = 0
    session: int | None = None
    place: int = 0
    """Where it stands in its queue, among those of its priority."""

    def __post_init__(self) -> None:
        self.place = self.place or self.id


@dataclass
class Activity:
    """A row of ``activity``."""

    run_id: str
    made: QueuedActivity
    attempt: int
    scheduled_us: int
    last_failure: bytes | None
    details: bytes | None
    state: int = WAITS
    session: int | None = None
    token: int | None = None
    started_us: int | None = None
    crashes: int = 0
    policy: dict[str, Any] = field(default_factory=dict)

    @property
    def fairness_key(self) -> str | None:
        """Whose turn it takes in a queue that is shared by keys."""
        return self.policy.get("fairness_key")

    def limit_us(self, name: str) -> int | None:
        """A time limit of the options in microseconds."""
        seconds = self.policy.get(name)
        return None if seconds is None else round(float(seconds) * 1_000_000)

    def due_us(self, queued_us: int) -> int | None:
        """When the attempt is over its time: the earliest of its limits, or None."""
        limits = [(self.scheduled_us, "schedule_to_close")]
        if self.started_us is None:
            limits.append((queued_us, "schedule_to_start"))
        else:
            limits.append((self.started_us, "start_to_close"))
            limits.append((self.started_us, "heartbeat"))
        due = [since + limit for since, n in limits if (limit := self.limit_us(n)) is not None]
        return min(due, default=None)

    def backoff_us(self) -> int | None:
        """The wait before the next attempt, without jitter; None when there is none left."""
        retry = self.policy.get("retry") or {}
        if retry.get("attempts") is not None and self.attempt >= retry["attempts"]:
            return None
        power = float(retry.get("backoff", 2)) ** min(self.attempt - 1, 60)
        wait = min(float(retry.get("max", 60)), float(retry.get("initial", 1)) * power)
        return round(wait * 1_000_000)

    def claimed(self, run: Run) -> ClaimedActivity:
        """As a claim returns it."""
        assert self.token is not None
        return ClaimedActivity(
            self.run_id,
            run.start.workflow_id,
            run.start.workflow_type,
            self.made.ref,
            self.made.name,
            self.made.queue,
            self.attempt,
            self.token,
            self.made.input,
            self.made.options,
            self.last_failure,
            self.details,
            self.scheduled_us,
        )


class Tables:
    """Every row there is."""

    def __init__(self, clock_us: Callable[[], int]) -> None:
        self.clock_us = clock_us
        self.runs: dict[str, Run] = {}
        self.by_workflow_id: dict[str, Run] = {}
        self.closed: dict[str, Run] = {}
        self.tasks: dict[int, Task] = {}
        self.timers: dict[tuple[str, int, int], int] = {}
        self.inbox: dict[str, list[InboxItem]] = defaultdict(list)
        self.requests: dict[str, set[str]] = defaultdict(set)
        self.activities: dict[tuple[str, int], Activity] = {}
        self.sessions: dict[int, tuple[SessionInfo, int]] = {}
        self.suspects: dict[int, str | None] = {}
        self.responses: dict[str, tuple[Response, int]] = {}
        self.types: dict[tuple[str, str], TypeInfo] = {}
        self.buckets = Buckets(clock_us)
        self.shares = Shares()
        self.last_id = 0

    def next_id(self) -> int:
        """A fresh number, larger than all before."""
        self.last_id += 1
        return self.last_id

    def wake(self, run_id: str, *, shared: bool = False, late: bool = False) -> None:
        """Insert a wake token for whoever owns the run now; ``late``: its time has come."""
        run = self.runs.get(run_id)
        if run is not None:
            new = run.start
            session = None if shared else run.session
            token = Task(self.next_id(), RUN, new.queue, new.priority, new.workflow_type, run_id)
            token.session = session
            token.place += LATE * late
            self.tasks[token.id] = token

    def deliver(
        self,
        run_id: str,
        kind: int,
        ref: int = 0,
        payload: bytes | None = None,
        name: str | None = None,
        *,
        late: bool = False,
    ) -> None:
        """Put a fact into a run's inbox, with a token. Nothing happens when the run is gone."""
        if run_id in self.runs:
            item = InboxItem(
                self.next_id(), run_id, kind, ref, name, None, payload, self.clock_us()
            )
            self.inbox[run_id].append(item)
            self.wake(run_id, late=late)

    def tell_owner(self, run_id: str, word: str) -> None:
        """Say that a run was paused or resumed, before all other mail."""
        item = InboxItem(
            -self.next_id(), run_id, MessageKind.PAUSE, 0, word, None, None, self.clock_us()
        )
        self.inbox[run_id].insert(0, item)
        self.wake(run_id)

    def start(self, new: NewRun) -> Started:
        """Start one run, or say which run has the id."""
        holder = self.holder(new)
        if holder is not None:
            held = holder.start
            return Started(
                held.run_id == new.run_id,
                held.run_id,
                holder.view().state,
                held.workflow_id,
                holder.created_us,
            )
        known = self.by_workflow_id.get(new.workflow_id)
        if known is None:
            known = self.blocker(new)
        if known is not None:
            return Started(known.run_id == new.run_id, known.run_id, known.view().state)
        if new.run_id in self.runs or new.run_id in self.closed:
            raise StoreError("a run id was used before: every start needs a fresh one")
        now = self.clock_us()
        due = new.start_at_us if new.start_at_us is not None else now + new.start_delay_us
        state = DELAYED if due > now else RunState.RUNNING
        run = Run(new, now, state, [new.batch], new.head_hash, new.search)
        self.runs[new.run_id] = self.by_workflow_id[new.workflow_id] = run
        if state == DELAYED:
            self.timers[new.run_id, 0, TimerKind.START] = due
        else:
            self.wake(new.run_id)
        if new.run_timeout_us is not None:
            over = max(due, now) + new.run_timeout_us
            self.timers[new.run_id, 0, TimerKind.RUN_TIMEOUT] = over
        if new.execution_timeout_us is not None:
            over = max(due, now) + new.execution_timeout_us
            self.timers[new.run_id, 0, TimerKind.EXECUTION_TIMEOUT] = over
        return Started(True, new.run_id)

    def holder(self, new: NewRun) -> Run | None:
        """The open run that holds the key of this start."""
        for run in self.runs.values():
            held = run.start
            if (held.queue, held.workflow_type) == (new.queue, new.workflow_type) and (
                (new.dedup_key is not None and held.dedup_key == new.dedup_key)
                or (new.debounce_key is not None and held.debounce_key == new.debounce_key)
            ):
                return run
        return None

    def replace_start(self, new: NewRun) -> bool:
        """Give a debounced run another input and start time, if it has not begun."""
        run = self.runs.get(new.run_id) or self.closed.get(new.run_id)
        if run is None:
            return False
        ends = any(item.kind in DOOMS for item in self.inbox[new.run_id])
        is_free = run.start.debounce_key is None
        if is_free or run.state != DELAYED or run.session is not None or ends:
            run.start = replace(run.start, debounce_key=None)
            # Unless it is this very input: sent again, as the answer was lost.
            return run.batches[0] == new.batch
        assert new.start_at_us is not None
        run.start = replace(
            new, workflow_id=run.start.workflow_id, debounce_key=run.start.debounce_key
        )
        run.batches, run.head_hash, run.search = [new.batch], new.head_hash, new.search
        for kind, us in (
            (TimerKind.START, 0),
            (TimerKind.RUN_TIMEOUT, new.run_timeout_us),
            (TimerKind.EXECUTION_TIMEOUT, new.execution_timeout_us),
        ):
            self.timers.pop((new.run_id, 0, kind), None)
            if us is not None:
                self.timers[new.run_id, 0, kind] = new.start_at_us + us
        return True

    def start_and_send(self, new: NewRun, message: Message) -> Started:
        """Send to the open run of the id, or start one with the message."""
        done = self.closed.get(new.run_id)
        if done is not None:
            return Started(True, done.run_id, done.view().state)
        started = self.start(new)
        if started.state < RunState.COMPLETED:
            self.send(replace(message, run_id=started.run_id))
        return started

    def blocker(self, new: NewRun) -> Run | None:
        """The closed run that keeps this start from happening."""
        if new.run_id in self.closed:
            return self.closed[new.run_id]
        ended = [r for r in self.closed.values() if r.start.workflow_id == new.workflow_id]
        if not ended or new.id_reuse == IdReuse.AFTER_CLOSE:
            return None
        last = ended[-1]
        reject = new.id_reuse == IdReuse.REJECT or last.state == RunState.COMPLETED
        return last if reject else None

    def send(self, message: Message) -> str | None:
        """Deliver one message; return the run it went to."""
        if message.run_id is not None:
            run = self.runs.get(message.run_id)
        else:
            run = self.by_workflow_id.get(message.workflow_id or "")
        if run is None:
            return None
        request = message.request_id
        if request is not None and message.kind != MessageKind.QUERY:
            seen = self.requests[run.run_id]
            if request in seen:
                self.wake(run.run_id)
                return run.run_id
            seen.add(request)
        self.deliver(run.run_id, message.kind, message.ref, message.payload)
        item = self.inbox[run.run_id][-1]
        item.name, item.meta = message.name, message.meta
        return run.run_id

    def enqueue(self, activity: Activity, delay_us: int) -> None:
        """Put an activity on its queue, or under a timer."""
        run_id, ref = key = activity.run_id, activity.made.ref
        activity.session = activity.token = activity.started_us = None
        now = self.clock_us()
        self.timers.pop((*key, TimerKind.ACTIVITY_RETRY), None)
        self.timers.pop((*key, TimerKind.ACTIVITY_TIMEOUT), None)
        if delay_us > 0:
            activity.state = WAITS
            self.timers[run_id, ref, TimerKind.ACTIVITY_RETRY] = now + delay_us
        else:
            activity.state = QUEUED
            made = activity.made
            task = Task(self.next_id(), ACTIVITY, made.queue, made.priority, made.name, run_id, ref)
            task.place = self.place(activity) or task.id
            self.tasks[task.id] = task
        due = activity.due_us(now + delay_us)
        if due is not None:
            self.timers[run_id, ref, TimerKind.ACTIVITY_TIMEOUT] = due

    def place(self, activity: Activity) -> int | None:
        """Where it stands in a queue that is shared by keys; None in one that is not."""
        made = activity.made
        line = (
            t.place
            for t in self.tasks.values()
            if (t.kind, t.queue, t.priority) == (ACTIVITY, made.queue, made.priority)
        )
        return self.shares.place(made.queue, made.priority, activity.policy, line)

    def forget_activity(self, key: tuple[str, int]) -> None:
        """Drop an activity and its timers; its task is dropped when somebody takes it."""
        self.activities.pop(key, None)
        self.timers.pop((*key, TimerKind.ACTIVITY_RETRY), None)
        self.timers.pop((*key, TimerKind.ACTIVITY_TIMEOUT), None)

    def settle(self, key: tuple[str, int], kind: int, payload: bytes | None) -> None:
        """The outcome of an activity is known."""
        self.forget_activity(key)
        self.deliver(key[0], kind, key[1], payload)

    def time_out(self, key: tuple[str, int]) -> None:
        """An attempt is over its time."""
        activity = self.activities[key]
        limit = activity.limit_us("start_to_close")
        if self.is_over(activity):
            reason = "schedule-to-close timeout"
        elif activity.state != CLAIMED or activity.started_us is None:
            reason = "schedule-to-start timeout"
        elif limit is not None and activity.started_us + limit <= self.clock_us():
            reason = "start-to-close timeout"
        else:
            reason = "heartbeat timeout"
        self.fail_attempt(key, failure_json("TimeoutError", reason))

    def crash(self, key: tuple[str, int], *, crashed: bool) -> None:
        """The worker of an attempt is gone: put it back; suspect it from the third one on."""
        activity = self.activities[key]
        activity.crashes += crashed
        if crashed and activity.crashes >= 3:
            reason = "its worker died while it ran this attempt, once again"
            self.fail_attempt(key, failure_json("WorkerCrashedError", reason))
        else:
            self.enqueue(activity, 0)

    def is_over(self, activity: Activity) -> bool:
        """Whether the time for all attempts together has passed."""
        total = activity.limit_us("schedule_to_close")
        return total is not None and activity.scheduled_us + total <= self.clock_us()

    def fail_attempt(self, key: tuple[str, int], failure: bytes) -> None:
        """An attempt failed without saying so: try again, or give up."""
        activity = self.activities[key]
        failure = orjson.dumps({**orjson.loads(failure), "attempt": activity.attempt})
        wait = activity.backoff_us()
        if activity.state == CLAIMED and not self.is_over(activity) and wait is not None:
            activity.attempt += 1
            activity.last_failure = failure
            self.enqueue(activity, wait)
        else:
            self.settle(key, EventKind.ACTIVITY_FAILED, failure)

    def take(self, kind: int, queue: str, types: Sequence[str], limit: int) -> list[Task]:
        """Delete and return shared tasks of a queue, by priority and place."""
        head = [
            t
            for t in self.tasks.values()
            if t.kind == kind
            and t.session is None
            and t.queue == queue
            and serves(kind, types, t.type)
        ]
        head.sort(key=lambda t: (t.priority, t.place))
        for task in head[:limit]:
            del self.tasks[task.id]
            if kind == ACTIVITY:
                self.shares.served(queue, task.priority, task.place)
        return head[:limit]

    def take_attempts(self, queue: str, names: Sequence[str], limit: int) -> list[Activity]:
        """Take queued attempts, as many as the limits of the queue allow."""
        claimed = [a for a in self.activities.values() if a.session is not None]
        claimed = [a for a in claimed if a.made.queue == queue]
        room = self.buckets.room(queue, limit, len(claimed))
        most = self.buckets.key_limit(queue)
        if most is None:
            taken = self.take(ACTIVITY, queue, names, room)
            self.buckets.charge(queue, len(taken))
            return [a for task in taken if (a := self.queued(task)) is not None]
        rooms = KeyRooms(most, Counter(a.fairness_key for a in claimed if a.fairness_key))
        found = self.take_held(queue, names, room, rooms)
        while len(found) < room:
            head = self.take(ACTIVITY, queue, names, room - len(found))
            if not head:
                break
            for activity in filter(None, map(self.queued, head)):
                if rooms.admit(activity.fairness_key):
                    found.append(activity)
                else:
                    activity.state = HELD
        self.buckets.charge(queue, len(found))
        return found

    def queued(self, task: Task) -> Activity | None:
        """The attempt that a task is about, if it still waits to be claimed."""
        activity = self.activities.get((task.run_id, task.ref))
        return activity if activity is not None and activity.state == QUEUED else None

    def take_held(
        self, queue: str, names: Sequence[str], limit: int, rooms: KeyRooms
    ) -> list[Activity]:
        """Take attempts that were held and whose key has a place now."""
        held = [
            a
            for a in self.activities.values()
            if a.state == HELD and a.made.queue == queue and serves(ACTIVITY, names, a.made.name)
        ]
        held.sort(key=lambda a: (a.fairness_key or "", a.made.priority, a.scheduled_us))
        found: list[Activity] = []
        for activity in held:
            if len(found) < limit and rooms.admit(activity.fairness_key):
                activity.state = QUEUED
                found.append(activity)
        return found

    def depths(self) -> list[QueueDepth]:
        """How many activities of each queue there are, by state."""
        found = []
        for queue in sorted({a.made.queue for a in self.activities.values()}):
            there = [a for a in self.activities.values() if a.made.queue == queue]
            count = Counter(a.state for a in there)
            waiting = [a.scheduled_us for a in there if a.state in (QUEUED, HELD)]
            states = (count[QUEUED], count[HELD], count[CLAIMED], count[WAITS])
            found.append(QueueDepth(queue, *states, min(waiting, default=None)))
        return found

    def fitting(self, wanted: OpenRuns, runs: Iterable[Run] | None = None) -> list[RunView]:
        """Those of the runs that are wanted; by default of the open ones."""

        def has_attributes(whole: bytes, part: bytes) -> bool:
            return contains(orjson.loads(whole), orjson.loads(part))

        views = [run.view(full=False) for run in (self.runs.values() if runs is None else runs)]
        return [view for view in views if wanted.fits(view, has_attributes)]


def serves(kind: int, names: Sequence[str], name: str) -> bool:
    """Whether who knows these names takes a task of that one.

    Of activities DYNAMIC makes them the names that are left out; of runs it stands for others.
    """
    if kind == RUN:
        return name in names or stand_in(name) in names
    return (name in names) != (DYNAMIC in names)


def failure_json(kind: str, message: str) -> bytes:
    """A failure as it is recorded."""
    return orjson.dumps({"type": kind, "message": message})


def contains(value: Any, part: Any) -> bool:
    """What ``value @> part`` says of two JSON values, neither of them a bare list."""
    if isinstance(part, dict):
        return isinstance(value, dict) and all(
            key in value and contains(value[key], each) for key, each in part.items()
        )
    if isinstance(part, list):
        return isinstance(value, list) and all(
            any(contains(element, each) for element in value) for each in part
        )
    # A number is never a truth value, as it would be in Python.
    return isinstance(value, bool) == isinstance(part, bool) and bool(value == part)
