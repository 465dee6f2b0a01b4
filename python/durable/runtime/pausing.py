"""Pausing: what a worker does with a run that somebody has paused.

The word comes as mail. From then on the run takes nothing but what ends it from outside: its mail
stays in the inbox, its timers are left to the database, and what the activities bring that run for
it here is *held*. When the last of them has ended, what is held goes into the inbox with the commit
that gives the run up. A run that is resumed before that is built again, and takes what was held.
"""

from __future__ import annotations

from collections.abc import Iterable

from durable.events import (
    PAUSED_WORD,
    Closing,
    EventKind,
    InboxItem,
    KeptFact,
    MessageKind,
    RunState,
)
from durable.runtime.warm import WarmRun

TIMER_FIRED = int(EventKind.TIMER_FIRED)
ENDINGS = (EventKind.RUN_TERMINATED, EventKind.RUN_TIMED_OUT)
"""What a paused run takes all the same."""
HEEDED = (*ENDINGS, MessageKind.PAUSE)
"""All that it reads of its mail: however much there is, and wherever these stand in it."""


def words_of(items: Iterable[InboxItem]) -> list[InboxItem]:
    """The items that say that the run was paused or resumed; the first one counts."""
    return [item for item in items if item.kind == MessageKind.PAUSE]


def says_paused(word: InboxItem) -> bool:
    """Whether that item says that the run is paused."""
    return word.name == PAUSED_WORD


def ending_of(items: Iterable[InboxItem]) -> Closing | None:
    """How the first item that ends a run from outside ends it; None when there is none."""
    for item in items:
        if item.kind == EventKind.RUN_TERMINATED:
            return Closing(RunState.TERMINATED, failure=item.payload or b"{}")
        if item.kind == EventKind.RUN_TIMED_OUT:
            return Closing(RunState.TIMED_OUT, failure=item.payload or b"{}")
    return None


def may_leave(run: WarmRun) -> bool:
    """Whether a paused run can be given up: nothing that runs here is for it."""
    return run.held is not None and not run.running and not run.frozen


def kept(run: WarmRun) -> list[KeptFact]:
    """What of the held facts exists nowhere else: mail and timers have rows."""
    return [
        KeptFact(fact.kind, fact.ref, fact.payload)
        for fact in run.held or ()
        if not fact.item_id and fact.kind != TIMER_FIRED
    ]
