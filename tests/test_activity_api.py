"""What activity authors write against, with the context a runtime would set."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from support.memory_run import MemoryRun

from durable import (
    ActivityOptions,
    ConfigurationError,
    DefinitionError,
    RetryPolicy,
    activity,
    workflow,
)
from durable.engine.info import ACTIVITY_CONTEXT, ActivityContext, to_datetime, to_us
from durable.engine.registry import Registry


@contextmanager
def attempt(**changes: Any) -> Iterator[ActivityContext]:
    facts: dict[str, Any] = {
        "name": "charge",
        "attempt": 2,
        "workflow_id": "order-1",
        "run_id": "01890000-0000-7000-8000-000000000001",
        "workflow_type": "order",
        "queue": "default",
        "ref": 7,
        "details": ({"page": 3},),
        "scheduled_us": 1_700_000_000_000_000,
    }
    context = ActivityContext(**{**facts, **changes})
    token = ACTIVITY_CONTEXT.set(context)
    try:
        yield context
    finally:
        ACTIVITY_CONTEXT.reset(token)


def test_info_tells_the_attempt() -> None:
    with attempt():
        info = activity.info()
    assert (info.name, info.attempt, info.workflow_id, info.queue) == (
        "charge",
        2,
        "order-1",
        "default",
    )
    assert info.heartbeat_details == ({"page": 3},)
    assert info.scheduled_time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)


def test_the_idempotency_key_is_of_the_call_and_not_of_the_attempt() -> None:
    with attempt(attempt=1):
        first = activity.info().idempotency_key
    with attempt(attempt=2):
        assert activity.info().idempotency_key == first
    with attempt(ref=8):
        assert activity.info().idempotency_key != first


def test_heartbeats_reach_the_runtime() -> None:
    beats: list[tuple[Any, ...]] = []
    with attempt(on_heartbeat=beats.append):
        activity.heartbeat()
        activity.heartbeat("page", 4)
    assert beats == [(), ("page", 4)]


def test_an_activity_can_say_when_it_wants_to_be_tried_again() -> None:
    with attempt() as context:
        activity.override_next_retry(delay=timedelta(seconds=90))
        assert (context.retry_delay_seconds, context.retry_at_us) == (90.0, None)
        activity.override_next_retry(at=datetime(2024, 1, 1, tzinfo=UTC))
        assert (context.retry_delay_seconds, context.retry_at_us) == (None, 1704067200000000)


@pytest.mark.parametrize("wrong", [{}, {"delay": 1, "at": datetime(2024, 1, 1)}, {"delay": -1}])
def test_a_retry_override_is_one_time_or_one_delay(wrong: dict[str, Any]) -> None:
    with attempt(), pytest.raises(ConfigurationError):
        activity.override_next_retry(**wrong)


def test_the_logger_names_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    with attempt():
        activity.logger.warning("slow")
    [record] = caplog.records
    assert (record.activity, record.attempt) == ("charge", 2)  # type: ignore[attr-defined]


def test_options_can_be_given_one_by_one_or_as_one() -> None:
    base = ActivityOptions(queue="far", priority=5)

    @activity.defn(options=base, retry=RetryPolicy(max_attempts=1), start_to_close_timeout=3)
    async def charge() -> None:
        pass

    assert charge.options == base.replace(
        retry=RetryPolicy(max_attempts=1), start_to_close_timeout=3
    )
    assert charge.with_options(queue="near").options.queue == "near"
    assert charge.options.queue == "far"


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="colour"):
        activity.defn(colour="red")  # type: ignore[call-overload]


def test_a_definition_is_named_after_its_function_unless_it_is_told() -> None:
    @activity.defn(name="charge-card")
    def charge(cents: int) -> str:
        """Take the money."""
        return f"{cents}"

    assert charge.name == "charge-card"
    assert charge.__doc__ == "Take the money."
    assert not charge.is_async
    assert "charge" in repr(charge)
    with pytest.raises(DefinitionError, match="already"):
        activity.defn(charge)


def test_only_functions_can_be_activities() -> None:
    with pytest.raises(DefinitionError):
        activity.defn(3)  # type: ignore[call-overload]
    with pytest.raises(DefinitionError):
        activity.defn(dict)


async def test_the_context_is_inherited_by_tasks() -> None:
    with attempt():
        seen = await asyncio.create_task(asyncio.to_thread(activity.info))
    assert seen.attempt == 2


def test_times_survive_to_the_microsecond() -> None:
    for time_us in (0, 1, 1_700_000_000_123_456, 253_402_300_799_999_999):
        assert to_us(to_datetime(time_us)) == time_us


class Payments:
    """Activities that need something to work with."""

    def __init__(self, currency: str) -> None:
        self.currency = currency

    @activity.defn(name="charge")
    async def charge(self, cents: int) -> str:
        return f"{cents} {self.currency}"


async def test_a_method_is_called_from_the_class_and_run_on_an_instance() -> None:
    @workflow.defn
    async def paying() -> str:
        return await Payments.charge(5)

    run = MemoryRun(paying)
    [scheduled] = run.turns[0].scheduled
    assert (scheduled.name, scheduled.input) == ("charge", b"[5]")

    registered = Registry(activities=[Payments("EUR").charge]).activities["charge"]
    args, kwargs = registered.signature.decode_args(scheduled.input)
    assert await registered.fn(*args, **kwargs) == "5 EUR"


def test_a_method_without_its_object_cannot_be_registered() -> None:
    with pytest.raises(DefinitionError, match="instance"):
        Registry(activities=[Payments.charge])
