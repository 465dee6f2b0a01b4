"""Attempt: one try of one activity, and how it ended. Plain data."""

from __future__ import annotations

import asyncio
import time
from enum import Enum
from typing import Any, NamedTuple, Protocol

from durable.codec import check_size
from durable.engine.definition import ActivityDefinition
from durable.engine.info import ActivityContext
from durable.events import ActivityOutcome, EventKind, Hold
from durable.options import PAYLOAD_BYTES_WARN, ActivityOptions, seconds
from durable.runtime.activity_pool import Job, Reply

RETRY = 0
"""The kind of an ending that asks for another attempt (as in `ActivityOutcome.kind`)."""


class Stop(Enum):
    """Why an attempt was told to stop before its end."""

    CANCELLED = "cancelled"
    """The workflow asked for it, and hears what became of it."""
    TIMED_OUT = "timed_out"
    VOID = "void"
    """Nobody wants its outcome any more."""
    DRAINED = "drained"
    """This worker ends; another one tries again."""


class Ending(NamedTuple):
    """How an attempt ended. ``kind``: ACTIVITY_COMPLETED, ACTIVITY_FAILED, or RETRY."""

    kind: int
    payload: bytes | None
    delay_us: int = 0
    count_attempt: bool = True

    @property
    def is_retry(self) -> bool:
        """Whether another attempt follows."""
        return self.kind == RETRY


class Source(Protocol):
    """Who started the attempt and records how it ended."""

    def ended(self, attempt: Attempt, ending: Ending) -> None:
        """Called once, on the loop thread; never for a void attempt."""

    def released(self, attempt: Attempt) -> None:
        """Called once, after `ended` or without it: its code has returned and its slot is free."""


class Attempt:
    """One try. ``token`` is 0 for an eager one, which only this worker knows of.

    Such a one has the ``fence`` of its run, by which this worker owns it.
    """

    __slots__ = (
        "beat_timer",
        "beaten_at",
        "context",
        "definition",
        "details",
        "fence",
        "input",
        "is_concluded",
        "is_detached",
        "is_recorded",
        "job",
        "name",
        "number",
        "options",
        "options_json",
        "ref",
        "reply",
        "run_id",
        "source",
        "started_at",
        "stop",
        "task",
        "timers",
        "token",
    )

    def __init__(
        self,
        source: Source,
        definition: ActivityDefinition[Any, Any],
        context: ActivityContext,
        *,
        input: bytes,
        options: ActivityOptions,
        options_json: bytes,
        token: int = 0,
        fence: int = 0,
    ) -> None:
        self.source = source
        self.definition = definition
        self.context = context
        self.run_id = context.run_id
        self.ref = context.ref
        self.name = context.name
        self.number = context.attempt
        self.input = input
        self.options = options
        self.options_json = options_json
        self.token = token
        self.fence = fence
        self.details: bytes | None = None
        """What its last heartbeat reported (a JSON array), for the next attempt."""
        self.stop: Stop | None = None
        self.is_concluded = False
        """Its outcome was reported or is void; its code may still be running."""
        self.is_detached = False
        """Others will say how it ended, by its task token."""
        self.is_recorded = False
        """The database has its result already: there is nothing left to answer."""
        self.task: asyncio.Task[None] | None = None
        self.job: Job | None = None
        """Its life in another process, if it runs in one."""
        self.reply: tuple[BaseException, Reply] | None = None
        """What that process said last, and the exception that interceptors saw for it."""
        self.timers: list[asyncio.TimerHandle] = []
        self.beat_timer: asyncio.TimerHandle | None = None
        self.started_at = 0.0
        self.beaten_at = 0.0

    @property
    def beat_limit(self) -> float | None:
        """Its heartbeat timeout in seconds."""
        limit = self.options.heartbeat_timeout
        return None if limit is None else seconds(limit, "heartbeat_timeout")

    def hold(self) -> Hold | None:
        """What lets it write to its run; None when this worker knows that nothing does."""
        if self.is_concluded:
            return None
        return Hold(self.ref, self.token) if self.token else Hold(0, self.fence)

    def outcome(self, ending: Ending) -> ActivityOutcome:
        """Its ending as the store takes it."""
        return ActivityOutcome(
            run_id=self.run_id,
            ref=self.ref,
            attempt=self.number,
            token=self.token,
            kind=ending.kind,
            payload=ending.payload,
            delay_us=ending.delay_us,
            details=self.details,
            count_attempt=ending.count_attempt,
        )

    def beat(self, details: tuple[Any, ...]) -> None:
        """Its code says that it makes progress. Called on whatever thread the code runs on.

        Raises CancelledError on a thread whose attempt was told to stop: it cannot be interrupted
        in any other way.
        """
        if details:
            encoded = self.definition.codec.encode(list(details))
            if len(encoded) > PAYLOAD_BYTES_WARN:
                check_size(encoded, f"the heartbeat details of activity {self.name}")
            self.details = encoded
        self.beaten_at = time.monotonic()
        if self.context.is_cancelled and self.task is None:
            raise asyncio.CancelledError(f"activity {self.name} was told to stop")

    def beaten(self, details: bytes | None) -> None:
        """Its code, in another process, says that it makes progress. Called on the loop."""
        if details is not None:
            self.details = details
        self.beaten_at = time.monotonic()

    def cancel_timers(self) -> None:
        """Its time limits no longer matter."""
        for timer in self.timers:
            timer.cancel()
        if self.beat_timer is not None:
            self.beat_timer.cancel()


def running_seconds(options: ActivityOptions) -> float | None:
    """How long an attempt may run or be silent, counted from its start."""
    limits = (options.start_to_close_timeout, options.heartbeat_timeout)
    return min((seconds(x, "a timeout") for x in limits if x is not None), default=None)


def waiting_seconds(options: ActivityOptions) -> float | None:
    """How long a queued attempt may wait, counted from when it was queued."""
    limits = (options.schedule_to_start_timeout, options.schedule_to_close_timeout)
    return min((seconds(x, "a timeout") for x in limits if x is not None), default=None)


COMPLETED = int(EventKind.ACTIVITY_COMPLETED)
FAILED = int(EventKind.ACTIVITY_FAILED)
