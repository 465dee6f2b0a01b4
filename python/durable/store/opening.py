"""Opening: a blob that was sealed for one place becomes what it was.

Apart from `durable.store.sealed`, which seals and opens whatever passes a store, so that a process
that is given stored histories can read them and needs no store for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from durable.codec import SEALED_MARK, Codec, PayloadContext
from durable.errors import DecodeError, UnreadablePayloadError

MARK = SEALED_MARK
PLAIN = b"P"
"""Precedes the data inside: no codec's mark, so that each codec knows its own work."""


def open_blob(codec: Codec, data: bytes, run_id: str, kind: str, name: object = "") -> bytes:
    """What was sealed; raise UnreadablePayloadError when that cannot be told."""
    context = PayloadContext(run_id, kind, str(name))
    try:
        if data[:1] == MARK:
            opened = codec.open(data[2:], context)
        else:
            # From before the pipeline was switched on: the codecs say whether that is right.
            opened = codec.open(PLAIN + data, context)
    except DecodeError as error:
        raise UnreadablePayloadError(
            f"the {kind} of run {run_id or '?'} cannot be read: {error}"
        ) from error
    if opened[:1] != PLAIN:
        raise UnreadablePayloadError(
            f"the {kind} of run {run_id or '?'} was sealed by codecs that are not in the "
            "pipeline here; give the codec that it was written with"
        )
    return opened[1:]


def open_history(codec: Codec, run_id: str, batches: Sequence[bytes]) -> Sequence[bytes]:
    """The batches of a run from its first one on; as they are where the codec seals nothing.

    Raises UnreadablePayloadError when one of them cannot be opened.
    """
    if not codec.pipeline:
        return batches
    return [open_blob(codec, batch, run_id, "history", seq) for seq, batch in enumerate(batches)]
