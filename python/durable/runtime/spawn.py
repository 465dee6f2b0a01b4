"""Spawn: a worker process as its supervisor sees it.

Each worker is a fresh interpreter (never a fork of the supervisor) that runs
`durable.runtime.process`. The two talk over one socket pair, in lines of JSON:

* down: first the `Orders`, then ``{"hint": 1}`` (look for work now), ``{"hint": "runs"}``
  (for runs, but not for activities and timers), ``{"lost": 1}`` (see whether your session lives)
  and ``{"stop": 1}`` (drain);
* up: ``{"hello": ...}`` once it serves, ``{"beat": ...}`` each second with its session and
  progress, and with its metrics if they changed, ``{"fail": ...}`` when it cannot start.

The socket closes when either side dies, so neither outlives the other for long. Nothing that a
worker sends is ever executed or unpickled, and a worker that reads nothing costs at most
`PENDING_BYTES_MAX` of buffer. A thread per worker sits in ``waitpid``, so that a death is seen at
once whatever the loop, the platform or a grandchild that holds the socket open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from durable.errors import ConfigurationError
from durable.options import WorkerOptions
from durable.runtime.metrics import Snapshot

LINE_BYTES_MAX = 4 * 1024 * 1024
PENDING_BYTES_MAX = 4096
"""Unread bytes to a worker above which hints are dropped: it has one to read anyway."""
HINT = b'{"hint": 1}\n'
LOST = b'{"lost": 1}\n'
HINT_RUNS = b'{"hint": "runs"}\n'
LAST_WORDS_SECONDS = 0.25
BOOT_FAILURE_CODE = 78
"""Exit code of a worker that could not start (EX_CONFIG)."""

BOOT = "import sys; sys.path[:] = {path!r}; from {module} import main; main({fd})"
WORKER = "durable.runtime.process"
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s [%(process)d]: %(message)s"

log = logging.getLogger("durable.supervisor")


class BootError(ConfigurationError):
    """The workers cannot start; the message is what the first one said."""


@dataclass(frozen=True)
class Orders:
    """All that a worker process is told at its start. The DSN travels here, not in ``argv``."""

    app: str
    dsn: str
    schema: str
    options: WorkerOptions
    build_id: str | None = None
    log_level: int = logging.INFO

    def to_line(self) -> bytes:
        """As the first line of the socket."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> Orders:
        """From the first line of the socket."""
        data = json.loads(line)
        options = data.pop("options")
        options["queues"] = tuple(options["queues"])
        return cls(options=WorkerOptions(**options), **data)


class WorkerProcess:
    """One worker process, from its start to its end. Lives on the supervisor's loop.

    ``session`` is what heartbeats keep alive; ``progress_at`` the monotonic time its loop was last
    seen to move; ``failure`` why it could not start. Set once each: ``up`` when it serves,
    ``exited`` when the process is gone.
    """

    def __init__(self, number: int, on_beat: Callable[[WorkerProcess, Snapshot], None]) -> None:
        self.number = number
        self.session: int | None = None
        self.past_sessions: set[int] = set()
        """Sessions that it may have had: what it said before it served, and those declared dead."""
        self.progress = -1
        self.started_at = time.monotonic()
        self.progress_at = self.started_at
        self.failure: str | None = None
        self.killed_as_hung = False
        self.stop_sent = False
        self.up = asyncio.Event()
        self.exited = asyncio.Event()
        self._on_beat = on_beat
        self._popen: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process id; None before the start."""
        return None if self._popen is None else self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None while it lives."""
        return None if self._popen is None else self._popen.returncode

    async def start(self, orders: Orders) -> None:
        """Start the process and give it its orders."""
        ours, theirs = socket.socketpair()
        try:
            with blocked_interrupt():
                self._popen = launch(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._wait, args=(loop,), name=f"durable-wait-{self._popen.pid}", daemon=True
        ).start()
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=LINE_BYTES_MAX)
        self._writer.write(orders.to_line())
        if self.stop_sent:
            self.stop()
        self._reading = asyncio.create_task(self._read(reader))

    def hint(self, *, runs_only: bool = False) -> None:
        """Tell it to look for work now. Never blocks; dropped while others are unread."""
        self._tell(HINT_RUNS if runs_only else HINT)

    def doubt(self) -> None:
        """Tell it that its session seems to be over. Never blocks."""
        self._tell(LOST)

    def _tell(self, line: bytes) -> None:
        writer = self._writer
        if writer is None or writer.is_closing() or self.stop_sent or not self.up.is_set():
            return
        if writer.transport.get_write_buffer_size() < PENDING_BYTES_MAX:
            writer.write(line)

    def stop(self) -> None:
        """Tell it to drain and end."""
        self.stop_sent = True
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(b'{"stop": 1}\n')

    def kill(self, *, hung: bool = False) -> None:
        """End it at once (SIGKILL). Safe on a process that is gone."""
        self.killed_as_hung = self.killed_as_hung or hung
        if self._popen is not None and self._popen.returncode is None:
            self._popen.kill()

    async def close(self) -> None:
        """Give back the socket of a process that has exited."""
        if self._reading is not None:
            # Its last words may still be in the socket. A grandchild may hold the socket open.
            await asyncio.wait({self._reading}, timeout=LAST_WORDS_SECONDS)
            self._reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reading
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Sit in waitpid, then tell the loop (which may be closed by then)."""
        assert self._popen is not None
        self._popen.wait()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self.exited.set)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Take its lines until the socket closes."""
        while True:
            try:
                line = await reader.readline()
            except OSError:
                # It ended before it had read our last words.
                return
            except ValueError:
                log.error("worker %s (pid %s) sent too long a line", self.number, self.pid)
                self.kill()
                return
            if not line:
                return
            self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        """Act on one message."""
        if "fail" in message:
            self.failure = str(message["fail"])
            return
        if "session" in message:
            # It serves soon, and may be gone before it says hello.
            self.past_sessions.add(message["session"])
            return
        beat = message.get("hello") or message["beat"]
        if self.session not in (None, beat["session"]):
            self.past_sessions.add(self.session)
        self.session = beat["session"]
        if beat["progress"] != self.progress:
            self.progress = beat["progress"]
            self.progress_at = time.monotonic()
        self.up.set()
        if "metrics" in beat:
            self._on_beat(self, beat["metrics"])


def launch(theirs: socket.socket, module: str = WORKER) -> subprocess.Popen[bytes]:
    """Start an interpreter that inherits one end of a socket pair and calls ``module.main``."""
    flags = [f"-X{name}" for name in ("dev", "utf8") if name in sys._xoptions]
    if sys.platform == "win32":
        boot = BOOT.format(path=sys.path, module=module, fd="None")
        popen = subprocess.Popen([sys.executable, *flags, "-c", boot], stdin=subprocess.PIPE)
        assert popen.stdin is not None
        # Windows hands sockets over as bytes made for one process.
        popen.stdin.write(theirs.share(popen.pid))
        popen.stdin.close()
        return popen
    boot = BOOT.format(path=sys.path, module=module, fd=theirs.fileno())
    return subprocess.Popen(
        [sys.executable, *flags, "-c", boot],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


class blocked_interrupt(contextlib.AbstractContextManager[None]):
    """Hold SIGINT back while a child starts.

    A terminal's Ctrl-C goes to every process of its group. The child inherits the block, so that it
    is never interrupted before it has said what to do with the signal; ours comes right after.
    """

    def __enter__(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def __exit__(self, *args: object) -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
