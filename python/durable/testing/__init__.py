"""Test workflows: without a database and without waiting, and old histories against new code.

    environment   `WorkflowEnvironment`: run workflows in this process, skipping time
    mocks         replaced activities, held to the real signatures
    history       `History`: assert on what happened
    replayer      `Replayer`: replay recorded histories
    postgres      `PostgresEnvironment`: the same tests on a real database
    plugin        the pytest fixture ``workflow_env``

How it works: `world` drives the engine, `clock` is its time, `attempts` run the activities,
`checks` crash and compare, `lookup` finds definitions by their recorded names, `waiting`
lets time pass.
"""

from durable.testing.environment import WorkflowEnvironment
from durable.testing.handle import TestHandle
from durable.testing.history import History, HistoryEvent, Step
from durable.testing.mocks import Mock
from durable.testing.replayer import Replayer, ReplayReport
from durable.testing.waiting import StuckError

__all__ = [
    "WorkflowEnvironment",
    "TestHandle",
    "Mock",
    "StuckError",
    "History",
    "HistoryEvent",
    "Step",
    "Replayer",
    "ReplayReport",
]
