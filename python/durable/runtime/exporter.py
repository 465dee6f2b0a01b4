"""Exporter: the fleet's metrics and health on one HTTP port.

`Fleet` holds the last snapshot of each worker and adds up what dead workers counted, so that a
counter never goes back when a worker dies. `Exporter` serves it as ``/metrics``, and two answers
for an orchestrator: ``/healthz`` (the supervisor's loop turns) and ``/readyz`` (the database
answered a heartbeat not long ago, and a worker is up).

The server runs in threads of its own, at most `CONNECTIONS_MAX` at once and none longer than
`CONNECTION_SECONDS_MAX`, so that neither a slow scraper nor a thousand of them reach the loop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import SHUT_RDWR, socket
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from durable.errors import ConfigurationError
from durable.runtime.metrics import TABLE, Metric, Metrics, Row, Snapshot, lasting, merge

CONNECTIONS_MAX = 16
CONNECTION_SECONDS_MAX = 10.0
LOOP_SILENCE_SECONDS_MAX = 10.0
"""The supervisor's loop ticks each second; silent this long it is stuck."""

log = logging.getLogger("durable.exporter")


class Fleet(Collector):
    """The merged metrics of a supervisor and its workers. Safe to read from any thread."""

    def __init__(self, own: Metrics) -> None:
        self._own = own
        self._lock = threading.Lock()
        self._live: dict[object, Snapshot] = {}
        self._dead: Snapshot = []

    def update(self, worker: object, snapshot: Snapshot) -> None:
        """Take the newest snapshot of a worker."""
        with self._lock:
            self._live[worker] = snapshot

    def retire(self, worker: object) -> None:
        """Keep what a dead worker counted, drop its gauges."""
        with self._lock:
            snapshot = self._live.pop(worker, [])
            self._dead = merge([self._dead, lasting(snapshot)])

    def snapshot(self) -> Snapshot:
        """The fleet as one snapshot."""
        with self._lock:
            return merge([self._own.snapshot(), self._dead, *self._live.values()])

    def value(self, name: str, **labels: str) -> float:
        """One number of the fleet: a counter, a gauge, or a histogram's count; 0 when unknown."""
        wanted = list(labels.values())
        for row, values, numbers in self.snapshot():
            if row == name and values == wanted:
                return numbers[0] if len(numbers) == 1 else sum(numbers[:-1])
        return 0.0

    def collect(self) -> Iterator[Family]:
        """Everything in the table, for Prometheus; what was never counted is 0."""
        rows: dict[str, list[Row]] = {}
        for row in self.snapshot():
            rows.setdefault(row[0], []).append(row)
        for metric in TABLE:
            yield family_of(metric, rows.get(metric.name, []))

    def describe(self) -> Iterator[Family]:
        """The table's names, so that registering counts nothing."""
        return (family_of(metric, []) for metric in TABLE)


def family_of(metric: Metric, rows: list[Row]) -> Family:
    """One metric in Prometheus' terms."""
    labels = list(metric.labels)
    if not rows and not labels and metric.kind != "histogram":
        rows = [(metric.name, [], [0.0])]
    if metric.kind == "counter":
        counter = CounterMetricFamily(metric.name, metric.help, labels=labels)
        for _, values, numbers in rows:
            counter.add_metric(values, numbers[0])
        return counter
    if metric.kind == "gauge":
        gauge = GaugeMetricFamily(metric.name, metric.help, labels=labels)
        for _, values, numbers in rows:
            gauge.add_metric(values, numbers[0])
        return gauge
    histogram = HistogramMetricFamily(metric.name, metric.help, labels=labels)
    for _, values, numbers in rows:
        total = 0.0
        buckets = []
        for bound, count in zip([*metric.buckets, float("inf")], numbers[:-1], strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
        histogram.add_metric(values, buckets=buckets, sum_value=numbers[-1])
    return histogram


class Health:
    """What ``/healthz`` and ``/readyz`` answer from. Written by the supervisor's loop.

    The two times are of the monotonic clock; None is "not yet".
    """

    def __init__(self, ready_seconds_max: float) -> None:
        self.loop_at: float | None = None
        self.store_at: float | None = None
        self.workers = 0
        self.draining = False
        self._ready_seconds_max = ready_seconds_max

    def live(self) -> tuple[bool, str]:
        """Whether the supervisor's loop turns, and a line that says so."""
        age = None if self.loop_at is None else time.monotonic() - self.loop_at
        if age is None or age > LOOP_SILENCE_SECONDS_MAX:
            return False, "the supervisor's loop does not turn"
        return True, f"the supervisor's loop turned {age:.1f} s ago"

    def ready(self) -> tuple[bool, str]:
        """Whether work can be done here, and a line that says why not."""
        if self.draining:
            return False, "draining"
        if self.workers == 0:
            return False, "no worker is up"
        age = None if self.store_at is None else time.monotonic() - self.store_at
        if age is None:
            return False, "the database has not answered yet"
        if age > self._ready_seconds_max:
            return False, f"the database last answered {age:.1f} s ago"
        return True, f"{self.workers} workers up; the database answered {age:.1f} s ago"


class Exporter:
    """The HTTP port. `start` binds it, `stop` gives it back; both are safe twice."""

    def __init__(self, fleet: Fleet, health: Health, host: str, port: int) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(fleet)
        self._health = health
        self._address = (host, port)
        self._server: BoundedServer | None = None

    @property
    def url(self) -> str:
        """Where it listens, once started: ``http://127.0.0.1:9464``."""
        host, port = self._server.server_address[:2] if self._server else self._address
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}"

    def start(self) -> None:
        """Bind and serve; raise ConfigurationError when the port cannot be had."""
        if self._server is not None:
            return
        host, port = self._address
        try:
            self._server = BoundedServer(self._address, handler_of(self._registry, self._health))
        except OSError as error:
            raise ConfigurationError(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}; "
                "choose another port with --port, 0 for any free one"
            ) from error
        threading.Thread(
            target=self._server.serve_forever, name="durable-exporter", daemon=True
        ).start()

    def stop(self) -> None:
        """Stop serving and close the port."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


class BoundedServer(ThreadingHTTPServer):
    """A threading server with a bound on its threads and on how long each may take."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._slots = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # A socket timeout bounds one read; a client that drips bytes is bounded by this.
        deadline = threading.Timer(CONNECTION_SECONDS_MAX, hang_up, [request])
        deadline.daemon = True
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a scrape from %s ended early", client_address, exc_info=True)


def hang_up(request: socket) -> None:
    """Break a connection under its thread."""
    try:
        request.shutdown(SHUT_RDWR)
    except OSError:
        log.debug("the connection was gone already")


def handler_of(registry: CollectorRegistry, health: Health) -> type[BaseHTTPRequestHandler]:
    """The request handler over one registry and one health."""

    def metrics(accept: str) -> tuple[int, str, bytes]:
        encoder, content_type = choose_encoder(accept)
        return 200, content_type, encoder(registry)

    def check(answer: Callable[[], tuple[bool, str]]) -> tuple[int, str, bytes]:
        good, line = answer()
        return (200 if good else 503), "text/plain; charset=utf-8", f"{line}\n".encode()

    class Handler(BaseHTTPRequestHandler):
        timeout = 5.0
        server_version = "durable"
        sys_version = ""

        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/metrics":
                    status, content_type, body = metrics(self.headers.get("Accept", ""))
                case "/healthz":
                    status, content_type, body = check(health.live)
                case "/readyz":
                    status, content_type, body = check(health.ready)
                case _:
                    status, content_type = 404, "text/plain; charset=utf-8"
                    body = b"there is /metrics, /healthz and /readyz\n"
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            log.debug(format, *args)

    return Handler
