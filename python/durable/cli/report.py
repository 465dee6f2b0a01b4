"""Report: how a command answers. Results on stdout, errors as one line on stderr, no traceback."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import IO, Any

import click
import orjson

from durable.codec import DEFAULT_CODEC
from durable.errors import (
    ConfigurationError,
    DurableError,
    EncodeError,
    NonDeterminismError,
    PayloadError,
    RequestError,
    SchemaVersionError,
    WorkflowAlreadyStartedError,
    WorkflowNotFoundError,
)
from durable.runtime.app import AppError
from durable.runtime.spawn import BootError


class Failure(click.ClickException):
    """An error of ours as click shows it: what was asked did not work."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"durable: {self.message}", file=file or sys.stderr)


class BadInput(Failure):
    """The caller must ask otherwise."""

    exit_code = 2


def is_bad_input(error: DurableError) -> bool:
    """Whether to ask otherwise would help."""
    failed = (
        SchemaVersionError,
        WorkflowNotFoundError,
        WorkflowAlreadyStartedError,
        AppError,
        BootError,
    )
    asked_wrong = (RequestError, PayloadError, ConfigurationError)
    return isinstance(error, asked_wrong) and not isinstance(error, failed)


def failure_of(error: DurableError) -> Failure:
    """An error as one readable line; a replay mismatch keeps its lines, they are a diff."""
    text = str(error)
    if not isinstance(error, NonDeterminismError):
        text = " ".join(text.split())
    return (BadInput if is_bad_input(error) else Failure)(text or type(error).__name__)


class Commands(click.Group):
    """A group whose commands may raise our errors."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DurableError as error:
            raise failure_of(error) from error
        except TimeoutError as error:
            raise Failure(" ".join(str(error).split()) or "it took too long") from error


def finish(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run the coroutine of a command to its end."""
    # psycopg cannot use the default loop of Windows.
    factory = asyncio.SelectorEventLoop if sys.platform == "win32" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work())


def plain(value: Any) -> Any:
    """A value as JSON can show it; what has no JSON form is shown as Python would."""
    try:
        return orjson.loads(DEFAULT_CODEC.encode(value))
    except EncodeError:
        return repr(value)


def show_json(value: Any) -> None:
    """A value on stdout, indented."""
    click.echo(orjson.dumps(plain(value), option=orjson.OPT_INDENT_2).decode())


def show_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Rows under a header, in columns as wide as they need to be."""
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]
    for row in [header, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
