"""Slots: how much one worker may run at once, and what it may take on now.

A slot is taken before an attempt is claimed, or started straight from its workflow, and given back
when its code has returned. Besides the slots of the worker there are the places of each kind of
executor (threads, processes) and what `WorkerOptions` allows of single queues. Plain numbers: what
holds for the whole fleet is the store's to keep.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from durable.engine.definition import ActivityDefinition
from durable.engine.registry import Table
from durable.events import DYNAMIC

CLAIM_MAX = 64
TOGETHER_MIN = 8
"""Kinds of executors that have so many places left are claimed for in one go."""


class Offer(NamedTuple):
    """What a worker can take on now: attempts of these names from these queues."""

    queues: list[str]
    names: list[str]


class Share:
    """What one worker may run of one queue: so many at once, so many starts per second.

    After a pause one second's worth may start at once.
    """

    def __init__(self, slots: int | None, rate: float | None) -> None:
        self._slots = slots
        self._rate = rate
        self._used = 0
        self._burst = max(1.0, rate or 0.0)
        self._tokens = self._burst
        self._refilled_at = time.monotonic()

    def room(self) -> int:
        """How many attempts may start now."""
        room = CLAIM_MAX if self._slots is None else self._slots - self._used
        if self._rate is not None:
            self._refill(self._rate)
            room = min(room, int(self._tokens))
        return max(room, 0)

    @property
    def seconds_to_token(self) -> float | None:
        """When the next attempt may start, if it is the rate that forbids it now."""
        if self._rate is None or (self._slots is not None and self._used >= self._slots):
            return None
        self._refill(self._rate)
        return max(0.0, 1.0 - self._tokens) / self._rate

    def take(self, count: int) -> None:
        """So many start."""
        self._used += count
        self._tokens -= count

    def put_back(self, count: int) -> None:
        """So many did not start after all."""
        self._used -= count
        self._tokens += count

    def give_back(self) -> None:
        """One has ended."""
        self._used -= 1

    def _refill(self, rate: float) -> None:
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + rate * (now - self._refilled_at))
        self._refilled_at = now


class Slots:
    """The activity slots of one worker."""

    def __init__(
        self,
        definitions: Table[ActivityDefinition[Any, Any]],
        *,
        queues: Collection[str],
        slots: int,
        places: Mapping[str, int],
        queue_slots: Mapping[str, int],
        queue_rates: Mapping[str, float],
    ) -> None:
        self._definitions = definitions
        self._queues = list(queues)
        self._slots = slots
        self._places = {**places, "loop": slots}
        """Of attempts that run at once on each kind of executor; `_taken` counts them."""
        self._taken = dict.fromkeys(self._places, 0)
        self._shares = {
            queue: Share(queue_slots.get(queue), queue_rates.get(queue))
            for queue in self._queues
            if queue in queue_slots or queue in queue_rates
        }
        self._reserved = 0
        self.limited: frozenset[str] = frozenset()
        """Queues with limits: those are kept at the claim, so their activities go that way."""

    # -- what there is -----------------------------------------------------------------------

    @property
    def free(self) -> int:
        """Slots that are neither in use nor promised."""
        return self._slots - self._reserved

    @property
    def is_short(self) -> bool:
        """Whether some of what this worker serves cannot be taken on for lack of room."""
        return (
            self.free <= 0
            or not all(self._left(name) for name in self._definitions)
            or not all(share.room() for share in self._shares.values())
        )

    @property
    def seconds_to_room(self) -> float | None:
        """When a rate allows the next attempt of a queue that has none now."""
        waits = [share.seconds_to_token for share in self._shares.values() if not share.room()]
        return min((wait for wait in waits if wait is not None), default=None)

    def offers(self) -> list[Offer]:
        """What can be taken on now; as few claims as do not bring more than there is room for."""
        if self.free <= 0:
            return []
        kinds: dict[str, list[str]] = {}
        for name, definition in self._definitions.items():
            if self._left(name) > 0:
                kinds.setdefault(definition.executor, []).append(name)
        groups = list(kinds.values())
        if len(groups) > 1 and all(self._left(names[0]) >= TOGETHER_MIN for names in groups):
            groups = [[name for names in groups for name in names]]
        lines = [[queue] for queue, share in self._shares.items() if share.room() > 0]
        others = [queue for queue in self._queues if queue not in self._shares]
        if others:
            lines.insert(0, others)
        return [Offer(queues, names) for queues in lines for names in groups]

    def names(self, offer: Offer) -> list[str]:
        """An offer's names as `Store.claim_activities` takes them.

        Where a dynamic activity is among them: itself, and those that are not to be claimed.
        """
        if DYNAMIC not in offer.names:
            return offer.names
        return [DYNAMIC, *(name for name in self._definitions if name not in offer.names)]

    def room(self, offer: Offer) -> int:
        """How many attempts an offer has room for."""
        room = min(self.free, CLAIM_MAX, *(self._left(name) for name in offer.names))
        share = self._shares.get(offer.queues[0])
        return room if share is None else min(room, share.room())

    def _left(self, name: str) -> int:
        executor = self._executor(name)
        return self._places[executor] - self._taken[executor]

    def _executor(self, name: str) -> str:
        definition = self._definitions.find(name)
        assert definition is not None, name
        return definition.executor

    # -- taking and giving back --------------------------------------------------------------

    def reserve(self, name: str, queue: str) -> bool:
        """Take a slot for an activity of that name and queue, if this worker can run it now."""
        definition = self._definitions.find(name)
        if definition is None or self._reserved >= self._slots or queue not in self._queues:
            return False
        executor = definition.executor
        if self._taken[executor] >= self._places[executor]:
            return False
        if queue in self.limited or definition.traits.needs_row:
            return False
        share = self._shares.get(queue)
        if share is not None:
            if share.room() <= 0:
                return False
            share.take(1)
        self._taken[executor] += 1
        self._reserved += 1
        return True

    def hold(self, queue: str, count: int) -> None:
        """Take slots for attempts that are about to be claimed; see `use_held`.

        ``queue`` is the first of the offer's.
        """
        self._reserved += count
        if (share := self._shares.get(queue)) is not None:
            share.take(count)

    def let_go(self, queue: str, count: int) -> None:
        """Return held slots that nothing was claimed for."""
        self._reserved -= count
        if (share := self._shares.get(queue)) is not None:
            share.put_back(count)

    def use_held(self, name: str, queue: str) -> bool:
        """Use one held slot; False (and the slot is free again) when there is no place for it."""
        if self._left(name) <= 0:
            self.let_go(queue, 1)
            return False
        self._taken[self._executor(name)] += 1
        return True

    def give_back(self, name: str, queue: str) -> None:
        """Return a slot that was taken."""
        self._reserved -= 1
        self._taken[self._executor(name)] -= 1
        if (share := self._shares.get(queue)) is not None:
            share.give_back()
