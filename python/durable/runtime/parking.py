"""Parking: why a run is set aside, as data, and when it is tried again.

A run whose code and history do not fit is not failed and not retried in a loop: it is parked with a
reason that a person can act on, and tried again after a growing pause (another build may have been
deployed). A run that keeps killing its workers is parked until somebody unparks it.
"""

from __future__ import annotations

import logging
from typing import Any

import orjson

from durable.errors import (
    HistoryCorruptError,
    HistoryUnsupportedError,
    NonDeterminismError,
    PayloadError,
    UnknownWorkflowError,
)
from durable.runtime.metrics import Metrics
from durable.runtime.warm import WarmRun

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 300.0
CRASHES_MAX = 3
"""A run that was with a worker when it died, this often in a row, is taken for the cause."""
TEXT_MAX = 20_000

log = logging.getLogger("durable.worker")


class PoisonError(Exception):
    """The run was with a worker that died, too often in a row."""


def reason_of(error: BaseException) -> str:
    """The metric's word for why."""
    if isinstance(error, NonDeterminismError):
        return "nondeterminism"
    if isinstance(error, UnknownWorkflowError | HistoryUnsupportedError):
        return "unknown_type"
    if isinstance(error, HistoryCorruptError):
        return "corrupt"
    if isinstance(error, PayloadError):
        return "undecodable"
    if isinstance(error, PoisonError):
        return "poison"
    return "error"


def safe_text(error: BaseException) -> str:
    """The error's text, whatever it takes to get it."""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be had)"
    return text[:TEXT_MAX].encode("utf-8", "replace").decode()


class ParkingLot:
    """Says for how long a run is set aside, and writes the reason.

    How often it was parked is kept with the run, so the pause goes on growing in other workers.
    """

    def __init__(self, build_id: str, metrics: Metrics) -> None:
        self._build_id = build_id
        self._metrics = metrics

    def park(self, run: WarmRun, error: BaseException) -> tuple[bytes, int]:
        """Return the reason as JSON and the pause in microseconds (0: until it is unparked)."""
        reason = reason_of(error)
        count = run.parks + 1
        text = safe_text(error)
        record: dict[str, Any] = {
            "reason": reason,
            "type": type(error).__name__,
            "message": text,
            "build_id": self._build_id,
            "count": count,
        }
        if isinstance(error, NonDeterminismError):
            record |= {
                "event_id": error.event_id,
                "expected": error.expected,
                "found": error.found,
                "around": list(error.around),
                "source": error.source,
                "hint": error.hint,
            }
        self._metrics.inc("durable_parked_total", reason=reason)
        # Later ones say the same again, for as long as nobody does something about it.
        level = logging.ERROR if count == 1 else logging.INFO
        log.log(level, "parked run %s of %s (%s): %s", run.run_id, run.workflow_type, reason, text)
        if reason == "poison":
            return orjson.dumps(record), 0
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(count - 1, 10), LONGEST_PAUSE_SECONDS)
        return orjson.dumps(record), round(pause * 1e6)
