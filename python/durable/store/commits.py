"""The group commit as statements: arrays for the functions of 0005_create_commit_functions.sql.

Everything is encoded before the first byte is sent: a value that cannot be encoded must not leave
half a transaction behind. Runs go in order of their id, which is the order of the row locks.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from durable.errors import StoreError
from durable.events import Closing, IdReuse, Message, NewRun, RunCommit, RunState
from durable.store.arrays import blobs, literal, texts, uuids

Params = tuple[object, ...]
Call = tuple[str, Params]

RUN_ID = attrgetter("run_id")
STAY = 0
CLOSE_IF_READ = 1
CLOSE_ANYHOW = LEAVE = 2
"""Only that no message is on its way: its sender would wake an owner that is none any more."""
CLOSE_UNLESS_PAUSED = 3
HOW_TO_CLOSE = {
    RunState.TERMINATED: CLOSE_ANYHOW,
    RunState.TIMED_OUT: CLOSE_ANYHOW,
    RunState.CONTINUED_AS_NEW: CLOSE_UNLESS_PAUSED,
}
"""Of all other ends: if all is read, or else the successor is to have it."""


def build(ordered: Sequence[RunCommit], flush: int) -> list[Call]:
    """The calls of one transaction, ``commit_runs`` first. ``ordered`` is sorted by run id."""
    runs = [c.run_id for c in ordered]
    if len(set(runs)) != len(runs):
        raise StoreError("a run may occur once in a commit: merge its changes")
    calls: list[Call] = [("commit_runs", runs_params(ordered, runs, flush))]
    busy = [c for c in ordered if c.closing is not None or has_sides(c)]
    if busy:
        calls.extend(side_calls(busy))
    return calls


def has_sides(commit: RunCommit) -> bool:
    """Whether it has more to write than a batch, what it has read, and an end."""
    return bool(
        commit.timers
        or commit.timers_done
        or commit.activities
        or commit.activities_done
        or commit.responses
        or commit.children
        or commit.messages
        or commit.kept
        or commit.release
        or commit.park is not None
        or commit.search is not None
    )


def side_calls(ordered: Sequence[RunCommit]) -> list[Call]:
    """What only some commits have, in the order in which it has to happen."""
    calls: list[Call] = []
    if any(c.timers or c.timers_done for c in ordered):
        calls.append(("commit_timers", timers_params(ordered)))
    if any(c.activities for c in ordered):
        calls.append(("commit_activities", activities_params(ordered)))
    if any(c.activities_done for c in ordered):
        done = [(c.run_id, ref) for c in ordered for ref in c.activities_done]
        calls.append(
            ("commit_activities_done", (uuids([d[0] for d in done]), literal(d[1] for d in done)))
        )
    if any(c.responses for c in ordered):
        calls.append(("commit_responses", responses_params(ordered)))
    if any(c.children for c in ordered):
        parents = [(c.run_id, child) for c in ordered for child in c.children]
        calls.append(
            ("commit_children", start_params([p[1] for p in parents], [p[0] for p in parents]))
        )
    if any(c.messages for c in ordered):
        sent = [(c.run_id, message) for c in ordered for message in c.messages]
        calls.append(
            ("commit_messages", (uuids([s[0] for s in sent]), *send_params([s[1] for s in sent])))
        )
    found = [c for c in ordered if c.search is not None]
    if found:
        search = [c.search.decode() if c.search is not None else None for c in found]
        calls.append(("commit_search", (uuids([c.run_id for c in found]), texts(search))))
    if any(c.kept for c in ordered):
        calls.append(("commit_kept", kept_params(ordered)))
    given = [c for c in ordered if c.release or c.park is not None]
    if given:
        calls.append(("commit_releases", releases_params(given)))
    closing = [c for c in ordered if c.closing is not None]
    if closing:
        calls.extend(closing_calls(closing))
    return calls


def how_to_leave(commit: RunCommit) -> int:
    """What commit_runs has to make sure of before the run leaves its owner."""
    if commit.closing is None:
        return LEAVE if commit.release or commit.park is not None else STAY
    if commit.all_read:
        return CLOSE_IF_READ
    if commit.successor is not None:
        return CLOSE_UNLESS_PAUSED
    return HOW_TO_CLOSE.get(commit.closing.state, CLOSE_IF_READ)


def runs_params(ordered: Sequence[RunCommit], runs: list[str], flush: int) -> Params:
    """What every commit has."""
    close: str | None = None
    if any(c.closing or c.release or c.park is not None for c in ordered):
        close = literal(how_to_leave(c) for c in ordered)
    read_runs: str | None = None
    read_ids: str | None = None
    if any(c.consumed for c in ordered):
        read_runs = uuids([c.run_id for c in ordered for _ in c.consumed])
        read_ids = literal(inbox_id for c in ordered for inbox_id in c.consumed)
    return (
        flush,
        uuids(runs),
        literal([c.fence for c in ordered]),
        literal([c.expected_seq for c in ordered]),
        blobs([c.batch for c in ordered]),
        literal([c.head_hash for c in ordered]),
        close,
        read_runs,
        read_ids,
    )


def timers_params(ordered: Sequence[RunCommit]) -> Params:
    """Timers that start, timers that are over."""
    timers = [(c.run_id, t) for c in ordered for t in c.timers]
    done = [(c.run_id, ref) for c in ordered for ref in c.timers_done]
    return (
        uuids([run for run, _ in timers]),
        literal([t.ref for _, t in timers]),
        literal([int(t.kind) for _, t in timers]),
        literal([t.due_us for _, t in timers]),
        uuids([run for run, _ in done]),
        literal([ref for _, ref in done]),
    )


def activities_params(ordered: Sequence[RunCommit]) -> Params:
    """Activities for the queues."""
    runs = [c.run_id for c in ordered for _ in c.activities]
    items = [a for c in ordered for a in c.activities]
    return (
        uuids(runs),
        literal([a.ref for a in items]),
        texts([a.name for a in items]),
        texts([a.queue for a in items]),
        literal([a.priority for a in items]),
        literal([a.attempt for a in items]),
        blobs([a.input for a in items]),
        blobs([a.options for a in items]),
        literal([a.delay_us for a in items]),
        blobs([a.last_failure for a in items]),
        blobs([a.details for a in items]),
        literal([a.scheduled_us for a in items]),
    )


def responses_params(ordered: Sequence[RunCommit]) -> Params:
    """Answers to updates and queries."""
    items = [(c.run_id, r) for c in ordered for r in c.responses]
    return (
        uuids([run for run, _ in items]),
        texts([r.request_id for _, r in items]),
        blobs([r.payload for _, r in items]),
        blobs([r.failure for _, r in items]),
    )


def kept_params(ordered: Sequence[RunCommit]) -> Params:
    """Outcomes that wait until their runs are resumed."""
    items = [(c.run_id, fact) for c in ordered for fact in c.kept]
    return (
        uuids([run for run, _ in items]),
        literal([fact.kind for _, fact in items]),
        literal([fact.ref for _, fact in items]),
        blobs([fact.payload for _, fact in items]),
    )


def releases_params(given: Sequence[RunCommit]) -> Params:
    """Runs that this session gives up."""
    return (
        uuids([c.run_id for c in given]),
        blobs([c.park for c in given]),
        literal([c.unpark_at_us for c in given]),
    )


def closing_calls(closing: Sequence[RunCommit]) -> list[Call]:
    """Ends of runs, and successors."""
    ends = [c.closing for c in closing if c.closing is not None]
    calls: list[Call] = [
        (
            "commit_closes",
            (
                uuids([c.run_id for c in closing]),
                literal([int(end.state) for end in ends]),
                blobs([end.result for end in ends]),
                blobs([end.failure for end in ends]),
                literal([c.successor.run_id if c.successor else None for c in closing]),
            ),
        )
    ]
    chained = [(c.run_id, c.successor) for c in closing if c.successor is not None]
    if chained:
        params = list(start_params([new for _, new in chained]))
        # The reuse of the id is settled, and the deadline of a chain goes over from run to run.
        del params[START_EXECUTION : START_REUSE + 1]
        calls.append(("commit_successors", (uuids([old for old, _ in chained]), *params)))
    return calls


START_EXECUTION, START_REUSE = 11, 12
"""Places among the parameters of a start."""


def close_params(commit: RunCommit, closing: Closing, flush: int) -> Params:
    """The last commit of one run, for close_run."""
    return (
        flush,
        commit.run_id,
        commit.fence,
        commit.expected_seq,
        commit.batch,
        commit.head_hash,
        how_to_leave(commit),
        literal(commit.consumed) if commit.consumed else None,
        int(closing.state),
        closing.result,
        closing.failure,
    )


def start_run_params(run: NewRun) -> Params:
    """One new run, for start_run."""
    return (
        run.run_id,
        run.workflow_id,
        run.workflow_type,
        run.queue,
        run.priority,
        run.version,
        run.batch,
        run.head_hash,
        int(IdReuse(run.id_reuse)),
        None if run.search is None else run.search.decode(),
    )


def start_params(runs: Sequence[NewRun], parents: Sequence[str] | None = None) -> Params:
    """New runs, for start_runs and what is built on it."""
    return (
        uuids([r.run_id for r in runs]),
        texts([r.workflow_id for r in runs]),
        texts([r.workflow_type for r in runs]),
        texts([r.queue for r in runs]),
        literal([r.priority for r in runs]),
        texts([r.version for r in runs]),
        blobs([r.batch for r in runs]),
        literal([r.head_hash for r in runs]),
        literal([r.start_delay_us for r in runs]),
        literal([r.start_at_us for r in runs]),
        literal([r.run_timeout_us for r in runs]),
        literal([r.execution_timeout_us for r in runs]),
        literal([int(IdReuse(r.id_reuse)) for r in runs]),
        literal(parents if parents is not None else [r.parent_run_id for r in runs]),
        literal([r.parent_ref for r in runs]),
        texts([None if r.search is None else r.search.decode() for r in runs]),
    )


def keys(runs: Sequence[NewRun]) -> Params:
    """The keys of new runs, for start_runs; most starts have none."""
    dedup, debounce = [r.dedup_key for r in runs], [r.debounce_key for r in runs]
    return (texts(dedup) if any(dedup) else None, texts(debounce) if any(debounce) else None)


def replace_params(run: NewRun) -> Params:
    """A new start of a debounced run, for replace_start."""
    return (
        run.run_id,
        run.version,
        run.priority,
        run.batch,
        run.head_hash,
        run.start_at_us,
        run.run_timeout_us,
        run.execution_timeout_us,
        None if run.search is None else run.search.decode(),
    )


def start_and_send_params(runs: Sequence[NewRun], messages: Sequence[Message]) -> Params:
    """New runs, and the message for each of them."""
    kind, _, _, name, meta, payload, _, request_id = send_params(messages)
    return (*start_params(runs), kind, name, meta, payload, request_id)


def send_params(messages: Sequence[Message]) -> Params:
    """Messages, for send and what is built on it."""
    return (
        literal([m.kind + 0 for m in messages]),
        texts([m.workflow_id for m in messages]),
        literal([m.run_id for m in messages]),
        texts([m.name for m in messages]),
        blobs([m.meta for m in messages]),
        blobs([m.payload for m in messages]),
        literal([m.ref for m in messages]),
        texts([m.request_id for m in messages]),
    )
