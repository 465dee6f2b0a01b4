"""Requirements on time: sleeping, racing, cancelling timers."""

import asyncio
from datetime import timedelta

import pytest

from durable import ConfigurationError, activity, workflow
from durable.testing import WorkflowEnvironment


@activity.defn
async def quick() -> str:
    return "quick"


async def test_timer_01(env: WorkflowEnvironment) -> None:
    """timer-1: A sleep lasts as long as it says, by the run's own clock."""

    @workflow.defn
    async def flow() -> bool:
        before = workflow.now()
        await workflow.sleep(0.05)
        return workflow.now() - before >= timedelta(seconds=0.05)

    handle = await env.start(flow)
    assert await handle.result() is True
    assert [timer.outcome for timer in (await handle.history()).timers] == ["fired"]


async def test_timer_02(env: WorkflowEnvironment) -> None:
    """timer-2: Sleeps follow each other."""

    @workflow.defn
    async def flow() -> bool:
        before = workflow.now()
        await workflow.sleep(0.03)
        await workflow.sleep(0.03)
        return workflow.now() - before >= timedelta(seconds=0.06)

    assert await env.execute(flow) is True


async def test_timer_03(skipping: WorkflowEnvironment) -> None:
    """timer-3: Durations are seconds or timedeltas; an hour is an hour."""

    @workflow.defn
    async def flow() -> None:
        await workflow.sleep(1800)
        await workflow.sleep(timedelta(minutes=30))

    begin = skipping.now
    await skipping.execute(flow)
    assert skipping.now - begin == timedelta(hours=1)


async def test_timer_04(env: WorkflowEnvironment) -> None:
    """timer-4: A sleep of zero or less is over at once and leaves no trace."""

    @workflow.defn
    async def flow() -> str:
        await workflow.sleep(0)
        await workflow.sleep(-5)
        await asyncio.sleep(0)
        return "done"

    handle = await env.start(flow)
    assert await handle.result() == "done"
    assert not (await handle.history()).timers


async def test_timer_05(skipping: WorkflowEnvironment) -> None:
    """timer-5: A run sleeps until a time; a naive one is UTC."""

    @workflow.defn
    async def flow() -> str:
        await workflow.sleep_until(workflow.start_time() + timedelta(days=3))
        await workflow.sleep_until((workflow.now() + timedelta(days=4)).replace(tzinfo=None))
        return str(workflow.now() - workflow.start_time())

    assert await skipping.execute(flow) == "7 days, 0:00:00"


async def test_timer_06(env: WorkflowEnvironment) -> None:
    """timer-6: Sleeping until a time that is past is over at once."""

    @workflow.defn
    async def flow() -> str:
        await workflow.sleep_until(workflow.now() - timedelta(days=1))
        return "done"

    handle = await env.start(flow)
    assert await handle.result() == "done"
    assert not (await handle.history()).timers


async def test_timer_07(env: WorkflowEnvironment) -> None:
    """timer-7: asyncio.sleep is a durable timer."""

    @workflow.defn
    async def flow() -> str:
        return await asyncio.sleep(0.02, "slept")

    handle = await env.start(flow)
    assert await handle.result() == "slept"
    assert len((await handle.history()).timers) == 1


async def test_timer_08(skipping: WorkflowEnvironment) -> None:
    """timer-8: A run may sleep for ten years."""

    @workflow.defn
    async def flow() -> int:
        await workflow.sleep(timedelta(days=3653))
        return workflow.now().year

    assert await skipping.execute(flow) == skipping.now.year


async def test_timer_09(env: WorkflowEnvironment) -> None:
    """timer-9: In a race with an activity the loser is cancelled, and history says so."""

    @workflow.defn
    async def flow() -> str:
        async with asyncio.timeout(3600):
            return await quick()

    handle = await env.start(flow)
    assert await handle.result() == "quick"
    assert [timer.outcome for timer in (await handle.history()).timers] in ([], ["cancelled"])


async def test_timer_10(env: WorkflowEnvironment) -> None:
    """timer-10: A cancelled timer never fires."""

    @workflow.defn
    async def flow() -> list[str]:
        fired: list[str] = []

        async def tick(name: str, delay: float) -> None:
            await workflow.sleep(delay)
            fired.append(name)

        doomed = asyncio.create_task(tick("doomed", 0.05))
        other = asyncio.create_task(tick("other", 0.1))
        await asyncio.sleep(0)
        doomed.cancel()
        await other
        return fired

    handle = await env.start(flow)
    assert await handle.result() == ["other"]
    outcomes = [timer.outcome for timer in (await handle.history()).timers]
    assert outcomes == ["cancelled", "fired"]


async def test_timer_11(skipping: WorkflowEnvironment) -> None:
    """timer-11: Timers due at the same time fire in the order they were started."""

    @workflow.defn
    async def flow() -> list[int]:
        fired: list[int] = []

        async def tick(number: int) -> None:
            await asyncio.sleep(10)
            fired.append(number)

        await asyncio.gather(*(tick(number) for number in range(20)))
        return fired

    assert await skipping.execute(flow) == list(range(20))


async def test_timer_12(env: WorkflowEnvironment) -> None:
    """timer-12: Timers fire in the order they are due, not in the order they were started."""

    @workflow.defn
    async def flow() -> list[float]:
        fired: list[float] = []

        async def tick(delay: float) -> None:
            await asyncio.sleep(delay)
            fired.append(delay)

        await asyncio.gather(tick(0.3), tick(0.02), tick(0.15))
        return fired

    assert await env.execute(flow) == [0.02, 0.15, 0.3]


async def test_timer_13(env: WorkflowEnvironment) -> None:
    """timer-13: The run's clock stands still between two awaits."""

    @workflow.defn
    async def flow() -> bool:
        first = workflow.now()
        for _ in range(10_000):
            pass
        return workflow.now() == first

    assert await env.execute(flow) is True


async def test_timer_14(env: WorkflowEnvironment) -> None:
    """timer-14: The loop's own time is the run's time."""

    @workflow.defn
    async def flow() -> bool:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await asyncio.sleep(0.05)
        return loop.time() - before >= 0.049

    assert await env.execute(flow) is True


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), timedelta(days=900_000)], ids=str)
async def test_timer_15(env: WorkflowEnvironment, wrong: float | timedelta) -> None:
    """timer-15: What is no duration is refused at the call."""

    @workflow.defn
    async def flow() -> str:
        try:
            await workflow.sleep(wrong)
        except ConfigurationError:
            return "refused"
        return "slept"

    assert await env.execute(flow) == "refused"


async def test_timer_16(env: WorkflowEnvironment) -> None:
    """timer-16: A periodic loop neither drifts nor stalls: due times are computed, not added up."""

    @workflow.defn
    async def flow() -> list[bool]:
        begin = workflow.start_time()
        late = []
        for turn in range(1, 4):
            due = begin + turn * timedelta(seconds=0.05)
            await workflow.sleep_until(due)
            late.append(workflow.now() >= due)
        return late

    assert await env.execute(flow) == [True, True, True]


async def test_timer_17(env: WorkflowEnvironment) -> None:
    """timer-17: call_later and call_at of the loop are durable too."""

    @workflow.defn
    async def flow() -> str:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()
        loop.call_later(0.02, done.set_result, "called")
        return await done

    assert await env.execute(flow) == "called"


async def test_timer_18(env: WorkflowEnvironment) -> None:
    """timer-18: Two hundred timers of one run all fire."""

    @workflow.defn
    async def flow() -> int:
        await asyncio.gather(*(asyncio.sleep(0.05) for _ in range(200)))
        return len(asyncio.all_tasks())

    assert await env.execute(flow) == 1
