"""Recorded histories against changed code."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from durable import activity, workflow
from durable.errors import (
    HistoryCorruptError,
    HistoryUnsupportedError,
    InvalidArgumentError,
    NonDeterminismError,
    UnknownWorkflowError,
)
from durable.runtime.recorded import RecordedRun, shape
from durable.testing import History, Replayer, WorkflowEnvironment


@activity.defn
async def reserve(item: str) -> str:
    return item.upper()


@activity.defn
async def charge(cents: int) -> None: ...


@workflow.defn(name="order")
async def order(item: str) -> str:
    found = await reserve(item)
    await asyncio.sleep(60)
    await charge(5)
    return found


@workflow.defn(name="order")
async def renamed(item: str) -> str:
    await charge(5)
    return item


@workflow.defn(name="order")
async def shorter(item: str) -> str:
    return await reserve(item)


@workflow.defn(name="order")
async def slower(item: str) -> str:
    found = await reserve(item)
    await asyncio.sleep(90)
    await charge(5)
    return found


@workflow.defn(name="order")
async def patched(item: str) -> str:
    found = await reserve(item)
    await asyncio.sleep(90 if workflow.patched("slower") else 60)
    await charge(5)
    return found


@pytest.fixture
async def history() -> AsyncIterator[History]:
    """A closed run of `order`."""
    async with WorkflowEnvironment() as env:
        handle = await env.start(order, "tea", id="order-7")
        await handle.result()
        yield await handle.history()


async def test_same_code_replays(history: History) -> None:
    Replayer(workflows=[order]).replay(history)


async def test_file_replays(history: History, tmp_path: Path) -> None:
    file = tmp_path / "order-7.json"
    history.save(str(file))

    Replayer(workflows=[order]).replay(file)

    assert RecordedRun.load(file) == RecordedRun(
        **{
            name: getattr(history.recorded, name)
            for name in ("run_id", "workflow_id", "workflow_type", "head_hash", "queue", "state")
        },
        batches=list(history.recorded.batches),
    )


@pytest.mark.parametrize("changed", [renamed, shorter, slower], ids=lambda each: each.fn.__name__)
async def test_changed_code_is_a_mismatch(history: History, changed: Any) -> None:
    with pytest.raises(NonDeterminismError) as caught:
        Replayer(workflows=[changed]).replay(history)

    assert caught.value.expected or caught.value.found


async def test_patched_code_replays(history: History) -> None:
    Replayer(workflows=[patched]).replay(history)


async def test_every_prefix_of_an_open_run_replays() -> None:
    async with WorkflowEnvironment() as env:
        handle = await env.start(order, "tea")
        replayer = Replayer(workflows=[order])
        replayer.replay(await handle.history())
        await env.advance(10)
        replayer.replay(await handle.history())
        await handle.result()
        replayer.replay(await handle.history())


async def test_report_shows_each_kind_once(history: History) -> None:
    report = Replayer(workflows=[slower]).replay_all([history, history, history])

    assert not report.ok
    assert len(report.mismatches) == 3
    text = report.render()
    assert text.count("TIMER_STARTED for 90 s") == 1
    assert "3 of them" in text
    with pytest.raises(AssertionError, match="order-7"):
        report.check()


async def test_unknown_type_is_a_problem_not_a_crash(history: History) -> None:
    @workflow.defn
    async def other() -> None: ...

    replayer = Replayer(workflows=[other])

    assert [each.kind for each in replayer.replay_all([history]).problems] == ["unknown"]
    with pytest.raises(UnknownWorkflowError):
        replayer.replay(history)


async def test_damaged_file_is_corrupt(history: History) -> None:
    fields = json.loads(history.recorded.to_json())
    batch = bytearray(base64.b64decode(fields["batches"][1]))
    batch[len(batch) // 2] ^= 1
    fields["batches"][1] = base64.b64encode(batch).decode()

    with pytest.raises(HistoryCorruptError):
        RecordedRun.from_json(json.dumps(fields))


async def test_cut_file_is_corrupt(history: History) -> None:
    fields = json.loads(history.recorded.to_json())
    fields["batches"].pop()

    with pytest.raises(HistoryCorruptError):
        RecordedRun.from_json(json.dumps(fields))


async def test_file_of_another_run_is_corrupt(history: History) -> None:
    fields = json.loads(history.recorded.to_json())
    fields["run_id"] = "00000000-0000-0000-0000-000000000001"

    with pytest.raises(HistoryCorruptError):
        RecordedRun.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "other"}', '{"format": "durable-history", "version": 1}']
)
def test_file_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="durable export"):
        RecordedRun.from_json(text)


def test_file_of_a_newer_build_says_so() -> None:
    with pytest.raises(HistoryUnsupportedError):
        RecordedRun.from_json('{"format": "durable-history", "version": 2}')


def test_folder_without_histories_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        Replayer(workflows=[order]).replay_all(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('ACTIVITY_SCHEDULED charge(5, "x")', "ACTIVITY_SCHEDULED charge"),
        ("TIMER_STARTED for 3 s", "TIMER_STARTED"),
        ('RUN_COMPLETED "ok"', "RUN_COMPLETED"),
        (None, "nothing"),
    ],
)
def test_shape_leaves_out_what_differs_between_runs(text: str | None, kind: str) -> None:
    assert shape(text) == kind
