"""Hints on their way: how they are made, joined, passed on to workers and used by clients."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from uuid import uuid4

import pytest

from durable import Client, Worker, activity, workflow
from durable.client import waiter as waiter_module
from durable.client.waiter import Waiter
from durable.errors import StoreUnavailableError
from durable.events import Closing, Message, NewRun, Response, RunCommit, RunState, RunView
from durable.runtime.news import News
from durable.runtime.relay import OTHERS_SECONDS, Relay
from durable.runtime.spawn import WorkerProcess
from durable.store import hints, notify
from durable.store.base import DONE, HINT_RUNS_MAX, WORK, Hint
from durable.store.hints import Hinter
from durable.store.memory import MemoryStore

SOON = 30.0
MAIL = Hint(runs_only=True, sessions=(7,))


@pytest.fixture
def hints_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its first look a waiter looks when it hears something, and never by the clock."""
    for name in ("SHORTEST_SECONDS", "LISTENING_SECONDS", "LONGEST_SECONDS"):
        monkeypatch.setattr(waiter_module, name, 3600.0)


class Heard(MemoryStore):
    """A store that keeps what it was asked to tell, and answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Hint] = []
        self.looks: list[list[str]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def notify(self, hint: Hint = WORK) -> None:
        self.told.append(hint)
        await self.gate.wait()
        await super().notify(hint)

    async def closed(self, run_ids: Sequence[str]) -> list[RunView]:
        self.looks.append(list(run_ids))
        return await super().closed(run_ids)


async def turns(count: int = 5) -> None:
    """Let others run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_first_hint_goes_at_once_and_the_next_ones_as_one() -> None:
    store = Heard()
    store.gate.clear()
    hinter = Hinter(store)
    hinter.work()
    await turns()
    for _ in range(50):
        hinter.work(runs_only=True)
    assert store.told == [WORK]
    store.gate.set()
    await hinter.flush()
    assert store.told == [WORK, Hint(runs_only=True)]


async def test_hints_of_results_do_not_wait_for_hints_of_work() -> None:
    store = Heard()
    store.gate.clear()
    hinter = Hinter(store)
    hinter.work()
    await turns()
    hinter.done(["a"])
    await turns()
    assert store.told == [WORK, Hint(done=True, run_ids=("a",))]
    store.gate.set()
    await hinter.flush()


async def test_more_ends_than_a_hint_can_name_are_not_named() -> None:
    store = Heard()
    hinter = Hinter(store)
    hinter.done([str(uuid4()) for _ in range(HINT_RUNS_MAX)])
    await hinter.flush()
    hinter.done([str(uuid4()) for _ in range(HINT_RUNS_MAX + 1)])
    await hinter.flush()
    named, unnamed = store.told
    assert len(named.run_ids) == HINT_RUNS_MAX
    assert len(notify.write(named)) < 8000
    assert unnamed == DONE


async def test_a_store_that_is_away_ends_a_hint_but_not_the_next() -> None:
    store = Heard()
    failing = True

    async def fail(hint: Hint = WORK) -> None:
        store.told.append(hint)
        if failing:
            raise StoreUnavailableError("away")

    store.notify = fail  # type: ignore[method-assign]
    hinter = Hinter(store)
    hinter.work()
    await hinter.flush()
    failing = False
    hinter.work()
    await hinter.flush()
    assert store.told == [WORK, WORK]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (WORK, Hint(runs_only=True), WORK),
        (Hint(runs_only=True), Hint(runs_only=True), Hint(runs_only=True)),
        (
            Hint(done=True, run_ids=("a",)),
            Hint(done=True, run_ids=("b",)),
            Hint(done=True, run_ids=("a", "b")),
        ),
        (Hint(done=True, run_ids=("a",)), DONE, DONE),
        (
            Hint(done=True, run_ids=("a",)),
            Hint(done=True, run_ids=("b",) * HINT_RUNS_MAX),
            DONE,
        ),
        (MAIL, MAIL, MAIL),
        (MAIL, Hint(runs_only=True), Hint(runs_only=True)),
        (MAIL, WORK, WORK),
    ],
)
def test_joined_hints_say_no_less_than_each(one: Hint, other: Hint, both: Hint) -> None:
    assert hints.merge(one, other) == hints.merge(other, one) or one.run_ids
    assert hints.merge(one, other) == both


def test_a_hint_that_names_as_many_runs_as_it_may_fits_a_payload() -> None:
    run_ids = tuple(str(uuid4()) for _ in range(HINT_RUNS_MAX))
    payload = notify.write(Hint(done=True, run_ids=run_ids))
    assert len(payload) < 8000
    assert notify.read(payload, done=True).run_ids == run_ids


@pytest.mark.parametrize("hint", [WORK, Hint(runs_only=True), MAIL, DONE])
def test_a_hint_is_read_as_it_was_written(hint: Hint) -> None:
    assert notify.read(notify.write(hint), done=hint.done) == hint
    two = Hint(runs_only=True, sessions=(2**47, 5))
    assert notify.read(notify.write(two), done=False) == two


def test_a_payload_of_another_version_stands_for_anything() -> None:
    assert notify.read("what is this", done=False) == WORK
    assert notify.read("runs:x", done=False) == WORK
    assert notify.read("runs:", done=False) == Hint(runs_only=True)
    assert notify.read("", done=True) == DONE


class Told:
    """A worker process that only notes what it is told."""

    def __init__(self) -> None:
        self.hints: list[bool] = []
        self.told = asyncio.Event()
        self.session: int | None = None

    def hint(self, *, runs_only: bool = False) -> None:
        self.hints.append(runs_only)
        self.told.set()


def relay_to(count: int) -> tuple[Relay, list[Told]]:
    workers = [Told() for _ in range(count)]
    return Relay(cast(dict[int, WorkerProcess], dict(enumerate(workers)))), workers


async def test_one_worker_hears_at_once_and_the_others_soon() -> None:
    relay, workers = relay_to(3)
    relay.hint()
    assert sorted(len(worker.hints) for worker in workers) == [0, 0, 1]
    async with asyncio.timeout(SOON):
        await asyncio.gather(*(worker.told.wait() for worker in workers))
    assert [worker.hints for worker in workers] == [[False]] * 3
    relay.close()


async def test_many_hints_in_a_row_are_one_for_who_is_told_later() -> None:
    relay, workers = relay_to(2)
    for _ in range(2):
        relay.hint(Hint(runs_only=True))
    # Each was first once, and being first made up for being told later.
    assert [len(worker.hints) for worker in workers] == [1, 1]
    relay.close()
    await asyncio.sleep(0)
    assert [len(worker.hints) for worker in workers] == [1, 1]


async def test_what_a_worker_is_told_later_is_not_less_than_what_was_hinted() -> None:
    relay, workers = relay_to(3)
    relay.hint(WORK)
    relay.hint(Hint(runs_only=True))
    async with asyncio.timeout(SOON):
        await asyncio.gather(*(worker.told.wait() for worker in workers))
    assert all(False in worker.hints for worker in workers)
    relay.close()


async def test_of_mail_only_the_owner_hears_and_at_once() -> None:
    relay, workers = relay_to(3)
    for number, worker in enumerate(workers):
        worker.session = 5 + number
    relay.hint(Hint(runs_only=True, sessions=(7, 99)))
    assert [worker.hints for worker in workers] == [[], [], [True]]

    # Those are on another host.
    relay.hint(Hint(runs_only=True, sessions=(99,)))
    await asyncio.sleep(OTHERS_SECONDS * 3)
    assert [worker.hints for worker in workers] == [[], [], [True]]
    relay.close()


async def test_a_worker_on_its_own_leaves_the_mail_of_others() -> None:
    worker = Worker(MemoryStore(), workflows=[one_step])
    looks: list[bool] = []
    worker._runs.hint = lambda *, told=False: looks.append(told)  # type: ignore[method-assign]

    for sessions in ((), (worker.session_id,), (1, worker.session_id), (1,)):
        worker.hint(Hint(runs_only=True, sessions=sessions))

    assert looks == [True] * 3


async def test_nobody_to_tell_is_no_error() -> None:
    relay, _ = relay_to(0)
    relay.hint()


def commit(**fields: Any) -> RunCommit:
    return RunCommit("r", 1, 1, 1, None, 0, **fields)


def test_news_say_who_has_to_look() -> None:
    news = News()
    assert not news
    news.add(commit())
    assert not news
    news.add(commit(closing=Closing(RunState.COMPLETED)))
    assert (news.closed, news.runs, news.activities, news.answers) == (["r"], False, False, False)
    news.add(commit(closing=Closing(RunState.COMPLETED), parent_run_id="p"))
    assert news.runs
    assert not news.activities
    news.add(commit(responses=[Response("q", None, None)]))
    assert news.answers
    news.add(commit(messages=[Message(kind=1, workflow_id="x")]))
    assert news.activities


async def started(store: MemoryStore, count: int) -> list[str]:
    """Runs that are open."""
    runs = [NewRun(str(uuid4()), f"w{number}", "t", "default", b"", 0) for number in range(count)]
    return [each.run_id for each in await store.start_runs(runs)]


@pytest.mark.usefixtures("hints_only")
async def test_a_hint_that_names_a_run_costs_a_look_at_that_run_only() -> None:
    store = Heard()
    run_ids = await started(store, 50)
    waiter = Waiter(store)
    waiting = [asyncio.create_task(waiter.closed(run_id)) for run_id in run_ids]
    async with asyncio.timeout(SOON):
        while not store.listeners or not store.looks:
            await asyncio.sleep(0)
        # The look that begins with listening.
        while len(store.looks) < 2:
            await asyncio.sleep(0.001)
        seen = len(store.looks)
        await store.notify(Hint(done=True, run_ids=("not one of ours", run_ids[7])))
        while [run_ids[7]] not in store.looks:
            await asyncio.sleep(0.001)
    assert [run_ids[7]] == store.looks[seen]
    await waiter.close()
    assert len(await asyncio.gather(*waiting, return_exceptions=True)) == 50


async def listening(store: Heard) -> tuple[Waiter, asyncio.Task[RunView]]:
    """A waiter that hears hints, and somebody who waits for a run that stays open."""
    (open_run,) = await started(store, 1)
    waiter = Waiter(store)
    waiting = asyncio.create_task(waiter.closed(open_run))
    async with asyncio.timeout(SOON):
        while not store.listeners or len(store.looks) < 2:
            await asyncio.sleep(0.001)
    return waiter, waiting


@pytest.mark.usefixtures("hints_only")
async def test_the_end_of_a_run_started_here_is_waited_for_without_a_look() -> None:
    store = Heard()
    waiter, waiting = await listening(store)
    run_id = str(uuid4())
    waiter.expect(run_id)
    also = asyncio.create_task(waiter.closed(run_id))
    await turns(20)
    assert [run_id] not in store.looks
    await store.notify(Hint(done=True, run_ids=(run_id,)))
    async with asyncio.timeout(SOON):
        while [run_id] not in store.looks:
            await asyncio.sleep(0.001)
    await waiter.close()
    await asyncio.gather(waiting, also, return_exceptions=True)


@pytest.mark.usefixtures("hints_only")
@pytest.mark.parametrize("named", [True, False])
async def test_an_end_that_was_heard_of_before_it_was_waited_for_is_looked_for(named: bool) -> None:
    store = Heard()
    waiter, waiting = await listening(store)
    run_id = str(uuid4())
    waiter.expect(run_id)
    await store.notify(Hint(done=True, run_ids=(run_id,) if named else ()))
    async with asyncio.timeout(SOON):
        while run_id in waiter._expected:
            await asyncio.sleep(0.001)
        also = asyncio.create_task(waiter.closed(run_id))
        while not any(run_id in ids for ids in store.looks):
            await asyncio.sleep(0.001)
    await waiter.close()
    await asyncio.gather(waiting, also, return_exceptions=True)


async def test_a_waiter_that_cannot_hear_expects_nothing() -> None:
    waiter = Waiter(Heard())
    waiter.expect("a")
    assert not waiter._expected


@activity.defn
async def add_one(number: int) -> int:
    return number + 1


@workflow.defn
async def one_step(number: int) -> int:
    return await add_one(number)


async def test_a_new_run_is_waited_for_without_a_look_whether_it_is_there() -> None:
    store = Heard()
    views = 0
    view = store.view

    async def counting(**keys: Any) -> RunView | None:
        nonlocal views
        views += 1
        return await view(**keys)

    store.view = counting  # type: ignore[method-assign]
    async with (
        Client.connect(store) as client,
        Worker(store, workflows=[one_step], activities=[add_one]),
    ):
        handle = await client.start(one_step, 1, id="a")
        assert await handle.result(SOON) == 2
        assert views == 0
        # Who has no time to wait gets what is there.
        assert await handle.result(0.5) == 2
        assert await client.get_handle("a").result(SOON) == 2
        assert views == 2
