"""The demo: a real PostgreSQL, a supervisor with two workers, one subscription, told as it happens.

Run it by ``make demo``. The database stays in ``.durable/demo`` for the next time.
"""

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from subscription import Plan, subscription

from durable import Client, DurableError, Supervisor, SupervisorOptions, WorkflowHandle
from durable.runtime.embedded import EmbeddedPostgres
from durable.store.migrate import migrate

HERE = Path(__file__).parent
DATA = HERE.parent / ".durable" / "demo"
PLAN = Plan(total=100, cycles=3, cycle=timedelta(seconds=2))
LIMIT_SECONDS = 60


def tell(what: str, text: str) -> None:
    sys.stdout.write(f"{what:>10}  {text}\n")
    sys.stdout.flush()


class Story:
    """Tells each thing once: variables, commands and outcomes as they appear."""

    def __init__(self, handle: WorkflowHandle[Any], supervisor: Supervisor) -> None:
        self.handle = handle
        self.supervisor = supervisor
        self.events = 0
        self.retries = 0.0
        self.vars: dict[str, object] = {}
        self.calls: dict[int, str] = {}
        self.waits_for = ""
        self.attempt = 1

    async def go_on(self) -> None:
        """Look again, and tell what is new."""
        for event in (await self.handle.history())[self.events :]:
            self.events = event.id
            self.tell_event(event.kind, event.id, event.ref, event.name, event.payload)
        retries = self.supervisor.fleet.value("durable_activity_attempts_total", outcome="retried")
        for _ in range(round(retries - self.retries)):
            tell("failed", f"attempt {self.attempt} of {self.waits_for}; tried again after a pause")
            self.attempt += 1
        self.retries = retries
        if (now := await self.handle.vars()) != self.vars:
            self.vars = now
            tell("variables", ", ".join(f"{name} = {value}" for name, value in now.items()))

    def tell_event(
        self, kind: str, number: int, ref: int, name: str | None, payload: object
    ) -> None:
        match kind:
            case "ACTIVITY_SCHEDULED":
                arguments = payload if isinstance(payload, list) else [payload]
                self.calls[number] = f"{name}({', '.join(map(str, arguments))})"
                self.waits_for, self.attempt = self.calls[number], 1
                tell("waits for", self.waits_for)
            case "TIMER_STARTED":
                tell("waits for", "the next cycle")
            case "ACTIVITY_COMPLETED":
                tell("paid", self.calls[ref])
            case "ACTIVITY_FAILED":
                why = payload.get("message") if isinstance(payload, dict) else payload
                tell("given up", f"{self.calls[ref]} failed at its last attempt: {why}")


async def run(dsn: str) -> None:
    options = SupervisorOptions(processes=2, http_port=0)
    supervisor = Supervisor(str(HERE / "subscription.py"), dsn, options=options)
    async with supervisor, Client.connect(dsn) as client:
        tell("workers", f"{' and '.join(map(str, supervisor.pids))}; {supervisor.metrics_url}")
        number = 1 + len(await client.list(workflow_type="subscription", limit=10_000))
        handle = await client.start(subscription, PLAN, id=f"sub-{number}")
        tell("started", f"sub-{number}: {PLAN.total} in {PLAN.cycles} cycles of 2 seconds")
        story = Story(handle, supervisor)
        ending = asyncio.create_task(handle.result(LIMIT_SECONDS))
        while not ending.done():
            await story.go_on()
            await asyncio.wait({ending}, timeout=0.1)
        await story.go_on()
        receipt = ending.result()
        tell("result", f"paid {receipt.paid}, overdue {receipt.overdue}")


def main() -> int:
    with EmbeddedPostgres(DATA) as postgres:
        migrate(postgres.dsn)
        tell("database", postgres.dsn.rpartition("@")[2])
        try:
            asyncio.run(run(postgres.dsn))
        except DurableError as error:
            sys.stderr.write(f"demo: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    os.chdir(HERE)
    raise SystemExit(main())
