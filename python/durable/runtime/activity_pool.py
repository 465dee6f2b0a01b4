"""Activity pool: the processes in which a worker runs activities with ``executor="process"``.

Each process is a fresh interpreter (`durable.runtime.activity_child`) joined by a socket pair, and
runs one job at a time, so that killing it stops that job and nothing else. They are started when
they are first needed, at most as many as there are jobs at once, and used again and again. One that
dies fails the job it had; the next job gets a new one. All of them end with the worker.

A job that is told to stop may clean up for `STOP_SECONDS`; one whose time is over is killed at
once. A job that has not reached its process yet is just dropped: the start of a process, which may
import much, is not lost because the first job could not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from durable.codec import DEFAULT_CODEC
from durable.engine.definition import ActivityDefinition
from durable.engine.info import ActivityContext
from durable.errors import ActivityProcessError, DefinitionError
from durable.runtime.failures import Failure, failure_of
from durable.runtime.frames import FRAME_BYTES_MAX, pack, read_frame
from durable.runtime.piped_streams import Feed
from durable.runtime.spawn import LAST_WORDS_SECONDS, LOG_FORMAT, blocked_interrupt, launch

STOP_SECONDS = 5.0
"""How long a job that was told to stop may take before its process is killed."""
BOOT_SECONDS_MAX = 120.0
"""How long a process may take to start and to import the activities."""
CLOSE_SECONDS = 1.0
MODULE = "durable.runtime.activity_child"

log = logging.getLogger("durable.worker")


class Reply(NamedTuple):
    """How a job ended: with a ``result``, a ``failure``, or (neither) others will complete it."""

    result: bytes | None = None
    failure: Failure | None = None
    gives_up: bool = False
    retry_delay_seconds: float | None = None
    retry_at_us: int | None = None
    is_lost: bool = False
    """Its process died: what it did is not known."""


class Job:
    """One attempt for a process. ``on_beat`` gets its heartbeats' details, None for none."""

    def __init__(
        self,
        number: int,
        facts: dict[str, Any],
        input: bytes,
        on_beat: Callable[..., None],
        context: ActivityContext,
    ) -> None:
        self.id = number
        self.name = context.name
        self.feed = Feed(context, self._tell)
        """What it writes to streams."""
        self.frame = pack({"job": {**facts, "id": number}}, input)
        self.on_beat = on_beat
        self.done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.child: Child | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    def _tell(self, head: dict[str, Any]) -> None:
        if self.child is not None:
            self.child.write({"wrote": self.id, **head})

    def stop(self, *, now: bool) -> None:
        """End it: by killing its process at once, or (``now=False``) if it does not end itself."""
        if self.done.done() or self.child is None:
            return
        if not self.child.runs(self):
            self.child.drop(self)
        elif now:
            self.child.kill()
        elif self._timer is None:
            self.child.write({"cancel": self.id})
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(STOP_SECONDS, self.child.kill)

    def end(self, reply: Reply) -> None:
        """It has ended; whoever waits for it hears that when what it wrote is stored."""
        if self._timer is not None:
            self._timer.cancel()
        if self.feed.is_used:
            self._ending = asyncio.create_task(self._end_when_stored(reply))
        elif not self.done.done():
            self.done.set_result(reply)

    async def _end_when_stored(self, reply: Reply) -> None:
        try:
            await self.feed.drain()
        except BaseException as error:
            # Cancelled, too, as the worker is when it ends: somebody waits for an answer.
            if reply.failure is None:
                reply = Reply(failure=failure_of(error))
        finally:
            if not self.done.done():
                self.done.set_result(reply)


class ActivityPool:
    """The processes of one worker. Whoever submits bounds how many jobs there are at once."""

    def __init__(self, modules: Iterable[str]) -> None:
        self._modules = sorted(set(modules))
        self._children: set[Child] = set()
        self._idle: list[Child] = []
        self._count = 0

    @property
    def pids(self) -> list[int]:
        """The process ids of those that serve."""
        return sorted(child.pid for child in self._children if not child.is_killed)

    def submit(
        self,
        definition: ActivityDefinition[Any, Any],
        context: ActivityContext,
        input: bytes,
        on_beat: Callable[..., None],
    ) -> Job:
        """Run a job in a process that is free, or in a new one."""
        self._count += 1
        job = Job(self._count, job_facts(definition, context), input, on_beat, context)
        try:
            child = self._idle.pop() if self._idle else self._start()
        except OSError as error:
            job.end(Reply(failure=failure_of(error)))
            return job
        child.give(job)
        return job

    async def close(self) -> None:
        """Kill them all and wait until they are gone. Safe twice."""
        for child in self._children:
            child.kill()
        living = [child.life for child in self._children]
        if living:
            await asyncio.wait(living, timeout=CLOSE_SECONDS)

    def freed(self, child: Child) -> None:
        """It can take another job."""
        if not child.is_killed:
            self._idle.append(child)

    def retire(self, child: Child) -> None:
        """It takes no job any more."""
        if child in self._idle:
            self._idle.remove(child)

    def lost(self, child: Child) -> None:
        """It is gone."""
        self.retire(child)
        self._children.discard(child)

    def _start(self) -> Child:
        ours, theirs = socket.socketpair()
        try:
            with blocked_interrupt():
                popen = launch(theirs, MODULE)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        orders = {
            "modules": self._modules,
            "log_level": logging.getLogger().getEffectiveLevel(),
            "log_format": LOG_FORMAT,
        }
        child = Child(self, popen, ours, pack({"orders": orders}))
        self._children.add(child)
        return child


class Child:
    """One process, from its start to its end. Lives on the worker's loop."""

    def __init__(
        self, pool: ActivityPool, popen: subprocess.Popen[bytes], link: socket.socket, orders: bytes
    ) -> None:
        self._pool = pool
        self._popen = popen
        self._link = link
        self._orders = orders
        self._job: Job | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._exited = asyncio.Event()
        self._is_ready = False
        self.is_killed = False
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._wait, args=(loop,), name=f"durable-wait-{popen.pid}", daemon=True
        ).start()
        self._booting = loop.call_later(BOOT_SECONDS_MAX, self._boot_timed_out)
        self.life = loop.create_task(self._live())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def runs(self, job: Job) -> bool:
        """Whether the job has reached the process."""
        return self._is_ready and self._job is job

    def give(self, job: Job) -> None:
        """Its next job; it has none now."""
        self._job = job
        job.child = self
        if self._is_ready and self._writer is not None:
            self._writer.write(job.frame)

    def drop(self, job: Job) -> None:
        """Take back a job that it has not begun."""
        self._job = None
        job.end(Reply(failure=failure_of(asyncio.CancelledError("it was told to stop"))))
        self._pool.freed(self)

    def write(self, head: dict[str, Any]) -> None:
        """Tell the process something."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack(head))

    def kill(self) -> None:
        """End it at once. Nothing is given to it any more."""
        self.is_killed = True
        self._pool.retire(self)
        if self._popen.returncode is None:
            self._popen.kill()

    async def _live(self) -> None:
        reader, self._writer = await asyncio.open_connection(sock=self._link, limit=FRAME_BYTES_MAX)
        self._writer.write(self._orders)
        reading = asyncio.create_task(self._read(reader))
        await self._exited.wait()
        # Its last words may still be in the socket, which a grandchild may hold open.
        await asyncio.wait({reading}, timeout=LAST_WORDS_SECONDS)
        reading.cancel()
        self._booting.cancel()
        self._pool.lost(self)
        self._writer.close()
        if self._job is not None:
            error = ActivityProcessError(
                f"the process of activity {self._job.name} {self._end_text()}"
            )
            if not self.is_killed:
                log.error("%s (pid %s)", error, self.pid)
            job, self._job = self._job, None
            job.end(Reply(failure=failure_of(error), is_lost=True))
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Take what it says, until it ends or says what is no frame."""
        try:
            while True:
                self._take(*await read_frame(reader))
        except (asyncio.IncompleteReadError, OSError):
            pass
        except (ValueError, KeyError, TypeError) as error:
            log.error("activity process %s said what cannot be understood: %s", self.pid, error)
        finally:
            self.kill()

    def _take(self, head: dict[str, Any], body: bytes) -> None:
        if "ready" in head:
            self._is_ready = True
            self._booting.cancel()
            if self._job is not None:
                self.give(self._job)
            return
        job = self._job
        if job is None:
            return
        if head.get("beat") == job.id:
            job.on_beat(body or None)
        elif head.get("item") == job.id:
            job.feed.take(head["name"], None if head["ends"] else body)
        elif head.get("done") == job.id:
            self._job = None
            self._pool.freed(self)
            if "details" in head:
                job.on_beat(head["details"].encode())
            job.end(reply_of(head, body))

    def _boot_timed_out(self) -> None:
        log.error("activity process %s is not ready after %g s; it is killed",
                  self.pid, BOOT_SECONDS_MAX)  # fmt: skip
        self.kill()

    def _end_text(self) -> str:
        if not self._is_ready:
            return f"could not start ({exit_text(self._popen.returncode)})"
        return f"died: {exit_text(self._popen.returncode)}"

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Sit in waitpid, then tell the loop (which may be closed by then)."""
        self._popen.wait()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._exited.set)


def reply_of(head: dict[str, Any], body: bytes) -> Reply:
    """What a ``done`` frame says."""
    delay, at_us = head["retry"]
    if head.get("later"):
        return Reply(retry_delay_seconds=delay, retry_at_us=at_us)
    if "failed" not in head:
        return Reply(result=body)
    names, is_final, after = head["failed"]
    return Reply(
        failure=Failure(body, tuple(names), bool(is_final), after),
        gives_up=bool(head["gives_up"]),
        retry_delay_seconds=delay,
        retry_at_us=at_us,
    )


def job_facts(definition: ActivityDefinition[Any, Any], context: ActivityContext) -> dict[str, Any]:
    """What a process needs to know to run an attempt."""
    return {
        "module": definition.fn.__module__,
        "qualname": definition.fn.__qualname__,
        "verify": definition.codec.verify,
        "details": DEFAULT_CODEC.encode(list(context.details)).decode() if context.details else "",
        "context": {
            "name": context.name,
            "attempt": context.attempt,
            "workflow_id": context.workflow_id,
            "run_id": context.run_id,
            "workflow_type": context.workflow_type,
            "queue": context.queue,
            "ref": context.ref,
            "scheduled_us": context.scheduled_us,
            "task_token": context.task_token,
            "headers": dict(context.headers),
        },
    }


def exit_text(returncode: int | None) -> str:
    """How a process ended, in words."""
    if returncode is None or returncode >= 0:
        return f"it left with exit status {returncode}"
    try:
        return f"it was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"it was killed by signal {-returncode}"


def check_importable(definition: ActivityDefinition[Any, Any]) -> str:
    """The module of an activity for a process; raise DefinitionError when no process can have it.

    Looks it up by its qualified name, as the process will.
    """
    fn = definition.fn
    module, path = fn.__module__, fn.__qualname__
    if module == "__main__":
        raise DefinitionError(
            f"activity {definition.name} runs in a process of its own, which cannot import the "
            "main script; put it in a module, or serve the file with `durable worker FILE`"
        )
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    if isinstance(found, ActivityDefinition):
        found = found.fn
    elif definition.codec is not DEFAULT_CODEC:
        # The process would find the function alone, and not know the codec.
        found = None
    if found is not fn:
        raise DefinitionError(
            f"activity {definition.name} runs in a process of its own, which would look for it as "
            f"{module}.{path} and find something else; decorate it at the top of that module"
        )
    return module
