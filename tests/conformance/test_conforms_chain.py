"""Requirements on continue-as-new and on the retries of whole workflows."""

import asyncio

import pytest

from durable import RetryPolicy, activity, workflow
from durable.errors import WorkflowFailedError, WorkflowNotFoundError
from durable.testing import WorkflowEnvironment


@activity.defn
async def note(text: str) -> str:
    return text


@workflow.defn
async def countdown(number: int) -> str:
    await note(str(number))
    if number:
        workflow.continue_as_new(number - 1)
    return "lift-off"


async def test_chain_01(env: WorkflowEnvironment) -> None:
    """chain-1: The result of a chain is that of its last run."""
    handle = await env.start(countdown, 3)
    assert await handle.result() == "lift-off"
    assert len(await handle.histories()) == 4


async def test_chain_02(env: WorkflowEnvironment) -> None:
    """chain-2: Each run has the arguments it was given and a history of its own."""
    handle = await env.start(countdown, 2)
    await handle.result()
    histories = await handle.histories()
    assert [history.activities[0].args for history in histories] == [["2"], ["1"], ["0"]]
    assert [len(history.activities) for history in histories] == [1, 1, 1]


async def test_chain_03(env: WorkflowEnvironment) -> None:
    """chain-3: The workflow id stays, the run id changes, and each run knows the one before."""

    @workflow.defn
    async def flow(ids: list[str]) -> list[list[str | None]]:
        info = workflow.info()
        ids = [*ids, info.workflow_id, info.run_id, info.continued_from or ""]
        if len(ids) < 6:
            workflow.continue_as_new(ids)
        return [[ids[0], ids[3]], [ids[1], ids[5]], [ids[4]]]

    same, before, (last,) = await env.execute(flow, [])
    assert same[0] == same[1]
    assert before[0] == before[1] != last


async def test_chain_04(env: WorkflowEnvironment) -> None:
    """chain-4: Signals that nobody took are there in the next run, in order."""

    @workflow.defn
    async def flow(is_second: bool = False) -> list[int]:
        if not is_second:
            await workflow.wait_signal("go on")
            workflow.continue_as_new(True)
        return [await workflow.wait_signal("number", int) for _ in range(3)]

    handle = await env.start(flow)
    for number in (1, 2, 3):
        await handle.signal("number", number)
    await handle.signal("go on")
    assert await handle.result() == [1, 2, 3]


async def test_chain_05(env: WorkflowEnvironment) -> None:
    """chain-5: No signal is lost to a run that continues as new again and again."""

    @workflow.defn
    async def entity(total: int = 0, taken: int = 0) -> int:
        for _ in range(3):
            total += await workflow.wait_signal("add", int)
            taken += 1
            if taken == 30:
                return total
        workflow.continue_as_new(total, taken)

    handle = await env.start(entity)
    for number in range(30):
        await handle.signal("add", number)
    assert await handle.result() == sum(range(30))


async def test_chain_06(env: WorkflowEnvironment) -> None:
    """chain-6: A run may go on as another workflow."""

    @workflow.defn
    async def flow(number: int) -> str:
        workflow.continue_as_new(number, workflow=countdown)

    assert await env.execute(flow, 1) == "lift-off"


async def test_chain_07(env: WorkflowEnvironment) -> None:
    """chain-7: A memo can be given to the next run, and stays when it is not."""

    @workflow.defn
    async def flow(turn: int = 0) -> dict[str, object]:
        if turn == 0:
            workflow.continue_as_new(1, memo={"page": 7})
        if turn == 1:
            workflow.continue_as_new(2)
        return dict(workflow.info().memo)

    assert await env.execute(flow) == {"page": 7}


async def test_chain_08(env: WorkflowEnvironment) -> None:
    """chain-8: Code that catches every Exception does not stop continue_as_new."""

    @workflow.defn
    async def flow(turn: int = 0) -> str:
        try:
            if turn == 0:
                workflow.continue_as_new(1)
        except Exception:
            return "stopped"
        return "went on"

    assert await env.execute(flow) == "went on"


async def test_chain_09(env: WorkflowEnvironment) -> None:
    """chain-9: What a run left open ends with it: timers do not fire in the next run."""

    @workflow.defn
    async def flow(turn: int = 0) -> str:
        if turn == 0:
            asyncio.get_running_loop().call_later(0.05, lambda: None)
            workflow.continue_as_new(1)
        await asyncio.sleep(0.1)
        return "quiet"

    handle = await env.start(flow)
    assert await handle.result() == "quiet"
    assert len((await handle.history()).timers) == 1


async def test_chain_10(env: WorkflowEnvironment) -> None:
    """chain-10: Arguments that do not fit are refused where it is called."""

    @workflow.defn
    async def flow(number: int) -> str:
        try:
            workflow.continue_as_new()
        except Exception as error:
            return type(error).__name__

    assert await env.execute(flow, 1) == "InvalidArgumentError"


async def test_chain_11(env: WorkflowEnvironment) -> None:
    """chain-11: A chain of fifty runs ends."""
    assert await env.execute(countdown, 49) == "lift-off"


async def test_chain_12(env: WorkflowEnvironment) -> None:
    """chain-12: Cancelling by workflow id reaches the run that is open."""

    @workflow.defn
    async def flow(turn: int = 0) -> str:
        if turn < 2:
            workflow.continue_as_new(turn + 1)
        await note("waits")
        try:
            await workflow.wait_signal("never")
        except asyncio.CancelledError:
            return f"cancelled in turn {turn}"
        return "never"

    handle = await env.start(flow, id="chain")
    while "ACTIVITY_COMPLETED" not in (await handle.history()).kinds:
        await asyncio.sleep(0)
    await env.get_handle("chain").cancel()
    assert await handle.result() == "cancelled in turn 2"


async def test_chain_13(env: WorkflowEnvironment) -> None:
    """chain-13: A workflow with a retry policy is started again when it fails."""

    @workflow.defn(retry=RetryPolicy(initial_interval=0.01, max_interval=0.01, max_attempts=3))
    async def flow() -> int:
        if workflow.info().attempt < 3:
            raise RuntimeError("not yet")
        return workflow.info().attempt

    assert await env.execute(flow) == 3


async def test_chain_14(env: WorkflowEnvironment) -> None:
    """chain-14: When its attempts are used up, the workflow fails with the last error."""

    @workflow.defn(retry=RetryPolicy(initial_interval=0.01, max_interval=0.01, max_attempts=2))
    async def flow() -> int:
        raise RuntimeError(f"attempt {workflow.info().attempt}")

    with pytest.raises(WorkflowFailedError, match="attempt 2"):
        await env.execute(flow)


async def test_chain_15(env: WorkflowEnvironment) -> None:
    """chain-15: A workflow without a retry policy fails at its first error."""
    seen: list[int] = []

    @workflow.defn
    async def flow() -> None:
        seen.append(1)
        raise RuntimeError("once")

    with pytest.raises(WorkflowFailedError):
        await env.execute(flow)
    handle = env.get_handle("flow-1")
    assert len(await handle.histories()) == 1


async def test_chain_16(env: WorkflowEnvironment) -> None:
    """chain-16: A chain that has ended takes no signal."""
    handle = await env.start(countdown, 2)
    await handle.result()
    with pytest.raises(WorkflowNotFoundError):
        await handle.signal("late")


async def test_chain_17(env: WorkflowEnvironment) -> None:
    """chain-17: Handlers of a class run work in every run of its chain."""

    @workflow.defn
    class Counter:
        def __init__(self) -> None:
            self.total = 0
            self.is_over = False

        @workflow.run
        async def run(self, total: int = 0) -> int:
            self.total = total
            start = total
            await workflow.wait_condition(lambda: self.total >= start + 2 or self.is_over)
            if not self.is_over:
                workflow.continue_as_new(self.total)
            return self.total

        @workflow.signal
        def add(self) -> None:
            self.total += 1

        @workflow.signal
        def stop(self) -> None:
            self.is_over = True

    handle = await env.start(Counter)
    for _ in range(4):
        await handle.signal("add")
        await handle.vars()
    await handle.signal("stop")
    assert await handle.result() == 4


async def test_chain_18(env: WorkflowEnvironment) -> None:
    """chain-18: A run is told when its history is long enough to continue as new."""

    @workflow.defn
    async def flow() -> bool:
        await note("a step")
        return workflow.should_continue_as_new() or workflow.history_length() < 3

    assert await env.execute(flow) is False
