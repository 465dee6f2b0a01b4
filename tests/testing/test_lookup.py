"""Definitions are found by what a workflow's code names, in whichever of its methods."""

from __future__ import annotations

from durable import activity, workflow
from durable.testing import WorkflowEnvironment
from durable.testing.lookup import reachable


async def test_activity_that_only_a_handler_names_is_found() -> None:
    @activity.defn
    async def reserve(item: str) -> str:
        return f"{item} reserved"

    @activity.defn
    async def note(item: str) -> None:
        noted.append(item)

    noted: list[str] = []

    @workflow.defn
    class Shelf:
        def __init__(self) -> None:
            self.is_open = True

        @workflow.run
        async def run(self) -> None:
            await workflow.wait_condition(lambda: not self.is_open)
            await workflow.wait_condition(workflow.all_handlers_finished)

        @workflow.update
        async def put(self, item: str) -> str:
            return await reserve(item)

        @workflow.signal
        async def close(self) -> None:
            await note("closed")
            self.is_open = False

    async with WorkflowEnvironment() as env:
        handle = await env.start(Shelf.run)

        assert await handle.update(Shelf.put, "tea") == "tea reserved"
        await handle.signal(Shelf.close)
        await handle.result()

    assert noted == ["closed"]
    assert {each.name for each in reachable(Shelf)} >= {"reserve", "note"}
