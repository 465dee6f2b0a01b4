"""`durable reset` and `durable fork`: what they show, do and refuse."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner, Result

from durable import Client, workflow
from durable.cli.main import main
from durable.runtime.worker import Worker

T = TypeVar("T")


@workflow.defn
async def collect() -> list[str]:
    found = []
    while (word := await workflow.wait_signal("word", type=str)) != "end":
        found.append(word)
    return found


@pytest.fixture(autouse=True)
def runs(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that nobody has begun, with two signals, and one that has ended."""
    monkeypatch.setenv("DURABLE_DSN", dsn)

    async def start(client: Client) -> None:
        closed = await client.start(collect, id="closed")
        await closed.signal("word", "one")
        await closed.signal("word", "end")
        async with Worker(dsn, workflows=[collect]):
            await closed.result(30)
        waits = await client.start(collect, id="waits")
        await waits.signal("word", "one")
        await waits.signal("word", "two")

    ask(dsn, start)


def ask(dsn: str, question: Callable[[Client], Awaitable[T]]) -> T:
    """What a client answers."""

    async def connected() -> T:
        async with Client.connect(dsn) as client:
            return await question(client)

    return asyncio.run(connected())


def durable(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def result_of(dsn: str, id: str) -> Any:
    """Let the run end, and what it comes to."""

    async def end(client: Client) -> Any:
        async with Worker(dsn, workflows=[collect]):
            handle = client.get_handle(id)
            await handle.signal("word", "end")
            return await handle.result(30)

    return ask(dsn, end)


def test_a_dry_run_shows_the_point_and_changes_nothing(dsn: str) -> None:
    before = ask(dsn, lambda client: client.get_handle("waits").describe())

    for command in (["reset", "waits"], ["fork", "waits", "copy"]):
        shown = durable(*command, "--to-event", "1", "--dry-run")
        assert shown.exit_code == 0, shown.output
        assert shown.stdout.splitlines() == [
            f"run {before.run_id} goes on after event 1 of 1",
            "signals after that point: word, word",
        ]

    assert ask(dsn, lambda client: client.get_handle("waits").describe()) == before


def test_a_dry_run_can_be_read_by_programs() -> None:
    shown = durable("reset", "waits", "--to-event", "1", "--dry-run", "--json")
    plan = json.loads(shown.stdout)
    assert (plan["event_id"], plan["event_count"], plan["signals"]) == (1, 1, ["word", "word"])
    assert set(plan) == {
        "run_id", "event_id", "event_count", "activities", "timers", "signals"
    }  # fmt: skip


def test_reset_prints_the_new_run_and_sends_signals_again(dsn: str) -> None:
    done = durable("reset", "waits", "--to-event", "1", "--reason", "wrong word")
    latest = ask(dsn, lambda client: client.get_handle("waits").describe())

    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == latest.run_id
    assert result_of(dsn, "waits") == ["one", "two"]


def test_dropped_signals_are_not_sent_again(dsn: str) -> None:
    done = durable("reset", "waits", "--to-last-turn", "--drop-signals", "--timeout", "20")
    assert done.exit_code == 0, done.output
    assert result_of(dsn, "waits") == []


def test_what_is_done_can_be_read_by_programs(dsn: str) -> None:
    old = ask(dsn, lambda client: client.get_handle("closed").describe())

    reset = json.loads(durable("reset", "closed", "--to-event", "1", "--json").stdout)
    copied = json.loads(durable("fork", "closed", "copy", "--to-event", "1", "--json").stdout)

    latest = ask(dsn, lambda client: client.get_handle("closed").describe())
    assert reset == {"workflow_id": "closed", "run_id": latest.run_id}
    assert latest.run_id != old.run_id
    assert copied["workflow_id"] == "copy"


@pytest.mark.parametrize(("options", "words"), [([], []), (["--keep-signals"], ["one", "two"])])
def test_a_fork_has_later_signals_only_if_they_are_kept(
    dsn: str, options: list[str], words: list[str]
) -> None:
    done = durable("fork", "waits", "copy", "--to-event", "1", *options)

    assert done.exit_code == 0, done.output
    assert result_of(dsn, "copy") == words
    assert result_of(dsn, "waits") == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["reset", "waits"], "give one of to_event, before_activity and to_last_turn"),
        (["reset", "waits", "--to-event", "1", "--to-last-turn"], "give one of"),
        (["reset", "waits", "--to-event", "9"], "to_event is 1 to 1, not 9"),
        (["reset", "waits", "--to-event", "first"], "is not a valid integer"),
        (["reset", "waits", "--before-activity", "gone"], "has not come to an activity 'gone'"),
        (["reset", "nobody", "--to-event", "1"], "there is no workflow with id 'nobody'"),
        (["reset", "waits", "--to-event", "1", "--timeout", "-1"], "timeout"),
        (["fork", "waits", "waits", "--to-event", "1"], "needs an id of its own"),
        (["fork", "waits", "closed", "--to-event", "1"], "closed"),
        (["fork", "waits"], "Missing argument 'NEW_ID'"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: list[str], says: str) -> None:
    done = durable(*arguments)
    assert done.exit_code != 0
    assert says in done.output
    assert "Traceback" not in done.output
