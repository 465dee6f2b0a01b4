"""Requirements on bounded parallel map, and on sagas."""

import asyncio

import pytest

from durable import (
    ActivityError,
    ConfigurationError,
    MapFailedError,
    NonRetryable,
    activity,
    workflow,
)
from durable.errors import WorkflowFailedError
from durable.testing import WorkflowEnvironment


@activity.defn
async def double(number: int) -> int:
    if number < 0:
        raise NonRetryable(f"no {number}")
    return number * 2


def shown(results: list[int | BaseException]) -> list[str]:
    """Results as texts: errors by their type."""
    return [str(each) if isinstance(each, int) else type(each).__name__ for each in results]


async def test_map_01(env: WorkflowEnvironment) -> None:
    """map-1: Results come in the order of the items."""

    @workflow.defn
    async def flow() -> list[str]:
        return shown(await workflow.map(double, [3, 1, 2]))

    assert await env.execute(flow) == ["6", "2", "4"]


async def test_map_02(env: WorkflowEnvironment) -> None:
    """map-2: An empty list maps to an empty list, and nothing is scheduled."""

    @workflow.defn
    async def flow() -> int:
        return len(await workflow.map(double, []))

    handle = await env.start(flow)
    assert await handle.result() == 0
    assert not (await handle.history()).activities


async def test_map_03(env: WorkflowEnvironment) -> None:
    """map-3: No more than max_concurrency are under way at once."""
    running = most = 0

    @activity.defn
    async def busy(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await asyncio.sleep(0)
        running -= 1
        return number

    @workflow.defn
    async def flow() -> list[str]:
        return shown(await workflow.map(busy, list(range(20)), max_concurrency=4))

    assert await env.execute(flow) == [str(number) for number in range(20)]
    assert most == 4


async def test_map_04(env: WorkflowEnvironment) -> None:
    """map-4: A bound of zero is refused."""

    @workflow.defn
    async def flow() -> str:
        try:
            await workflow.map(double, [1], max_concurrency=0)
        except ConfigurationError:
            return "refused"
        return "accepted"

    assert await env.execute(flow) == "refused"


async def test_map_05(env: WorkflowEnvironment) -> None:
    """map-5: Without tolerance the first failure is raised."""

    @workflow.defn
    async def flow() -> list[str]:
        return shown(await workflow.map(double, [1, -1, 2]))

    with pytest.raises(WorkflowFailedError) as caught:
        await env.execute(flow)
    assert isinstance(caught.value.__cause__, ActivityError)


async def test_map_06(env: WorkflowEnvironment) -> None:
    """map-6: As many failures as are tolerated do not stop it; their errors take their places."""

    @workflow.defn
    async def flow() -> list[str]:
        return shown(await workflow.map(double, [1, -1, 2, -2], tolerate=2))

    assert await env.execute(flow) == ["2", "ActivityError", "4", "ActivityError"]


async def test_map_07(env: WorkflowEnvironment) -> None:
    """map-7: One failure more than is tolerated stops it."""

    @workflow.defn
    async def flow() -> list[str]:
        return shown(await workflow.map(double, [1, -1, 2, -2, -3], tolerate=2))

    with pytest.raises(WorkflowFailedError):
        await env.execute(flow)


async def test_map_08(env: WorkflowEnvironment) -> None:
    """map-8: Tolerance may be a share of the items; exactly that share does not stop it."""

    @workflow.defn
    async def flow(items: list[int]) -> list[str]:
        return shown(await workflow.map(double, items, tolerate=0.5))

    assert (await env.execute(flow, [1, -1, 2, -2])).count("ActivityError") == 2
    with pytest.raises(WorkflowFailedError):
        await env.execute(flow, [1, -1, -3, -2])


async def test_map_09(env: WorkflowEnvironment) -> None:
    """map-9: When it stops, what is under way is cancelled and what waits is never scheduled."""
    begun = asyncio.Event()

    @activity.defn
    async def slow(number: int) -> int:
        if number == 1:
            await begun.wait()
            raise NonRetryable("one")
        begun.set()
        await env.hang()
        return number

    @workflow.defn
    async def flow() -> str:
        try:
            await workflow.map(slow, [1, 2, 3, 4], max_concurrency=2)
        except ActivityError:
            return "stopped"
        return "done"

    handle = await env.start(flow)
    assert await handle.result() == "stopped"
    outcomes = [step.outcome for step in (await handle.history()).activities]
    assert outcomes == ["failed", "cancelled"]


async def test_map_10(env: WorkflowEnvironment) -> None:
    """map-10: What maps may be any async function, a child workflow too."""

    @workflow.defn
    async def squared(number: int) -> int:
        return number * number

    @workflow.defn
    async def flow() -> list[str]:
        return shown(await workflow.map(squared, [1, 2, 3]))

    assert await env.execute(flow) == ["1", "4", "9"]


async def test_map_11(env: WorkflowEnvironment) -> None:
    """map-11: Maps may be nested."""

    @workflow.defn
    async def flow() -> list[int]:
        async def row(base: int) -> int:
            found = await workflow.map(double, [base, base + 1], max_concurrency=1)
            return sum(each for each in found if isinstance(each, int))

        rows = await workflow.map(row, [0, 10], max_concurrency=2)
        return [each for each in rows if isinstance(each, int)]

    assert await env.execute(flow) == [2, 42]


async def test_map_12(env: WorkflowEnvironment) -> None:
    """map-12: A map of two hundred items ends, each done once."""
    mock = env.mock(double, 1)

    @workflow.defn
    async def flow() -> int:
        return len(await workflow.map(double, list(range(200)), max_concurrency=50))

    assert await env.execute(flow) == 200
    assert sorted(call[0][0] for call in mock.calls) == list(range(200))


async def test_map_13(env: WorkflowEnvironment) -> None:
    """map-13: A least number of successes lets as many fail as are not needed, and tries all."""

    @workflow.defn
    async def flow(items: list[int], least: int) -> list[str]:
        return shown(await workflow.map(double, items, min_successful=least))

    assert await env.execute(flow, [-1, 1, -2], 1) == ["ActivityError", "2", "ActivityError"]
    assert await env.execute(flow, [1, 2, 3], 1) == ["2", "4", "6"]


async def test_map_14(env: WorkflowEnvironment) -> None:
    """map-14: When so many cannot succeed any more the rest is stopped; the error counts."""
    begun = asyncio.Event()

    @activity.defn
    async def slow(number: int) -> int:
        if number == 1:
            await begun.wait()
            raise NonRetryable("one")
        begun.set()
        await env.hang()
        return number

    @workflow.defn
    async def flow() -> None:
        await workflow.map(slow, [1, 2, 3, 4], max_concurrency=2, min_successful=4)

    handle = await env.start(flow)
    with pytest.raises(WorkflowFailedError) as caught:
        await handle.result()
    error = caught.value.__cause__
    assert isinstance(error, MapFailedError)
    assert (error.succeeded, error.failed, error.needed, error.total) == (0, 1, 4, 4)
    assert isinstance(error.__cause__, ActivityError)
    outcomes = [step.outcome for step in (await handle.history()).activities]
    assert outcomes == ["failed", "cancelled"]


async def test_map_15(env: WorkflowEnvironment) -> None:
    """map-15: The least number of successes may be a share of the items; it excludes tolerate."""

    @workflow.defn
    async def flow(items: list[int]) -> list[str]:
        return shown(await workflow.map(double, items, min_successful=0.5))

    @workflow.defn
    async def both() -> str:
        try:
            await workflow.map(double, [1, 2], min_successful=1, tolerate=1)
        except ConfigurationError:
            return "refused"
        return "accepted"

    assert (await env.execute(flow, [1, -1, 2, -2])).count("ActivityError") == 2
    with pytest.raises(WorkflowFailedError, match="3 of 4"):
        await env.execute(flow, [1, -1, -3, -2])
    assert await env.execute(both) == "refused"


async def test_saga_01(env: WorkflowEnvironment) -> None:
    """saga-1: When a saga fails, what was done is undone, the last first."""
    done: list[str] = []

    @activity.defn
    async def do(what: str) -> None:
        if what == "fly":
            raise NonRetryable("no seats")
        done.append(what)

    @workflow.defn
    async def flow() -> None:
        async with workflow.Saga() as saga:
            for what in ("hotel", "car", "fly"):
                await do(what)
                saga.add(do, f"cancel {what}")

    with pytest.raises(WorkflowFailedError, match="no seats"):
        await env.execute(flow)
    assert done == ["hotel", "car", "cancel car", "cancel hotel"]


async def test_saga_02(env: WorkflowEnvironment) -> None:
    """saga-2: A saga that succeeds undoes nothing."""
    mock = env.mock(double, 1)

    @workflow.defn
    async def flow() -> str:
        async with workflow.Saga() as saga:
            await double(1)
            saga.add(double, 2)
        return "kept"

    assert await env.execute(flow) == "kept"
    assert mock.call_count == 1


async def test_saga_03(env: WorkflowEnvironment) -> None:
    """saga-3: A cancelled saga is undone too."""
    mock = env.mock(double, 1)

    @workflow.defn
    async def flow() -> None:
        async with workflow.Saga() as saga:
            await double(1)
            saga.add(double, 99)
            await workflow.wait_signal("never")

    handle = await env.start(flow)
    while "ACTIVITY_COMPLETED" not in (await handle.history()).kinds:
        await asyncio.sleep(0)
    await handle.cancel()
    with pytest.raises(Exception, match="cancel"):
        await handle.result()
    assert mock.calls[-1] == ((99,), {})


async def test_saga_04(env: WorkflowEnvironment) -> None:
    """saga-4: One compensation that fails does not keep the others from running."""
    undone: list[int] = []

    @activity.defn
    async def undo(number: int) -> None:
        if number == 2:
            raise NonRetryable("stuck")
        undone.append(number)

    @workflow.defn
    async def flow() -> None:
        async with workflow.Saga() as saga:
            for number in (1, 2, 3):
                saga.add(undo, number)
            raise ValueError("never mind")

    with pytest.raises(WorkflowFailedError) as caught:
        await env.execute(flow)
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert undone == [3, 1]
