"""LISTEN and NOTIFY: a hint that polling soon is worth it. Polling remains the truth.

The channel is the schema's name, the payload one of two words: `WORK` for workers, `DONE` for
clients that wait for a result. A lost listening connection is replaced, and
its return counts as a hint, for whatever was missed meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from durable.errors import StoreUnavailableError
from durable.store.connection import BACKOFF_SECONDS, BACKOFF_SECONDS_MAX, Conn, Target
from durable.store.queries import quote_schema

logger = logging.getLogger("durable.store")

WORK, DONE = "work", "done"


@asynccontextmanager
async def hints(target: Target, schema: str, word: str) -> AsyncIterator[AsyncIterator[None]]:
    """Listen while the context lasts; the iterator inside yields once per hint of that word.

    Raise StoreUnavailableError when the first connection fails; later ones are tried for ever.
    """
    try:
        conn = await subscribe(target, schema)
    except (psycopg.Error, OSError) as error:
        raise StoreUnavailableError(f"cannot listen for hints: {error}") from error
    stream = follow(target, schema, conn, word)
    try:
        yield stream
    finally:
        await stream.aclose()
        await conn.close()


async def subscribe(target: Target, schema: str) -> Conn:
    """A connection that listens."""
    conn = await target.connect()
    try:
        await conn.execute(f"LISTEN {quote_schema(schema)}".encode())
    except BaseException:
        await conn.close()
        raise
    return conn


async def follow(target: Target, schema: str, first: Conn, word: str) -> AsyncGenerator[None]:
    """Yield once per hint and once per reconnect."""
    conn: Conn | None = first
    tries = 0
    try:
        while True:
            try:
                if conn is None:
                    conn = await subscribe(target, schema)
                    yield None
                tries = 0
                async for each in conn.notifies():
                    if each.payload in (word, ""):
                        yield None
            except (psycopg.Error, OSError) as error:
                logger.info("hints are interrupted, polling goes on: %s", error)
            if conn is not None:
                await conn.close()
                conn = None
            tries += 1
            pause = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2**tries)
            await asyncio.sleep(pause * (0.5 + random.random()))
    finally:
        if conn is not None:
            await conn.close()
