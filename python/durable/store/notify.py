"""LISTEN and NOTIFY: a hint that looking soon is worth it. Polling remains the truth.

Workers and clients have a channel each, so that neither wakes up for the other: the schema's name,
and that with a suffix. The payload says what to look at (`write` and `read`); an empty one says
anything. A lost listening connection is replaced, and its return counts as a hint of anything, for
whatever was missed meanwhile.

The socket is read in the loop's own callback: between the database's word and the listener's next
step there is one turn of the loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import psycopg

from durable.errors import StoreUnavailableError
from durable.store.base import DONE, WORK, Hint
from durable.store.connection import BACKOFF_SECONDS, BACKOFF_SECONDS_MAX, Conn, Target
from durable.store.queries import quote_schema

logger = logging.getLogger("durable.store")

RUNS_ONLY = "runs"
SUFFIX = ":done"
"""Of the channel of clients."""
UNHEARD_MAX = 1000
"""Hints kept for a listener that does not take them; older ones give way to one of anything."""


def channel(schema: str, *, done: bool) -> str:
    """Where hints of that sort go."""
    return schema + SUFFIX if done else schema


def write(hint: Hint) -> str:
    """A hint as the payload of a NOTIFY."""
    if hint.done:
        return ",".join(hint.run_ids)
    if not hint.runs_only:
        return ""
    return RUNS_ONLY + ":" + ",".join(map(str, hint.sessions)) if hint.sessions else RUNS_ONLY


def read(payload: str, *, done: bool) -> Hint:
    """The hint that a payload stands for."""
    if done:
        return Hint(done=True, run_ids=tuple(payload.split(","))) if payload else DONE
    word, _, sessions = payload.partition(":")
    if word != RUNS_ONLY:
        return WORK
    try:
        return Hint(runs_only=True, sessions=tuple(map(int, filter(None, sessions.split(",")))))
    except ValueError:
        # Whoever may connect may say anything.
        return WORK


@asynccontextmanager
async def hints(target: Target, schema: str, *, done: bool) -> AsyncIterator[AsyncIterator[Hint]]:
    """Listen while the context lasts; the iterator inside yields each hint of that sort.

    Raise StoreUnavailableError when the first connection fails; later ones are tried for ever.
    """
    name = quote_schema(channel(schema, done=done))
    try:
        ear = await subscribe(target, name)
    except (psycopg.Error, OSError) as error:
        raise StoreUnavailableError(f"cannot listen for hints: {error}") from error
    async with aclosing(follow(target, name, ear, done=done)) as stream:
        yield stream


async def follow(target: Target, name: str, first: Ear, *, done: bool) -> AsyncGenerator[Hint]:
    """Yield each hint, and one of anything after each reconnect."""
    ear: Ear | None = first
    tries = 0
    try:
        while True:
            try:
                if ear is None:
                    ear = await subscribe(target, name)
                    yield read("", done=done)
                tries = 0
                while True:
                    yield read(await ear.next(), done=done)
            except (psycopg.Error, OSError) as error:
                logger.info("hints are interrupted, polling goes on: %s", error)
            if ear is not None:
                await ear.close()
                ear = None
            tries += 1
            pause = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2**tries)
            await asyncio.sleep(pause * (0.5 + random.random()))
    finally:
        if ear is not None:
            await ear.close()


async def subscribe(target: Target, name: str) -> Ear:
    """An ear on a connection of its own."""
    conn = await target.connect()
    ear = Ear(conn)
    try:
        await conn.execute(f"LISTEN {name}".encode())
    except BaseException:
        await conn.close()
        raise
    ear.open()
    return ear


class Ear:
    """A connection that only listens, and what it has heard."""

    def __init__(self, conn: Conn) -> None:
        self._conn = conn
        self._loop = asyncio.get_running_loop()
        self._socket = -1
        self._heard: deque[str] = deque()
        self._failure: psycopg.Error | None = None
        self._waiting: asyncio.Future[None] | None = None
        # What comes along with the answer to LISTEN.
        conn.add_notify_handler(lambda note: self._heard.append(note.payload))

    def open(self) -> None:
        """Read the socket from now on."""
        self._socket = self._conn.fileno()
        self._loop.add_reader(self._socket, self._read)

    async def next(self) -> str:
        """The next payload; raise psycopg.Error when the connection is lost."""
        while not self._heard:
            if self._failure is not None:
                raise self._failure
            self._waiting = self._loop.create_future()
            await self._waiting
        return self._heard.popleft()

    async def close(self) -> None:
        """Give the connection back."""
        self._mute()
        await self._conn.close()

    def _read(self) -> None:
        pgconn = self._conn.pgconn
        try:
            pgconn.consume_input()
            while (note := pgconn.notifies()) is not None:
                self._heard.append(note.extra.decode())
        except psycopg.Error as error:
            self._failure = error
            self._mute()
        if len(self._heard) > UNHEARD_MAX:
            self._heard.clear()
            self._heard.append("")
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _mute(self) -> None:
        if self._socket >= 0:
            self._loop.remove_reader(self._socket)
            self._socket = -1
