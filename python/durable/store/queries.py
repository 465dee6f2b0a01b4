"""SQL lives in files: queries.sql with named statements, and the numbered migrations.

``{s}`` in them stands for the schema. Its name is quoted here, once, and nothing else is ever put
into a statement's text.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

from psycopg import sql

from durable.errors import ConfigurationError

DEFAULT_SCHEMA = "durable"
SCHEMA_BYTES_MAX = 48
"""PostgreSQL's limit is 63; the rest is room for names made of it."""


def quote_schema(schema: str) -> str:
    """Return the schema's name as an SQL identifier; raise ConfigurationError if it cannot be."""
    if not schema or "\0" in schema or "{" in schema or len(schema.encode()) > SCHEMA_BYTES_MAX:
        raise ConfigurationError(
            f"schema must be a name of 1 to {SCHEMA_BYTES_MAX} bytes without braces, not {schema!r}"
        )
    # Names are also used inside string literals of the migrations, hence no quotes of either kind.
    if "'" in schema or '"' in schema or "\\" in schema or "%" in schema:
        raise ConfigurationError(f"schema must not contain quotes, % or backslashes: {schema!r}")
    return sql.Identifier(schema).as_string(None)


def render(text: str, schema: str) -> str:
    """Put the schema's name into a statement."""
    return text.replace("{s}", quote_schema(schema))


@cache
def load_queries(schema: str) -> dict[str, bytes]:
    """Every named statement of queries.sql, ready to be sent."""
    text = files("durable.store").joinpath("sql/queries.sql").read_text()
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return {
        name: render(body, schema).strip().encode()
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


@cache
def load_migrations() -> list[tuple[int, str, str]]:
    """Number, name and text of every migration, in order."""
    found = []
    for entry in files("durable.store").joinpath("sql/migrations").iterdir():
        if entry.name.endswith(".sql"):
            number, _, name = entry.name.removesuffix(".sql").partition("_")
            found.append((int(number), name, entry.read_text()))
    return sorted(found)
