"""The times of a schedule: which come next, and how far each is put off.

Pure functions of the plan. A cron line is read in its time zone: a time that the clocks jump over
comes right after the jump, one that they show twice comes once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from durable.engine.info import to_datetime, to_us
from durable.errors import InvalidArgumentError

MICROSECOND = timedelta(microseconds=1)


def times_after(plan: dict[str, Any], after_us: int) -> Iterator[int]:
    """The times of a plan later than ``after_us``, in microseconds; ends if a cron line does."""
    every_us = plan.get("every_us")
    if every_us:
        due_us = (after_us // every_us + 1) * every_us
        while True:
            yield due_us
            due_us += every_us
    zone = ZoneInfo(plan["timezone"])
    # From a second before: cronsim leaves out the time it is given, and looks at whole seconds.
    start = to_datetime(after_us).astimezone(zone).replace(microsecond=0) - timedelta(seconds=1)
    for moment in CronSim(plan["cron"], start):
        due_us = to_us(moment.astimezone(UTC))
        if due_us > after_us:
            yield due_us


def next_time(plan: dict[str, Any], after_us: int) -> int | None:
    """The first time of a plan later than ``after_us``; None when there is none."""
    return next(times_after(plan, after_us), None)


def jitter_us(plan: dict[str, Any], schedule_id: str, due_us: int) -> int:
    """How much later than ``due_us`` the run is started: always the same for the same time."""
    share = zlib.crc32(f"{schedule_id}@{due_us}".encode())
    return share * (plan.get("jitter_us") or 0) >> 32


def check_plan(plan: dict[str, Any]) -> None:
    """Raise InvalidArgumentError for a plan that has no times."""
    if (plan.get("cron") is None) == (plan.get("every_us") is None):
        raise InvalidArgumentError("give a schedule cron= or every=, and not both")
    if plan.get("every_us") is not None and plan["every_us"] < 1_000_000:
        raise InvalidArgumentError("every= is one second or more")
    try:
        ZoneInfo(plan["timezone"])
    except (OSError, ValueError, KeyError):
        raise InvalidArgumentError(
            f"there is no time zone {plan['timezone']!r}; use a name such as 'Europe/Berlin'"
        ) from None
    if plan.get("cron") is None:
        return
    try:
        CronSim(plan["cron"], datetime(2026, 1, 1, tzinfo=UTC))
    except CronSimError as error:
        raise InvalidArgumentError(
            f"{plan['cron']!r} is not a cron line: {error}; write one such as '0 9 * * 1-5'"
        ) from None
