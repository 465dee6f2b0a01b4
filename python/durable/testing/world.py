"""World: the runs of one test environment, driven by the engine that production uses.

There is no store and no worker here, on purpose. A store makes concurrent writers safe, and a test
has one; what is left of a commit is a list of batches. So a turn costs what the engine costs, every
test is deterministic, and a crash can be put after every single event. `Execution` is the same
class, history the same bytes, and what a turn asks for is done in the same order as a commit does.
(The promises that need a database are tested against one: the same test runs there by a flag.)

Facts wait in one queue. `pump` delivers them one at a time and does what the code asks for, until
nothing is left; only then may time move (`step`).
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple

import orjson

from durable.codec import failure_to_payload
from durable.engine.definition import ActivityDefinition, WorkflowDefinition
from durable.engine.execution import Execution, ScheduledActivity, Turn
from durable.engine.registry import Registry
from durable.errors import (
    DefinitionError,
    UnknownWorkflowError,
    WorkflowAlreadyStartedError,
    WorkflowNotFoundError,
)
from durable.events import (
    WHOLE_EXECUTION,
    Closing,
    EventKind,
    IdReuse,
    Message,
    MessageKind,
    NewRun,
    NewTimer,
    Response,
    RunState,
)
from durable.runtime.recorded import RecordedRun
from durable.testing.attempts import ActivityCall
from durable.testing.checks import check_cold, check_twice
from durable.testing.clock import Clock, Entry
from durable.testing.lookup import find_definition
from durable.testing.mocks import Mock
from durable.testing.streams import StreamBook

FAILED_STATES = (RunState.FAILED, RunState.CANCELLED, RunState.TERMINATED, RunState.TIMED_OUT)
ENDINGS = (EventKind.RUN_TERMINATED, EventKind.RUN_TIMED_OUT)
"""What a paused run takes all the same."""
MOVES_ON = (
    EventKind.SIGNAL_RECEIVED,
    EventKind.CANCEL_REQUESTED,
    EventKind.RUN_TERMINATED,
    MessageKind.UPDATE_REQUESTED,
)
"""What the next run of a chain takes over when the one before did not read it."""


class Fact(NamedTuple):
    """Something for a run to hear of."""

    kind: int
    ref: int = 0
    name: str | None = None
    meta: bytes | None = None
    payload: bytes | None = None


@dataclass(eq=False)
class Run:
    """One run of the environment."""

    new: NewRun
    definition: WorkflowDefinition[Any, Any]
    batches: list[bytes]
    head_hash: int
    execution: Execution | None = None
    state: RunState = RunState.RUNNING
    closing: Closing | None = None
    error: BaseException | None = None
    """What the engine raised: the reason for which a worker would park the run."""
    successor: Run | None = None
    calls: dict[int, ActivityCall] = field(default_factory=dict)
    timers: dict[int, Entry] = field(default_factory=dict)
    request_ids: set[str] = field(default_factory=set)
    deadline_us: int | None = None
    """When the time of its whole chain is over."""
    early: list[Fact] = field(default_factory=list)
    """What came before it began."""
    is_paused: bool = False
    held: list[Fact] = field(default_factory=list)
    """What came while it was paused."""
    is_due: bool = False
    """Its beginning waits until it is resumed."""

    @property
    def is_open(self) -> bool:
        """Whether it can still hear of anything."""
        return self.closing is None and self.error is None

    def recorded(self) -> RecordedRun:
        """Its history, as bytes."""
        return RecordedRun(
            self.new.run_id,
            self.new.workflow_id,
            self.new.workflow_type,
            tuple(self.batches),
            self.head_hash,
            self.new.queue,
            self.state.name.lower(),
        )


class World:
    """All runs, their clock, and what is under way."""

    def __init__(
        self,
        registry: Registry,
        clock: Clock,
        *,
        crash_at_every_event: bool,
        threads: bool,
        patience: float,
    ) -> None:
        self.registry = registry
        self.clock = clock
        self.mocks: dict[str, Mock] = {}
        self.runs: dict[str, Run] = {}
        """By run id."""
        self.latest: dict[str, Run] = {}
        """By workflow id."""
        self.parked: list[Run] = []
        self.responses: dict[str, Response] = {}
        self.request_numbers = count(1)
        """For the ids of updates."""
        self.news = asyncio.Event()
        """Set whenever anything changed."""
        self.turn_count = 0
        self.patience = patience
        """Real seconds in which something must happen while somebody waits."""
        self._crash = crash_at_every_event
        self.streams = StreamBook()
        self._threads = threads
        self._facts: deque[tuple[Run, Fact]] = deque()
        self._pumping = False
        self._definitions: dict[str, WorkflowDefinition[Any, Any]] = {}
        """Of what ran already: the next run of a chain cannot always be found from its own code."""
        self._active: set[ActivityCall] = set()
        """Calls without an outcome, of all runs."""

    # -- from outside ----------------------------------------------------------------------------

    def start(self, new: NewRun, near: object = None, continues: Run | None = None) -> Run:
        """Start a run; ``near`` is a workflow in whose code its definition may be found.

        ``continues`` is the run before it in its chain, whose deadline it takes over.

        Raises WorkflowAlreadyStartedError when its id is taken, UnknownWorkflowError.
        """
        known = self.latest.get(new.workflow_id)
        if known is not None and not may_reuse(known, new.id_reuse):
            raise WorkflowAlreadyStartedError(
                new.workflow_id, known.new.run_id, known.state.name.lower()
            )
        definition = (
            self.registry.workflows.get(new.workflow_type)
            or find_definition(near, new.workflow_type, WorkflowDefinition)
            or self._definitions.get(new.workflow_type)
            or self.registry.find_workflow(new.workflow_type)
        )
        if definition is None:
            raise UnknownWorkflowError(
                f"no workflow is called {new.workflow_type!r}; "
                "give it to the environment: workflows=[...]"
            )
        self._definitions[definition.name] = definition
        run = Run(new, definition, [new.batch], new.head_hash)
        self.runs[new.run_id] = self.latest[new.workflow_id] = run
        begin_us = max(self.clock.now_us + new.start_delay_us, new.start_at_us or 0)
        self.clock.at(begin_us, lambda: self._begin(run))
        if begin_us <= self.clock.now_us:
            self.clock.step()
        if new.run_timeout_us is not None:
            self._limit(run, 0, begin_us + new.run_timeout_us, None, "run")
        if new.execution_timeout_us is not None:
            run.deadline_us = begin_us + new.execution_timeout_us
        elif continues is not None:
            run.deadline_us = continues.deadline_us
        if run.deadline_us is not None:
            self._limit(run, -1, run.deadline_us, WHOLE_EXECUTION, "whole execution")
        return run

    def _limit(self, run: Run, key: int, at_us: int, name: str | None, whose: str) -> None:
        """End the run at that time, if it is still open then."""
        payload = failure_to_payload(TimeoutError(f"the time of the {whose} is over"))
        fact = Fact(EventKind.RUN_TIMED_OUT, name=name, payload=payload)
        run.timers[key] = self.clock.at(at_us, lambda: self.tell(run, fact))

    def tell(self, run: Run, fact: Fact) -> None:
        """Let a run hear of a fact with the next `pump`."""
        self._facts.append((run, fact))
        self.news.set()

    def send(self, message: Message) -> Run | None:
        """Deliver a message; None when no open run has that id."""
        run = (
            self.runs.get(message.run_id)
            if message.run_id
            else self.latest.get(message.workflow_id or "")
        )
        if run is None or not run.is_open:
            return None
        if message.request_id is not None:
            if message.request_id in run.request_ids:
                return run
            run.request_ids.add(message.request_id)
        self.tell(run, Fact(message.kind, 0, message.name, message.meta, message.payload))
        return run

    def pause(self, run: Run) -> None:
        """Hold back all that reaches the run, but for what ends it."""
        run.is_paused = True
        run.state = RunState.PAUSED

    def resume(self, run: Run) -> bool:
        """Let the run have what was held back; False when it was not paused."""
        if not (run.is_paused and run.is_open):
            return False
        run.is_paused = False
        run.state = RunState.RUNNING
        held, run.held = run.held, []
        if run.is_due:
            self._begin(run)
        for fact in held:
            self.tell(run, fact)
        return True

    def end_parked(self, run: Run, closing: Closing) -> None:
        """End a run that its code has no part in: one that is parked, or has not begun."""
        run.error = None
        run.is_paused = False
        if run in self.parked:
            self.parked.remove(run)
        self._close(run, closing, None)
        self.news.set()

    def start_again(
        self, run: Run, activities: Sequence[ScheduledActivity], timers: Sequence[NewTimer]
    ) -> None:
        """Start those of a copied history that the run still waits for."""
        if not run.is_open or run.execution is None:
            return
        waits = {each.ref for each in run.execution.pending_activities()}
        for scheduled in activities:
            if scheduled.ref in waits and scheduled.ref not in run.calls:
                self._start_activity(run, scheduled)
        waits = {each.ref for each in run.execution.pending_timers()}
        for timer in timers:
            if timer.ref in waits and timer.ref not in run.timers:
                self._start_timer(run, timer)

    # -- driving it ------------------------------------------------------------------------------

    def pump(self) -> None:
        """Deliver every fact there is, and do what the code asks for."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._facts:
                run, fact = self._facts.popleft()
                while run.successor is not None and fact.kind in MOVES_ON:
                    run = run.successor
                if not run.is_open:
                    self._answer_closed(fact)
                    continue
                if run.is_paused and fact.kind not in ENDINGS:
                    run.held.append(fact)
                    continue
                if run.execution is None:
                    # A delayed start: its mail waits with it.
                    run.early.append(fact)
                    continue
                self._turn(run, fact)
        finally:
            self._pumping = False

    def step(self) -> bool:
        """Move time to what is due next; False when nothing is."""
        return self.clock.step()

    def is_busy(self) -> bool:
        """Whether activities run that time must not overtake."""
        return any(call.is_busy for call in self._active)

    def call_of(self, run_id: str, ref: int) -> ActivityCall | None:
        """The activity call ``ref`` of a run, while it is under way."""
        run = self.runs.get(run_id)
        return run.calls.get(ref) if run is not None else None

    def evict(self) -> None:
        """Let go of everything."""
        for run in self.runs.values():
            for call in run.calls.values():
                call.drop()
            if run.execution is not None:
                run.execution.evict()

    # -- turns -----------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        if not run.is_open:
            return
        if run.is_paused:
            run.is_due = True
            return
        try:
            run.execution = self._load(run)
            self._commit(run)
        except BaseException as error:
            self._park(run, error)
            return
        for fact in run.early:
            self.tell(run, fact)

    def _load(self, run: Run) -> Execution:
        execution = Execution(
            run.definition,
            run.new.run_id,
            run.new.workflow_id,
            queue=run.new.queue,
            codec=run.definition.codec,
            registry=self.registry,
        )
        execution.load(run.batches, run.head_hash)
        return execution

    def revive(self, run: Run) -> Execution:
        """Build a run again that is out of memory, or spoilt by a query that made commands."""
        if run.execution is not None:
            run.execution.evict()
        run.execution = self._load(run)
        return run.execution

    def _turn(self, run: Run, fact: Fact) -> None:
        execution = run.execution
        assert execution is not None
        try:
            response = execution.deliver(
                fact.kind, fact.ref, self.clock.now_us, fact.name, fact.meta, fact.payload
            )
            if response is not None:
                self._respond(response)
            if execution.is_dead and run.is_open:
                # A validator did what only commands may do: as a worker would, start over.
                self.revive(run)
            elif fact.kind != MessageKind.QUERY:
                self._commit(run)
        except BaseException as error:
            self._park(run, error)

    def _commit(self, run: Run) -> None:
        execution = run.execution
        assert execution is not None
        turn = execution.take()
        if turn is None:
            return
        self.turn_count += 1
        if turn.batch is not None:
            run.batches.append(turn.batch)
            run.head_hash = turn.head_hash
        if self._crash and turn.closing is None:
            run.execution = check_cold(execution, self._load, run)
        self._apply(run, turn)
        if self._crash and turn.closing is not None:
            check_twice(run.definition, run.recorded(), self.registry)
        self.news.set()

    def _apply(self, run: Run, turn: Turn) -> None:
        for response in turn.responses:
            self._respond(response)
        for ref in turn.timers_done:
            if (entry := run.timers.pop(ref, None)) is not None:
                entry.cancel()
        for timer in turn.timers:
            self._start_timer(run, timer)
        for ref in turn.cancelled_activities:
            if (call := run.calls.get(ref)) is not None:
                call.cancel() if turn.closing is None else call.drop()
        if turn.closing is not None:
            self._close(run, turn.closing, turn.successor)
        for child in turn.children:
            self._start_child(run, child)
        for message in turn.messages:
            self._send_from(run, message)
        for scheduled in turn.scheduled:
            self._start_activity(run, scheduled)
        for ref in turn.unstarted_activities:
            # Cancelled in the turn that asked for it: nobody else will answer for it.
            error = failure_to_payload(asyncio.CancelledError("cancelled before an attempt ran"))
            self.tell(run, Fact(EventKind.ACTIVITY_FAILED, ref, payload=error))

    def _close(self, run: Run, closing: Closing, successor: NewRun | None) -> None:
        run.closing = closing
        run.state = closing.state
        for entry in run.timers.values():
            entry.cancel()
        self._drop_calls(run)
        if run.execution is not None:
            run.execution.evict()
        if successor is not None:
            successor.id_reuse = IdReuse.AFTER_CLOSE
            run.successor = self.start(successor, run.definition, run)
        elif run.new.parent_run_id is not None:
            self._tell_parent(run, closing)

    def _drop_calls(self, run: Run) -> None:
        for call in run.calls.values():
            call.drop()
            self._active.discard(call)
        run.calls.clear()

    def _tell_parent(self, run: Run, closing: Closing) -> None:
        parent = self.runs.get(run.new.parent_run_id or "")
        if parent is None:
            return
        completed = closing.state == RunState.COMPLETED
        kind = EventKind.CHILD_COMPLETED if completed else EventKind.CHILD_FAILED
        payload = closing.result if completed else closing.failure
        self.tell(parent, Fact(kind, run.new.parent_ref or 0, payload=payload))

    def _park(self, run: Run, error: BaseException) -> None:
        run.error = error
        run.state = RunState.PARKED
        self.parked.append(run)
        self._drop_calls(run)
        for entry in run.timers.values():
            entry.cancel()
        self.news.set()

    # -- what the code asks for ------------------------------------------------------------------

    def _start_timer(self, run: Run, timer: NewTimer) -> None:
        fact = Fact(EventKind.TIMER_FIRED, timer.ref)
        run.timers[timer.ref] = self.clock.at(timer.due_us, lambda: self.tell(run, fact))

    def _start_activity(self, run: Run, scheduled: Any) -> None:
        mock = self.mocks.get(scheduled.name)
        definition: ActivityDefinition[Any, Any] | None
        definition = (
            self.registry.activities.get(scheduled.name)
            or find_definition(run.definition, scheduled.name, ActivityDefinition)
            or self.registry.activities.find(scheduled.name)
        )
        # The real signature where it is known: a mock given by name was checked against nothing.
        source = definition or mock
        if source is None:
            raise DefinitionError(
                f"no activity is called {scheduled.name!r}; give it to the environment: "
                f"activities=[...], or env.mock({scheduled.name!r}, ...)"
            )
        if mock is None and definition is not None and definition.traits.is_transactional:
            raise DefinitionError(
                f"activity {definition.name} is transactional and there is no database: env.mock() "
                "it, or run the test on PostgreSQL"
            )
        call = ActivityCall(
            scheduled,
            run_id=run.new.run_id,
            workflow_id=run.new.workflow_id,
            workflow_type=run.new.workflow_type,
            fn=source.fn if mock is None else mock.fn,
            signature=source.signature,
            on_call=None if mock is None else lambda *call: mock.calls.append(call),
            clock=self.clock,
            streams=self.streams,
            threads=self._threads,
            completes_later=definition is not None and definition.traits.completes_later,
            headers=run.execution.context.headers if run.execution is not None else {},
            around=self.registry.hooks.around("run_activity"),
            ended=lambda call, kind, payload: self._ended(run, call, kind, payload),
            changed=self.news.set,
        )
        run.calls[scheduled.ref] = call
        self._active.add(call)
        call.begin()

    def _ended(self, run: Run, call: ActivityCall, kind: int, payload: bytes | None) -> None:
        run.calls.pop(call.scheduled.ref, None)
        self._active.discard(call)
        self.tell(run, Fact(kind, call.scheduled.ref, payload=payload))

    def _start_child(self, run: Run, new: NewRun) -> None:
        ref = new.parent_ref or 0
        try:
            self.start(new, run.definition)
        except WorkflowAlreadyStartedError as error:
            failure = {"type": "WorkflowAlreadyStartedError", "message": str(error)}
            fact = Fact(EventKind.CHILD_FAILED, ref, payload=orjson.dumps(failure))
        else:
            started = orjson.dumps({"run_id": new.run_id})
            fact = Fact(EventKind.CHILD_STARTED, ref, payload=started)
        self.tell(run, fact)

    def _send_from(self, run: Run, message: Message) -> None:
        found = self.send(message)
        if message.ref:
            kind = EventKind.EXTERNAL_FAILED if found is None else EventKind.EXTERNAL_DONE
            target = message.workflow_id or message.run_id
            error = WorkflowNotFoundError(f"no open run has the id {target!r}")
            payload = failure_to_payload(error) if found is None else None
            self.tell(run, Fact(kind, message.ref, payload=payload))

    def _respond(self, response: Response) -> None:
        self.responses[response.request_id] = response
        self.news.set()

    def _answer_closed(self, fact: Fact) -> None:
        """An update that comes too late is answered; nothing else needs to know."""
        if fact.kind == MessageKind.UPDATE_REQUESTED and fact.meta:
            error = WorkflowNotFoundError("the run has ended")
            request_id = orjson.loads(fact.meta)["request_id"]
            self._respond(Response(request_id, failure=failure_to_payload(error)))


def may_reuse(known: Run, reuse: IdReuse) -> bool:
    """Whether the id of ``known`` may be started again."""
    if known.closing is None:
        return False
    if reuse == IdReuse.AFTER_FAILURE:
        return known.state in FAILED_STATES
    return reuse == IdReuse.AFTER_CLOSE


def new_run_id(seed: int, number: int) -> str:
    """The run id of the environment's run ``number``: the same in every execution of a test."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"durable test {seed} {number}"))
