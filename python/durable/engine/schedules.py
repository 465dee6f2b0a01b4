"""Schedules: a workflow type of the library's own that starts runs at the times of a plan.

Every worker serves it. Its code sleeps until the next time and starts the run as a child that it
leaves alone when it ends itself. The id of that run is made of the schedule's and the time, so the
same time is never run twice. Orders (pause, trigger, ...) are signals. Times that were computed are
recorded, so a newer time zone database changes what comes, not what was.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

from durable._core import CommandFuture
from durable.engine import guard
from durable.engine.calendar import jitter_us, next_time
from durable.engine.context import ChildHandle, ContinueAsNew, WorkflowContext, context
from durable.engine.definition import WorkflowDefinition, WorkflowOptions
from durable.engine.info import to_datetime
from durable.errors import ChildWorkflowError, PayloadTooLargeError, WorkflowNotFoundError
from durable.events import OWN_PREFIX, EventKind

SCHEDULE_TYPE = OWN_PREFIX + "schedule"
"""The workflow type of schedules."""
ORDERS = "schedule"
"""The signal that carries orders to a schedule."""
OVERLAPS = ("skip", "buffer_one", "allow_all", "cancel_other", "terminate_other")
RECENT_MAX = 10
EVENTS_SOFT_MAX = 2_000
"""From here on a schedule continues as new as soon as it watches no run."""
EVENTS_MAX = 10_000
"""From here on it does so at once, and watches none of those that run."""


async def run_schedule(plan: dict[str, Any], state: dict[str, Any]) -> None:
    """Start runs by ``plan`` until somebody ends this one; ``state`` is empty at first."""
    await Schedule(context("a schedule"), plan, state).loop()


SCHEDULE: WorkflowDefinition[Any, None] = WorkflowDefinition(
    SCHEDULE_TYPE, run_schedule, WorkflowOptions()
)


def as_text(payload: bytes) -> str:
    """A result as it is recorded: only those who ask for it know its type."""
    return payload.decode(errors="replace")


class Schedule:
    """One schedule at work. ``state`` is what its next run has to know."""

    def __init__(self, this: WorkflowContext, plan: dict[str, Any], state: dict[str, Any]) -> None:
        self.this = this
        self.plan = plan
        fresh: dict[str, Any] = {
            "after_us": this.loop.now_us,
            "paused": plan.get("paused"),
            "buffered_us": None,
            "counts": {"started": 0, "skipped": 0, "missed": 0, "refused": 0},
            "recent": [],
            "last": [None, None],
        }
        self.state: dict[str, Any] = {**fresh, **state}
        self.children: list[ChildHandle[Any]] = []
        self.due_us: int | None = None
        self.mail = this.mailbox(ORDERS)
        self.read = this.codec.decoder(list[Any])

    async def loop(self) -> None:
        """Wait for what comes next, and do it."""
        self.plan_next()
        while True:
            self.show()
            await self.wait()
            while len(self.mail):
                await self.obey(self.read(self.mail.take_nowait() or b"[]")[0])
            self.forget_ended()
            buffered_us = self.state["buffered_us"]
            if buffered_us is not None and not self.children:
                self.state["buffered_us"] = None
                await self.start(buffered_us)
            if self.due_us is not None and self.fire_us() <= self.this.loop.now_us:
                await self.come(self.due_us)
            self.go_on_if_long()

    async def wait(self) -> None:
        """Until the next time, an order, or the end of a run that is watched."""
        limit = None
        if self.due_us is not None:
            limit = max(0, self.fire_us() - self.this.loop.now_us) / 1e6
            if not limit:
                return
        waiter = self.this.wait_for(
            lambda: len(self.mail) or any(child.future.done() for child in self.children)
        )
        try:
            async with asyncio.timeout(limit):
                await waiter
        except TimeoutError:
            pass
        finally:
            self.this.stop_waiting(waiter)

    def fire_us(self) -> int:
        """When the run of the next time is to start."""
        due_us = self.due_us or 0
        return due_us + jitter_us(self.plan, self.this.info.workflow_id, due_us)

    def oldest_us(self) -> int:
        """A time before this is too late. Jitter makes none late: it may move one behind others."""
        grace_us: int = self.plan["catch_up_us"] + (self.plan.get("jitter_us") or 0)
        return self.this.loop.now_us - grace_us

    def plan_next(self) -> None:
        """Find the next time; those that are too late by far are passed over in one go."""
        self.due_us = None
        if self.state["paused"] is not None:
            return
        after_us = max(self.state["after_us"], self.oldest_us() - 1)

        def compute() -> bytes:
            # Reads the time zone's file, which is why what comes of it is recorded.
            with guard.allowed():
                return self.this.encode(next_time(self.plan, after_us), "a time")

        payload = self.this.loop.record(EventKind.SIDE_EFFECT, "next time", compute)
        self.due_us = self.this.codec.decoder(Any)(payload)

    async def come(self, due_us: int) -> None:
        """A time of the plan has come: start its run, as the overlap policy allows."""
        self.state["after_us"] = due_us
        if due_us < self.oldest_us():
            self.state["counts"]["missed"] += 1
        elif not self.children or self.plan["overlap"] == "allow_all":
            await self.start(due_us)
        elif self.plan["overlap"] in ("cancel_other", "terminate_other"):
            await self.end_others(terminate=self.plan["overlap"] == "terminate_other")
            await self.start(due_us)
        elif self.plan["overlap"] == "buffer_one" and self.state["buffered_us"] is None:
            self.state["buffered_us"] = due_us
        else:
            self.state["counts"]["skipped"] += 1
        self.plan_next()

    async def end_others(self, *, terminate: bool) -> None:
        """End the runs that are watched, or ask them to; whichever run their chains have come to.

        They are not watched any more, but how they end is remembered when it is known.
        """
        why = {"type": "Terminated", "message": f"the next time of {self.this.info.workflow_id}"}
        payload = self.this.encode(why, "a failure") if terminate else None
        children, self.children = self.children, []
        for child in children:
            sent = self.this.send_external(
                EventKind.EXTERNAL_CANCEL,
                child.workflow_id,
                None,
                None,
                payload,
                terminate=terminate,
            )
            # One that has just ended cannot be told.
            with suppress(WorkflowNotFoundError):
                await sent

    async def start(self, due_us: int, suffix: str = "") -> None:
        """Start the run of a time. One whose id is taken was started before: nothing to do."""
        moment = to_datetime(due_us).isoformat().replace("+00:00", "Z")
        run_id = f"{self.this.info.workflow_id}-{moment}{suffix}"
        options = {**self.plan["options"], "id": run_id, "parent_close": "abandon"}
        child = self.this.start_child(
            self.plan["workflow"], self.plan["arguments"].encode(), as_text, options
        )
        if not self.this.loop.is_replaying:
            self.this.given[child.future.event_id] = (*self.state["last"],)
        child.future.add_done_callback(partial(self.remember, child))
        try:
            await child.started()
        except ChildWorkflowError:
            self.state["counts"]["refused"] += 1
        else:
            self.state["counts"]["started"] += 1
            self.state["recent"] = [*self.state["recent"], run_id][-RECENT_MAX:]
        self.children.append(child)

    def remember(self, child: ChildHandle[Any], future: CommandFuture) -> None:
        """A run has ended: keep its result, or its failure, for those that are started after it."""
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            self.state["last"] = [future.result(), None]
        elif isinstance(error, ChildWorkflowError) and not self.was_refused(child, error):
            failure = self.this.codec.encode(error.failure).decode()
            self.state["last"] = [self.state["last"][0], failure]

    def was_refused(self, child: ChildHandle[Any], error: ChildWorkflowError) -> bool:
        """Whether there is no such run, because its id was taken."""
        started = self.this.children[child.future.event_id]
        return started.done() and started.exception() is error

    async def obey(self, order: dict[str, Any]) -> None:
        """Do what a signal asks for."""
        now_us = self.this.loop.now_us
        kind = order["do"]
        if kind == "trigger":
            await self.start(now_us, f"-{self.state['counts']['started']}")
        elif kind == "backfill":
            for due_us in order["times_us"]:
                await self.start(due_us)
        elif kind == "pause":
            self.state["paused"] = order["reason"]
            self.due_us = None
        elif kind == "resume" and self.state["paused"] is not None:
            self.state.update(paused=None, after_us=now_us)
            self.plan_next()
        elif kind == "update":
            # A time that has come, and waits for no more than its jitter, is still the old plan's.
            while self.due_us is not None and self.due_us <= now_us:
                await self.come(self.due_us)
            self.plan = order["plan"]
            self.state["after_us"] = now_us
            self.plan_next()

    def forget_ended(self) -> None:
        """Watch no run that has ended, however it did."""
        for child in self.children:
            if child.future.done() and not child.future.cancelled():
                child.future.exception()
        self.children = [child for child in self.children if not child.future.done()]

    def go_on_if_long(self) -> None:
        """Continue as new when history is long; the runs that were started go on."""
        is_free = not self.children or self.plan["overlap"] == "allow_all"
        if self.this.loop.position < (EVENTS_SOFT_MAX if is_free else EVENTS_MAX):
            return
        try:
            payload = SCHEDULE.signature.encode_args((self.plan, self.state), {})
        except PayloadTooLargeError:
            # What the last run said is no reason to end.
            self.state["last"] = [None, None]
            payload = SCHEDULE.signature.encode_args((self.plan, self.state), {})
        raise ContinueAsNew(SCHEDULE_TYPE, payload, {})

    def show(self) -> None:
        """Let people see where it stands."""
        due_us = self.due_us
        self.this.vars.update(
            plan=self.plan,
            next_time=None if due_us is None else to_datetime(due_us).isoformat(),
            running=[child.workflow_id for child in self.children],
            paused=self.state["paused"],
            recent=list(self.state["recent"]),
            **self.state["counts"],
        )
