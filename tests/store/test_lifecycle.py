"""How long runs may take, on both stores: limits of one run and of a whole chain."""

from support.store_rig import HOUR_US, Rig, change, new_run

from durable.events import ClaimedRun, Closing, EventKind, NewRun, RunState


async def follow(rig: Rig, run: ClaimedRun, seq: int = 1) -> ClaimedRun:
    """End the run by continue-as-new; return the next one, claimed."""
    successor = new_run(run.workflow_id)
    await rig.accept(
        change(
            run, b"end", seq=seq, closing=Closing(RunState.CONTINUED_AS_NEW), successor=successor
        )
    )
    (claimed,) = await rig.claim(await rig.session())
    assert claimed.run_id == successor.run_id
    return claimed


async def fire(rig: Rig) -> None:
    await rig.store.promote_due(100)


async def kinds(rig: Rig, run: ClaimedRun | NewRun) -> list[int]:
    return [item.kind for item in await rig.inbox(run.run_id)]


# -- execution timeout -----------------------------------------------------------------------


async def test_an_execution_that_is_over_its_time_is_told(rig: Rig) -> None:
    run = await rig.owned("a", execution_timeout_us=HOUR_US)

    await rig.pass_time(HOUR_US)
    await fire(rig)

    (item,) = await rig.inbox(run.run_id)
    assert (item.kind, item.name) == (EventKind.RUN_TIMED_OUT, "execution")
    assert b"whole execution" in (item.payload or b"")


async def test_the_deadline_goes_over_to_each_next_run(rig: Rig) -> None:
    first = await rig.owned("a", execution_timeout_us=2 * HOUR_US)
    await rig.pass_time(HOUR_US)
    second = await follow(rig, first)
    third = await follow(rig, second)
    await fire(rig)
    assert await kinds(rig, third) == []

    await rig.pass_time(HOUR_US)
    await fire(rig)

    assert await kinds(rig, third) == [EventKind.RUN_TIMED_OUT]


async def test_a_deadline_that_was_told_and_not_read_goes_over(rig: Rig) -> None:
    first = await rig.owned("a", execution_timeout_us=HOUR_US, run_timeout_us=HOUR_US)
    await rig.pass_time(HOUR_US)
    await fire(rig)
    assert await kinds(rig, first) == [EventKind.RUN_TIMED_OUT] * 2

    second = await follow(rig, first)

    (item,) = await rig.inbox(second.run_id)
    assert (item.kind, item.name) == (EventKind.RUN_TIMED_OUT, "execution")


async def test_the_time_of_a_run_ends_with_the_run(rig: Rig) -> None:
    first = await rig.owned("a", run_timeout_us=HOUR_US)
    second = await follow(rig, first)

    await rig.pass_time(HOUR_US)
    await fire(rig)

    assert await kinds(rig, second) == []


async def test_a_delayed_start_is_no_part_of_its_time(rig: Rig) -> None:
    run_id = await rig.start("a", start_delay_us=HOUR_US, execution_timeout_us=HOUR_US)

    await rig.pass_time(HOUR_US)
    await fire(rig)
    assert await rig.inbox(run_id) == []

    await rig.pass_time(HOUR_US)
    await fire(rig)
    assert [item.kind for item in await rig.inbox(run_id)] == [EventKind.RUN_TIMED_OUT]


async def test_a_chain_that_has_ended_has_no_deadline(rig: Rig) -> None:
    run = await rig.owned("a", execution_timeout_us=HOUR_US)
    await rig.close(run)

    assert (await rig.store.promote_due(100)).next_due_us is None


async def test_a_child_brings_its_own_deadline(rig: Rig) -> None:
    parent = await rig.owned("a")
    child = new_run("b", execution_timeout_us=HOUR_US, parent_run_id=parent.run_id, parent_ref=4)
    await rig.accept(change(parent, b"1", children=[child]))

    await rig.pass_time(HOUR_US)
    await fire(rig)

    assert await kinds(rig, child) == [EventKind.RUN_TIMED_OUT]
