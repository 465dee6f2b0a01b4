"""Histories as a Temporal server records them, made by hand.

One workflow task per activity for the sequential programs; for `fan_out` one that schedules all and
one that sees all results, which is the most a server can batch and so the peer's best case.
"""

import dataclasses
import json
import uuid
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import WorkflowHistory

from bench.peers.temporal_flows import Order, Receipt

START_US = 1_760_000_000_000_000
QUEUE = "bench"
DETERMINISM_FLAGS = (1, 2, 3)
"""Recorded by current SDKs with the first workflow task; they switch the activity checks on."""


def payload(value: Any) -> Payload:
    """A value as the default converter records it."""
    plain = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value  # type: ignore[arg-type]
    return Payload(metadata={"encoding": b"json/plain"}, data=json.dumps(plain).encode())


class Writer:
    """Appends events, numbered and timed."""

    def __init__(self, workflow_type: str, argument: Any) -> None:
        self.events: list[HistoryEvent] = []
        self.run_id = str(uuid.uuid4())
        first = self.add("WORKFLOW_EXECUTION_STARTED").workflow_execution_started_event_attributes
        first.workflow_id = f"bench-{self.run_id}"
        first.workflow_type.name = workflow_type
        first.task_queue.name = QUEUE
        first.input.payloads.append(payload(argument))
        first.original_execution_run_id = first.first_execution_run_id = self.run_id
        first.attempt = 1
        first.workflow_task_timeout.FromSeconds(10)

    def add(self, kind: str) -> HistoryEvent:
        """The next event, with nothing but its number, kind and time."""
        number = len(self.events) + 1
        kind_number = EventType.Value(f"EVENT_TYPE_{kind}")
        event = HistoryEvent(event_id=number, event_type=kind_number, task_id=number)
        event.event_time.FromMicroseconds(START_US + number * 1000)
        self.events.append(event)
        return event

    def workflow_task(self) -> int:
        """A workflow task from queue to end; the id of its last event."""
        scheduled = self.add("WORKFLOW_TASK_SCHEDULED")
        scheduled.workflow_task_scheduled_event_attributes.task_queue.name = QUEUE
        scheduled.workflow_task_scheduled_event_attributes.attempt = 1
        started = self.add("WORKFLOW_TASK_STARTED")
        started.workflow_task_started_event_attributes.scheduled_event_id = scheduled.event_id
        done = self.add("WORKFLOW_TASK_COMPLETED")
        attributes = done.workflow_task_completed_event_attributes
        attributes.scheduled_event_id = scheduled.event_id
        attributes.started_event_id = started.event_id
        if started.event_id == 3:
            attributes.sdk_metadata.core_used_flags.extend(DETERMINISM_FLAGS)
        return done.event_id

    def schedule(self, name: str, number: int, argument: Any, task: int) -> int:
        """An activity that workflow task ``task`` asked for; its event id."""
        event = self.add("ACTIVITY_TASK_SCHEDULED")
        attributes = event.activity_task_scheduled_event_attributes
        attributes.activity_id = str(number + 1)
        attributes.activity_type.name = name
        attributes.task_queue.name = QUEUE
        attributes.input.payloads.append(payload(argument))
        attributes.start_to_close_timeout.FromSeconds(60)
        attributes.workflow_task_completed_event_id = task
        return event.event_id

    def complete(self, scheduled: int, result: Any) -> None:
        """The activity of that event ran and answered."""
        started = self.add("ACTIVITY_TASK_STARTED")
        started.activity_task_started_event_attributes.scheduled_event_id = scheduled
        started.activity_task_started_event_attributes.attempt = 1
        done = self.add("ACTIVITY_TASK_COMPLETED")
        attributes = done.activity_task_completed_event_attributes
        attributes.scheduled_event_id = scheduled
        attributes.started_event_id = started.event_id
        attributes.result.payloads.append(payload(result))

    def finish(self, result: Any, task: int) -> WorkflowHistory:
        """The run ended with that result."""
        event = self.add("WORKFLOW_EXECUTION_COMPLETED")
        attributes = event.workflow_execution_completed_event_attributes
        attributes.result.payloads.append(payload(result))
        attributes.workflow_task_completed_event_id = task
        return WorkflowHistory(f"bench-{self.run_id}", self.events)


def sequential(count: int, *, wrong_last: bool = False) -> WorkflowHistory:
    """The history of ``steps``; with ``wrong_last`` its last activity has another name."""
    writer = Writer("steps", count)
    task = writer.workflow_task()
    for number in range(count):
        name = "other" if wrong_last and number == count - 1 else "echo"
        writer.complete(writer.schedule(name, number, number, task), number)
        task = writer.workflow_task()
    return writer.finish(count * (count - 1) // 2, task)


def parallel(count: int) -> WorkflowHistory:
    """The history of ``fan_out``."""
    writer = Writer("fan_out", count)
    task = writer.workflow_task()
    scheduled = [writer.schedule("echo", number, number, task) for number in range(count)]
    for number, event in enumerate(scheduled):
        writer.complete(event, number)
    return writer.finish(count * (count - 1) // 2, writer.workflow_task())


def dataclasses_sequential(count: int) -> WorkflowHistory:
    """The history of ``orders``."""
    writer = Writer("orders", count)
    task = writer.workflow_task()
    for number in range(count):
        order = Order(number, f"customer {number}", ["bread", "cheese", "wine"], 12.5)
        receipt = Receipt(number, order.price * len(order.items), order.items)
        writer.complete(writer.schedule("charge", number, order, task), receipt)
        task = writer.workflow_task()
    return writer.finish(37.5 * count, task)
