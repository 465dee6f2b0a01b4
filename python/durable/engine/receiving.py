"""The part of `durable.workflow` by which functions take signals, queries and updates."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar, overload

from durable.engine.context import context
from durable.engine.definition import handler_name
from durable.engine.handlers import SignalChannel, value_decoder
from durable.events import DYNAMIC

T = TypeVar("T")


@overload
def signal_channel(name: str | Callable[..., Any]) -> SignalChannel[Any]: ...
@overload
def signal_channel(name: str | Callable[..., Any], type: type[T]) -> SignalChannel[T]: ...


def signal_channel(name: str | Callable[..., Any], type: Any = Any) -> SignalChannel[Any]:
    """The signals of a name, as values of one type: ``await channel.receive()``, or iterate.

    Signals wait here until they are taken, in order, however early they came.
    """
    this = context("signal_channel()")
    label = handler_name(name)
    return SignalChannel(label, this.mailbox(label), value_decoder(this.codec, type, label))


@overload
def wait_signal(
    name: str | Callable[..., Any], *, timeout: timedelta | float | None = None
) -> Coroutine[Any, Any, Any]: ...
@overload
def wait_signal(
    name: str | Callable[..., Any], type: type[T], *, timeout: timedelta | float | None = None
) -> Coroutine[Any, Any, T]: ...


def wait_signal(
    name: str | Callable[..., Any],
    type: Any = Any,
    *,
    timeout: timedelta | float | None = None,
) -> Coroutine[Any, Any, Any]:
    """Take the oldest signal of a name, or wait for the next; raise TimeoutError after ``timeout``.

    One signal goes to one waiter.
    """
    return signal_channel(name, type).receive(timeout)


def on_signal(name: str | Callable[..., Any], handler: Callable[..., Any]) -> None:
    """Call ``handler`` with the arguments of each signal, those that came before this first.

    An async handler runs as a task. An exception that it lets through fails the run.
    """
    this = context("on_signal()")
    this.check_writable("on_signal()")
    this.requests.handle_signal(handler_name(name), handler)


def on_dynamic_signal(handler: Callable[..., Any]) -> None:
    """Call ``handler`` with the name and the arguments of each signal that nobody asks for.

    Those are the names without a handler and without a channel; what waits of them comes first,
    name by name.
    """
    this = context("on_dynamic_signal()")
    this.check_writable("on_dynamic_signal()")
    this.requests.handle_other_signals(handler)


def on_query(name: str, handler: Callable[..., Any]) -> None:
    """Answer queries of a name with what the plain function ``handler`` returns."""
    this = context("on_query()")
    this.requests.add(this.requests.queries, name, handler)


def on_dynamic_query(handler: Callable[..., Any]) -> None:
    """Answer queries of all names without a handler: it gets the name, then the arguments."""
    this = context("on_dynamic_query()")
    this.requests.add(this.requests.queries, DYNAMIC, handler)


def on_update(
    name: str, handler: Callable[..., Any], *, validator: Callable[..., Any] | None = None
) -> None:
    """Run ``handler`` for each update of a name and answer with what it returns.

    ``validator`` gets the same arguments first and refuses by raising; a refused update leaves no
    trace. It must only look.
    """
    this = context("on_update()")
    this.requests.add(this.requests.updates, name, handler, validator)


def on_dynamic_update(
    handler: Callable[..., Any], *, validator: Callable[..., Any] | None = None
) -> None:
    """Run ``handler`` for updates of all names without one: it gets the name, then the arguments.

    So does ``validator``, as in `on_update`.
    """
    this = context("on_dynamic_update()")
    this.requests.add(this.requests.updates, DYNAMIC, handler, validator)
