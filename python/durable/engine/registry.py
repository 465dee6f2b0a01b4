"""Name to definition: what one worker, or one replay, knows."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from durable.engine.definition import ActivityDefinition, WorkflowDefinition
from durable.engine.interceptors import Hooks, Interceptor
from durable.engine.jobs import JOB_PREFIX, job_of
from durable.engine.schedules import SCHEDULE, SCHEDULE_TYPE
from durable.errors import DefinitionError, UnknownWorkflowError


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
        self.workflows: dict[str, WorkflowDefinition[Any, Any]] = {}
        self.activities: dict[str, ActivityDefinition[Any, Any]] = {}
        self.errors = {f"{each.__module__}.{each.__qualname__}": each for each in errors}
        """Exception classes that failures from elsewhere become again, by qualified name."""
        for each in (*workflows, *activities):
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
            activity = self.activities.get(name.removeprefix(JOB_PREFIX))
            return None if activity is None else job_of(activity)
        if name == SCHEDULE_TYPE:
            return SCHEDULE
        return self.workflows.get(name)

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
    if known is not None and known.fn is not definition.fn:
        raise DefinitionError(
            f"two functions are registered as {what} {name!r}: {describe(known.fn)} and "
            f"{describe(definition.fn)}; give one of them another name="
        )
    table.setdefault(name, definition)


def describe(fn: Any) -> str:
    """``module.function``, for messages."""
    return f"{getattr(fn, '__module__', '?')}.{getattr(fn, '__qualname__', fn)}"
