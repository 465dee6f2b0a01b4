"""Telling: hints that go to the database together with what they are about.

Who waits for a single start or a single end waits for one trip less: the hint is part of the
transaction. A commit that notifies holds a lock of the whole server, so the database lets one
transaction at a time do so (`tell`), and many starts or ends, which are one transaction with a hint
after it (`Hinter`), never ask.
"""

from __future__ import annotations

from collections.abc import Sequence

from durable.events import NewRun, RunCommit
from durable.store.base import DONE, Hint
from durable.store.commits import Call, Params, close_params, has_sides
from durable.store.notify import channel, write

ENDS_MAX = 4
"""Runs in one commit whose clients are told by it. More are work enough to hide a trip."""
ENDING = ["commit_runs", "commit_closes"]
ANSWERING = ["commit_runs", "commit_responses"]


def is_plain(run: NewRun) -> bool:
    """Whether the run begins now and may take its time: otherwise its start is a timer too."""
    limits = run.start_at_us, run.run_timeout_us, run.execution_timeout_us
    return not run.start_delay_us and limits == (None, None, None)


def is_single(runs: Sequence[NewRun]) -> bool:
    """Whether this is one start of the kind that `start_run` is for."""
    if len(runs) != 1 or not is_plain(runs[0]):
        return False
    return runs[0].dedup_key is runs[0].debounce_key is runs[0].parent_run_id is None


def start_hint(schema: str, runs: Sequence[NewRun]) -> Params:
    """Channel and payload of the hint that goes with a start; NULLs when it is to come after."""
    if len(runs) != 1:
        return None, None
    return channel(schema, done=False), write(Hint(runs_only=is_plain(runs[0])))


def single_end(schema: str, commits: Sequence[RunCommit], flush: int) -> Call | None:
    """A commit that is the end of one run and nothing else, with its hint; else None."""
    first = commits[0]
    if len(commits) != 1 or first.closing is None or first.successor or has_sides(first):
        return None
    hint = channel(schema, done=True), write(Hint(done=True, run_ids=(first.run_id,)))
    return "close_run", (*close_params(first, first.closing, flush), *hint)


def join_ends(schema: str, calls: list[Call], ordered: Sequence[RunCommit]) -> list[Call]:
    """The calls of a commit; a few ends, or answers, with nothing else to write, as one call with
    its hint."""
    names = [name for name, _ in calls]
    if names == ANSWERING and len(ordered) <= ENDS_MAX:
        told = channel(schema, done=True), write(DONE)
        return [("commit_and_respond", (*calls[0][1], *calls[1][1], *told))]
    if names != ENDING:
        return calls
    ended = tuple(commit.run_id for commit in ordered if commit.closing is not None)
    if len(ended) > ENDS_MAX:
        return calls
    hint = channel(schema, done=True), write(Hint(done=True, run_ids=ended))
    return [("commit_and_close", (*calls[0][1], *calls[1][1], *hint))]
