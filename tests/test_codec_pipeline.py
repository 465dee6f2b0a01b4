"""Compression and encryption of payloads."""

from __future__ import annotations

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.codec import AesGcmCodec, Codec, PayloadContext, ZlibCodec
from durable.codec.pipeline import OUTPUT_BYTES_MAX
from durable.errors import ConfigurationError, DecodeError

HERE = PayloadContext(run_id="r1", kind="input", name="f")
KEY = bytes(range(32))


@given(st.binary(max_size=2000))
def test_every_payload_survives_compression_and_encryption(data: bytes) -> None:
    codec = Codec(pipeline=[ZlibCodec(min_bytes=0), AesGcmCodec({"k1": KEY}, "k1")])
    assert codec.open(codec.seal(data, HERE), HERE) == data
    assert ZlibCodec().decode(ZlibCodec().encode(data, HERE), HERE) == data


def test_no_pipeline_changes_nothing() -> None:
    assert Codec().seal(b"[1]", HERE) == b"[1]"
    assert Codec().open(b"[1]", HERE) == b"[1]"


def test_compression_makes_large_payloads_smaller_and_leaves_small_ones() -> None:
    large = b'{"a":"' + b"x" * 10_000 + b'"}'
    assert len(ZlibCodec().encode(large, HERE)) < 200
    assert ZlibCodec().encode(b'"small"', HERE) == b'"small"'
    noise = os.urandom(10_000)
    assert len(ZlibCodec().encode(b" " + noise, HERE)) <= len(noise) + 1


def test_decompression_bomb_is_refused_within_bounds() -> None:
    bomb = b"\x01" + zlib.compress(b"\0" * (OUTPUT_BYTES_MAX + 1), 9)
    assert len(bomb) < 20_000
    with pytest.raises(DecodeError, match="grows to more than"):
        ZlibCodec().decode(bomb, HERE)


@pytest.mark.parametrize("change", ["cut", "more", "flip", "empty"])
def test_damaged_compressed_payload_is_a_decode_error(change: str) -> None:
    packed = ZlibCodec().encode(b"x" * 5000, HERE)
    damaged = {
        "cut": packed[:-3],
        "more": packed + b"x",
        "flip": packed[:3] + bytes([packed[3] ^ 255]) + packed[4:],
        "empty": packed[:1],
    }[change]
    with pytest.raises(DecodeError):
        ZlibCodec().decode(damaged, HERE)


def test_ciphertext_hides_the_payload_and_differs_each_time() -> None:
    codec = AesGcmCodec({"k1": KEY}, "k1")
    first, second = codec.encode(b"canary" * 10, HERE), codec.encode(b"canary" * 10, HERE)
    assert b"canary" not in first
    assert first != second


@pytest.mark.parametrize(
    "elsewhere",
    [
        PayloadContext(run_id="r2", kind="input", name="f"),
        PayloadContext(run_id="r1", kind="result", name="f"),
        PayloadContext(run_id="r1", kind="input", name="g"),
        PayloadContext(run_id="r1inp", kind="ut", name="f"),
    ],
)
def test_ciphertext_cannot_be_moved(elsewhere: PayloadContext) -> None:
    codec = AesGcmCodec({"k1": KEY}, "k1")
    with pytest.raises(DecodeError, match="moved from elsewhere"):
        codec.decode(codec.encode(b"[1]", HERE), elsewhere)


def test_every_flipped_byte_of_a_ciphertext_is_noticed() -> None:
    codec = AesGcmCodec({"k1": KEY}, "k1")
    sealed = codec.encode(b"[1]", HERE)
    for index in range(len(sealed)):
        damaged = sealed[:index] + bytes([sealed[index] ^ 1]) + sealed[index + 1 :]
        with pytest.raises(DecodeError):
            codec.decode(damaged, HERE)
        with pytest.raises(DecodeError):
            codec.decode(sealed[:index], HERE)


def test_rotated_keys_read_what_the_old_key_wrote() -> None:
    old = AesGcmCodec({"k1": KEY}, "k1")
    new = AesGcmCodec({"k1": KEY, "k2": KEY[::-1]}, "k2")
    assert new.decode(old.encode(b"[1]", HERE), HERE) == b"[1]"
    with pytest.raises(DecodeError, match="'k2', which this process does not have"):
        old.decode(new.encode(b"[1]", HERE), HERE)
    wrong = AesGcmCodec({"k1": KEY[::-1]}, "k1")
    with pytest.raises(DecodeError, match="wrong key"):
        wrong.decode(old.encode(b"[1]", HERE), HERE)


def test_plaintext_is_read_only_where_allowed() -> None:
    with pytest.raises(DecodeError, match="allow_plaintext"):
        AesGcmCodec({"k1": KEY}, "k1").decode(b"[1]", HERE)
    lenient = AesGcmCodec({"k1": KEY}, "k1", allow_plaintext=True)
    assert lenient.decode(b"[1]", HERE) == b"[1]"


def test_keys_are_checked_and_never_shown() -> None:
    with pytest.raises(ConfigurationError, match="not among the keys"):
        AesGcmCodec({"k1": KEY}, "k2")
    with pytest.raises(ConfigurationError, match="5 bytes"):
        AesGcmCodec({"k1": b"short"}, "k1")
    with pytest.raises(ConfigurationError, match="key id"):
        AesGcmCodec({"": KEY}, "")
    assert KEY.hex() not in repr(AesGcmCodec({"k1": KEY}, "k1"))
    with pytest.raises(ConfigurationError, match="1 to 9"):
        ZlibCodec(level=0)


@given(st.binary(max_size=80))
def test_any_bytes_open_or_raise_a_decode_error(data: bytes) -> None:
    aes = AesGcmCodec({"k1": KEY}, "k1")
    for stored in (data, b"\x02" + data, b"\x02\x02k1" + data):
        with pytest.raises(DecodeError):
            aes.decode(stored, HERE)
    try:
        ZlibCodec().decode(b"\x01" + data, HERE)
    except DecodeError:
        return
