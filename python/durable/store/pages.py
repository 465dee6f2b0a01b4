"""Pages: open runs that fit a filter, in order of their run ids.

A page begins after the last run of the one before, so runs that close or start meanwhile move
nothing: what is done to many runs goes over them once, in short transactions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from durable.events import RunView


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

    def fits(self, view: RunView, has_attributes: Callable[[bytes, bytes], bool]) -> bool:
        """Whether it is one of them; ``has_attributes`` says if its attributes contain ours."""
        return (
            self.workflow_type in (None, view.workflow_type)
            and (not self.states or view.state in self.states)
            and self.queue in (None, view.queue)
            and view.workflow_id.startswith(self.id_prefix or "")
            and (self.from_us is None or view.created_us >= self.from_us)
            and (self.until_us is None or view.created_us < self.until_us)
            and (
                self.search is None
                or (view.search is not None and has_attributes(view.search, self.search))
            )
        )
