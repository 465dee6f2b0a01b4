"""Calls that send a message and start the run if need be, on both stores."""

from __future__ import annotations

from typing import Any

from support.store_rig import HOUR_US, Rig, change, new_run

from durable.events import Closing, IdReuse, Message, NewRun, RunState, Started


def asked(workflow_id: str, request_id: str = "r", **options: Any) -> tuple[NewRun, Message]:
    message = Message(5, workflow_id=workflow_id, name="go", payload=b"1", request_id=request_id)
    return new_run(workflow_id, **options), message


async def start_and_send(rig: Rig, *pairs: tuple[NewRun, Message]) -> list[Started]:
    return await rig.store.start_and_send([run for run, _ in pairs], [m for _, m in pairs])


async def test_a_start_with_a_message_is_claimed_with_it(rig: Rig) -> None:
    run, message = asked("a")

    assert await start_and_send(rig, (run, message)) == [Started(True, run.run_id)]

    (claimed,) = await rig.claim(await rig.session())
    assert claimed.run_id == run.run_id
    assert claimed.has_mail
    assert [item.name for item in await rig.inbox(run.run_id)] == ["go"]


async def test_an_open_run_gets_the_message_and_no_other_is_started(rig: Rig) -> None:
    session = await rig.session()
    open_run = await rig.owned("a", session)

    (started,) = await start_and_send(rig, asked("a"))

    assert started == Started(False, open_run.run_id, RunState.RUNNING)
    assert await rig.mail(session) == [open_run.run_id]
    assert [item.payload for item in await rig.inbox(open_run.run_id)] == [b"1"]
    assert len(await rig.store.views()) == 1


async def test_a_message_is_sent_once_however_often_the_call_is_repeated(rig: Rig) -> None:
    pair = asked("a")
    for _ in range(2):
        assert await start_and_send(rig, pair) == [Started(True, pair[0].run_id)]
    # Another attempt at the same request that could not know the run.
    (again,) = await start_and_send(rig, asked("a"))
    assert again.run_id == pair[0].run_id
    assert len(await rig.inbox(pair[0].run_id)) == 1

    await start_and_send(rig, asked("a", "another request"))
    assert len(await rig.inbox(pair[0].run_id)) == 2


async def test_a_closed_run_of_the_id_decides_whether_another_may_start(rig: Rig) -> None:
    closed = await rig.owned("a")
    await rig.close(closed)

    (refused,) = await start_and_send(rig, asked("a"))
    assert refused == Started(False, closed.run_id, RunState.COMPLETED)
    assert await rig.inbox(closed.run_id) == []

    run, message = asked("a", id_reuse=IdReuse.AFTER_CLOSE)
    assert await start_and_send(rig, (run, message)) == [Started(True, run.run_id)]
    assert len(await rig.inbox(run.run_id)) == 1


async def test_a_repeated_request_whose_run_has_ended_disturbs_no_later_run(rig: Rig) -> None:
    session = await rig.session()
    pair = asked("a", id_reuse=IdReuse.AFTER_CLOSE)
    await start_and_send(rig, pair)
    (claimed,) = await rig.claim(session)
    consumed = [item.id for item in await rig.inbox(claimed.run_id)]
    await rig.accept(
        change(claimed, b"end", consumed=consumed, closing=Closing(RunState.COMPLETED))
    )
    ended = Started(True, claimed.run_id, RunState.COMPLETED)

    assert await start_and_send(rig, pair) == [ended]
    later = await rig.start("a", id_reuse=IdReuse.AFTER_CLOSE)
    assert await start_and_send(rig, pair) == [ended]
    assert await rig.inbox(later) == []


async def test_many_starts_with_messages_are_told_apart(rig: Rig) -> None:
    open_run = await rig.owned("open")
    fresh, twice = asked("fresh"), asked("fresh", "second")

    started = await start_and_send(rig, fresh, asked("open"), twice)

    assert [each.run_id for each in started] == [fresh[0].run_id, open_run.run_id, fresh[0].run_id]
    assert len(await rig.inbox(fresh[0].run_id)) == 2
    assert len(await rig.inbox(open_run.run_id)) == 1
    assert await start_and_send(rig) == []


async def test_a_delayed_start_keeps_its_message(rig: Rig) -> None:
    run, message = asked("a", start_delay_us=HOUR_US)
    await start_and_send(rig, (run, message))
    session = await rig.session(9 * HOUR_US)
    assert await rig.claim(session) == []

    await rig.pass_time(HOUR_US + 1_000_000)
    await rig.store.promote_due(10)

    (claimed,) = await rig.claim(session)
    assert [item.name for item in await rig.inbox(claimed.run_id)] == ["go"]
