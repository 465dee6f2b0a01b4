"""Durable workflows for Python teams on PostgreSQL: plain async functions that survive anything.

    from durable import Client, RetryPolicy, activity, workflow

`workflow` and `activity` are the modules workflow code is written with, `Client` starts runs and
asks about them, `Worker` and `Supervisor` run them. Everything else is internal and may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from durable import activity, workflow
from durable.errors import (
    ActivityError,
    ActivityNotFoundError,
    ActivityProcessError,
    ApplicationError,
    AttemptLostError,
    ChildWorkflowError,
    CompleteLater,
    ConfigurationError,
    ContextError,
    DecodeError,
    DefinitionError,
    DurableError,
    EncodeError,
    GuardError,
    HistoryCorruptError,
    HistoryUnsupportedError,
    InvalidArgumentError,
    MapFailedError,
    NonDeterminismError,
    NonRetryable,
    PayloadError,
    PayloadTooLargeError,
    RemoteError,
    RequestError,
    RetryAfter,
    SchemaVersionError,
    StoreError,
    StoreUnavailableError,
    StreamFullError,
    UnknownActivityError,
    UnknownWorkflowError,
    UnreadablePayloadError,
    UpdateRejectedError,
    WorkflowAlreadyStartedError,
    WorkflowCancelledError,
    WorkflowError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowParkedError,
    WorkflowTerminatedError,
    WorkflowTimedOutError,
)
from durable.events import IdReuse, RunState
from durable.hints import PACKAGE, missing
from durable.interceptors import Interceptor
from durable.options import ActivityOptions, RetryPolicy, SupervisorOptions, WorkerOptions

if TYPE_CHECKING:
    from durable.client import (
        BulkResult,
        Client,
        ForkPlan,
        RunFilter,
        RunPage,
        ScheduleHandle,
        StreamItem,
        SyncClient,
        SyncScheduleHandle,
        SyncWorkflowHandle,
        WorkflowHandle,
    )
    from durable.runtime.supervisor import Supervisor
    from durable.runtime.worker import Worker

__all__ = [
    # writing
    "activity",
    "workflow",
    "ActivityOptions",
    "Interceptor",
    "RetryPolicy",
    # starting and asking
    "BulkResult",
    "Client",
    "ForkPlan",
    "IdReuse",
    "RunFilter",
    "RunPage",
    "RunState",
    "ScheduleHandle",
    "StreamItem",
    "SyncClient",
    "SyncScheduleHandle",
    "SyncWorkflowHandle",
    "WorkflowHandle",
    # running
    "Supervisor",
    "SupervisorOptions",
    "Worker",
    "WorkerOptions",
    # raised by your code
    "ActivityNotFoundError",
    "ApplicationError",
    "AttemptLostError",
    "NonRetryable",
    "RetryAfter",
    # raised in your workflows
    "ActivityError",
    "ActivityProcessError",
    "ChildWorkflowError",
    "ContextError",
    "GuardError",
    "MapFailedError",
    "NonDeterminismError",
    "RemoteError",
    # raised to your clients
    "InvalidArgumentError",
    "RequestError",
    "UnknownActivityError",
    "UnknownWorkflowError",
    "UnreadablePayloadError",
    "UpdateRejectedError",
    "WorkflowAlreadyStartedError",
    "WorkflowCancelledError",
    "WorkflowError",
    "WorkflowFailedError",
    "WorkflowNotFoundError",
    "WorkflowParkedError",
    "WorkflowTerminatedError",
    "WorkflowTimedOutError",
    # raised everywhere
    "CompleteLater",
    "ConfigurationError",
    "DecodeError",
    "DefinitionError",
    "DurableError",
    "EncodeError",
    "HistoryCorruptError",
    "HistoryUnsupportedError",
    "PayloadError",
    "PayloadTooLargeError",
    "SchemaVersionError",
    "StoreError",
    "StoreUnavailableError",
    "StreamFullError",
]

# What needs a database driver is imported when it is first asked for: a module with workflows is
# imported by every worker process, by tests and by tools that never connect.
LATE = {
    "BulkResult": "durable.client",
    "Client": "durable.client",
    "ForkPlan": "durable.client",
    "RunFilter": "durable.client",
    "RunPage": "durable.client",
    "ScheduleHandle": "durable.client",
    "StreamItem": "durable.client",
    "SyncClient": "durable.client",
    "SyncScheduleHandle": "durable.client",
    "SyncWorkflowHandle": "durable.client",
    "WorkflowHandle": "durable.client",
    "Supervisor": "durable.runtime.supervisor",
    "Worker": "durable.runtime.worker",
}


if not TYPE_CHECKING:  # a type checker would take any name for one that is here

    def __getattr__(name: str) -> Any:
        module = LATE.get(name)
        if module is None:
            missing("module 'durable'", name, PACKAGE, __all__)
        value = getattr(import_module(module), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
