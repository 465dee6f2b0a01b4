"""Keys of starts, on both stores: who holds one, how long, and what debouncing replaces."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.store_rig import HOUR_US, Rig, change, new_run

from durable.events import Closing, EventKind, IdReuse, Message, NewRun, RunState, Started
from durable.store.pages import Runs

MINUTE_US = 60_000_000


async def start(rig: Rig, new: NewRun) -> Started:
    (started,) = await rig.store.start_runs([new])
    return started


def debounced(workflow_id: str, **options: object) -> NewRun:
    given = {"debounce_key": "k", "start_delay_us": MINUTE_US, **options}
    return new_run(workflow_id, **given)


# -- deduplication ---------------------------------------------------------------------------


async def test_a_held_key_yields_the_run_that_holds_it(rig: Rig) -> None:
    first = await rig.start("a", dedup_key="k")
    again = await start(rig, new_run("b", dedup_key="k"))
    assert (again.accepted, again.run_id, again.holder_id) == (False, first, "a")
    assert again.holder_us is not None
    assert await rig.store.view(workflow_id="b") is None
    assert len(await rig.claim(await rig.session())) == 1


async def test_a_key_is_of_one_type_and_one_queue(rig: Rig) -> None:
    await rig.start("a", dedup_key="k")
    await rig.start("b", dedup_key="k", queue="other")
    await rig.start("c", dedup_key="k", workflow_type="other")
    await rig.start("d", dedup_key="other")
    await rig.start("e", debounce_key="k", start_delay_us=MINUTE_US)


async def test_the_end_of_a_run_frees_its_key(rig: Rig) -> None:
    run = await rig.owned("a", dedup_key="k")
    await rig.close(run)
    assert (await start(rig, new_run("b", dedup_key="k"))).accepted


async def test_the_key_goes_from_run_to_run_of_a_chain(rig: Rig) -> None:
    run = await rig.owned("a", dedup_key="k")
    following = new_run("a")
    closing = Closing(RunState.CONTINUED_AS_NEW)
    await rig.accept(change(run, b"end", closing=closing, successor=following))
    held = await start(rig, new_run("b", dedup_key="k"))
    assert (held.run_id, held.holder_id) == (following.run_id, "a")


@pytest.mark.parametrize("moved", [{"queue": "other"}, {"workflow_type": "other"}])
async def test_a_chain_that_moves_on_leaves_its_key(rig: Rig, moved: dict[str, str]) -> None:
    """Where it goes the key may be somebody else's, and the chain must not break on that."""
    await rig.start("there", dedup_key="k", **moved)
    run = await rig.owned("a", dedup_key="k")
    following = new_run("a", **moved)
    closing = Closing(RunState.CONTINUED_AS_NEW)
    await rig.accept(change(run, b"end", closing=closing, successor=following))
    assert (await rig.store.view(run_id=following.run_id)) is not None
    assert (await start(rig, new_run("b", dedup_key="k"))).accepted


async def test_the_same_keyed_start_sent_twice_is_one_run(rig: Rig) -> None:
    new = new_run("a", dedup_key="k")
    assert (await start(rig, new)).accepted
    assert (await start(rig, new)).accepted
    assert len(await rig.claim(await rig.session())) == 1


async def test_a_start_whose_id_is_taken_takes_no_key(rig: Rig) -> None:
    await rig.close(await rig.owned("a"))
    refused = await start(rig, new_run("a", dedup_key="k"))
    assert (refused.accepted, refused.holder_id) == (False, None)
    assert (await start(rig, new_run("b", dedup_key="k"))).accepted


async def test_the_key_is_looked_at_before_the_id(rig: Rig) -> None:
    first = await rig.start("a", dedup_key="k")
    again = await start(rig, new_run("a", dedup_key="k"))
    assert (again.run_id, again.holder_id) == (first, "a")


async def test_of_many_starts_with_one_key_one_runs(rig: Rig) -> None:
    stores = [rig.store, rig.other] * 6
    news = [new_run(f"w{n}", dedup_key="k") for n in range(12)]
    started = await asyncio.gather(
        *(store.start_runs([new]) for store, new in zip(stores, news, strict=True))
    )
    assert sum(s.accepted for (s,) in started) == 1
    assert len({s.run_id for (s,) in started}) == 1


async def test_starts_sent_together_are_told_apart(rig: Rig) -> None:
    news = [new_run("a", dedup_key="k"), new_run("b", dedup_key="k"), new_run("c")]
    started = await rig.store.start_runs(news)
    assert sorted(s.accepted for s in started) == [False, True, True]
    assert started[0].run_id == started[1].run_id
    assert started[2].accepted


async def test_a_key_changes_hands_under_load(rig: Rig) -> None:
    """Runs end while others ask for their key: each start gets a run, never a second one."""
    session = await rig.session()
    accepted = 0

    async def ask(number: int) -> None:
        nonlocal accepted
        for turn in range(8):
            new = new_run(f"{number}-{turn}", dedup_key="k")
            (started,) = await rig.store.start_runs([new])
            accepted += started.accepted

    async def end(asking: asyncio.Future[list[None]]) -> None:
        while not asking.done():
            for run in await rig.claim(session):
                await rig.close(run)
            await asyncio.sleep(0)

    asking = asyncio.gather(*(ask(number) for number in range(4)))
    await end(asking)
    await asking
    left = await rig.claim(session)
    assert len(left) <= 1
    closed = await rig.store.views(Runs(states=(RunState.COMPLETED,)))
    assert accepted == len(closed) + len(left)


# -- debouncing ------------------------------------------------------------------------------


async def test_a_debounced_start_replaces_input_and_time(rig: Rig) -> None:
    first = debounced("a", run_timeout_us=HOUR_US)
    assert (await start(rig, first)).accepted
    held = await start(rig, debounced("b"))
    assert (held.accepted, held.run_id, held.holder_id) == (False, first.run_id, "a")
    now_us = await rig.store.now_us()
    again = replace(
        new_run("a", start_at_us=now_us + 3 * MINUTE_US, run_timeout_us=2 * HOUR_US),
        run_id=first.run_id,
        batch=b"another",
        head_hash=5,
        priority=3,
        version="2",
    )
    assert await rig.store.replace_start(again)
    await rig.pass_time(2 * MINUTE_US)
    assert (await rig.store.promote_due(10)).promoted == 0
    await rig.pass_time(2 * MINUTE_US)
    assert (await rig.store.promote_due(10)).promoted == 1
    (run,) = await rig.claim(await rig.session())
    assert (run.run_id, run.workflow_id, run.version, run.head_hash) == (
        first.run_id,
        "a",
        "2",
        5,
    )
    assert await rig.store.load({run.run_id: run.part}) == {run.run_id: [b"another"]}
    await rig.pass_time(2 * HOUR_US)
    await rig.store.promote_due(10)
    assert [item.kind for item in await rig.inbox(run.run_id)] == [EventKind.RUN_TIMED_OUT]


async def test_a_run_that_began_is_not_replaced_and_leaves_its_key(rig: Rig) -> None:
    first = debounced("a")
    await start(rig, first)
    await rig.pass_time(2 * MINUTE_US)
    await rig.store.promote_due(10)
    assert not await rig.store.replace_start(replace(first, batch=b"late", start_at_us=1))
    assert (await start(rig, debounced("b"))).accepted
    (run,) = await rig.claim(await rig.session())
    assert await rig.store.load({run.run_id: run.part}) == {run.run_id: [first.batch]}


@pytest.mark.parametrize("kind", [EventKind.CANCEL_REQUESTED, EventKind.RUN_TERMINATED])
async def test_a_run_that_is_to_end_is_not_replaced_and_leaves_its_key(
    rig: Rig, kind: EventKind
) -> None:
    first = debounced("a")
    await start(rig, first)
    await rig.store.send([Message(kind, workflow_id="a")])
    assert not await rig.store.replace_start(replace(first, batch=b"late", start_at_us=1))
    assert (await start(rig, debounced("b"))).accepted


async def test_a_replacement_sent_twice_is_told_that_it_was_done(rig: Rig) -> None:
    first = debounced("a")
    await start(rig, first)
    again = replace(first, batch=b"another", start_at_us=await rig.store.now_us())
    assert await rig.store.replace_start(again)
    await rig.pass_time(MINUTE_US)
    await rig.store.promote_due(10)
    assert await rig.store.replace_start(again)
    (run,) = await rig.claim(await rig.session())
    await rig.close(run)
    assert await rig.store.replace_start(again)


async def test_a_run_that_is_not_there_is_not_replaced(rig: Rig) -> None:
    assert not await rig.store.replace_start(new_run("a", start_at_us=1))


async def test_the_id_of_a_debounced_run_is_used_again_as_asked(rig: Rig) -> None:
    await start(rig, debounced("a"))
    await rig.pass_time(2 * MINUTE_US)
    await rig.store.promote_due(10)
    await rig.close((await rig.claim(await rig.session()))[0])
    assert not (await start(rig, debounced("a"))).accepted
    assert (await start(rig, debounced("a", id_reuse=IdReuse.AFTER_CLOSE))).accepted
