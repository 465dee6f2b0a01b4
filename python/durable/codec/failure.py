"""Exceptions as payloads, and back.

A failure is a JSON object: ``type`` (a name), ``message``, ``traceback``, ``cause`` (another
failure), and where there is something to say ``class``, ``args``, ``attributes``, ``details``,
``notes``, ``group``, ``non_retryable``, ``retry_after``. Writing one never fails and has a bounded
size, whatever the exception does: texts are cut at code points, and what is not text (lone
surrogates, NUL) is written as an escape.

Reading gives the real class where this process knows it under that name: the exceptions of Python
and of this package, and the classes that were registered. Otherwise it is an ApplicationError with
that ``type``. A name found in data is looked up, never imported.
"""

from __future__ import annotations

import asyncio
import builtins
import os
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TypeVar

import orjson

import durable.errors
from durable.codec.read import read_plain
from durable.codec.value import DEFAULT_CODEC, same
from durable.codec.write import type_name
from durable.errors import (
    ApplicationError,
    DecodeError,
    DefinitionError,
    GuardError,
    PayloadError,
    RetryAfter,
    StreamFullError,
)

FAILURE_BYTES_MAX = 256 * 1024
"""The whole failure. An eighth of a payload: failures are read by people and kept with the run."""
MESSAGE_BYTES_MAX = 16 * 1024
TRACEBACK_BYTES_MAX = 32 * 1024
VALUES_BYTES_MAX = 64 * 1024
"""Details, arguments or attributes."""
FRAMES_MAX = 50
CAUSES_MAX = 10
"""Depth of the chain of causes."""
GROUP_MAX = 10
"""Members of an exception group that are kept."""
NODES_MAX = 40
"""Exceptions in one failure, chain and groups together."""
NOTES_MAX = 10

PACKAGE_DIR = os.path.dirname(os.path.abspath(durable.errors.__file__)) + os.sep

E = TypeVar("E", bound=type[BaseException])


def _known_at_start() -> dict[str, type[BaseException]]:
    found: dict[str, type[BaseException]] = {}
    for module in (builtins, durable.errors):
        for value in vars(module).values():
            # Not SystemExit and its like: rebuilt in a worker they would end it.
            if isinstance(value, type) and issubclass(value, Exception | BaseExceptionGroup):
                found[type_name(value)] = value
    found[type_name(asyncio.CancelledError)] = asyncio.CancelledError
    return found


_known = _known_at_start()


def register_error(cls: E) -> E:
    """Let failures of this exception class come back as the class. Usable as a decorator.

    Raise DefinitionError when another class is registered under its qualified name.
    """
    name = type_name(cls)
    found = _known.get(name)
    # A module that is loaded again (reload, a test) brings the same class anew.
    if found is not None and found is not cls and found.__module__ == "builtins":
        raise DefinitionError(f"an exception called {name} is known already; choose another name")
    _known[name] = cls
    return cls


def type_names(error: BaseException) -> tuple[str, ...]:
    """The names by which a retry policy may mean this error: of its class, its bases, its type."""
    names: list[str] = []
    if isinstance(error, ApplicationError) and error.type:
        names.append(error.type)
    for cls in type(error).__mro__[:-1]:
        names += [cls.__name__, f"{cls.__module__}.{cls.__qualname__}"]
    return tuple(dict.fromkeys(names))


def is_final(error: BaseException) -> bool:
    """Whether trying again cannot help: it says so, a value does not fit, a stream is full."""
    if isinstance(error, ApplicationError):
        return error.non_retryable
    return isinstance(error, PayloadError | DefinitionError | GuardError | StreamFullError)


# -- writing ---------------------------------------------------------------------------------


def failure_to_payload(error: BaseException) -> bytes:
    """Return ``error`` as JSON of at most `FAILURE_BYTES_MAX` bytes. Never raises."""
    payload = b""
    for divisor in (1, 8, 64):
        payload = orjson.dumps(_Scribe(divisor).describe(error, CAUSES_MAX))
        if len(payload) <= FAILURE_BYTES_MAX:
            return payload
    return orjson.dumps(_Scribe(64).describe(error, 0))


def _clean(text: Any, bytes_max: int, *, keep_end: bool = False) -> str:
    """``text`` as at most ``bytes_max`` bytes of UTF-8 without NUL and lone surrogates."""
    # Through str's own methods: a subclass may override them.
    whole = str.__len__(text)
    if keep_end and whole > bytes_max:
        piece = str.__getitem__(text, slice(whole - bytes_max, None))
    else:
        piece = str.__getitem__(text, slice(0, bytes_max))
    data = str.encode(piece, "utf-8", "backslashreplace").replace(b"\0", b"\\x00")
    if len(data) <= bytes_max and whole <= bytes_max:
        return data.decode()
    if keep_end:
        return "[cut] ... " + data[-bytes_max:].decode(errors="ignore")
    return data[:bytes_max].decode(errors="ignore") + " ... [cut]"


def _message(error: BaseException, bytes_max: int) -> str:
    try:
        # A KeyError's text is the repr of its key; that is what Python prints, so keep it.
        return _clean(str(error), bytes_max)
    except Exception as broken:
        return f"<its __str__ raised {type(broken).__name__}>"


class _Scribe:
    """Describes one exception with all that hangs on it. ``divisor`` makes the limits smaller."""

    def __init__(self, divisor: int) -> None:
        self._message_max = MESSAGE_BYTES_MAX // divisor
        self._traceback_max = TRACEBACK_BYTES_MAX // divisor
        self._values_max = VALUES_BYTES_MAX // divisor
        self._seen: set[int] = set()

    def describe(self, error: BaseException, depth: int) -> dict[str, Any]:
        self._seen.add(id(error))
        result: dict[str, Any] = {
            "type": self._name(type(error)),
            "message": _message(error, self._message_max),
            "traceback": self._traceback(error),
        }
        if isinstance(error, ApplicationError):
            self._add_application(result, error)
        else:
            self._add_state(result, error)
        if is_final(error):
            result["non_retryable"] = True
        notes = self._notes(error)
        if notes:
            result["notes"] = notes
        if isinstance(error, BaseExceptionGroup):
            members = [e for e in error.exceptions[:GROUP_MAX] if self._has_room(e, depth)]
            result["message"] = _clean(error.message, self._message_max)
            result["group"] = [self.describe(member, depth - 1) for member in members]
        cause = error.__cause__
        if cause is None and not error.__suppress_context__:
            cause = error.__context__
        if cause is not None and self._has_room(cause, depth):
            result["cause"] = self.describe(cause, depth - 1)
        return result

    def _has_room(self, error: BaseException, depth: int) -> bool:
        return depth > 0 and len(self._seen) < NODES_MAX and id(error) not in self._seen

    def _name(self, cls: type) -> str:
        return _clean(type_name(cls), 512)

    def _add_application(self, result: dict[str, Any], error: ApplicationError) -> None:
        if isinstance(error.type, str) and error.type:
            result["class"] = result["type"]
            result["type"] = _clean(error.type, 512)
        details = self._values(list(error.details), exact=False) if error.details else None
        if details is not None:
            result["details"] = details
        if isinstance(error, RetryAfter) and isinstance(error.delay_seconds, int | float):
            result["retry_after"] = float(error.delay_seconds)
        own = {"details", "type", "non_retryable", "delay_seconds", "remote_traceback"}
        self._add_attributes(result, error, own)

    def _add_state(self, result: dict[str, Any], error: BaseException) -> None:
        given = error.args
        if isinstance(error, OSError):
            # Its file names are not in args, but its constructor takes them.
            given = OSError.__reduce__(error)[1]  # type: ignore[assignment]
        args = self._values(list(given)) if given else None
        if args is not None and args != [result["message"]]:
            result["args"] = args
        self._add_attributes(result, error, {"remote_traceback"})

    def _add_attributes(
        self, result: dict[str, Any], error: BaseException, left_out: set[str]
    ) -> None:
        found: dict[str, Any] = {}
        for name, value in list(getattr(error, "__dict__", {}).items())[:50]:
            if not isinstance(name, str) or name.startswith("_") or name in left_out:
                continue
            written = self._values(value)
            if written is not None:
                found[name] = written
        if found and self._values(found) is not None:
            result["attributes"] = found

    def _values(self, value: Any, *, exact: bool = True) -> Any:
        """``value`` as plain JSON; None when it is too large or (``exact``) would be another."""
        try:
            data = DEFAULT_CODEC.encode(value)
            if len(data) > self._values_max:
                return None
            plain = read_plain(data)
            return plain if not exact or same(value, plain) else None
        except Exception:
            # What hangs on an exception is a bonus: it must not hide the exception.
            return None

    def _notes(self, error: BaseException) -> list[str]:
        notes = getattr(error, "__notes__", None)
        if not isinstance(notes, list):
            return []
        remote = getattr(error, "remote_traceback", None)
        return [
            _clean(note, self._message_max // NOTES_MAX)
            for note in notes[:NOTES_MAX]
            if isinstance(note, str) and note != remote_note(remote)
        ]

    def _traceback(self, error: BaseException) -> str:
        lines: list[str] = []
        remote = getattr(error, "remote_traceback", None)
        if isinstance(remote, str) and remote:
            lines.append(remote)
        try:
            own = traceback.format_tb(_user_frames(error.__traceback__), limit=-FRAMES_MAX)
        except Exception:  # source files and frames of any kind; the type and message matter more
            own = ["  <the traceback cannot be formatted>\n"]
        if own and remote:
            lines.append("-- and then, where it was received --\n")
        lines.extend(own)
        return _clean("".join(lines), self._traceback_max, keep_end=True)


def _user_frames(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is not this package's own, where there is one."""
    frame = trace
    while frame is not None:
        if not frame.tb_frame.f_code.co_filename.startswith(PACKAGE_DIR):
            return frame
        frame = frame.tb_next
    return trace


# -- reading ---------------------------------------------------------------------------------


def remote_note(remote: Any) -> str | None:
    """The note by which a rebuilt exception shows where it was raised first."""
    return f"Remote traceback (most recent call last):\n{remote}" if remote else None


def failure_from_payload(
    payload: bytes, known: Mapping[str, type[BaseException]] | None = None
) -> BaseException:
    """Return the exception that ``payload`` describes, not raised.

    ``known`` adds classes by qualified name to those that `register_error` knows. Its
    ``remote_traceback`` attribute and a note say where it was raised. Raise DecodeError when the
    payload is not a failure.
    """
    failure = read_plain(payload)
    if not isinstance(failure, dict):
        raise DecodeError("a failure payload must be a JSON object")
    return _rebuild(failure, known or {}, CAUSES_MAX + 1)


def _rebuild(
    failure: Mapping[str, Any], known: Mapping[str, type[BaseException]], depth: int
) -> BaseException:
    name = str(failure.get("class") or failure.get("type") or "")
    cls = known.get(name) or _known.get(name)
    error: BaseException | None = None
    if cls is not None:
        try:
            error = _instance(cls, failure, known, depth)
        except Exception:
            # The class changed since; its name and message are kept all the same.
            error = None
    if error is None:
        error = _application(ApplicationError, failure)
    remote = failure.get("traceback")
    if isinstance(remote, str) and remote:
        error.remote_traceback = remote  # type: ignore[attr-defined]
        BaseException.add_note(error, remote_note(remote) or "")
    for note in _list(failure.get("notes")):
        BaseException.add_note(error, str(note))
    cause = failure.get("cause")
    if isinstance(cause, dict) and depth > 0:
        error.__cause__ = _rebuild(cause, known, depth - 1)
    return error


def _instance(
    cls: type[BaseException],
    failure: Mapping[str, Any],
    known: Mapping[str, type[BaseException]],
    depth: int,
) -> BaseException:
    """An instance without running an ``__init__`` of user code, whose parameters nobody knows."""
    if issubclass(cls, ApplicationError):
        return _restore(_application(cls, failure), failure)
    message = str(failure.get("message", ""))
    if issubclass(cls, BaseExceptionGroup):
        members = [
            _rebuild(member, known, depth - 1)
            for member in _list(failure.get("group"))
            if isinstance(member, dict) and depth > 0
        ]
        group: BaseException = cls(message, members)
        return group
    args = tuple(_list(failure["args"])) if "args" in failure else (message,) if message else ()
    if not _has_python_init(cls):
        try:
            return _restore(cls(*args), failure)
        except Exception:
            # Arguments changed on their way, as a value inside them has no JSON.
            return _restore(cls(message), failure)
    error = cls.__new__(cls, *args)
    error.args = args
    return _restore(error, failure)


def _has_python_init(cls: type[BaseException]) -> bool:
    return any("__init__" in vars(base) for base in cls.__mro__ if base.__module__ != "builtins")


def _application(cls: type[ApplicationError], failure: Mapping[str, Any]) -> ApplicationError:
    error = cls.__new__(cls)
    message = str(failure.get("message", ""))
    error.args = (message,)
    error.details = tuple(_list(failure.get("details")))
    error.non_retryable = failure.get("non_retryable") is True
    is_typed = "class" in failure or cls is ApplicationError
    error.type = str(failure.get("type")) if is_typed and failure.get("type") else None
    if error.type == type_name(ApplicationError):
        error.type = None
    if issubclass(cls, RetryAfter):
        delay = failure.get("retry_after", 0.0)
        error.delay_seconds = (  # type: ignore[attr-defined]
            float(delay) if isinstance(delay, int | float) else 0.0
        )
    return error


def _restore(error: BaseException, failure: Mapping[str, Any]) -> BaseException:
    attributes = failure.get("attributes")
    if isinstance(attributes, dict):
        for name, value in attributes.items():
            # Into the instance only: a property or slot of that name keeps its say.
            if not name.startswith("_"):
                error.__dict__[name] = value
    return error


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
