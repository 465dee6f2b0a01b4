"""Values and failures as bytes: JSON out, what the annotation says back in. Never pickle.

write      Python values to JSON
read       JSON to annotated types
value      `Codec`: both, with converters, limits and a pipeline
signature  `Signature`: the arguments and the result of a function
arguments  arguments typed by a person
pipeline   compression and encryption
failure    exceptions
"""

from durable.codec.failure import (
    failure_from_payload,
    failure_to_payload,
    is_final,
    register_error,
    type_names,
)
from durable.codec.pipeline import (
    NO_CODEC,
    SEALED_MARK,
    AesGcmCodec,
    PayloadCodec,
    PayloadContext,
    ZlibCodec,
    is_sealed,
)
from durable.codec.read import Decoder
from durable.codec.signature import Signature
from durable.codec.value import DEFAULT_CODEC, Codec, Converter, check_size, same

__all__ = [
    # values
    "Codec",
    "DEFAULT_CODEC",
    "Converter",
    "Decoder",
    "Signature",
    "check_size",
    "same",
    # pipeline
    "PayloadCodec",
    "PayloadContext",
    "ZlibCodec",
    "AesGcmCodec",
    "NO_CODEC",
    "SEALED_MARK",
    "is_sealed",
    # failures
    "failure_to_payload",
    "failure_from_payload",
    "is_final",
    "register_error",
    "type_names",
]
