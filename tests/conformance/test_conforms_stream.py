"""Requirements on streams that activities write."""

import asyncio
from typing import Any

from durable import ActivityNotFoundError, RetryPolicy, activity, workflow
from durable.testing import WorkflowEnvironment


@activity.defn(retry=RetryPolicy(initial_interval=0.01, max_attempts=2))
async def speak(words: list[str]) -> int:
    tokens = activity.stream("tokens")
    for word in words:
        await tokens.write(word)
    if words[-1] == "again" and activity.info().attempt == 1:
        raise RuntimeError("again")
    return len(words)


@activity.defn
def speak_sync(words: list[str]) -> int:
    tokens = activity.stream("tokens")
    for word in words:
        tokens.write_sync(word)
    return len(words)


@activity.defn(executor="process")
def speak_elsewhere(words: list[str]) -> int:
    tokens = activity.stream("tokens")
    for word in words:
        tokens.write_sync(word)
    tokens.close_sync()
    return len(words)


@workflow.defn
async def speaker(words: list[str]) -> int:
    return await speak(words)


@workflow.defn
async def sync_speaker(words: list[str]) -> int:
    return await speak_sync(words)


@workflow.defn
async def speaker_elsewhere(words: list[str]) -> int:
    return await speak_elsewhere(words)


async def written(env: WorkflowEnvironment, flow: Any, words: list[str], after: int = 0) -> Any:
    handle = await env.start(flow, words)
    assert await handle.result() == len(words)
    return [
        (item.offset, item.value, item.attempt)
        async for item in handle.stream("tokens", after=after)
    ]


async def test_stream_01(env: WorkflowEnvironment) -> None:
    """stream-1: What an activity writes is read in its order, and all of it is there at its end."""
    assert await written(env, speaker, ["a", "b"]) == [(1, "a", 1), (2, "b", 1)]


async def test_stream_02(env: WorkflowEnvironment) -> None:
    """stream-2: A reader goes on behind an offset."""
    assert await written(env, speaker, ["a", "b", "c"], after=1) == [(2, "b", 1), (3, "c", 1)]


async def test_stream_03(env: WorkflowEnvironment) -> None:
    """stream-3: What an attempt wrote stays when it fails; items say which attempt wrote them."""
    assert await written(env, speaker, ["again"]) == [(1, "again", 1), (2, "again", 2)]


async def test_stream_04(env: WorkflowEnvironment) -> None:
    """stream-4: A sync activity writes from where it runs."""
    assert await written(env, sync_speaker, ["a", "b"]) == [(1, "a", 1), (2, "b", 1)]


async def test_stream_05(env: WorkflowEnvironment) -> None:
    """stream-5: An activity in a process of its own writes as one on a thread does."""
    assert await written(env, speaker_elsewhere, ["a", "b"]) == [(1, "a", 1), (2, "b", 1)]


async def test_stream_06(env: WorkflowEnvironment) -> None:
    """stream-6: An attempt that is over its time adds nothing more; the next one writes."""
    refused: list[str] = []

    @activity.defn(start_to_close_timeout=1, retry=RetryPolicy(initial_interval=0.01))
    async def stubborn() -> None:
        tokens = activity.stream("tokens")
        await tokens.write("first")
        if activity.info().attempt > 1:
            return
        try:
            await env.hang()
        except asyncio.CancelledError:
            try:
                await tokens.write("late")
            except ActivityNotFoundError as error:
                refused.append(str(error))
            raise

    @workflow.defn
    async def flow() -> None:
        await stubborn()

    handle = await env.start(flow)
    await handle.result()
    items = [(item.value, item.attempt) async for item in handle.stream("tokens")]
    assert len(refused) == 1
    assert "lost its activity" in refused[0]
    assert {value for value, _ in items} == {"first"}
    assert items[-1][1] > 1
