"""DBOS: its Python library in its fastest set-up.

From trying them all on two cores: synchronous functions in threads, few in flight per process; a
queue with 10 ms polling where a client enqueues; warnings only. Pool and threads as in its own
benchmark.

    python -m bench.peers.dbos DSN
"""

import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import psycopg
from dbos import DBOS, DBOSClient

from bench.peers.serve import serve
from bench.peers.workers import Workers

NAME = "bench"
QUEUE = "bench"
POLL_SECONDS = 0.01
LANES = 4
"""Workflows in flight per process; more makes it slower."""
ENQUEUERS = 8
WORKER_CONCURRENCY = 100
WAIT_SECONDS_MAX = 300.0


def define() -> Any:
    """The measured program: ``count`` steps one after another; the sum of their results."""

    @DBOS.step()
    def echo(value: int) -> int:
        return value

    @DBOS.workflow(name="steps")
    def steps(count: int) -> int:
        total = 0
        for number in range(count):
            total += echo(number)
        return total

    return steps


def launch(dsn: str, number: int | str) -> Any:
    """Start DBOS in this process; the workflow."""
    DBOS(
        config={
            "name": NAME,
            "system_database_url": dsn,
            "log_level": "ERROR",
            "executor_id": f"{number}-{uuid.uuid4().hex[:6]}",
            "application_version": "1",
            "sys_db_pool_size": 16,
            "max_executor_threads": 512,
        }
    )
    steps = define()
    DBOS.launch()
    return steps


def in_lanes(count: int, lanes: int, job: Callable[[], None]) -> tuple[float, float]:
    """Do a job ``count`` times, ``lanes`` at once; when it began and ended."""
    numbers, lock = iter(range(count)), threading.Lock()
    errors: list[BaseException] = []

    def lane() -> None:
        try:
            while not errors:
                with lock:
                    if next(numbers, None) is None:
                        return
                job()
        except BaseException as error:
            errors.append(error)

    begin = time.time()
    threads = [threading.Thread(target=lane) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return begin, time.time()


def work(pipe: Any, number: int, dsn: str) -> None:
    """A process that starts workflows itself, and serves the queue."""
    steps = launch(dsn, number)
    pipe.send("ready")
    while True:
        message = pipe.recv()
        if message[0] == "stop":
            break
        _, length, count = message

        def job(length: int = length) -> None:
            result = DBOS.start_workflow(steps, length).get_result()
            assert result == length * (length - 1) // 2, result

        try:
            pipe.send(in_lanes(count, LANES, job))
        except Exception as error:
            pipe.send(RuntimeError(repr(error)))
    DBOS.destroy()


def bootstrap(pipe: Any, number: int, dsn: str, queue: bool) -> None:
    """Create the tables, and the queue if there is to be one."""
    launch(dsn, "bootstrap")
    if queue:
        DBOS.register_queue(
            QUEUE,
            worker_concurrency=WORKER_CONCURRENCY,
            polling_interval_sec=POLL_SECONDS,
            on_conflict="always_update",
        )
    DBOS.destroy()
    pipe.send("ready")
    pipe.recv()


class Bench:
    """The verbs."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.workers: Workers | None = None

    def install(self, queue: bool = False) -> None:
        """Create the schema."""
        Workers(bootstrap, 1, self.dsn, queue).stop()

    def start(self, processes: int) -> None:
        """Start processes, each warmed up with a few workflows."""
        self.workers = Workers(work, processes, self.dsn)
        self.workers.ask("run", 1, 20)

    def stop(self) -> None:
        """Stop them."""
        if self.workers is not None:
            self.workers.stop()
            self.workers = None

    def run(self, steps: int, count: int) -> float:
        """Run ``count`` workflows, started by the processes that run them; seconds."""
        assert self.workers is not None
        share = count // len(self.workers.processes)
        spans = self.workers.ask("run", steps, share)
        return float(max(end for _, end in spans) - min(begin for begin, _ in spans))

    def enqueue(self, steps: int, count: int) -> float:
        """Enqueue ``count`` workflows from a client; seconds."""
        client = DBOSClient(system_database_url=self.dsn, application_name=NAME)

        def job() -> None:
            client.enqueue({"queue_name": QUEUE, "workflow_name": "steps"}, steps)

        begin, end = in_lanes(count, ENQUEUERS, job)
        client.destroy()
        return end - begin

    def drain(self, steps: int, count: int, processes: int) -> float:
        """Let processes do what is queued; seconds from the first start to the last end."""
        workers = Workers(work, processes, self.dsn)
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while True:
                done, begin, end = connection.execute(
                    "select count(*), min(started_at_epoch_ms)::float8, max(completed_at)::float8 "
                    "from dbos.workflow_status where status = 'SUCCESS' and queue_name = %s",
                    (QUEUE,),
                ).fetchone() or (0, 0.0, 0.0)
                if done >= count:
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{done} of {count} workflows are done")
                time.sleep(0.1)
            workers.stop()
            connection.execute("truncate dbos.workflow_status cascade")
        return (float(end) - float(begin)) / 1000

    def latency(self, steps: int, count: int) -> list[float]:
        """Seconds from start to result in one process, one at a time."""
        worker = Workers(time_each, 1, self.dsn)
        try:
            taken: list[float] = worker.ask("run", steps, count)[0]
        finally:
            worker.stop()
        return taken


def time_each(pipe: Any, number: int, dsn: str) -> None:
    """A process that runs one workflow at a time and says how long each took."""
    steps = launch(dsn, "latency")
    pipe.send("ready")
    while True:
        message = pipe.recv()
        if message[0] == "stop":
            break
        _, length, count = message
        taken = []
        for _ in range(count + 10):
            begin = time.perf_counter()
            result = DBOS.start_workflow(steps, length).get_result()
            taken.append(time.perf_counter() - begin)
            assert result == length * (length - 1) // 2, result
        pipe.send(taken[10:])
    DBOS.destroy()


if __name__ == "__main__":
    bench = Bench(sys.argv[1])
    serve(
        {
            verb: getattr(bench, verb)
            for verb in ("install", "start", "stop", "run", "enqueue", "drain", "latency")
        }
    )
