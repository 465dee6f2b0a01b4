"""Metrics: one table of everything this package counts, and the cheap cells a worker counts in.

A worker adds to plain lists in a dict; nothing here takes a lock, formats text or knows Prometheus.
Each second it sends `Metrics.snapshot` (plain data, fit for JSON) to its supervisor, which
merges the snapshots of all workers and serves them (`durable.runtime.exporter`).

A label takes its values from a closed set, so that no run id or error text can ever blow up a
Prometheus. `Metrics` refuses a name, label or value that the table does not have.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from durable.errors import ConfigurationError

Kind = Literal["counter", "gauge", "histogram"]

SECONDS_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0,
)  # fmt: skip
COUNT_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True)
class Metric:
    """One row of the table: ``labels`` gives each label's closed set of values.

    ``merge`` says what the fleet's value of a gauge is: the sum of the workers' or their maximum.
    """

    name: str
    kind: Kind
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buckets: tuple[float, ...] = SECONDS_BUCKETS
    merge: Literal["sum", "max"] = "sum"


RESTART_REASONS = ("killed", "exited", "hung", "boot", "reload")
"""By a signal; by an exit code; killed by us as hung; before it was up; on request."""

MAINTENANCE_STEPS = ("lead", "rotate", "expire", "wakeups", "queues", "gauges")
QUEUE_STATES = ("queued", "held", "claimed", "retrying")
HOT_TABLES = ("run", "task", "timer", "inbox", "activity", "session")

TABLE: tuple[Metric, ...] = (
    Metric("durable_runs_claimed_total", "counter", "Runs this fleet became the owner of."),
    Metric(
        "durable_workflow_tasks_total",
        "counter",
        "Turns of workflow code, by what came of them.",
        {"outcome": ("committed", "stale", "unread", "parked", "failed")},
    ),
    Metric("durable_flush_seconds", "histogram", "Time of one group commit."),
    Metric("durable_flush_runs", "histogram", "Runs in one group commit.", buckets=COUNT_BUCKETS),
    Metric(
        "durable_stale_commits_total",
        "counter",
        "Commits refused because the run had moved on to another owner.",
    ),
    Metric(
        "durable_activity_attempts_total",
        "counter",
        "Attempts of activities, by how they ended.",
        {"outcome": ("completed", "failed", "retried", "timed_out", "cancelled", "void")},
    ),
    Metric(
        "durable_limited_claims_total",
        "counter",
        "Claims of queues with limits, by how much of what was asked for they got.",
        {"outcome": ("all", "some", "none")},
    ),
    Metric("durable_activity_seconds", "histogram", "Time of one activity attempt."),
    Metric("durable_activity_backoff_seconds", "histogram", "Wait before a next attempt."),
    Metric(
        "durable_poll_interval_seconds",
        "gauge",
        "Pause before the next poll; grows while a worker is idle. The largest of the workers.",
        merge="max",
    ),
    Metric("durable_lease_renewals_total", "counter", "Session leases extended."),
    Metric("durable_leases_lost_total", "counter", "Sessions that others declared dead."),
    Metric(
        "durable_handover_runs_total",
        "counter",
        "Runs taken from a dead worker of this host and handed over at once.",
    ),
    Metric(
        "durable_worker_restarts_total",
        "counter",
        "Worker processes started again, by why the last one ended.",
        {"reason": RESTART_REASONS},
    ),
    Metric("durable_workers", "gauge", "Worker processes that are up."),
    Metric("durable_workers_wanted", "gauge", "Worker processes that should be up."),
    Metric(
        "durable_degraded",
        "gauge",
        "1 while workers end faster than they can be of use (a crash loop), else 0.",
        merge="max",
    ),
    Metric("durable_replay_seconds", "histogram", "Time to rebuild one run from its history."),
    Metric("durable_replay_events_total", "counter", "Events replayed."),
    Metric("durable_cache_runs", "gauge", "Warm runs in memory."),
    Metric("durable_cache_bytes", "gauge", "Estimated size of the warm runs."),
    Metric("durable_cache_evictions_total", "counter", "Warm runs dropped to make room."),
    Metric(
        "durable_parked_total",
        "counter",
        "Runs parked until something changes, by why.",
        {"reason": ("nondeterminism", "unknown_type", "corrupt", "undecodable", "poison", "error")},
    ),
    Metric("durable_slots_used", "gauge", "Activity slots in use."),
    Metric("durable_slots", "gauge", "Activity slots there are."),
    Metric(
        "durable_maintenance_leader",
        "gauge",
        "1 at the supervisor that does the upkeep of the database; the gauges below are its own.",
    ),
    Metric(
        "durable_maintenance_errors_total",
        "counter",
        "Steps of the upkeep that failed; each is tried again a minute later.",
        {"step": MAINTENANCE_STEPS},
    ),
    Metric(
        "durable_wakeups_repaired_total",
        "counter",
        "Runs found with unread messages and nobody told. Must stay 0.",
    ),
    Metric("durable_partitions_dropped_total", "counter", "Parts dropped by retention."),
    Metric(
        "durable_runs_moved_total",
        "counter",
        "Open and recently closed runs moved out of an old part so that it can be dropped.",
    ),
    Metric("durable_partitions", "gauge", "Parts that history is divided into.", merge="max"),
    Metric(
        "durable_partitions_overdue",
        "gauge",
        "Parts that retention allows to drop and that are still there.",
        merge="max",
    ),
    Metric("durable_open_runs", "gauge", "Runs that have not ended.", merge="max"),
    Metric("durable_paused_runs", "gauge", "Runs that somebody has paused.", merge="max"),
    Metric(
        "durable_timer_lag_seconds",
        "gauge",
        "Age of the oldest timer that is due and still there.",
        merge="max",
    ),
    Metric(
        "durable_queue_depth",
        "gauge",
        "Activities that have a row, of all queues, by state (`durable queue show` has each).",
        {"state": QUEUE_STATES},
        merge="max",
    ),
    Metric(
        "durable_queue_oldest_seconds",
        "gauge",
        "Age of the oldest activity that waits to be claimed.",
        merge="max",
    ),
    Metric(
        "durable_dead_rows",
        "gauge",
        "Dead rows of the hot tables: what vacuum is behind with.",
        {"table": HOT_TABLES},
        merge="max",
    ),
    Metric(
        "durable_store_errors_total", "counter", "Store calls that failed and were tried again."
    ),
)

BY_NAME: dict[str, Metric] = {metric.name: metric for metric in TABLE}

Row = tuple[str, list[str], list[float]]
"""One cell as plain data: metric name, label values in the table's order, numbers.

The numbers of a counter or gauge are its value; of a histogram the count of each bucket, the count
above the last one, and the sum."""
Snapshot = list[Row]


class Metrics:
    """The cells of one process. Not thread safe: each loop thread counts in its own."""

    __slots__ = ("_cells", "_keys")

    def __init__(self) -> None:
        self._cells: dict[tuple[str, tuple[str, ...]], list[float]] = {}
        self._keys: dict[Any, tuple[tuple[float, ...], list[float]]] = {}

    def inc(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add ``amount`` to a counter (or gauge)."""
        key = (name, *labels.values()) if labels else name
        try:
            cell = self._keys[key][1]
        except KeyError:
            cell = self._open(key, name, labels)[1]
        cell[0] += amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        key = (name, *labels.values()) if labels else name
        try:
            cell = self._keys[key][1]
        except KeyError:
            cell = self._open(key, name, labels)[1]
        cell[0] = value

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put one value into a histogram (seconds or a count, as the name says)."""
        key = (name, *labels.values()) if labels else name
        try:
            buckets, cell = self._keys[key]
        except KeyError:
            buckets, cell = self._open(key, name, labels)
        cell[bisect_left(buckets, value)] += 1
        cell[-1] += value

    def value(self, name: str, **labels: str) -> float:
        """The value of a counter or gauge, or the number of values in a histogram."""
        metric, values = check_labels(name, labels)
        cell = self._cells.get((name, values), [0.0])
        return sum(cell[:-1]) if metric.kind == "histogram" else cell[0]

    def snapshot(self) -> Snapshot:
        """All cells as plain data."""
        # The copy of the items is one step: another thread (the exporter) may ask for this.
        cells = list(self._cells.items())
        return [(name, list(values), list(cell)) for (name, values), cell in cells]

    def _open(
        self, key: Any, name: str, labels: Mapping[str, str]
    ) -> tuple[tuple[float, ...], list[float]]:
        """Check name and labels against the table; make or find the cell, known by ``key`` too."""
        metric, values = check_labels(name, labels)
        buckets = metric.buckets if metric.kind == "histogram" else ()
        cell = self._cells.setdefault((name, values), empty_cell(metric))
        self._keys[key] = (buckets, cell)
        return buckets, cell


def empty_cell(metric: Metric) -> list[float]:
    """The numbers of a cell that nothing was counted in."""
    return [0.0] * (len(metric.buckets) + 2 if metric.kind == "histogram" else 1)


def check_labels(name: str, labels: Mapping[str, str]) -> tuple[Metric, tuple[str, ...]]:
    """The metric and its label values in the table's order; raise ConfigurationError if unknown."""
    metric = BY_NAME.get(name)
    if metric is None:
        raise ConfigurationError(f"no metric {name!r}; add it to the table in runtime/metrics.py")
    if labels.keys() != metric.labels.keys():
        raise ConfigurationError(
            f"metric {name} has the labels {sorted(metric.labels)}, not {sorted(labels)}"
        )
    for label, allowed in metric.labels.items():
        if labels[label] not in allowed:
            raise ConfigurationError(
                f"metric {name}: {label} is one of {', '.join(allowed)}, not {labels[label]!r}"
            )
    return metric, tuple(labels[label] for label in metric.labels)


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot of many: counters and histograms add up, gauges as the table says.

    Rows that the table does not have, or of another shape, are left out: they come from a worker of
    another build.
    """
    cells: dict[tuple[str, tuple[str, ...]], list[float]] = {}
    for snapshot in snapshots:
        for name, values, numbers in snapshot:
            metric = BY_NAME.get(name)
            if metric is None or len(values) != len(metric.labels):
                continue
            key = (name, tuple(values))
            cell = cells.setdefault(key, empty_cell(metric))
            if len(cell) != len(numbers):
                continue
            if metric.kind == "gauge" and metric.merge == "max":
                cell[0] = max(cell[0], numbers[0])
            else:
                for index, number in enumerate(numbers):
                    cell[index] += number
    return [(name, list(values), cell) for (name, values), cell in cells.items()]


def lasting(snapshot: Snapshot) -> Snapshot:
    """The rows of a worker that count on after its death: its counters and histograms."""
    return [row for row in snapshot if row[0] in BY_NAME and BY_NAME[row[0]].kind != "gauge"]
