"""Process: the entry of a worker process that a supervisor started.

It reads its orders from the socket it inherited, imports the user's app, builds a `Worker` and runs
it. It ends when it is told to, when the socket closes, and (on Linux, by the kernel) when its
supervisor dies: a worker that nobody keeps alive must not go on claiming.

SIGINT is ignored (a terminal's Ctrl-C reaches the supervisor too, which then drains its workers);
SIGTERM drains this worker.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn

from durable.engine import guard
from durable.errors import DurableError
from durable.runtime.app import App, describe, load_app
from durable.runtime.metrics import Metrics, Snapshot
from durable.runtime.parent import die_with, take_socket
from durable.runtime.spawn import BOOT_FAILURE_CODE, LINE_BYTES_MAX, LOG_FORMAT, Orders
from durable.runtime.worker import Worker
from durable.store.base import Hint
from durable.store.postgres import PostgresStore

BEAT_SECONDS = 1.0
CONNECT_SECONDS_MAX = 20.0
"""How long a worker process waits for a database that is not up: then the next one does."""

log = logging.getLogger("durable.worker")


def main(fd: int | None) -> NoReturn:
    """Run one worker over the inherited socket; leave with its exit code."""
    link = take_socket(fd)
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with(parent)
    faulthandler.enable()
    # psycopg cannot use the default loop of Windows.
    factory = asyncio.SelectorEventLoop if sys.platform == "win32" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        code = runner.run(serve(link))
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of user activities that outlived the drain must not hold the process up.
    os._exit(code)


async def serve(link: socket.socket) -> int:
    """Take the orders, start, serve until told to stop; return the exit code."""
    reader, writer = await asyncio.open_connection(sock=link, limit=LINE_BYTES_MAX)
    first = await reader.readline()
    if not first:
        return BOOT_FAILURE_CODE
    orders = Orders.from_line(first)
    logging.basicConfig(level=orders.log_level, format=LOG_FORMAT)
    # Before the app is imported: what it keeps a reference to is then guarded as well.
    guard.install()
    try:
        worker, metrics = build(orders, load_app(orders.app))
        # Before it claims anything: what it has when it is killed is handed over at once.
        writer.write(json.dumps({"session": worker.session_id}).encode() + b"\n")
        running = asyncio.create_task(worker.run())
        await first_of(running, worker.started())
    except DurableError as error:
        return await give_up(writer, str(error))
    except Exception as error:
        log.exception("the worker cannot start")
        return await give_up(writer, describe(error))
    settle_heap()
    return await run(worker, running, metrics, reader, writer)


def settle_heap() -> None:
    """Spare the garbage collector what stays: it costs about a tenth of a busy worker's time.

    Everything loaded so far lives as long as the process, and warm runs are many and live long, so
    collections are made rarer and the oldest generation is looked through less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def build(orders: Orders, app: App) -> tuple[Worker, Metrics]:
    """The worker of this process."""
    metrics = Metrics()
    # The supervisor has reached the database, and soon thinks that who is silent hangs.
    wait = min(orders.options.connect_seconds, CONNECT_SECONDS_MAX)
    store = PostgresStore(orders.dsn, schema=orders.schema, connect_seconds=wait)
    worker = Worker(
        store,
        workflows=app.workflows,
        activities=app.activities,
        options=orders.options,
        metrics=metrics,
        keep_session=False,
        build_id=orders.build_id or "",
        codec=app.codec,
        interceptors=app.interceptors,
    )
    return worker, metrics


async def first_of(running: asyncio.Task[None], started: Coroutine[Any, Any, None]) -> None:
    """Wait until the worker serves; raise what ended it before that."""
    starting = asyncio.create_task(started)
    await asyncio.wait({running, starting}, return_when=asyncio.FIRST_COMPLETED)
    starting.cancel()
    if running.done():
        running.result()
        raise RuntimeError("the worker ended before it served")


async def run(
    worker: Worker,
    running: asyncio.Task[None],
    metrics: Metrics,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> int:
    """Beat, listen and serve until the worker ends."""
    loop = asyncio.get_running_loop()
    if sys.platform != "win32":
        loop.add_signal_handler(signal.SIGTERM, worker.request_stop)
    voice = Voice(worker, metrics, writer)
    beating = asyncio.create_task(beat(voice))
    listening = asyncio.create_task(listen(worker, reader))
    await asyncio.wait({running})
    beating.cancel()
    listening.cancel()
    if running.exception() is not None:
        log.error("the worker ended", exc_info=running.exception())
        return 1
    voice.say("beat")
    writer.close()
    return 0


async def listen(worker: Worker, reader: asyncio.StreamReader) -> None:
    """Act on the supervisor's lines; drain when it says stop, or is gone."""
    while True:
        try:
            line = await reader.readline()
        except OSError:
            line = b""
        if not line or b"stop" in line:
            worker.request_stop()
        if not line:
            return
        if b"lost" in line:
            worker.doubt_session()
        worker.hint(Hint(runs_only=b"runs" in line))


async def beat(voice: Voice) -> None:
    """Say hello, then tell session, progress and metrics each second."""
    voice.say("hello")
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        voice.say("beat")


class Voice:
    """What a worker says to its supervisor."""

    def __init__(self, worker: Worker, metrics: Metrics, writer: asyncio.StreamWriter) -> None:
        self._worker = worker
        self._metrics = metrics
        self._writer = writer
        self._told: Snapshot | None = None
        """The metrics as the supervisor has them."""

    def say(self, word: str) -> None:
        """One line up; left out while the supervisor has not read the last ones.

        The metrics are in it only when they changed: an idle worker costs one short line a second.
        """
        writer = self._writer
        if writer.is_closing() or writer.transport.get_write_buffer_size() > LINE_BYTES_MAX:
            return
        worker = self._worker
        worker.move()
        message: dict[str, Any] = {"session": worker.session_id, "progress": worker.progress}
        snapshot = self._metrics.snapshot()
        if snapshot != self._told:
            message["metrics"] = self._told = snapshot
        writer.write(json.dumps({word: message}).encode() + b"\n")


async def give_up(writer: asyncio.StreamWriter, reason: str) -> int:
    """Say why this worker cannot start."""
    writer.write(json.dumps({"fail": reason}).encode() + b"\n")
    await writer.drain()
    writer.close()
    return BOOT_FAILURE_CODE
