"""Settled: up to which id a table's rows are all there that will ever be.

Ids come from a sequence, so rows do not become visible in their order: who has a lower one may
commit later, or never. Whoever inserts has a transaction id before it draws an id (a lock on a row
gives it one, and mail is put in only by who holds the run's row). So of all ids up to one that a
snapshot shows, each was drawn by a transaction that this snapshot knows of: by a later one in which
none of those is under way any more, all of them are there or never will be.

That holds for one server. A standby that took over may lack the last transactions of the one before
it, and give their ids out again; it is another server by the time at which it was started.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

MARKS_MAX = 64
"""What is kept while some transaction does not end: later marks are joined with the last one."""


class Floor(NamedTuple):
    """Up to which id everything is known, and on which server. An id of 0 is before all."""

    server: int
    id: int


NO_FLOOR = Floor(0, 0)


class Settled:
    """What the snapshots of reads tell about ids. Each read is told of once, in any order."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, int]] = deque()
        """A snapshot's end (the first transaction it knows nothing of), and an id it showed."""
        self._known = (0, 0)
        """The last mark that was reached."""
        self._server = 0

    def note(self, server: int, xmin: int, xmax: int, highest: int) -> Floor:
        """A read saw ``highest``, in a snapshot in which ``xmin`` is the oldest transaction under
        way and ``xmax`` the first one to come. Returns the id up to which it saw all there is."""
        marks = self._marks
        if server != self._server:
            self._server, self._known = server, (0, 0)
            marks.clear()
        while marks and marks[0][0] <= xmin:
            self._known = marks.popleft()
        # What a snapshot has shown is settled by the end of any later one, too.
        end, known = marks[-1] if marks else self._known
        if marks and (len(marks) >= MARKS_MAX or end >= xmax):
            marks.pop()
        marks.append((max(xmax, end), max(highest, known)))
        end, settled = self._known
        # One that was reached by a later snapshot says nothing of this one.
        return Floor(server, settled if end <= xmin else 0)
