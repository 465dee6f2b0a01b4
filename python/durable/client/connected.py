"""ConnectedClient: a store that is open, and what all calls of a client share.

It has one pool of connections and, while results are waited for, one LISTEN.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Any, Self

from durable.client.grouping import StartGroup
from durable.client.waiter import Waiter
from durable.codec import DEFAULT_CODEC, Codec
from durable.engine.definition import WorkflowDefinition
from durable.engine.interceptors import Interceptor
from durable.engine.registry import Registry
from durable.errors import StoreUnavailableError
from durable.store.base import Store
from durable.store.clock import StoreClock
from durable.store.hints import Hinter
from durable.store.postgres import PostgresStore
from durable.store.sealed import seal_store

CONNECT_SECONDS_MAX = 6.0


class ConnectedClient:
    """What every call of a client needs: the store, the codec, known code, hints and waiting."""

    def __init__(
        self,
        store: Store,
        *,
        codec: Codec = DEFAULT_CODEC,
        workflows: Iterable[Any] = (),
        interceptors: Iterable[Interceptor] = (),
    ) -> None:
        self.store = store = seal_store(store, codec)
        self.codec = codec
        self.registry = Registry(workflows, interceptors=interceptors)
        self.hooks = self.registry.hooks
        self.waiter = Waiter(store)
        self.hinter = Hinter(store)
        self._starts = StartGroup(store, self.hinter)
        self._clock = StoreClock()
        self._types: dict[str, str] = {}
        """The queue of each workflow and job that a worker has registered."""
        self._types_until = 0.0

    @classmethod
    def connect(
        cls,
        dsn: str | Store,
        *,
        schema: str = "durable",
        codec: Codec = DEFAULT_CODEC,
        workflows: Iterable[Any] = (),
        interceptors: Iterable[Interceptor] = (),
    ) -> Self:
        """A client of the database at ``dsn``; use it with ``async with``, or await and close it.

        ``codec`` is the application's: its pipeline (encryption, compression) must be that of the
        workers. ``workflows`` are definitions whose runs it may replay and whose results it may
        decode when a handle is got by id only. ``interceptors`` surround what this client starts
        and sends, and workflow code that it replays, the first outermost.

        Entering raises StoreUnavailableError when the database does not answer within seconds,
        SchemaVersionError when its tables are not this build's.
        """
        store = PostgresStore(dsn, schema=schema) if isinstance(dsn, str) else dsn
        return cls(store, codec=codec, workflows=workflows, interceptors=interceptors)

    async def __aenter__(self) -> Self:
        try:
            async with asyncio.timeout(CONNECT_SECONDS_MAX):
                await self.store.open()
        except TimeoutError:
            await self.store.close()
            raise StoreUnavailableError(
                f"the database did not answer within {CONNECT_SECONDS_MAX:g} s; "
                "is the DSN right, and is it running?"
            ) from None
        except BaseException:
            await self.store.close()
            raise
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        """Connect, where no block is at hand; whoever awaits a client closes it."""
        return self.__aenter__().__await__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what is still to be hinted, and give the connections back. Safe twice."""
        await self._starts.close()
        await self.hinter.flush()
        await self.waiter.close()
        await self.store.close()

    def known(self, name: str) -> WorkflowDefinition[Any, Any] | None:
        """The definition of that name that this client was given, or None."""
        return self.registry.find_workflow(name)
