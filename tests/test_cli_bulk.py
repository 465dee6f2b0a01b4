"""`durable bulk`: what it shows, asks, does and refuses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from durable import Client, RunFilter, RunState, Worker, workflow
from durable.cli.main import main


@workflow.defn
async def waits() -> int:
    return await workflow.wait_signal("go", type=int)


@pytest.fixture(autouse=True)
def runs(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven runs, of which six are orders."""
    monkeypatch.setenv("DURABLE_DSN", dsn)

    async def start() -> None:
        async with Client.connect(dsn) as client:
            for number in range(6):
                await client.start(waits, id=f"order-{number}")
            await client.start(waits, id="other")

    asyncio.run(start())


def durable(*arguments: str, said: str | None = None) -> Result:
    return CliRunner().invoke(main, ["bulk", *arguments], input=said)


def paused(dsn: str) -> int:
    async def count() -> int:
        async with Client.connect(dsn) as client:
            return await client.count(RunFilter(states=[RunState.PAUSED]))

    return asyncio.run(count())


def test_a_dry_run_shows_and_changes_nothing(dsn: str) -> None:
    result = durable("pause", "--id-prefix", "order-", "--dry-run")

    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0] == "6 runs, the first 5:"
    assert len(lines) == 7
    assert all("order-" in line for line in lines[2:])
    assert paused(dsn) == 0


def test_it_is_done_to_what_fits_and_undone(dsn: str) -> None:
    result = durable("pause", "--id-prefix", "order-", "--reason", "audit", "--yes")
    assert json.loads(result.stdout) == {"done": 6, "skipped": 0}
    assert "6 done, 0 skipped" in result.stderr
    assert paused(dsn) == 6

    result = durable("resume", "--all", "--yes")
    assert json.loads(result.stdout) == {"done": 6, "skipped": 0}
    assert paused(dsn) == 0


def test_runs_are_named_one_by_one_or_in_a_file(dsn: str, tmp_path: Path) -> None:
    result = durable("pause", "--id", "order-1", "--id", "nobody", "--yes")
    assert json.loads(result.stdout) == {"done": 1, "skipped": 0, "missing": 1}
    names = tmp_path / "ids.txt"
    names.write_text("order-2\n\norder-3\n")
    result = durable("pause", "--ids-from", str(names), "--yes")
    assert json.loads(result.stdout) == {"done": 2, "skipped": 0, "missing": 0}
    result = durable("pause", "--ids-from", "-", "--yes", said="")
    assert json.loads(result.stdout) == {"done": 0, "skipped": 0, "missing": 0}
    assert paused(dsn) == 3


def test_a_reset_of_many_says_what_it_could_not_do(dsn: str) -> None:
    result = durable("reset", "--id", "order-1", "--before-activity", "charge", "--yes")
    told = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (told["done"], told["failed"]) == (0, 1)
    assert "charge" in told["errors"]["order-1"]
    shown = durable("reset", "--state", "failed", "--to-last-turn", "--dry-run")
    assert shown.stdout.startswith("0 runs")


def test_closed_runs_are_reset_by_when_they_closed(dsn: str) -> None:
    async def end() -> None:
        async with Client.connect(dsn, workflows=[waits]) as client, Worker(dsn, workflows=[waits]):
            await client.get_handle("order-2").signal("go", 7)
            assert await client.get_handle("order-2").result(30) == 7

    asyncio.run(end())
    point = ("--state", "completed", "--to-last-turn")
    shown = durable("reset", *point, "--closed-before", "2020-01-01T00:00:00Z", "--dry-run")
    assert shown.stdout.startswith("0 runs")
    result = durable("reset", *point, "--closed-after", "2020-01-01T00:00:00Z", "--yes")
    assert json.loads(result.stdout) == {"done": 1, "skipped": 0}
    refused = durable("reset", "--closed-after", "2020-01-01T00:00:00Z", "--to-last-turn", "--yes")
    assert refused.exit_code == 2
    assert "say which" in refused.stderr


@pytest.mark.parametrize(("said", "count"), [("n\n", 0), ("y\n", 7)])
def test_it_asks_first(dsn: str, said: str, count: int) -> None:
    result = durable("pause", "--type", "waits", said=said)

    assert "pause 7 runs?" in result.stderr
    assert (result.exit_code == 0) == (count > 0)
    assert paused(dsn) == count


@pytest.mark.parametrize(
    "arguments",
    [["cancel", "--reason", "r"], ["terminate"], ["signal", "go", "7"], ["signal", "go"]],
)
def test_every_other_command_reaches_the_runs(arguments: list[str]) -> None:
    result = durable(*arguments, "--id-prefix", "order-", "--yes")
    assert json.loads(result.stdout) == {"done": 6, "skipped": 0}


def test_nothing_parked_is_nothing_done() -> None:
    result = durable("unpark", "--all", "--yes")
    assert json.loads(result.stdout) == {"done": 0, "skipped": 0}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cancel", "--yes"], "--all for every open run"),
        (["resume", "--state", "running", "--yes"], "resume is for runs that are paused"),
        (["signal", "go", "{", "--all", "--yes"], "not JSON"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], says: str) -> None:
    result = durable(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
