"""News: what the commits of one flush mean to others, so that they are told of just that."""

from __future__ import annotations

from durable.events import RunCommit


class News:
    """What others may want to look at after a flush."""

    def __init__(self) -> None:
        self.runs = False
        """Runs got mail or can be claimed."""
        self.activities = False
        """Activities were queued, or timers of others were written."""
        self.answers = False
        """Updates or queries were answered."""
        self.closed: list[str] = []
        """Runs that closed, and whose clients do not know."""

    def __bool__(self) -> bool:
        return self.runs or self.activities or self.answers or bool(self.closed)

    def add(self, commit: RunCommit) -> None:
        """A commit was accepted."""
        if commit.activities:
            self.activities = True
        if commit.children or commit.messages or commit.successor:
            # They may have begun with a delay or a time limit, which are timers.
            self.runs = self.activities = True
        if commit.kept:
            # The run may have been resumed meanwhile.
            self.runs = True
        if commit.responses:
            self.answers = True
        if commit.closing is not None:
            self.closed.append(commit.run_id)
            if commit.parent_run_id is not None:
                self.runs = True
