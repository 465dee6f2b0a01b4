"""Generated asyncio programs: a tree of nested tuples, and what runs it.

Each node notes what it saw (the value or exception, and the run's time), so that two runs of a
program that differ in anything the code can see have different traces.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import strategies as st
from rig import Failed, Program, Rig

from durable.events import EventKind

Node = tuple[Any, ...]

NAMES = st.sampled_from(["a", "b", "c"])
DELAYS = st.sampled_from([0, 0.0015, 0.5, 3])
LEAVES = st.one_of(
    st.tuples(st.just("act"), NAMES),
    st.tuples(st.just("handle"), NAMES),
    st.tuples(st.just("sleep"), DELAYS),
    st.tuples(st.just("yield")),
    st.tuples(st.just("side"), NAMES),
    st.tuples(st.just("shared"), NAMES, st.integers(1, 3)),
    st.tuples(st.just("outlived"), NAMES, st.integers(0, 2)),
)


def branches(children: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(children, min_size=1, max_size=3).map(tuple)
    one = ["shield", "swallow", "return_in_finally", "spawn", "cancelled"]
    many = ["seq", "gather", "gather_errors", "race", "all", "completed", "group", "queue", "lock"]
    return st.one_of(
        st.tuples(st.sampled_from(many), several),
        st.tuples(st.sampled_from(one), children),
        st.tuples(st.sampled_from(["timeout", "wait_for"]), DELAYS, children),
        st.tuples(st.sampled_from(["finally", "event"]), children, children),
    )


NODES = st.recursive(LEAVES, branches, max_leaves=8)
CHOICES = st.lists(st.integers(0, 40), min_size=0, max_size=25)


def program_of(node: Node) -> Program:
    """The workflow function that runs a tree."""

    async def program(rig: Rig) -> Any:
        return await run(rig, node)

    return program


async def run(rig: Rig, node: Node) -> Any:
    """Run one node, and note how it ended."""
    try:
        value = await RUNNERS[node[0]](rig, *node[1:])
    except (Failed, TimeoutError, asyncio.CancelledError, BaseExceptionGroup) as error:
        rig.note(node[0], repr(error))
        raise
    rig.note(node[0], repr(value))
    return value


async def act(rig: Rig, name: str) -> Any:
    return await rig.act(name, 1)


async def handle(rig: Rig, name: str) -> Any:
    future = rig.act(name, 2)
    await asyncio.sleep(0)
    rig.note("handle", future.done())
    try:
        return await future
    finally:
        rig.note("handle", future.done(), future.cancelled())


async def sleep(rig: Rig, delay: float) -> None:
    await asyncio.sleep(delay)


async def pause(rig: Rig) -> None:
    await asyncio.sleep(0)


async def side(rig: Rig, name: str) -> bytes:
    return rig.loop.record(EventKind.SIDE_EFFECT, name, lambda: b"[1]")


async def shared(rig: Rig, name: str, count: int) -> Any:
    """Several tasks and a callback wait for one outcome."""
    future = rig.act(name, 3)
    future.add_done_callback(lambda done: rig.note("callback", done.cancelled()))

    async def wait(number: int) -> None:
        try:
            rig.note("shared", number, await asyncio.shield(future))
        except (Failed, asyncio.CancelledError) as error:
            rig.note("shared", number, repr(error))

    waiting = [asyncio.create_task(wait(number)) for number in range(count)]
    await asyncio.sleep(0)
    try:
        return await future
    finally:
        for task in waiting:
            task.cancel()


async def outlived(rig: Rig, name: str, hops: int) -> Any:
    """Two tasks wake for one outcome; the other one goes on to a second activity."""
    future = rig.act(name, 4)

    async def more() -> None:
        await asyncio.wait([future])
        for _ in range(hops):
            await asyncio.sleep(0)
        rig.note("outlived", repr(await rig.act(name, 5)))

    rig.loop.create_task(more())
    await asyncio.sleep(0)
    return await future


async def seq(rig: Rig, nodes: tuple[Node, ...]) -> list[Any]:
    return [await run(rig, node) for node in nodes]


async def gather(rig: Rig, nodes: tuple[Node, ...]) -> Any:
    return await asyncio.gather(*(run(rig, node) for node in nodes))


async def gather_errors(rig: Rig, nodes: tuple[Node, ...]) -> Any:
    results = await asyncio.gather(*(run(rig, node) for node in nodes), return_exceptions=True)
    return [repr(result) for result in results]


async def race(rig: Rig, nodes: tuple[Node, ...]) -> list[str]:
    racing = [asyncio.create_task(run(rig, node)) for node in nodes]
    try:
        done, pending = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in racing:
            task.cancel()
    rig.note("race", sorted(racing.index(task) for task in done))
    ended = await asyncio.gather(*pending, return_exceptions=True)
    return [repr(result) for result in ended]


async def wait_all(rig: Rig, nodes: tuple[Node, ...]) -> list[str]:
    tasks = [asyncio.create_task(run(rig, node)) for node in nodes]
    done, _ = await asyncio.wait(tasks)
    return [repr(task.exception()) if not task.cancelled() else "cancelled" for task in done]


async def completed(rig: Rig, nodes: tuple[Node, ...]) -> list[str]:
    seen = []
    for future in asyncio.as_completed([run(rig, node) for node in nodes]):
        try:
            seen.append(repr(await future))
        except (Failed, TimeoutError, BaseExceptionGroup) as error:
            seen.append(repr(error))
    return seen


async def group(rig: Rig, nodes: tuple[Node, ...]) -> int:
    async with asyncio.TaskGroup() as tasks:
        for node in nodes:
            tasks.create_task(run(rig, node))
    return len(nodes)


async def queue(rig: Rig, nodes: tuple[Node, ...]) -> list[Any]:
    items: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)

    async def produce() -> None:
        for node in nodes:
            try:
                await items.put(await run(rig, node))
            except (Failed, TimeoutError, BaseExceptionGroup) as error:
                await items.put(repr(error))

    producer = asyncio.create_task(produce())
    try:
        return [await items.get() for _ in nodes]
    finally:
        producer.cancel()


async def lock(rig: Rig, nodes: tuple[Node, ...]) -> Any:
    one = asyncio.Semaphore(1)

    async def alone(node: Node) -> Any:
        async with one:
            return await run(rig, node)

    return await asyncio.gather(*(alone(node) for node in nodes), return_exceptions=True)


async def shield(rig: Rig, node: Node) -> Any:
    return await asyncio.shield(run(rig, node))


async def swallow(rig: Rig, node: Node) -> str:
    try:
        return repr(await run(rig, node))
    except BaseException as error:
        if isinstance(error, GeneratorExit):
            raise
        return repr(error)


async def return_in_finally(rig: Rig, node: Node) -> Any:
    try:
        await run(rig, node)
    finally:
        return await rig.act("cleanup")  # noqa: B012


async def spawn(rig: Rig, node: Node) -> None:
    """A task nobody waits for."""
    task = asyncio.create_task(run(rig, node))
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


async def cancelled(rig: Rig, node: Node) -> Any:
    task = asyncio.create_task(run(rig, node))
    await asyncio.sleep(0)
    task.cancel("no more")
    return await asyncio.gather(task, return_exceptions=True)


async def timeout(rig: Rig, delay: float, node: Node) -> Any:
    async with asyncio.timeout(delay):
        return await run(rig, node)


async def wait_for(rig: Rig, delay: float, node: Node) -> Any:
    return await asyncio.wait_for(run(rig, node), delay)


async def with_finally(rig: Rig, node: Node, last: Node) -> Any:
    try:
        return await run(rig, node)
    finally:
        await run(rig, last)


async def event(rig: Rig, node: Node, after: Node) -> Any:
    set_it = asyncio.Event()

    async def setter() -> None:
        try:
            await run(rig, node)
        finally:
            set_it.set()

    task = asyncio.create_task(setter())
    await set_it.wait()
    result = await run(rig, after)
    await asyncio.gather(task, return_exceptions=True)
    return result


RUNNERS: dict[str, Any] = {
    "act": act,
    "handle": handle,
    "sleep": sleep,
    "yield": pause,
    "side": side,
    "shared": shared,
    "outlived": outlived,
    "seq": seq,
    "gather": gather,
    "gather_errors": gather_errors,
    "race": race,
    "all": wait_all,
    "completed": completed,
    "group": group,
    "queue": queue,
    "lock": lock,
    "shield": shield,
    "swallow": swallow,
    "return_in_finally": return_in_finally,
    "spawn": spawn,
    "cancelled": cancelled,
    "timeout": timeout,
    "wait_for": wait_for,
    "finally": with_finally,
    "event": event,
}
