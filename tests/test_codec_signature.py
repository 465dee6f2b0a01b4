"""Argument lists and results as payloads."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.codec import DEFAULT_CODEC, Codec, Signature
from durable.errors import (
    DecodeError,
    DefinitionError,
    EncodeError,
    InvalidArgumentError,
    PayloadTooLargeError,
)
from durable.options import PAYLOAD_BYTES_MAX


@dataclass
class Plan:
    total: int
    cycle: timedelta = timedelta(1)


@dataclass
class Loose:
    size: int = 0
    tags: list[str] = field(default_factory=list)


class Model(pydantic.BaseModel):
    size: int = pydantic.Field(default=0, alias="Size")


async def subscribe(plan: Plan, count: int = 1, *, note: str = "") -> Plan: ...
async def three(a: int, b: int = 2, c: int = 3) -> None: ...
async def nothing() -> None: ...
async def untyped(a, b=None): ...  # type: ignore[no-untyped-def]
async def spread(first: int, *rest: timedelta, **extra: Plan) -> Any: ...
async def numbered(by_number: dict[int, str]) -> dict[int, str]: ...
async def listed(items: list[int]) -> None: ...
async def loose(value: Loose) -> None: ...
async def modelled(value: Model) -> None: ...
async def mapped(data: dict[str, int]) -> None: ...
async def needs_name(a: int, *, key: str) -> None: ...


def test_positional_arguments_travel_as_an_array() -> None:
    signature = Signature.of(subscribe)
    payload = signature.encode_args((Plan(5), 2), {})
    assert payload == b'[{"total":5,"cycle":"P1D"},2]'
    assert signature.decode_args(payload) == ((Plan(5), 2), {})
    assert signature.arity == (1, 2)


def test_keywords_take_their_positions_and_trailing_defaults_are_left_out() -> None:
    signature = Signature.of(three)
    assert signature.encode_args((), {"a": 1}) == b"[1]"
    assert signature.encode_args((1,), {"b": 5}) == b"[1,5]"
    assert signature.encode_args((), {"c": 9, "a": 1}) == b"[1,2,9]"
    assert signature.decode_args(b"[1]") == ((1,), {})


def test_keyword_only_arguments_travel_as_an_object() -> None:
    signature = Signature.of(subscribe)
    payload = signature.encode_args((), {"note": "x", "plan": Plan(1)})
    assert orjson.loads(payload) == {
        "args": [{"total": 1, "cycle": "P1D"}],
        "kwargs": {"note": "x"},
    }
    assert signature.decode_args(payload) == ((Plan(1),), {"note": "x"})


def test_required_keyword_leaves_no_arity_that_needs_no_binding() -> None:
    least, most = Signature.of(needs_name).arity
    assert least > most
    with pytest.raises(InvalidArgumentError, match="'key'"):
        Signature.of(needs_name).encode_args((1,), {})


def test_variadic_arguments_keep_their_types() -> None:
    signature = Signature.of(spread)
    args, kwargs = (1, timedelta(2), timedelta(3)), {"x": Plan(1)}
    assert signature.decode_args(signature.encode_args(args, kwargs)) == (args, kwargs)
    assert signature.decode_args(signature.encode_args(args, {})) == (args, {})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, r"subscribe\(\).*'plan'"),
        ((1, 2, 3), {}, "too many positional"),
        ((1,), {"nope": 1}, "'nope'"),
        ((1,), {"plan": 1}, "multiple values"),
    ],
)
def test_call_that_does_not_bind_names_function_and_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Signature.of(subscribe).encode_args(args, kwargs)


def test_unwritable_argument_is_named() -> None:
    with pytest.raises(EncodeError, match=r"argument count of subscribe\(\).*NaN"):
        Signature.of(subscribe).encode_args((Plan(1), float("nan")), {})
    with pytest.raises(EncodeError, match=r"argument note of subscribe\(\)"):
        Signature.of(subscribe).encode_args((Plan(1),), {"note": object()})


def test_keys_that_are_not_strings_travel_where_the_annotation_says_so() -> None:
    signature = Signature.of(numbered)
    assert signature.decode_args(signature.encode_args(({1: "a"},), {})) == (({1: "a"},), {})
    assert signature.decode_result(signature.check_result({2: "b"})) == {2: "b"}
    with pytest.raises(EncodeError, match="argument a of untyped"):
        Signature.of(untyped).encode_args(({1: "a"},), {})


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'["x"]', r"argument plan of subscribe\(\).*Plan"),
        (b'[{"total":"x"}]', r"Expected `int`, got `str` at `\$\.total`"),
        (b"[]", "there is no value for plan"),
        (b'[{"total":1},1,2]', "3 arguments are too many"),
        (b'{"args":[{"total":1}],"kwargs":{"gone":1}}', "has no gone"),
        (b'{"args":[{"total":1}],"kwargs":{"note":1}}', "argument note"),
        (b'{"args":[]}', "cannot be read"),
        (b"17", "cannot be read"),
        (b"\xff", "cannot be read"),
    ],
)
def test_recorded_arguments_that_do_not_fit_name_the_argument(payload: bytes, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        Signature.of(subscribe).decode_args(payload)


def test_no_payload_is_no_arguments_and_no_result() -> None:
    assert Signature.of(nothing).decode_args(None) == ((), {})
    assert Signature.of(nothing).decode_args(b"") == ((), {})
    assert Signature.of(nothing).decode_result(None) is None
    assert Signature.of(nothing).check_result(None) == b"null"


def test_result_is_checked_against_its_annotation() -> None:
    signature = Signature.of(subscribe)
    assert signature.decode_result(signature.check_result(Plan(3))) == Plan(3)
    with pytest.raises(DecodeError, match=r"result of subscribe\(\).*Plan"):
        signature.check_result({"total": "x"})
    with pytest.raises(EncodeError, match=r"result of subscribe\(\).*object"):
        signature.check_result(object())
    with pytest.raises(DecodeError, match=r"result of nothing\(\)"):
        Signature.of(nothing).check_result(5)


def test_result_decoder_is_none_for_plain_json() -> None:
    assert Signature.of(untyped).result_decoder is None
    assert Signature.of(spread).result_decoder is None
    decoder = Signature.of(subscribe).result_decoder
    assert decoder is not None
    assert decoder(b'{"total":1}') == Plan(1)


def test_too_large_arguments_name_the_largest() -> None:
    big = "x" * PAYLOAD_BYTES_MAX
    with pytest.raises(PayloadTooLargeError, match="largest is note"):
        Signature.of(subscribe).encode_args((Plan(1),), {"note": big})
    with pytest.raises(PayloadTooLargeError, match=r"largest is b\b"):
        Signature.of(untyped).encode_args((1, big), {})
    with pytest.raises(PayloadTooLargeError, match=r"result of untyped\(\)"):
        Signature.of(untyped).check_result(big)


def test_first_parameter_is_dropped_on_request() -> None:
    class Flow:
        async def run(self, plan: Plan) -> None: ...

    skipped = Signature.of(Flow.run, skip=1)
    assert skipped.describe() == "run(plan: Plan) -> None"
    assert Signature.of(Flow().run).encode_args((Plan(1),), {}) == skipped.encode_args(
        (Plan(1),), {}
    )
    with pytest.raises(DefinitionError, match="first parameter"):
        Signature.of(nothing, skip=1)


def test_type_that_cannot_come_back_is_an_error_at_definition() -> None:
    def bad_argument(value: complex) -> None: ...
    def bad_result() -> range: ...

    with pytest.raises(DefinitionError, match=r"argument value of bad_argument\(\).*complex"):
        Signature.of(bad_argument)
    with pytest.raises(DefinitionError, match=r"result of bad_result\(\).*range"):
        Signature.of(bad_result)


def test_class_defined_later_is_found_at_first_use() -> None:
    def early(value: Later) -> Later: ...  # type: ignore[name-defined]  # noqa: F821

    signature = Signature.of(early)
    assert signature.result_decoder is not None
    with pytest.raises(DefinitionError, match=r"'Later'.*module level"):
        signature.decode_args(b"[{}]")
    globals()["Later"] = Plan
    try:
        assert signature.decode_args(b'[{"total":1}]') == ((Plan(1),), {})
        assert signature.result_decoder(b'{"total":1}') == Plan(1)
    finally:
        del globals()["Later"]


def test_local_names_can_be_given() -> None:
    @dataclass
    class Inner:
        x: int

    def local(value: Inner) -> None: ...

    signature = Signature.of(local, localns=locals())
    assert signature.decode_args(b'[{"x":1}]') == ((Inner(1),), {})


def test_signature_is_made_once_and_does_not_keep_its_function() -> None:
    def short_lived(a: int) -> int: ...

    assert Signature.of(short_lived) is Signature.of(short_lived)
    assert Signature.of(short_lived, Codec()) is not Signature.of(short_lived)
    reference = weakref.ref(short_lived)
    del short_lived
    gc.collect()
    assert reference() is None


def test_description_reads_like_the_definition() -> None:
    assert (
        Signature.of(subscribe).describe()
        == "subscribe(plan: Plan, count: int = 1, *, note: str = '') -> Plan"
    )
    assert (
        Signature.of(spread).describe()
        == "spread(first: int, *rest: timedelta, **extra: Plan) -> Any"
    )

    def typed(a: list[Plan | None], b: dict[str, tuple[int, ...]]) -> None: ...

    typed.__annotations__ = {
        "a": list[Plan | None],
        "b": dict[str, tuple[int, ...]],
        "return": None,
    }
    assert (
        Signature.of(typed).describe()
        == "typed(a: list[Plan | None], b: dict[str, tuple[int, ...]]) -> None"
    )


@pytest.mark.parametrize(
    ("fn", "text", "expected"),
    [
        (nothing, "", ((), {})),
        (nothing, "[]", ((), {})),
        (three, "[1, 2]", ((1, 2), {})),
        (three, '{"a": 1, "c": 3}', ((), {"a": 1, "c": 3})),
        (three, "7", ((7,), {})),
        (subscribe, '[{"total": 1, "cycle": "PT2S"}]', ((Plan(1, timedelta(seconds=2)),), {})),
        (subscribe, '{"plan": {"total": 1}, "note": "n"}', ((), {"plan": Plan(1), "note": "n"})),
        (loose, '{"size": 3}', ((Loose(3),), {})),
        (loose, '{"value": {"size": 3}}', ((), {"value": Loose(3)})),
        (loose, "{}", ((Loose(),), {})),
        (modelled, '{"Size": 3}', ((Model(Size=3),), {})),
        (mapped, '{"data": 1}', (({"data": 1},), {})),
        (mapped, '{"data": {"x": 1}}', ((), {"data": {"x": 1}})),
        (listed, "[[1, 2]]", (([1, 2],), {})),
        (listed, "[1, 2]", (([1, 2],), {})),
        (listed, "[1]", (([1],), {})),
        (listed, "[]", (([],), {})),
    ],
)
def test_typed_text_becomes_arguments(fn: Any, text: str, expected: Any) -> None:
    assert Signature.of(fn).parse_json_args(text) == expected


@pytest.mark.parametrize(
    ("fn", "text", "message"),
    [
        (subscribe, "{plan", "not JSON"),
        (subscribe, "hello", "needs quotes"),
        (subscribe, '{"plan": {"total": "x"}}', "argument plan of subscribe.*Plan"),
        (subscribe, '{"plam": 1}', "no parameter 'plam'"),
        (subscribe, "{}", "'plan'"),
        (subscribe, "[1,2,3]", "too many"),
        (three, '["x"]', "argument a of three.*int"),
        (nothing, "1", "takes no argument"),
        (loose, '{"sise": 3}', "did you mean 'size'"),
        (three, "", "'a'"),
        (modelled, '{"Sise": 3}', "did you mean 'Size'"),
    ],
)
def test_typed_text_that_does_not_fit_says_why(fn: Any, text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Signature.of(fn).parse_json_args(text)


@given(st.text())
def test_any_text_is_arguments_or_a_typed_error(text: str) -> None:
    for fn in (three, loose, subscribe):
        try:
            args, kwargs = Signature.of(fn).parse_json_args(text)
        except InvalidArgumentError:
            continue
        Signature.of(fn).encode_args(args, kwargs)


def test_verifying_codec_shows_an_argument_of_another_type() -> None:
    signature = Signature.of(subscribe, Codec(verify=True))
    signature.encode_args((Plan(1),), {})
    with pytest.raises(EncodeError, match="argument count"):
        signature.encode_args((Plan(1), "2"), {})


@given(st.lists(st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text()))
def test_simple_arguments_are_compact_json(values: list[Any]) -> None:
    async def anything(*values: Any) -> None: ...

    anything.__annotations__ = {}
    signature = Signature.of(anything, DEFAULT_CODEC)
    assert signature.encode_args(tuple(values), {}) == orjson.dumps(values)
