"""The registry: a name means one thing."""

from __future__ import annotations

import types
from typing import Any

import pytest

from durable import activity, workflow
from durable.engine.registry import Registry
from durable.errors import DefinitionError, UnknownWorkflowError


@activity.defn
async def work() -> None:
    pass


@workflow.defn
async def flow() -> None:
    await work()


def another(name: str) -> Any:
    @workflow.defn(name=name)
    async def other() -> None:
        pass

    return other


def test_what_is_registered_is_found_by_name() -> None:
    registry = Registry([flow], [work])
    assert registry.workflow("flow") is flow
    assert registry.activities["work"] is work


def test_the_same_function_twice_is_no_conflict() -> None:
    registry = Registry([flow, flow], [work, work.with_options(queue="far")])
    assert registry.activities["work"] is work


def test_two_functions_under_one_name_are_refused_and_both_named() -> None:
    with pytest.raises(DefinitionError, match=r"test_registry\.flow.*other"):
        Registry([flow, another("flow")])


def test_an_activity_and_a_workflow_may_share_a_name() -> None:
    registry = Registry([another("work")], [work])
    assert registry.workflow("work").name == registry.activities["work"].name


def test_what_is_not_decorated_is_refused_by_name() -> None:
    def plain() -> None:
        pass

    with pytest.raises(DefinitionError, match="plain is neither"):
        Registry([plain])


def test_an_unknown_workflow_lists_those_there_are() -> None:
    with pytest.raises(UnknownWorkflowError, match="registered: flow"):
        Registry([flow]).workflow("flaw")


def test_a_module_is_collected() -> None:
    module = types.ModuleType("shop")
    module.__dict__.update(flow=flow, again=flow, work=work, number=3)
    registry = Registry()
    registry.collect(module)
    assert list(registry.workflows) == ["flow"]
    assert list(registry.activities) == ["work"]


@pytest.mark.parametrize("name", ["", "x" * 513, "a\nb"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError):
        another(name or "\x00")
