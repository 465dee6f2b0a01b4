"""Retry decisions and recorded options."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.engine.retry import (
    EXPLICIT_DELAY_SECONDS_MAX,
    backoff_seconds,
    next_delay_seconds,
    options_from_json,
    options_to_json,
    policy_from_dict,
    policy_to_dict,
)
from durable.errors import ConfigurationError, DecodeError
from durable.options import ActivityOptions, RetryPolicy

FOREVER = RetryPolicy(max_attempts=None, jitter=False)

intervals = st.floats(0, 1e6) | st.timedeltas(timedelta(0), timedelta(days=999))
policies = st.builds(
    RetryPolicy,
    initial_interval=intervals,
    backoff=st.floats(1),
    max_interval=intervals,
    max_attempts=st.none() | st.integers(1, 100),
    non_retryable=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    jitter=st.booleans(),
)
timeouts = st.none() | intervals
activity_options = st.builds(
    ActivityOptions,
    queue=st.none() | st.text(min_size=1, max_size=20),
    priority=st.integers(-5, 5),
    retry=policies,
    start_to_close_timeout=timeouts,
    schedule_to_start_timeout=timeouts,
    schedule_to_close_timeout=timeouts,
    heartbeat_timeout=timeouts,
    wait_cancel=st.booleans(),
)


def test_delays_double_up_to_the_maximum() -> None:
    policy = RetryPolicy(initial_interval=1, max_interval=10, max_attempts=None, jitter=False)
    delays = [next_delay_seconds(policy, n, (), 0.5) for n in range(1, 7)]
    assert delays == [1, 2, 4, 8, 10, 10]


def test_last_attempt_gives_up() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert next_delay_seconds(policy, 2, (), 0.5) is not None
    assert next_delay_seconds(policy, 3, (), 0.5) is None
    assert next_delay_seconds(policy, 3, (), 0.5, explicit_delay=1.0) is None


def test_named_types_give_up_at_once() -> None:
    policy = RetryPolicy(non_retryable=(ValueError, "CardDeclined"))
    assert next_delay_seconds(policy, 1, ("builtins.ValueError",), 0.5) is None
    assert next_delay_seconds(policy, 1, ("CardDeclined",), 0.5) is None
    assert next_delay_seconds(policy, 1, ("KeyError", "builtins.KeyError"), 0.5) is not None
    assert next_delay_seconds(FOREVER, 1, (), 0.5, is_final=True) is None


def test_explicit_delay_replaces_the_computed_one_within_bounds() -> None:
    assert next_delay_seconds(FOREVER, 1, (), 0.5, explicit_delay=1234.5) == 1234.5
    assert next_delay_seconds(FOREVER, 1, (), 0.5, explicit_delay=-1) == 0
    assert next_delay_seconds(FOREVER, 1, (), 0.5, explicit_delay=float("nan")) == 0
    longest = next_delay_seconds(FOREVER, 1, (), 0.5, explicit_delay=float("inf"))
    assert longest == EXPLICIT_DELAY_SECONDS_MAX


@given(policies, st.integers(1, 10**6), st.floats(0, 1))
def test_delay_grows_stays_under_its_maximum_and_never_overflows(
    policy: RetryPolicy, attempt: int, fraction: float
) -> None:
    now, later = backoff_seconds(policy, attempt), backoff_seconds(policy, attempt + 1)
    most = policy.max_interval
    most = most.total_seconds() if isinstance(most, timedelta) else most
    assert 0 <= now <= later <= most
    delay = next_delay_seconds(policy, attempt, (), fraction)
    if policy.max_attempts is not None and attempt >= policy.max_attempts:
        assert delay is None
    else:
        assert delay is not None
        assert now * (0.5 if policy.jitter else 1) <= delay <= now


def test_extreme_attempt_is_the_maximum() -> None:
    assert backoff_seconds(FOREVER, 10**6) == 60
    assert backoff_seconds(RetryPolicy(backoff=float("inf")), 2) == 60
    assert backoff_seconds(RetryPolicy(initial_interval=0), 10**6) == 0
    assert backoff_seconds(RetryPolicy(initial_interval=5e-324), 2) > 0


def test_default_options_are_the_empty_text() -> None:
    assert options_to_json(ActivityOptions()) == ""
    assert options_from_json("") == ActivityOptions()


def test_options_are_compact_in_one_order_whichever_unit_was_used() -> None:
    one = ActivityOptions(
        queue="gpu",
        heartbeat_timeout=timedelta(seconds=5),
        retry=RetryPolicy(max_attempts=None, initial_interval=2.0, non_retryable=(KeyError,)),
        start_to_close_timeout=1.5,
        priority=1,
        wait_cancel=True,
    )
    two = one.replace(heartbeat_timeout=5)
    assert options_to_json(one) == options_to_json(two)
    assert options_to_json(one) == (
        '{"queue":"gpu","priority":1,"retry":{"initial":2,"attempts":null,'
        '"non_retryable":["builtins.KeyError"]},"start_to_close":1.5,"heartbeat":5,'
        '"wait_cancel":true}'
    )


@given(activity_options)
def test_options_come_back_as_they_were_recorded(options: ActivityOptions) -> None:
    text = options_to_json(options)
    back = options_from_json(text)
    assert options_to_json(back) == text
    assert (back.queue, back.priority, back.wait_cancel) == (
        options.queue,
        options.priority,
        options.wait_cancel,
    )
    assert back.retry.max_attempts == options.retry.max_attempts
    assert back.retry.non_retryable == options.retry.non_retryable


@given(policies)
def test_policy_comes_back(policy: RetryPolicy) -> None:
    recorded = policy_to_dict(policy)
    assert policy_to_dict(policy_from_dict(recorded)) == recorded


def test_queue_that_is_not_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be recorded"):
        options_to_json(ActivityOptions(queue="\ud800"))


def test_key_of_a_newer_build_is_passed_over() -> None:
    assert options_from_json('{"queue":"q","new":1}') == ActivityOptions(queue="q")


@pytest.mark.parametrize("text", ["{", "[]", "1", '{"retry":1}', '{"retry":{"backoff":0}}'])
def test_text_that_is_no_options_is_a_decode_error(text: str) -> None:
    with pytest.raises(DecodeError):
        options_from_json(text)
