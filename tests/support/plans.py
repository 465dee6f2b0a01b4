"""What the server did for the statements of a store: each plan with what its nodes read.

The server tells it itself: `auto_explain`, which is part of every PostgreSQL, sends the plan of
each statement, those inside functions too, as a notice to the connection that ran it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from psycopg.conninfo import make_conninfo
from psycopg.errors import Diagnostic

from durable.store.connection import Conn, Target
from durable.store.postgres import PostgresStore

EXPLAINED = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_format": "json",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_level": "notice",
}
MARK = "plan:\n"


@dataclass(frozen=True)
class Node:
    """One node of a plan."""

    kind: str
    table: str
    """Of a scan: the table it reads."""
    rows: int
    """That a scan or a sort has read, over all its loops, with those it threw away."""


@dataclass(frozen=True)
class Plan:
    """One statement that has run."""

    text: str
    buffers: int
    """Pages that it touched, and everything inside it."""
    nodes: tuple[Node, ...]


@dataclass
class WatchedTarget(Target):
    """Connections whose plans are kept."""

    plans: list[Plan] = field(default_factory=list)

    async def connect_once(self) -> Conn:
        """Open one connection."""
        conn = await super().connect_once()
        conn.add_notice_handler(self.note)
        return conn

    def note(self, notice: Diagnostic) -> None:
        """Keep the plan, if it is one."""
        said = notice.message_primary or ""
        if MARK in said:
            told = json.loads(said.split(MARK, 1)[1])
            root = told["Plan"]
            buffers = root["Shared Hit Blocks"] + root["Shared Read Blocks"]
            self.plans.append(Plan(told["Query Text"], buffers, tuple(nodes(root))))


def nodes(plan: dict[str, Any]) -> Iterator[Node]:
    """The node itself and all below it."""
    loops = plan["Actual Loops"]
    removed = sum(value for name, value in plan.items() if name.startswith("Rows Removed by"))
    rows = round(loops * (plan["Actual Rows"] + removed))
    yield Node(plan["Node Type"], plan.get("Relation Name", ""), rows)
    for child in plan.get("Plans", ()):
        yield from nodes(child)


class WatchedStore(PostgresStore):
    """A store that knows the plans of what it has run. The role must be a superuser."""

    def __init__(self, dsn: str, plan_cache_mode: str) -> None:
        settings = {**EXPLAINED, "plan_cache_mode": plan_cache_mode}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        super().__init__(make_conninfo(dsn, options=options))
        self.watched = WatchedTarget(self.target.dsn, self.target.application_name)
        self.target = self.hot.target = self.rest.target = self.watched
        for lane in (*self.hot.idle, *self.rest.idle):
            lane.target = self.watched
        self.names = {query.decode(): name for name, query in self.queries.items()}

    def take(self) -> tuple[list[Plan], dict[str, int]]:
        """The plans since the last time, and the buffers of each of the store's own statements."""
        plans, self.watched.plans = self.watched.plans, []
        buffers: dict[str, int] = {}
        for plan in plans:
            name = self.names.get(plan.text)
            if name is not None:
                buffers[name] = max(plan.buffers, buffers.get(name, 0))
        return plans, buffers
