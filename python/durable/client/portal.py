"""Portal: an event loop on a thread of its own, and a way to call into it from other threads.

The thread is a daemon: it holds up no exit. A call that is interrupted (Ctrl-C) or over its time is
cancelled in the loop before it is left, so that nothing goes on unseen.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
from collections.abc import Coroutine
from threading import Thread, current_thread
from typing import Any, TypeVar

from durable.errors import ContextError

T = TypeVar("T")

STOP_SECONDS_MAX = 5.0


class Portal:
    """A running loop. Safe to use from any thread but its own."""

    def __init__(self) -> None:
        # psycopg cannot use the default loop of Windows.
        self._loop = (
            asyncio.SelectorEventLoop() if sys.platform == "win32" else asyncio.new_event_loop()
        )
        self._pid = os.getpid()
        self._thread = Thread(target=self._run, name="durable-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def call(self, work: Coroutine[Any, Any, T], limit: float | None) -> T:
        """Run ``work`` in the loop and return its result; raise what it raises.

        Raises TimeoutError when it takes longer than ``limit`` seconds (None: for ever), and
        ContextError in a call from the loop's own thread, which would wait for itself.
        """
        if current_thread() is self._thread:
            work.close()
            raise ContextError("a call into this client from its own thread would never end")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            done, _ = concurrent.futures.wait((future,), limit)
        except BaseException:
            future.cancel()
            raise
        if not done:
            future.cancel()
            raise TimeoutError(f"the call did not end within {limit:g} s, and was cancelled")
        return future.result()

    def stop(self, last: Coroutine[Any, Any, None]) -> None:
        """Run ``last``, then end the thread, in bounded time. Nothing happens in a forked child."""
        if os.getpid() != self._pid or not self._thread.is_alive():
            last.close()
            return
        with contextlib.suppress(Exception):
            self.call(last, STOP_SECONDS_MAX)
        self._loop.call_soon_threadsafe(self._loop.stop)
        if current_thread() is not self._thread:
            self._thread.join(STOP_SECONDS_MAX)
