"""Names of other libraries, and common slips, end in an error that says what to write here."""

from __future__ import annotations

import inspect
import pickle
import sys
from typing import Any

import pytest

import durable
from durable import (
    ActivityOptions,
    ConfigurationError,
    DefinitionError,
    InvalidArgumentError,
    RetryPolicy,
    WorkflowFailedError,
    activity,
    hints,
    workflow,
)
from durable.client import Client, WorkflowHandle
from durable.store.memory import MemoryStore
from durable.testing import WorkflowEnvironment
from durable.testing.handle import TestHandle


@activity.defn
async def add(number: int) -> int:
    return number + 1


@workflow.defn
async def adding(number: int = 1) -> int:
    return await add(number)


# -- decorators ------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [workflow, activity], ids=["workflow", "activity"])
@pytest.mark.parametrize("arguments", [(len,), ()], ids=["bare", "with_options"])
def test_decorator_without_defn_names_it(module: Any, arguments: tuple[Any, ...]) -> None:
    short = module.__name__.removeprefix("durable.")

    with pytest.raises(TypeError, match=f"the decorator is @{short}.defn"):
        module(*arguments)


@pytest.mark.parametrize("module", [workflow, activity], ids=["workflow", "activity"])
def test_module_that_explains_itself_is_a_module_all_the_same(module: Any) -> None:
    assert inspect.ismodule(module)
    assert sys.modules[module.__name__] is module
    assert not hasattr(module, "__path__")
    with pytest.raises(TypeError):
        pickle.dumps(module)


# -- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "table"),
    [
        (durable, hints.PACKAGE),
        (workflow, hints.WORKFLOW),
        (activity, hints.ACTIVITY),
        (Client, hints.CLIENT),
        (WorkflowHandle, hints.HANDLE),
        (TestHandle, hints.HANDLE),
        (WorkflowEnvironment, hints.ENVIRONMENT),
    ],
)
def test_no_hint_is_given_for_a_name_that_exists(owner: Any, table: dict[str, str]) -> None:
    assert {name for name in table if hasattr(owner, name)} == set()


@pytest.mark.parametrize(
    ("owner", "name", "hint"),
    [
        (workflow, "execute_child_workflow", "use workflow.execute_child"),
        (workflow, "unsafe", "workflow.unsafe_allowed"),
        (workflow, "patchd", "use patched"),
        (activity, "raise_complete_async", "raise CompleteLater"),
        (durable, "DBOS", "use @workflow.defn"),
        (durable, "RetryPolicies", "use RetryPolicy"),
    ],
)
def test_name_of_another_library_is_answered_with_ours(owner: Any, name: str, hint: str) -> None:
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'; .*{hint}|; {hint}"):
        getattr(owner, name)


def test_name_that_is_like_nothing_gets_no_hint() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'zzz'$"):
        getattr(workflow, "zzz")  # noqa: B009


async def test_client_and_handles_answer_with_their_own_names() -> None:
    client = Client(MemoryStore())
    handle = client.get_handle("order-7")
    async with WorkflowEnvironment() as env:
        for owner, name, hint in [
            (client, "start_workflow", "use client.start"),
            (client, "get_workflow_handle", "use client.get_handle"),
            (handle, "fetch_history", "use handle.history"),
            (handle, "get_result", "use handle.result"),
            (env, "client", "env.start"),
            (await env.start(adding), "get_result", "use handle.result"),
        ]:
            with pytest.raises(AttributeError, match=hint):
                getattr(owner, name)


# -- options ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("retry_policy", "instead of retry_policy= use retry="),
        ("task_queue", "instead of task_queue= use queue="),
        ("start_to_close_timout", "use start_to_close_timeout="),
        ("args", "arguments one by one"),
    ],
)
def test_unknown_activity_option_is_answered_with_the_right_one(option: str, hint: str) -> None:
    with pytest.raises(ConfigurationError, match=hint):
        ActivityOptions().replace(**{option: None})


async def test_unknown_start_option_is_answered_with_the_right_one() -> None:
    async with WorkflowEnvironment() as env:
        start: Any = env.start

        with pytest.raises(InvalidArgumentError, match="instead of task_queue= use queue="):
            await start(adding, 1, task_queue="orders")


@pytest.mark.parametrize("name", ["start_to_close_timeout", "heartbeat_timeout"])
@pytest.mark.parametrize("value", [-1, "30s", float("nan"), []], ids=str)
def test_timeout_that_is_no_time_names_the_option(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=name):
        ActivityOptions(**{name: value})


def test_retry_that_is_no_policy_shows_one() -> None:
    wrong: Any = 3
    with pytest.raises(ConfigurationError, match=r"RetryPolicy\(max_attempts=3\), not 3"):
        ActivityOptions(retry=wrong)
    assert ActivityOptions(retry=RetryPolicy(max_attempts=3)).retry.max_attempts == 3


# -- slips -----------------------------------------------------------------------------------


def test_lambda_is_no_activity_unless_it_is_named() -> None:
    with pytest.raises(DefinitionError, match="activity is a lambda, which has no name"):
        activity.defn(lambda: 1)
    assert activity.defn(name="one")(lambda: 1).name == "one"


async def test_what_is_no_workflow_is_told_why() -> None:
    class Undecorated:
        @workflow.run
        async def run(self) -> int:
            return 1

    async with WorkflowEnvironment() as env:
        start: Any = env.start
        with pytest.raises(ConfigurationError, match=r"put @workflow.defn on its class"):
            await start(Undecorated.run)
        with pytest.raises(ConfigurationError, match=r"await it in one, or let Client.enqueue"):
            await start(add, 1)


async def test_kit_refuses_the_ids_and_times_that_a_client_refuses() -> None:
    async with WorkflowEnvironment() as env:
        start: Any = env.start
        for options in ({"id": ""}, {"id": 7}, {"run_timeout": -1}, {"start_delay": "soon"}):
            with pytest.raises(InvalidArgumentError):
                await start(adding, **options)


@workflow.defn
async def waiting_for_a_value() -> None:
    condition: Any = False
    await workflow.wait_condition(condition)


@workflow.defn
async def sleeping_for_a_text() -> None:
    duration: Any = "5"
    await workflow.sleep(duration)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(waiting_for_a_value, "takes a function"), (sleeping_for_a_text, "not a duration")],
)
async def test_wrong_argument_in_workflow_code_says_what_is_meant(wrong: Any, message: str) -> None:
    async with WorkflowEnvironment() as env:
        with pytest.raises(WorkflowFailedError, match=message):
            await (await env.start(wrong)).result()


@workflow.defn
async def taking_a_number() -> int:
    return await workflow.wait_signal("number", int)


async def test_signal_of_another_type_is_named() -> None:
    async with WorkflowEnvironment() as env:
        handle = await env.start(taking_a_number)
        await handle.signal("number", "three")

        with pytest.raises(WorkflowFailedError, match="the value of signal 'number': "):
            await handle.result()


@workflow.defn
async def telling_the_time() -> Any:
    return workflow.now()


async def test_value_without_annotation_that_changes_asks_for_one() -> None:
    async with WorkflowEnvironment() as env:
        with pytest.raises(WorkflowFailedError, match="annotate it with its type"):
            await env.execute(telling_the_time)
