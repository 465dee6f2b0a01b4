"""Jobs: an activity as a run of its own, without a workflow that somebody wrote.

Every activity has a workflow type of its own, ``job:`` and its name, whose code is one call of it.
So a job is a run like any other: started in a transaction, claimed, retried, cancelled, listed and
kept as runs are, and its activity starts in the process that claimed the run.

What the caller asked for beside the activity's own options is recorded in the headers of the run;
the rest is as the code of the worker says when the job runs, not as it was when it was enqueued.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ParamSpec, TypeVar

from durable.engine.context import context
from durable.engine.definition import ActivityDefinition, WorkflowDefinition, WorkflowOptions
from durable.engine.retry import options_from_json, options_to_json
from durable.errors import ActivityError
from durable.events import JOB_PREFIX
from durable.options import ActivityOptions, RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")

JOB_HEADER = "durable.job"


def job_of(activity: ActivityDefinition[P, R]) -> WorkflowDefinition[P, R]:
    """The workflow whose runs are jobs of ``activity``; always the same for the same one."""
    found: WorkflowDefinition[P, R] | None = activity.job
    if found is None:
        found = activity.job = make_job(activity)
    return found


def make_job(activity: ActivityDefinition[Any, Any]) -> WorkflowDefinition[Any, Any]:
    """See `job_of`."""

    async def job(*args: Any, **kwargs: Any) -> Any:
        header = context("a job").meta.headers.get(JOB_HEADER, {})
        # On the queue of the run, which is where whoever enqueued it wants it.
        step = activity.with_options(**{**changes_of(header), "queue": None})
        try:
            return await step(*args, **kwargs)
        except ActivityError as error:
            # The run is the activity: it failed as that did.
            if error.__cause__ is None:
                raise
            raise error.__cause__ from error.__cause__.__cause__

    job.__name__ = job.__qualname__ = activity.name
    job.__doc__ = activity.__doc__
    return WorkflowDefinition(
        JOB_PREFIX + activity.name,
        job,
        WorkflowOptions(queue=activity.options.queue),
        codec=activity.codec,
        signature=activity.signature,
    )


def headers_of(
    activity: ActivityDefinition[Any, Any] | str,
    retry: RetryPolicy | None = None,
    priority: int = 0,
) -> dict[str, Any]:
    """The headers of a job: what of the activity's options it has otherwise."""
    changes = dict(activity.changes) if isinstance(activity, ActivityDefinition) else {}
    # The run has its queue; that of the activity is only where it goes by default.
    changes.pop("queue", None)
    if retry is not None:
        changes["retry"] = retry
    if priority:
        changes["priority"] = priority
    return header_of(changes)


def header_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changed options of an activity, as the headers of its job."""
    if not changes:
        return {}
    text = options_to_json(ActivityOptions().replace(**changes))
    return {JOB_HEADER: {"changes": sorted(changes), "options": text}}


def changes_of(header: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `header_of`. Options of a newer build are passed over."""
    options = options_from_json(header.get("options", ""))
    return {
        name: getattr(options, name) for name in header.get("changes", ()) if hasattr(options, name)
    }
