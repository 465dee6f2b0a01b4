"""Lookup: finding the definition behind a recorded name, so that tests need not register any.

What a workflow's code can call by a global or enclosing name is looked through: its own module,
its closure, and one step further, the modules that it names and those of the functions it names.
Explicit registration comes first, and mocks need none of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

from durable.engine.definition import ActivityDefinition, WorkflowDefinition
from durable.events import DYNAMIC

Definition = ActivityDefinition[Any, Any] | WorkflowDefinition[Any, Any]


def find_definition(near: object, name: str, kind: type[Any]) -> Any:
    """The definition of that kind and name that ``near`` (a function) can reach, or None."""
    if not isinstance(near, FunctionType):
        return None
    scopes = list(own_scopes(near))
    for scope in scopes:
        found = in_scope(scope, name, kind)
        if found is not None:
            return found
    for scope in further_scopes(scopes):
        found = in_scope(scope, name, kind)
        if found is not None:
            return found
    return None


def own_scopes(fn: FunctionType) -> Iterator[Mapping[str, Any]]:
    """The names a function sees: its closure's, then its module's."""
    cells = fn.__closure__ or ()
    closure = {}
    for variable, cell in zip(fn.__code__.co_freevars, cells, strict=True):
        try:
            closure[variable] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield closure
    yield fn.__globals__


def further_scopes(scopes: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The names of the modules and functions that are named in ``scopes``, each once."""
    seen = {id(scope) for scope in scopes}
    for scope in scopes:
        for value in list(scope.values()):
            value = getattr(value, "fn", value)
            found: list[Mapping[str, Any]]
            if isinstance(value, ModuleType):
                found = [vars(value)]
            elif isinstance(value, FunctionType):
                found = list(own_scopes(value))
            else:
                continue
            for each in found:
                if id(each) not in seen:
                    seen.add(id(each))
                    yield each


def in_scope(scope: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """The definition in one mapping of names; members of lists and classes are not looked at."""
    for value in list(scope.values()):
        if isinstance(value, kind) and value.name == name:
            return value
    return None


def reachable(
    near: object,
) -> Iterator[ActivityDefinition[Any, Any] | WorkflowDefinition[Any, Any]]:
    """Every definition that ``near`` and the workflows it can reach can reach, nearest first."""
    queue, seen = [near], set()
    while queue:
        fn = queue.pop(0)
        if not isinstance(fn, FunctionType) or fn in seen:
            continue
        seen.add(fn)
        scopes = list(own_scopes(fn))
        for scope in (*scopes, *further_scopes(scopes)):
            for value in list(scope.values()):
                if isinstance(value, WorkflowDefinition):
                    queue.append(value.fn)
                elif not isinstance(value, ActivityDefinition):
                    continue
                if value.name != DYNAMIC:
                    # What takes every name is not taken by chance.
                    yield value
