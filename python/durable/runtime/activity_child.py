"""Activity child: the entry of a process that runs activities with ``executor="process"``.

A worker starts it (see `durable.runtime.activity_pool`) and gives it one job at a time. The job
runs on the main thread, as native libraries and signals like it; a second thread reads what the
worker says meanwhile, and ends the process at once when the worker is gone.
"""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import importlib
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any, NoReturn

from durable.codec import DEFAULT_CODEC, Signature, check_size
from durable.engine.definition import ActivityDefinition
from durable.engine.info import ACTIVITY_CONTEXT, ActivityContext
from durable.errors import CompleteLater, ConfigurationError, PayloadError
from durable.options import PAYLOAD_BYTES_WARN
from durable.runtime.failures import failure_of
from durable.runtime.frames import pack, take_frame
from durable.runtime.parent import die_with, take_socket
from durable.runtime.piped_streams import Outbox, PipedWriter

BEAT_SECONDS_MIN = 0.05
"""Heartbeats that follow each other faster are held back, but for the details of the last one."""

log = logging.getLogger("durable.activity")
decode_list = DEFAULT_CODEC.decoder(list[Any])


def main(fd: int | None) -> NoReturn:
    """Serve jobs until the worker closes the socket."""
    link = take_socket(fd)
    # A terminal's Ctrl-C and a service manager's SIGTERM reach every process of a group: when this
    # one ends is for its worker to say. A handler, as to ignore them would be inherited.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    die_with(os.getppid())
    faulthandler.enable()
    ActivityChild(link).serve()
    os._exit(0)


class ActivityChild:
    """One process: its socket, and the job that runs."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._stream = link.makefile("rb")
        self._jobs: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._current: RunningJob | None = None
        self._cancelled: int | None = None

    def serve(self) -> NoReturn:
        """Import what there is to run, then run one job after the other. Never returns."""
        first = take_frame(self._stream)
        if first is None:
            os._exit(0)
        orders = first[0]["orders"]
        logging.basicConfig(level=orders["log_level"], format=orders["log_format"])
        threading.Thread(target=self._read, name="durable-parent", daemon=True).start()
        import_all(orders["modules"])
        self.send({"ready": 1})
        while True:
            head, body = self._jobs.get()
            job = RunningJob(self, head["job"], body)
            with self._lock:
                self._current = job
                job.context.is_cancelled = self._cancelled == job.id
            contextvars.copy_context().run(job.run)

    def send(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Tell the worker; without one there is nothing left to do."""
        try:
            with self._sending:
                self._link.sendall(pack(head, body))
        except OSError:
            os._exit(0)

    def _read(self) -> None:
        """On a thread of its own: what the worker says, until it is gone."""
        while (frame := take_frame(self._stream)) is not None:
            head, body = frame
            if "job" in head:
                self._jobs.put((head, body))
                continue
            with self._lock:
                if "wrote" in head:
                    if self._current is not None and self._current.id == head["wrote"]:
                        self._current.outbox.taken(head)
                    continue
                self._cancelled = head["cancel"]
                if self._current is not None and self._current.id == self._cancelled:
                    self._current.context.is_cancelled = True
        os._exit(0)


def import_all(modules: Iterable[str]) -> None:
    """Import what jobs will need. What cannot be imported is reported by the job that needs it."""
    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException as error:
            log.error("a process of activities cannot import %s: %r", name, error)


class RunningJob:
    """One attempt, as its own process sees it."""

    def __init__(self, child: ActivityChild, facts: dict[str, Any], input: bytes) -> None:
        self.id: int = facts["id"]
        self._child = child
        self._facts = facts
        self._input = input
        self._signature: Signature | None = None
        self._codec = DEFAULT_CODEC
        self._details: bytes | None = None
        """Details that the worker has not been told."""
        self._told_at = 0.0
        self.outbox = Outbox(self._send_item)
        self.context = ActivityContext(
            details=tuple(decode_list(facts["details"].encode())) if facts["details"] else (),
            on_heartbeat=self._beat,
            **facts["context"],
        )
        self.context.on_stream = lambda name: PipedWriter(self.outbox, self._codec, name)

    def _send_item(self, head: dict[str, Any], body: bytes) -> None:
        self._child.send({"item": self.id, **head}, body)

    def run(self) -> None:
        """Run it, and tell the worker how it ended."""
        ACTIVITY_CONTEXT.set(self.context)
        is_ours = True
        head: dict[str, Any] = {"done": self.id}
        try:
            fn, signature = self._load()
            args, kwargs = signature.decode_args(self._input)
            is_ours = False
            value = fn(*args, **kwargs)
            is_ours = True
            body = signature.check_result(value)
        except CompleteLater:
            head["later"] = True
            body = b""
        except BaseException as error:
            # Whatever it is (SystemExit too): one attempt failed, the process goes on.
            failure = failure_of(error)
            body = failure.payload
            head["failed"] = [failure.names, failure.is_final, failure.retry_after]
            head["gives_up"] = is_ours and isinstance(error, PayloadError)
        head["retry"] = [self.context.retry_delay_seconds, self.context.retry_at_us]
        if self._details is not None:
            head["details"] = self._details.decode()
        self._child.send(head, body)

    def _load(self) -> tuple[Any, Signature]:
        """The function to call, and how its values are read and written."""
        module, path = self._facts["module"], self._facts["qualname"]
        try:
            found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise ConfigurationError(
                f"a process of this worker cannot import {module}.{path}: {error}"
            ) from error
        if not isinstance(found, ActivityDefinition):
            return found, Signature.of(found, DEFAULT_CODEC)
        self._codec = found.codec
        self._codec.verify = self._codec.verify or self._facts["verify"]
        return found.fn, found.signature

    def _beat(self, details: tuple[Any, ...]) -> None:
        """The code says that it makes progress; raises CancelledError when it is to stop."""
        if details:
            encoded = self._codec.encode(list(details))
            if len(encoded) > PAYLOAD_BYTES_WARN:
                check_size(encoded, f"the heartbeat details of activity {self.context.name}")
            self._details = encoded
        now = time.monotonic()
        if now - self._told_at >= BEAT_SECONDS_MIN:
            self._told_at = now
            self._child.send({"beat": self.id}, self._details or b"")
            self._details = None
        if self.context.is_cancelled:
            raise asyncio.CancelledError(f"activity {self.context.name} was told to stop")
