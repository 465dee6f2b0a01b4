"""Absurd: its Python SDK on the schema of the same release.

Its fastest set-up on a small machine, from trying them all: the synchronous client, several
instances per process with a connection each (one instance is one connection and one round trip at
a time), claims of 32 tasks, polls every 10 ms.

    python -m bench.peers.absurd DSN
"""

import sys
import threading
import time
from typing import Any

import absurd_sdk
import absurdctl
import psycopg
from absurd_sdk import Absurd

from bench.peers.serve import serve
from bench.peers.workers import Workers

QUEUE = "bench"
BATCH = 32
POLL_SECONDS = 0.01
SPAWNERS = 8
WAIT_SECONDS_MAX = 300.0


def connect(dsn: str) -> psycopg.Connection[Any]:
    """A connection in autocommit."""
    return psycopg.connect(dsn, autocommit=True)


def register(app: Absurd) -> None:
    """The measured program: ``count`` steps one after another; the sum of their results."""

    @app.register_task(name="steps")
    def steps(params: Any, context: Any) -> int:
        total = 0
        for number in range(params["count"]):
            total += context.step(f"step-{number}", lambda number=number: number)
        return total


def work(pipe: Any, number: int, dsn: str, connections: int) -> None:
    """A worker process."""
    apps = [Absurd(dsn, queue_name=QUEUE) for _ in range(connections)]
    for app in apps:
        register(app)
    pipe.send("ready")
    threads = [
        threading.Thread(
            target=app.start_worker,
            kwargs={
                "worker_id": f"{number}.{index}",
                "concurrency": 1,
                "batch_size": BATCH,
                "poll_interval": POLL_SECONDS,
            },
            daemon=True,
        )
        for index, app in enumerate(apps)
    ]
    pipe.recv()
    for thread in threads:
        thread.start()
    pipe.send("started")
    pipe.recv()
    for app in apps:
        app.stop_worker()
    for thread in threads:
        thread.join(10)


class Bench:
    """The verbs."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.workers: Workers | None = None

    def install(self) -> str:
        """Create the schema and a queue; the version of the schema."""
        with connect(self.dsn) as connection:
            connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
            connection.execute("select absurd.create_queue(%s)", (QUEUE,))
            row = connection.execute("select absurd.get_schema_version()").fetchone()
        return str(row[0]) if row else ""

    def enqueue(self, steps: int, count: int) -> float:
        """Spawn ``count`` tasks over several connections; seconds."""
        numbers, lock = iter(range(count)), threading.Lock()

        def spawn(app: Absurd) -> None:
            while True:
                with lock:
                    if next(numbers, None) is None:
                        return
                app.spawn("steps", {"count": steps}, queue=QUEUE)

        apps = [Absurd(self.dsn, queue_name=QUEUE) for _ in range(SPAWNERS)]
        threads = [threading.Thread(target=spawn, args=(app,)) for app in apps]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - begin
        for app in apps:
            app.close()
        return elapsed

    def start(self, processes: int, connections: int, go: bool = True) -> None:
        """Start worker processes, which begin at once or with `drain`."""
        self.workers = Workers(work, processes, self.dsn, connections)
        if go:
            self.workers.ask("go")

    def stop(self) -> None:
        """Stop the worker processes."""
        if self.workers is not None:
            self.workers.stop()
            self.workers = None

    def drain(self, steps: int, count: int) -> float:
        """Let the workers do the tasks that wait; seconds from the first start to the last end."""
        assert self.workers is not None
        self.workers.ask("go")
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        query = (
            f"select count(*), extract(epoch from max(completed_at) - min(started_at))::float8 "
            f"from absurd.r_{QUEUE} where state = 'completed'"
        )
        with connect(self.dsn) as connection:
            while True:
                done, elapsed = connection.execute(query).fetchone() or (0, 0.0)
                if done >= count:
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{done} of {count} tasks are done")
                time.sleep(0.1)
            answers = connection.execute(
                f"select distinct completed_payload::text from absurd.t_{QUEUE}"
            ).fetchall()
        self.stop()
        assert answers == [(str(steps * (steps - 1) // 2),)], answers
        with connect(self.dsn) as connection:
            connection.execute(f"truncate absurd.t_{QUEUE}, absurd.r_{QUEUE}, absurd.c_{QUEUE}")
        return float(elapsed)

    def latency(self, steps: int, count: int) -> list[float]:
        """Seconds from spawn to completion by the server's clock, one task at a time.

        The client's own wait polls from 50 ms, which says nothing about the engine.
        """
        app = Absurd(self.dsn, queue_name=QUEUE)
        taken = []
        for _ in range(count):
            task = app.spawn("steps", {"count": steps}, queue=QUEUE)
            state = app.await_task_result(task["task_id"], timeout=60)
            assert state is not None
            assert state.state == "completed", state
            taken.append(task["task_id"])
        app.close()
        with connect(self.dsn) as connection:
            rows = connection.execute(
                f"select extract(epoch from r.completed_at - t.enqueue_at)::float8 "
                f"from absurd.r_{QUEUE} r join absurd.t_{QUEUE} t using (task_id) "
                "where task_id = any(%s::uuid[])",
                ([str(each) for each in taken],),
            ).fetchall()
        assert len(rows) == count
        return [float(row[0]) for row in rows]

    def replay(self, steps: int) -> dict[str, float]:
        """A task whose first attempt fails after its last step; how long the second one takes."""
        app, client = (Absurd(self.dsn, queue_name=QUEUE) for _ in range(2))
        loads: list[float] = []
        bodies: list[float] = []
        load = absurd_sdk._create_task_context

        def timed_load(*arguments: Any) -> Any:
            begin = time.perf_counter()
            context = load(*arguments)
            loads.append(time.perf_counter() - begin)
            return context

        @app.register_task(name="again")
        def again(params: Any, context: Any) -> int:
            begin, total = time.perf_counter(), 0
            for number in range(params["count"]):
                total += context.step(f"step-{number}", lambda number=number: number)
            bodies.append(time.perf_counter() - begin)
            if len(bodies) == 1:
                raise RuntimeError("the first attempt fails")
            return total

        absurd_sdk._create_task_context = timed_load
        try:
            task = client.spawn("again", {"count": steps}, queue=QUEUE, max_attempts=3)
            worker = threading.Thread(
                target=app.start_worker, kwargs={"poll_interval": POLL_SECONDS}, daemon=True
            )
            worker.start()
            state = client.await_task_result(task["task_id"], timeout=60)
            app.stop_worker()
            worker.join(10)
        finally:
            absurd_sdk._create_task_context = load
        assert state is not None
        assert state.state == "completed", state
        assert state.result == steps * (steps - 1) // 2, state
        client.close()
        return {"total": loads[1] + bodies[1], "body": bodies[1]}


if __name__ == "__main__":
    bench = Bench(sys.argv[1])
    serve(
        {
            verb: getattr(bench, verb)
            for verb in ("install", "enqueue", "start", "stop", "drain", "latency", "replay")
        }
    )
