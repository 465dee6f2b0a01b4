"""Pages of open runs on both stores: what fits, in which order, and what a page reads."""

from __future__ import annotations

from typing import Any

import pytest
from support.store_rig import HOUR_US, TYPE, Rig

from durable.events import RunState
from durable.store.pages import OpenRuns


async def crowd(rig: Rig) -> None:
    """Open runs of all kinds, and a closed one."""
    await rig.close(await rig.owned("closed", search=b'{"x":1}'))
    await rig.start("order-1", search=b'{"x":1,"tags":["a","b"]}')
    await rig.start("order-2", queue="gpu")
    await rig.start("other", workflow_type="invoice", start_delay_us=HOUR_US)
    await rig.store.pause({await rig.start("paused", search=b'{"x":1}'): b"{}"})


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ({}, ["order-1", "order-2", "other", "paused"]),
        ({"workflow_type": TYPE}, ["order-1", "order-2", "paused"]),
        ({"workflow_type": "none"}, []),
        ({"states": (RunState.RUNNING,)}, ["order-1", "order-2", "other"]),
        ({"states": (RunState.PAUSED,)}, ["paused"]),
        ({"states": (RunState.PARKED,)}, []),
        ({"queue": "gpu"}, ["order-2"]),
        ({"id_prefix": "order-"}, ["order-1", "order-2"]),
        ({"id_prefix": "order_"}, []),
        ({"search": b'{"x":1}'}, ["order-1", "paused"]),
        ({"search": b'{"tags":["b"]}'}, ["order-1"]),
        ({"search": b'{"x":1}', "states": (RunState.PAUSED,)}, ["paused"]),
        ({"until_us": 1}, []),
        ({"from_us": 1}, ["order-1", "order-2", "other", "paused"]),
    ],
)
async def test_a_page_has_what_fits(rig: Rig, how: dict[str, Any], found: list[str]) -> None:
    await crowd(rig)
    wanted = OpenRuns(**how)

    page = await rig.store.open_page(wanted)

    assert sorted(view.workflow_id for view in page) == found
    assert await rig.store.count_open(wanted) == len(found)


async def test_times_bound_a_page(rig: Rig) -> None:
    for name in ("a", "b", "c"):
        await rig.start(name)
    times = {view.workflow_id: view.created_us for view in await rig.store.views()}

    (found,) = await rig.store.open_page(OpenRuns(from_us=times["b"], until_us=times["c"]))

    assert found.workflow_id == "b"


async def test_pages_go_on_where_the_last_one_ended(rig: Rig) -> None:
    started = sorted([await rig.start(f"run{n}") for n in range(7)])
    found: list[str] = []
    while page := await rig.store.open_page(
        OpenRuns(), after=found[-1] if found else None, limit=3
    ):
        found += [view.run_id for view in page]

    assert found == started
