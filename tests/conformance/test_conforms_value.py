"""Requirements on values: what travels, and comes back as what its annotation says."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pydantic
import pytest

from durable import activity, workflow
from durable.errors import (
    DefinitionError,
    EncodeError,
    InvalidArgumentError,
    PayloadTooLargeError,
    WorkflowFailedError,
)
from durable.testing import Replayer, WorkflowEnvironment

T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


@dataclass
class Inner:
    when: datetime
    tags: set[str] = field(default_factory=set)


@dataclass
class Outer:
    inner: Inner
    more: list[Inner]
    by_name: dict[str, Inner]
    maybe: Inner | None = None


@dataclass
class Box(Generic[T]):
    content: T


class Model(pydantic.BaseModel):
    name: str
    price: Decimal
    children: list["Model"] = []


class Packet(msgspec.Struct):
    number: int
    body: bytes


class Point(NamedTuple):
    x: int
    y: int


class Options(TypedDict, total=False):
    width: int
    height: int


NOON = datetime(2026, 5, 1, 12, 30, 15, 123456, tzinfo=UTC)

VALUES: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "bool": (bool, True),
    "int": (int, -7),
    "big int": (int, 2**70),
    "float": (float, 0.1 + 0.2),
    "text": (str, 'Grüße 🍵 \u2028 \\ "'),
    "bytes": (bytes, bytes(range(256))),
    "list": (list[int], [1, 2, 3]),
    "tuple": (tuple[int, str], (1, "a")),
    "set": (set[int], {3, 1, 2}),
    "frozenset": (frozenset[str], frozenset("ab")),
    "dict": (dict[str, list[int]], {"a": [1], "": []}),
    "dict of ids": (dict[UUID, int], {UUID(int=7): 1}),
    "dataclass": (Outer, Outer(Inner(NOON, {"x"}), [Inner(NOON)], {"k": Inner(NOON)}, None)),
    "generic": (Box[Inner], Box(Inner(NOON))),
    "pydantic": (Model, Model(name="a", price=Decimal("1.10"), children=[])),
    "nested pydantic": (
        list[Model],
        [Model(name="a", price=Decimal(1), children=[Model(name="b", price=Decimal(2))])],
    ),
    "msgspec": (Packet, Packet(1, b"\x00\xff")),
    "named tuple": (Point, Point(1, 2)),
    "typed dict": (Options, {"width": 3}),
    "enum": (Colour, Colour.BLUE),
    "int enum": (Level, Level.HIGH),
    "literal": (Literal["a", 1], "a"),
    "optional": (int | None, None),
    "union": (int | str, "1"),
    "datetime": (datetime, NOON),
    "datetime with offset": (datetime, NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))),
    "naive datetime": (datetime, datetime(2026, 1, 2, 3, 4, 5)),
    "date": (date, date(2026, 2, 28)),
    "time": (time, time(23, 59, 59, 1)),
    "timedelta": (timedelta, timedelta(days=-1, microseconds=1)),
    "uuid": (UUID, UUID(int=2**127)),
    "decimal": (Decimal, Decimal("1234567890.123456789012345678901234567890")),
    "path": (Path, Path("/tmp/a b")),
    "any": (Any, {"a": [1, None, "x", {"b": 2.5}]}),
}


@pytest.mark.parametrize("kind", VALUES, ids=lambda kind: kind.replace(" ", "-"))
async def test_value_01(env: WorkflowEnvironment, kind: str) -> None:
    """value-1: Each type travels into a workflow, into an activity, back, and out, unchanged."""
    annotation, value = VALUES[kind]

    async def echo(given: annotation) -> annotation:  # type: ignore[valid-type]
        assert given == value
        assert type(given) is type(value)
        return given

    async def body(given: annotation) -> annotation:  # type: ignore[valid-type]
        assert type(given) is type(value)
        return await step(given)

    step = activity.defn(name="echo")(echo)
    flow = workflow.defn(name="flow")(body)
    result = await env.execute(flow, value)
    assert result == value
    assert type(result) is type(value)


async def test_value_02(env: WorkflowEnvironment) -> None:
    """value-2: Signals, queries, updates, side effects and children carry typed values too."""

    @workflow.defn
    async def child(inner: Inner) -> Inner:
        return inner

    @workflow.defn
    class Holder:
        def __init__(self) -> None:
            self.inner: Inner | None = None

        @workflow.run
        async def run(self) -> Inner:
            await workflow.wait_condition(lambda: self.inner is not None)
            assert self.inner is not None
            return await child(self.inner)

        @workflow.signal
        def put(self, inner: Inner) -> None:
            assert isinstance(inner, Inner)
            self.inner = inner

        @workflow.update
        def swap(self, inner: Inner) -> Inner:
            assert isinstance(inner, Inner)
            return inner

        @workflow.query
        def same(self, inner: Inner) -> Inner:
            assert isinstance(inner, Inner)
            return inner

    inner = Inner(NOON, {"a"})
    handle = await env.start(Holder)
    assert await handle.update("swap", inner) == inner
    assert await handle.query("same", inner) == inner
    await handle.signal("put", inner)
    assert await handle.result() == inner


def test_value_03() -> None:
    """value-3: A type that cannot come back is refused when the function is defined."""
    for annotation in (complex, Callable[[int], str], asyncio.Lock):

        async def body(given: annotation) -> None:  # type: ignore[valid-type]
            return None

        with pytest.raises(DefinitionError):
            activity.defn(body)
        with pytest.raises(DefinitionError):
            workflow.defn(body)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "\ud800", object(), {1: object()}], ids=repr
)
async def test_value_04(env: WorkflowEnvironment, value: Any) -> None:
    """value-4: A value that cannot be written is refused at the call; nothing is recorded."""

    @activity.defn
    async def step(given: Any) -> None:
        return None

    @workflow.defn
    async def flow() -> str:
        try:
            await step(value)
        except EncodeError:
            return "refused"
        return "accepted"

    handle = await env.start(flow)
    assert await handle.result() == "refused"
    assert not (await handle.history()).activities


async def test_value_05(env: WorkflowEnvironment) -> None:
    """value-5: A start with arguments that do not fit is refused, and there is no run."""

    @workflow.defn
    async def flow(inner: Inner, count: int = 1) -> None:
        return None

    for wrong in ((), ("text",), (Inner(NOON), "many"), (Inner(NOON), 1, 2)):
        with pytest.raises((InvalidArgumentError, EncodeError)):
            await env.start(flow, *wrong)


async def test_value_06(env: WorkflowEnvironment) -> None:
    """value-6: A payload of a megabyte travels; one over the limit is refused, naming its place."""

    @activity.defn
    async def size(text: str) -> int:
        return len(text)

    @workflow.defn
    async def flow() -> list[str]:
        found = [str(await size("x" * 1_000_000))]
        try:
            await size("x" * 3_000_000)
        except PayloadTooLargeError as error:
            found.append("size" if "size" in str(error) else str(error))
        return found

    assert await env.execute(flow) == ["1000000", "size"]


async def test_value_07(env: WorkflowEnvironment) -> None:
    """value-7: A result over the limit fails the run, and says how large it is."""

    @workflow.defn
    async def flow() -> str:
        return "x" * 3_000_000

    with pytest.raises(WorkflowFailedError, match="3,000,00"):
        await env.execute(flow)


async def test_value_08(env: WorkflowEnvironment) -> None:
    """value-8: A mutable value is a copy on the other side: changes do not leak back."""

    @activity.defn
    async def grow(items: list[int]) -> list[int]:
        items.append(99)
        return items

    @workflow.defn
    async def flow() -> list[list[int]]:
        items = [1]
        grown = await grow(items)
        return [items, grown]

    assert await env.execute(flow) == [[1], [1, 99]]


async def test_value_09(env: WorkflowEnvironment) -> None:
    """value-9: What was recorded before a field existed is read with the field's default."""

    @workflow.defn
    async def flow() -> Outer:
        return await workflow.execute_activity("old", result_type=Outer)

    when = NOON.isoformat()
    env.mock("old", lambda: {"inner": {"when": when}, "more": [], "by_name": {}})
    assert await env.execute(flow) == Outer(Inner(NOON), [], {})


async def test_value_10(env: WorkflowEnvironment) -> None:
    """value-10: A side effect is recorded once, whatever it reads later."""
    reads: list[int] = []

    def read() -> int:
        reads.append(1)
        return len(reads)

    @workflow.defn
    async def flow() -> list[int]:
        first = workflow.side_effect(read)
        await asyncio.sleep(0.02)
        return [first, workflow.side_effect(read)]

    handle = await env.start(flow)
    first, second = await handle.result()
    assert first < second
    # A worker that could not write what it ran has run it again; what is written is read no more.
    count = len(reads)
    Replayer([flow]).replay(await handle.history())
    assert len(reads) == count
