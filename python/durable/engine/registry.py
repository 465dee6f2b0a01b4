"""Name to definition: what one worker, or one replay, knows."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any, TypeVar

from durable.engine.definition import ActivityDefinition, WorkflowDefinition
from durable.engine.interceptors import Hooks, Interceptor
from durable.engine.jobs import job_of
from durable.engine.schedules import SCHEDULE, SCHEDULE_TYPE
from durable.errors import ConfigurationError, DefinitionError, UnknownWorkflowError
from durable.events import DYNAMIC, JOB_PREFIX, stand_in

D = TypeVar("D", WorkflowDefinition[Any, Any], ActivityDefinition[Any, Any])
NAMED_MAX = 1000
"""Names under which a dynamic definition is kept at hand."""


class Table(dict[str, D]):
    """Definitions by name. A dynamic one, under DYNAMIC, stands for names that are not here."""

    def __init__(self, known: Iterable[tuple[str, D]] = ()) -> None:
        super().__init__()
        for name, each in known:
            self[name] = each
        self._named: dict[str, D] = {}

    def find(self, name: str) -> D | None:
        """What runs under that name, or None."""
        found = self.get(name)
        if found is not None or DYNAMIC not in self:
            return found
        found = self._named.get(name)
        if found is None:
            if len(self._named) >= NAMED_MAX:
                self._named.clear()
            found = self._named[name] = self[DYNAMIC].named(name)
        return found


class Registry:
    """The workflows and activities of a process, by name.

    Two different functions under one name are a `DefinitionError`; the same one twice is not.
    """

    def __init__(
        self,
        workflows: Iterable[object] = (),
        activities: Iterable[object] = (),
        errors: Iterable[type[BaseException]] = (),
        interceptors: Iterable[Interceptor] = (),
    ) -> None:
        self.hooks = Hooks(interceptors)
        """What surrounds the code of all of them."""
        self.workflows: Table[WorkflowDefinition[Any, Any]] = Table()
        self.activities: Table[ActivityDefinition[Any, Any]] = Table()
        self.errors = {f"{each.__module__}.{each.__qualname__}": each for each in errors}
        """Exception classes that failures from elsewhere become again, by qualified name."""
        for what, given in (("workflows", workflows), ("activities", activities)):
            if not isinstance(given, Iterable):
                raise ConfigurationError(f"{what} are a list: {what}=[...], not {given!r}")
            for each in given:
                self.add(each)

    def add(self, definition: object) -> None:
        """Register one workflow or activity."""
        if isinstance(definition, WorkflowDefinition):
            if definition.name.startswith(JOB_PREFIX):
                raise DefinitionError(
                    f"names that begin with {JOB_PREFIX!r} are those of jobs; "
                    f"call workflow {definition.name!r} something else"
                )
            if definition is SCHEDULE:
                return
            if definition.name == SCHEDULE_TYPE:
                raise DefinitionError(
                    f"{SCHEDULE_TYPE!r} is the type of schedules; call the workflow something else"
                )
            put(self.workflows, definition.name, definition, "workflow")
        elif isinstance(definition, ActivityDefinition):
            if definition.is_unbound:
                raise DefinitionError(
                    f"activity {definition.name} is a method; "
                    "register it from an instance, which it then runs on"
                )
            put(self.activities, definition.name, definition, "activity")
        else:
            name = getattr(definition, "__name__", None) or repr(definition)
            raise DefinitionError(
                f"{name} is neither a workflow nor an activity; "
                "put @workflow.defn or @activity.defn on it"
            )

    def collect(self, module: ModuleType) -> None:
        """Register every workflow and activity that a module holds at its top level."""
        for value in list(vars(module).values()):
            if isinstance(value, WorkflowDefinition | ActivityDefinition):
                self.add(value)

    @property
    def workflow_types(self) -> list[str]:
        """The types of the runs that this code can run: its workflows, and jobs of activities.

        With them, schedules: whoever runs anything can start it at its times.
        """
        own = [*self.workflows, *(JOB_PREFIX + name for name in self.activities)]
        return [*own, SCHEDULE_TYPE] if own else []

    def find_workflow(self, name: str) -> WorkflowDefinition[Any, Any] | None:
        """The workflow of that name, or the one that runs the jobs of an activity; else None."""
        if name.startswith(JOB_PREFIX):
            activity = self.activities.find(name.removeprefix(JOB_PREFIX))
            return None if activity is None else job_of(activity)
        if name == SCHEDULE_TYPE:
            return SCHEDULE
        return self.workflows.get(name) if stand_in(name) is None else self.workflows.find(name)

    def hooks_of(self, definition: WorkflowDefinition[Any, Any]) -> Hooks | None:
        """What surrounds the code of that workflow; None when nothing does."""
        # Schedules are our own code.
        return None if definition is SCHEDULE else self.hooks.in_workflows

    def workflow(self, name: str) -> WorkflowDefinition[Any, Any]:
        """As `find_workflow`; raise UnknownWorkflowError with those there are."""
        found = self.find_workflow(name)
        if found is None:
            known = ", ".join(sorted(self.workflows)) or "none"
            raise UnknownWorkflowError(f"no workflow is called {name!r}; registered: {known}")
        return found


def put(table: dict[str, Any], name: str, definition: Any, what: str) -> None:
    """Add a definition to a table of them, if its name is not another function's."""
    known = table.get(name)
    if known is not None and known.fn is not definition.fn and name == DYNAMIC:
        raise DefinitionError(
            f"two dynamic {what} definitions are registered: {describe(known.fn)} and "
            f"{describe(definition.fn)}; there can be one"
        )
    if known is not None and known.fn is not definition.fn:
        raise DefinitionError(
            f"two functions are registered as {what} {name!r}: {describe(known.fn)} and "
            f"{describe(definition.fn)}; give one of them another name="
        )
    table.setdefault(name, definition)


def describe(fn: Any) -> str:
    """``module.function``, for messages."""
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', fn)}"
