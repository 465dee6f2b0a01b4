"""Activities in processes of their own: where they run, how they end, and what outlives what."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import heavy

from durable import (
    ActivityError,
    ActivityProcessError,
    AttemptLostError,
    Client,
    DefinitionError,
    RetryPolicy,
    Supervisor,
    SupervisorOptions,
    WorkerOptions,
    activity,
    workflow,
)
from durable.errors import WorkflowCancelledError
from durable.runtime.worker import Worker

SOON = 60.0
"""A process has to start, on a machine that may be busy."""


async def call(client: Client, serve: Any, step: Any, *args: Any, **options: Any) -> Any:
    """The result of one call, or what the workflow gets instead."""

    @workflow.defn
    async def flow() -> Any:
        try:
            return await step(*args)
        except ActivityError as error:
            return [type(error.__cause__).__name__, str(error.__cause__), error.attempt]

    await serve(flow, step, **options)
    handle = await client.start(flow, id="flow")
    return await handle.result(SOON)


@pytest.fixture
def notes(tmp_path: Path) -> str:
    return str(tmp_path / "notes")


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def lives(pid: int) -> bool:
    """Whether that process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def seen(holds: Callable[[], object]) -> None:
    """Wait for what other processes do."""
    async with asyncio.timeout(SOON):
        while not holds():
            await asyncio.sleep(0.01)


# -- where it runs ---------------------------------------------------------------------------


async def test_it_runs_in_another_process_which_is_used_again(client: Client, serve: Any) -> None:
    @workflow.defn
    async def flow() -> list[list[int]]:
        return [await heavy.pid(number) for number in range(3)]

    await serve(flow, heavy.pid)
    found = await (await client.start(flow, id="flow")).result(SOON)
    assert [number for number, _ in found] == [0, 1, 2]
    assert len({pid for _, pid in found}) == 1
    assert found[0][1] != os.getpid()


async def test_no_more_processes_than_slots(client: Client, serve: Any) -> None:
    @workflow.defn
    async def flow() -> list[list[int]]:
        return list(await asyncio.gather(*(heavy.pid(number) for number in range(12))))

    worker: Worker = await serve(flow, heavy.pid, process_slots=2)
    found = await (await client.start(flow, id="flow")).result(SOON)
    assert [number for number, _ in found] == list(range(12))
    assert 1 <= len({pid for _, pid in found}) <= 2
    assert {pid for _, pid in found} <= set(worker._executor.processes.pids)


async def test_no_process_is_started_before_one_is_needed(client: Client, serve: Any) -> None:
    worker: Worker = await serve(heavy.pid)
    assert worker._executor.processes.pids == []


async def test_it_knows_its_attempt(client: Client, serve: Any) -> None:
    name, attempt, workflow_id, workflow_type, key = await call(client, serve, heavy.facts)
    assert (name, attempt, workflow_id, workflow_type) == ("facts", 1, "flow", "flow")
    assert key.endswith(":2")


async def test_a_function_may_be_made_an_activity_elsewhere(client: Client, serve: Any) -> None:
    number, pid = await call(client, serve, heavy.applied, 5)
    assert number == 5
    assert pid != os.getpid()


# -- how it ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["exit", "segfault"])
async def test_a_dead_process_is_a_failed_attempt(
    client: Client, serve: Any, notes: str, how: str
) -> None:
    assert await call(client, serve, heavy.dies, notes, how, 2) == 3
    assert len(set(lines(notes))) == 3


async def test_processes_that_always_die_fail_the_activity_by_type(
    client: Client, serve: Any, notes: str
) -> None:
    kind, text, attempt = await call(client, serve, heavy.dies, notes, "exit", 99)
    assert (kind, attempt) == (ActivityProcessError.__name__, 3)
    assert text == "the process of activity dies died: it left with exit status 3"


async def test_an_at_most_once_activity_whose_process_dies_is_lost(
    client: Client, serve: Any, notes: str
) -> None:
    kind, _, _ = await call(client, serve, heavy.dies_once, notes)
    assert kind == AttemptLostError.__name__
    assert len(lines(notes)) == 1


async def test_what_is_over_its_time_is_killed_and_tried_again(
    client: Client, serve: Any, notes: str
) -> None:
    assert await call(client, serve, heavy.hangs, notes, 1) == 2
    first, second = (int(line) for line in lines(notes))
    assert first != second
    await seen(lambda: not lives(first))


async def test_a_time_limit_leaves_the_other_attempts_alone(
    client: Client, serve: Any, notes: str, tmp_path: Path
) -> None:
    other = str(tmp_path / "other")

    @workflow.defn
    async def flow() -> list[int]:
        return [*await asyncio.gather(heavy.hangs(notes, 1), heavy.dies(other, "exit", 0))]

    await serve(flow, heavy.hangs, heavy.dies)
    assert await (await client.start(flow, id="flow")).result(SOON) == [2, 1]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("final", ["NonRetryable", "a closed account", 1]),
        ("after", 2),
        ("override", 2),
        ("exit", ["ApplicationError", "4", 3]),
    ],
)
async def test_exceptions_count_as_they_do_elsewhere(
    client: Client, serve: Any, notes: str, how: str, expected: Any
) -> None:
    assert await call(client, serve, heavy.fails, notes, how) == expected


async def test_a_policy_may_name_the_base_of_an_exception(
    client: Client, serve: Any, notes: str
) -> None:
    policy = RetryPolicy(initial_interval=0.01, non_retryable=("OSError",))
    step = heavy.fails.with_options(retry=policy)
    found = await call(client, serve, step, notes, "by base")
    assert found == ["FileNotFoundError", "nothing there", 1]


async def test_others_may_complete_it(client: Client, serve: Any, notes: str) -> None:
    @workflow.defn
    async def flow() -> str:
        return await heavy.asks(notes)

    await serve(flow, heavy.asks)
    handle = await client.start(flow, id="flow")
    await seen(lambda: lines(notes))
    await client.complete_activity(lines(notes)[0], "yes")
    assert await handle.result(SOON) == "yes"


# -- heartbeats and cancellation -------------------------------------------------------------


async def test_the_next_attempt_gets_the_details_of_the_last_heartbeat(
    client: Client, serve: Any, notes: str
) -> None:
    assert await call(client, serve, heavy.beats, notes) == [2, "page", 5]


async def cancelled_while(client: Client, serve: Any, step: Any, notes: str) -> int:
    @workflow.defn
    async def flow() -> None:
        await step(notes)

    await serve(flow, step)
    handle = await client.start(flow, id="flow")
    await seen(lambda: lines(notes))
    await handle.cancel()
    with pytest.raises(WorkflowCancelledError):
        await handle.result(SOON)
    return int(lines(notes)[0])


async def test_a_cancelled_one_hears_of_it_by_its_heartbeat(
    client: Client, serve: Any, notes: str, tmp_path: Path
) -> None:
    pid = await cancelled_while(client, serve, heavy.beats_for_long, notes)
    count = 0

    def is_silent() -> bool:
        nonlocal count
        before, count = count, len(lines(notes))
        return before == count

    await seen(is_silent)
    assert lives(pid), "a process that listens is not killed"


async def test_a_cancelled_one_that_does_not_listen_is_killed(
    client: Client, serve: Any, notes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable.runtime.activity_pool.STOP_SECONDS", 0.05)
    pid = await cancelled_while(client, serve, heavy.endless, notes)
    await seen(lambda: not lives(pid))


# -- what outlives what ----------------------------------------------------------------------


async def test_a_drain_ends_the_processes(client: Client, dsn: str, notes: str) -> None:
    options = WorkerOptions(drain_seconds=0.05)
    definitions: dict[str, Any] = {
        "workflows": [heavy.endless_run],
        "activities": [heavy.endless],
    }
    async with Worker(dsn, options=options, **definitions):
        handle = await client.start(heavy.endless_run, notes, id="flow")
        await seen(lambda: lines(notes))
    pid = int(lines(notes)[0])
    await seen(lambda: not lives(pid))
    async with Worker(dsn, options=options, **definitions):
        # Handed over, though it may be tried only once: that it was stopped is not its failure.
        await seen(lambda: len(lines(notes)) == 2)
        await handle.terminate()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
async def test_a_killed_worker_leaves_no_process_behind(
    client: Client, dsn: str, notes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    options = SupervisorOptions(processes=1, http_port=None)
    # What never ends is not waited for when the test is over.
    worker_options = WorkerOptions(drain_seconds=0.1)
    async with Supervisor(
        "support.heavy", dsn, options=options, worker_options=worker_options
    ) as supervisor:
        await client.start(heavy.endless_run, notes, id="flow")
        await seen(lambda: lines(notes))
        pid = int(lines(notes)[0])
        (parent,) = supervisor.pids
        os.kill(parent, signal.SIGKILL)
        await seen(lambda: not lives(pid))
        await seen(lambda: len(lines(notes)) == 2)
        assert supervisor.pids != [parent]


# -- what can be one -------------------------------------------------------------------------


def test_only_what_a_process_can_import_may_be_one() -> None:
    def local(number: int) -> int:
        return number

    with pytest.raises(DefinitionError, match="top of its module"):
        activity.defn(executor="process")(local)
    with pytest.raises(DefinitionError, match="top of its module"):
        activity.defn(name="inline", executor="process")(lambda: None)

    async def asynchronous() -> None: ...

    for executor in ("process", "thread"):
        with pytest.raises(DefinitionError, match="plain def"):
            activity.defn(executor=executor)(asynchronous)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError, match="'thread' or 'process'"):
        activity.defn(executor="gpu")(heavy.plain)  # type: ignore[call-overload]

    class Studio:
        def render(self) -> None: ...

    with pytest.raises(DefinitionError, match="function of a module"):
        activity.defn(executor="process")(Studio.render)


def test_a_worker_refuses_what_its_processes_would_not_find(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heavy.plain, "__module__", "__main__")
    with pytest.raises(DefinitionError, match="durable worker FILE"):
        Worker(dsn, activities=[heavy.applied])
    monkeypatch.undo()
    monkeypatch.setattr(heavy, "plain", len)
    with pytest.raises(DefinitionError, match="something else"):
        Worker(dsn, activities=[heavy.applied])
