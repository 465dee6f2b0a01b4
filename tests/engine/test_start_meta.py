"""The circumstances of a run, as its first event has them: read back as they were written."""

from __future__ import annotations

import pytest

from durable.engine.info import ParentInfo
from durable.engine.start import StartMeta

FULL = StartMeta(
    workflow_id="order-7",
    version="v2",
    queue="fast",
    parent=ParentInfo("run", "parent", 3),
    attempt=2,
    memo={"who": ["a", None]},
    headers={"trace": "x"},
    search={"total": 1.5},
    run_timeout_us=5,
    execution_timeout_us=7,
    priority=-3,
    start_us=6,
    continued_from="before",
    fairness=["customer", 1.5],
    signals=[("stop", b"\x00z"), ("go", None)],
)


@pytest.mark.parametrize("meta", [StartMeta("order-7"), FULL], ids=["plain", "full"])
def test_it_reads_back_as_it_was_written(meta: StartMeta) -> None:
    assert StartMeta.from_json(meta.to_json()) == meta


def test_what_a_later_build_added_is_ignored() -> None:
    assert StartMeta.from_json(b'{"workflow_id": "a", "later": {"x": 1}}') == StartMeta("a")


def test_no_queue_is_the_default_one() -> None:
    assert StartMeta.from_json(None) == StartMeta()
    assert StartMeta.from_json(b'{"queue": ""}').queue == "default"
    assert StartMeta.from_json(b'{"queue": null}').queue == "default"


def test_what_another_hand_wrote_is_taken_as_it_is() -> None:
    found = StartMeta.from_json(b'{"workflow_id": "a", "version": 7, "memo": {"x": 1}}')

    assert (found.version, found.memo) == (7, {"x": 1})
