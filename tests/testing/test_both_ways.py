"""One test, three places: in process, in process with crashes, and on a real PostgreSQL."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from durable import activity, workflow
from durable.errors import (
    InvalidArgumentError,
    NonRetryable,
    UpdateRejectedError,
    WorkflowAlreadyStartedError,
    WorkflowCancelledError,
    WorkflowFailedError,
    WorkflowNotFoundError,
    WorkflowTerminatedError,
)
from durable.events import RunState
from durable.testing import WorkflowEnvironment
from durable.testing.postgres import PostgresEnvironment


@activity.defn
async def charge(cents: int) -> str:
    return f"paid {cents}"


@activity.defn
def double(number: int) -> int:
    return number * 2


@workflow.defn
async def pay_twice(cents: int) -> list[str]:
    await asyncio.sleep(0.01)
    return [await charge(cents), await charge(await double(cents))]


@workflow.defn
async def nested(cents: int) -> list[str]:
    return await pay_twice(cents)


@workflow.defn
async def countdown(number: int) -> str:
    if number == 0:
        return "lift-off"
    workflow.continue_as_new(number - 1)


@workflow.defn
class Counter:
    def __init__(self) -> None:
        self.total = 0

    @workflow.run
    async def run(self, target: int) -> int:
        await workflow.wait_condition(lambda: self.total >= target)
        return self.total

    @workflow.signal
    def add(self, number: int) -> None:
        self.total += number
        workflow.set_vars(total=self.total)

    @workflow.update
    async def raise_by(self, number: int) -> int:
        self.total += number
        return self.total

    @workflow.query
    def left(self, target: int) -> int:
        return target - self.total


@pytest.fixture(params=["process", "crashing", "postgres", "postgres-crashing"])
async def env(request: pytest.FixtureRequest) -> AsyncIterator[WorkflowEnvironment]:
    crash = "crashing" in request.param
    if request.param.startswith("postgres"):
        dsn: str = request.getfixturevalue("dsn")
        async with PostgresEnvironment(dsn, crash_at_every_event=crash) as made:
            yield made
    else:
        async with WorkflowEnvironment(crash_at_every_event=crash) as made:
            yield made


async def test_activities_run(env: WorkflowEnvironment) -> None:
    assert await env.execute(pay_twice, 5) == ["paid 5", "paid 10"]


async def test_mocks_replace_activities(env: WorkflowEnvironment) -> None:
    mock = env.mock(charge, "nothing")
    env.mock(double, lambda number: number * 3)

    assert await env.execute(pay_twice, 5) == ["nothing", "nothing"]
    assert mock.calls == [((5,), {}), ((15,), {})]


async def test_final_failure_fails_the_run(env: WorkflowEnvironment) -> None:
    env.mock(charge, NonRetryable("stolen card"))

    with pytest.raises(WorkflowFailedError, match="stolen card"):
        await env.execute(pay_twice, 5)


async def test_a_job_runs_without_a_workflow(env: WorkflowEnvironment) -> None:
    handle = await env.enqueue(double, 4, delay=0.01)
    assert await handle.result() == 8
    env.mock(double, lambda number: number * 3)
    assert await (await env.enqueue(double, 4, id="tripled")).result() == 12
    assert (await env.get_handle("tripled").history()).activities[0].outcome == "completed"


async def test_children_run(env: WorkflowEnvironment) -> None:
    handle = await env.start(nested, 5)

    assert await handle.result() == ["paid 5", "paid 10"]
    (child,) = (await handle.history()).children
    assert child.outcome == "completed"


async def test_chain_is_followed(env: WorkflowEnvironment) -> None:
    handle = await env.start(countdown, 2)

    assert await handle.result() == "lift-off"
    assert [each.kinds[-1] for each in await handle.histories()] == [
        "RUN_CONTINUED_AS_NEW",
        "RUN_CONTINUED_AS_NEW",
        "RUN_COMPLETED",
    ]


async def test_requests_are_answered(env: WorkflowEnvironment) -> None:
    handle = await env.start(Counter, 10)

    await handle.signal("add", 3)
    assert await handle.vars() == {"total": 3}
    assert await handle.update("raise_by", 2) == 5
    assert await handle.query("left", 10) == 5
    with pytest.raises(UpdateRejectedError):
        await handle.update("nothing")
    await handle.signal("add", 5)

    assert await handle.result() == 10


async def test_a_run_is_started_by_its_first_signal(env: WorkflowEnvironment) -> None:
    call: Any = {"id": "counter", "signal": "add"}
    handle = await env.signal_with_start(Counter, 10, signal_args=(3,), **call)
    await env.signal_with_start(Counter, 99, signal_args=[7], **call)

    assert await handle.result() == 10
    assert (await handle.history()).kinds.count("SIGNAL_RECEIVED") == 2
    with pytest.raises(WorkflowAlreadyStartedError):
        await env.signal_with_start(Counter, 10, signal_args=(3,), **call)


async def test_an_unknown_option_of_a_message_with_start_is_refused(
    env: WorkflowEnvironment,
) -> None:
    wrong: Any = {"id": "counter", "priorite": 3}
    with pytest.raises(InvalidArgumentError, match="priorite"):
        await env.signal_with_start(Counter, 10, signal="add", signal_args=[1], **wrong)
    with pytest.raises(InvalidArgumentError, match="priorite"):
        await env.update_with_start(Counter, 10, update="raise_by", update_args=[1], **wrong)


async def test_a_paused_run_waits_until_it_is_resumed(env: WorkflowEnvironment) -> None:
    handle = await env.start(Counter, 10)
    await handle.signal("add", 4)
    assert await handle.query("left", 10) == 6
    await handle.pause("the bank looks into it")
    await handle.signal("add", 6)
    await env.settle()

    assert await handle.state() == RunState.PAUSED
    assert (await handle.history()).kinds.count("SIGNAL_RECEIVED") == 1
    assert await handle.resume() is True
    assert await handle.result() == 10
    assert await handle.resume() is False
    with pytest.raises(WorkflowNotFoundError):
        await handle.pause()


async def test_a_paused_run_can_be_terminated(env: WorkflowEnvironment) -> None:
    handle = await env.start(Counter, 10)
    await handle.pause()
    await handle.terminate("enough")

    with pytest.raises(WorkflowTerminatedError, match="enough"):
        await handle.result()


async def test_cancelled_run_says_so(env: WorkflowEnvironment) -> None:
    handle = await env.start(Counter, 10)
    await handle.cancel("enough")

    with pytest.raises(WorkflowCancelledError):
        await handle.result()


TEST_FILE = """
import asyncio
from durable import activity, workflow

@activity.defn
async def charge(cents: int) -> str:
    raise AssertionError("mocked")

@workflow.defn
async def pay(cents: int) -> str:
    await asyncio.sleep(0.01)
    return await charge(cents)

async def test_pay(workflow_env):
    workflow_env.mock(charge, "paid")
    print("ON", type(workflow_env).__name__)
    assert await workflow_env.execute(pay, 3) == "paid"
"""


@pytest.mark.parametrize("place", ["WorkflowEnvironment", "PostgresEnvironment"])
def test_fixture_runs_the_same_test_by_a_flag(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "test_pay.py").write_text(TEST_FILE)
    flags = ["--durable-crash"]
    if place == "PostgresEnvironment":
        flags += ["--durable-dsn", request.getfixturevalue("dsn")]

    # By its module, as an installation may be older than the entry point.
    plugin = ["-p", "no:durable", "-p", "durable.testing.plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-o", "asyncio_mode=auto"]
    command += ["-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(
        [*command, "-W", "error", *plugin, *flags, "test_pay.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ON {place}" in done.stdout
