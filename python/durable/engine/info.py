"""What code may know about the run or the attempt it is part of.

`WorkflowInfo` and `ActivityInfo` are what users see. `ActivityContext` is what the runtime puts
around an attempt: it holds the facts of the attempt, takes its heartbeats, and carries what the
activity decides about its own next attempt back to the runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from durable.engine.streams import StreamWriter
from durable.errors import ConfigurationError, ContextError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DURATION_SECONDS_MAX = 1000 * 366 * 24 * 3600
"""Longer than any wait that is meant, and far from what overflows a history's times."""
NO_HEADERS: Mapping[str, Any] = {}


def to_datetime(time_us: int) -> datetime:
    """Microseconds since the epoch as an aware datetime, to the microsecond."""
    return EPOCH + timedelta(microseconds=time_us)


def to_us(when: datetime) -> int:
    """An aware datetime as microseconds since the epoch; a naive one is taken as UTC."""
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return (when - EPOCH) // timedelta(microseconds=1)


def duration_us(duration: timedelta | float | int) -> int:
    """A duration (timedelta, or seconds) in microseconds.

    Raise ConfigurationError for what is not a finite number, or over a thousand years.
    """
    if isinstance(duration, timedelta):
        duration_us = duration // timedelta(microseconds=1)
    elif isinstance(duration, str) or not abs(duration) <= DURATION_SECONDS_MAX:
        duration_us = DURATION_SECONDS_MAX * 1_000_000 + 1
    else:
        duration_us = round(duration * 1_000_000)
    if abs(duration_us) > DURATION_SECONDS_MAX * 1_000_000:
        raise ConfigurationError(
            f"not a duration of at most a thousand years, a timedelta or seconds: {duration!r}"
        )
    return duration_us


@dataclass(frozen=True)
class ParentInfo:
    """The run that started this one as its child."""

    run_id: str
    workflow_id: str
    ref: int
    """Event id of the start in the parent's history."""


@dataclass(frozen=True)
class WorkflowInfo:
    """The facts of a run. They never change while it runs."""

    workflow_id: str
    run_id: str
    name: str
    """The workflow's registered name."""
    queue: str
    version: str | None = None
    attempt: int = 1
    """Counts the runs that the workflow's own retry policy started, from 1."""
    parent: ParentInfo | None = None
    continued_from: str | None = None
    """Run id of the run before this one, in a continue-as-new or retry chain."""
    memo: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    """What its start, or that of the run it came from, sent along with the work."""


@dataclass(frozen=True)
class ActivityInfo:
    """The facts of one attempt."""

    name: str
    attempt: int
    """From 1."""
    workflow_id: str
    run_id: str
    workflow_type: str
    queue: str
    idempotency_key: str
    """The same for every attempt of this call, and of no other call."""
    heartbeat_details: tuple[Any, ...] = ()
    """What the last heartbeat of an earlier attempt reported."""
    scheduled_time: datetime = EPOCH
    task_token: str = ""
    """By which others may complete it (`durable.Client.complete_activity`): of activities with
    ``completes_later``, else empty."""
    headers: Mapping[str, Any] = field(default_factory=dict)
    """What its workflow sent along: mostly what the workflow's own start did."""


class ActivityContext:
    """One attempt, as the runtime sees it.

    The runtime makes one per attempt, sets `ACTIVITY_CONTEXT` to it in the context the attempt runs
    in, and reads the ``retry_*`` fields when the attempt failed. Building it is cheap; the
    `ActivityInfo` is only made when asked for.
    """

    __slots__ = (
        "attempt",
        "details",
        "headers",
        "is_cancelled",
        "name",
        "on_heartbeat",
        "on_stream",
        "queue",
        "ref",
        "retry_at_us",
        "retry_delay_seconds",
        "run_id",
        "scheduled_us",
        "streams",
        "task_token",
        "workflow_id",
        "workflow_type",
    )

    def __init__(
        self,
        *,
        name: str,
        attempt: int,
        workflow_id: str,
        run_id: str,
        workflow_type: str,
        queue: str,
        ref: int,
        details: tuple[Any, ...] = (),
        scheduled_us: int = 0,
        on_heartbeat: Callable[[tuple[Any, ...]], None] | None = None,
        task_token: str = "",
        headers: Mapping[str, Any] = NO_HEADERS,
    ) -> None:
        self.task_token = task_token
        self.headers = headers
        self.name = name
        self.attempt = attempt
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.workflow_type = workflow_type
        self.queue = queue
        self.ref = ref
        self.details = details
        self.scheduled_us = scheduled_us
        self.on_heartbeat = on_heartbeat
        self.on_stream: Callable[[str], StreamWriter] | None = None
        self.streams: dict[str, StreamWriter] | None = None
        """Those that this attempt writes to, by name; None for most attempts."""
        self.is_cancelled = False
        self.retry_delay_seconds: float | None = None
        self.retry_at_us: int | None = None

    def stream(self, name: str) -> StreamWriter:
        """What writes to the stream of that name, always the same; raise ContextError for none."""
        if self.on_stream is None:
            raise ContextError(f"activity {self.name} runs where streams cannot be written")
        if self.streams is None:
            self.streams = {}
        found = self.streams.get(name)
        if found is None:
            found = self.streams[name] = self.on_stream(name)
        return found

    @property
    def idempotency_key(self) -> str:
        """Names this call in this run: the same for all its attempts."""
        return f"{self.run_id}:{self.ref}"

    @property
    def info(self) -> ActivityInfo:
        """The facts as the activity's author sees them."""
        return ActivityInfo(
            name=self.name,
            attempt=self.attempt,
            workflow_id=self.workflow_id,
            run_id=self.run_id,
            workflow_type=self.workflow_type,
            queue=self.queue,
            idempotency_key=self.idempotency_key,
            heartbeat_details=self.details,
            scheduled_time=to_datetime(self.scheduled_us),
            task_token=self.task_token,
            headers=self.headers,
        )


ACTIVITY_CONTEXT: ContextVar[ActivityContext | None] = ContextVar(
    "durable_activity_context", default=None
)
"""The attempt that runs here, set by the runtime."""
