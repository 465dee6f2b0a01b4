"""Pages: runs that fit a filter, so many at a time.

A page begins after the last run of the one before, so runs that close or start meanwhile move
nothing. Sweeps go over open runs in order of their run ids, once, in short transactions; listings
show all runs, the newest first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from durable.events import RunState, RunView

Contains = Callable[[bytes, bytes], bool]
CLOCK_SLACK_US = 600 * 1_000_000
Place = tuple[int, str]
"""Where a page of a listing ended: when its last run was made, in microseconds, and its run id."""


@dataclass(frozen=True, slots=True)
class OpenRuns:
    """Which open runs are meant; what is None (or empty) leaves all. Times are microseconds."""

    workflow_type: str | None = None
    states: tuple[int, ...] = ()
    queue: str | None = None
    id_prefix: str | None = None
    search: bytes | None = None
    """A JSON object that the search attributes must contain, in the sense of ``jsonb @>``."""
    from_us: int | None = None
    """Created at this time or later."""
    until_us: int | None = None
    """Created before this time."""
    ids: tuple[str, ...] | None = None
    """Of these workflow ids."""

    def fits(self, view: RunView, has_attributes: Contains) -> bool:
        """Whether it is one of them; ``has_attributes`` says if its attributes contain ours."""
        return (
            (self.ids is None or view.workflow_id in self.ids)
            and self.workflow_type in (None, view.workflow_type)
            and (not self.states or view.state in self.states)
            and self.queue in (None, view.queue)
            and view.workflow_id.startswith(self.id_prefix or "")
            and is_between(view.created_us, self.from_us, self.until_us)
            and (
                self.search is None
                or (view.search is not None and has_attributes(view.search, self.search))
            )
        )


@dataclass(frozen=True, slots=True)
class Runs(OpenRuns):
    """Which runs are meant, open or closed."""

    closed_from_us: int | None = None
    """Closed at this time or later."""
    closed_until_us: int | None = None
    """Closed before this time."""

    @property
    def started_until_us(self) -> int | None:
        """Nothing that fits was made at this time or later.

        What closed before a moment was also made before it: that bounds a walk along the times of
        start, which else would begin at runs of which none fits. The slack is for clocks that were
        set back in between.
        """
        if self.closed_until_us is None:
            return self.until_us
        bound = self.closed_until_us + CLOCK_SLACK_US
        return bound if self.until_us is None else min(self.until_us, bound)

    @property
    def wants_open(self) -> bool:
        """Whether an open run can be one of them."""
        if self.closed_from_us is not None or self.closed_until_us is not None:
            return False
        return not self.states or any(state < RunState.COMPLETED for state in self.states)

    @property
    def wants_closed(self) -> bool:
        """Whether a closed run can be."""
        return not self.states or any(state >= RunState.COMPLETED for state in self.states)

    def fits(self, view: RunView, has_attributes: Contains) -> bool:
        """As `OpenRuns.fits`."""
        return OpenRuns.fits(self, view, has_attributes) and is_between(
            view.closed_us, self.closed_from_us, self.closed_until_us
        )


ALL_RUNS = Runs()


def is_between(when_us: int | None, from_us: int | None, until_us: int | None) -> bool:
    """Whether a time, if there is one, is in these bounds; None is no bound."""
    if when_us is None:
        return from_us is None and until_us is None
    return (from_us is None or when_us >= from_us) and (until_us is None or when_us < until_us)
