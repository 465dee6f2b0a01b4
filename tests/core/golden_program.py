"""The program whose history is tests/golden/v1/program.json. It must never change."""

from __future__ import annotations

import asyncio
from typing import Any

from rig import Failed, Rig

from durable.events import EventKind

CHOICES = [2, 7, 1, 5, 8, 0, 4, 3, 9, 11, 2, 0, 9, 1, 0, 0, 0, 0, 0, 0, 0, 0]


async def program(rig: Rig) -> Any:
    """One of everything that plain workflow code does."""
    seen: list[Any] = [await rig.act("first", 1, "two", None, True)]
    seen.append(rig.loop.record(EventKind.SIDE_EFFECT, "chosen once", lambda: b"42").decode())
    if rig.loop.patched("second path"):
        seen += await asyncio.gather(
            rig.act("left"), rig.act("right"), rig.act("middle"), return_exceptions=True
        )
    await asyncio.sleep(1.5)
    try:
        async with asyncio.timeout(0.25):
            seen.append(await rig.act("slow"))
    except (TimeoutError, Failed) as error:
        seen.append(repr(error))
    racing = [asyncio.create_task(one(rig, name)) for name in ("hare", "tortoise")]
    done, pending = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    seen.append([repr(task.exception() or task.result()) for task in done])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(rig, name)) for name in ("x", "y")]
    seen += [task.result() for task in tasks]
    return [repr(item) for item in seen]


async def one(rig: Rig, name: str) -> Any:
    try:
        return await rig.act(name)
    except Failed as error:
        return repr(error)
