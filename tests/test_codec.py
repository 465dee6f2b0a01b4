"""Values: what is written reads back the same, or is refused where it is written."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import subprocess
import sys
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import orjson
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable.codec import DEFAULT_CODEC, Codec, Converter, check_size, same
from durable.codec.write import shown
from durable.errors import (
    ConfigurationError,
    DecodeError,
    DefinitionError,
    EncodeError,
    PayloadTooLargeError,
)
from durable.options import PAYLOAD_BYTES_MAX, PAYLOAD_BYTES_WARN

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.IntFlag):
    READ = 1
    WRITE = 2


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


class Pair(enum.Enum):
    ONE = (1, 2)


@dataclass
class Plan:
    total: int
    cycle: timedelta
    _hidden: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Box(Generic[T]):
    content: T
    label: str | None = None


@dataclass
class Node:
    value: int
    children: list[Node] = field(default_factory=list)


@dataclass
class Counts:
    by_number: dict[int, str]


@dataclass
class Derived:
    base: int
    double: int = field(init=False)

    def __post_init__(self) -> None:
        self.double = self.base * 2


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Settings(TypedDict):
    name: str
    size: NotRequired[int]


class Cat(msgspec.Struct, tag="cat"):
    lives: int = 9


class Dog(msgspec.Struct, tag="dog", rename="camel"):
    best_friend: str


class Row(msgspec.Struct, array_like=True):
    a: int
    b: set[int]


class Model(pydantic.BaseModel):
    when: datetime
    price: Decimal
    inner: dict[str, list[int]] = {}
    aliased: int = pydantic.Field(default=0, alias="Aliased")


class Reading(pydantic.BaseModel):
    value: float | None = None
    raw: bytes = b""


@dataclass
class Card:
    number: str


@dataclass
class Transfer:
    iban: str
    raw: bytes = b""


@dataclass
class Payment:
    how: Card | Transfer


@dataclass
class Order:
    model: Model
    paths: list[Path]


def round_trip(value: Any, annotation: Any, codec: Codec = DEFAULT_CODEC) -> Any:
    decoder = codec.decoder(annotation)
    return decoder(codec.encode(value, decoder))


NOW = datetime(2024, 2, 29, 23, 59, 59, 999_999)

EXAMPLES: list[tuple[Any, Any]] = [
    (None, None),
    (True, bool),
    (7, int),
    ("é\u2028\0😀", str),
    (1.5, float),
    (b"\x00\xff", bytes),
    (bytearray(b"ab"), bytearray),
    (NOW, datetime),
    (NOW.replace(tzinfo=UTC), datetime),
    (NOW.replace(tzinfo=timezone(timedelta(hours=-3, minutes=-30))), datetime),
    (NOW.replace(tzinfo=ZoneInfo("Europe/Berlin")), datetime),
    (date(1, 1, 1), date),
    (time(23, 59, 59, 1), time),
    (time(1, 2, tzinfo=UTC), time),
    (timedelta.max, timedelta),
    (timedelta(microseconds=-1), timedelta),
    (uuid.UUID(int=5), uuid.UUID),
    (Decimal("1.50"), Decimal),
    (Decimal("-0"), Decimal),
    (Path("a/b"), Path),
    ([Path("/x")], list[Path]),
    ({3, 1, 2}, set[int]),
    (frozenset({"b", "a"}), frozenset[str]),
    ((1, "a", None), tuple[int, str, None]),
    ((1, 2, 3), tuple[int, ...]),
    ({1: "a", -2: "b"}, dict[int, str]),
    ({uuid.UUID(int=1): 1}, dict[uuid.UUID, int]),
    ({date(2024, 1, 1): 1}, dict[date, int]),
    ({Colour.RED: 1}, dict[Colour, int]),
    ({Level.LOW: 1}, dict[Level, int]),
    ({Decimal("1.0"): 1}, dict[Decimal, int]),
    ({"a": {2: {3: "x"}}}, dict[str, dict[int, dict[int, str]]]),
    (Colour.BLUE, Colour),
    (Level.HIGH, Level),
    (Right.READ | Right.WRITE, Right),
    (Mixed.TWO, Mixed),
    (Mixed.ONE, Mixed),
    ("a", Literal["a", 1]),
    (None, int | None),
    ("x", int | str),
    (Plan(1, timedelta(seconds=2), _hidden=3, notes=["n"]), Plan),
    (Box(Plan(1, timedelta(0))), Box[Plan]),
    (Box([Box(1), Box(2)]), Box[list[Box[int]]]),
    (Node(1, [Node(2), Node(3, [Node(4)])]), Node),
    (Counts({1: "a"}), Counts),
    (Derived(4), Derived),
    (Point(1, 2.0), Point),
    ({"name": "n"}, Settings),
    (Cat(3), Cat),
    (Dog("me"), Cat | Dog),
    (Row(1, {2, 3}), Row),
    (Model(when=NOW, price=Decimal("2.50"), inner={"a": [1]}, Aliased=4), Model),
    ([Model(when=NOW, price=Decimal(1))], list[Model]),
    (Order(Model(when=NOW, price=Decimal(1)), [Path("p")]), Order),
    (Reading(value=1.5), Reading | None),
    (Payment(Transfer("DE1", b"\xff\xfe?>")), Payment),
    (Card("4"), Card | Transfer),
    ([Card("4"), Transfer("x")], list[Card | Transfer]),
    (Reading(), Reading | Model),
    (Path("a"), int | Path),
    ([1, 2], Sequence[int]),
    ({"a": 1}, Mapping[str, int]),
    (5, Annotated[int, "metadata", []]),
    (2**64, int),
    (-(10**4000), int),
    ({"deep": [2**70]}, dict[str, list[int]]),
    (-0.0, float),
    (2**63, Any),
    ({"é": [1.5, True, None, "x"]}, Any),
    (OrderedDict(b=1, a=2), dict[str, int]),
]


@pytest.mark.parametrize(("value", "annotation"), EXAMPLES, ids=shown)
def test_value_comes_back_as_its_annotation_says(value: Any, annotation: Any) -> None:
    back = round_trip(value, annotation)
    assert back == value
    if not isinstance(value, OrderedDict | Path):
        assert type(back) is type(value)
    assert math.copysign(1, back) == math.copysign(1, value) if value == 0.0 else True
    assert round_trip(value, annotation, Codec(verify=True)) == value


UNWRITABLE: list[tuple[Any, str]] = [
    (math.nan, "NaN"),
    ([None, math.inf], r"\$\[1\] is inf"),
    ({"a": {"b": [-math.inf]}}, r"\$\.a\.b\[0\]"),
    (Box(math.nan), r"\$\.content"),
    ({math.nan}, "NaN"),
    (Reading(value=math.nan), "NaN"),
    (Decimal("NaN"), "not a number"),
    (Decimal("Infinity"), "not a number"),
    ("\ud800", "surrogate"),
    (["a", {"k": "\udfff"}], r"\$\[1\]\.k"),
    ({"\ud800": 1}, "surrogate"),
    (Path("\udcff"), "surrogate"),
    (10**5000, "4300 digits"),
    (object(), r"\$ \(object\)"),
    ({"a": [1, 1j]}, r"\$\.a\[1\] \(complex\)"),
    (print, "builtin_function"),
    (Plan, r"\(type\)"),
    ({1: 2}, "keys of JSON objects are strings"),
    ({(1, 2): 3}, "use strings"),
    ({None: 1}, "use strings"),
    ({True: 1}, "use strings"),
    ({"1": 1, 1: 2}, "both written as '1'"),
    (NOW.replace(tzinfo=timezone(timedelta(seconds=30))), "whole minutes"),
    (NOW.replace(fold=1), "fold"),
    (time(1, tzinfo=ZoneInfo("Europe/Berlin")), "time zone"),
    (Reading(raw=b"\xff"), "ser_json_bytes"),
    (range(3), "range"),
    (ValueError("x"), "ValueError"),
    ((x for x in ()), "generator"),
]


@pytest.mark.parametrize(("value", "message"), UNWRITABLE, ids=shown)
def test_value_that_json_would_change_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(EncodeError, match=message):
        DEFAULT_CODEC.encode(value)


def test_cycle_and_depth_are_refused_both_ways() -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    with pytest.raises(EncodeError, match="nested deeper"):
        DEFAULT_CODEC.encode(cycle)
    deep: Any = 2**70
    for _ in range(1000):
        deep = {"k": [deep]}
    with pytest.raises(EncodeError, match="nested deeper"):
        DEFAULT_CODEC.encode(deep)
    for annotation in (Any, list[Any], Node, Card | Transfer, Reading):
        with pytest.raises(DecodeError):
            DEFAULT_CODEC.decoder(annotation)(b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize(
    "payload",
    [b"", b"nul", b"NaN", b"[1,]", b'"\\ud800"', b"1e400", b"9" * 5000, b"\xff", b'{"a":1', b"01"],
)
def test_bytes_that_are_not_json_are_a_decode_error(payload: bytes) -> None:
    for annotation in (Any, int, str, Plan, Model, Mixed, Card | Transfer):
        with pytest.raises(DecodeError):
            DEFAULT_CODEC.decoder(annotation)(payload)


def test_decode_error_names_annotation_place_and_finding_but_no_value() -> None:
    payload = b'{"content":{"total":1,"cycle":"S3CRET"}}'
    with pytest.raises(DecodeError, match=r"Box\[Plan\].*duration.*\$\.content\.cycle") as caught:
        DEFAULT_CODEC.decoder(Box[Plan])(payload)
    assert "S3CRET" not in str(caught.value)
    with pytest.raises(DecodeError, match=r"Model.*price") as caught:
        DEFAULT_CODEC.decoder(Model)(b'{"when":"2024-01-01T00:00:00","price":"S3CRET"}')
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize(
    "annotation",
    [
        complex,
        object().__class__.__class__,
        Callable[[int], int],
        Iterable[int],
        list[range],
        dict[tuple[int, int], int],
        dict[Plan, int],
        dict[bool, int],
        Box[complex],
        ValueError,
        5,
        "int",
        Cat | complex,
        Card | Cat | Transfer,
    ],
    ids=str,
)
def test_type_that_cannot_come_back_is_refused_when_its_decoder_is_made(annotation: Any) -> None:
    with pytest.raises(DefinitionError):
        DEFAULT_CODEC.decoder(annotation)


def test_union_without_pydantic_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(DefinitionError, match=r"tag=True.*install pydantic"):
        Codec().decoder(Card | Transfer)


@dataclass
class Left:
    n: int


@dataclass
class RightSide:
    n: int


def test_ambiguous_union_member_is_refused_not_swapped() -> None:
    decoder = DEFAULT_CODEC.decoder(Left | RightSide)
    assert decoder(DEFAULT_CODEC.encode(Left(1), decoder)) == Left(1)
    with pytest.raises(EncodeError, match="reads back as Left"):
        DEFAULT_CODEC.encode(RightSide(1), decoder)
    text = DEFAULT_CODEC.decoder(datetime | str)
    with pytest.raises(EncodeError, match="reads back"):
        DEFAULT_CODEC.encode("2024-01-01T00:00:00", text)


def test_verify_finds_what_an_annotation_loses() -> None:
    codec = Codec(verify=True)
    with pytest.raises(EncodeError, match="does not survive"):
        codec.encode(Plan(1, timedelta(1)), codec.decoder(Any))
    with pytest.raises(EncodeError, match="does not survive"):
        codec.encode({1, 2}, codec.decoder(list[int]))
    with pytest.raises(EncodeError, match="does not survive"):
        codec.encode(2**53 + 1, codec.decoder(float))

    @dataclass
    class Special(Card):
        more: int = 1

    with pytest.raises(EncodeError, match="does not survive"):
        codec.encode(Special("1"), codec.decoder(Card))
    assert codec.encode(1, codec.decoder(float)) == b"1"
    assert codec.encode((1, [2]), codec.decoder(Any)) == b"[1,[2]]"


class Money:
    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    __hash__ = None  # type: ignore[assignment]


def test_converter_gives_a_class_its_json_form() -> None:
    codec = Codec([Converter(Money, lambda m: {"cents": m.cents}, lambda v: Money(v["cents"]))])
    assert round_trip({"a": [Money(5)]}, dict[str, list[Money]], codec) == {"a": [Money(5)]}
    assert codec.encode(Money(5)) == b'{"cents":5}'
    with pytest.raises(DefinitionError, match="register a Converter"):
        DEFAULT_CODEC.decoder(Money)
    with pytest.raises(DecodeError):
        codec.decoder(Money)(b"[]")
    with pytest.raises(ConfigurationError, match="JSON form already"):
        Codec([Converter(datetime, str, datetime.fromisoformat)])


def test_conversion_that_raises_is_an_encode_error() -> None:
    def fail(value: Money) -> Any:
        raise RuntimeError("broken")

    codec = Codec([Converter(Money, fail, Money)])
    with pytest.raises(EncodeError, match="RuntimeError: broken"):
        codec.encode([Money(1)])


def test_set_is_written_the_same_under_every_hash_seed() -> None:
    code = (
        "from durable.codec import DEFAULT_CODEC as c;"
        "print(c.encode({'s': {'b', 'a', 'ccc', 'dd'}, 'f': frozenset(map(str, range(20)))}))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1


def test_decoder_is_made_once_per_annotation() -> None:
    codec = Codec()
    assert codec.decoder(list[Plan]) is codec.decoder(list[Plan])
    assert codec.decoder(Literal[1]) is not codec.decoder(Literal[True])
    assert codec.decoder() is codec.decoder(Any)


def test_old_data_without_a_new_field_reads_with_its_default() -> None:
    assert DEFAULT_CODEC.decode(b'{"total":1,"cycle":"PT1S","gone":1}', Plan) == Plan(
        1, timedelta(seconds=1)
    )


def test_size_limit_is_exact_and_names_what_is_too_large() -> None:
    check_size(b" " * PAYLOAD_BYTES_MAX, "limit")
    with pytest.raises(PayloadTooLargeError, match="result of f") as caught:
        check_size(b" " * (PAYLOAD_BYTES_MAX + 1), "result of f()")
    assert (caught.value.size, caught.value.limit) == (PAYLOAD_BYTES_MAX + 1, PAYLOAD_BYTES_MAX)


def test_large_payload_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        check_size(b" " * (PAYLOAD_BYTES_WARN + 1), "warned of once")
    assert len([r for r in caplog.records if "warned of once" in r.getMessage()]) == 1


# -- properties ------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip

hostile = st.recursive(
    plain
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.decimals()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.timedeltas()
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.integers() | st.text() | st.booleans(), inner, max_size=4)
        | st.tuples(inner, inner)
    ),
    max_leaves=12,
)

TYPED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (datetime, st.datetimes(timezones=st.none() | st.timezones())),
    (timedelta, st.timedeltas()),
    (time, st.times()),
    (date, st.dates()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (bytes, st.binary()),
    (int, st.integers()),
    (str, st.text()),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (set[str], st.sets(st.text())),
    (dict[int, timedelta], st.dictionaries(st.integers(), st.timedeltas())),
    (tuple[int | None, str], st.tuples(st.none() | st.integers(), st.text())),
    (Box[Plan], st.builds(Box, st.builds(Plan, st.integers(), st.timedeltas()), st.text())),
    (
        Payment,
        st.builds(
            Payment, st.builds(Card, st.text()) | st.builds(Transfer, st.text(), st.binary())
        ),
    ),
]


@given(plain)
def test_plain_json_comes_back_equal_and_in_order(value: Any) -> None:
    back = round_trip(value, Any)
    assert back == value
    assert same(value, back)
    assert repr(back) == repr(value)


@given(hostile)
def test_any_value_is_exact_or_refused(value: Any) -> None:
    codec = Codec(verify=True)
    decoder = codec.decoder(Any)
    try:
        data = codec.encode(value, decoder)
    except EncodeError:
        return
    assert same(value, decoder(data))


@given(hostile)
def test_any_value_is_json_or_refused(value: Any) -> None:
    try:
        data = DEFAULT_CODEC.encode(value)
    except EncodeError:
        return
    DEFAULT_CODEC.decode(data)


@pytest.mark.parametrize(("annotation", "values"), TYPED, ids=lambda x: str(x)[:40])
@settings(max_examples=60)
@given(data=st.data())
def test_typed_value_is_exact_or_refused(
    annotation: Any, values: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    value = data.draw(values)
    try:
        back = round_trip(value, annotation)
    except EncodeError:
        # Offsets with seconds, fold without a zone: all that may be refused here.
        may_be_refused = isinstance(value, datetime | time)
        assert may_be_refused
        return
    if isinstance(value, datetime):
        # PEP 495: a time that a change of the clocks skips or repeats equals none of another zone.
        assert type(back) is datetime
        assert back.isoformat() == value.isoformat()
    else:
        assert back == value


@given(st.lists(st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text()))
def test_list_of_simple_values_is_written_as_compact_json(values: list[Any]) -> None:
    assert DEFAULT_CODEC.encode(values) == orjson.dumps(values)
    assert DEFAULT_CODEC.encode(tuple(values)) == orjson.dumps(values)


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_decode_or_raise_a_decode_error(payload: bytes) -> None:
    for annotation in (Any, Plan, Model, Card | Transfer, dict[int, Path]):
        with contextlib.suppress(DecodeError):
            DEFAULT_CODEC.decoder(annotation)(payload)


def test_record_fields_are_all_written() -> None:
    names = {f.name for f in dataclasses.fields(Plan)}
    assert set(orjson.loads(DEFAULT_CODEC.encode(Plan(1, timedelta(1))))) == names
