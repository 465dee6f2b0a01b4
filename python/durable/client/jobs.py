"""Jobs: activities that are enqueued without a workflow around them.

A job is a run of the activity's own workflow type (`durable.engine.jobs`), so what a client knows
to do with runs it can do with jobs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar, TypeVarTuple, overload

from durable.client.checks import check_args, check_id
from durable.client.handle import WorkflowHandle
from durable.client.intercepting import start_call
from durable.client.starting import StartingClient, StartOptions
from durable.engine.definition import ActivityDefinition, WorkflowDefinition
from durable.engine.jobs import headers_of, job_of
from durable.errors import InvalidArgumentError, UnknownActivityError, WorkflowAlreadyStartedError
from durable.events import JOB_PREFIX, IdReuse
from durable.options import RetryPolicy

R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class JobClient(StartingClient):
    """The calls that begin jobs."""

    @overload
    async def enqueue(
        self,
        activity: Callable[[*Ts], Awaitable[R]],
        *args: *Ts,
        id: str | None = ...,
        queue: str | None = ...,
        priority: int = ...,
        delay: timedelta | float | None = ...,
        at: datetime | None = ...,
        retry: RetryPolicy | None = ...,
        run_timeout: timedelta | float | None = ...,
        id_reuse: IdReuse = ...,
        dedup_key: str | None = ...,
        on_duplicate: Literal["existing", "error"] = ...,
        debounce_key: str | None = ...,
        debounce: timedelta | float | None = ...,
        debounce_max: timedelta | float | None = ...,
        conn: Any = ...,
        **kwargs: Any,
    ) -> WorkflowHandle[R]: ...
    @overload
    async def enqueue(
        self,
        activity: str,
        *args: Any,
        id: str | None = ...,
        queue: str | None = ...,
        priority: int = ...,
        delay: timedelta | float | None = ...,
        at: datetime | None = ...,
        retry: RetryPolicy | None = ...,
        run_timeout: timedelta | float | None = ...,
        id_reuse: IdReuse = ...,
        dedup_key: str | None = ...,
        on_duplicate: Literal["existing", "error"] = ...,
        debounce_key: str | None = ...,
        debounce: timedelta | float | None = ...,
        debounce_max: timedelta | float | None = ...,
        conn: Any = ...,
        **kwargs: Any,
    ) -> WorkflowHandle[Any]: ...

    async def enqueue(  # type: ignore[misc]  # mypy: *args of Any are too few for those of Ts
        self,
        activity: Any,
        *args: Any,
        id: str | None = None,
        queue: str | None = None,
        priority: int = 0,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        retry: RetryPolicy | None = None,
        run_timeout: timedelta | float | None = None,
        id_reuse: IdReuse = IdReuse.REJECT,
        dedup_key: str | None = None,
        on_duplicate: Literal["existing", "error"] = "existing",
        debounce_key: str | None = None,
        debounce: timedelta | float | None = None,
        debounce_max: timedelta | float | None = None,
        conn: Any = None,
        **kwargs: Any,
    ) -> WorkflowHandle[Any]:
        """Have an activity done, given by its definition or its name; return the job's handle.

        ``args`` and ``kwargs`` are the activity's own; given the definition they are checked
        against its signature. It runs on a worker that has its code and serves ``queue`` (default:
        the activity's, else the default queue), at once, after ``delay`` or at ``at`` (a naive time
        is UTC); smaller ``priority`` first. ``retry`` replaces the activity's policy for this job,
        ``activity.with_options(...)`` any of its options. It is ended after ``run_timeout``, its
        wait on the queue included. Without an ``id`` it gets one of its own; with one, a second
        job of that id is refused unless ``id_reuse`` allows it. With ``conn``, a psycopg async
        connection, the job belongs to the caller's transaction. Deduplication and debouncing are as
        for `start`.

        Raises InvalidArgumentError (id, names, arguments), EncodeError or PayloadTooLargeError,
        UnknownActivityError for a name that no worker ever registered, and
        WorkflowAlreadyStartedError, which names the run that has the id.
        """
        options = StartOptions(
            queue=queue,
            priority=priority,
            start_delay=delay,
            start_at=at,
            run_timeout=run_timeout,
            id_reuse=id_reuse,
            dedup_key=dedup_key,
            on_duplicate=on_duplicate,
            debounce_key=debounce_key,
            debounce=debounce,
            debounce_max=debounce_max,
        )
        headers = headers_of(activity, retry, priority)
        job = await self._job(activity)
        return await self.begin(job, id, args, kwargs, options, headers, conn)

    async def enqueue_many(
        self,
        activity: ActivityDefinition[Any, R] | str,
        calls: Iterable[Sequence[Any]],
        *,
        ids: Sequence[str] | None = None,
        queue: str | None = None,
        priority: int = 0,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        retry: RetryPolicy | None = None,
        run_timeout: timedelta | float | None = None,
        id_reuse: IdReuse = IdReuse.REJECT,
        conn: Any = None,
    ) -> list[WorkflowHandle[R] | WorkflowAlreadyStartedError]:
        """Enqueue many jobs of one activity in one transaction; ``calls`` are their arguments.

        Returns, in order, a handle or the error that says which run has the id. ``ids`` are one for
        each; the rest is as in `enqueue`.
        """
        options = StartOptions(
            queue=queue,
            priority=priority,
            start_delay=delay,
            start_at=at,
            run_timeout=run_timeout,
            id_reuse=id_reuse,
        )
        headers = headers_of(activity, retry, priority)
        listed = [check_args(args, "a job") for args in calls]
        if ids is not None and len(ids) != len(listed):
            raise InvalidArgumentError(
                f"{len(listed)} jobs need as many ids, or none, not {len(ids)}"
            )
        job: WorkflowDefinition[Any, R] | str = await self._job(activity)
        named: Sequence[str | None] = ids if ids is not None else [None] * len(listed)
        starts = [
            start_call(job, id, args, {}, options) for id, args in zip(named, listed, strict=True)
        ]
        return await self.begin_all(job, starts, conn, StartOptions(), headers)

    async def _job(
        self, activity: ActivityDefinition[Any, R] | str
    ) -> WorkflowDefinition[Any, R] | str:
        """The workflow that runs it, or its name where there is only that."""
        if isinstance(activity, ActivityDefinition):
            return job_of(activity)
        if not isinstance(activity, str):
            raise InvalidArgumentError(
                f"{activity!r} is not an activity; pass an @activity.defn function or its name"
            )
        check_id(activity, "an activity name")
        name = JOB_PREFIX + activity
        if not await self._is_type(name):
            known = [each.removeprefix(JOB_PREFIX) for each in self._types if is_job(each)]
            listed = ", ".join(sorted(known)) or "none; has a worker run yet?"
            raise UnknownActivityError(f"no activity is called {activity!r}; registered: {listed}")
        return self.known(name) or name


def is_job(workflow_type: str) -> bool:
    """Whether runs of that type are jobs."""
    return workflow_type.startswith(JOB_PREFIX)
