"""Schedules, as a client sees them: a schedule is a run of the library's own workflow type.

What is asked of one is a signal to it (`durable.engine.schedules`); where it stands is read by
replay in this process, so no worker is asked.
"""

from __future__ import annotations

import builtins
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol

from durable.client.checks import check_id, micros
from durable.client.handle import WorkflowHandle
from durable.client.starting import StartingClient, StartOptions
from durable.engine.attributes import plain_headers, wanted_search
from durable.engine.calendar import check_plan, times_after
from durable.engine.definition import ActivityDefinition, WorkflowDefinition
from durable.engine.info import to_us
from durable.engine.jobs import headers_of, job_of
from durable.engine.schedules import ORDERS, OVERLAPS, SCHEDULE, SCHEDULE_TYPE
from durable.errors import InvalidArgumentError
from durable.events import RunState, RunView
from durable.store.pages import Runs

BACKFILL_MAX = 1_000
"""Runs that one backfill may start."""
OPEN_STATES = (RunState.RUNNING, RunState.PARKED, RunState.PAUSED)


class ScheduleRun(Protocol):
    """What a schedule's handle needs of the handle of its run: a client's, or that of a test."""

    @property
    def workflow_id(self) -> str:
        """Its id."""

    async def signal(self, signal: str, /, *args: Any) -> None:
        """Send it a signal."""

    async def terminate(self, reason: str = "") -> None:
        """End it."""

    async def vars(self) -> dict[str, Any]:
        """Its variables."""


class ScheduleHandle:
    """One schedule. Its calls raise WorkflowNotFoundError when there is none of its id."""

    def __init__(
        self, run: ScheduleRun, encode: Callable[[str, Sequence[Any]], Awaitable[bytes]]
    ) -> None:
        self._run = run
        self._encode = encode

    @property
    def id(self) -> str:
        """The id of the schedule, which is that of its run as well."""
        return self._run.workflow_id

    async def pause(self, reason: str = "") -> None:
        """Start no run at any time until `resume`."""
        await self._run.signal(ORDERS, {"do": "pause", "reason": reason})

    async def resume(self) -> None:
        """Go on with the next time; those that passed meanwhile are not made up."""
        await self._run.signal(ORDERS, {"do": "resume"})

    async def trigger(self) -> None:
        """Start a run now, whatever else runs, also when the schedule is paused."""
        await self._run.signal(ORDERS, {"do": "trigger"})

    async def backfill(self, start: datetime, end: datetime) -> int:
        """Start the runs of all times from ``start`` to ``end`` now; return how many times.

        Both are included, naive ones are UTC. A time whose run was started before is not run again.
        Raises InvalidArgumentError for more than `BACKFILL_MAX` times.
        """
        plan = (await self.describe())["plan"]
        times: list[int] = []
        for due_us in times_after(plan, to_us(start) - 1):
            if due_us > to_us(end):
                break
            times.append(due_us)
            if len(times) > BACKFILL_MAX:
                raise InvalidArgumentError(
                    f"there are more than {BACKFILL_MAX} times; backfill a shorter span"
                )
        if times:
            await self._run.signal(ORDERS, {"do": "backfill", "times_us": times})
        return len(times)

    async def update(
        self,
        *,
        cron: str | None = None,
        every: timedelta | float | None = None,
        timezone: str | None = None,
        jitter: timedelta | float | None = None,
        overlap: str | None = None,
        catch_up: timedelta | float | None = None,
        arguments: Sequence[Any] | None = None,
    ) -> None:
        """Change what is given, from now on; the rest stays as it is, and so do runs that go on.

        ``cron`` takes the place of ``every``, and the other way round. ``arguments`` are those of
        each run. Of two updates at the same time the later one counts as a whole.
        Raises InvalidArgumentError for a plan without times, or arguments that do not fit.
        """
        plan = dict((await self.describe())["plan"])
        if cron is not None or every is not None:
            plan.update(cron=cron, every_us=micros(every, "every"))
        changes = {
            "timezone": timezone,
            "overlap": overlap,
            "jitter_us": micros(jitter, "jitter"),
            "catch_up_us": micros(catch_up, "catch_up"),
        }
        plan.update({name: value for name, value in changes.items() if value is not None})
        if arguments is not None:
            plan["arguments"] = (await self._encode(plan["workflow"], arguments)).decode()
        check_whole(plan)
        await self._run.signal(ORDERS, {"do": "update", "plan": plan})

    async def delete(self, reason: str = "schedule deleted") -> None:
        """End the schedule. Runs that it started go on."""
        await self._run.terminate(reason)

    async def describe(self) -> dict[str, Any]:
        """Where it stands, with what it was asked and has not read yet.

        ``plan``, ``next_time`` (ISO 8601, UTC), ``paused`` (the reason, or None), ``running`` and
        ``recent`` (ids of runs), and how many times it ``started`` a run, ``skipped`` one for
        another that ran, ``missed`` one by being too late, was ``refused`` one whose id was taken.
        """
        return await self._run.vars()


def check_whole(plan: dict[str, Any]) -> None:
    """Raise InvalidArgumentError for a plan that cannot be followed."""
    if plan["overlap"] not in OVERLAPS:
        raise InvalidArgumentError(
            f"overlap is one of {', '.join(OVERLAPS)}, not {plan['overlap']!r}"
        )
    check_plan(plan)


def plan_of(
    workflow: WorkflowDefinition[Any, Any] | str,
    payload: bytes,
    headers: Mapping[str, Any],
    *,
    cron: str | None = None,
    every: timedelta | float | None = None,
    timezone: str = "UTC",
    jitter: timedelta | float = 0,
    overlap: str = "skip",
    catch_up: timedelta | float = 3600,
    paused: bool = False,
    queue: str | None = None,
    priority: int = 0,
    memo: Mapping[str, Any] | None = None,
    run_timeout: timedelta | float | None = None,
) -> dict[str, Any]:
    """The plan that `Client.create_schedule` describes; raise InvalidArgumentError."""
    options: dict[str, Any] = {
        "queue": queue or getattr(workflow, "queue", None),
        "version": getattr(workflow, "version", None),
        "priority": priority or None,
        "memo": None if memo is None else dict(memo),
        "headers": dict(headers) or None,
        "run_timeout_us": micros(run_timeout, "run_timeout"),
    }
    plan = {
        "workflow": workflow if isinstance(workflow, str) else workflow.name,
        "arguments": payload.decode(),
        "cron": cron,
        "every_us": micros(every, "every"),
        "timezone": timezone,
        "jitter_us": micros(jitter, "jitter"),
        "overlap": overlap,
        "catch_up_us": micros(catch_up, "catch_up"),
        "paused": "paused from the start" if paused else None,
        "options": {name: value for name, value in options.items() if value is not None},
    }
    check_whole(plan)
    return plan


class ScheduleClient(StartingClient):
    """The calls for schedules."""

    async def create_schedule(
        self,
        id: str,
        workflow: Any,
        *args: Any,
        cron: str | None = None,
        every: timedelta | float | None = None,
        timezone: str = "UTC",
        jitter: timedelta | float = 0,
        overlap: str = "skip",
        catch_up: timedelta | float = 3600,
        paused: bool = False,
        queue: str | None = None,
        priority: int = 0,
        memo: Mapping[str, Any] | None = None,
        run_timeout: timedelta | float | None = None,
        search: Mapping[str, Any] | None = None,
        headers: Mapping[str, Any] | None = None,
    ) -> ScheduleHandle:
        """Start a workflow, or an activity as a job, at the times of ``cron`` or ``every`` so long.

        ``cron`` (five fields) is read in ``timezone``; the times of ``every`` are its multiples
        since 1970, UTC. Each run starts up to ``jitter`` later, always the same for a time, under
        the id ``<id>-<time>``. While the run before is open, ``overlap`` says what becomes of the
        next: "skip" it, "buffer_one" (start one when that has ended), "allow_all", "cancel_other"
        (ask that to cancel itself, start at once) or "terminate_other" (end it, start at once).
        A time is still made up when it is ``catch_up`` late at most. ``search`` has the attributes
        that the schedule is found by (`list_schedules`). The rest is for each run, as for `start`;
        the schedule itself runs on ``queue`` as well.

        Raises InvalidArgumentError for a plan without times, and what `start` raises.
        """
        carried = plain_headers(headers or {}, self.codec)
        if isinstance(workflow, ActivityDefinition):
            carried |= headers_of(workflow)
            workflow = job_of(workflow)
        payload = await self._payload(workflow, args, {})
        plan = plan_of(
            workflow,
            payload,
            carried,
            cron=cron,
            every=every,
            timezone=timezone,
            jitter=jitter,
            overlap=overlap,
            catch_up=catch_up,
            paused=paused,
            queue=queue,
            priority=priority,
            memo=memo,
            run_timeout=run_timeout,
        )
        check_id(id, "a schedule id")
        chosen = StartOptions(queue=plan["options"].get("queue"), search=search)
        run = await self._begin_plain(SCHEDULE, id, (plan, {}), {}, chosen, {})
        return ScheduleHandle(run, self._encoded)

    async def _encoded(self, workflow: str, arguments: Sequence[Any]) -> bytes:
        """Arguments for the runs of a schedule, checked where the workflow is known here."""
        return await self._payload(workflow, tuple(arguments), {})

    def get_schedule(self, id: str) -> ScheduleHandle:
        """A handle to a schedule by id. Asks nothing of the database."""
        run = WorkflowHandle(self, check_id(id, "a schedule id"), None, SCHEDULE)
        return ScheduleHandle(run, self._encoded)

    async def list_schedules(
        self, *, search: Mapping[str, Any] | None = None, limit: int = 100
    ) -> builtins.list[RunView]:
        """The schedules that there are, the newest first; their ids are the ``workflow_id``.

        ``search`` leaves those that have all of these attributes, as for `Client.list`.
        """
        wanted = Runs(SCHEDULE_TYPE, OPEN_STATES, search=wanted_search(search, self.codec))
        return await self.store.views(wanted, limit=limit)
