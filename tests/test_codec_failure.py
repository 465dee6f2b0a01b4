"""Exceptions as payloads: recorded whatever they are, and themselves again where known."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.codec import (
    failure_from_payload,
    failure_to_payload,
    is_final,
    register_error,
    type_names,
)
from durable.codec.failure import CAUSES_MAX, FAILURE_BYTES_MAX
from durable.errors import (
    ApplicationError,
    DecodeError,
    DefinitionError,
    EncodeError,
    NonRetryable,
    PayloadTooLargeError,
    RetryAfter,
    StreamFullError,
)


class Unknown(Exception):
    pass


@register_error
class Declined(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"declined with {code}")
        self.code = code
        self.reason = reason


@register_error
class OwnError(ApplicationError):
    pass


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def there_and_back(error: BaseException) -> Any:
    return failure_from_payload(failure_to_payload(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        KeyError("k"),
        KeyError(1, "a"),
        RuntimeError(),
        FileNotFoundError(2, "No such file", "/x"),
        asyncio.CancelledError("c"),
        TimeoutError("t"),
        StopIteration(5),
        EncodeError("e"),
    ],
    ids=repr,
)
def test_known_error_comes_back_as_itself(error: BaseException) -> None:
    back = there_and_back(raised(error))
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)


def test_registered_error_keeps_its_attributes_without_its_constructor() -> None:
    back = there_and_back(Declined(51, reason="funds"))
    assert type(back) is Declined
    assert (back.code, back.reason, str(back)) == (51, "funds", "declined with 51")


def test_unknown_error_is_an_application_error_with_its_type() -> None:
    payload = failure_to_payload(Unknown("gone"))
    back = failure_from_payload(payload)
    assert type(back) is ApplicationError
    assert back.type == f"{__name__}.Unknown"
    assert str(back) == "gone"
    assert type(failure_from_payload(payload, {f"{__name__}.Unknown": Unknown})) is Unknown


def test_name_in_data_is_never_imported_nor_ends_the_process() -> None:
    for name in ("os.system", "subprocess.CalledProcessError", "SystemExit", "KeyboardInterrupt"):
        back = failure_from_payload(orjson.dumps({"type": name, "message": "m"}))
        assert type(back) is ApplicationError
        assert back.type == name


def test_application_error_keeps_type_details_and_verdict() -> None:
    back = there_and_back(ApplicationError("m", {"a": [1]}, 2, type="Card", non_retryable=True))
    assert type(back) is ApplicationError
    assert (str(back), back.type, back.details, back.non_retryable) == (
        "m",
        "Card",
        ({"a": [1]}, 2),
        True,
    )
    assert orjson.loads(failure_to_payload(ApplicationError("m", type="Card")))["type"] == "Card"
    assert type(there_and_back(OwnError("m", type="T"))) is OwnError
    assert there_and_back(OwnError("m")).type is None
    assert type(there_and_back(NonRetryable("no"))) is NonRetryable
    assert there_and_back(NonRetryable("no")).non_retryable
    assert there_and_back(RetryAfter(2.5, "later")).delay_seconds == 2.5


def test_cause_chain_and_remote_traceback_are_kept() -> None:
    back = there_and_back(raised(Unknown("outer"), raised(ValueError("inner"))))
    assert type(back.__cause__) is ValueError
    assert "in raised" in back.remote_traceback
    shown = "".join(traceback.format_exception(back))
    assert "Remote traceback" in shown
    assert "inner" in shown


def test_context_counts_as_cause_unless_suppressed() -> None:
    def fail_twice() -> None:
        try:
            raise ValueError("first")
        except ValueError:
            raise KeyError("second")  # noqa: B904

    with pytest.raises(KeyError) as caught:
        fail_twice()
    assert type(there_and_back(caught.value).__cause__) is ValueError
    assert there_and_back(raised(KeyError("x"), None)).__cause__ is None


def test_failure_recorded_again_keeps_the_first_traceback_once() -> None:
    first = there_and_back(raised(Unknown("x")))
    second = there_and_back(raised(first))
    assert second.remote_traceback.count("where it was received") == 1
    assert first.remote_traceback in second.remote_traceback
    assert len(second.__notes__) == 1


def test_notes_and_group_members_come_back() -> None:
    error = ValueError("v")
    error.add_note("look here")
    assert there_and_back(error).__notes__ == ["look here"]
    group = there_and_back(ExceptionGroup("many", [ValueError("a"), Unknown("b")]))
    assert type(group) is ExceptionGroup
    assert group.message == "many"
    assert [type(e) for e in group.exceptions] == [ValueError, ApplicationError]


def test_cyclic_and_endless_causes_are_cut() -> None:
    one, two = ValueError("1"), ValueError("2")
    one.__cause__, two.__cause__ = two, one
    assert there_and_back(one).__cause__.__cause__ is None
    top: BaseException = ValueError("0")
    for number in range(100):
        top = raised(ValueError(str(number)), top)
    depth = 0
    back = there_and_back(top)
    while back.__cause__ is not None:
        back, depth = back.__cause__, depth + 1
    assert depth == CAUSES_MAX


class Hostile(Exception):
    def __init__(self, how: Any) -> None:
        self.how = how

    def __str__(self) -> str:
        return self.how()  # type: ignore[no-any-return]

    __repr__ = __str__


class Sly(str):
    def __len__(self) -> int:
        raise RuntimeError

    def __getitem__(self, key: Any) -> str:
        raise RuntimeError

    def encode(self, *args: Any) -> bytes:
        raise RuntimeError


def endless() -> str:
    return endless()


@pytest.mark.parametrize("how", [lambda: 1 / 0, lambda: 5, endless, lambda: Sly("sly"), None])
def test_hostile_text_of_an_exception_does_not_hide_it(how: Any) -> None:
    failure = orjson.loads(failure_to_payload(raised(Hostile(how))))
    assert failure["type"].endswith("Hostile")
    assert failure["traceback"]


def test_huge_exception_is_recorded_within_bounds() -> None:
    top: BaseException = ValueError("x")
    for _ in range(20):
        error = Declined(1, reason="é" * 200_000)
        error.args = ("é" * 25_000_000,)
        top = raised(error, top)
    payload = failure_to_payload(ExceptionGroup("g", [top, *(ValueError("z" * 10**6),) * 50]))
    assert len(payload) <= FAILURE_BYTES_MAX
    payload.decode()
    assert there_and_back(raised(ValueError("€" * 100_000))).args[0].endswith("[cut]")


def test_deep_recursion_keeps_the_end_of_its_traceback() -> None:
    def recurse(n: int) -> None:
        if n == 0:
            raise ValueError("bottom")
        recurse(n - 1)

    try:
        recurse(300)
    except ValueError as error:
        failure = orjson.loads(failure_to_payload(error))
    assert 'raise ValueError("bottom")' in failure["traceback"]
    assert len(failure["traceback"]) < 5000


def test_values_that_would_change_are_left_out_not_altered() -> None:
    error = Declined(1, reason="r")
    error.code = {1, 2}  # type: ignore[assignment]
    assert not hasattr(there_and_back(error), "code")


def test_attributes_cannot_replace_methods_the_reader_needs() -> None:
    payload = orjson.dumps(
        {
            "type": f"{__name__}.Declined",
            "message": "m",
            "traceback": "t",
            "attributes": {"add_note": 1, "with_traceback": 2, "__class__": 3, "code": 4},
        }
    )
    back = failure_from_payload(payload)
    assert type(back) is Declined
    assert back.code == 4


def test_builtin_name_cannot_be_registered_again() -> None:
    fake = type("ValueError", (Exception,), {"__module__": "builtins"})
    with pytest.raises(DefinitionError):
        register_error(fake)


def test_policy_names_cover_bases_and_own_type() -> None:
    names = type_names(ApplicationError("x", type="Card"))
    assert {"Card", "ApplicationError", "durable.errors.ApplicationError", "Exception"} <= set(
        names
    )
    assert "builtins.LookupError" in type_names(KeyError("k"))


def test_errors_that_a_retry_cannot_help_are_final() -> None:
    assert is_final(NonRetryable("x"))
    assert is_final(PayloadTooLargeError("x", 2, 1))
    assert is_final(StreamFullError("x"))
    assert not is_final(ApplicationError("x"))
    assert not is_final(ValueError("x"))
    assert orjson.loads(failure_to_payload(EncodeError("x")))["non_retryable"] is True


@pytest.mark.parametrize("payload", [b"", b"[1]", b"nul", b"\xff", b'"x"'])
def test_payload_that_is_no_failure_is_a_decode_error(payload: bytes) -> None:
    with pytest.raises(DecodeError):
        failure_from_payload(payload)


wild_text = st.text(st.characters(codec=None))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["type", "class", "message", "traceback", "cause", "args", "attributes", "details", "group"]
)


@given(wild_text, st.lists(wild_text, max_size=3))
def test_any_text_in_an_exception_is_recorded_as_clean_utf8(text: str, notes: list[str]) -> None:
    error = raised(ApplicationError(text, text, type=text))
    error.__notes__ = notes  # type: ignore[attr-defined]
    payload = failure_to_payload(error)
    back = failure_from_payload(payload)
    assert b"\0" not in payload
    assert "\0" not in str(back)
    str(back).encode()


@given(
    st.dictionaries(
        keys,
        json_values
        | st.sampled_from(["ValueError", "OSError", "UnicodeDecodeError", "ExceptionGroup"]),
    )
)
def test_any_failure_object_rebuilds_to_some_exception(failure: dict[str, Any]) -> None:
    assert isinstance(failure_from_payload(orjson.dumps(failure)), BaseException)
