"""App: from the name a user gives on the command line to the definitions in it.

A name is ``package.module``, ``package.module:attribute`` or a path such as ``subscription.py``
(whose folder is put on the import path, as Python does for a script). Without an attribute every
workflow and activity that the module holds, defined there or imported, is taken. A `Codec` that the
module calls ``codec`` is between the app and the database; a list of `Interceptor` objects that it
calls ``interceptors`` is around all its code.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from durable.codec import DEFAULT_CODEC, Codec
from durable.engine.definition import ActivityDefinition, WorkflowDefinition
from durable.engine.interceptors import Hooks, Interceptor
from durable.engine.registry import Registry, Table
from durable.errors import ConfigurationError
from durable.events import DYNAMIC, stand_in


class AppError(ConfigurationError):
    """The app cannot be imported, or there is nothing in it to run. One readable line."""


@dataclass(frozen=True)
class App:
    """What a worker serves, and where it came from."""

    name: str
    workflows: tuple[WorkflowDefinition[Any, Any], ...]
    activities: tuple[ActivityDefinition[Any, Any], ...]
    codec: Codec = DEFAULT_CODEC
    """What the module calls ``codec``, if it is one."""
    interceptors: tuple[Interceptor, ...] = ()
    """The list that the module calls ``interceptors``, the outermost first."""

    def workflow(self, name: str) -> WorkflowDefinition[Any, Any] | None:
        """The workflow that runs the type of that name, which may be the dynamic one; else None."""
        table = Table((each.name, each) for each in self.workflows)
        return table.find(name) if stand_in(name) == DYNAMIC else table.get(name)

    def activity(self, name: str) -> ActivityDefinition[Any, Any] | None:
        """The activity of that name, or the dynamic one as that; else None."""
        return Table((each.name, each) for each in self.activities).find(name)

    def registry(self) -> Registry:
        """All that it defines, as a worker has it; raise DefinitionError for two of one name."""
        return Registry(self.workflows, self.activities, interceptors=self.interceptors)


def load_app(spec: str, folder: Path | None = None) -> App:
    """Import ``spec`` and collect its definitions; raise AppError when that cannot be done.

    ``folder`` is where paths and modules are looked for; None is the current folder.
    """
    module_name, _, attribute = spec.partition(":")
    if not module_name.strip():
        raise AppError("the app has no name; give a module (shop.flows) or a file (flows.py)")
    module = import_module(module_name, folder or Path.cwd())
    if attribute:
        if not hasattr(module, attribute):
            raise AppError(f"{module_name} has no attribute {attribute!r}")
        found = list(definitions_in(getattr(module, attribute)))
    else:
        found = list(definitions_in(module))
    codec = getattr(module, "codec", None)
    interceptors = interceptors_in(getattr(module, "interceptors", ()), module_name)
    if not found:
        raise AppError(
            f"{spec} has no workflows and no activities; "
            "put @workflow.defn or @activity.defn on the functions it should serve"
        )
    return App(
        name=spec,
        workflows=tuple(each for each in found if isinstance(each, WorkflowDefinition)),
        activities=tuple(each for each in found if isinstance(each, ActivityDefinition)),
        codec=codec if isinstance(codec, Codec) else DEFAULT_CODEC,
        interceptors=interceptors,
    )


def interceptors_in(value: object, module: str) -> tuple[Interceptor, ...]:
    """The interceptors of an app; none when the module has something else of that name.

    Raise AppError for a list with interceptors and other things in it.
    """
    if not isinstance(value, list | tuple):
        return ()
    is_ours = [
        isinstance(each, Interceptor) or (isinstance(each, type) and issubclass(each, Interceptor))
        for each in value
    ]
    if not any(is_ours):
        return ()
    try:
        return Hooks(value).interceptors
    except ConfigurationError as error:
        raise AppError(f"interceptors of {module}: {error}") from error


def import_module(name: str, root: Path) -> ModuleType:
    """Import a module by its name or path; raise AppError with the line that is at fault."""
    if name.endswith(".py") or "/" in name:
        path = (root / name).resolve()
        if not path.is_file():
            raise AppError(f"there is no file {name} in {root}")
        folder, module_name = str(path.parent), path.stem
    else:
        folder, module_name = str(root), name
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name == module_name:
            raise AppError(f"there is no module {module_name!r} in {folder}") from error
        raise AppError(f"cannot import {name}: {describe(error)}") from error
    except Exception as error:
        raise AppError(f"cannot import {name}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """An exception and where in the user's code it was raised, on one line."""
    text = " ".join(str(error).split()) or "no message"
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {text}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and frame.filename != __file__
    ]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{where}"


def definitions_in(
    value: object,
) -> Iterable[WorkflowDefinition[Any, Any] | ActivityDefinition[Any, Any]]:
    """The definitions a module, a collection or a single name holds, each once, in order."""
    if isinstance(value, WorkflowDefinition | ActivityDefinition):
        members: list[object] = [value]
    elif isinstance(value, ModuleType):
        members = list(vars(value).values())
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        members = list(value)
    else:
        members = [member for _, member in inspect.getmembers(value)]
    seen: set[int] = set()
    for member in members:
        if id(member) in seen:
            continue
        seen.add(id(member))
        if isinstance(member, WorkflowDefinition | ActivityDefinition):
            yield member
