"""Temporal: `temporalio.worker.Replayer`, with its default sandbox and without.

The replayer checks that the code makes the commands of the history, the last one (the result) by
its kind only, so the answers are compared by running a history whose last activity is wrong: it
must be refused.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from bench.peers import temporal_flows as flows
from bench.peers.serve import serve
from bench.peers.temporal_history import dataclasses_sequential, parallel, sequential

SHAPES: dict[str, Callable[[int], WorkflowHistory]] = {
    "steps": sequential,
    "fan_out": parallel,
    "orders": dataclasses_sequential,
}
histories: list[WorkflowHistory] = []


async def replay_all(given: Sequence[WorkflowHistory], *, sandbox: bool) -> float:
    """Replay them one after the other; the seconds it took. Raise what a replay raises."""
    options: dict[str, Any] = {} if sandbox else {"workflow_runner": UnsandboxedWorkflowRunner()}
    replayer = Replayer(workflows=[flows.Steps, flows.FanOut, flows.Orders], **options)

    async def each() -> AsyncIterator[WorkflowHistory]:
        for history in given:
            yield history

    begin = time.perf_counter()
    async with replayer.workflow_replay_iterator(each()) as results:
        async for result in results:
            if result.replay_failure is not None:
                raise result.replay_failure
    return time.perf_counter() - begin


def prepare(shape: str, count: int, many: int = 1) -> dict[str, int]:
    """Make ``many`` histories of ``count`` activities; say how many events they have."""
    histories[:] = [SHAPES[shape](count) for _ in range(many)]
    return {"events": sum(len(history.events) for history in histories)}


def replay(sandbox: bool) -> float:
    """Replay what was prepared; seconds."""
    return asyncio.run(replay_all(histories, sandbox=sandbox))


def warm_up() -> str:
    """Start everything once, and show that the replay checks what it replays."""
    for sandbox in (True, False):
        asyncio.run(replay_all([sequential(2), parallel(2)], sandbox=sandbox))
        asyncio.run(replay_all([dataclasses_sequential(2)], sandbox=sandbox))
    try:
        asyncio.run(replay_all([sequential(2, wrong_last=True)], sandbox=False))
    except NondeterminismError:
        return "checked"
    raise AssertionError("a wrong history was replayed without complaint")


if __name__ == "__main__":
    serve({"prepare": prepare, "replay": replay, "warm_up": warm_up})
