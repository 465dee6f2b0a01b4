"""For how long a run is set aside, and what is said about it."""

from __future__ import annotations

import json
import logging

import pytest

from durable.events import ClaimedRun
from durable.runtime.metrics import Metrics
from durable.runtime.parking import ParkingLot, PoisonError
from durable.runtime.warm import WarmRun


def parked_before(times: int) -> WarmRun:
    """A run that was parked so often since it last moved."""
    claimed = ClaimedRun("r", "w", "t", "q", None, 1, 1, 0, 0, 0, None, None, 0, parks=times)
    return WarmRun(claimed)


def test_the_pause_doubles_with_each_time_and_has_an_end() -> None:
    lot = ParkingLot("build", Metrics())
    pauses = [lot.park(parked_before(times), ValueError("no"))[1] for times in range(8)]
    assert [us / 1e6 for us in pauses] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert lot.park(parked_before(1000), ValueError("no"))[1] == 300_000_000


def test_a_run_that_kills_its_workers_waits_for_a_person() -> None:
    assert ParkingLot("build", Metrics()).park(parked_before(0), PoisonError("it"))[1] == 0


def test_the_reason_says_how_often_and_only_the_first_time_is_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lot = ParkingLot("build", Metrics())
    with caplog.at_level(logging.INFO, logger="durable.worker"):
        counts = [
            json.loads(lot.park(parked_before(times), ValueError("no"))[0])["count"]
            for times in (0, 1)
        ]
    assert counts == [1, 2]
    assert [each.levelno for each in caplog.records] == [logging.ERROR, logging.INFO]
