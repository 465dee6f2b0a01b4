"""A send whose answer was lost is sent again, and nothing arrives twice."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest
from support.store_rig import PostgresRig, change

from durable.events import EventKind, Message, MessageKind, NewTimer, Response, Verdict
from durable.store.base import DONE, Hint
from durable.store.commits import send_params

SIGNAL = EventKind.SIGNAL_RECEIVED


def signal(to: str, name: str, request_id: str | None = None) -> Message:
    return Message(SIGNAL, workflow_id=to, name=name, request_id=request_id)


async def sent(rig: PostgresRig, messages: Sequence[Message], call: str | None) -> list[str | None]:
    rows = await rig.store.fetch("send", (*send_params(messages), call))
    return [row[0] for row in rows]


async def names(rig: PostgresRig, run_id: str) -> list[str | None]:
    return [item.name for item in await rig.inbox(run_id)]


@pytest.mark.parametrize("by_id", [True, False])
async def test_a_call_to_one_run_can_be_repeated(postgres: PostgresRig, by_id: bool) -> None:
    run = await postgres.owned("a")
    messages = [signal("a", str(n)) for n in range(5)]
    if by_id:
        messages = [Message(SIGNAL, run_id=run.run_id, name=str(n)) for n in range(5)]

    for _ in range(2):
        assert await sent(postgres, messages, "once") == [run.run_id] * 5
    assert await names(postgres, run.run_id) == ["0", "1", "2", "3", "4"]

    await postgres.accept(
        change(run, b"b", consumed=[item.id for item in await postgres.inbox(run.run_id)])
    )
    await sent(postgres, messages, "once")
    assert await names(postgres, run.run_id) == []
    await sent(postgres, messages, "twice")
    assert len(await names(postgres, run.run_id)) == 5


async def test_a_call_to_many_runs_can_be_repeated(postgres: PostgresRig) -> None:
    one, other = await postgres.owned("a"), await postgres.owned("b")
    messages = [
        signal("a", "first"),
        signal("b", "first"),
        signal("a", "own", "mine"),
        signal("a", "own again", "mine"),
        signal("nobody", "lost"),
        signal("a", "last"),
    ]

    for call in ("x", "x", "y"):
        assert await sent(postgres, messages, call) == [
            *(one.run_id, other.run_id, one.run_id, one.run_id),
            *(None, one.run_id),
        ]

    # Once by each call, and what has an id of its own once at all.
    assert await names(postgres, one.run_id) == ["first", "own", "last", "first", "last"]
    assert await names(postgres, other.run_id) == ["first", "first"]


async def test_a_query_is_asked_as_often_as_it_is_sent(postgres: PostgresRig) -> None:
    run = await postgres.owned("a")
    query = Message(MessageKind.QUERY, workflow_id="a", name="q", request_id="q")

    for _ in range(2):
        await sent(postgres, [query], "x")
        await sent(postgres, [query, signal("a", "s")], "x")

    assert await names(postgres, run.run_id) == ["q", "q", "s", "q", "q"]


async def test_a_call_that_is_named_by_nobody_sends_each_time(postgres: PostgresRig) -> None:
    run = await postgres.owned("a")

    for _ in range(2):
        await sent(postgres, [signal("a", "s")], None)
        await sent(postgres, [signal("a", "s"), signal("nobody", "s")], None)

    assert await names(postgres, run.run_id) == ["s"] * 4


async def test_nothing_is_kept_in_mind_for_nobody(postgres: PostgresRig) -> None:
    assert await sent(postgres, [signal("nobody", "s")] * 3, "x") == [None] * 3
    assert await sent(postgres, [], "x") == []

    run = await postgres.owned("nobody")
    assert await sent(postgres, [signal("nobody", "s")], "x") == [run.run_id]
    assert await names(postgres, run.run_id) == ["s"]


async def test_one_message_goes_with_the_hint_of_whose_it_is(postgres: PostgresRig) -> None:
    session = await postgres.session()
    run = await postgres.owned("a", session)
    free = await postgres.start("b")
    async with postgres.other.listen() as heard:
        assert await postgres.store.send_telling(signal("a", "1")) == (run.run_id, True)
        assert await anext(heard) == Hint(runs_only=True, sessions=(session,))
        assert await postgres.store.send_telling(signal("b", "1")) == (free, True)
        assert await anext(heard) == Hint(runs_only=True)
        assert await postgres.store.send_telling(signal("nobody", "1")) == (None, False)

        # Another transaction has the lock of the server for its own hint.
        async with await psycopg.AsyncConnection.connect(postgres.dsn) as other:
            await other.execute("select durable.tell('x', 'y')")
            assert await postgres.store.send_telling(signal("a", "2")) == (run.run_id, False)
    assert await names(postgres, run.run_id) == ["1", "2"]


async def test_answers_go_with_the_hint_that_they_are_there(postgres: PostgresRig) -> None:
    run = await postgres.owned("a")
    async with postgres.other.listen(done=True) as heard:
        answer = Response("question", payload=b"1")
        answered = await postgres.store.commit([change(run, responses=[answer])])
        assert answered.verdicts == [Verdict.ACCEPTED]
        assert answered.told
        assert await anext(heard) == DONE
        assert await postgres.store.responses(["question"]) == [answer]

        # With more to write the hint comes after.
        both = change(run, b"b", responses=[Response("again")], timers=[NewTimer(7, 1)])
        assert not (await postgres.store.commit([both])).told
