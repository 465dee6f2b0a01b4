"""The life of runs on both stores: limits of one run and of a whole chain, pause and resume."""

from dataclasses import replace
from typing import Any, cast

import pytest
from support.store_rig import HOUR_US, PostgresRig, Rig, change, new_run

from durable.events import (
    PAUSED_WORD,
    RESUMED_WORD,
    ActivityOutcome,
    ClaimedRun,
    Closing,
    EventKind,
    KeptFact,
    Message,
    MessageKind,
    NewRun,
    NewTimer,
    QueuedActivity,
    RunCommit,
    RunState,
    Verdict,
)
from durable.store.pages import Runs
from durable.store.postgres import PostgresStore
from durable.store.retention import Upkeep


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


# -- pause and resume ------------------------------------------------------------------------


async def pause(rig: Rig, run: ClaimedRun, reason: bytes = b'{"message":"why"}') -> None:
    assert await rig.store.pause({run.run_id: reason}) == 1


async def word(rig: Rig, run: ClaimedRun) -> list[str | None]:
    """The names of the messages about pauses that the run has not read."""
    return [i.name for i in await rig.inbox(run.run_id) if i.kind == MessageKind.PAUSE]


async def release(rig: Rig, run: ClaimedRun, seq: int = 1, **changes: Any) -> None:
    """What an owner does when it has read the word."""
    read = [item.id for item in await rig.inbox(run.run_id) if item.kind == MessageKind.PAUSE]
    await rig.accept(change(run, seq=seq, consumed=read))
    await rig.accept(change(run, seq=seq, release=True, **changes))


async def test_a_paused_run_is_not_claimed_until_it_is_resumed(rig: Rig) -> None:
    run_id = await rig.start("a")
    assert await rig.store.pause({run_id: b"{}"}) == 1
    session = await rig.session()
    assert await rig.claim(session) == []

    assert await rig.store.resume([run_id]) == 1

    (run,) = await rig.claim(session)
    assert (run.run_id, run.is_paused) == (run_id, False)
    assert await rig.inbox(run_id) == []


async def test_a_paused_run_is_shown_with_its_reason(rig: Rig) -> None:
    run_id = await rig.start("a")
    await rig.start("b")
    await rig.store.pause({run_id: b'{"message":"why"}'})

    view = await rig.other.view(workflow_id="a")

    assert view is not None
    assert (view.state, view.failure) == (RunState.PAUSED, b'{"message":"why"}')
    (found,) = await rig.other.views(Runs(states=[RunState.PAUSED]))
    assert found.run_id == run_id
    (running,) = await rig.other.views(Runs(states=[RunState.RUNNING]))
    assert running.workflow_id == "b"


async def test_a_paused_run_is_found_by_search_and_state(rig: Rig) -> None:
    run_id = await rig.start("a", search=b'{"x":1}')
    await rig.start("b", search=b'{"x":1}')
    await rig.store.pause({run_id: b"{}"})

    async def names(*states: RunState) -> list[tuple[str, RunState]]:
        views = await rig.other.views(Runs(search=b'{"x":1}', states=states))
        return [(view.workflow_id, view.state) for view in views]

    assert await names(RunState.PAUSED) == [("a", RunState.PAUSED)]
    assert await names(RunState.RUNNING) == [("b", RunState.RUNNING)]
    assert sorted(await names()) == [("a", RunState.PAUSED), ("b", RunState.RUNNING)]


async def test_a_start_with_the_id_of_a_paused_run_is_told_its_state(rig: Rig) -> None:
    run_id = await rig.start("a")
    await rig.store.pause({run_id: b"{}"})

    (started,) = await rig.store.start_runs([new_run("a")])

    assert (started.accepted, started.state) == (False, RunState.PAUSED)


async def test_what_is_not_open_cannot_be_paused(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.close(run)

    assert await rig.store.pause({run.run_id: b"{}"}) == 0
    assert await rig.store.resume([run.run_id]) == 0


async def test_what_is_not_paused_cannot_be_resumed(rig: Rig) -> None:
    assert await rig.store.resume([await rig.start("a")]) == 0


async def test_the_owner_is_told_of_the_pause_and_of_its_end(rig: Rig) -> None:
    session = await rig.session()
    run = await rig.owned("a", session)

    await pause(rig, run)
    assert await rig.mail(session) == [run.run_id]
    assert await word(rig, run) == [PAUSED_WORD]

    assert await rig.store.resume([run.run_id]) == 1
    assert await rig.mail(session) == [run.run_id]
    assert await word(rig, run) == [RESUMED_WORD]


async def test_a_paused_run_that_was_given_up_keeps_its_mail(rig: Rig) -> None:
    run = await rig.owned("a")
    await pause(rig, run)
    kept = [KeptFact(EventKind.ACTIVITY_COMPLETED, 3, b"1")]
    await release(rig, run, kept=kept)
    await rig.store.send([Message(EventKind.SIGNAL_RECEIVED, run_id=run.run_id, name="go")])
    session = await rig.session()
    assert await rig.claim(session) == []

    await rig.store.resume([run.run_id])

    (again,) = await rig.claim(session)
    items = await rig.inbox(again.run_id)
    assert [item.kind for item in items] == [
        EventKind.ACTIVITY_COMPLETED,
        EventKind.SIGNAL_RECEIVED,
    ]
    assert (items[0].ref, items[0].payload) == (3, b"1")


async def test_timers_of_a_paused_run_fire_into_its_inbox(rig: Rig) -> None:
    run = await rig.owned("a")
    due = await rig.store.now_us() + HOUR_US
    await rig.accept(change(run, b"1", timers=[NewTimer(2, due)]))
    await pause(rig, run)
    await release(rig, run, seq=2)

    await rig.pass_time(HOUR_US)
    await fire(rig)

    assert await kinds(rig, run) == [EventKind.TIMER_FIRED]
    assert await rig.claim(await rig.session()) == []


async def test_outcomes_of_a_paused_run_wait(rig: Rig) -> None:
    run = await rig.owned("a")
    queued = QueuedActivity(2, "act", "q", 0, 1, b"[]", b"{}")
    await rig.accept(change(run, b"1", activities=[queued]))
    await pause(rig, run)
    await release(rig, run, seq=2)
    session = await rig.session()

    (got,) = await rig.store.claim_activities(session, ["q"], ["act"], 1)
    outcome = ActivityOutcome(run.run_id, 2, 1, got.token, EventKind.ACTIVITY_COMPLETED, b"7")
    assert await rig.store.finish_activities([outcome]) == [True]

    assert await rig.claim(session) == []
    assert await kinds(rig, run) == [EventKind.ACTIVITY_COMPLETED]
    await rig.store.resume([run.run_id])
    assert len(await rig.claim(session)) == 1


@pytest.mark.parametrize("ending", [EventKind.RUN_TERMINATED, EventKind.RUN_TIMED_OUT])
async def test_a_paused_run_is_claimed_for_what_ends_it(rig: Rig, ending: EventKind) -> None:
    run = await rig.owned("a")
    await pause(rig, run)
    await release(rig, run)
    await rig.store.send([Message(EventKind.CANCEL_REQUESTED, run_id=run.run_id)])
    session = await rig.session()
    assert await rig.claim(session) == []

    await rig.store.send([Message(ending, run_id=run.run_id)])

    (again,) = await rig.claim(session)
    assert again.is_paused


async def test_a_pause_outlives_its_owner(rig: Rig) -> None:
    session = await rig.session()
    run = await rig.owned("a", session)
    await pause(rig, run)

    await rig.store.end_sessions([session])

    other = await rig.session()
    assert await rig.claim(other) == []
    await rig.store.resume([run.run_id])
    assert await word(rig, run) == []
    assert len(await rig.claim(other)) == 1


@pytest.mark.parametrize(
    "state", [RunState.COMPLETED, RunState.FAILED, RunState.CONTINUED_AS_NEW], ids=str
)
async def test_a_paused_run_does_not_end_itself(rig: Rig, state: RunState) -> None:
    run = await rig.owned("a")
    await pause(rig, run)
    successor = new_run("a") if state == RunState.CONTINUED_AS_NEW else None

    end = change(run, b"end", closing=Closing(state), successor=successor)

    assert await rig.commit(end) == [Verdict.UNREAD]


@pytest.mark.parametrize("state", [RunState.TERMINATED, RunState.TIMED_OUT], ids=str)
async def test_a_paused_run_is_ended_from_outside(rig: Rig, state: RunState) -> None:
    run = await rig.owned("a")
    await pause(rig, run)
    await rig.close(run, state)
    assert [view.state for view in await rig.store.closed([run.run_id])] == [state]


async def test_a_delayed_run_that_is_paused_waits_for_both(rig: Rig) -> None:
    run_id = await rig.start("a", start_delay_us=HOUR_US)
    await rig.store.pause({run_id: b"{}"})
    session = await rig.session()

    await rig.pass_time(HOUR_US)
    await fire(rig)
    assert await rig.claim(session) == []

    await rig.store.resume([run_id])
    assert len(await rig.claim(session)) == 1


async def test_a_parked_run_that_is_paused_is_parked_when_it_is_resumed(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.accept(change(run, park=b'{"reason":"x"}'))
    await rig.store.pause({run.run_id: b"{}"})

    await rig.store.resume([run.run_id])

    view = await rig.store.view(run_id=run.run_id)
    assert view is not None
    assert (view.state, view.failure) == (RunState.PARKED, b'{"reason":"x"}')
    assert await rig.claim(await rig.session()) == []


async def test_paused_runs_are_counted_and_are_no_lost_wake_ups(postgres: PostgresRig) -> None:
    run_id = await postgres.start("a")
    await postgres.store.pause({run_id: b"{}"})
    assert await postgres.claim(await postgres.session()) == []
    await postgres.store.send([Message(EventKind.SIGNAL_RECEIVED, run_id=run_id, name="go")])
    assert await postgres.claim(await postgres.session()) == []
    upkeep = Upkeep(cast(PostgresStore, postgres.store))

    assert (await upkeep.gauges()).paused_runs == 1
    assert await upkeep.repair_wakeups(0) == 0


async def test_an_end_that_wants_all_read_is_refused_while_something_is_not(rig: Rig) -> None:
    run_id = await rig.start("a")
    seen = await rig.store.view(run_id=run_id)
    assert seen is not None
    await rig.store.send([Message(EventKind.SIGNAL_RECEIVED, run_id=run_id, name="go")])
    end = RunCommit(
        run_id,
        seen.fence,
        seen.part,
        seen.event_batches,
        None,
        seen.head_hash,
        closing=Closing(RunState.TERMINATED, failure=b"{}"),
        all_read=True,
    )
    assert await rig.commit(end) == [Verdict.UNREAD]

    items = await rig.inbox(run_id)
    await rig.accept(replace(end, consumed=[item.id for item in items]))

    view = await rig.store.view(run_id=run_id)
    assert view is not None
    assert (view.state, view.failure) == (RunState.TERMINATED, b"{}")


async def test_an_end_by_somebody_else_is_refused_once_a_worker_has_the_run(rig: Rig) -> None:
    run_id = await rig.start("a")
    seen = await rig.store.view(run_id=run_id)
    assert seen is not None
    await rig.claim(await rig.session())
    closing = Closing(RunState.TERMINATED, failure=b"{}")
    end = RunCommit(run_id, seen.fence, seen.part, 1, None, seen.head_hash, closing=closing)
    assert await rig.commit(replace(end, all_read=True)) == [Verdict.STALE]
