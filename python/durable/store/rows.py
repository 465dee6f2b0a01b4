"""Rows of the view queries as the values that clients see."""

from __future__ import annotations

from typing import Any

from durable.events import RunState, RunView

DELAYED = 2
"""Inside the tables: an open run that must not start yet."""

ONE_OF_MANY = 15
"""Columns of a run among many; that of one alone has its fence, too."""


STATES = {int(state): state for state in RunState} | {DELAYED: RunState.RUNNING}


def view_state(state: int) -> RunState:
    """A state of the tables as clients see it."""
    return STATES[state]


def run_view(row: tuple[Any, ...]) -> RunView:
    """A row of the view queries as a RunView."""
    state, search = row[5], row[13]
    return RunView(
        row[0],
        row[1],
        row[2],
        row[3],
        row[4],
        view_state(state),
        row[6],
        row[7],
        row[8],
        row[9],
        row[10],
        row[11],
        row[12],
        None if search is None else search.encode(),
        row[14],
        row[15] if len(row) > ONE_OF_MANY else 0,
    )
