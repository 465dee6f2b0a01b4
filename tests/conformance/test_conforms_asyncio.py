"""Requirements on plain asyncio in workflows: its order is a function of history alone."""

import asyncio
import contextvars
from collections.abc import AsyncIterator

from durable import activity, workflow
from durable.errors import ActivityError, NonRetryable
from durable.testing import WorkflowEnvironment


@activity.defn
async def double(number: int) -> int:
    if number < 0:
        raise NonRetryable(f"no {number}")
    return number * 2


async def test_asyncio_01(env: WorkflowEnvironment) -> None:
    """asyncio-1: gather returns results in the order of its arguments, not of completion."""

    @workflow.defn
    async def flow() -> list[str]:
        async def after(delay: float, name: str) -> str:
            await asyncio.sleep(delay)
            return name

        return await asyncio.gather(after(0.1, "slow"), after(0.02, "fast"), after(0, "now"))

    assert await env.execute(flow) == ["slow", "fast", "now"]


async def test_asyncio_02(env: WorkflowEnvironment) -> None:
    """asyncio-2: gather may return exceptions in place of results."""

    @workflow.defn
    async def flow() -> list[str]:
        found = await asyncio.gather(double(1), double(-1), double(2), return_exceptions=True)
        return [type(each).__name__ for each in found]

    assert await env.execute(flow) == ["int", "ActivityError", "int"]


async def test_asyncio_03(env: WorkflowEnvironment) -> None:
    """asyncio-3: gather raises the first error at once; the others go on."""

    @workflow.defn
    async def flow() -> list[object]:
        slow = asyncio.create_task(asyncio.sleep(0.1, "slow"))
        try:
            await asyncio.gather(slow, double(-1))
        except ActivityError:
            return [slow.done(), await slow]
        return []

    assert await env.execute(flow) == [False, "slow"]


async def test_asyncio_04(env: WorkflowEnvironment) -> None:
    """asyncio-4: wait returns when the first is done; the rest can be cancelled."""

    @workflow.defn
    async def flow() -> list[object]:
        tasks = [
            asyncio.create_task(asyncio.sleep(delay, name))
            for delay, name in ((3600, "slow"), (0.02, "fast"))
        ]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        return [[task.result() for task in done], len(pending)]

    assert await env.execute(flow) == [["fast"], 1]


async def test_asyncio_05(env: WorkflowEnvironment) -> None:
    """asyncio-5: wait may return at the first exception, or after a timeout."""

    @workflow.defn
    async def flow() -> list[int]:
        async def fail() -> None:
            await asyncio.sleep(0.02)
            raise ValueError("first")

        tasks = [asyncio.create_task(asyncio.sleep(3600)), asyncio.create_task(fail())]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        assert isinstance(next(iter(done)).exception(), ValueError)
        none_yet, _ = await asyncio.wait(pending, timeout=0.02)
        tasks[0].cancel()
        return [len(done), len(pending), len(none_yet)]

    assert await env.execute(flow) == [1, 1, 0]


async def test_asyncio_06(env: WorkflowEnvironment) -> None:
    """asyncio-6: as_completed yields in the order of completion."""

    @workflow.defn
    async def flow() -> list[float]:
        waits = [asyncio.sleep(delay, delay) for delay in (0.25, 0.02, 0.12)]
        return [await each for each in asyncio.as_completed(waits)]

    assert await env.execute(flow) == [0.02, 0.12, 0.25]


async def test_asyncio_07(env: WorkflowEnvironment) -> None:
    """asyncio-7: A TaskGroup waits for all of its tasks."""

    @workflow.defn
    async def flow() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(double(number)) for number in range(5)]
        return [task.result() for task in tasks]

    assert await env.execute(flow) == [0, 2, 4, 6, 8]


async def test_asyncio_08(env: WorkflowEnvironment) -> None:
    """asyncio-8: When a task of a group fails the others are cancelled, and a group is raised."""

    @workflow.defn
    async def flow() -> list[str]:
        said: list[str] = []

        async def sleeper() -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                said.append("cancelled")
                raise

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(sleeper())
                group.create_task(double(-1))
        except* ActivityError as errors:
            said += [str(error.__cause__) for error in errors.exceptions]
        return said

    assert await env.execute(flow) == ["cancelled", "no -1"]


async def test_asyncio_09(env: WorkflowEnvironment) -> None:
    """asyncio-9: wait_for returns the result in time, or raises TimeoutError and cancels."""

    @workflow.defn
    async def flow() -> list[object]:
        found: list[object] = [await asyncio.wait_for(double(4), 3600)]
        try:
            await asyncio.wait_for(asyncio.sleep(3600), 0.05)
        except TimeoutError:
            found.append("too slow")
        return found

    assert await env.execute(flow) == [8, "too slow"]


async def test_asyncio_10(env: WorkflowEnvironment) -> None:
    """asyncio-10: A semaphore bounds what runs at once."""

    @workflow.defn
    async def flow() -> int:
        gate, running, most = asyncio.Semaphore(3), 0, 0

        async def one(number: int) -> None:
            nonlocal running, most
            async with gate:
                running += 1
                most = max(most, running)
                await double(number)
                running -= 1

        await asyncio.gather(*(one(number) for number in range(10)))
        return most

    assert await env.execute(flow) == 3


async def test_asyncio_11(env: WorkflowEnvironment) -> None:
    """asyncio-11: A queue joins producers and consumers."""

    @workflow.defn
    async def flow() -> list[int]:
        queue: asyncio.Queue[int | None] = asyncio.Queue(maxsize=2)
        got: list[int] = []

        async def consume() -> None:
            while (number := await queue.get()) is not None:
                got.append(await double(number))

        consumer = asyncio.create_task(consume())
        for number in range(5):
            await queue.put(number)
        await queue.put(None)
        await consumer
        return got

    assert await env.execute(flow) == [0, 2, 4, 6, 8]


async def test_asyncio_12(env: WorkflowEnvironment) -> None:
    """asyncio-12: A lock is given in the order it was asked for."""

    @workflow.defn
    async def flow() -> list[int]:
        lock, order = asyncio.Lock(), []

        async def one(number: int) -> None:
            async with lock:
                order.append(number)
                await double(number)

        await asyncio.gather(*(one(number) for number in range(6)))
        return order

    assert await env.execute(flow) == [0, 1, 2, 3, 4, 5]


async def test_asyncio_13(env: WorkflowEnvironment) -> None:
    """asyncio-13: Events and conditions wake who waits for them."""

    @workflow.defn
    async def flow() -> list[str]:
        event, condition, log = asyncio.Event(), asyncio.Condition(), []

        async def by_event() -> None:
            await event.wait()
            log.append("event")

        async def by_condition() -> None:
            async with condition:
                await condition.wait()
                log.append("condition")

        tasks = [asyncio.create_task(by_event()), asyncio.create_task(by_condition())]
        await double(1)
        event.set()
        await asyncio.sleep(0)
        async with condition:
            condition.notify_all()
        await asyncio.gather(*tasks)
        return log

    assert await env.execute(flow) == ["event", "condition"]


async def test_asyncio_14(env: WorkflowEnvironment) -> None:
    """asyncio-14: Context variables belong to their task."""
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="main")

    @workflow.defn
    async def flow() -> list[str]:
        async def one(value: str) -> str:
            name.set(value)
            await double(1)
            return name.get()

        return [*await asyncio.gather(one("a"), one("b")), name.get()]

    assert await env.execute(flow) == ["a", "b", "main"]


async def test_asyncio_15(env: WorkflowEnvironment) -> None:
    """asyncio-15: Async generators and async context managers work across awaits."""

    @workflow.defn
    async def flow() -> list[int]:
        async def pages() -> AsyncIterator[int]:
            for number in range(3):
                yield await double(number)
                await asyncio.sleep(0.01)

        return [page async for page in pages()]

    assert await env.execute(flow) == [0, 2, 4]


async def test_asyncio_16(env: WorkflowEnvironment) -> None:
    """asyncio-16: Gathering nothing is over at once."""

    @workflow.defn
    async def flow() -> list[int]:
        return await asyncio.gather()

    assert await env.execute(flow) == []


async def test_asyncio_17(env: WorkflowEnvironment) -> None:
    """asyncio-17: Branches of different kinds run side by side and keep their types."""

    @workflow.defn
    async def child(number: int) -> str:
        return f"child {number}"

    @workflow.defn
    async def flow() -> list[object]:
        return list(
            await asyncio.gather(
                double(1), child(2), asyncio.sleep(0.02, 3), workflow.wait_signal("four", int)
            )
        )

    handle = await env.start(flow)
    await handle.signal("four", 4)
    assert await handle.result() == [2, "child 2", 3, 4]


async def test_asyncio_18(env: WorkflowEnvironment) -> None:
    """asyncio-18: Gathers may be nested."""

    @workflow.defn
    async def flow() -> list[list[int]]:
        async def row(base: int) -> list[int]:
            return await asyncio.gather(*(double(base + number) for number in range(3)))

        return await asyncio.gather(*(row(base) for base in (0, 10)))

    assert await env.execute(flow) == [[0, 2, 4], [20, 22, 24]]


async def test_asyncio_19(env: WorkflowEnvironment) -> None:
    """asyncio-19: What finished is not run again while a branch still waits."""
    mock = env.mock(double, 1)

    @workflow.defn
    async def flow() -> list[object]:
        return list(await asyncio.gather(double(1), double(2), workflow.wait_signal("third", str)))

    handle = await env.start(flow)
    while (await handle.history()).kinds.count("ACTIVITY_COMPLETED") < 2:
        await asyncio.sleep(0)
    await handle.signal("third", "now")
    assert await handle.result() == [1, 1, "now"]
    assert mock.call_count == 2


async def test_asyncio_20(env: WorkflowEnvironment) -> None:
    """asyncio-20: Tasks nobody waits for end with the run."""

    @workflow.defn
    async def flow() -> str:
        lost = asyncio.create_task(asyncio.sleep(3600))
        await double(1)
        return "done" if not lost.done() else "what?"

    handle = await env.start(flow)
    assert await handle.result() == "done"


async def test_asyncio_21(env: WorkflowEnvironment) -> None:
    """asyncio-21: A race of a signal, a timer and an activity has one winner in every replay."""

    @workflow.defn
    async def flow() -> str:
        tasks = {
            "signal": asyncio.create_task(workflow.wait_signal("stop")),
            "timer": asyncio.create_task(asyncio.sleep(3600)),
            "activity": asyncio.create_task(double(1)),
        }
        await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
        (winner,) = (name for name, task in tasks.items() if task.done())
        for task in tasks.values():
            task.cancel()
        await asyncio.sleep(0.02)
        return winner

    assert await env.execute(flow) == "activity"


async def test_asyncio_22(env: WorkflowEnvironment) -> None:
    """asyncio-22: A run may stop at the first so many successes and cancel the rest."""

    @workflow.defn
    async def flow() -> list[int]:
        tasks = [
            asyncio.create_task(asyncio.sleep(delay, n))
            for n, delay in enumerate((3600, 0.2, 0.02, 3600))
        ]
        found = []
        for each in asyncio.as_completed(tasks):
            found.append(await each)
            if len(found) == 2:
                break
        for task in tasks:
            task.cancel()
        return found

    handle = await env.start(flow)
    assert await handle.result() == [2, 1]
    outcomes = [timer.outcome for timer in (await handle.history()).timers]
    assert sorted(map(str, outcomes)) == ["cancelled", "cancelled", "fired", "fired"]
