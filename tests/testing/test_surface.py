"""The test environment has what the client has; what it has not is listed here, with the reason."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from durable import Client, WorkflowHandle
from durable.testing import TestHandle, WorkflowEnvironment
from durable.testing.postgres import PostgresEnvironment, PostgresHandle

CONNECTION = "an environment is no connection"
INNER = "for the library's own use"
SWEEP = "about all runs of a database; a test has the handles of its own"
QUEUES = "one process has no queues to limit"
KEYS = "keys keep the starts of many processes apart"
MISMATCH = "what would park a run is raised in the test"

LEFT_OUT_OF_THE_ENVIRONMENT = {
    "connect": CONNECTION,
    "close": CONNECTION,
    "begin": INNER,
    "begin_all": INNER,
    "new_run": INNER,
    "known": INNER,
    "page": SWEEP,
    "iterate": SWEEP,
    "count": SWEEP,
    "list": SWEEP,
    "cancel_many": SWEEP,
    "terminate_many": SWEEP,
    "pause_many": SWEEP,
    "resume_many": SWEEP,
    "unpark_many": SWEEP,
    "reset_many": SWEEP,
    "list_all": SWEEP,
    "signal_matching": SWEEP,
    "list_schedules": SWEEP,
    "get_schedule": "create_schedule returns the handle",
    "enqueue_many": "call enqueue for each; here that costs no round trip",
    "set_queue_limits": QUEUES,
    "queue_limits": QUEUES,
}
LEFT_OUT_OF_THE_HANDLE = {
    "of": INNER,
    "describe": "state() says where it is, and history() the rest",
    "unpark": MISMATCH,
}
LEFT_OUT_OF_CALLS = {
    "conn": "there is no database, and so no transaction of the caller",
    "timeout": "patience= of the environment, for all waits",
    "request_id": "a test asks once",
    "request_ids": "a test asks once",
    "result_type": "the code of the workflow is here, and says it",
    "follow": "what is written is all there when nothing moves any more",
    "priority": "one process has no queue",
    "fairness_key": "one process has no queue",
    "fairness_weight": "one process has no queue",
    "dedup_key": KEYS,
    "on_duplicate": KEYS,
    "debounce_key": KEYS,
    "debounce": KEYS,
    "debounce_max": KEYS,
    "workflow": "the code of the workflow is here",
    "activity": "the code of the activity is here",
}


def public(kind: type) -> dict[str, Any]:
    """The public methods of a class, inherited ones too."""
    return {
        name: value
        for name, value in inspect.getmembers(kind, inspect.isroutine)
        if not name.startswith("_")
    }


PAIRS = [
    (Client, WorkflowEnvironment, LEFT_OUT_OF_THE_ENVIRONMENT),
    (WorkflowHandle, TestHandle, LEFT_OUT_OF_THE_HANDLE),
]


@pytest.mark.parametrize(("real", "kit", "left_out"), PAIRS, ids=["client", "handle"])
def test_what_is_missing_is_missing_on_purpose(
    real: type, kit: type, left_out: dict[str, str]
) -> None:
    assert set(public(real)) - set(public(kit)) == set(left_out)


@pytest.mark.parametrize(("real", "kit"), [pair[:2] for pair in PAIRS], ids=["client", "handle"])
def test_calls_take_the_same_options_but_for_those_without_sense(real: type, kit: type) -> None:
    missing = {
        (name, option)
        for name, made in public(kit).items()
        if name in public(real)
        for option in named(public(real)[name]) - named(made)
        if not takes_any(made) and option not in LEFT_OUT_OF_CALLS
    }
    assert missing == set()


def named(call: Any) -> set[str]:
    """Options that are given by name."""
    found = inspect.signature(call).parameters.values()
    return {each.name for each in found if each.kind == each.KEYWORD_ONLY}


def takes_any(call: Any) -> bool:
    """Whether all else is handed on as it is; the arguments of a workflow are no options."""
    last = list(inspect.signature(call).parameters.values())[-1]
    return last.name in ("options", "how", "point")


@pytest.mark.parametrize(
    ("one", "other"),
    [(WorkflowEnvironment, PostgresEnvironment), (TestHandle, PostgresHandle)],
    ids=["environment", "handle"],
)
def test_the_kit_on_a_database_has_every_call_of_the_kit(one: type, other: type) -> None:
    inherited = {name for name, call in public(other).items() if public(one).get(name) is call}
    # What is inherited must work through the calls that are not.
    assert inherited <= {
        "create_schedule",
        "enqueue",
        "execute",
        "memo",
        "mock",
        "hang",
        "signal_many",
        "signal_with_start",
        "start",
        "start_many",
        "update_with_start",
    }
