"""What a run that a schedule started may ask about the runs before it.

A schedule remembers how its runs ended. It gives that along with each start, and there it is part
of the run's first event: the same in every replay, and in every run of its chain.
"""

from __future__ import annotations

from typing import Any, TypeVar, overload

from durable.engine.context import context
from durable.engine.remote import cause_of

T = TypeVar("T")


def has_last_result() -> bool:
    """Whether a run of this run's schedule has ended with a result before this one was started."""
    return context("has_last_result()").meta.last_result is not None


@overload
def last_result() -> Any: ...
@overload
def last_result(type: type[T]) -> T | None: ...


def last_result(type: Any = Any) -> Any:
    """The newest result of the schedule that started this run, read as ``type``.

    None when there is none yet, and in a run that no schedule started (`has_last_result` tells that
    from a result that is None). A run that failed changes nothing about it. Raises
    durable.DecodeError for a result that is not of the type, as after a change of the code.
    """
    this = context("last_result()")
    text = this.meta.last_result
    return None if text is None else this.codec.decoder(type)(text.encode())


def last_failure() -> BaseException | None:
    """Why the newest run of the schedule that started this one has no result; None if it has one.

    It is the exception that the run ended with (`durable.ApplicationError` where its class is not
    known here), also when it was cancelled or terminated (by its schedule, too, for the next) or
    its time was over.
    """
    this = context("last_failure()")
    text = this.meta.last_failure
    return None if text is None else cause_of(text.encode(), this.errors)
