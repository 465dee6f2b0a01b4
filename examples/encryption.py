"""Values that the database never sees: each payload is encrypted in your process.

The codec goes to every worker and every client; who has the tables but not the key reads nothing.
Keys have names: to rotate, add the new key everywhere, then make it the active one. Needs
``pip install 'durable-fleet[encryption]'``.
"""

import os
from dataclasses import dataclass

from durable import activity, workflow
from durable.codec import AesGcmCodec, Codec, ZlibCodec


@dataclass
class Patient:
    name: str
    illness: str


def make_codec(keys: dict[str, bytes], active: str) -> Codec:
    """Compress first, then encrypt: what is encrypted does not compress."""
    return Codec(pipeline=[ZlibCodec(), AesGcmCodec(keys, active=active)])


def new_key() -> bytes:
    """A key to be kept where secrets are kept."""
    return os.urandom(32)


@activity.defn
async def prescribe(patient: Patient) -> str:
    return f"rest, against {patient.illness}"


@workflow.defn
async def treatment(patient: Patient) -> str:
    workflow.set_vars(patient=patient.name)
    return await prescribe(patient)
