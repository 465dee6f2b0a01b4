"""The public names: what is promised, no less and no more, and each of them explained."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import types

import pytest

import durable
from durable import activity, errors, workflow

PROMISED = """
    activity workflow ActivityOptions Interceptor RetryPolicy
    BulkResult Client ForkPlan IdReuse RunFilter RunPage RunState ScheduleHandle StreamItem
    SyncClient SyncScheduleHandle SyncWorkflowHandle WorkflowHandle
    Supervisor SupervisorOptions Worker WorkerOptions
    ApplicationError NonRetryable RetryAfter
    ActivityError ActivityProcessError AttemptLostError CompleteLater
    ActivityNotFoundError ChildWorkflowError ContextError GuardError NonDeterminismError RemoteError
    InvalidArgumentError RequestError UnknownActivityError UnknownWorkflowError
    UnreadablePayloadError UpdateRejectedError
    WorkflowAlreadyStartedError WorkflowCancelledError WorkflowError WorkflowFailedError
    WorkflowNotFoundError WorkflowParkedError WorkflowTerminatedError WorkflowTimedOutError
    ConfigurationError DecodeError DefinitionError DurableError EncodeError HistoryCorruptError
    HistoryUnsupportedError PayloadError PayloadTooLargeError SchemaVersionError StoreError
    MapFailedError StoreUnavailableError StreamFullError
""".split()

WORKFLOW = """
    ChildHandle ParentInfo Saga SignalChannel WorkflowDefinition WorkflowInfo WorkflowLogger
    all_handlers_finished cancel_external continue_as_new defn deprecate_patch execute_activity
    execute_child has_last_result history_length in_workflow info init is_cancel_requested
    is_replaying last_failure last_result logger
    map now on_dynamic_query on_dynamic_signal on_dynamic_update on_query on_signal on_update
    patched query random run set_status set_vars
    should_continue_as_new side_effect signal signal_channel signal_external sleep sleep_until
    start_activity start_child start_time unsafe_allowed update upsert_memo
    upsert_search_attributes uuid4 uuid7 wait_condition wait_signal
""".split()

ACTIVITY = """
    ActivityDefinition ActivityInfo defn heartbeat in_activity info is_cancelled logger
    override_next_retry stream transactional
""".split()


@pytest.mark.parametrize(
    ("module", "promised"),
    [(durable, PROMISED), (workflow, WORKFLOW), (activity, ACTIVITY)],
    ids=["durable", "workflow", "activity"],
)
def test_all_is_what_was_promised(module: types.ModuleType, promised: list[str]) -> None:
    assert sorted(module.__all__) == sorted(promised)


@pytest.mark.parametrize("module", [durable, workflow, activity])
def test_every_public_name_is_there_and_explained(module: types.ModuleType) -> None:
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isroutine(value) or inspect.isclass(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), f"{module.__name__}.{name} has no docstring"


def test_every_error_is_public() -> None:
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.DurableError)
    }
    assert kinds <= set(durable.__all__)


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Clint"):
        getattr(durable, "Clint")  # noqa: B009
    assert "Client" in dir(durable)


def test_writing_workflows_imports_no_driver() -> None:
    """A module with workflows is imported everywhere; it must not cost a database driver."""
    code = (
        "import sys, durable.workflow, durable.activity;"
        "print([m for m in ('psycopg', 'prometheus_client', 'click') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_late_names_are_the_classes_themselves() -> None:
    for name, module in durable.LATE.items():
        assert getattr(durable, name) is getattr(importlib.import_module(module), name)
