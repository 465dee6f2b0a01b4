"""Many timers that are due at once do not stand before what comes after, nor behind it for long."""

from __future__ import annotations

from support.store_rig import HOUR_US, Rig, change, new_run

from durable.events import NewTimer, RunState

PLACES = 1000
"""A run whose time has come lets so many others pass."""


async def promoted(rig: Rig, count: int, **options: int) -> set[str]:
    """The ids of runs that nobody owns and whose timers have just gone off."""
    session = await rig.session(9 * HOUR_US)
    await rig.store.start_runs([new_run(f"nap{n}", **options) for n in range(count)])
    runs = await rig.claim(session, count)
    assert len(runs) == count
    timer = NewTimer(2, await rig.store.now_us() + HOUR_US)
    await rig.accept(*[change(run, b"b", timers=[timer], release=True) for run in runs])
    await rig.pass_time(HOUR_US)
    assert (await rig.store.promote_due(count)).promoted == count
    return {run.run_id for run in runs}


async def test_a_new_run_is_claimed_before_a_storm_of_timers(rig: Rig) -> None:
    await promoted(rig, 300)
    new = await rig.start("new")

    claimed = await rig.claim(await rig.session(), 10)

    assert len(claimed) == 10
    assert new in [run.run_id for run in claimed]


async def test_a_delayed_start_does_not_stand_before_a_new_one(rig: Rig) -> None:
    for n in range(20):
        await rig.start(f"later{n}", start_delay_us=HOUR_US)
    await rig.pass_time(HOUR_US)
    assert (await rig.store.promote_due(100)).promoted == 20
    new = await rig.start("new")

    assert [run.run_id for run in await rig.claim(await rig.session(), 1)] == [new]


async def test_a_due_run_does_not_wait_for_all_that_comes(rig: Rig) -> None:
    due = await promoted(rig, 1)
    await rig.store.start_runs([new_run(f"new{n}") for n in range(2 * PLACES)])

    claimed = await rig.claim(await rig.session(), PLACES + 10)

    assert due <= {run.run_id for run in claimed}


async def test_due_runs_keep_their_order(rig: Rig) -> None:
    session = await rig.session(9 * HOUR_US)
    expected = []
    for n in range(3):
        run = await rig.owned(f"nap{n}", session)
        timer = NewTimer(2, await rig.store.now_us() + HOUR_US)
        await rig.accept(change(run, b"b", timers=[timer], release=True))
        expected.append(run.run_id)
    await rig.pass_time(HOUR_US)
    for _ in expected:
        assert (await rig.store.promote_due(1)).promoted == 1

    taken = [run.run_id for _ in expected for run in await rig.claim(session, 1)]

    assert taken == expected


async def test_priority_goes_before_the_places(rig: Rig) -> None:
    due = await promoted(rig, 5, priority=-1)
    await rig.start("new")

    claimed = await rig.claim(await rig.session(), 5)

    assert {run.run_id for run in claimed} == due
    view = await rig.store.view(workflow_id="new")
    assert view is not None
    assert (view.state, view.session) == (RunState.RUNNING, None)
