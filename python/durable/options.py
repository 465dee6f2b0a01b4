"""Options: what a user may set. Frozen, small, checked when made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from durable.errors import ConfigurationError
from durable.hints import option_hint

ID_LENGTH_MAX = 512
"""Characters in a workflow id, request id, queue or type name."""
FAIRNESS_KEY_LENGTH_MAX = 128
"""Characters; a key is part of an index."""
FAIRNESS_WEIGHT_MIN, FAIRNESS_WEIGHT_MAX = 0.001, 1000.0
QUEUE_RATE_MAX = 1e6
PAYLOAD_BYTES_MAX = 2 * 1024 * 1024
"""One argument list, result, signal or failure. The number Temporal users know."""
PAYLOAD_BYTES_WARN = 256 * 1024

DEFAULT_QUEUE = "default"


def seconds(value: timedelta | float | int, what: str) -> float:
    """Return ``value`` in seconds; raise ConfigurationError when it is negative or not a number."""
    try:
        result = value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError):
        result = -1.0
    if isinstance(value, str) or not result >= 0 or result == float("inf"):
        raise ConfigurationError(
            f"{what} must be a duration of zero or more, a timedelta or seconds, not {value!r}"
        )
    return result


@dataclass(frozen=True)
class RetryPolicy:
    """When a failed activity is tried again.

    The wait before attempt n+1 is ``initial_interval * backoff ** (n - 1)``, at most
    ``max_interval``, and drawn at random between half of it and all of it when ``jitter`` is on, so
    that a fleet does not retry in waves. ``max_attempts`` counts the first attempt; None is no
    limit. ``non_retryable`` names exception types (classes or class names) that fail at once.
    """

    initial_interval: timedelta | float = 1.0
    backoff: float = 2.0
    max_interval: timedelta | float = 60.0
    max_attempts: int | None = 10
    non_retryable: tuple[type[BaseException] | str, ...] = ()
    jitter: bool = True

    def __post_init__(self) -> None:
        seconds(self.initial_interval, "initial_interval")
        seconds(self.max_interval, "max_interval")
        if not self.backoff >= 1.0:
            raise ConfigurationError(f"backoff must be 1.0 or more, not {self.backoff!r}")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ConfigurationError(
                f"max_attempts must be 1 or more, or None for no limit, not {self.max_attempts!r}"
            )


def check_fairness(key: str | None, weight: float) -> None:
    """Raise ConfigurationError for what cannot be a fairness key and its weight."""
    if key is not None and (not 0 < len(key) <= FAIRNESS_KEY_LENGTH_MAX or "\0" in key):
        raise ConfigurationError(
            f"a fairness_key has 1 to {FAIRNESS_KEY_LENGTH_MAX} characters and none of them "
            f"is NUL, not {key!r}"
        )
    if not FAIRNESS_WEIGHT_MIN <= weight <= FAIRNESS_WEIGHT_MAX:
        raise ConfigurationError(
            f"a fairness_weight is {FAIRNESS_WEIGHT_MIN:g} to {FAIRNESS_WEIGHT_MAX:g}, "
            f"not {weight!r}"
        )


ACTIVITY_TIMEOUTS = (
    "start_to_close_timeout",
    "schedule_to_start_timeout",
    "schedule_to_close_timeout",
    "heartbeat_timeout",
)


@dataclass(frozen=True)
class ActivityOptions:
    """How one activity runs. ``None`` means: no limit, or the worker's own default.

    A time limit of zero is a limit: the attempt is over its time at once.
    """

    queue: str | None = None
    """Task queue; None is the workflow's own."""
    priority: int = 0
    """Smaller goes first."""
    fairness_key: str | None = None
    """Whose work it is (a tenant, a customer): the keys of a queue take turns, so that a long line
    of one holds up no other. A queue's ``key_concurrency`` counts by it. Stored in the clear."""
    fairness_weight: float = 1.0
    """The share of its key: one of weight 2 gets two turns for one of weight 1. 0.001 to 1000."""
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    start_to_close_timeout: timedelta | float | None = None
    schedule_to_start_timeout: timedelta | float | None = None
    schedule_to_close_timeout: timedelta | float | None = None
    heartbeat_timeout: timedelta | float | None = None
    wait_cancel: bool = False
    """Wait for the activity to acknowledge a cancellation before the workflow goes on."""

    def __post_init__(self) -> None:
        check_fairness(self.fairness_key, self.fairness_weight)
        for name in ACTIVITY_TIMEOUTS:
            limit = getattr(self, name)
            if limit is not None:
                seconds(limit, name)
        if not isinstance(self.retry, RetryPolicy):
            raise ConfigurationError(
                f"retry is a RetryPolicy, such as RetryPolicy(max_attempts=3), not {self.retry!r}"
            )

    def replace(self, **changes: object) -> ActivityOptions:
        """A copy with some fields changed."""
        known = {f.name for f in dataclasses.fields(self)}
        unknown = changes.keys() - known
        if unknown:
            raise ConfigurationError(
                f"no such activity option: {', '.join(sorted(unknown))}"
                + option_hint(unknown, known)
            )
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class WorkerOptions:
    """How one worker process behaves. Times in seconds, sizes in bytes."""

    queues: tuple[str, ...] = (DEFAULT_QUEUE,)
    activity_slots: int = 200
    """Activities that run at once in one process."""
    thread_slots: int = 20
    """Threads for sync activities."""
    process_slots: int = 2
    """Processes for activities with ``executor="process"``; started when first needed."""
    queue_slots: Mapping[str, int] = field(default_factory=dict)
    """Activities of a queue that run at once in one process, by queue. For limits of the whole
    fleet see `durable.Client.set_queue_limits`."""
    queue_rates: Mapping[str, float] = field(default_factory=dict)
    """Activities of a queue that one process starts per second, by queue."""
    cache_bytes: int = 256 * 1024 * 1024
    """Budget of warm runs; the least recently used are dropped and replayed when needed."""
    lease_seconds: float = 10.0
    """How long after its last heartbeat a silent worker loses its runs."""
    poll_max_seconds: float = 5.0
    """The longest pause between two polls of an idle worker, or of the idle workers of one
    supervisor together (the shortest follows the load)."""
    drain_seconds: float = 20.0
    """How long running activities may take to end after SIGTERM."""
    connect_seconds: float = 60.0
    """How long the start of a worker, or of a supervisor, waits for a database that is not up. One
    that refuses the password, or does not exist, is not waited for."""

    verify_values: bool = False
    """Read every argument and result back where it is written and compare: for development."""

    def __post_init__(self) -> None:
        if not self.queues or not all(self.queues):
            raise ConfigurationError("a worker serves at least one named queue")
        for name in ("activity_slots", "thread_slots", "process_slots", "cache_bytes"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name} must be 1 or more")
        for name in ("lease_seconds", "poll_max_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be more than 0")
        for name in ("queue_slots", "queue_rates"):
            for queue, most in getattr(self, name).items():
                if queue not in self.queues:
                    raise ConfigurationError(
                        f"{name} is about queues that the worker serves, and {queue!r} is not one"
                    )
                if not 0 < most <= QUEUE_RATE_MAX:
                    raise ConfigurationError(
                        f"{name} of {queue!r} must be more than 0, and {QUEUE_RATE_MAX:g} at most"
                    )
        for name in ("drain_seconds", "connect_seconds"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} must be 0 or more")


@dataclass(frozen=True)
class SupervisorOptions:
    """How a supervisor keeps its worker processes. Times in seconds."""

    processes: int = 2
    restart_initial_seconds: float = 0.1
    restart_max_seconds: float = 30.0
    hang_seconds: float = 30.0
    """A worker whose loop shows no progress this long is killed and replaced."""
    http_host: str = "127.0.0.1"
    http_port: int | None = 9464
    """Port of /metrics, /healthz and /readyz; 0 picks one, None serves nothing."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ConfigurationError("processes must be 1 or more")
        for name in ("restart_initial_seconds", "restart_max_seconds", "hang_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be more than 0")
        if self.http_port is not None and not 0 <= self.http_port <= 65535:
            raise ConfigurationError("http_port must be between 0 and 65535, or None")
