"""Metrics: the table holds, cells add up, and dead workers still count."""

import json

import pytest

from durable.errors import ConfigurationError
from durable.runtime.exporter import Fleet, family_of
from durable.runtime.metrics import BY_NAME, TABLE, Metrics, lasting, merge


def test_names_are_unique_and_say_their_unit() -> None:
    assert len(BY_NAME) == len(TABLE)
    for metric in TABLE:
        assert metric.name.startswith("durable_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.help.endswith("."), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets))


@pytest.mark.parametrize(
    ("name", "labels", "said"),
    [
        ("durable_nothing_total", {}, "no metric"),
        ("durable_parked_total", {}, "labels"),
        ("durable_parked_total", {"why": "poison"}, "labels"),
        ("durable_parked_total", {"reason": "because"}, "reason is one of"),
        ("durable_workers", {"reason": "x"}, "labels"),
    ],
)
def test_what_the_table_does_not_have_is_refused(
    name: str, labels: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Metrics().inc(name, **labels)


def test_counters_gauges_and_histograms_keep_their_numbers() -> None:
    metrics = Metrics()
    metrics.inc("durable_parked_total", reason="poison")
    metrics.inc("durable_parked_total", 2, reason="poison")
    metrics.set("durable_workers", 3)
    metrics.set("durable_workers", 2)
    for seconds in (0.0001, 0.03, 1e9):
        metrics.observe("durable_flush_seconds", seconds)
    assert metrics.value("durable_parked_total", reason="poison") == 3
    assert metrics.value("durable_parked_total", reason="corrupt") == 0
    assert metrics.value("durable_workers") == 2
    assert metrics.value("durable_flush_seconds") == 3


def test_a_snapshot_survives_json_and_is_not_the_cells() -> None:
    metrics = Metrics()
    metrics.inc("durable_runs_claimed_total")
    snapshot = metrics.snapshot()
    metrics.inc("durable_runs_claimed_total")
    assert merge([json.loads(json.dumps(snapshot))]) == [("durable_runs_claimed_total", [], [1.0])]


def test_merge_adds_counters_and_takes_the_largest_poll_interval() -> None:
    workers = []
    for value in (1.0, 5.0):
        metrics = Metrics()
        metrics.inc("durable_runs_claimed_total", value)
        metrics.set("durable_cache_runs", value)
        metrics.set("durable_poll_interval_seconds", value)
        metrics.observe("durable_flush_runs", value)
        workers.append(metrics.snapshot())
    merged = {name: numbers for name, _, numbers in merge(workers)}
    assert merged["durable_runs_claimed_total"] == [6.0]
    assert merged["durable_cache_runs"] == [6.0]
    assert merged["durable_poll_interval_seconds"] == [5.0]
    assert sum(merged["durable_flush_runs"][:-1]) == 2
    assert merged["durable_flush_runs"][-1] == 6.0


def test_rows_of_another_build_are_left_out() -> None:
    assert (
        merge(
            [
                [
                    ("durable_of_tomorrow_total", [], [1.0]),
                    ("durable_runs_claimed_total", ["more"], [1.0]),
                ]
            ]
        )
        == []
    )


def test_a_dead_worker_leaves_its_counters_and_takes_its_gauges() -> None:
    own = Metrics()
    fleet = Fleet(own)
    worker = Metrics()
    worker.inc("durable_runs_claimed_total", 7)
    worker.set("durable_cache_runs", 4)
    fleet.update("a", worker.snapshot())
    assert fleet.value("durable_cache_runs") == 4
    fleet.retire("a")
    fleet.retire("a")
    assert fleet.value("durable_runs_claimed_total") == 7
    assert fleet.value("durable_cache_runs") == 0
    assert [row[0] for row in lasting(worker.snapshot())] == ["durable_runs_claimed_total"]


def test_every_metric_has_a_family_prometheus_accepts() -> None:
    metrics = Metrics()
    for metric in TABLE:
        labels = {name: values[0] for name, values in metric.labels.items()}
        if metric.kind == "histogram":
            metrics.observe(metric.name, 0.2, **labels)
        else:
            metrics.inc(metric.name, **labels)
    rows = {row[0]: [row] for row in metrics.snapshot()}
    for metric in TABLE:
        family = family_of(metric, rows[metric.name])
        assert family.type == metric.kind
        assert family.samples
