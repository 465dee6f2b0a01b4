"""Replay child: the entry of the processes of a replay pool.

They need no database driver: `durable.runtime.replay_pool` reads the histories and sends them. To
import what a replay needs takes as long as thousands of replays, so where a process can fork, the
first one forks the others, before it has seen any code of the user's: each imports the app itself,
as a worker does. The first is a fork of the caller, where the caller has one thread and no event
loop that runs, else an interpreter of its own. What the user's code prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from durable.engine.registry import Registry
from durable.errors import DurableError, StoreError
from durable.runtime.app import load_app
from durable.runtime.frames import pack, take_frame
from durable.runtime.parent import die_with, take_socket
from durable.runtime.recorded import find_problem
from durable.runtime.replay_work import WORK_BYTES_MAX, Tally, runs_in

GARBAGE_MAX = 50_000
"""Objects made before garbage is looked for: not evicted runs, only what the user's code leaves."""
FORKS_MAX = 250
"""The kernel hands over at most 253 sockets at once."""
CAN_FORK = sys.platform == "linux"
"""Elsewhere libraries of the system do not bear it, or there is no fork."""


def main(fd: int | None) -> NoReturn:
    """Be the first process, in an interpreter of its own."""
    work(take_socket(fd))


class Fork:
    """The first process as a fork of this one: as much of a `subprocess.Popen` as its pool needs.

    ``ours`` and ``theirs`` are the ends of its socket pair.
    """

    def __init__(self, ours: socket.socket, theirs: socket.socket) -> None:
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid:
            return
        try:
            die_with(parent)
            ours.close()
            detach()
            work(theirs)
        except BaseException:
            traceback.print_exc()
        finally:
            # Nothing of what the caller is about to do is for the child, nor what it has buffered.
            os._exit(1)

    def kill(self) -> None:
        """End it. To be called before `wait`, as long as its number is its own."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Until it has ended."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def can_fork_here() -> bool:
    """Whether a fork of this process finds all as it should be: no other thread had anything locked
    at that moment, and it is in no event loop."""
    if not CAN_FORK or asyncio._get_running_loop() is not None:
        return False
    return len(os.listdir("/proc/self/task")) == 1


def detach() -> None:
    """Give back what a fork has from its parent: its input, its output, who hears of signals."""
    signal.set_wakeup_fd(-1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.stderr = stderr


def work(link: socket.socket) -> NoReturn:
    """Replay what the parent sends until it closes the socket."""
    # When this process ends is for the parent to say, also after a terminal's Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with(os.getppid())
    faulthandler.enable(2)
    sys.stdout = sys.stderr
    # What is here now stays: the collector need not walk through it again and again. And by its
    # own measure it would start once every few runs.
    gc.freeze()
    gc.set_threshold(GARBAGE_MAX)
    link = forked(link) if CAN_FORK else link
    with link.makefile("rb") as stream:
        serve(link, stream)
    os._exit(0)


def forked(link: socket.socket) -> socket.socket:
    """Fork a process for each socket that the parent sends; return the caller's own, in each."""
    _, others, _, _ = socket.recv_fds(link, 1, FORKS_MAX)
    parent = os.getpid()
    for number, fd in enumerate(others):
        if os.fork() == 0:
            die_with(parent)
            link.close()
            for other in others[number + 1 :]:
                os.close(other)
            return socket.socket(fileno=fd)
        os.close(fd)
    return link


def serve(link: socket.socket, stream: BinaryIO) -> None:
    """Take the orders, then answer one frame of runs after the other until there are no more."""
    first = take_frame(stream)
    if first is None:
        return
    orders: dict[str, Any] = first[0]["orders"]
    try:
        app = load_app(orders["app"], Path(orders["folder"]))
        registry = Registry(app.workflows, app.activities, interceptors=app.interceptors)
        while (frame := take_frame(stream, WORK_BYTES_MAX)) is not None:
            tally = Tally()
            for run in runs_in(*frame, app.codec):
                if run is None:
                    tally.gone += 1
                else:
                    tally.count(run.workflow_type, find_problem(registry, run))
            link.sendall(tally.to_frame())
    except DurableError as error:
        text = str(error).encode(errors="backslashreplace").decode()
        link.sendall(pack({"failed": text, "by_store": isinstance(error, StoreError)}))
