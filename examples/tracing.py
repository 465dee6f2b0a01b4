"""One trace over a client, a workflow, its activities and its children.

The trace travels as the W3C header ``traceparent``, so that spans of other systems join it. Each
span that ends is a line of the log; with OpenTelemetry it would be one of its spans.

Try it: ``durable dev examples/tracing.py``, then start ``ship`` with the client below.
"""

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from durable import Client, Interceptor, activity, workflow
from durable.interceptors import ActivityCall, Proceed, RunCall, StartCall

log = logging.getLogger("tracing")


@dataclass(frozen=True)
class Span:
    """Where we are in a trace."""

    trace_id: str
    span_id: str

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"


current: ContextVar[Span | None] = ContextVar("span", default=None)


def parent_in(headers: Any) -> Span | None:
    """The span that the headers came from."""
    parts = str(headers.get("traceparent", "")).split("-")
    return Span(parts[1], parts[2]) if len(parts) == 4 else None


def ended(name: str, span: Span, parent: Span | None) -> None:
    log.info("%s %s %s", name, span.traceparent, parent.span_id if parent else "-")


@contextmanager
def span(name: str, parent: Span | None = None) -> Iterator[Span]:
    """A span below ``parent``, or below the one that we are in."""
    parent = parent or current.get()
    made = Span(parent.trace_id if parent else secrets.token_hex(16), secrets.token_hex(8))
    token = current.set(made)
    try:
        yield made
    finally:
        current.reset(token)
        ended(name, made, parent)


class Tracing(Interceptor):
    async def start_workflow(self, call: StartCall, proceed: Proceed[StartCall]) -> Any:
        with span(f"start:{call.workflow}") as made:
            call.headers["traceparent"] = made.traceparent
            return await proceed(call)

    async def run_workflow(self, call: RunCall, proceed: Proceed[RunCall]) -> Any:
        parent = parent_in(call.headers)
        if parent is None:
            return await proceed(call)
        # The same in every replay, so it is made of the run's id and not of dice.
        made = Span(parent.trace_id, call.info.run_id.replace("-", "")[-16:])
        if not call.is_replaying:
            ended(f"run:{call.info.name}", made, parent)
        current.set(made)
        call.headers["traceparent"] = made.traceparent
        return await proceed(call)

    async def run_activity(self, call: ActivityCall, proceed: Proceed[ActivityCall]) -> Any:
        with span(f"activity:{call.info.name}", parent_in(call.headers)):
            return await proceed(call)


interceptors = [Tracing()]


@activity.defn
def label(parcel: str) -> str:
    """On a thread: it sees the span all the same."""
    here = current.get()
    return f"{parcel} {here.trace_id if here else 'untraced'}"


@workflow.defn
async def pack(parcel: str) -> str:
    return await label(parcel)


@workflow.defn
async def ship(parcel: str) -> list[str]:
    return [await label(parcel), await pack(f"{parcel}, packed")]


async def main(dsn: str, parcel: str) -> list[str]:
    async with Client.connect(dsn, interceptors=interceptors) as client:
        with span("request"):
            handle = await client.start(ship, parcel, id=f"ship-{parcel}")
            return await handle.result(30)
