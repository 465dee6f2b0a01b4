"""What every store promises, asked of both. See docs/internals/database.md."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from support.store_rig import HOUR_US, QUEUE, TYPE, Rig, change, new_run

from durable.events import (
    DYNAMIC,
    ActivityOutcome,
    Closing,
    EventKind,
    IdReuse,
    Message,
    MessageKind,
    NewTimer,
    QueuedActivity,
    QueueLimits,
    Response,
    RunState,
    SessionInfo,
    TimerKind,
    TypeInfo,
    Verdict,
)
from durable.store.base import HINT_RUNS_MAX, Hint
from durable.store.packing import PackedHistories
from durable.store.pages import Runs

SIGNAL = EventKind.SIGNAL_RECEIVED


def signal(workflow_id: str, payload: bytes = b"1", **more: Any) -> Message:
    return Message(SIGNAL, workflow_id=workflow_id, name="go", payload=payload, **more)


def activity(ref: int, *, options: dict[str, Any] | None = None, **more: Any) -> QueuedActivity:
    return QueuedActivity(
        **{
            "ref": ref,
            "name": "pay",
            "queue": QUEUE,
            "priority": 0,
            "attempt": 1,
            "input": b"[1]",
            "options": json.dumps(options or {}).encode(),
            **more,
        }
    )


# -- starts ----------------------------------------------------------------------------------


async def test_second_claim_gets_nothing(rig: Rig) -> None:
    run_id = await rig.start("a", version="v1", priority=3)
    one, two = await rig.session(), await rig.session()

    (run,) = await rig.claim(one)

    assert (run.run_id, run.workflow_id, run.workflow_type) == (run_id, "a", TYPE)
    assert (run.next_seq, run.head_hash, run.version) == (1, 1, "v1")
    assert run.fence > 0
    assert await rig.claim(two) == []
    assert await rig.store.load({run_id: run.part}) == {run_id: [b"started"]}


async def test_mail_is_read_in_part_by_number_and_by_kind(rig: Rig) -> None:
    run_id = await rig.start("a")
    kinds = [EventKind.SIGNAL_RECEIVED, EventKind.SIGNAL_RECEIVED, EventKind.RUN_TERMINATED]
    await rig.store.send([Message(kind, workflow_id="a") for kind in kinds])

    async def read(*args: Any) -> list[int]:
        return [item.kind for item in await rig.store.inbox([run_id], *args)]

    assert await read() == kinds
    assert await read(2) == kinds[:2]
    assert await read(None, [EventKind.RUN_TERMINATED]) == kinds[2:]
    assert await read(1, [EventKind.SIGNAL_RECEIVED]) == kinds[:1]


async def test_a_taken_id_names_the_run_that_has_it(rig: Rig) -> None:
    first, second, other = new_run("a"), new_run("a"), new_run("b")

    started = await rig.store.start_runs([first, second, other])

    assert [s.accepted for s in started] == [True, False, True]
    assert [s.run_id for s in started] == [first.run_id, first.run_id, other.run_id]


async def test_the_same_start_sent_twice_is_one_run(rig: Rig) -> None:
    new = new_run("a")

    (first,) = await rig.store.start_runs([new])
    (again,) = await rig.other.start_runs([new])

    assert first == again
    assert len(await rig.claim(await rig.session())) == 1


@pytest.mark.parametrize(
    ("reuse", "ended", "accepted"),
    [
        (IdReuse.REJECT, RunState.COMPLETED, False),
        (IdReuse.REJECT, RunState.FAILED, False),
        (IdReuse.AFTER_CLOSE, RunState.COMPLETED, True),
        (IdReuse.AFTER_FAILURE, RunState.COMPLETED, False),
        (IdReuse.AFTER_FAILURE, RunState.FAILED, True),
        (IdReuse.AFTER_FAILURE, RunState.CANCELLED, True),
    ],
)
async def test_an_id_is_used_again_as_asked(
    rig: Rig, reuse: IdReuse, ended: RunState, accepted: bool
) -> None:
    run = await rig.owned("a")
    await rig.close(run, ended)
    again = new_run("a", id_reuse=reuse)

    (started,) = await rig.store.start_runs([again])

    assert started.accepted is accepted
    assert started.run_id == (again.run_id if accepted else run.run_id)
    assert started.state == (RunState.RUNNING if accepted else ended)
    assert len(await rig.claim(await rig.session())) == accepted


async def test_an_id_is_never_reused_while_its_run_is_open(rig: Rig) -> None:
    run_id = await rig.start("a")

    (started,) = await rig.store.start_runs([new_run("a", id_reuse=IdReuse.AFTER_CLOSE)])

    assert (started.accepted, started.run_id) == (False, run_id)


async def test_many_starts_of_one_id_make_one_run(rig: Rig) -> None:
    stores = [rig.store, rig.other] * 4
    news = [new_run("a") for _ in stores]

    started = await asyncio.gather(
        *(s.start_runs([new]) for s, new in zip(stores, news, strict=True))
    )

    assert sum(s.accepted for (s,) in started) == 1
    assert len({s.run_id for (s,) in started}) == 1
    assert len(await rig.claim(await rig.session())) == 1


async def test_a_delayed_run_starts_when_its_time_comes(rig: Rig) -> None:
    run_id = await rig.start("a", start_delay_us=HOUR_US)
    session = await rig.session(10 * HOUR_US)
    await rig.store.send([signal("a")])
    assert await rig.claim(session) == []
    assert (await rig.store.promote_due(10)).promoted == 0

    await rig.pass_time(HOUR_US)

    assert (await rig.store.promote_due(10)).promoted == 1
    assert [run.run_id for run in await rig.claim(session)] == [run_id]
    assert [item.kind for item in await rig.inbox(run_id)] == [SIGNAL]


async def test_a_delayed_run_is_claimed_to_be_cancelled(rig: Rig) -> None:
    run_id = await rig.start("a", start_delay_us=HOUR_US)
    await rig.store.send([Message(EventKind.CANCEL_REQUESTED, workflow_id="a")])

    assert [run.run_id for run in await rig.claim(await rig.session())] == [run_id]


async def test_a_start_time_in_the_past_is_now(rig: Rig) -> None:
    run_id = await rig.start("a", start_at_us=1)

    assert [run.run_id for run in await rig.claim(await rig.session())] == [run_id]


async def test_a_run_that_is_over_its_time_is_told(rig: Rig) -> None:
    run = await rig.owned("a", run_timeout_us=HOUR_US)

    await rig.pass_time(HOUR_US)
    await rig.store.promote_due(10)

    assert [item.kind for item in await rig.inbox(run.run_id)] == [EventKind.RUN_TIMED_OUT]


# -- claims ----------------------------------------------------------------------------------


async def test_a_claim_takes_its_queues_and_types_only(rig: Rig) -> None:
    await rig.start("other-queue", queue="gpu")
    await rig.start("other-type", workflow_type="invoice")
    mine = await rig.start("mine")

    assert [run.run_id for run in await rig.claim(await rig.session())] == [mine]


async def test_tokens_of_other_types_do_not_hide_ours(rig: Rig) -> None:
    await rig.store.start_runs([new_run(f"o{n}", workflow_type="other") for n in range(1200)])
    mine = await rig.start("mine")

    assert [run.run_id for run in await rig.claim(await rig.session(), 1)] == [mine]


async def test_smaller_priority_goes_first_then_age(rig: Rig) -> None:
    ids = [
        await rig.start(name, priority=priority)
        for name, priority in (("late", 5), ("first", 1), ("urgent", 0), ("second", 1))
    ]
    session = await rig.session()

    order = [(await rig.claim(session, 1))[0].run_id for _ in ids]

    assert order == [ids[2], ids[1], ids[3], ids[0]]


async def test_a_session_that_is_not_alive_gets_nothing(rig: Rig) -> None:
    await rig.start("a")
    dead = await rig.session()
    await rig.store.end_sessions([dead])

    assert await rig.claim(dead) == []
    assert await rig.claim(77) == []
    assert len(await rig.claim(await rig.session())) == 1


async def test_a_run_is_claimed_by_one_of_many(rig: Rig) -> None:
    await rig.store.start_runs([new_run(f"w{n}") for n in range(60)])
    sessions = [await rig.session() for _ in range(4)]
    stores = [rig.store, rig.other] * 2

    async def drain(session: int, store: Any) -> list[str]:
        mine: list[str] = []
        while runs := (await store.claim_runs(session, [QUEUE], [TYPE], 7))[0]:
            mine += [run.run_id for run in runs]
        return mine

    found = await asyncio.gather(*map(drain, sessions, stores))
    found.append(await drain(sessions[0], rig.store))

    claimed = [run_id for mine in found for run_id in mine]
    assert len(claimed) == len(set(claimed)) == 60


async def test_what_a_session_owns_can_be_asked(rig: Rig) -> None:
    session = await rig.session()
    run = await rig.owned("a", session)
    await rig.accept(change(run, b"b", activities=[activity(5), activity(6, delay_us=HOUR_US)]))
    (attempt,) = await rig.store.claim_activities(session, [QUEUE], ["pay"], 10)

    runs, attempts = await rig.store.owned(session)

    assert runs == [replace(run, next_seq=2, head_hash=2)]
    assert attempts == [attempt]
    assert await rig.store.owned(77) == ([], [])
    assert await rig.store.waiting([run.run_id, new_run("x").run_id]) != {}
    assert (await rig.store.waiting([run.run_id]))[run.run_id] == {5, 6}


# -- messages --------------------------------------------------------------------------------


async def test_a_message_wakes_the_owner(rig: Rig) -> None:
    one, two = await rig.session(), await rig.session()
    run = await rig.owned("a", one)

    sent = await rig.other.send([signal("a", b"x"), signal("nobody")])

    assert sent == [run.run_id, None]
    assert await rig.mail(two) == []
    assert await rig.mail(one) == [run.run_id]
    assert await rig.mail(one) == []
    (item,) = await rig.inbox(run.run_id)
    assert (item.kind, item.name, item.payload, item.ref) == (SIGNAL, "go", b"x", 0)


async def test_messages_keep_their_order(rig: Rig) -> None:
    run = await rig.owned("a")

    await rig.store.send([signal("a", b"%d" % n) for n in range(20)])
    await rig.store.send([Message(SIGNAL, run_id=run.run_id, payload=b"last")])

    payloads = [item.payload for item in await rig.inbox(run.run_id)]
    assert payloads == [b"%d" % n for n in range(20)] + [b"last"]


async def test_a_repeated_message_is_delivered_once_even_after_it_was_read(rig: Rig) -> None:
    run = await rig.owned("a")
    message = signal("a", request_id="r1")
    assert await rig.store.send([message, message]) == [run.run_id] * 2
    (item,) = await rig.inbox(run.run_id)
    await rig.accept(change(run, b"b", consumed=[item.id]))

    assert await rig.other.send([message]) == [run.run_id]

    assert await rig.inbox(run.run_id) == []


async def test_a_token_is_routed_to_the_owner(rig: Rig) -> None:
    # The token was made while nobody owned the run, and somebody else meets it first.
    one, two = await rig.session(), await rig.session()
    await rig.start("a")
    await rig.store.send([signal("a")])
    (run,) = await rig.claim(one, 1)

    assert await rig.claim(two) == []

    assert await rig.mail(one) in ([run.run_id], [])
    assert [item.kind for item in await rig.inbox(run.run_id)] == [SIGNAL]


async def test_a_closed_run_gets_no_messages(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.close(run)

    assert await rig.store.send([signal("a"), Message(SIGNAL, run_id=run.run_id)]) == [None, None]
    assert await rig.inbox(run.run_id) == []


# -- commits ---------------------------------------------------------------------------------


async def test_a_stale_commit_writes_nothing_and_stops_nobody(rig: Rig) -> None:
    good, bad = await rig.owned("good"), await rig.owned("bad")
    side: dict[str, Any] = {
        "timers": [NewTimer(4, 1)],
        "activities": [activity(5)],
        "children": [new_run("child", parent_ref=6)],
        "messages": [signal("good")],
        "responses": [Response("r", b"1")],
        "search": b"{}",
        "closing": Closing(RunState.COMPLETED, b"1"),
    }

    verdicts = await rig.commit(
        change(replace(bad, fence=bad.fence - 1), b"b", **side),
        change(good, b"b"),
    )

    assert verdicts == [Verdict.STALE, Verdict.ACCEPTED]
    assert await rig.commit(change(bad, b"b", seq=2, **side)) == [Verdict.STALE]
    assert await rig.store.load({bad.run_id: 1, good.run_id: 1}) == {
        bad.run_id: [b"started"],
        good.run_id: [b"started", b"b"],
    }
    assert (await rig.store.promote_due(10)).promoted == 0
    assert await rig.store.claim_activities(await rig.session(), [QUEUE], ["pay"], 9) == []
    assert await rig.store.view(workflow_id="child") is None
    assert await rig.inbox(good.run_id) == []
    assert await rig.store.responses(["r"]) == []
    assert (await rig.store.view(workflow_id="bad")).state == RunState.RUNNING  # type: ignore[union-attr]


async def test_a_commit_moves_the_head(rig: Rig) -> None:
    run = await rig.owned("a")

    await rig.accept(change(run, b"one"))
    await rig.accept(change(run, b"two", seq=2))

    assert await rig.commit(change(run, b"two again", seq=2)) == [Verdict.STALE]
    assert await rig.store.load({run.run_id: 1}) == {run.run_id: [b"started", b"one", b"two"]}
    view = await rig.store.view(run_id=run.run_id)
    assert view is not None
    assert (view.event_batches, view.head_hash) == (3, 3)


async def test_consumed_messages_are_gone_and_others_stay(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.store.send([signal("a", b"1"), signal("a", b"2")])
    first, second = await rig.inbox(run.run_id)

    await rig.accept(change(run, b"b", consumed=[first.id]))

    assert await rig.inbox(run.run_id) == [second]


async def test_an_inbox_is_read_in_parts_the_oldest_of_each_run_first(rig: Rig) -> None:
    one, other = await rig.owned("a"), await rig.owned("b")
    for n in range(5):
        await rig.store.send([signal("a", b"%d" % n), signal("b", b"%d" % n)])
    both = [one.run_id, other.run_id]
    items = await rig.store.inbox(both, 2)
    assert [item.payload for item in items] == [b"0", b"0", b"1", b"1"]
    assert len(await rig.store.inbox(both)) == 10


@pytest.mark.parametrize("kind", [SIGNAL, MessageKind.UPDATE_REQUESTED, EventKind.CANCEL_REQUESTED])
async def test_a_run_does_not_close_over_unread_messages(rig: Rig, kind: int) -> None:
    run = await rig.owned("a")
    await rig.store.send([Message(kind, workflow_id="a", name="n")])
    end = change(run, b"end", closing=Closing(RunState.COMPLETED, b"1"))

    assert await rig.commit(end) == [Verdict.UNREAD]

    assert await rig.store.load({run.run_id: 1}) == {run.run_id: [b"started"]}
    (item,) = await rig.inbox(run.run_id)
    await rig.accept(replace(end, consumed=[item.id]))


async def test_a_query_does_not_keep_a_run_open(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.store.send([Message(MessageKind.QUERY, workflow_id="a", request_id="q")])

    await rig.close(run)

    assert await rig.inbox(run.run_id) == []


async def test_a_terminated_run_closes_whatever_is_unread(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.store.send([signal("a")])

    await rig.accept(change(run, b"end", closing=Closing(RunState.TERMINATED, failure=b"{}")))

    view = await rig.store.view(workflow_id="a")
    assert view is not None
    assert (view.state, view.failure) == (RunState.TERMINATED, b"{}")


async def test_a_closed_run_leaves_nothing_to_do(rig: Rig) -> None:
    run = await rig.owned("a", search=b'{"x":1}')
    await rig.accept(change(run, b"b", timers=[NewTimer(4, 1)], activities=[activity(5)]))
    session = await rig.session()

    end = change(run, b"end", seq=2, closing=Closing(RunState.COMPLETED, b"42"))
    await rig.accept(end)

    assert (await rig.store.promote_due(10)).next_due_us is None
    assert await rig.store.claim_activities(session, [QUEUE], ["pay"], 9) == []
    assert await rig.claim(session) == []
    (view,) = await rig.store.closed([run.run_id])
    assert (view.state, view.result, view.session) == (RunState.COMPLETED, b"42", None)
    assert json.loads(view.search or b"") == {"x": 1}
    assert view.closed_us is not None
    assert view.closed_us >= view.created_us
    assert await rig.commit(change(run, b"more", seq=3)) == [Verdict.STALE]


async def test_a_successor_takes_the_id_and_what_is_unread(rig: Rig) -> None:
    parent = await rig.owned("parent")
    await rig.accept(change(parent, b"b", children=[new_run("a", parent_ref=9)]))
    session = await rig.session()
    (run,) = await rig.claim(session)
    await rig.store.send([signal("a", b"kept", request_id="r")])
    await rig.accept(change(run, b"t", timers=[NewTimer(3, 1)]))
    await rig.store.promote_due(10)
    nextone = new_run("a", head_hash=7)

    await rig.accept(
        change(run, b"end", seq=2, closing=Closing(RunState.CONTINUED_AS_NEW), successor=nextone)
    )

    (again,) = await rig.claim(session)
    assert (again.run_id, again.head_hash, again.parent_ref) == (nextone.run_id, 7, 9)
    assert again.parent_run_id == parent.run_id
    (item,) = await rig.inbox(nextone.run_id)
    assert (item.kind, item.payload) == (SIGNAL, b"kept")
    assert await rig.store.send([signal("a", request_id="r")]) == [nextone.run_id]
    assert len(await rig.inbox(nextone.run_id)) == 1
    assert [i.kind for i in await rig.inbox(parent.run_id)] == [EventKind.CHILD_STARTED]


async def test_a_parent_hears_of_its_children(rig: Rig) -> None:
    session = await rig.session()
    parent = await rig.owned("parent", session)
    taken = await rig.start("taken")
    await rig.claim(session)
    good = new_run("good", parent_ref=4)

    await rig.accept(change(parent, b"b", children=[good, new_run("taken", parent_ref=5)]))

    (child,) = await rig.claim(session)
    assert (child.run_id, child.parent_run_id) == (good.run_id, parent.run_id)
    assert await rig.mail(session) in ([parent.run_id], [])
    started, failed = await rig.inbox(parent.run_id)
    assert (started.kind, started.ref) == (EventKind.CHILD_STARTED, 4)
    assert json.loads(started.payload or b"") == {"run_id": good.run_id}
    assert (failed.kind, failed.ref) == (EventKind.CHILD_FAILED, 5)
    failure = json.loads(failed.payload or b"")
    assert failure["type"] == "WorkflowAlreadyStartedError"
    assert taken in failure["message"]

    await rig.accept(change(child, b"end", closing=Closing(RunState.COMPLETED, b'"ok"')))

    *_, done = await rig.inbox(parent.run_id)
    assert (done.kind, done.ref, done.payload) == (EventKind.CHILD_COMPLETED, 4, b'"ok"')
    assert await rig.mail(session) == [parent.run_id]


async def test_a_failed_child_gives_its_failure(rig: Rig) -> None:
    session = await rig.session()
    parent = await rig.owned("parent", session)
    await rig.accept(change(parent, b"b", children=[new_run("c", parent_ref=4)]))
    (child,) = await rig.claim(session)

    await rig.accept(change(child, b"e", closing=Closing(RunState.FAILED, failure=b'{"t":1}')))

    *_, done = await rig.inbox(parent.run_id)
    assert (done.kind, done.ref, done.payload) == (EventKind.CHILD_FAILED, 4, b'{"t":1}')


async def test_a_run_sends_messages_and_hears_of_them(rig: Rig) -> None:
    session = await rig.session()
    sender, target = await rig.owned("sender", session), await rig.owned("target", session)

    await rig.accept(
        change(sender, b"b", messages=[signal("target", ref=4), signal("nobody", ref=5)])
    )

    assert [(i.kind, i.ref) for i in await rig.inbox(target.run_id)] == [(SIGNAL, 0)]
    done, failed = await rig.inbox(sender.run_id)
    assert (done.kind, done.ref) == (EventKind.EXTERNAL_DONE, 4)
    assert (failed.kind, failed.ref) == (EventKind.EXTERNAL_FAILED, 5)
    assert sorted(await rig.mail(session)) == sorted([sender.run_id, target.run_id])


async def test_responses_are_found_by_their_request(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.accept(change(run, responses=[Response("r1", b"1"), Response("r2", failure=b"{}")]))

    assert sorted(await rig.store.responses(["r1", "r2", "r3"]), key=lambda r: r.request_id) == [
        Response("r1", b"1", None),
        Response("r2", None, b"{}"),
    ]


@pytest.mark.parametrize("bad", [{"search": b"not json"}, {"activities": [activity(3, name="\0")]}])
async def test_a_value_that_cannot_be_stored_fails_its_own_run_only(
    rig: Rig, bad: dict[str, Any]
) -> None:
    runs = [await rig.owned(f"w{n}") for n in range(5)]

    changes = [change(run, b"b") for run in runs]
    changes[2] = change(runs[2], b"b", **bad)
    verdicts = await rig.commit(*changes)

    expected = [Verdict.ACCEPTED] * 5
    expected[2] = Verdict.REFUSED
    assert verdicts == expected
    assert await rig.store.load({runs[2].run_id: 1}) == {runs[2].run_id: [b"started"]}
    await rig.accept(change(runs[2], b"better"))


async def test_a_released_run_is_claimed_again_when_it_has_mail(rig: Rig) -> None:
    run = await rig.owned("a")
    other = await rig.session()
    await rig.accept(change(run, b"b", release=True))
    assert await rig.claim(other) == []
    assert await rig.commit(change(run, b"late", seq=2)) == [Verdict.STALE]

    await rig.store.send([signal("a")])

    (again,) = await rig.claim(other)
    assert again.run_id == run.run_id
    assert again.fence > run.fence


async def test_a_run_released_with_unread_mail_is_claimed_at_once(rig: Rig) -> None:
    session = await rig.session()
    run = await rig.owned("a", session)
    await rig.store.send([signal("a")])
    assert await rig.mail(session) == [run.run_id]

    await rig.accept(change(run, release=True))

    assert [r.run_id for r in await rig.claim(await rig.session())] == [run.run_id]


# -- parked runs -----------------------------------------------------------------------------


async def test_a_parked_run_waits_for_its_time(rig: Rig) -> None:
    run = await rig.owned("a")
    session = await rig.session(10 * HOUR_US)
    now = await rig.store.now_us()
    await rig.accept(change(run, park=b'{"type":"X"}', unpark_at_us=now + HOUR_US))
    view = await rig.store.view(workflow_id="a")
    assert view is not None
    assert (view.state, view.failure) == (RunState.PARKED, b'{"type":"X"}')

    await rig.store.send([signal("a")])
    assert await rig.claim(session) == []
    await rig.pass_time(HOUR_US)
    assert (await rig.store.promote_due(10)).promoted == 1

    (again,) = await rig.claim(session)
    assert again.fence > run.fence
    assert [item.kind for item in await rig.inbox(run.run_id)] == [SIGNAL]
    assert (await rig.store.view(workflow_id="a")).state == RunState.RUNNING  # type: ignore[union-attr]


async def test_a_parked_run_can_be_unparked_once(rig: Rig) -> None:
    run = await rig.owned("a")
    now = await rig.store.now_us()
    await rig.accept(change(run, park=b"{}", unpark_at_us=now + HOUR_US))

    assert await rig.store.unpark([run.run_id, new_run("x").run_id]) == 1
    assert await rig.store.unpark([run.run_id]) == 0

    assert len(await rig.claim(await rig.session())) == 1
    assert (await rig.store.promote_due(10)).next_due_us is None


async def test_how_often_a_run_was_parked_is_kept_until_it_moves(rig: Rig) -> None:
    run = await rig.owned("a")
    for count in range(1, 4):
        assert run.parks == count - 1
        now_us = await rig.store.now_us()
        await rig.accept(change(run, park=b"{}", unpark_at_us=now_us + HOUR_US))
        await rig.pass_time(2 * HOUR_US)
        await rig.store.promote_due(10)
        session = await rig.session()
        (run,) = await rig.claim(session)
        assert run.parks == count
    assert [each.parks for each in (await rig.store.owned(session))[0]] == [3]
    # It is the same for who has it next, for whatever reason.
    await rig.accept(change(run, None, release=True))
    await rig.store.send([signal("a")])
    (run,) = await rig.claim(await rig.session())
    assert run.parks == 3
    await rig.accept(change(run, b"b"))
    await rig.accept(change(run, None, seq=2, release=True))
    await rig.store.send([signal("a")])
    (run,) = await rig.claim(await rig.session())
    assert run.parks == 0


async def test_a_run_that_somebody_unparked_begins_to_count_anew(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.accept(change(run, park=b"{}"))
    assert await rig.store.unpark([run.run_id]) == 1
    (run,) = await rig.claim(await rig.session())
    assert run.parks == 0


async def test_a_parked_run_is_claimed_to_be_terminated(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.accept(change(run, park=b"{}"))

    await rig.store.send([Message(EventKind.RUN_TERMINATED, workflow_id="a")])

    assert [r.run_id for r in await rig.claim(await rig.session())] == [run.run_id]


# -- timers ----------------------------------------------------------------------------------


async def test_a_due_timer_fires_once(rig: Rig) -> None:
    session = await rig.session()
    run = await rig.owned("a", session)
    now = await rig.store.now_us()
    later = now + HOUR_US
    await rig.accept(change(run, b"b", timers=[NewTimer(3, now), NewTimer(4, later)]))
    await rig.pass_time(1000)

    report = await rig.store.promote_due(10)

    assert report.promoted == 1
    assert report.next_due_us is not None
    assert abs(report.next_due_us - later) <= 1000
    assert (await rig.store.promote_due(10)).promoted == 0
    assert [(i.kind, i.ref) for i in await rig.inbox(run.run_id)] == [(EventKind.TIMER_FIRED, 3)]
    assert await rig.mail(session) == [run.run_id]


async def test_a_timer_that_is_done_does_not_fire(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.accept(change(run, b"b", timers=[NewTimer(3, 1), NewTimer(3, 1, TimerKind.UNPARK)]))

    await rig.accept(change(run, b"c", seq=2, timers_done=[3]))

    await rig.store.promote_due(10)
    assert await rig.inbox(run.run_id) == []


async def test_timers_are_promoted_within_the_limit(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.accept(change(run, b"b", timers=[NewTimer(n, n) for n in range(1, 8)]))

    counts = [(await rig.store.promote_due(3)).promoted for _ in range(4)]

    assert counts == [3, 3, 1, 0]
    assert sorted(i.ref for i in await rig.inbox(run.run_id)) == list(range(1, 8))


# -- activities ------------------------------------------------------------------------------


async def claim_one(rig: Rig, session: int) -> Any:
    (attempt,) = await rig.store.claim_activities(session, [QUEUE], ["pay"], 10)
    return attempt


def outcome(attempt: Any, kind: int, **more: Any) -> ActivityOutcome:
    return ActivityOutcome(
        attempt.run_id, attempt.ref, attempt.attempt, attempt.token, kind, **more
    )


async def test_an_activity_is_claimed_once_and_its_result_recorded_once(rig: Rig) -> None:
    session, worker = await rig.session(), await rig.session()
    run = await rig.owned("a", session)
    await rig.accept(change(run, b"b", activities=[activity(5, details=b"d", last_failure=b"f")]))

    attempt = await claim_one(rig, worker)
    assert await rig.store.claim_activities(session, [QUEUE], ["pay"], 10) == []
    assert (attempt.run_id, attempt.ref, attempt.attempt) == (run.run_id, 5, 1)
    assert (attempt.workflow_id, attempt.workflow_type) == ("a", TYPE)
    assert (attempt.input, attempt.details, attempt.last_failure) == (b"[1]", b"d", b"f")
    done = outcome(attempt, EventKind.ACTIVITY_COMPLETED, payload=b'"ok"')

    assert await rig.store.finish_activities([done]) == [True]
    assert await rig.store.finish_activities([done]) == [False]

    (item,) = await rig.inbox(run.run_id)
    assert (item.kind, item.ref, item.payload) == (EventKind.ACTIVITY_COMPLETED, 5, b'"ok"')
    assert await rig.mail(session) == [run.run_id]
    assert (await rig.store.waiting([run.run_id]))[run.run_id] == set()


async def test_activities_go_by_queue_name_priority_and_age(rig: Rig) -> None:
    run = await rig.owned("a")
    worker = await rig.session()
    made = [
        activity(1, priority=2),
        activity(2, priority=1),
        activity(3, priority=1),
        activity(4, name="other"),
        activity(5, queue="gpu"),
    ]
    await rig.accept(change(run, b"b", activities=made))

    claimed = [await rig.store.claim_activities(worker, [QUEUE], ["pay"], 1) for _ in range(4)]

    assert [[a.ref for a in attempts] for attempts in claimed] == [[2], [3], [1], []]
    both = await rig.store.claim_activities(worker, [QUEUE, "gpu"], ["pay", "other"], 9)
    assert {a.ref for a in both} == {4, 5}


@pytest.mark.parametrize("keys", [None, 1], ids=["unlimited", "held"])
async def test_with_the_name_of_all_others_those_named_are_left_out(
    rig: Rig, keys: int | None
) -> None:
    if keys is not None:
        await rig.store.set_queue_limits(QueueLimits(QUEUE, key_concurrency=keys))
    run = await rig.owned("a")
    worker = await rig.session()
    fair = {"fairness_key": "k"}
    await rig.accept(
        change(
            run,
            b"b",
            activities=[
                activity(1, name="strange", options=fair),
                activity(2, options=fair),
                activity(3, name="stranger", options=fair),
            ],
        )
    )
    claimed: list[int] = []
    for _ in range(3):
        attempts = await rig.store.claim_activities(worker, [QUEUE], [DYNAMIC, "pay"], 9)
        claimed += [each.ref for each in attempts]
        done = [outcome(each, EventKind.ACTIVITY_COMPLETED, payload=b"1") for each in attempts]
        await rig.store.finish_activities(done)
    assert claimed == [1, 3]
    (left,) = await rig.store.claim_activities(worker, [QUEUE], [DYNAMIC], 9)
    assert left.ref == 2


async def test_a_failed_attempt_is_tried_again_later(rig: Rig) -> None:
    run = await rig.owned("a")
    worker = await rig.session(10 * HOUR_US)
    await rig.accept(change(run, b"b", activities=[activity(5)]))
    attempt = await claim_one(rig, worker)

    again = outcome(attempt, 0, payload=b"why", delay_us=HOUR_US, details=b"half")
    assert await rig.store.finish_activities([again]) == [True]
    assert await rig.store.claim_activities(worker, [QUEUE], ["pay"], 10) == []
    await rig.pass_time(HOUR_US)
    assert (await rig.store.promote_due(10)).promoted == 1

    second = await claim_one(rig, worker)
    assert (second.attempt, second.last_failure, second.details) == (2, b"why", b"half")
    assert second.token != attempt.token
    assert await rig.store.finish_activities([outcome(attempt, 2)]) == [False]
    assert await rig.inbox(run.run_id) == []


async def test_an_interrupted_attempt_does_not_count(rig: Rig) -> None:
    run = await rig.owned("a")
    worker = await rig.session()
    await rig.accept(change(run, b"b", activities=[activity(5)]))
    attempt = await claim_one(rig, worker)

    await rig.store.finish_activities([outcome(attempt, 0, count_attempt=False)])

    assert (await claim_one(rig, worker)).attempt == 1


async def test_a_queued_activity_may_wait_before_its_first_attempt(rig: Rig) -> None:
    run = await rig.owned("a")
    worker = await rig.session(10 * HOUR_US)
    await rig.accept(change(run, b"b", activities=[activity(5, delay_us=HOUR_US, attempt=3)]))
    assert await rig.store.claim_activities(worker, [QUEUE], ["pay"], 10) == []

    await rig.pass_time(HOUR_US)
    await rig.store.promote_due(10)

    assert (await claim_one(rig, worker)).attempt == 3


async def test_a_cancelled_activity_is_not_claimed_and_its_result_is_void(rig: Rig) -> None:
    run = await rig.owned("a")
    worker = await rig.session()
    await rig.accept(change(run, b"b", activities=[activity(5), activity(6, input=b"[2]")]))
    (five,) = await rig.store.claim_activities(worker, [QUEUE], ["pay"], 1)

    await rig.accept(change(run, b"c", seq=2, activities_done=[5, 6]))

    assert await rig.store.claim_activities(worker, [QUEUE], ["pay"], 9) == []
    assert await rig.store.finish_activities([outcome(five, 2)]) == [False]
    assert not await rig.store.heartbeat_activity(five.run_id, 5, five.token, b"")
    assert await rig.inbox(run.run_id) == []


RETRY = {"retry": {"initial": 10, "backoff": 2, "max": 15, "attempts": 3}}


async def test_an_attempt_over_its_time_is_tried_again_until_none_is_left(rig: Rig) -> None:
    session = await rig.session(1000 * HOUR_US)
    run = await rig.owned("a", session)
    options = {"start_to_close": 60, **RETRY}
    await rig.accept(change(run, b"b", activities=[activity(5, options=options)]))

    for number, wait in ((1, 10), (2, 15)):
        attempt = await claim_one(rig, session)
        assert attempt.attempt == number
        await rig.pass_time(61_000_000)
        assert (await rig.store.promote_due(10)).promoted == 1
        assert await rig.store.finish_activities([outcome(attempt, 2)]) == [False]
        assert await rig.store.claim_activities(session, [QUEUE], ["pay"], 9) == []
        await rig.pass_time((wait - 1) * 1_000_000)
        assert (await rig.store.promote_due(10)).promoted == 0
        await rig.pass_time(1_000_000)
        assert (await rig.store.promote_due(10)).promoted == 1

    last = await claim_one(rig, session)
    assert json.loads(last.last_failure) == {
        "type": "TimeoutError",
        "message": "start-to-close timeout",
        "attempt": 2,
    }
    await rig.pass_time(61_000_000)
    await rig.store.promote_due(10)

    (item,) = await rig.inbox(run.run_id)
    assert (item.kind, item.ref) == (EventKind.ACTIVITY_FAILED, 5)
    assert json.loads(item.payload or b"")["message"] == "start-to-close timeout"
    assert await rig.mail(session) == [run.run_id]


async def test_heartbeats_keep_an_attempt_alive(rig: Rig) -> None:
    run = await rig.owned("a")
    worker = await rig.session(10 * HOUR_US)
    options = {"heartbeat": 60, **RETRY}
    await rig.accept(change(run, b"b", activities=[activity(5, options=options)]))
    attempt = await claim_one(rig, worker)

    await rig.pass_time(50_000_000)
    assert await rig.store.heartbeat_activity(run.run_id, 5, attempt.token, b"half")
    await rig.pass_time(50_000_000)
    assert (await rig.store.promote_due(10)).promoted == 0
    await rig.pass_time(20_000_000)
    assert (await rig.store.promote_due(10)).promoted == 1

    assert not await rig.store.heartbeat_activity(run.run_id, 5, attempt.token, b"late")
    await rig.pass_time(20_000_000)
    await rig.store.promote_due(10)
    again = await claim_one(rig, worker)
    assert again.details == b"half"
    assert json.loads(again.last_failure)["message"] == "heartbeat timeout"


async def test_an_activity_nobody_takes_in_time_fails(rig: Rig) -> None:
    run = await rig.owned("a")
    options = {"schedule_to_start": 60}
    await rig.accept(change(run, b"b", activities=[activity(5, options=options)]))

    await rig.pass_time(61_000_000)
    await rig.store.promote_due(10)

    (item,) = await rig.inbox(run.run_id)
    assert json.loads(item.payload or b"")["message"] == "schedule-to-start timeout"
    assert await rig.store.claim_activities(await rig.session(), [QUEUE], ["pay"], 9) == []


async def test_an_activity_over_all_its_time_is_not_tried_again(rig: Rig) -> None:
    run = await rig.owned("a")
    worker = await rig.session(10 * HOUR_US)
    options = {"schedule_to_close": 60, "start_to_close": 50, **RETRY}
    await rig.accept(change(run, b"b", activities=[activity(5, options=options)]))
    await claim_one(rig, worker)

    await rig.pass_time(61_000_000)
    await rig.store.promote_due(10)

    (item,) = await rig.inbox(run.run_id)
    assert json.loads(item.payload or b"")["message"] == "schedule-to-close timeout"


# -- sessions --------------------------------------------------------------------------------


async def test_a_dead_session_loses_everything_at_once(rig: Rig) -> None:
    dead, alive = await rig.session(), await rig.session()
    run = await rig.owned("a", dead)
    await rig.accept(change(run, b"b", activities=[activity(5)]))
    attempt = await claim_one(rig, dead)
    await rig.store.send([signal("a")])

    assert await rig.other.end_sessions([dead]) == 1

    assert await rig.store.heartbeat([dead, alive], HOUR_US) == {alive}
    assert await rig.commit(change(run, b"zombie", seq=2)) == [Verdict.STALE]
    assert await rig.store.finish_activities([outcome(attempt, 2)]) == [False]
    (again,) = await rig.claim(alive)
    assert (again.run_id, again.crashes, again.next_seq) == (run.run_id, 1, 2)
    assert again.fence > run.fence
    retried = await claim_one(rig, alive)
    assert (retried.ref, retried.attempt) == (5, 1)
    assert [i.kind for i in await rig.inbox(run.run_id)] == [SIGNAL]
    assert await rig.other.end_sessions([dead]) == 0


async def test_an_attempt_that_kills_its_workers_counts_as_failed(rig: Rig) -> None:
    run = await rig.owned("a", await rig.session())
    options = {"retry": {"initial": 10, "attempts": 2}}
    await rig.accept(change(run, b"b", activities=[activity(5, options=options)]))

    for _ in range(3):
        worker = await rig.session()
        assert (await claim_one(rig, worker)).attempt == 1
        await rig.store.end_sessions([worker])
    last = await rig.session(10 * HOUR_US)
    assert await rig.store.claim_activities(last, [QUEUE], ["pay"], 9) == []
    await rig.pass_time(11_000_000)
    await rig.store.promote_due(10)
    second = await claim_one(rig, last)
    assert second.attempt == 2
    assert json.loads(second.last_failure)["type"] == "WorkerCrashedError"

    await rig.store.end_sessions([last])

    (item,) = await rig.inbox(run.run_id)
    assert (item.kind, item.ref) == (EventKind.ACTIVITY_FAILED, 5)
    assert json.loads(item.payload or b"")["type"] == "WorkerCrashedError"


async def test_a_drained_worker_does_not_make_its_attempts_suspect(rig: Rig) -> None:
    run = await rig.owned("a", await rig.session())
    await rig.accept(change(run, b"b", activities=[activity(5)]))

    for _ in range(5):
        worker = await rig.session()
        assert (await claim_one(rig, worker)).attempt == 1
        await rig.store.end_sessions([worker], crashed=False)


async def test_crashes_count_until_a_commit_goes_through(rig: Rig) -> None:
    run = await rig.owned("a")
    for crashes in (1, 2):
        session = (await rig.store.view(run_id=run.run_id)).session  # type: ignore[union-attr]
        assert session is not None
        await rig.store.end_sessions([session])
        (run,) = await rig.claim(await rig.session())
        assert run.crashes == crashes

    # The first batch only says what the start caused: nothing that may crash has run yet.
    await rig.accept(change(run, b"b"))
    await rig.accept(change(run, b"c", seq=2))

    last = (await rig.store.view(run_id=run.run_id)).session  # type: ignore[union-attr]
    assert last is not None
    await rig.store.end_sessions([last], crashed=False)
    (run,) = await rig.claim(await rig.session())
    assert run.crashes == 0


async def test_a_crash_during_a_trial_is_counted_for_the_suspect_alone(rig: Rig) -> None:
    session = await rig.session()
    suspect, beside = await rig.owned("a", session), await rig.owned("b", session)
    await rig.accept(change(beside, b"b", activities=[activity(5)]))
    await claim_one(rig, session)
    await rig.store.suspect(session, suspect.run_id)
    await rig.store.suspect(999, beside.run_id)

    await rig.store.end_sessions([session])

    following = await rig.session()
    crashes = {run.run_id: run.crashes for run in await rig.claim(following)}
    assert crashes == {suspect.run_id: 1, beside.run_id: 0}

    await rig.store.suspect(following, suspect.run_id)
    await rig.store.suspect(following, None)
    await rig.store.end_sessions([following])
    again = {run.run_id: run.crashes for run in await rig.claim(await rig.session())}
    assert again == {suspect.run_id: 2, beside.run_id: 1}


async def test_a_lease_that_is_over_ends_the_session(rig: Rig) -> None:
    slow, alive = await rig.session(HOUR_US), await rig.session(3 * HOUR_US)
    run = await rig.owned("a", slow)
    assert await rig.store.reap_sessions() == 0

    await rig.pass_time(2 * HOUR_US)

    assert await rig.store.reap_sessions() == 1
    assert [r.run_id for r in await rig.claim(alive)] == [run.run_id]
    assert await rig.store.heartbeat([slow], HOUR_US) == set()


async def test_a_heartbeat_extends_the_lease(rig: Rig) -> None:
    session = await rig.session(HOUR_US)

    assert await rig.store.heartbeat([session], 3 * HOUR_US) == {session}
    await rig.pass_time(2 * HOUR_US)

    assert await rig.store.reap_sessions() == 0


# -- views -----------------------------------------------------------------------------------


async def test_views_show_the_newest_first(rig: Rig) -> None:
    session = await rig.session()
    for name in ("one", "two"):
        await rig.owned(name, session)
    done = await rig.owned("done", session)
    await rig.close(done)
    await rig.start("other", workflow_type="invoice", start_delay_us=HOUR_US)

    async def names(**how: Any) -> list[str]:
        limit = how.pop("limit", 100)
        return [view.workflow_id for view in await rig.store.views(Runs(**how), limit=limit)]

    assert await names() == ["other", "done", "two", "one"]
    assert await names(limit=1) == ["other"]
    assert await names(workflow_type=TYPE, states=[RunState.RUNNING]) == ["two", "one"]
    assert await names(states=[RunState.COMPLETED]) == ["done"]
    assert await names(workflow_type="invoice", states=[RunState.RUNNING]) == ["other"]


async def test_the_open_run_of_an_id_is_seen_before_the_closed_one(rig: Rig) -> None:
    first = await rig.owned("a")
    await rig.close(first)
    assert (await rig.store.view(workflow_id="a")).run_id == first.run_id  # type: ignore[union-attr]

    second = await rig.start("a", id_reuse=IdReuse.AFTER_CLOSE)

    assert (await rig.store.view(workflow_id="a")).run_id == second  # type: ignore[union-attr]
    assert (await rig.store.view(run_id=first.run_id)).state == RunState.COMPLETED  # type: ignore[union-attr]
    assert await rig.store.view(workflow_id="nobody") is None


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"customer": "Ann"}, ["closed", "open"]),
        ({"customer": "Ann", "count": 3}, ["open"]),
        ({"count": 3.0}, ["open"]),
        ({"count": "3"}, []),
        ({"vip": True}, ["open"]),
        ({"vip": 1}, []),
        ({"tags": ["a"]}, ["open"]),
        ({"tags": ["c", "a"]}, ["open"]),
        ({"tags": ["a", "d"]}, []),
        ({"tags": []}, ["open"]),
        ({"tags": "a"}, []),
        ({"place": {"city": "Ulm"}}, ["closed"]),
        ({"place": {}}, ["closed"]),
        ({"customer": "Bob"}, []),
    ],
)
async def test_views_are_found_by_search_attributes(
    rig: Rig, wanted: dict[str, Any], found: list[str]
) -> None:
    session = await rig.session()
    await rig.start("bare")
    await rig.start("open", search=b'{"customer":"Ann","count":3,"vip":true,"tags":["a","b","c"]}')
    ended = json.dumps({"customer": "Ann", "place": {"city": "Ulm", "zip": "89073"}}).encode()
    await rig.start("closed", search=ended)
    run = next(run for run in await rig.claim(session) if run.workflow_id == "closed")
    await rig.close(run)

    views = await rig.store.views(Runs(search=json.dumps(wanted).encode()))

    assert sorted(view.workflow_id for view in views) == found
    assert all(view.search is not None for view in views)


async def test_search_goes_together_with_type_state_and_limit(rig: Rig) -> None:
    session = await rig.session()
    for name in ("one", "two"):
        await rig.owned(name, session, search=b'{"x":1}')
    done = await rig.owned("done", session, search=b'{"x":1}')
    await rig.close(done)
    await rig.start("other", workflow_type="invoice", search=b'{"x":1}', start_delay_us=HOUR_US)

    async def names(**how: Any) -> list[str]:
        limit = how.pop("limit", 100)
        views = await rig.store.views(Runs(search=b'{"x":1}', **how), limit=limit)
        return [view.workflow_id for view in views]

    assert await names() == ["other", "done", "two", "one"]
    assert await names(limit=2) == ["other", "done"]
    assert await names(workflow_type=TYPE, states=[RunState.RUNNING]) == ["two", "one"]
    assert await names(states=[RunState.COMPLETED]) == ["done"]
    assert await names(workflow_type="invoice", states=[RunState.RUNNING]) == ["other"]


async def test_changed_attributes_are_found_and_old_ones_are_not(rig: Rig) -> None:
    run = await rig.owned("a", search=b'{"x":1}')
    await rig.accept(change(run, b"b", search=b'{"y":2}'))

    assert await rig.store.views(Runs(search=b'{"x":1}')) == []
    assert [v.workflow_id for v in await rig.store.views(Runs(search=b'{"y":2}'))] == ["a"]


async def test_the_first_batch_can_be_had_without_the_others(rig: Rig) -> None:
    run = await rig.owned("a")
    await rig.accept(change(run, b"second"))
    (first, _) = (await rig.store.load({run.run_id: run.part}))[run.run_id]

    unknown = "00000000-0000-7000-8000-000000000000"
    assert await rig.store.first_batches({run.run_id: run.part, unknown: 1}) == {run.run_id: first}
    assert await rig.store.first_batches({}) == {}


async def test_packed_histories_are_those_that_load_gives(rig: Rig) -> None:
    runs = [await rig.owned(name) for name in "abc"]
    await rig.accept(change(runs[0], b""))
    await rig.accept(change(runs[2], b"second"))
    await rig.accept(change(runs[2], b"third" * 10_000, seq=2))
    unknown = "00000000-0000-7000-8000-000000000000"
    # Neither in order of their ids, nor all known.
    parts = {runs[2].run_id: runs[2].part, unknown: 1}
    parts |= {run.run_id: run.part for run in runs[:2]}

    packed = await rig.store.load_packed(parts)
    sent = PackedHistories.from_bytes(len(parts), b"".join(packed))

    loaded = await rig.store.load(parts)
    assert [len(batches) for batches in loaded.values()] == [3, 0, 2, 1]
    assert list(packed.unpack()) == list(sent.unpack()) == list(loaded.values())
    assert not packed.has_all
    assert (await rig.store.load_packed({runs[0].run_id: runs[0].part})).has_all
    assert list((await rig.store.load_packed({})).unpack()) == []


async def test_search_attributes_are_replaced(rig: Rig) -> None:
    run = await rig.owned("a", search=b'{"x":1}')

    await rig.accept(change(run, b"b", search=b'{"y":2}'))

    view = await rig.store.view(workflow_id="a")
    assert view is not None
    assert json.loads(view.search or b"") == {"y": 2}


async def test_types_are_remembered(rig: Rig) -> None:
    order = TypeInfo("order", "workflow", QUEUE, "order() -> int", "An order.")
    pay = TypeInfo("pay", "activity", QUEUE, "pay() -> None")

    await rig.store.register_types([order, pay])
    await rig.other.register_types([replace(order, doc="New.")])

    assert await rig.store.types() == [replace(order, doc="New."), pay]


async def test_a_hint_reaches_a_listener(rig: Rig) -> None:
    async with rig.store.listen() as heard:
        await rig.other.notify()
        async with asyncio.timeout(20):
            async for _ in heard:
                break


async def test_a_hint_says_what_to_look_at(rig: Rig) -> None:
    said = [Hint(runs_only=True), Hint(), Hint(runs_only=True)]
    async with rig.store.listen() as heard, rig.store.listen(done=True) as heard_by_clients:
        for hint in said:
            await rig.other.notify(hint)
        closed = Hint(done=True, run_ids=tuple(str(uuid4()) for _ in range(HINT_RUNS_MAX)))
        await rig.other.notify(closed)
        await rig.other.notify(Hint(done=True))
        async with asyncio.timeout(20):
            assert [await anext(heard) for _ in said] == said
            assert await anext(heard_by_clients) == closed
            assert await anext(heard_by_clients) == Hint(done=True)


async def test_a_look_finds_what_a_claim_would(rig: Rig) -> None:
    mine, other = await rig.session(), await rig.session()
    assert await rig.store.look([mine, other], [QUEUE]) == (set(), False)

    run_id = await rig.start("a")
    assert await rig.store.look([mine, other], [QUEUE]) == (set(), True)
    assert await rig.store.look([mine, other], ["elsewhere"]) == (set(), False)

    (run,) = await rig.claim(mine)
    assert await rig.store.look([mine, other], [QUEUE]) == (set(), False)

    await rig.other.send([Message(EventKind.SIGNAL_RECEIVED, run_id=run_id, name="s")])
    assert await rig.store.look([mine, other], [QUEUE]) == ({mine}, False)
    assert await rig.mail(mine) == [run_id]

    await rig.accept(change(run, b"b", timers=[NewTimer(1, await rig.store.now_us() + HOUR_US)]))
    assert await rig.store.look([mine, other], []) == (set(), False)
    await rig.pass_time(2 * HOUR_US)
    assert await rig.store.look([mine, other], []) == (set(), True)


async def test_a_session_is_registered_again_by_itself(rig: Rig) -> None:
    session = await rig.session(HOUR_US)
    info = SessionInfo(session, "host", 1, "", [QUEUE])

    await rig.store.register_session(info, 9 * HOUR_US)
    await rig.pass_time(2 * HOUR_US)

    assert await rig.store.reap_sessions() == 0
