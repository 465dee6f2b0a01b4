"""Keys: what a start says about others like it, checked, and what becomes of it.

A deduplication key is held until the run ends; a debounce key until it begins, and a start that
finds one held replaces what the run was to do and puts it off. Both are of one type and one queue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from durable.client.checks import check_id, micros
from durable.errors import InvalidArgumentError
from durable.events import Started


class Keys(NamedTuple):
    """The keys of a start, and for how long it is debounced (microseconds)."""

    dedup_key: str | None = None
    debounce_key: str | None = None
    debounce_us: int = 0
    debounce_max_us: int | None = None

    def begin_us(self, now_us: int, holder: Started) -> int:
        """When a debounced run begins that another start has just put off."""
        due_us = now_us + self.debounce_us
        if self.debounce_max_us is not None and holder.holder_us is not None:
            due_us = min(due_us, holder.holder_us + self.debounce_max_us)
        return due_us


def keys_of(options: Mapping[str, Any]) -> Keys:
    """The keys that options of a start name; raise InvalidArgumentError for what cannot be."""
    dedup_key, debounce_key = options.get("dedup_key"), options.get("debounce_key")
    if options.get("on_duplicate", "existing") not in ("existing", "error"):
        raise InvalidArgumentError(
            f"on_duplicate is 'existing' or 'error', not {options['on_duplicate']!r}"
        )
    if dedup_key is not None:
        check_id(dedup_key, "a dedup_key")
    wait_us = micros(options.get("debounce"), "debounce")
    most_us = micros(options.get("debounce_max"), "debounce_max")
    if debounce_key is None:
        if wait_us is not None or most_us is not None:
            raise InvalidArgumentError("debounce and debounce_max need a debounce_key")
        return Keys(dedup_key)
    check_id(debounce_key, "a debounce_key")
    if dedup_key is not None:
        raise InvalidArgumentError("give dedup_key or debounce_key, not both")
    if options.get("start_delay") is not None or options.get("start_at") is not None:
        raise InvalidArgumentError(
            "a debounced start begins after debounce; leave out start_delay and start_at"
        )
    if not wait_us:
        raise InvalidArgumentError("debounce_key needs debounce=, a duration of more than zero")
    if most_us is not None and most_us < wait_us:
        raise InvalidArgumentError("debounce_max must not be shorter than debounce")
    return Keys(None, debounce_key, wait_us, most_us)
