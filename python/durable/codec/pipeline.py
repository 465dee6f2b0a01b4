"""What happens to payload bytes between a process and the database: compression, encryption.

A payload codec gets bytes and says what to store, and back. Its first output byte is its mark,
below 0x20, where no JSON begins: so each codec knows its own work, and data that was stored
before a codec was switched on stays readable (encryption: only when you allow it).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from durable.errors import ConfigurationError, DecodeError
from durable.options import PAYLOAD_BYTES_MAX

MARK_ZLIB = 0x01
MARK_AES_GCM = 0x02

SEALED_MARK = b"\xd5"
"""Begins what went through a pipeline as the store keeps it. No history and no JSON begins so."""

NO_CODEC = (
    "it was written through a codec pipeline (encryption, compression) that is not here; "
    "give codec= to Worker and Client, or call it codec in the app's module"
)

OUTPUT_BYTES_MAX = 4 * PAYLOAD_BYTES_MAX
"""The most a stored payload may grow to when it is read: twice two payloads, for failures and lists
that are wrapped after they were measured."""
COMPRESS_BYTES_MIN = 512
"""Below this, compression saves less than a database page can use."""
NONCE_BYTES = 12
"""What AES-GCM is specified for. Random nonces are safe for about four thousand million payloads
per key; rotate the key before."""
KEY_ID_BYTES_MAX = 255


def is_sealed(stored: bytes | None) -> bool:
    """Whether stored bytes went through a pipeline: where there is none they cannot be read."""
    return stored is not None and stored[:1] == SEALED_MARK


@dataclass(frozen=True)
class PayloadContext:
    """Where a payload belongs. Encrypted data can be read only in the place it was written for."""

    run_id: str
    kind: str
    """The noun of the place: "input", "result", "failure", "signal", "history", ..."""
    name: str = ""

    def associated_data(self) -> bytes:
        """The context as bytes that no other context has."""
        parts = [part.encode() for part in (self.run_id, self.kind, self.name)]
        return b"durable1" + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


class PayloadCodec(Protocol):
    """One stage of a pipeline. Both methods are pure apart from nonces, and safe in threads."""

    def encode(self, data: bytes, context: PayloadContext) -> bytes:
        """What to store for ``data``."""

    def decode(self, data: bytes, context: PayloadContext) -> bytes:
        """What `encode` was given; raise DecodeError when that cannot be told."""


class ZlibCodec:
    """Compresses payloads of ``min_bytes`` and more, when that makes them smaller."""

    def __init__(self, level: int = 6, min_bytes: int = COMPRESS_BYTES_MIN) -> None:
        if not 1 <= level <= 9:
            raise ConfigurationError(f"a compression level is 1 to 9, not {level!r}")
        self._level = level
        self._min_bytes = min_bytes

    def encode(self, data: bytes, context: PayloadContext) -> bytes:
        """Compress, unless ``data`` is short or grows."""
        # Data that begins with our mark must be wrapped, or decoding could not tell.
        is_marked = data[:1] == bytes([MARK_ZLIB])
        if len(data) < self._min_bytes and not is_marked:
            return data
        if len(data) > OUTPUT_BYTES_MAX and not is_marked:
            # A whole history batch may be that long; what is read must stay bounded.
            return data
        packed = bytes([MARK_ZLIB]) + zlib.compress(data, self._level)
        return packed if len(packed) < len(data) or is_marked else data

    def decode(self, data: bytes, context: PayloadContext) -> bytes:
        """Decompress to at most `OUTPUT_BYTES_MAX` bytes."""
        if data[:1] != bytes([MARK_ZLIB]):
            return data
        unpacker = zlib.decompressobj()
        try:
            result = unpacker.decompress(data[1:], OUTPUT_BYTES_MAX + 1)
        except zlib.error as error:
            raise DecodeError(f"the compressed payload is damaged: {error}") from None
        if len(result) > OUTPUT_BYTES_MAX:
            raise DecodeError(
                f"the compressed payload grows to more than {OUTPUT_BYTES_MAX:,} bytes"
            )
        if not unpacker.eof or unpacker.unused_data:
            raise DecodeError("the compressed payload is cut short, or followed by other data")
        return result


class AesGcmCodec:
    """Encrypts with AES-GCM, bound to the run and place. Needs ``durable-fleet[encryption]``.

    ``keys`` maps key ids to keys of 16, 24 or 32 bytes; ``active`` is the id to write with, the
    others are for reading. To rotate: add the new key everywhere, make it active, and drop the old
    one when no run that used it is kept. ``allow_plaintext`` also reads what was stored before
    encryption was on; leave it off once those runs are gone, or a writer to the database could
    pass plain data off as yours.
    """

    def __init__(
        self, keys: Mapping[str, bytes], active: str, *, allow_plaintext: bool = False
    ) -> None:
        try:
            # An extra: most installations have no use for it.
            from cryptography.exceptions import InvalidTag
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise ConfigurationError(
                "encryption needs the cryptography package: pip install 'durable-fleet[encryption]'"
            ) from None
        if active not in keys:
            raise ConfigurationError(f"the active key id {active!r} is not among the keys")
        self._ciphers: dict[bytes, Any] = {}
        for key_id, key in keys.items():
            encoded = key_id.encode()
            if not 1 <= len(encoded) <= KEY_ID_BYTES_MAX:
                raise ConfigurationError(f"a key id has 1 to {KEY_ID_BYTES_MAX} bytes of UTF-8")
            if len(key) not in (16, 24, 32):
                raise ConfigurationError(
                    f"key {key_id!r} has {len(key)} bytes; AES keys have 16, 24 or 32"
                )
            self._ciphers[encoded] = AESGCM(key)
        self._active = active.encode()
        self._allow_plaintext = allow_plaintext
        self._invalid_tag: type[Exception] = InvalidTag

    def __repr__(self) -> str:
        return f"<AesGcmCodec, {len(self._ciphers)} keys, active {self._active.decode()!r}>"

    def encode(self, data: bytes, context: PayloadContext) -> bytes:
        """Encrypt: mark, length of key id, key id, nonce, ciphertext with its tag."""
        header = bytes([MARK_AES_GCM, len(self._active)]) + self._active
        nonce = os.urandom(NONCE_BYTES)
        sealed: bytes = self._ciphers[self._active].encrypt(
            nonce, data, header + context.associated_data()
        )
        return header + nonce + sealed

    def decode(self, data: bytes, context: PayloadContext) -> bytes:
        """Decrypt; the message of a failure names the key id, never a key or the data."""
        if data[:1] != bytes([MARK_AES_GCM]):
            if self._allow_plaintext:
                return data
            raise DecodeError(
                "the payload is not encrypted; pass allow_plaintext=True to read what was stored "
                "before encryption was on"
            )
        end = 2 + data[1] if len(data) > 1 else 2
        key_id = data[2:end]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise DecodeError(
                f"the payload is encrypted with key {key_id.decode(errors='replace')!r}, which "
                "this process does not have; add it to the keys"
            )
        nonce, sealed = data[end : end + NONCE_BYTES], data[end + NONCE_BYTES :]
        try:
            result: bytes = cipher.decrypt(nonce, sealed, data[:end] + context.associated_data())
        except (self._invalid_tag, ValueError):
            raise DecodeError(
                f"the payload of {context.kind} {context.name!r} does not open with key "
                f"{key_id.decode(errors='replace')!r}: wrong key, damaged, or moved from elsewhere"
            ) from None
        return result
