"""The words of a run: event kinds, run states, and what passes between the engine and the store.

Event numbers are for ever; `docs/internals/history-format.md` is their specification and
`rust_core/src/event.rs` the other half of the table (a test compares the two).

Everything here is plain data. Times are microseconds since the Unix epoch, by the database's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple


class EventKind(IntEnum):
    """What happened. Inbound facts are below 64, commands of the code from 64, endings from 128."""

    RUN_STARTED = 1
    ACTIVITY_COMPLETED = 2
    ACTIVITY_FAILED = 3
    TIMER_FIRED = 4
    SIGNAL_RECEIVED = 5
    CANCEL_REQUESTED = 6
    UPDATE_ACCEPTED = 7
    CHILD_STARTED = 8
    CHILD_COMPLETED = 9
    CHILD_FAILED = 10
    EXTERNAL_DONE = 11
    EXTERNAL_FAILED = 12
    RUN_TERMINATED = 13
    RUN_TIMED_OUT = 14

    ACTIVITY_SCHEDULED = 64
    ACTIVITY_CANCEL_REQUESTED = 65
    TIMER_STARTED = 66
    TIMER_CANCELLED = 67
    CHILD_INITIATED = 68
    CHILD_CANCEL_REQUESTED = 69
    EXTERNAL_SIGNAL = 70
    EXTERNAL_CANCEL = 71
    SIDE_EFFECT = 72
    PATCH_MARKER = 73
    UPDATE_COMPLETED = 74
    UPDATE_FAILED = 75
    ATTRIBUTES_SET = 76

    RUN_COMPLETED = 128
    RUN_FAILED = 129
    RUN_CANCELLED = 130
    RUN_CONTINUED_AS_NEW = 131


class MessageKind(IntEnum):
    """Requests that reach a run through its inbox but are not recorded as they are."""

    QUERY = 200
    UPDATE_REQUESTED = 201
    PAUSE = 202
    """For the owner of a run: it has been paused (the message has that name) or resumed. Its id is
    negative: it stands before all other mail, the newest one first."""


PAUSED_WORD, RESUMED_WORD = "paused", "resumed"
"""Names of PAUSE messages; the first one of an inbox counts."""


class RunState(IntEnum):
    """Where a run is. Open states are below 10."""

    RUNNING = 0
    PARKED = 1
    PAUSED = 3
    COMPLETED = 10
    FAILED = 11
    CANCELLED = 12
    TERMINATED = 13
    TIMED_OUT = 14
    CONTINUED_AS_NEW = 15


class TimerKind(IntEnum):
    """What a due timer row does when it is promoted."""

    WORKFLOW = 1
    """Becomes a TIMER_FIRED in the run's inbox."""
    ACTIVITY_RETRY = 2
    """Makes the waiting activity ``ref`` claimable."""
    ACTIVITY_TIMEOUT = 3
    """The claimed attempt of activity ``ref`` is over its time (start-to-close or heartbeat)."""
    START = 4
    """Makes a delayed run claimable."""
    RUN_TIMEOUT = 5
    """Becomes a RUN_TIMED_OUT in the run's inbox."""
    UNPARK = 6
    """Makes a parked run claimable again, to be tried once more."""
    EXECUTION_TIMEOUT = 7
    """As RUN_TIMEOUT; goes over to the next run of a chain."""


WHOLE_EXECUTION = "execution"
"""The name of a RUN_TIMED_OUT that is about the chain of runs: it too goes over to the next run."""


class IdReuse(IntEnum):
    """When a workflow id may be started again."""

    REJECT = 0
    """Never while a run with it is known, open or closed. The default: a start is idempotent."""
    AFTER_CLOSE = 1
    """Once the run that has it is closed."""
    AFTER_FAILURE = 2
    """Once the run that has it closed without a result."""


@dataclass(slots=True)
class NewRun:
    """A run to be started: one row, its first history batch, and what makes it claimable."""

    run_id: str
    workflow_id: str
    workflow_type: str
    queue: str
    batch: bytes
    """The history batch with RUN_STARTED, chained from the run id."""
    head_hash: int
    """Checksum of ``batch``: the head of the chain. Signed 64-bit."""
    priority: int = 0
    version: str | None = None
    start_delay_us: int = 0
    """Claimable this long after the database's now; 0 is at once."""
    start_at_us: int | None = None
    """Claimable at this time (overrides ``start_delay_us``)."""
    run_timeout_us: int | None = None
    execution_timeout_us: int | None = None
    """For the chain that begins with this run. Its successors leave it out: they take over the
    deadline of the run that they follow."""
    id_reuse: IdReuse = IdReuse.REJECT
    parent_run_id: str | None = None
    parent_ref: int | None = None
    search: bytes | None = None
    """Search attributes as a JSON object."""
    dedup_key: str | None = None
    """Held until the run or its chain ends: no other run of its type and queue can have it."""
    debounce_key: str | None = None
    """Held until the run begins. Only for a run that is delayed."""


@dataclass(slots=True)
class Started:
    """What became of a start: ``accepted``, or the run that has the id or holds the key."""

    accepted: bool
    run_id: str
    state: RunState = RunState.RUNNING
    holder_id: str | None = None
    """The workflow id of the run, when it is in the way because it holds the key."""
    holder_us: int | None = None
    """When that run was made."""
    told: bool = field(default=False, compare=False)
    """Workers were told of it in the same transaction."""


@dataclass(slots=True)
class ClaimedRun:
    """A run that now belongs to this session. ``fence`` goes with every write about it."""

    run_id: str
    workflow_id: str
    workflow_type: str
    queue: str
    version: str | None
    fence: int
    next_seq: int
    """The number of history batches there are, and so the number of the next one."""
    head_hash: int
    part: int
    crashes: int
    """How often a worker died while it had this run, in a row."""
    parent_run_id: str | None
    parent_ref: int | None
    created_us: int
    start: bytes | None = field(default=None, compare=False)
    """The first history batch, when it is all there is and the store has it at hand."""
    has_mail: bool = field(default=True, compare=False)
    """False when the inbox is known to be empty."""
    is_paused: bool = field(default=False, compare=False)
    """Nothing may be done for it but what ends it from outside."""
    parks: int = 0
    """How often it was parked since its last batch, or since somebody unparked it."""


@dataclass(slots=True)
class InboxItem:
    """A fact or request for a run, in the order of ``id``. ``kind``: EventKind or MessageKind."""

    id: int
    run_id: str
    kind: int
    ref: int
    name: str | None
    meta: bytes | None
    payload: bytes | None
    created_us: int
    unreadable: Exception | None = None
    """Why payload and meta cannot be had (a missing key, say); they are None then."""


@dataclass(slots=True)
class Message:
    """Something a client or another run sends into an open run's inbox.

    The run is named by ``run_id``, or else by ``workflow_id`` (its open run).
    ``request_id`` makes a repeated send of the same message to the same run a no-op.
    """

    kind: int
    workflow_id: str | None = None
    run_id: str | None = None
    name: str | None = None
    meta: bytes | None = None
    payload: bytes | None = None
    ref: int = 0
    request_id: str | None = None


@dataclass(slots=True)
class QueuedActivity:
    """An activity put into the queue table for any worker that serves ``queue``."""

    ref: int
    name: str
    queue: str
    priority: int
    attempt: int
    input: bytes
    options: bytes
    """The options as recorded in history (JSON)."""
    delay_us: int = 0
    """Claimable this long after the commit; 0 is at once."""
    last_failure: bytes | None = None
    details: bytes | None = None
    scheduled_us: int = 0


@dataclass(slots=True)
class ClaimedActivity:
    """One attempt of a queued activity, owned by this session. ``token`` goes with every write."""

    run_id: str
    workflow_id: str
    workflow_type: str
    ref: int
    name: str
    queue: str
    attempt: int
    token: int
    input: bytes
    options: bytes
    last_failure: bytes | None
    details: bytes | None
    scheduled_us: int
    unreadable: Exception | None = None
    """Why its input cannot be had; it is empty then."""


@dataclass(slots=True)
class ActivityOutcome:
    """How a claimed attempt ended. Exactly one of result, failure-for-good, or retry."""

    run_id: str
    ref: int
    attempt: int
    token: int
    kind: int
    """ACTIVITY_COMPLETED, ACTIVITY_FAILED, or 0 for another attempt after ``delay_us``."""
    payload: bytes | None = None
    """The result, or the failure as JSON."""
    delay_us: int = 0
    details: bytes | None = None
    count_attempt: bool = True
    """False when the attempt was only interrupted (drain, dead session) and does not count."""


@dataclass(slots=True)
class NewTimer:
    """A timer row: due at an absolute time."""

    ref: int
    due_us: int
    kind: TimerKind = TimerKind.WORKFLOW


@dataclass(slots=True)
class KeptFact:
    """The outcome of an activity that a paused run may not take now; it waits in the inbox."""

    kind: int
    ref: int
    payload: bytes | None


@dataclass(slots=True)
class Closing:
    """The run ends with this commit."""

    state: RunState
    result: bytes | None = None
    failure: bytes | None = None


@dataclass(slots=True)
class Response:
    """An answer to an update or a query, for the client that waits for ``request_id``."""

    request_id: str
    payload: bytes | None = None
    failure: bytes | None = None


@dataclass(slots=True)
class RunCommit:
    """All that one flush changes about one run: all of it or, with a stale fence, none of it."""

    run_id: str
    fence: int
    part: int
    expected_seq: int
    """Must equal the run's ``next_seq``."""
    batch: bytes | None
    """The new history batch, or None when only side rows change."""
    head_hash: int
    """The chain's head after ``batch`` (unchanged when there is none)."""
    consumed: list[int] = field(default_factory=list)
    """Inbox ids that this batch contains, or that are void."""
    timers: list[NewTimer] = field(default_factory=list)
    timers_done: list[int] = field(default_factory=list)
    """Refs of workflow timers that fired or were cancelled."""
    activities: list[QueuedActivity] = field(default_factory=list)
    activities_done: list[int] = field(default_factory=list)
    """Refs of activities whose queue rows, if any, are void (cancelled)."""
    children: list[NewRun] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    closing: Closing | None = None
    successor: NewRun | None = None
    """The next run of a continue-as-new chain; takes over the workflow id and unread inbox."""
    park: bytes | None = None
    """Park the run with this reason (JSON); no batch goes with it."""
    unpark_at_us: int | None = None
    """When a parked run is tried again by itself."""
    release: bool = False
    """Give the run up: it is no longer this session's."""
    kept: list[KeptFact] = field(default_factory=list)
    """What goes into the run's own inbox."""
    search: bytes | None = None
    """New search attributes (JSON object), replacing the old."""
    parent_run_id: str | None = None
    """Of a run that closes: whom its end is told to. The store itself knows."""
    parent_ref: int | None = None
    all_read: bool = False
    """Close only if all that is in the inbox is consumed by this, however the run ends."""


class Verdict(IntEnum):
    """What became of one RunCommit."""

    ACCEPTED = 0
    STALE = 1
    """The fence or the sequence moved on: this session no longer owns the run. Nothing written."""
    UNREAD = 2
    """It wanted to close, but signals or updates are unread. Nothing written: read, then redo."""
    REFUSED = 3
    """The database cannot store one of its values. Nothing of this run written."""


@dataclass(slots=True)
class CommitResult:
    """Verdicts in the order of the request, and the database's time of the commit.

    ``told``: clients were told of what was closed or answered in the same transaction.
    """

    verdicts: list[Verdict]
    now_us: int
    told: bool = False


@dataclass(slots=True)
class RunView:
    """A run as clients see it."""

    run_id: str
    workflow_id: str
    workflow_type: str
    queue: str
    version: str | None
    state: RunState
    created_us: int
    closed_us: int | None
    event_batches: int
    head_hash: int
    part: int
    result: bytes | None = None
    failure: bytes | None = None
    """The failure of a closed run, or the reason of a parked or paused one."""
    search: bytes | None = None
    session: int | None = None
    """The session that has the run right now."""
    fence: int = 0
    """Of an open run that was asked for by id: what a commit has to name."""
    unreadable: Exception | None = None
    """Why result and failure cannot be had; they are None then."""


@dataclass(slots=True)
class DueReport:
    """What a promotion of due timers did."""

    promoted: int
    next_due_us: int | None
    """When the earliest remaining timer is due; None when there is none."""
    now_us: int


@dataclass(frozen=True)
class QueueLimits:
    """The limits of one queue's activities, over all workers. None is no limit."""

    queue: str
    concurrency: int | None = None
    """Activities that run at once; 0 pauses the queue."""
    rate: float | None = None
    """Starts of attempts per second."""
    key_concurrency: int | None = None
    """Activities of one fairness key that run at once."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is limited."""
        return self.concurrency is None and self.rate is None and self.key_concurrency is None

    @property
    def burst(self) -> float | None:
        """What the bucket of the rate holds: a second's worth, and one start at least."""
        return None if self.rate is None else max(1.0, self.rate)


@dataclass(frozen=True)
class QueueDepth:
    """How many activities of one queue there are, by what they wait for."""

    queue: str
    queued: int
    """Any worker may claim them."""
    held: int
    """Their fairness key has no place left."""
    claimed: int
    """They run."""
    retrying: int
    """The time of their next attempt has not come."""
    oldest_us: int | None
    """Since when the oldest of those queued or held was asked for."""


@dataclass(slots=True)
class SessionInfo:
    """A worker process, as others see it. The id is random per process start."""

    id: int
    host: str
    pid: int
    build_id: str
    queues: list[str]


DYNAMIC = ""
"""Instead of a name: what stands for all names that have nothing of their own."""
JOB_PREFIX = "job:"
"""Before the name of an activity: the workflow type of its jobs."""
OWN_PREFIX = "durable:"
"""Before the types of workflows that are part of this library."""


def stand_in(workflow_type: str) -> str | None:
    """What serves runs of a type that nobody defined, where there is such a thing: DYNAMIC, or the
    jobs of a dynamic activity. None for types that only their own code may run: of pinned
    workflows (``name@version``), and of this library.
    """
    if workflow_type.startswith(JOB_PREFIX):
        return JOB_PREFIX + DYNAMIC
    if "@" in workflow_type or workflow_type.startswith(OWN_PREFIX):
        return None
    return DYNAMIC


@dataclass(slots=True)
class TypeInfo:
    """A workflow or activity type that some worker has registered."""

    name: str
    """DYNAMIC for the one that stands for all others."""
    kind: str
    """Either "workflow" or "activity"."""
    queue: str
    signature: str
    """Human-readable: ``subscription(plan: Plan) -> Receipt``."""
    doc: str = ""
    takes_plain: bool = True
    """Whether its workers read payloads that are not encrypted, such as those of plain SQL."""


class Hold(NamedTuple):
    """What lets an attempt write to its run: that it still has its activity.

    ``ref`` and ``token`` of one that was claimed from the queue. With ``ref`` 0 it is one that only
    the owner of the run knows of, and ``token`` is the fence of the run.
    """

    ref: int
    token: int


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item of a stream, as it is stored."""

    offset: int
    """From 1, without gaps."""
    attempt: int
    """Which attempt of its activity wrote it."""
    payload: bytes | None
    """None: the writer ended the stream here."""
