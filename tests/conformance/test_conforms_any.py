"""Requirements on dynamic workflows and activities: one for every name without code of its own."""

from datetime import timedelta
from typing import Any

import pytest

from durable import (
    ActivityError,
    Client,
    DefinitionError,
    InvalidArgumentError,
    RetryPolicy,
    Worker,
    WorkerOptions,
    WorkflowFailedError,
    activity,
    workflow,
)
from durable.engine.registry import Registry
from durable.errors import UnknownWorkflowError
from durable.testing import Replayer, WorkflowEnvironment


@workflow.defn(dynamic=True)
async def whatever(name: str, *args: Any, **options: Any) -> Any:
    info = workflow.info()
    if name == "calls":
        return await workflow.execute_activity("shout", *args)
    if name == "fails":
        await workflow.execute_activity(
            "breaks", retry=RetryPolicy(max_attempts=2, initial_interval=0.01)
        )
    return [name, info.name, *args, *options.values()]


@workflow.defn
async def plain(number: int) -> str:
    return f"plain {number}"


@workflow.defn
async def parent() -> list[Any]:
    child = workflow.start_child("stranger", 1, id="stranger-1")
    return [await child, await workflow.execute_child("plain", 2)]


@workflow.defn(name="continues")
async def continues() -> Any:
    workflow.continue_as_new(3, workflow="somebody else")


@activity.defn(dynamic=True)
async def anything(name: str, *args: Any) -> str:
    assert activity.info().name == name
    if name == "breaks":
        raise ValueError(f"attempt {activity.info().attempt}")
    return f"{name} of {', '.join(map(str, args))}"


@activity.defn
def whisper(word: str) -> str:
    return f"({word})"


@workflow.defn
async def caller() -> list[str]:
    return [
        await workflow.execute_activity("shout", "tea", 2),
        await workflow.execute_activity("whisper", "tea"),
        await whisper("coffee"),
    ]


WORKFLOWS = [whatever, plain, parent, continues, caller]
ACTIVITIES = [anything, whisper]


async def test_any_01(env: WorkflowEnvironment) -> None:
    """any-1: A run of a type without a workflow goes to the dynamic one, with its name first."""
    assert await env.execute("tea", 1, kind="green") == ["tea", "tea", 1, "green"]
    assert await env.execute("coffee") == ["coffee", "coffee"]


async def test_any_02(env: WorkflowEnvironment) -> None:
    """any-2: A workflow of that name comes first."""
    assert await env.execute("plain", 5) == "plain 5"


async def test_any_03(env: WorkflowEnvironment) -> None:
    """any-3: Children go to it by name, and what a run continues as."""
    assert await env.execute(parent) == [["stranger", "stranger", 1], "plain 2"]
    assert await env.execute(continues) == ["somebody else", "somebody else", 3]


async def test_any_04(env: WorkflowEnvironment) -> None:
    """any-4: An activity without code goes to the dynamic one, with its name; others come first."""
    assert await env.execute(caller) == ["shout of tea, 2", "(tea)", "(coffee)"]
    assert await env.execute("calls", "x") == "shout of x"


async def test_any_05(env: WorkflowEnvironment) -> None:
    """any-5: It is retried like any activity, and its failure has the name it was called by."""
    with pytest.raises(
        WorkflowFailedError, match="activity breaks failed after 2 attempts"
    ) as raised:
        await env.execute("fails")
    cause = raised.value.__cause__
    assert isinstance(cause, ActivityError)
    assert isinstance(cause.__cause__, ValueError)
    assert str(cause.__cause__) == "attempt 2"


async def test_any_06(env: WorkflowEnvironment) -> None:
    """any-6: Starting or calling the dynamic definition itself is refused: it says no name."""

    @workflow.defn
    async def calls_it() -> str:
        refused = []
        for step in (lambda: anything("shout"), lambda: whatever("tea")):
            try:
                await step()
            except InvalidArgumentError as error:
                refused.append(str(error))
        return " / ".join(refused)

    with pytest.raises(
        InvalidArgumentError, match=r"whatever is dynamic: .* say which, as a string"
    ):
        await env.start(whatever, "tea")
    answer = await env.execute(calls_it)
    assert "anything is dynamic" in answer
    assert "whatever is dynamic" in answer


@workflow.defn(dynamic=True)
class Desk:
    """Has handlers, and arguments at its making."""

    @workflow.init
    def __init__(self, name: str, limit: int = 1) -> None:
        self.name = name
        self.limit = limit
        self.heard = 0

    @workflow.run
    async def run(self, name: str, limit: int = 1) -> str:
        await workflow.wait_condition(lambda: self.heard >= self.limit)
        return f"{self.name} {limit}"

    @workflow.signal
    def hear(self) -> None:
        self.heard += 1

    @activity.defn(dynamic=True)
    def do(self, name: str, number: int = 0) -> str:
        return f"{name} {number}"


async def test_any_07() -> None:
    """any-7: Classes do it too: ``__init__``, handlers, and an activity that is a method."""
    async with WorkflowEnvironment(
        workflows=[Desk], activities=[Desk("", 0).do], crash_at_every_event=True
    ) as env:
        handle = await env.start("reception", 2)
        await handle.signal("hear")
        await handle.signal("hear")
        assert await handle.result() == "reception 2"


def test_any_08() -> None:
    """any-8: With a name, pinned, in a process, without the name parameter, or two: errors."""
    with pytest.raises(DefinitionError, match="leave name='x' out"):
        workflow.defn(name="x", dynamic=True)
    with pytest.raises(DefinitionError, match="leave name='x' out"):
        activity.defn(name="x", dynamic=True)
    with pytest.raises(DefinitionError, match="cannot be pinned"):

        @workflow.defn(dynamic=True, pinned=True, version="1")
        async def pinned(name: str) -> None: ...

    with pytest.raises(DefinitionError, match="process of its own"):

        @activity.defn(dynamic=True, executor="process")
        def far(name: str) -> None: ...

    with pytest.raises(DefinitionError, match="needs a first parameter"):

        @workflow.defn(dynamic=True)
        async def nameless() -> None: ...

    @activity.defn(dynamic=True)
    async def second(name: str) -> None: ...

    with pytest.raises(DefinitionError, match="two dynamic activity definitions"):
        Registry([whatever], [anything, second])


async def test_any_09(database: Any) -> None:
    """any-9: A client starts such types by name once a worker serves them, on that worker's queue;
    jobs too."""
    client = database.client
    with pytest.raises(UnknownWorkflowError, match="no workflow is called 'tea'"):
        await client.start("tea", id="a")
    async with Worker(database.dsn, workflows=[whatever], activities=[anything]):
        handle = await client.start("tea", 7, id="a")
        assert await handle.result(20) == ["tea", "tea", 7]
        job = await client.enqueue("paint", "wall")
        assert await job.result(20) == "paint of wall"
        assert (await handle.describe()).workflow_type == "tea"
        with pytest.raises(UnknownWorkflowError, match="no workflow is called 'tea@2'"):
            await client.start("tea@2", id="b")


async def test_any_10(database: Any) -> None:
    """any-10: Runs of pinned workflows, and jobs where only the workflow is dynamic, stay for those
    who have them."""

    @workflow.defn(version="2", pinned=True)
    async def kept() -> str:
        return "as it was"

    client = database.client
    async with Client.connect(database.dsn, workflows=[kept]) as knows:
        await knows.start(kept, id="kept")
        await knows.enqueue(whisper, "later", id="job")
    # Not the handles of that client, which is closed.
    waits, job = client.get_handle("kept"), client.get_handle("job")
    async with Worker(database.dsn, workflows=[whatever]):
        assert await (await client.start("tea", id="a")).result(20) == ["tea", "tea"]
        assert (await waits.describe()).event_batches == 1
        assert (await job.describe()).event_batches == 1
    async with Worker(database.dsn, workflows=[kept], activities=[whisper]):
        assert await waits.result(20) == "as it was"
        assert await job.result(20) == "(later)"


async def test_any_11(database: Any) -> None:
    """any-11: An activity that waits in a queue is taken by a worker whose dynamic one does it."""

    @workflow.defn
    async def sends() -> str:
        return await workflow.execute_activity(
            "far", 1, queue="far", schedule_to_close_timeout=timedelta(seconds=30)
        )

    async with Worker(database.dsn, workflows=[sends]):
        handle = await database.client.start(sends, id="a")
        options = WorkerOptions(queues=["far"])
        async with Worker(database.dsn, activities=[anything], options=options):
            assert await handle.result(20) == "far of 1"


async def test_any_12(env: WorkflowEnvironment) -> None:
    """any-12: Histories of such runs replay against the dynamic workflow, which they may part
    from; those of pinned ones find no code in it."""

    @workflow.defn(dynamic=True)
    async def changed(name: str, *args: Any) -> Any:
        return await workflow.execute_activity("whisper", *args)

    handle = await env.start("calls", "x")
    await handle.result()
    history = await handle.history()
    Replayer([whatever]).replay(history)
    mismatch = Replayer([changed]).mismatch(history)
    assert mismatch is not None
    assert "ACTIVITY_SCHEDULED shout" in str(mismatch)
    assert Replayer([changed]).has("anything else")
    assert not Replayer([changed]).has("kept@2")
