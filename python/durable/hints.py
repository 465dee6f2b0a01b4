"""Hints for names that other workflow libraries have and that are called something else here.

Whoever moves a program here meets such a name as an AttributeError or as an option that does not
exist. The tables say, by the name that was asked for, what does the same here. Nothing else is done
with them: no name here works as an alias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

CALL_ACTIVITY = "`await f(x)`, or `f.with_options(...)(x)`"
LOCAL_ACTIVITY = "an activity, or workflow.side_effect(fn) for a value that is cheap to make"
CHILD = "workflow.execute_child, or `await child(x)`"
TEST_KIT = "durable.testing"

WORKFLOW = {
    "ActivityCancellationType": "wait_cancel=True of the activity",
    "ChildWorkflowCancellationType": "asyncio.shield around the child, where it must go on",
    "ContinueAsNewError": "workflow.continue_as_new(...), which ends the run",
    "ParentClosePolicy": 'parent_close="terminate", "cancel" or "abandon"',
    "as_completed": "asyncio.as_completed, which is deterministic here",
    "current_update_info": "an argument of the update",
    "execute_activity_class": CALL_ACTIVITY,
    "execute_activity_method": CALL_ACTIVITY,
    "execute_child_workflow": CHILD,
    "execute_local_activity": LOCAL_ACTIVITY,
    "execute_local_activity_method": LOCAL_ACTIVITY,
    "get_current_details": "workflow.set_status(...), which is seen from outside",
    "get_external_workflow_handle": "workflow.signal_external(id, ...), cancel_external(id)",
    "get_external_workflow_handle_for": "workflow.signal_external(id, ...), cancel_external(id)",
    "get_last_completion_result": "workflow.last_result",
    "get_last_failure": "workflow.last_failure",
    "has_last_completion_result": "workflow.has_last_result",
    "memo": "workflow.info().memo",
    "memo_value": "workflow.info().memo",
    "metric_meter": "a metric that an activity writes",
    "new_random": "workflow.random()",
    "payload_converter": "annotations: arguments are read by them",
    "set_current_details": "workflow.set_status(...), workflow.set_vars(...)",
    "set_dynamic_query_handler": "workflow.on_dynamic_query",
    "set_dynamic_signal_handler": "workflow.on_dynamic_signal",
    "set_dynamic_update_handler": "workflow.on_dynamic_update",
    "set_query_handler": "workflow.on_query",
    "set_signal_handler": "workflow.on_signal",
    "set_update_handler": "workflow.on_update",
    "start_activity_class": "f.start(x)",
    "start_activity_method": "f.start(x)",
    "start_child_workflow": "workflow.start_child",
    "start_local_activity": LOCAL_ACTIVITY,
    "start_local_activity_method": LOCAL_ACTIVITY,
    "time": "workflow.now().timestamp()",
    "time_ns": "workflow.now()",
    "unsafe": "workflow.unsafe_allowed() and workflow.is_replaying(); imports need nothing",
    "wait": "asyncio.wait, which is deterministic here",
}

ACTIVITY = {
    "client": "a durable.Client that the process has made",
    "is_worker_shutdown": "activity.is_cancelled()",
    "method": "@activity.defn on the method",
    "metric_meter": "a metric of your own",
    "payload_converter": "annotations: arguments are read by them",
    "raise_complete_async": "`raise CompleteLater`, with @activity.defn(completes_later=True)",
    "wait_for_cancelled": "asyncio.CancelledError where the activity waits, or is_cancelled()",
}

PACKAGE = {
    "ActivityEnvironment": "nothing: call the activity, it is a plain function outside a workflow",
    "DBOS": "@workflow.defn, @activity.defn, Client and Worker",
    "DBOSClient": "Client, or SyncClient where code is not async",
    "DataConverter": "durable.codec.Codec",
    "Debouncer": "debounce_key=, debounce= of client.start",
    "PayloadCodec": "durable.codec.Codec(pipeline=...)",
    "Queue": 'queue="..." of a start or an activity, and client.set_queue_limits',
    "Replayer": f"{TEST_KIT}.Replayer",
    "Schedule": "client.create_schedule(id, workflow, cron=...)",
    "SetEnqueueOptions": "priority=, dedup_key= of client.start",
    "SetWorkflowID": "id= of client.start",
    "SetWorkflowTimeout": "run_timeout= of client.start",
    "WorkflowEnvironment": f"{TEST_KIT}.WorkflowEnvironment",
    "WorkflowFailureError": "WorkflowFailedError",
    "WorkflowIDConflictPolicy": "IdReuse",
    "WorkflowIDReusePolicy": "IdReuse",
    "defn": "workflow.defn and activity.defn",
    "step": "@activity.defn",
    "transaction": "@activity.transactional",
}

CLIENT = {
    "cancel_workflow": "client.get_handle(id).cancel()",
    "enqueue_workflow": 'client.start(workflow, x, queue="...")',
    "execute_update_with_start_workflow": "client.update_with_start",
    "execute_workflow": "`await (await client.start(workflow, x, id=...)).result()`",
    "fork_workflow": "client.get_handle(id).fork(new_id, to_event=...)",
    "get_async_activity_handle": "client.complete_activity, fail_activity, heartbeat_activity",
    "get_event": "client.get_handle(id).vars()",
    "get_schedule_handle": "client.get_schedule",
    "get_workflow_handle": "client.get_handle",
    "get_workflow_handle_for": "client.get_handle",
    "list_workflow_steps": "client.get_handle(id).history()",
    "list_workflows": "client.list, client.list_all",
    "count_workflows": "client.count",
    "resume_workflow": "client.get_handle(id).resume() after its pause()",
    "retrieve_workflow": "client.get_handle",
    "send": "client.get_handle(id).signal(...)",
    "start_update_with_start_workflow": "client.update_with_start",
    "start_workflow": "client.start",
}

HANDLE = {
    "execute_update": "handle.update",
    "fetch_history": "handle.history",
    "first_execution_run_id": "handle.run_id",
    "get_result": "handle.result",
    "get_status": "handle.describe",
    "get_workflow_id": "handle.workflow_id",
    "id": "handle.workflow_id",
    "result_run_id": "handle.run_id",
    "start_update": "handle.update, in a task of your own",
}

ENVIRONMENT = {
    "client": "the environment itself, which starts workflows as a client does: env.start(...)",
    "cancel_workflow": "the handle's cancel()",
    "execute_workflow": "env.execute",
    "get_current_time": "env.now",
    "get_workflow_handle": "env.get_handle",
    "start_workflow": "env.start",
}

OPTIONS = {
    "arg": "arguments one by one, as in a call: f(a, b)",
    "args": "arguments one by one, as in a call: f(a, b)",
    "cancellation_type": "wait_cancel=True",
    "deduplication_id": "dedup_key=",
    "id_conflict_policy": "id_reuse=",
    "id_reuse_policy": "id_reuse=",
    "max_attempts": "retry=RetryPolicy(max_attempts=...)",
    "parent_close_policy": "parent_close=",
    "queue_name": "queue=",
    "retries": "retry=RetryPolicy(max_attempts=...)",
    "retries_allowed": "retry=RetryPolicy(max_attempts=...)",
    "retry_policy": "retry=",
    "search_attributes": "search=",
    "task_queue": "queue=",
    "task_timeout": "nothing: a turn of a workflow has no limit to set",
    "timeout": "start_to_close_timeout= of an activity, run_timeout= of a start",
    "workflow_id": "id=",
}


def missing(owner: str, name: str, table: Mapping[str, str], known: Iterable[str]) -> NoReturn:
    """Raise the AttributeError for a name that ``owner`` lacks, with what to use instead."""
    hint = table.get(name, "")
    if not hint and not name.startswith("_"):
        hint = ", ".join(get_close_matches(name, list(known), n=1, cutoff=0.7))
    raise AttributeError(f"{owner} has no attribute {name!r}" + (hint and f"; use {hint}"))


def option_hint(names: Iterable[str], known: Iterable[str] = ()) -> str:
    """What to write instead of these option names, to end an error message with; "" unknown."""
    choices = list(known)
    found = []
    for name in sorted(names):
        close = get_close_matches(name, choices, n=1, cutoff=0.7)
        hint = OPTIONS.get(name) or (f"{close[0]}=" if close else "")
        if hint:
            found.append(f"instead of {name}= use {hint}")
    return "".join(f"; {each}" for each in found)


class Hinted:
    """A class whose users may ask for what another library calls by another name."""

    _hints: ClassVar[Mapping[str, str]] = {}

    if not TYPE_CHECKING:  # a type checker would take any name for one that is here

        def __getattr__(self, name: str) -> NoReturn:
            missing(f"{type(self).__name__!r} object", name, self._hints, dir(type(self)))


class DecoratorModule(ModuleType):
    """A module that was used as a decorator lacks ``.defn``; calling it says so."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise TypeError."""
        short = self.__name__.rpartition(".")[2]
        raise TypeError(f"{short} is a module; the decorator is @{short}.defn")
