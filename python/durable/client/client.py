"""Client: start workflows and find them.

A client talks to the database only; workers need not run. The calls that begin runs are in
`starting`, `with_start`, `jobs` and `schedules`, those for activities that others complete in
`completing`, those about many open runs in `bulk`, listings in `listing`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, overload

from durable.client.answers import encode_call
from durable.client.bulk import BulkClient
from durable.client.checks import check_args, check_id
from durable.client.completing import CompletingClient
from durable.client.handle import WorkflowHandle
from durable.client.intercepting import surround_all
from durable.client.jobs import JobClient
from durable.client.listing import ListingClient
from durable.client.schedules import ScheduleClient
from durable.client.with_start import WithStartClient
from durable.engine.attributes import message_meta, plain_headers
from durable.engine.definition import ActivityDefinition, WorkflowDefinition, handler_name
from durable.engine.interceptors import MessageCall
from durable.engine.jobs import job_of
from durable.errors import InvalidArgumentError
from durable.events import EventKind, Message, QueueLimits
from durable.hints import CLIENT, Hinted
from durable.store.limits import Limits

R = TypeVar("R")


class Client(
    WithStartClient, JobClient, ScheduleClient, CompletingClient, BulkClient, ListingClient, Hinted
):
    """Starts workflows, and hands out handles to them. An async context manager."""

    _hints = CLIENT

    # -- signals -----------------------------------------------------------------------------

    async def signal_many(
        self,
        signal: str | Callable[..., Any],
        signals: Iterable[tuple[str, Sequence[Any]]],
        *,
        request_ids: Sequence[str] | None = None,
        conn: Any = None,
    ) -> list[bool]:
        """Send one kind of signal to many workflows in one transaction and one round trip.

        ``signals`` are (workflow id, arguments); one workflow may occur often and gets them in this
        order. Returns, in order, whether an open run took it; those that did never lose it.
        ``request_ids``, one for each, make a repeated send a no-op. With ``conn`` (a psycopg async
        connection) the signals belong to the caller's transaction.
        """
        name = handler_name(signal)
        pairs = list(signals)
        if request_ids is None:
            request_ids = [str(uuid.uuid4()) for _ in pairs]
        if len(request_ids) != len(pairs):
            raise InvalidArgumentError(
                f"{len(pairs)} signals need as many request ids, not {len(request_ids)}"
            )
        calls = [
            MessageCall(
                check_id(workflow_id, "a workflow id"),
                None,
                name,
                check_args(args, f"the signal to {workflow_id}"),
            )
            for workflow_id, args in pairs
        ]
        ids = {
            id(call): check_id(request_id, "a request id")
            for call, request_id in zip(calls, request_ids, strict=True)
        }

        async def send(calls: Sequence[MessageCall]) -> list[bool]:
            messages = [
                Message(
                    kind=EventKind.SIGNAL_RECEIVED,
                    workflow_id=call.workflow_id,
                    name=name,
                    meta=message_meta(plain_headers(call.headers, self.codec)),
                    payload=encode_call(self.codec, signal, call.args),
                    request_id=ids[id(call)],
                )
                for call in calls
            ]
            if not messages:
                return []
            found = await self.store.send(messages, conn)
            if conn is None:
                self.hinter.work(runs_only=True)
            return [run_id is not None for run_id in found]

        around = self.hooks.around("signal_workflow")
        return await (surround_all(around, calls, send) if around else send(calls))

    # -- queues ------------------------------------------------------------------------------

    async def set_queue_limits(
        self,
        queue: str,
        *,
        concurrency: int | None = None,
        rate: float | None = None,
        key_concurrency: int | None = None,
    ) -> None:
        """Limit the activities of a queue, over all workers of all hosts.

        At most ``concurrency`` of them run at once (0 pauses the queue), at most
        ``key_concurrency`` of each fairness key, and at most ``rate`` attempts start per second.
        None is no limit: all are set, whatever was set before. Workers know of a queue's first
        limit after 30 seconds at most; changes count at once. Raises InvalidArgumentError for what
        cannot be a limit.
        """
        check_id(queue, "a queue")
        await Limits(self.store).set(
            queue, concurrency=concurrency, rate=rate, key_concurrency=key_concurrency
        )

    async def queue_limits(self) -> list[QueueLimits]:
        """The limits of every queue that has any, by name."""
        return await Limits(self.store).all()

    # -- finding -----------------------------------------------------------------------------

    @overload
    def get_handle(
        self, id: str, run_id: str | None = ..., *, workflow: WorkflowDefinition[Any, R]
    ) -> WorkflowHandle[R]: ...
    @overload
    def get_handle(
        self, id: str, run_id: str | None = ..., *, activity: ActivityDefinition[Any, R]
    ) -> WorkflowHandle[R]: ...
    @overload
    def get_handle(
        self, id: str, run_id: str | None = ..., *, workflow: None = ..., activity: None = ...
    ) -> WorkflowHandle[Any]: ...

    def get_handle(
        self,
        id: str,
        run_id: str | None = None,
        *,
        workflow: WorkflowDefinition[Any, Any] | None = None,
        activity: ActivityDefinition[Any, Any] | None = None,
    ) -> WorkflowHandle[Any]:
        """A handle to a workflow by id, or to one of its runs. Asks nothing of the database.

        ``workflow`` gives the handle the code: for typed results, `vars` and closed-run queries;
        ``activity`` that of a job.
        """
        if activity is not None:
            workflow = job_of(activity)
        check_id(id, "a workflow id")
        if run_id is not None:
            try:
                run_id = str(uuid.UUID(run_id))
            except ValueError:
                raise InvalidArgumentError(f"a run id is a UUID, not {run_id!r}") from None
        return WorkflowHandle(self, id, run_id, workflow)
