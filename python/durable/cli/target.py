"""Target: which database and app a command means, and the options that say so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
import orjson

from durable.errors import ConfigurationError
from durable.runtime.app import App, load_app
from durable.runtime.dev import DevNotes

F = TypeVar("F", bound=Callable[..., Any])

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.ASCII)


@dataclass(frozen=True)
class Target:
    """A database, and an app if one is known."""

    dsn: str
    schema: str
    app: str | None
    folder: Path | None = None

    def load(self) -> App | None:
        """Import the app; None when none is known. Raise AppError when it does not import."""
        return None if self.app is None else load_app(self.app, self.folder)

    def load_needed(self) -> App:
        """Import the app; raise ConfigurationError when none is known."""
        self.needed_app()
        app = self.load()
        assert app is not None
        return app

    def needed_app(self) -> str:
        """The app's name; raise ConfigurationError when none is known."""
        if self.app is None:
            raise ConfigurationError("this needs the workflow's code: give --app")
        return self.app


def find_target(dsn: str | None, schema: str, app: str | None = None) -> Target:
    """The database of --dsn or DURABLE_DSN, else of a ``durable dev`` here or above.

    Raise ConfigurationError when there is none.
    """
    notes = DevNotes.find(Path.cwd())
    folder = None
    if app is None and notes is not None and dsn in (None, notes.dsn):
        app, folder = notes.app, Path(notes.folder)
    if dsn is None:
        if notes is None:
            raise ConfigurationError(
                "which database? give --dsn, set DURABLE_DSN, or run `durable dev` in this folder"
            )
        dsn = notes.dsn
    return Target(dsn=dsn, schema=schema, app=app, folder=folder)


def database_options(command: F) -> F:
    """The options --dsn and --schema."""
    dsn = click.option(
        "--dsn",
        envvar="DURABLE_DSN",
        metavar="DSN",
        help="The database: postgresql://user:password@host/name. Also DURABLE_DSN; else that of a "
        "`durable dev` in this folder.",
    )
    schema = click.option(
        "--schema",
        envvar="DURABLE_SCHEMA",
        default="durable",
        show_default=True,
        help="The schema with our tables. Also DURABLE_SCHEMA.",
    )
    return dsn(schema(command))


def app_option(command: F) -> F:
    """The option --app."""
    return click.option(
        "--app",
        envvar="DURABLE_APP",
        metavar="APP",
        help="Where the workflow's code is: flows.py, shop.flows or shop.flows:app. Also "
        "DURABLE_APP; else that of a `durable dev` in this folder.",
    )(command)


class Duration(click.ParamType):  # type: ignore[type-arg]
    """A time span: 90, 1.5s, 10m, 2h, 7d. A number alone is seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        match = DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write 90, 1.5s, 10m, 2h or 7d", param, ctx)
        try:
            return timedelta(seconds=float(match[1]) * UNITS[match[2] or "s"])
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)


class Moment(click.ParamType):  # type: ignore[type-arg]
    """A point in time with its zone: 2026-12-01T08:00:00Z or ...+01:00."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time; write 2026-12-01T08:00:00Z", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no time zone; end it with Z or +01:00", param, ctx)
        return moment.astimezone(UTC)


class Attribute(click.ParamType):  # type: ignore[type-arg]
    """A search attribute: customer=Ann. A value that is JSON is read as JSON, else as text."""

    name = "attribute"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not name or not equals:
            self.fail(f"{value!r} is not an attribute; write name=value", param, ctx)
        try:
            return name, orjson.loads(text)
        except orjson.JSONDecodeError:
            return name, text
