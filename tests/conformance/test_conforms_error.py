"""Requirements on errors: what ends a run, and what is left of an exception that travels."""

import pytest

from durable import (
    ActivityError,
    ApplicationError,
    NonRetryable,
    RetryPolicy,
    RunState,
    activity,
    workflow,
)
from durable.codec import register_error
from durable.errors import WorkflowFailedError, WorkflowTerminatedError
from durable.testing import WorkflowEnvironment

ONCE = RetryPolicy(max_attempts=1)


@register_error
class Declined(Exception):
    """Known to every process: comes back as itself."""

    def __init__(self, code: int, *, bank: str) -> None:
        super().__init__(f"declined with {code}")
        self.code = code
        self.bank = bank


class Private(Exception):
    """Known to the activity only."""


async def failing(env: WorkflowEnvironment, error: BaseException) -> WorkflowFailedError:
    """The failure of a run whose code raises ``error``."""

    @workflow.defn
    async def flow() -> None:
        raise error

    with pytest.raises(WorkflowFailedError) as caught:
        await env.execute(flow)
    return caught.value


async def failed_step(env: WorkflowEnvironment, error: BaseException) -> BaseException:
    """The cause that a workflow's failure gives for an activity that raised ``error``."""

    @activity.defn(retry=ONCE)
    async def step() -> None:
        raise error

    @workflow.defn
    async def flow() -> None:
        await step()

    with pytest.raises(WorkflowFailedError) as caught:
        await env.execute(flow)
    assert isinstance(caught.value.__cause__, ActivityError)
    assert caught.value.__cause__.__cause__ is not None
    return caught.value.__cause__.__cause__


@pytest.mark.parametrize(
    "error",
    [
        KeyError("k"),
        ZeroDivisionError("z"),
        TimeoutError("t"),
        AssertionError("a"),
        OSError(2, "o"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_error_01(env: WorkflowEnvironment, error: Exception) -> None:
    """error-1: Any exception that the code lets through fails the run, at once and for good."""
    failure = await failing(env, error)
    assert type(failure.__cause__) is type(error)


async def test_error_02(env: WorkflowEnvironment) -> None:
    """error-2: A failure keeps type, message and arguments."""
    cause = (await failing(env, ValueError("no such order", 7))).__cause__
    assert isinstance(cause, ValueError)
    assert cause.args == ("no such order", 7)


async def test_error_03(env: WorkflowEnvironment) -> None:
    """error-3: A failure keeps its chain of causes."""

    @workflow.defn
    async def flow() -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error

    with pytest.raises(WorkflowFailedError) as caught:
        await env.execute(flow)
    outer = caught.value.__cause__
    assert isinstance(outer, ValueError)
    assert isinstance(outer.__cause__, KeyError)


async def test_error_04(env: WorkflowEnvironment) -> None:
    """error-4: A failure keeps the traceback of where it was raised."""
    cause = await failed_step(env, ValueError("far away"))
    trace = cause.remote_traceback  # type: ignore[attr-defined]
    assert "test_conforms_error.py" in trace
    assert "in step" in trace


async def test_error_05(env: WorkflowEnvironment) -> None:
    """error-5: An exception class that the application registered comes back as itself."""
    cause = await failed_step(env, Declined(51, bank="acme"))
    assert type(cause) is Declined
    assert (str(cause), cause.code, cause.bank) == ("declined with 51", 51, "acme")


async def test_error_06(env: WorkflowEnvironment) -> None:
    """error-6: One that is not known comes back as an ApplicationError that names its type."""
    cause = await failed_step(env, Private("hidden"))
    assert type(cause) is ApplicationError
    assert "Private" in str(cause.type)
    assert "hidden" in str(cause)


async def test_error_07(env: WorkflowEnvironment) -> None:
    """error-7: An ApplicationError carries a type of its own and details."""
    error = NonRetryable("out of stock", {"item": "tea"}, 3, type="OutOfStock")
    cause = await failed_step(env, error)
    assert isinstance(cause, NonRetryable)
    assert (cause.type, cause.details) == ("OutOfStock", ({"item": "tea"}, 3))


async def test_error_08(env: WorkflowEnvironment) -> None:
    """error-8: An exception group keeps its members."""
    group = ExceptionGroup("two things", [ValueError("a"), KeyError("b")])
    cause = await failed_step(env, group)
    assert isinstance(cause, ExceptionGroup)
    assert [type(each) for each in cause.exceptions] == [ValueError, KeyError]


async def test_error_09(env: WorkflowEnvironment) -> None:
    """error-9: Notes are kept."""
    error = ValueError("bad")
    error.add_note("seen on a Tuesday")
    cause = await failed_step(env, error)
    assert "seen on a Tuesday" in cause.__notes__


async def test_error_10(env: WorkflowEnvironment) -> None:
    """error-10: An exception that cannot be printed does no harm."""

    class Nasty(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text for you")

    cause = await failed_step(env, Nasty("x" * 10))
    assert "Nasty" in str(getattr(cause, "type", ""))


async def test_error_11(env: WorkflowEnvironment) -> None:
    """error-11: A message of a megabyte is cut, and the run fails like any other."""
    cause = await failed_step(env, ValueError("x" * 1_000_000))
    assert isinstance(cause, ValueError)
    assert len(str(cause)) < 100_000


async def test_error_12(env: WorkflowEnvironment) -> None:
    """error-12: A result that cannot be written fails the run, and says which type."""

    @workflow.defn
    async def flow() -> object:
        return object()

    with pytest.raises(WorkflowFailedError, match="object"):
        await env.execute(flow)


async def test_error_13(env: WorkflowEnvironment) -> None:
    """error-13: An error in finally replaces the first, which stays as its context."""

    @workflow.defn
    async def flow() -> None:
        try:
            raise ValueError("first")
        finally:
            raise KeyError("second")

    with pytest.raises(WorkflowFailedError) as caught:
        await env.execute(flow)
    assert isinstance(caught.value.__cause__, KeyError)


async def test_error_14(env: WorkflowEnvironment) -> None:
    """error-14: An activity's error names the activity and the number of attempts."""

    @activity.defn(retry=RetryPolicy(initial_interval=0.01, max_interval=0.01, max_attempts=2))
    async def shaky() -> None:
        raise ValueError("again")

    @workflow.defn
    async def flow() -> list[object]:
        try:
            await shaky()
        except ActivityError as error:
            return [error.name, error.attempt, "shaky" in str(error)]
        return []

    assert await env.execute(flow) == ["shaky", 2, True]


async def test_error_15(env: WorkflowEnvironment) -> None:
    """error-15: Nothing in a failure's data is imported or run."""
    failure = await failing(env, ApplicationError("x", type="os.system"))
    assert type(failure.__cause__) is ApplicationError


async def test_error_16(postgres: WorkflowEnvironment) -> None:
    """error-16: SystemExit in workflow code parks that run; the worker goes on with the others."""

    @workflow.defn
    async def exits() -> None:
        raise SystemExit(3)

    @workflow.defn
    async def fine() -> str:
        return "fine"

    bad = await postgres.start(exits)
    while await bad.state() != RunState.PARKED:
        await postgres.settle()
    assert await postgres.execute(fine) == "fine"
    await bad.terminate("sorted out")
    with pytest.raises(WorkflowTerminatedError):
        await bad.result()
