"""What a mock must fit, and how definitions are found by their recorded names."""

import types
from collections.abc import Callable
from typing import Any

import pytest

from durable import activity, workflow
from durable.errors import ActivityError, InvalidArgumentError
from durable.options import RetryPolicy
from durable.testing import WorkflowEnvironment


@activity.defn(retry=RetryPolicy(max_attempts=4))
async def weigh(item: str, count: int = 1, *, unit: str = "kg") -> float:
    return 1.0 * count


@workflow.defn
async def weigh_all(item: str) -> float:
    return await weigh(item, 3, unit="g")


def vague(item: object, count: float = 1, *, unit: Any = "kg") -> int:
    return 1


@pytest.mark.parametrize(
    "replacement",
    [
        vague,
        2.5,
        2,
        lambda item, count=1, unit="kg": 2.5,
        lambda *args, **kwargs: 2.5,
        ValueError,
        ValueError("no"),
        weigh,
    ],
    ids=repr,
)
def test_what_fits_is_taken(replacement: Any) -> None:
    WorkflowEnvironment().mock(weigh, replacement)


def wrong_parameter(item: int, count: int = 1, *, unit: str = "kg") -> float:
    return 1.0


def wrong_result(item: str, count: int = 1, *, unit: str = "kg") -> str:
    return ""


@pytest.mark.parametrize(
    ("replacement", "message"),
    [
        ("heavy", "cannot be what weigh"),
        (lambda item: 2.5, "cannot take its arguments"),
        (lambda item, count: 2.5, "cannot take its arguments"),
        (wrong_parameter, "takes as item int, not str"),
        (wrong_result, "returns str, not float"),
    ],
)
def test_what_cannot_fit_is_refused_at_once(replacement: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        WorkflowEnvironment().mock(weigh, replacement)


async def test_mock_sees_each_call_with_its_keywords() -> None:
    async with WorkflowEnvironment() as env:
        mock = env.mock(weigh, 2.5)

        assert await env.execute(weigh_all, "tea") == 2.5
        assert mock.calls == [(("tea", 3), {"unit": "g"})]


def test_mock_that_was_not_called_says_so() -> None:
    mock = WorkflowEnvironment().mock(weigh, 2.5)

    with pytest.raises(InvalidArgumentError, match="was not called"):
        _ = mock.args


async def test_history_counts_the_attempts_of_a_failure() -> None:
    @workflow.defn
    async def gives_up() -> str:
        try:
            await weigh("tea")
        except ActivityError:
            return "gave up"
        return "weighed"

    async with WorkflowEnvironment() as env:
        env.mock(weigh, RuntimeError("broken scales"))
        handle = await env.start(gives_up)

        assert await handle.result() == "gave up"
        (step,) = (await handle.history()).activities
        assert (step.outcome, step.attempts) == ("failed", 4)
        assert step.failure is not None
        assert step.failure["message"] == "broken scales"


def module_with(**names: Any) -> Callable[[str], Any]:
    """A function that makes a workflow whose module has these names only."""

    def make(source: str) -> Any:
        module = types.ModuleType("made")
        vars(module).update(names, workflow=workflow)
        exec(source, vars(module))
        return module.__dict__["flow"]

    return make


async def test_activity_of_a_module_that_is_named_is_found() -> None:
    shop = types.ModuleType("shop")
    vars(shop)["weigh"] = weigh
    flow = module_with(shop=shop)(
        "@workflow.defn\nasync def flow(item: str) -> float:\n    return await shop.weigh(item)\n"
    )

    async with WorkflowEnvironment() as env:
        assert await env.execute(flow, "tea") == 1.0


async def test_activity_of_a_function_that_is_named_is_found() -> None:
    helper = module_with(weigh=weigh)(
        "async def flow(item: str) -> float:\n    return await weigh(item)\n"
    )
    flow = module_with(helper=helper)(
        "@workflow.defn\nasync def flow(item: str) -> float:\n    return await helper(item)\n"
    )

    async with WorkflowEnvironment() as env:
        assert await env.execute(flow, "tea") == 1.0


async def test_registered_activity_comes_first() -> None:
    @activity.defn(name="weigh")
    async def other(item: str, count: int = 1, *, unit: str = "kg") -> float:
        return 9.0

    async with WorkflowEnvironment(activities=[other]) as env:
        assert await env.execute(weigh_all, "tea") == 9.0
