"""Every error this package raises, in one tree. Imports nothing.

DurableError
├── ConfigurationError            an option, environment or schema that cannot work
│   ├── DefinitionError           a workflow or activity that cannot be registered
│   └── SchemaVersionError        the database's tables are missing, older or newer than the code
├── StoreError                    the database said no or did not answer
│   └── StoreUnavailableError     it did not answer in time; nothing is known to be written
├── PayloadError                  a value and its bytes do not fit together
│   ├── EncodeError               the value cannot be written
│   ├── DecodeError               the bytes do not fit the annotation
│   ├── PayloadTooLargeError      over the limit
│   └── UnreadablePayloadError    stored by a codec or key that is not here (also a StoreError)
├── RequestError                  a client asked for what cannot be
│   ├── ActivityNotFoundError     no attempt waits for that task token
│   ├── InvalidArgumentError      a malformed id, name or argument list
│   ├── UnknownActivityError      no such activity
│   ├── UnknownWorkflowError      no such workflow type
│   ├── WorkflowNotFoundError     no run with that id
│   ├── WorkflowAlreadyStartedError   the id is taken; names the run that has it
│   └── UpdateRejectedError       the update's validator said no
├── WorkflowError                 how a run ended, when it did not end well
│   ├── WorkflowFailedError
│   ├── WorkflowCancelledError
│   ├── WorkflowTerminatedError
│   ├── WorkflowTimedOutError
│   └── WorkflowParkedError       stopped until compatible code appears
├── RemoteError                   raised inside a workflow for what it called
│   ├── ActivityError
│   └── ChildWorkflowError
├── MapFailedError                fewer calls of a map succeed than it was told to need
├── AttemptLostError              an at-most-once activity began, and how it ended is not known
├── ActivityProcessError          the process that ran an activity died
├── ApplicationError              raised by user code to say more than an exception can
│   ├── NonRetryable
│   └── RetryAfter
├── CompleteLater                 raised by an activity that somebody else will complete
├── ContextError                  called where no workflow or activity runs
├── GuardError                    workflow code called what cannot be replayed
├── HistoryCorruptError           recorded bytes fail their checks
├── HistoryUnsupportedError       recorded by a newer build
└── NonDeterminismError           the code no longer makes the commands its history has
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class DurableError(Exception):
    """Base of every error of this package."""


class ConfigurationError(DurableError):
    """An option, environment or schema that cannot work. The message says what to change."""


class DefinitionError(ConfigurationError):
    """A workflow or activity that cannot be registered as it is written."""


class SchemaVersionError(ConfigurationError):
    """The tables are missing, older or newer than this build; ``found`` is None when missing."""

    def __init__(self, message: str, found: int | None, expected: int) -> None:
        super().__init__(message)
        self.found = found
        self.expected = expected


class StoreError(DurableError):
    """The database refused an operation."""


class StoreUnavailableError(StoreError):
    """The database did not answer; whether the last write took effect is not known."""


class PayloadError(DurableError):
    """A value and its bytes do not fit together."""


class EncodeError(PayloadError):
    """A value that cannot be written as JSON in a way that reads back the same."""


class DecodeError(PayloadError):
    """Bytes that do not fit the annotation they are read by."""


class PayloadTooLargeError(PayloadError):
    """A payload over the size limit; ``size`` and ``limit`` are in bytes."""

    def __init__(self, message: str, size: int, limit: int) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class UnreadablePayloadError(StoreError, DecodeError):
    """What is stored was sealed with a key or codec that this process lacks, or was tampered with.

    Nothing is lost: give the worker or client the codec that it was written with.
    """


class RequestError(DurableError):
    """A client asked for something that cannot be; nothing was written."""


class ActivityNotFoundError(RequestError):
    """No attempt waits under that task token: it is done, over its time, cancelled or retried."""


class InvalidArgumentError(RequestError):
    """A malformed id, name or argument list."""


class UnknownActivityError(RequestError):
    """No activity of that name is registered."""


class UnknownWorkflowError(RequestError):
    """No workflow of that type is registered."""


class WorkflowNotFoundError(RequestError):
    """No run has that workflow id (or run id)."""


class WorkflowAlreadyStartedError(RequestError):
    """The workflow id is taken; ``run_id`` names the run that has it.

    With a ``dedup_key`` it is that key which is taken, and ``workflow_id`` is the holder's.
    """

    def __init__(
        self, workflow_id: str, run_id: str, state: str, *, dedup_key: str | None = None
    ) -> None:
        if dedup_key is None:
            message = (
                f"workflow id {workflow_id!r} is taken by run {run_id} ({state}); "
                "pick another id, or pass id_reuse= to say when an id may be used again"
            )
        else:
            message = (
                f"dedup_key {dedup_key!r} is held by {workflow_id!r} (run {run_id}, {state}) "
                "until it ends; leave out on_duplicate='error' to get its handle"
            )
        super().__init__(message)
        self.dedup_key = dedup_key
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.state = state


class UpdateRejectedError(RequestError):
    """The run did not take the update, and nothing was recorded.

    Its validator refused (``__cause__`` is what that raised), the arguments do not fit its handler,
    there is no such handler, or the run has ended. A query that the run does not have is told so in
    the same way.
    """


class StreamFullError(RequestError):
    """A stream of a run has as many items as it may have; nothing was added."""


class WorkflowError(DurableError):
    """A run that did not end with a result.

    ``failure`` is the recorded failure as plain data (type, message, traceback, cause).
    """

    def __init__(
        self,
        message: str,
        *,
        workflow_id: str = "",
        run_id: str = "",
        failure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.failure = failure


class WorkflowFailedError(WorkflowError):
    """The run raised; ``__cause__`` is the exception, rebuilt where its type is known."""


class WorkflowCancelledError(WorkflowError):
    """The run was cancelled and ended."""


class WorkflowTerminatedError(WorkflowError):
    """The run was ended from outside without running its code."""


class WorkflowTimedOutError(WorkflowError):
    """The run was over its execution timeout."""


class WorkflowParkedError(WorkflowError):
    """The run waits for compatible code; see ``failure`` for the mismatch."""


class RemoteError(DurableError):
    """Raised inside a workflow when what it called failed; ``__cause__`` says why."""

    def __init__(
        self,
        message: str,
        *,
        name: str = "",
        attempt: int = 0,
        failure: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.name = name
        self.attempt = attempt
        self.failure = failure


class ActivityError(RemoteError):
    """An activity gave up: ``name``, the last ``attempt``, and the exception as ``__cause__``."""


class ChildWorkflowError(RemoteError):
    """A child workflow did not end with a result."""


class MapFailedError(DurableError):
    """As many calls of `durable.workflow.map` as ``min_successful`` says cannot succeed any more.

    ``failed`` and ``succeeded`` of ``total`` calls had ended so when it stopped; ``needed`` is how
    many had to succeed. ``__cause__`` is the failure that was one too many.
    """

    def __init__(self, *, succeeded: int, failed: int, needed: int, total: int) -> None:
        if needed > total:
            message = f"{needed} of the calls of a map must succeed, and it has {total} items only"
        else:
            message = (
                f"{failed} of {total} calls of a map failed, so that {needed} cannot succeed any "
                f"more; {succeeded} had succeeded when it stopped"
            )
        super().__init__(message)
        self.succeeded = succeeded
        self.failed = failed
        self.needed = needed
        self.total = total


class AttemptLostError(DurableError):
    """An at-most-once activity began and its worker went away before it could say how it ended.

    Whether it took effect is not known; it is not tried again. The ``__cause__`` of an
    `ActivityError`.
    """


class ActivityProcessError(DurableError):
    """The process that ran an activity (``executor="process"``) died; the message says how.

    It counts as a failed attempt, and is tried again as the retry policy says.
    """


class ApplicationError(DurableError):
    """Raised by user code to fail with a stable ``type`` and JSON-able ``details``."""

    def __init__(
        self,
        message: str = "",
        *details: Any,
        type: str | None = None,
        non_retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.details = details
        self.type = type
        self.non_retryable = non_retryable


class NonRetryable(ApplicationError):
    """Raised by an activity to fail for good: a business error, whatever the retry policy."""

    def __init__(self, message: str = "", *details: Any, type: str | None = None) -> None:
        super().__init__(message, *details, type=type, non_retryable=True)


class RetryAfter(ApplicationError):
    """Raised by an activity to be tried again after ``delay_seconds``, by its own choice."""

    def __init__(self, delay_seconds: float, message: str = "", *details: Any) -> None:
        super().__init__(message or f"retry after {delay_seconds:g} s", *details)
        self.delay_seconds = delay_seconds


class CompleteLater(DurableError):
    """Raised by an activity with ``completes_later``: others complete it, by its task token."""


class ContextError(DurableError):
    """Something of `durable.workflow` or `durable.activity` was called where none runs."""


class GuardError(DurableError):
    """Workflow code called something that cannot be replayed; the message says what to use."""


class HistoryCorruptError(DurableError):
    """Recorded history fails its checks and is not replayed.

    ``seq`` is the batch (row) at fault, ``offset`` the byte in it.
    """

    def __init__(self, reason: str, seq: int = 0, offset: int = 0, run_id: str = "") -> None:
        where = f"run {run_id}, " if run_id else ""
        super().__init__(f"history corrupt at {where}batch {seq}, byte {offset}: {reason}")
        self.reason = reason
        self.seq = seq
        self.offset = offset
        self.run_id = run_id


class HistoryUnsupportedError(DurableError):
    """Recorded history uses something that only a newer build knows; ``what`` names it."""

    def __init__(self, what: str, seq: int = 0, offset: int = 0, run_id: str = "") -> None:
        where = f"run {run_id}, " if run_id else ""
        super().__init__(
            f"history of {where}batch {seq} has {what}, which this build does not know; "
            "run it with the newer build that wrote it"
        )
        self.what = what
        self.seq = seq
        self.offset = offset
        self.run_id = run_id


class NonDeterminismError(DurableError):
    """The code asks for something else than its history recorded.

    ``event_id`` is where they part; ``expected`` is what history has, ``found`` what the code did
    (None when it did nothing); ``around`` are the events near it; ``source`` is the file and line
    of the user code, where known; ``hint`` names the likely cause.
    """

    def __init__(
        self,
        event_id: int,
        expected: str | None,
        found: str | None,
        *,
        around: Sequence[str] = (),
        source: str | None = None,
        time_us: int | None = None,
        hint: str = "",
        run_id: str = "",
    ) -> None:
        self.event_id = event_id
        self.expected = expected
        self.found = found
        self.around = tuple(around)
        self.source = source
        self.time_us = time_us
        self.hint = hint
        self.run_id = run_id
        super().__init__(event_id, expected, found)

    def __str__(self) -> str:
        return self.render()

    def render(self) -> str:
        """The mismatch as a diff a person can act on."""
        head = f"the code no longer matches its history at event {self.event_id}"
        if self.run_id:
            head += f" of run {self.run_id}"
        lines = [head, f"  - history: {self.expected or '(nothing more)'}"]
        lines.append(f"  + code:    {self.found or '(no command)'}")
        if self.source:
            lines.append(f"  at {self.source}")
        if self.around:
            lines.append("  around it:")
            lines.extend(f"    {line}" for line in self.around)
        if self.hint:
            lines.append(f"  likely: {self.hint}")
        return "\n".join(lines)
