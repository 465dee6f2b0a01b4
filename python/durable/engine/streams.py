"""What a stream is called, and what writes to one looks like to the author of an activity."""

from __future__ import annotations

import re
from typing import Any, Protocol

from durable.errors import InvalidArgumentError
from durable.options import ID_LENGTH_MAX

REFUSED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class StreamWriter(Protocol):
    """Adds items to one stream of the run, in order.

    Items are what the codec takes, each at most the payload limit (`durable.PayloadTooLargeError`).
    An attempt that is tried again writes again: readers see its number with each item. Any call may
    raise `durable.StoreError` or `durable.StreamFullError` for items that were written before, and
    `durable.ActivityNotFoundError` when the attempt does not have its activity any more.
    """

    async def write(self, item: Any) -> None:
        """Add an item. Waits only when the store is far behind."""

    async def close(self) -> None:
        """End the stream for those who read it now; all that was written is stored then."""

    def write_sync(self, item: Any) -> None:
        """`write`, for a sync activity on its thread."""

    def close_sync(self) -> None:
        """`close`, for a sync activity on its thread."""


def check_stream_name(name: object) -> str:
    """Return ``name`` as the name of a stream; raise InvalidArgumentError when it is none."""
    if not isinstance(name, str) or not 0 < len(name) <= ID_LENGTH_MAX or REFUSED.search(name):
        raise InvalidArgumentError(
            f"a stream's name has 1 to {ID_LENGTH_MAX} characters and no control characters, "
            f"not {name!r}"
        )
    return name
