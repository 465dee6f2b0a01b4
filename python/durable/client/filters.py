"""Filters: which runs are meant by what is done to many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from durable.client.checks import check_id
from durable.codec import Codec
from durable.engine.attributes import wanted_search
from durable.errors import InvalidArgumentError
from durable.events import RunState
from durable.store.pages import OpenRuns, Runs

IDS_MAX = 10_000
OPEN_STATES = (RunState.RUNNING, RunState.PARKED, RunState.PAUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which open runs are meant (for `Client.reset_many` closed ones too): what fits all of it.

    To change every open run there is, say so: ``RunFilter(everything=True)``.
    """

    workflow_type: str | None = None
    states: Sequence[int] = ()
    """RUNNING, PARKED or PAUSED, and for a reset FAILED and its like; a paused run is PAUSED."""
    queue: str | None = None
    id_prefix: str | None = None
    """What the workflow id begins with."""
    search: Mapping[str, Any] | None = None
    """Search attributes it has: equal, or for a list at least these elements."""
    started_after: datetime | None = None
    """Started at this time or later; with a time zone."""
    started_before: datetime | None = None
    """Started before this time; with a time zone."""
    closed_after: datetime | None = None
    """Closed at this time or later; with a time zone. For a reset of closed states only."""
    closed_before: datetime | None = None
    """Closed before this time, likewise."""
    ids: Sequence[str] | None = None
    """Of these workflow ids, at most 10,000."""
    everything: bool = False
    """Every open run is meant, where nothing else is given."""


EVERY_RUN = RunFilter(everything=True)


def open_runs(runs: RunFilter, codec: Codec) -> OpenRuns:
    """A filter of open runs as the store takes it; raise InvalidArgumentError for any other."""
    if any(state >= RunState.COMPLETED for state in runs.states):
        raise InvalidArgumentError("only open runs: states are RUNNING, PARKED and PAUSED")
    if is_about_ends(runs):
        raise InvalidArgumentError(
            "only open runs, which have no time of closing: closed_after and closed_before "
            "are for reset_many, with closed states"
        )
    return OpenRuns(*meant(runs, codec))


def all_runs(runs: RunFilter, codec: Codec) -> Runs:
    """A filter of open and closed runs as the store takes it; open ones where it has no states."""
    states = tuple(runs.states) or OPEN_STATES
    if is_about_ends(runs) and not any(state >= RunState.COMPLETED for state in states):
        raise InvalidArgumentError(
            "closed_after and closed_before are about closed runs: say which, as in "
            "states=[RunState.FAILED]"
        )
    return listed_runs(replace(runs, states=states), codec)


def listed_runs(runs: RunFilter, codec: Codec) -> Runs:
    """A filter as the store takes it; where it has no states, runs of any."""
    return replace(
        Runs(*meant(runs, codec)),
        closed_from_us=time_us(runs.closed_after, "closed_after"),
        closed_until_us=time_us(runs.closed_before, "closed_before"),
    )


def meant(runs: RunFilter, codec: Codec) -> tuple[Any, ...]:
    """The fields of a filter as the store takes them, but for times of closing."""
    for text in (runs.workflow_type, runs.queue, runs.id_prefix):
        if text is not None:
            check_id(text, "what a filter names")
    if isinstance(runs.states, str) or not all(isinstance(each, int) for each in runs.states):
        raise InvalidArgumentError(
            f"states are a list such as [RunState.FAILED], not {runs.states!r}"
        )
    return (
        runs.workflow_type,
        tuple(int(state) for state in runs.states),
        runs.queue,
        runs.id_prefix,
        wanted_search(runs.search, codec),
        time_us(runs.started_after, "started_after"),
        time_us(runs.started_before, "started_before"),
        None if runs.ids is None else tuple(check_ids(runs.ids)),
    )


def check_meant(runs: RunFilter) -> None:
    """Raise InvalidArgumentError for a filter that says nothing."""
    if runs == RunFilter():
        raise InvalidArgumentError(
            "an empty filter means every open run: say RunFilter(everything=True) to mean it"
        )


def is_about_ends(runs: RunFilter) -> bool:
    """Whether a filter names times of closing."""
    return runs.closed_after is not None or runs.closed_before is not None


def check_ids(ids: Sequence[str]) -> Sequence[str]:
    """The ids, each once; raise InvalidArgumentError for what cannot be a list of them."""
    if isinstance(ids, str) or len(ids) > IDS_MAX:
        raise InvalidArgumentError(f"ids are a list of at most {IDS_MAX:,} workflow ids")
    return [check_id(each, "a workflow id") for each in dict.fromkeys(ids)]


def time_us(moment: datetime | None, what: str) -> int | None:
    """A time in microseconds; raise InvalidArgumentError for one without a zone."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise InvalidArgumentError(f"{what} needs a time zone: {moment!r}")
    return round(moment.timestamp() * 1e6)
