"""The store: what remembers. One protocol, two implementations, one conformance suite.

Every method is one transaction and one round trip where it can be. Times are microseconds since
the epoch by the store's own clock; nothing here trusts a caller's clock. Run ids are UUIDs in their
text form. Errors: `StoreUnavailableError` when the outcome is not known or the store did not
answer, `StoreError` when it refused.

The rules that make lost work impossible:

* A run is written by its owner only, but that one without an owner may be ended by whoever read it
  (`RunCommit.all_read`). `claim_runs` raises the run's fence; every `RunCommit` carries the fence
  and the sequence it builds on, and changes nothing when either moved on.
* A session that is declared dead loses its runs and its activity attempts in one transaction, which
  raises the fences, so what it still has in flight is refused.
* A message is an inbox row and a wake token (a row of ``task``), inserted together. A token is
  deleted only by the session that owns the run, or becomes its owner, and reads the inbox after.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from durable.events import (
    ActivityOutcome,
    ClaimedActivity,
    ClaimedRun,
    CommitResult,
    DueReport,
    Hold,
    InboxItem,
    Message,
    NewRun,
    QueueDepth,
    QueueLimits,
    Response,
    RunCommit,
    RunView,
    SessionInfo,
    Started,
    StoredItem,
    TypeInfo,
)
from durable.store.packing import PackedHistories
from durable.store.pages import ALL_RUNS, OpenRuns, Place, Runs
from durable.store.settled import Floor

HINT_RUNS_MAX = 200
"""Run ids that one hint can name: what fits into the payload of a NOTIFY."""


@dataclass(frozen=True, slots=True)
class Hint:
    """A word that it may be worth looking, and at what. It may be lost, and it may be wrong."""

    done: bool = False
    """For clients: runs closed or messages were answered. Otherwise for workers: there is work."""
    runs_only: bool = False
    """Work of runs, so that nobody need look for activities or timers."""
    run_ids: tuple[str, ...] = ()
    """Which runs closed, at most `HINT_RUNS_MAX`; none named: anything may be done."""
    sessions: tuple[int, ...] = ()
    """Whose runs they are that there is work of; none named: perhaps nobody's."""


WORK = Hint()
DONE = Hint(done=True)


class Store(Protocol):
    """What the runtime and the client need of a database."""

    async def open(self) -> None:
        """Connect and check the schema; raise SchemaVersionError or StoreUnavailableError."""

    async def close(self) -> None:
        """Give every connection back. Safe twice."""

    async def now_us(self) -> int:
        """The store's time."""

    # -- sessions ----------------------------------------------------------------------------

    async def register_session(self, info: SessionInfo, lease_us: int) -> None:
        """Make the session known, alive for ``lease_us`` from now."""

    async def heartbeat(self, sessions: Sequence[int], lease_us: int) -> set[int]:
        """Extend the leases; return the sessions that are still alive (the others are dead)."""

    async def end_sessions(self, sessions: Sequence[int], *, crashed: bool = True) -> int:
        """Declare sessions dead and hand over all they own at once; return the number of runs.

        Raises the fence of each run and makes it claimable; puts each claimed activity attempt
        back on its queue. With ``crashed`` each run's crash counter goes up by one, or only that
        of the run on trial (`suspect`); a commit sets it back to zero, but not that of a run's
        first batch, before which nothing has run.
        """

    async def suspect(self, session: int, run_id: str | None) -> None:
        """Name the run that is on trial in the session: if that crashes, it alone is counted."""

    async def reap_sessions(self) -> int:
        """`end_sessions` for every session whose lease is over; return how many there were."""

    async def register_types(self, types: Sequence[TypeInfo]) -> None:
        """Remember which workflow and activity types exist."""

    async def types(self) -> list[TypeInfo]:
        """All types that any worker registered."""

    # -- clients -----------------------------------------------------------------------------

    async def start_runs(self, runs: Sequence[NewRun], conn: Any = None) -> list[Started]:
        """Start runs; a taken id yields the run that has it and writes nothing for that one.

        So does a key that an open run of that type and queue holds; the key is looked at first.
        ``conn`` is the caller's own connection (psycopg, sync-free): the starts then belong to
        its transaction. Only rows of the new runs are locked.
        """

    async def replace_start(self, run: NewRun, conn: Any = None) -> bool:
        """Give the run of that run id, debounced and not begun, this input and start time.

        False when it has begun or is about to end, and its key is free. ``start_at_us`` is set.
        """

    async def send(self, messages: Sequence[Message], conn: Any = None) -> list[str | None]:
        """Deliver messages; return the run id each went to, or None where no open run has it."""

    async def send_telling(self, message: Message) -> tuple[str | None, bool]:
        """Deliver one message, in one trip with the hint of it; and whether that was sent."""

    async def start_and_send(
        self, runs: Sequence[NewRun], messages: Sequence[Message], conn: Any = None
    ) -> list[Started]:
        """Deliver each message to the open run of its workflow id, or start the run with it.

        ``messages`` are one for each run, with its workflow id and a request id. A run that is
        started has its message from the beginning. Returns the run that took the message, which
        is open, or that was started for this request and has ended since; else the closed run
        that forbids the start, and nothing is written.
        """

    async def unpark(self, run_ids: Sequence[str]) -> int:
        """Make parked runs claimable again; return how many were parked."""

    async def pause(self, reasons: Mapping[str, bytes]) -> int:
        """Pause open runs, each with its reason (JSON); return how many of them are open.

        A paused run is claimed only for what ends it from outside, and ends itself no more: such a
        commit is UNREAD. An owner is told by a PAUSE message. What it gets waits in its inbox.
        """

    async def resume(self, run_ids: Sequence[str]) -> int:
        """Let paused runs go on; return how many were paused."""

    async def view(
        self, *, workflow_id: str | None = None, run_id: str | None = None
    ) -> RunView | None:
        """The run, or the latest run of the id; open runs first."""

    async def views(
        self, wanted: Runs = ALL_RUNS, *, before: Place | None = None, limit: int = 100
    ) -> list[RunView]:
        """Runs that fit, the newest first, without results and failures: those ``before`` a place.

        Runs of the same microsecond are in order of their run ids, the greatest first.
        """

    async def open_page(
        self, wanted: OpenRuns, *, after: str | None = None, limit: int = 200
    ) -> list[RunView]:
        """The next open runs that fit, by run id, those after run ``after``.

        Without the reasons of parked and paused ones. Fewer than ``limit``: there are no more.
        Reads every open run between ``after`` and the last of the page.
        """

    async def count_open(self, wanted: OpenRuns) -> int:
        """How many open runs fit. Reads all open runs: not for a hot path."""

    async def closed(self, run_ids: Sequence[str]) -> list[RunView]:
        """Those of the runs that are closed, with results."""

    async def responses(self, request_ids: Sequence[str]) -> list[Response]:
        """Those of the answers that are there."""

    async def notify(self, hint: Hint = WORK) -> None:
        """Tell whoever listens. Best effort."""

    def listen(self, *, done: bool = False) -> AbstractAsyncContextManager[AsyncIterator[Hint]]:
        """Yield each hint for workers or, ``done``, for clients; a general one after a gap.

        Raises ConfigurationError where hints cannot be had, StoreUnavailableError when the first
        connection fails.
        """

    # -- queues ------------------------------------------------------------------------------

    async def set_queue_limits(self, limits: QueueLimits) -> None:
        """Give a queue these limits instead of those it has; empty ones remove them."""

    async def queue_limits(self) -> list[QueueLimits]:
        """Those of every queue that has any, by name."""

    async def queue_depths(self) -> list[QueueDepth]:
        """Every queue that has activities, by name. Reads all of them: not for a hot path.

        Those that workers started straight from their workflows have no row and are not counted.
        """

    # -- workers: runs -----------------------------------------------------------------------

    async def claim_runs(
        self, session: int, queues: Sequence[str], types: Sequence[str], limit: int
    ) -> tuple[list[ClaimedRun], list[str], int]:
        """Take wake tokens and own their runs.

        Returns the runs newly owned, the ids of runs already owned by this session that have
        mail, and the store's time. Tokens of runs that another session owns are routed to it.
        Only runs whose type, or what stands in for it (`durable.events.stand_in`), is in ``types``
        are taken.
        """

    async def look(self, sessions: Sequence[int], queues: Sequence[str]) -> tuple[set[int], bool]:
        """Which of the sessions have mail, and whether there is work for any: tokens that nobody
        has in one of the queues, or due timers. Takes nothing; both may be gone at once."""

    async def owned(self, session: int) -> tuple[list[ClaimedRun], list[ClaimedActivity]]:
        """All runs and claimed attempts of a session, without claiming anything.

        For a session whose claim had an unknown outcome: what it took without knowing is in here.
        """

    async def waiting(self, run_ids: Sequence[str]) -> dict[str, set[int]]:
        """Refs of the activities that have a row: queued, claimed, or before their next attempt.

        An activity that is pending in a history but not in here, nor answered in the inbox when
        that is read after this, was with a worker that is gone: its next owner starts it again.
        """

    async def load(self, runs: Mapping[str, int]) -> dict[str, list[bytes]]:
        """History batches in order, by run id; the values of ``runs`` are their parts."""

    async def load_packed(self, runs: Mapping[str, int]) -> PackedHistories:
        """The histories of `load`, in the order of ``runs``, for who passes them on: as they are
        stored. A codec's pipeline does not open them."""

    async def first_batches(self, runs: Mapping[str, int]) -> dict[str, bytes]:
        """The first history batch of each run that is known: see `load`."""

    async def inbox(
        self, run_ids: Sequence[str], limit: int | None = None, kinds: Sequence[int] | None = None
    ) -> list[InboxItem]:
        """Unread items in order of id, of those kinds only if any are given; with ``limit`` at most
        so many of each run, its oldest."""

    async def mail_after(
        self, floors: Mapping[str, Floor], limit: int
    ) -> tuple[list[InboxItem], Floor]:
        """As `inbox`, of each run only what has an id over its floor (`NO_FLOOR`: all), or below
        zero: that stands before all other mail.

        With it comes a floor: whatever has an id up to that was there for this call to see. Who has
        delivered all of a run's may give it for the run the next time, and the store does not walk
        over the remains of what was read before.
        """

    async def commit(self, commits: Sequence[RunCommit], flush: int = 0) -> CommitResult:
        """Group commit: one transaction, a verdict per run. Rows are locked in run id order.

        ``flush`` is a random number that names this commit: after an unknown outcome the same
        commits may be sent again under it, and what was written the first time is ACCEPTED and not
        written twice. 0: it will not be sent again.
        """

    async def promote_due(self, limit: int) -> DueReport:
        """Turn due timers into inbox rows, wake tokens and claimable activities."""

    # -- workers: activities -----------------------------------------------------------------

    async def claim_activities(
        self, session: int, queues: Sequence[str], names: Sequence[str], limit: int
    ) -> list[ClaimedActivity]:
        """Take queued attempts by priority and then by age or, where they have fairness keys, by
        key in turn; of a queue with limits no more than they allow.

        Only those called ``names`` are taken; with DYNAMIC among them, only all others.
        """

    async def finish_activities(self, outcomes: Sequence[ActivityOutcome]) -> list[bool]:
        """Record outcomes of claimed attempts; False where the attempt's token is void."""

    async def detach_activity(self, run_id: str, ref: int, token: int) -> bool:
        """Let a claimed attempt outlive its session; its token and time limits stay as they are.

        False when its token is void.
        """

    async def heartbeat_activity(self, run_id: str, ref: int, token: int, details: bytes) -> bool:
        """Keep the progress details of a claimed attempt; False when its token is void."""

    # -- streams -----------------------------------------------------------------------------

    async def append_stream(
        self,
        run_id: str,
        name: str,
        attempt: int,
        items: Sequence[bytes | None],
        flush: int,
        hold: Hold,
    ) -> int:
        """Add items to a stream of an open run, None for an end mark; return the last offset.

        ``flush`` is a random number, not 0: the same append sent again under it, with none of the
        stream's in between, adds nothing. Raises WorkflowNotFoundError when the run is not open,
        ActivityNotFoundError when the attempt does not have its activity any more (``hold``), and
        StreamFullError when there would be too many.
        """

    async def read_stream(self, run_id: str, name: str, after: int, limit: int) -> list[StoredItem]:
        """Items with offsets above ``after`` in order: at most ``limit``, fewer of large ones."""
