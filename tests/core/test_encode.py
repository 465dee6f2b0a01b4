"""What the core writes and reads itself is what the codec would have written and read.

Histories hold bytes, and a replay compares them: a value must look the same whichever way it took.
"""

from __future__ import annotations

import asyncio
import enum
import math
import struct
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable import activity, workflow
from durable.codec import Codec, Converter
from durable.engine.definition import ActivityDefinition
from durable.engine.execution import Execution
from durable.engine.start import StartMeta, new_run
from durable.errors import DecodeError, EncodeError
from durable.events import EventKind
from durable.options import ActivityOptions

if TYPE_CHECKING:
    from durable._core import Event

RUN_ID = "8d5f6a54-54f0-4c0a-9d6a-0f3d0e7a9c11"
START_US = 1_760_000_000_000_000


@dataclass
class Line:
    name: str
    price: float
    _secret: int = 3


@dataclass(frozen=True, slots=True)
class Basket:
    lines: list[Line]
    labels: dict[str, str]
    owner: Line | None = None
    at: datetime | None = None


@dataclass
class Extra(Line):
    @property
    def price_text(self) -> str:
        return str(self.price)


class Point(msgspec.Struct, rename="camel"):
    at_x: int


@dataclass
class Named(str):
    """A str for JSON, whatever else it is."""

    other: int = 1


class Colour(enum.Enum):
    RED = "red"


lines = st.builds(Line, st.text(), st.floats(allow_nan=False, allow_infinity=False), st.integers())
leaves = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)))
    | st.sampled_from([Colour.RED, Point(3), uuid.UUID(RUN_ID), datetime(2026, 1, 2, tzinfo=UTC)])
    | lines
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner, max_size=4)
        | st.builds(Basket, st.lists(lines, max_size=2), st.dictionaries(st.text(), st.text()))
    ),
    max_leaves=12,
)


async def take_all(*values: Any) -> None:
    """An activity that takes whatever it is given."""


def scheduled(value: Any, codec: Codec | None = None) -> bytes | None:
    """The argument list as history has it after one call with ``value``."""
    taker = ActivityDefinition("take_all", take_all, ActivityOptions(), codec=codec or Codec())

    async def call() -> None:
        await taker(value)

    return command_of(call)[7]


def command_of(program: Any) -> Event:
    """The first command of a workflow function without arguments."""
    execution = started(program)
    (event,) = execution._loop.pending()
    execution.evict()
    return event


def started(program: Any) -> Execution:
    """A run of ``program`` at its first wait."""
    definition = workflow.defn(program)
    execution = Execution(definition, RUN_ID, "w")
    start = new_run(definition, b"[]", StartMeta("w"), run_id=RUN_ID, now_us=START_US)
    execution.load([start.batch])
    return execution


@given(values)
def test_the_core_writes_what_the_codec_writes(value: Any) -> None:
    codec = Codec()

    assert scheduled(value, codec) == codec.encode((value,))


@given(st.integers(min_value=0, max_value=2**64 - 1))
def test_every_float_is_written_as_the_codec_writes_it(bits: int) -> None:
    (number,) = struct.unpack("<d", struct.pack("<Q", bits))
    codec = Codec()
    if not math.isfinite(number):
        with pytest.raises(EncodeError):
            codec.encode((number,))
        return

    assert scheduled([number, number / 1e300, round(number % 1e9, 2)], codec) == codec.encode(
        ([number, number / 1e300, round(number % 1e9, 2)],)
    )


@pytest.mark.parametrize("power", range(-330, 308))
def test_powers_of_ten_are_written_as_the_codec_writes_them(power: int) -> None:
    number = float(f"1e{power}")

    assert scheduled([number, -number, 3 * number]) == Codec().encode(
        ([number, -number, 3 * number],)
    )


@pytest.mark.parametrize(
    "value",
    [
        Extra("a", 1.5),
        Named("text"),
        [Colour.RED, Point(3)],
        Basket([Line("ä", 2.0)], {"k": 'quo"te'}, at=datetime(2026, 1, 2, tzinfo=UTC)),
        "\x7f\u2028 und Straße",
        {"ключ": "значение"},
        -0.0,
    ],
    ids=repr,
)
def test_a_special_value_is_written_as_the_codec_writes_it(value: Any) -> None:
    assert scheduled(value) == Codec().encode((value,))


def test_a_converter_stands_before_the_fields_of_its_type() -> None:
    codec = Codec([Converter(Held, lambda held: held.number, lambda number: Held(number, 0))])

    assert scheduled(Held(7, 1), codec) == b"[7]"
    assert scheduled([SubHeld(7, 1)], codec) == b"[[7]]"


class Held:
    """A type that JSON has no form for."""

    def __init__(self, number: int, other: int) -> None:
        self.number = number
        self.other = other


@dataclass(init=False)
class SubHeld(Held):
    """A dataclass below a type with a converter."""

    note: str = ""


def test_a_codec_that_verifies_sees_every_record() -> None:
    codec = Codec(verify=True)
    taker = ActivityDefinition("take_line", take_line, ActivityOptions(), codec=codec)
    seen: list[str] = []
    misfit: Any = Line(7, 1.0)  # type: ignore[arg-type]

    async def call() -> None:
        try:
            await taker(misfit)
        except EncodeError as error:
            seen.append(str(error))
        codec.verify = False
        await taker(misfit)

    execution = started(call)

    assert "does not survive" in seen[0]
    assert execution.pending_count == 1
    execution.evict()


async def take_line(line: Line) -> None:
    """An activity whose argument has a type."""


def test_a_field_that_cannot_be_read_is_an_encode_error() -> None:
    broken = Line("a", 1.0)
    del broken.name
    seen: list[Exception] = []

    async def call() -> None:
        try:
            await activity.defn(take_line)(broken)
        except Exception as error:
            seen.append(error)
        await asyncio.sleep(1)

    started(call).evict()

    assert isinstance(seen[0], EncodeError)


ANSWERS = [
    (int, b"7", 7),
    (int, b"123456789012345678901234567890", 123456789012345678901234567890),
    (int, b'"7"', None),
    (int, b"true", None),
    (bool, b"true", True),
    (bool, b"1", None),
    (str, b'"plain"', "plain"),
    (str, '"Straße"'.encode(), "Straße"),
    (str, b'"a\\nb"', "a\nb"),
    (str, b'"\xff"', None),
    (str, b"null", None),
    (int | None, b"null", None),
    (float, b"7", 7.0),
    (Any, b"7", 7),
    (Line, b'{"name":"a","price":1.5,"_secret":1}', Line("a", 1.5, 1)),
    (Line, b'{"name":1}', None),
]


@pytest.mark.parametrize(("annotation", "payload", "expected"), ANSWERS, ids=repr)
def test_a_result_is_read_as_its_decoder_reads_it(
    annotation: Any, payload: bytes, expected: Any
) -> None:
    async def answer() -> Any: ...

    answer.__annotations__["return"] = annotation
    definition = activity.defn(answer)
    seen: list[Any] = []

    async def call() -> None:
        try:
            seen.append(await definition())
        except DecodeError as error:
            seen.append(str(error))
        await asyncio.sleep(1)

    decoder = Codec().decoder(annotation)
    try:
        wanted = decoder(payload)
    except DecodeError as error:
        wanted = str(error)
    else:
        assert wanted == expected
    execution = started(call)
    execution.deliver(EventKind.ACTIVITY_COMPLETED, 2, START_US + 1, payload=payload)

    assert seen == [wanted]
    assert type(seen[0]) is type(wanted)
    execution.evict()
