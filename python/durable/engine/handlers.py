"""What reaches a run from outside: signals, queries, updates.

Signals are kept in a `Mailbox` per name until somebody wants them: in order, each once, none
dropped. Whoever awaits one takes one; a handler takes all, those that came before it first. A
receiver that is cancelled after its signal was handed to it puts the signal back in front.

A handler is called with the decoded arguments. An async one runs as a task of the run.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, TypeVar

from durable._core import Loop
from durable.codec import Codec, Signature
from durable.engine.info import duration_us
from durable.errors import DecodeError, DefinitionError, UnreadablePayloadError

T = TypeVar("T")


class Mailbox:
    """The signals of one name that nobody took yet."""

    __slots__ = ("_buffer", "_handler", "_loop", "_waiters", "is_wanted")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._buffer: deque[bytes | None] = deque()
        self._waiters: deque[asyncio.Future[bytes | None]] = deque()
        self._handler: Callable[[bytes | None], None] | None = None
        self.is_wanted = False
        """Code has asked for signals of this name: the handler of all others does not get them."""

    def __len__(self) -> int:
        return len(self._buffer)

    def put(self, payload: bytes | None) -> None:
        """A signal arrived."""
        self._buffer.append(payload)
        self._pump()

    def take_nowait(self) -> bytes | None:
        """The oldest signal; raise asyncio.QueueEmpty when there is none."""
        if not self._buffer:
            raise asyncio.QueueEmpty
        return self._buffer.popleft()

    async def take(self) -> bytes | None:
        """The oldest signal, or the next one."""
        if self._buffer:
            return self._buffer.popleft()
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        try:
            payload: bytes | None = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._buffer.appendleft(waiter.result())
                self._pump()
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            raise
        return payload

    def handle(self, handler: Callable[[bytes | None], None] | None) -> None:
        """Give every signal to ``handler`` from now on, those that wait first; None: stop."""
        self._handler = handler
        self._pump()

    def unread(self) -> list[bytes | None]:
        """What is left, to be carried over to the next run of a chain."""
        return list(self._buffer)

    def _pump(self) -> None:
        while self._buffer:
            if self._handler is not None:
                self._handler(self._buffer.popleft())
                continue
            while self._waiters and self._waiters[0].done():
                self._waiters.popleft()
            if not self._waiters:
                return
            self._waiters.popleft().set_result(self._buffer.popleft())


class SignalChannel(Generic[T]):
    """The signals of one name, as values of one type: take them one at a time, or iterate."""

    __slots__ = ("_decode", "_mailbox", "name")

    def __init__(self, name: str, mailbox: Mailbox, decode: Callable[[bytes | None], T]) -> None:
        self.name = name
        self._mailbox = mailbox
        self._decode = decode

    async def receive(
        self,
        timeout: timedelta | float | None = None,  # noqa: ASYNC109 - a durable timer
    ) -> T:
        """The oldest signal that nobody took, or the next one.

        ``timeout`` in seconds or as timedelta; raise TimeoutError when it is over, DecodeError when
        the signal's value is not of the channel's type (the signal is then taken).
        """
        if timeout is None:
            return self._decode(await self._mailbox.take())
        async with asyncio.timeout(duration_us(timeout) / 1e6):
            payload = await self._mailbox.take()
        return self._decode(payload)

    def receive_nowait(self) -> T:
        """The oldest signal that nobody took; raise asyncio.QueueEmpty when there is none."""
        return self._decode(self._mailbox.take_nowait())

    def __len__(self) -> int:
        """How many signals wait."""
        return len(self._mailbox)

    def __aiter__(self) -> SignalChannel[T]:
        return self

    async def __anext__(self) -> T:
        return await self.receive()


def value_decoder(codec: Codec, annotation: Any, signal: str) -> Callable[[bytes | None], Any]:
    """Decode a signal's argument list to the one value that an awaiting receiver gets.

    No argument is None, one is its value, more are a list.
    """
    typed = codec.decoder(tuple[annotation]) if annotation is not Any else None
    plain = codec.decoder(list[Any])

    def decode(payload: bytes | None) -> Any:
        if payload is None or payload == b"[]":
            return None
        if typed is not None:
            try:
                return typed(payload)[0]
            except UnreadablePayloadError:
                raise
            except DecodeError as error:
                raise DecodeError(f"the value of signal {signal!r}: {error}") from error
        values = plain(payload)
        return values[0] if len(values) == 1 else values

    return decode


class Handler:
    """A callable with its signature: of a signal, query or update.

    A dynamic one stands for every name without a handler of its own. Its callable takes the name
    first; the parameters after it are what the arguments are read by.
    """

    __slots__ = ("fn", "is_async", "name", "signature", "validator")

    def __init__(
        self,
        name: str,
        fn: Callable[..., Any],
        codec: Codec,
        validator: Callable[..., Any] | None = None,
        *,
        is_dynamic: bool = False,
    ) -> None:
        if not callable(fn):
            raise DefinitionError(f"the handler of {name!r} is not callable: {fn!r}")
        self.name = name
        self.fn = fn
        self.validator = validator
        self.is_async = inspect.iscoroutinefunction(fn)
        self.signature = Signature.of(fn, codec, skip=int(is_dynamic))

    def named(self, name: str) -> Handler:
        """A dynamic handler as the handler of one name."""
        bound = copy.copy(self)
        bound.name = name
        bound.fn = functools.partial(self.fn, name)
        if self.validator is not None:
            bound.validator = functools.partial(self.validator, name)
        return bound

    def arguments(self, payload: bytes | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The decoded arguments; raise PayloadError when they do not fit."""
        return self.signature.decode_args(payload or b"[]")
