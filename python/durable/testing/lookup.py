"""Lookup: finding the definition behind a recorded name, so that tests need not register any.

What a workflow's code can call by a global or enclosing name is looked through: its own module,
its closure, and one step further, the modules that it names and those of the functions it names.
The code of a workflow class is that of all its methods.
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
    """The definition of that kind and name that ``near`` (a workflow) can reach, or None."""
    scopes = scopes_of(near)
    for scope in scopes:
        found = in_scope(scope, name, kind)
        if found is not None:
            return found
    for scope in further_scopes(scopes):
        found = in_scope(scope, name, kind)
        if found is not None:
            return found
    return None


def functions_of(code: object) -> list[FunctionType]:
    """The functions that are a workflow's code, or the one that ``code`` is."""
    if not isinstance(code, WorkflowDefinition):
        return [code] if isinstance(code, FunctionType) else []
    found = [code.fn]
    for base in code.cls.__mro__ if code.cls is not None else ():
        # An update handler is an object around its function.
        found += [getattr(value, "fn", value) for value in vars(base).values()]
    return [fn for fn in found if isinstance(fn, FunctionType)]


def scopes_of(code: object) -> list[Mapping[str, Any]]:
    """The names that the functions of a workflow see, each mapping once."""
    scopes = [scope for fn in functions_of(code) for scope in own_scopes(fn)]
    return list({id(scope): scope for scope in scopes}.values())


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
    # Kept, not only their ids: that of a mapping which is gone may be given to the next one.
    seen = {id(scope): scope for scope in scopes}
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
                    seen[id(each)] = each
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
    queue: list[object] = [near]
    seen: set[object] = set()
    while queue:
        code = queue.pop(0)
        if code in seen:
            continue
        seen.add(code)
        scopes = scopes_of(code)
        for scope in (*scopes, *further_scopes(scopes)):
            for value in list(scope.values()):
                if isinstance(value, WorkflowDefinition):
                    queue.append(value)
                elif not isinstance(value, ActivityDefinition):
                    continue
                if value.name != DYNAMIC:
                    # What takes every name is not taken by chance.
                    yield value
