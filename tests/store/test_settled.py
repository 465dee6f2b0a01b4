"""Up to which id a reader has seen everything, though ids become visible in any order."""

from __future__ import annotations

import itertools
import random

import psycopg
import pytest
from support.store_rig import PostgresRig, Rig, change

from durable.events import EventKind, Message
from durable.store.settled import MARKS_MAX, NO_FLOOR, Floor, Settled


def signal(workflow_id: str, payload: bytes) -> Message:
    return Message(EventKind.SIGNAL_RECEIVED, workflow_id=workflow_id, name="go", payload=payload)


def test_an_id_is_settled_when_all_that_was_under_way_has_ended() -> None:
    settled = Settled()

    assert settled.note(1, xmin=10, xmax=20, highest=5).id == 0
    assert settled.note(1, xmin=19, xmax=30, highest=9).id == 0
    assert settled.note(1, xmin=20, xmax=31, highest=12).id == 5
    assert settled.note(1, xmin=31, xmax=31, highest=12) == Floor(1, 12)


def test_a_snapshot_from_before_knows_less() -> None:
    settled = Settled()
    settled.note(1, 10, 20, 5)
    assert settled.note(1, 25, 30, 9).id == 5

    # Its answer came later than one that was asked for after it.
    assert settled.note(1, 15, 22, 8).id == 0


def test_another_server_knows_nothing() -> None:
    settled = Settled()
    settled.note(1, 10, 20, 5)
    assert settled.note(1, 25, 30, 9) == Floor(1, 5)

    # It took over, without the last transactions of the one before.
    assert settled.note(2, 40, 40, 4) == Floor(2, 0)
    assert settled.note(2, 40, 41, 4) == Floor(2, 4)


def test_what_is_kept_is_bounded_while_a_transaction_does_not_end() -> None:
    settled = Settled()
    for number in range(10 * MARKS_MAX):
        assert settled.note(1, 5, 10 + number, number).id == 0
        assert len(settled._marks) <= MARKS_MAX

    assert settled.note(1, 10**6, 10**6, 10**6).id == 10 * MARKS_MAX - 1


@pytest.mark.parametrize("seed", range(200))
def test_nothing_up_to_a_settled_id_comes_later(seed: int) -> None:
    rng = random.Random(seed)
    settled = Settled()
    next_xid, next_id = 100, 1
    under_way: dict[int, list[int]] = {}
    visible: set[int] = set()
    floor = 0
    answers: list[tuple[int, int, int, set[int]]] = []
    for _ in range(400):
        what = rng.random()
        if what < 0.3:
            under_way[next_xid] = []
            next_xid += 1
        elif what < 0.6 and under_way:
            under_way[rng.choice(list(under_way))].append(next_id)
            next_id += 1
        elif what < 0.8 and under_way:
            ids = under_way.pop(rng.choice(list(under_way)))
            if rng.random() < 0.8:
                visible |= set(ids)
        elif visible:
            answers.append((min(under_way, default=next_xid), next_xid, max(visible), {*visible}))
        if answers and rng.random() < 0.5:
            # Answers may come out of order.
            xmin, xmax, highest, seen = answers.pop(rng.randrange(len(answers)))
            floor = settled.note(1, xmin, xmax, highest).id
            to_come = {each for ids in under_way.values() for each in ids}
            missing = {each for each in (visible | to_come) if each <= floor} - seen
            assert not missing


async def test_a_look_begins_after_the_floor_and_with_the_word_for_the_owner(rig: Rig) -> None:
    one, other = await rig.owned("a"), await rig.owned("b")
    for n in range(4):
        await rig.store.send([signal("a", b"%d" % n), signal("b", b"%d" % n)])
    items, settled = await rig.store.mail_after({one.run_id: NO_FLOOR, other.run_id: NO_FLOOR}, 3)
    assert [item.payload for item in items] == [b"0", b"0", b"1", b"1", b"2", b"2"]
    newest = max(item.id for item in await rig.store.inbox([other.run_id]))
    assert settled.id == 0 or settled.id >= newest
    server = settled.server
    await rig.store.pause({one.run_id: b'"why"'})

    floor = Floor(server, items[2].id)
    floors = {one.run_id: floor, other.run_id: Floor(server, 10**9)}
    items, _ = await rig.store.mail_after(floors, 3)

    assert [(item.run_id, item.name) for item in items] == [
        (one.run_id, "paused"),
        (one.run_id, "go"),
        (one.run_id, "go"),
    ]
    assert items[0].id < 0
    assert (await rig.store.mail_after({}, 3))[0] == []


async def test_mail_of_a_slow_sender_is_found_after_that_of_quick_ones(
    postgres: PostgresRig,
) -> None:
    run = await postgres.owned("a")
    floor = NO_FLOOR
    seen: list[bytes | None] = []
    commits = itertools.count(run.next_seq)

    async def look() -> None:
        nonlocal floor
        items, settled = await postgres.store.mail_after({run.run_id: floor}, 100)
        fresh = [item for item in items if item.payload not in seen]
        seen.extend(item.payload for item in fresh)
        floor = max(floor, settled, key=lambda each: each.id)
        if fresh:
            # Who reads on has written what was read.
            read = [item.id for item in fresh]
            await postgres.accept(change(run, b"b", seq=next(commits), consumed=read))

    async with await psycopg.AsyncConnection.connect(postgres.dsn) as slow:
        await postgres.store.send([signal("a", b"slow")], slow)
        for n in range(5):
            await postgres.store.send([signal("a", b"%d" % n)])
            await look()
        assert floor.id == 0, "a sender with a lower id is under way"
        await slow.commit()
    await look()
    await postgres.store.send([signal("a", b"last")])
    await look()

    assert seen == [b"0", b"1", b"2", b"3", b"4", b"slow", b"last"]
    assert floor.id > 0

    # On another server that id says nothing.
    await postgres.store.send([signal("a", b"more")])
    for server, found in ((floor.server, 0), (floor.server + 1, 1), (0, 1)):
        items, _ = await postgres.store.mail_after({run.run_id: Floor(server, 10**12)}, 100)
        assert len(items) == found
