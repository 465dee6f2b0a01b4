"""A run in memory, for tests: no database, no clock. The test says what happens, and when."""

from __future__ import annotations

import uuid
from typing import Any

from durable.codec import DEFAULT_CODEC
from durable.engine.execution import Execution, Turn
from durable.engine.start import StartMeta, new_run
from durable.events import EventKind, MessageKind, NewRun, Response

EPOCH_US = 1_700_000_000_000_000
RUN_ID = "01890000-0000-7000-8000-000000000001"


class MemoryRun:
    """Drives one `Execution` and keeps its history, so that it can be replayed from any prefix."""

    def __init__(
        self,
        workflow: Any,
        *args: Any,
        run_id: str = RUN_ID,
        workflow_id: str = "wf",
        new: NewRun | None = None,
        **meta: Any,
    ) -> None:
        self.workflow = workflow
        self.new = new or new_run(
            workflow,
            workflow.signature.encode_args(args, {}),
            StartMeta(workflow_id=workflow_id, **meta),
            run_id=run_id,
            now_us=EPOCH_US,
        )
        self.now_us = EPOCH_US
        self.batches = [self.new.batch]
        self.heads = [self.new.head_hash]
        self.facts: dict[int, tuple[Any, ...]] = {}
        """By index of the batch: the fact it begins with."""
        self.turns: list[Turn] = []
        self._executions: list[Execution] = []
        self.execution = self.cold()
        self.take()

    def cold(self, batch_count: int | None = None, workflow: Any = None) -> Execution:
        """Load and replay the first batches in a new execution."""
        batches = self.batches[:batch_count]
        execution = Execution(workflow or self.workflow, self.new.run_id, self.new.workflow_id)
        self._executions.append(execution)
        execution.load(batches, self.heads[len(batches) - 1])
        return execution

    def __del__(self) -> None:
        # As a worker does: what a dropped coroutine has in ``finally`` must run in no other run.
        for execution in self._executions:
            execution.evict()

    def take(self) -> Turn | None:
        turn = self.execution.take()
        if turn is not None and turn.batch is not None:
            self.batches.append(turn.batch)
            self.heads.append(turn.head_hash)
            self.turns.append(turn)
        return turn

    def deliver(
        self,
        kind: int,
        ref: int = 0,
        name: str | None = None,
        meta: bytes | None = None,
        payload: bytes | None = None,
        after_us: int = 1000,
    ) -> Turn:
        """One fact, a little later; returns what came of it."""
        self.now_us += after_us
        fact = (kind, ref, self.now_us, name, meta, payload)
        before = len(self.batches)
        self.response = self.execution.deliver(*fact)
        turn = self.take()
        if len(self.batches) > before:
            self.facts[before] = fact
        return turn or Turn(None, 0, 0, 0)

    def complete(self, activity: Any = None, value: Any = None) -> Turn:
        """The oldest pending activity (of that name, or ref) has a result."""
        ref = self.ref(activity)
        return self.deliver(EventKind.ACTIVITY_COMPLETED, ref, payload=DEFAULT_CODEC.encode(value))

    def fail(self, activity: Any = None, kind: str = "ValueError", message: str = "no") -> Turn:
        payload = DEFAULT_CODEC.encode({"type": kind, "message": message, "attempt": 3})
        return self.deliver(EventKind.ACTIVITY_FAILED, self.ref(activity), payload=payload)

    def ref(self, activity: Any) -> int:
        if isinstance(activity, int):
            return activity
        for pending in self.execution.pending_activities():
            if activity is None or pending.name == activity:
                return pending.ref
        raise AssertionError(f"no activity {activity} is pending")

    def fire(self) -> Turn:
        """The timer due first fires."""
        timer = min(self.execution.pending_timers(), key=lambda each: (each.due_us, each.ref))
        return self.deliver(
            EventKind.TIMER_FIRED, timer.ref, after_us=max(0, timer.due_us - self.now_us)
        )

    def signal(self, name: str, *args: Any) -> Turn:
        payload = DEFAULT_CODEC.encode(list(args))
        return self.deliver(EventKind.SIGNAL_RECEIVED, name=name, payload=payload)

    def cancel(self, reason: str | None = None) -> Turn:
        payload = None if reason is None else DEFAULT_CODEC.encode(reason)
        return self.deliver(EventKind.CANCEL_REQUESTED, payload=payload)

    def update(self, name: str, *args: Any, request_id: str = "") -> Response | None:
        """Send an update; returns its answer when it is there at once."""
        request_id = request_id or str(uuid.uuid4())
        meta = DEFAULT_CODEC.encode({"request_id": request_id})
        turn = self.deliver(
            MessageKind.UPDATE_REQUESTED,
            name=name,
            meta=meta,
            payload=DEFAULT_CODEC.encode(list(args)),
        )
        if self.response is not None:
            return self.response
        return next((each for each in turn.responses if each.request_id == request_id), None)

    def query(self, name: str, *args: Any) -> Any:
        answer = self.execution.query(name, DEFAULT_CODEC.encode(list(args)))
        return DEFAULT_CODEC.decode(answer)

    @property
    def result(self) -> Any:
        """The decoded result; fails the test when the run did not end with one."""
        closing = self.turns[-1].closing
        assert closing is not None, f"still open, waits at {self.execution.where()}"
        assert closing.result is not None, f"ended without a result: {closing}"
        return DEFAULT_CODEC.decode(closing.result)

    @property
    def failure(self) -> dict[str, Any]:
        """The failure as plain data; fails the test when the run did not fail."""
        closing = self.turns[-1].closing
        assert closing is not None, f"still open, waits at {self.execution.where()}"
        assert closing.failure is not None, f"ended without a failure: {closing}"
        failure: dict[str, Any] = DEFAULT_CODEC.decode(closing.failure)
        return failure

    def check_replays(self) -> None:
        """From every prefix of the history the run goes on exactly as it did the first time."""
        first = min(self.facts, default=len(self.batches))
        for count in range(first, len(self.batches) + 1):
            execution = self.cold(count)
            assert execution.take() is None, f"prefix {count} makes new commands"
            for index in range(count, len(self.batches)):
                execution.deliver(*self.facts[index])
                turn = execution.take()
                assert turn is not None
                assert turn.batch == self.batches[index], f"prefix {count} parts at {index}"
                assert turn.head_hash == self.heads[index]
            assert execution.vars == self.execution.vars
            assert execution.is_finished == self.execution.is_finished
            execution.evict()
