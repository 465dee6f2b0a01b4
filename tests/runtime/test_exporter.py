"""Exporter: metrics and health over HTTP, whatever a client does."""

import contextlib
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from durable.errors import ConfigurationError
from durable.runtime import exporter as module
from durable.runtime.exporter import Exporter, Fleet, Health
from durable.runtime.metrics import Metrics


@pytest.fixture
def parts() -> Iterator[tuple[Exporter, Health, Metrics]]:
    own = Metrics()
    health = Health(ready_seconds_max=60)
    exporter = Exporter(Fleet(own), health, "127.0.0.1", 0)
    exporter.start()
    exporter.start()
    try:
        yield exporter, health, own
    finally:
        exporter.stop()
        exporter.stop()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_what_prometheus_reads(parts: tuple[Exporter, Health, Metrics]) -> None:
    exporter, _, own = parts
    own.inc("durable_worker_restarts_total", reason="killed")
    own.observe("durable_flush_seconds", 0.004)
    status, body = get(f"{exporter.url}/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(body)}
    samples = families["durable_worker_restarts"].samples
    assert [(s.labels, s.value) for s in samples] == [({"reason": "killed"}, 1.0)]
    counts = [
        s.value for s in families["durable_flush_seconds"].samples if s.name.endswith("count")
    ]
    assert counts == [1.0]
    assert families["durable_workers"].samples[0].value == 0


def test_health_says_what_is_wrong(parts: tuple[Exporter, Health, Metrics]) -> None:
    exporter, health, _ = parts
    assert get(f"{exporter.url}/healthz")[0] == 503
    assert get(f"{exporter.url}/readyz") == (503, "no worker is up\n")
    health.loop_at = time.monotonic()
    health.workers = 2
    assert get(f"{exporter.url}/healthz")[0] == 200
    assert get(f"{exporter.url}/readyz") == (503, "the database has not answered yet\n")
    health.store_at = time.monotonic()
    assert get(f"{exporter.url}/readyz")[0] == 200
    health.store_at = time.monotonic() - 3600
    assert "last answered" in get(f"{exporter.url}/readyz")[1]
    health.store_at = time.monotonic()
    health.draining = True
    assert get(f"{exporter.url}/readyz") == (503, "draining\n")
    health.loop_at = time.monotonic() - 3600
    assert get(f"{exporter.url}/healthz")[0] == 503


def test_another_path_says_what_there_is(parts: tuple[Exporter, Health, Metrics]) -> None:
    status, body = get(f"{parts[0].url}/secrets")
    assert status == 404
    assert "/metrics" in body


def test_a_taken_port_is_an_error_that_names_it(parts: tuple[Exporter, Health, Metrics]) -> None:
    port = int(parts[0].url.rpartition(":")[2])
    second = Exporter(Fleet(Metrics()), Health(1), "127.0.0.1", port)
    with pytest.raises(ConfigurationError, match=str(port)):
        second.start()


def test_idle_connections_are_bounded_and_hung_up(
    parts: tuple[Exporter, Health, Metrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTION_SECONDS_MAX", 0.2)
    host, port = parts[0].url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        idle = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            for _ in range(3 * module.CONNECTIONS_MAX)
        ]
        for connection in idle:
            # Refused, or cut off when its time was over: either way the server let go.
            with contextlib.suppress(ConnectionError):
                assert connection.recv(1) == b""
    assert get(f"{parts[0].url}/metrics")[0] == 200
