"""A store in memory: the same promises as PostgreSQL, with a clock and faults that a test decides.

Every method is atomic because none of them waits between its first read and its last write. A
``fault`` is called with the method's name before and after it works, and may raise
StoreUnavailableError: before, nothing has happened; after, it has and the answer is lost.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal

from durable.errors import ConfigurationError
from durable.events import (
    PAUSED_WORD,
    RESUMED_WORD,
    WHOLE_EXECUTION,
    ActivityOutcome,
    ClaimedActivity,
    ClaimedRun,
    CommitResult,
    DueReport,
    EventKind,
    InboxItem,
    Message,
    MessageKind,
    NewRun,
    QueueDepth,
    QueueLimits,
    Response,
    RunCommit,
    RunState,
    RunView,
    SessionInfo,
    Started,
    TimerKind,
    TypeInfo,
    Verdict,
)
from durable.store.base import DONE, WORK, Hint
from durable.store.histories import MemoryHistories
from durable.store.memory_commit import commit_run
from durable.store.memory_tables import (
    CLAIMED,
    DELAYED,
    ENDINGS,
    HELD,
    RUN,
    WAITS,
    Run,
    Tables,
    failure_json,
)
from durable.store.pages import ALL_RUNS, OpenRuns, Place, Runs
from durable.store.settled import Floor
from durable.store.streams import MemoryStream, MemoryStreams

Fault = Callable[[str, Literal["before", "after"]], None]
RESPONSE_US_MAX = 3_600_000_000
UNHEARD_MAX = 1000
"""Hints kept for a listener that does not take them."""


def wall_clock_us() -> int:
    """The time of this machine."""
    return time.time_ns() // 1000


def no_fault(method: str, when: Literal["before", "after"]) -> None:
    """Nothing fails."""


class MemoryStore(MemoryHistories, MemoryStreams):
    """The store in memory, for one event loop. ``clock_us`` is its time."""

    def __init__(
        self, *, clock_us: Callable[[], int] = wall_clock_us, fault: Fault = no_fault
    ) -> None:
        self.tables = Tables(clock_us)
        self.clock_us = clock_us
        self.fault = fault
        self.flushes: dict[str, int] = {}
        """The last flush that wrote each run."""
        self.streams: dict[tuple[str, str], MemoryStream] = {}
        self.listeners: set[tuple[bool, asyncio.Queue[Hint]]] = set()

    async def open(self) -> None:
        """Nothing to do."""
        self.fault("open", "before")

    async def close(self) -> None:
        """Nothing to do: the data stay until the store is dropped."""

    async def now_us(self) -> int:
        """The store's time."""
        return self.clock_us()

    # -- sessions ----------------------------------------------------------------------------

    async def register_session(self, info: SessionInfo, lease_us: int) -> None:
        """Make the session known, alive for ``lease_us`` from now."""
        self.fault("register_session", "before")
        self.tables.sessions[info.id] = (info, self.clock_us() + lease_us)
        self.fault("register_session", "after")

    async def heartbeat(self, sessions: Sequence[int], lease_us: int) -> set[int]:
        """Extend the leases; return the sessions that are still alive."""
        self.fault("heartbeat", "before")
        alive = {s for s in sessions if s in self.tables.sessions}
        for session in alive:
            info, _ = self.tables.sessions[session]
            self.tables.sessions[session] = (info, self.clock_us() + lease_us)
        self.fault("heartbeat", "after")
        return alive

    async def end_sessions(self, sessions: Sequence[int], *, crashed: bool = True) -> int:
        """Declare sessions dead and hand over all they own; return the number of runs."""
        self.fault("end_sessions", "before")
        tables = self.tables
        dead = set(sessions)
        tried = {session: run_id for session in dead if (run_id := tables.suspects.get(session))}
        for session in dead:
            tables.sessions.pop(session, None)
            tables.suspects.pop(session, None)
        runs = [run for run in tables.runs.values() if run.session in dead]
        for run in runs:
            blamed = run.session not in tried or run.run_id in tried.values()
            run.crashes += crashed and blamed
            run.session = None
            run.fence += 1
            tables.wake(run.run_id)
        for key in [k for k, a in tables.activities.items() if a.session in dead]:
            blamed = tables.activities[key].session not in tried
            tables.crash(key, crashed=crashed and blamed)
        for task in tables.tasks.values():
            if task.session in dead:
                task.session = None
        self.fault("end_sessions", "after")
        return len(runs)

    async def suspect(self, session: int, run_id: str | None) -> None:
        """Name the run that is on trial in the session: if that crashes, it alone is counted."""
        self.fault("suspect", "before")
        if session in self.tables.sessions:
            self.tables.suspects[session] = run_id
        self.fault("suspect", "after")

    async def reap_sessions(self) -> int:
        """End every session whose lease is over; return how many there were."""
        now = self.clock_us()
        over = [s for s, (_, until) in self.tables.sessions.items() if until < now]
        await self.end_sessions(over)
        old = [r for r, (_, at) in self.tables.responses.items() if at < now - RESPONSE_US_MAX]
        for request_id in old:
            del self.tables.responses[request_id]
        return len(over)

    async def register_types(self, types: Sequence[TypeInfo]) -> None:
        """Remember which workflow and activity types exist."""
        self.tables.types.update({(t.kind, t.name): t for t in types})

    async def types(self) -> list[TypeInfo]:
        """All types that any worker registered: workflows, then activities, by name."""
        names = sorted(self.tables.types)
        names.sort(key=lambda key: key[0], reverse=True)
        return [self.tables.types[name] for name in names]

    # -- clients -----------------------------------------------------------------------------

    async def start_runs(self, runs: Sequence[NewRun], conn: Any = None) -> list[Started]:
        """Start runs; a taken id yields the run that has it and writes nothing for that one."""
        refuse_conn(conn)
        self.fault("start_runs", "before")
        started = [self.tables.start(run) for run in runs]
        self.fault("start_runs", "after")
        return started

    async def replace_start(self, run: NewRun, conn: Any = None) -> bool:
        """Give a debounced run another input and start time; False when it has begun."""
        refuse_conn(conn)
        self.fault("replace_start", "before")
        replaced = self.tables.replace_start(run)
        self.fault("replace_start", "after")
        return replaced

    async def send(self, messages: Sequence[Message], conn: Any = None) -> list[str | None]:
        """Deliver messages; return the run id each went to, or None where no open run has it."""
        refuse_conn(conn)
        self.fault("send", "before")
        sent = [self.tables.send(message) for message in messages]
        self.fault("send", "after")
        return sent

    async def send_telling(self, message: Message) -> tuple[str | None, bool]:
        """Deliver one message; the hint is left to the caller."""
        (run_id,) = await self.send([message])
        return run_id, False

    async def start_and_send(
        self, runs: Sequence[NewRun], messages: Sequence[Message], conn: Any = None
    ) -> list[Started]:
        """Deliver each message to the open run of its workflow id, or start the run with it."""
        refuse_conn(conn)
        self.fault("start_and_send", "before")
        started = [self.tables.start_and_send(*each) for each in zip(runs, messages, strict=True)]
        self.fault("start_and_send", "after")
        return started

    async def unpark(self, run_ids: Sequence[str]) -> int:
        """Make parked runs claimable again; return how many were parked."""
        self.fault("unpark", "before")
        parked = [
            run
            for run_id in dict.fromkeys(run_ids)
            if (run := self.tables.runs.get(run_id)) and run.state == RunState.PARKED
        ]
        for run in parked:
            run.parks = 0
            self.make_ready(run)
        self.fault("unpark", "after")
        return len(parked)

    async def pause(self, reasons: Mapping[str, bytes]) -> int:
        """Pause open runs, each with its reason (JSON); return how many of them are open."""
        self.fault("pause", "before")
        found = [run for run_id in reasons if (run := self.tables.runs.get(run_id))]
        for run in found:
            run.pause = reasons[run.run_id]
            if run.session is not None:
                self.tables.tell_owner(run.run_id, PAUSED_WORD)
        self.fault("pause", "after")
        return len(found)

    async def resume(self, run_ids: Sequence[str]) -> int:
        """Let paused runs go on; return how many were paused."""
        self.fault("resume", "before")
        paused = [
            run
            for run_id in dict.fromkeys(run_ids)
            if (run := self.tables.runs.get(run_id)) and run.pause is not None
        ]
        for run in paused:
            run.pause = None
            inbox = self.tables.inbox[run.run_id]
            inbox[:] = [item for item in inbox if item.kind != MessageKind.PAUSE]
            if run.session is not None:
                self.tables.tell_owner(run.run_id, RESUMED_WORD)
            self.tables.wake(run.run_id)
        self.fault("resume", "after")
        return len(paused)

    def make_ready(self, run: Run, *, late: bool = False) -> None:
        """Make a parked or delayed run claimable."""
        run.state = RunState.RUNNING
        run.park = None
        run.start = replace(run.start, debounce_key=None)
        self.tables.timers.pop((run.run_id, 0, TimerKind.UNPARK), None)
        self.tables.wake(run.run_id, late=late)

    async def view(
        self, *, workflow_id: str | None = None, run_id: str | None = None
    ) -> RunView | None:
        """The run, or the latest run of the id; open runs first."""
        tables = self.tables
        if run_id is not None:
            run = tables.runs.get(run_id) or tables.closed.get(run_id)
        else:
            run = tables.by_workflow_id.get(workflow_id or "")
            for ended in tables.closed.values() if run is None else ():
                run = ended if ended.start.workflow_id == workflow_id else run
        return run.view() if run is not None else None

    async def views(
        self, wanted: Runs = ALL_RUNS, *, before: Place | None = None, limit: int = 100
    ) -> list[RunView]:
        """Runs that fit, the newest first, without results and failures."""
        runs = (*self.tables.runs.values(), *self.tables.closed.values())
        found = self.tables.fitting(wanted, runs)
        found.sort(key=lambda view: (view.created_us, view.run_id), reverse=True)
        if before is not None:
            found = [view for view in found if (view.created_us, view.run_id) < before]
        return found[:limit]

    async def open_page(
        self, wanted: OpenRuns, *, after: str | None = None, limit: int = 200
    ) -> list[RunView]:
        """The next open runs by run id, without the reasons of parked and paused ones."""
        found = [view for view in self.tables.fitting(wanted) if view.run_id > (after or "")]
        return sorted(found, key=lambda view: view.run_id)[:limit]

    async def count_open(self, wanted: OpenRuns) -> int:
        """How many open runs fit."""
        return len(self.tables.fitting(wanted))

    async def closed(self, run_ids: Sequence[str]) -> list[RunView]:
        """Those of the runs that are closed, with results."""
        closed = self.tables.closed
        return [closed[run_id].view() for run_id in dict.fromkeys(run_ids) if run_id in closed]

    async def responses(self, request_ids: Sequence[str]) -> list[Response]:
        """Those of the answers that are there."""
        known = self.tables.responses
        return [known[r][0] for r in dict.fromkeys(request_ids) if r in known]

    async def notify(self, hint: Hint = WORK) -> None:
        """Tell whoever listens."""
        for done, heard in self.listeners:
            if done is not hint.done:
                continue
            if heard.full():
                # One of anything stands for all that were not taken.
                while not heard.empty():
                    heard.get_nowait()
                heard.put_nowait(DONE if done else WORK)
            else:
                heard.put_nowait(hint)

    @asynccontextmanager
    async def listen(self, *, done: bool = False) -> AsyncIterator[AsyncIterator[Hint]]:
        """Yield each hint for workers or, ``done``, for clients."""
        heard: asyncio.Queue[Hint] = asyncio.Queue(UNHEARD_MAX)

        async def follow() -> AsyncIterator[Hint]:
            while True:
                yield await heard.get()

        self.listeners.add((done, heard))
        try:
            yield follow()
        finally:
            self.listeners.discard((done, heard))

    # -- queues ------------------------------------------------------------------------------

    async def set_queue_limits(self, limits: QueueLimits) -> None:
        """Give a queue these limits instead of those it has; empty ones remove them."""
        self.tables.buckets.set(limits)
        for activity in self.tables.activities.values():
            held = activity.state == HELD and activity.made.queue == limits.queue
            if held and limits.key_concurrency is None:
                self.tables.enqueue(activity, 0)

    async def queue_limits(self) -> list[QueueLimits]:
        """Those of every queue that has any, by name."""
        return self.tables.buckets.all()

    async def queue_depths(self) -> list[QueueDepth]:
        """Every queue that has activities with a row, by name."""
        return self.tables.depths()

    # -- workers: runs -----------------------------------------------------------------------

    async def claim_runs(
        self, session: int, queues: Sequence[str], types: Sequence[str], limit: int
    ) -> tuple[list[ClaimedRun], list[str], int]:
        """Take wake tokens and own their runs: new runs, own runs with mail, the time."""
        self.fault("claim_runs", "before")
        tables = self.tables
        if session not in tables.sessions:
            return [], [], self.clock_us()
        own = [t for t in tables.tasks.values() if t.session == session][:limit]
        for task in own:
            del tables.tasks[task.id]
        for queue in queues:
            own += tables.take(RUN, queue, types, max(limit - len(own), 0))
        claimed: list[ClaimedRun] = []
        mail: list[str] = []
        for run_id in dict.fromkeys(task.run_id for task in own):
            run = tables.runs.get(run_id)
            if run is None:
                continue
            if run.session == session:
                mail.append(run_id)
            elif run.session is not None:
                tables.wake(run_id)
            elif self.is_claimable(run):
                run.session = session
                run.fence += 1
                run.state = RunState.RUNNING
                run.park = None
                claimed.append(run.claimed())
        self.fault("claim_runs", "after")
        return claimed, mail, self.clock_us()

    async def look(self, sessions: Sequence[int], queues: Sequence[str]) -> tuple[set[int], bool]:
        """Which of the sessions have mail, and whether there is work for any."""
        tasks, now = self.tables.tasks.values(), self.clock_us()
        mail = {task.session for task in tasks if task.session in sessions}
        work = any(task.session is None and task.queue in queues for task in tasks)
        due = any(at <= now for at in self.tables.timers.values())
        return {each for each in mail if each is not None}, work or due

    def is_claimable(self, run: Run) -> bool:
        """Parked, paused and delayed runs are claimed only for what ends them."""
        kinds = {item.kind for item in self.tables.inbox[run.run_id]}
        return (
            run.is_ready
            or not kinds.isdisjoint(ENDINGS)
            or (run.state == DELAYED and run.pause is None and EventKind.CANCEL_REQUESTED in kinds)
        )

    async def owned(self, session: int) -> tuple[list[ClaimedRun], list[ClaimedActivity]]:
        """All runs and claimed attempts of a session, without claiming anything."""
        tables = self.tables
        return (
            [run.claimed() for run in tables.runs.values() if run.session == session],
            [
                activity.claimed(tables.runs[activity.run_id])
                for activity in tables.activities.values()
                if activity.session == session
            ],
        )

    async def waiting(self, run_ids: Sequence[str]) -> dict[str, set[int]]:
        """Refs of the activities that have a row."""
        found: dict[str, set[int]] = {run_id: set() for run_id in run_ids}
        for run_id, ref in self.tables.activities:
            if run_id in found:
                found[run_id].add(ref)
        return found

    async def inbox(
        self, run_ids: Sequence[str], limit: int | None = None, kinds: Sequence[int] | None = None
    ) -> list[InboxItem]:
        """Unread items in order of id; with ``limit`` at most so many of each run."""
        self.fault("inbox", "before")
        items: list[InboxItem] = []
        for run_id in dict.fromkeys(run_ids):
            unread = self.tables.inbox.get(run_id, [])
            items += [item for item in unread if kinds is None or item.kind in kinds][:limit]
        return sorted(items, key=lambda item: item.id)

    async def mail_after(
        self, floors: Mapping[str, Floor], limit: int
    ) -> tuple[list[InboxItem], Floor]:
        """Unread items over the floors, and up to which id none can come any more."""
        self.fault("inbox", "before")
        items: list[InboxItem] = []
        for run_id, floor in floors.items():
            unread = self.tables.inbox.get(run_id, [])
            items += [item for item in unread if item.id > floor.id or item.id < 0][:limit]
        return sorted(items, key=lambda item: item.id), Floor(1, self.tables.last_id)

    async def commit(self, commits: Sequence[RunCommit], flush: int = 0) -> CommitResult:
        """Group commit: a verdict per run."""
        self.fault("commit", "before")
        verdicts = []
        for change in commits:
            if flush and self.flushes.get(change.run_id) == flush:
                verdicts.append(Verdict.ACCEPTED)
                continue
            verdict = commit_run(self.tables, change)
            if verdict == Verdict.ACCEPTED:
                self.flushes[change.run_id] = flush
            verdicts.append(verdict)
        self.fault("commit", "after")
        return CommitResult(verdicts, self.clock_us())

    async def promote_due(self, limit: int) -> DueReport:
        """Turn due timers into inbox rows, wake tokens and claimable activities."""
        self.fault("promote_due", "before")
        tables = self.tables
        now = self.clock_us()
        due = sorted((at, key) for key, at in tables.timers.items() if at <= now)[:limit]
        for _, key in due:
            # One that fired before in this call may have taken it away.
            if tables.timers.pop(key, None) is not None:
                self.promote(*key)
        for task in tables.tasks.values():
            if task.session is not None and task.session not in tables.sessions:
                task.session = None
        self.fault("promote_due", "after")
        return DueReport(len(due), min(tables.timers.values(), default=None), now)

    def promote(self, run_id: str, ref: int, kind: int) -> None:
        """Do what a due timer stands for."""
        tables = self.tables
        run = tables.runs[run_id]
        if kind == TimerKind.WORKFLOW:
            tables.deliver(run_id, EventKind.TIMER_FIRED, ref, late=True)
        elif kind == TimerKind.RUN_TIMEOUT:
            failure = failure_json("TimeoutError", "the time of the run is over")
            tables.deliver(run_id, EventKind.RUN_TIMED_OUT, ref, failure, late=True)
        elif kind == TimerKind.EXECUTION_TIMEOUT:
            failure = failure_json("TimeoutError", "the time of the whole execution is over")
            name = WHOLE_EXECUTION
            tables.deliver(run_id, EventKind.RUN_TIMED_OUT, ref, failure, name, late=True)
        elif kind in (TimerKind.START, TimerKind.UNPARK):
            if run.state == (DELAYED if kind == TimerKind.START else RunState.PARKED):
                self.make_ready(run, late=True)
        elif (run_id, ref) in tables.activities:
            if kind == TimerKind.ACTIVITY_TIMEOUT:
                tables.time_out((run_id, ref))
            elif tables.activities[run_id, ref].state == WAITS:
                tables.enqueue(tables.activities[run_id, ref], 0)

    # -- workers: activities -----------------------------------------------------------------

    async def claim_activities(
        self, session: int, queues: Sequence[str], names: Sequence[str], limit: int
    ) -> list[ClaimedActivity]:
        """Take queued attempts by priority and age."""
        self.fault("claim_activities", "before")
        tables = self.tables
        if session not in tables.sessions:
            return []
        claimed: list[ClaimedActivity] = []
        for queue in queues:
            for activity in tables.take_attempts(queue, names, limit - len(claimed)):
                activity.state = CLAIMED
                activity.session = session
                activity.token = tables.next_id()
                activity.started_us = self.clock_us()
                key = (activity.run_id, activity.made.ref, TimerKind.ACTIVITY_TIMEOUT)
                due = activity.due_us(0)
                tables.timers.pop(key, None)
                if due is not None:
                    tables.timers[key] = due
                claimed.append(activity.claimed(tables.runs[activity.run_id]))
        self.fault("claim_activities", "after")
        return claimed

    async def finish_activities(self, outcomes: Sequence[ActivityOutcome]) -> list[bool]:
        """Record outcomes of claimed attempts; False where the attempt's token is void."""
        self.fault("finish_activities", "before")
        good = [self.finish(outcome) for outcome in outcomes]
        self.fault("finish_activities", "after")
        return good

    def finish(self, outcome: ActivityOutcome) -> bool:
        """Record one outcome."""
        key = (outcome.run_id, outcome.ref)
        activity = self.tables.activities.get(key)
        if (
            activity is None
            or activity.state != CLAIMED
            or (activity.attempt, activity.token) != (outcome.attempt, outcome.token)
        ):
            return False
        if outcome.kind:
            self.tables.settle(key, outcome.kind, outcome.payload)
        else:
            activity.attempt += outcome.count_attempt
            activity.crashes = 0
            activity.last_failure = outcome.payload or activity.last_failure
            activity.details = outcome.details or activity.details
            self.tables.enqueue(activity, outcome.delay_us)
        return True

    async def detach_activity(self, run_id: str, ref: int, token: int) -> bool:
        """Let a claimed attempt outlive its session; False when its token is void."""
        activity = self.tables.activities.get((run_id, ref))
        if activity is None or activity.state != CLAIMED or activity.token != token:
            return False
        activity.session = None
        return True

    async def heartbeat_activity(self, run_id: str, ref: int, token: int, details: bytes) -> bool:
        """Keep the progress details of a claimed attempt; False when its token is void."""
        activity = self.tables.activities.get((run_id, ref))
        if activity is None or activity.state != CLAIMED or activity.token != token:
            return False
        activity.details = details
        beat = activity.limit_us("heartbeat")
        if beat is not None and activity.started_us is not None:
            due = [self.clock_us() + beat]
            for since, name in (
                (activity.scheduled_us, "schedule_to_close"),
                (activity.started_us, "start_to_close"),
            ):
                limit = activity.limit_us(name)
                if limit is not None:
                    due.append(since + limit)
            self.tables.timers[run_id, ref, TimerKind.ACTIVITY_TIMEOUT] = min(due)
        return True


def refuse_conn(conn: Any) -> None:
    """There is no transaction of the caller's to join."""
    if conn is not None:
        raise ConfigurationError("the store in memory cannot join a transaction: leave conn out")
