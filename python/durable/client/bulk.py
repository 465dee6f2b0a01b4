"""Bulk: the same done to every run that fits a filter.

A sweep goes over the open runs in order of their run ids, a page at a time, each page in a short
transaction. It takes those that were there when it began, so it ends. What it did is done: after an
error or a crash the same call finds the rest.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from durable.client.answers import encode_call
from durable.client.checks import check_id
from durable.client.connected import ConnectedClient
from durable.client.filters import EVERY_RUN, RunFilter, all_runs, check_meant, open_runs
from durable.client.forking import fork_point
from durable.client.intercepting import surround_all
from durable.client.resetting import reset_run
from durable.engine.attributes import message_meta, plain_headers
from durable.engine.definition import handler_name
from durable.engine.interceptors import MessageCall
from durable.errors import DurableError, InvalidArgumentError
from durable.events import EventKind, Message, RunState, RunView
from durable.store.pages import OpenRuns

PAGE_RUNS = 200
"""Runs that one transaction changes."""
PAGE_RUNS_MAX = 10_000
ERRORS_SHOWN = 20
RESETS_AT_ONCE = 10
RESET_SECONDS = 10.0
"""How long a reset waits for the worker of a run to let go of it."""


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What a sweep did so far, or all told."""

    done: int = 0
    """Runs that it was done to."""
    skipped: int = 0
    """Runs that fitted, but had closed or changed by the time it came to them."""
    missing: int = 0
    """Of the ids that were given, those of no run that fits."""
    failed: int = 0
    """Runs that it could not be done to."""
    errors: Mapping[str, str] = field(default_factory=dict)
    """Why not, by workflow id: of the first 20."""

    def plus(self, done: int, skipped: int, errors: Mapping[str, str] | None = None) -> BulkResult:
        """With what was done to some more runs."""
        errors = errors or {}
        shown = dict([*self.errors.items(), *errors.items()][:ERRORS_SHOWN])
        return replace(
            self,
            done=self.done + done,
            skipped=self.skipped + skipped,
            failed=self.failed + len(errors),
            errors=shown,
        )


DONE, SKIPPED = "", "skipped"

Progress = Callable[[BulkResult], None]
"""Called after each page with the counts so far."""


class BulkClient(ConnectedClient):
    """The calls about all open runs that fit a filter."""

    # -- looking -----------------------------------------------------------------------------

    async def count(self, runs: RunFilter = EVERY_RUN) -> int:
        """How many open runs fit. Reads all open runs."""
        return await self.store.count_open(open_runs(runs, self.codec))

    async def page(
        self, runs: RunFilter = EVERY_RUN, *, after: str | None = None, limit: int = PAGE_RUNS
    ) -> Sequence[RunView]:
        """Open runs that fit, in order of their run ids, at most ``limit`` (up to 10,000).

        The next page is what comes ``after`` the run id of the last one; fewer than ``limit`` are
        the last page. The reasons of parked and paused runs are not told, see
        `WorkflowHandle.describe`.
        """
        if not 1 <= limit <= PAGE_RUNS_MAX:
            raise InvalidArgumentError(f"limit must be 1 to {PAGE_RUNS_MAX:,}, not {limit!r}")
        if after is not None:
            try:
                after = str(uuid.UUID(after))
            except ValueError:
                raise InvalidArgumentError(f"after must be a run id, not {after!r}") from None
        return await self.store.open_page(open_runs(runs, self.codec), after=after, limit=limit)

    async def iterate(self, runs: RunFilter = EVERY_RUN) -> AsyncIterator[RunView]:
        """Every open run that fits, page by page, in order of their run ids.

        Runs that start or close meanwhile may or may not be among them; none comes twice.
        """
        after = None
        while page := await self.page(runs, after=after):
            for view in page:
                yield view
            if len(page) < PAGE_RUNS:
                return
            after = page[-1].run_id

    # -- changing ----------------------------------------------------------------------------

    async def cancel_many(
        self, runs: RunFilter, *, reason: str = "", progress: Progress | None = None
    ) -> BulkResult:
        """Ask every run that fits to end, as `WorkflowHandle.cancel` does."""
        payload = self.codec.encode([reason]) if reason else None

        async def act(page: Sequence[RunView]) -> int:
            return await self._tell(
                page,
                "cancel_workflow",
                ("", (reason,)),
                lambda call: Message(
                    kind=EventKind.CANCEL_REQUESTED,
                    run_id=call.run_id,
                    payload=payload
                    if call.args == (reason,)
                    else self.codec.encode(list(call.args)),
                    request_id=request_id,
                ),
            )

        request_id = str(uuid.uuid4())
        return await self._sweep(runs, act, progress)

    async def signal_matching(
        self,
        runs: RunFilter,
        signal: str | Callable[..., Any],
        *args: Any,
        request_id: str | None = None,
        progress: Progress | None = None,
    ) -> BulkResult:
        """Send every run that fits a signal, as `WorkflowHandle.signal` does.

        With the same ``request_id`` a repeated call sends it to nobody twice.
        """
        name = handler_name(signal)
        request = check_id(request_id or str(uuid.uuid4()), "a request id")
        encode_call(self.codec, signal, args)

        def message(call: MessageCall) -> Message:
            return Message(
                kind=EventKind.SIGNAL_RECEIVED,
                run_id=call.run_id,
                name=name,
                meta=message_meta(plain_headers(call.headers, self.codec)),
                payload=encode_call(self.codec, signal, call.args),
                request_id=request,
            )

        async def act(page: Sequence[RunView]) -> int:
            return await self._tell(page, "signal_workflow", (name, args), message)

        return await self._sweep(runs, act, progress)

    async def terminate_many(
        self, runs: RunFilter, *, reason: str = "", progress: Progress | None = None
    ) -> BulkResult:
        """End every run that fits without running its code; also those parked or paused."""
        failure = {"type": "Terminated", "message": reason or "terminated"}
        payload, request_id = self.codec.encode(failure), str(uuid.uuid4())

        async def act(page: Sequence[RunView]) -> int:
            kind = EventKind.RUN_TERMINATED
            found = await self.store.send(
                [
                    Message(kind=kind, run_id=v.run_id, payload=payload, request_id=request_id)
                    for v in page
                ]
            )
            there = [run_id for run_id in found if run_id is not None]
            await self.store.unpark(there)
            return len(there)

        return await self._sweep(runs, act, progress)

    async def pause_many(
        self, runs: RunFilter, *, reason: str = "", progress: Progress | None = None
    ) -> BulkResult:
        """Pause every run that fits, as `WorkflowHandle.pause` does."""
        payload = self.codec.encode({"reason": "paused", "message": reason})

        async def act(page: Sequence[RunView]) -> int:
            return await self.store.pause({view.run_id: payload for view in page})

        return await self._sweep(runs, act, progress)

    async def resume_many(self, runs: RunFilter, *, progress: Progress | None = None) -> BulkResult:
        """Let every paused run that fits go on. Its states are PAUSED, whatever is given."""

        async def act(page: Sequence[RunView]) -> int:
            return await self.store.resume([view.run_id for view in page])

        return await self._sweep(runs, act, progress, RunState.PAUSED)

    async def unpark_many(self, runs: RunFilter, *, progress: Progress | None = None) -> BulkResult:
        """Have every parked run that fits tried again now. Its states are PARKED, likewise."""

        async def act(page: Sequence[RunView]) -> int:
            return await self.store.unpark([view.run_id for view in page])

        return await self._sweep(runs, act, progress, RunState.PARKED)

    async def reset_many(
        self,
        runs: RunFilter,
        *,
        to_event: int | None = None,
        before_activity: str | None = None,
        to_last_turn: bool = False,
        reason: str = "",
        keep_signals: bool = True,
        progress: Progress | None = None,
    ) -> BulkResult:
        """Reset every run that fits to such a point of its history, as `WorkflowHandle.reset` does.

        ``states`` of the filter may be closed ones too, such as FAILED; without them open runs are
        meant. ``closed_after`` and ``closed_before`` are for closed states. Of an id only the
        latest run is reset; earlier ones count as skipped. A run that has no such point counts as
        failed, with the reason, and stays as it is.
        """
        check_meant(runs)
        point = fork_point(to_event, before_activity, to_last_turn)
        wanted = all_runs(runs, self.codec)
        until_us = await self.store.now_us() + 1
        wanted = replace(wanted, until_us=min(wanted.until_us or until_us, until_us))
        result, before = BulkResult(), None

        while page := await self.store.views(wanted, before=before, limit=PAGE_RUNS):
            for first in range(0, len(page), RESETS_AT_ONCE):
                chunk = page[first : first + RESETS_AT_ONCE]
                said = await asyncio.gather(
                    *(self._reset(view, point, reason, keep_signals) for view in chunk)
                )
                errors = {
                    view.workflow_id: text
                    for view, text in zip(chunk, said, strict=True)
                    if text not in (DONE, SKIPPED)
                }
                result = result.plus(said.count(DONE), said.count(SKIPPED), errors)
                if progress is not None:
                    progress(result)
            before = page[-1].created_us, page[-1].run_id
        return with_missing(result, wanted)

    async def _reset(
        self, view: RunView, point: dict[str, Any], reason: str, keep_signals: bool
    ) -> str:
        """DONE, SKIPPED, or why it cannot be."""
        latest = await self.store.view(workflow_id=view.workflow_id)
        if latest is None or latest.run_id != view.run_id:
            return SKIPPED
        try:
            await reset_run(
                self,
                latest,
                point,
                RESET_SECONDS,
                definition=None,
                target=None,
                reason=reason,
                keep_signals=keep_signals,
            )
        except (DurableError, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"
        return DONE

    async def _sweep(
        self,
        runs: RunFilter,
        act: Callable[[Sequence[RunView]], Awaitable[int]],
        progress: Progress | None,
        only: RunState | None = None,
    ) -> BulkResult:
        """Do it to each page of what fits now. Raise InvalidArgumentError for an empty filter."""
        check_meant(runs)
        if only is not None:
            runs = replace(runs, states=(only,))
        wanted = open_runs(runs, self.codec)
        # Those that start meanwhile are not meant, and could keep it going for ever.
        until_us = await self.store.now_us() + 1
        wanted = replace(wanted, until_us=min(wanted.until_us or until_us, until_us))
        after, result = None, BulkResult()
        while page := await self.store.open_page(wanted, after=after, limit=PAGE_RUNS):
            done = await act(page)
            self.hinter.work(runs_only=True)
            result = result.plus(done, len(page) - done)
            if progress is not None:
                progress(result)
            if len(page) < PAGE_RUNS:
                break
            after = page[-1].run_id
            await asyncio.sleep(0)
        return with_missing(result, wanted)

    async def _tell(
        self,
        page: Sequence[RunView],
        hook: str,
        what: tuple[str, tuple[Any, ...]],
        message: Callable[[MessageCall], Message],
    ) -> int:
        """Send each run of a page a message, with interceptors around; return how many took it."""

        async def send(calls: Sequence[MessageCall]) -> list[bool]:
            if not calls:
                return []
            found = await self.store.send([message(call) for call in calls])
            return [run_id is not None for run_id in found]

        calls = [MessageCall(view.workflow_id, view.run_id, *what) for view in page]
        around = self.hooks.around(hook)
        return sum(map(bool, await (surround_all(around, calls, send) if around else send(calls))))


def with_missing(result: BulkResult, wanted: OpenRuns) -> BulkResult:
    """With how many of the ids were not met."""
    if wanted.ids is None:
        return result
    met = result.done + result.skipped + result.failed
    return replace(result, missing=len(wanted.ids) - met)
