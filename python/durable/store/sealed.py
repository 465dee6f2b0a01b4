"""A store whose payloads pass through a codec's pipeline: compressed, encrypted, or both.

Everything that users' values are in is sealed on its way into the store and opened on its way out:
history batches (arguments, results, memo, headers), mail and its meta, activity inputs, failures
and heartbeat details, results and failures of runs, answers, items of streams, reasons of parked
and paused runs.
Names, ids, keys, options and search attributes stay as they are, since the database works with
them.

A sealed blob begins with `MARK`, then says by `Scope` what it is bound to: its run and place, or
the workflow id for mail that was addressed so. Encrypted data is refused anywhere else. The
database itself writes a few failures (a timeout, a dead worker); they are plain and told by form.

What cannot be opened harms nobody else: a history is a StoreError of that run, and mail, attempts
and views carry the error in ``unreadable``, for whoever reads them to park the run, put the attempt
back, or raise.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import orjson

from durable.codec import Codec, PayloadContext, failure_to_payload
from durable.errors import DecodeError, UnreadablePayloadError
from durable.events import (
    ActivityOutcome,
    ClaimedActivity,
    ClaimedRun,
    CommitResult,
    EventKind,
    Hold,
    InboxItem,
    Message,
    NewRun,
    QueuedActivity,
    Response,
    RunCommit,
    RunState,
    RunView,
    Started,
    StoredItem,
    TypeInfo,
)
from durable.store.base import Store
from durable.store.opening import MARK, PLAIN, open_blob, open_history
from durable.store.settled import Floor

BY_PLACE, BY_WORKFLOW, BY_END = b"p", b"w", b"e"
END_BYTES = 16 + 16 + 4
NO_RUN = str(uuid.UUID(int=0))
WORKFLOW_IDS_MAX = 100_000
OUTCOMES = (EventKind.ACTIVITY_COMPLETED, EventKind.ACTIVITY_FAILED)
CHILD_ENDS = (EventKind.CHILD_COMPLETED, EventKind.CHILD_FAILED)
DATABASE_FAILURES = {
    "TimeoutError",
    "WorkerCrashedError",
    "WorkflowAlreadyStartedError",
    "WorkflowNotFoundError",
}


def seal_store(store: Store, codec: Codec) -> Store:
    """``store`` behind the pipeline of ``codec``; as it is where the codec has none."""
    return cast(Store, SealedStore(store, codec)) if codec.pipeline else store


def is_from_database(data: bytes) -> bool:
    """Whether this is what our own SQL writes: it has no user's value in it."""
    if data[:1] != b"{" or len(data) > 2000:
        return False
    try:
        found = orjson.loads(data)
    except ValueError:
        return False
    if found.keys() == {"run_id"}:
        return True
    return found.keys() - {"attempt"} == {"type", "message"} and found["type"] in DATABASE_FAILURES


class SealedStore:
    """Seals what goes into ``inner`` and opens what comes out; the rest is passed on."""

    def __init__(self, inner: Store, codec: Codec) -> None:
        self.inner = inner
        self.codec = codec
        self._workflow_ids: OrderedDict[str, str] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        # Sessions, types, timers, hints, upkeep: no payload passes there.
        return getattr(self.inner, name)

    # -- one blob ----------------------------------------------------------------------------

    def _seal(
        self, data: bytes, run_id: str, kind: str, name: object = "", scope: bytes = BY_PLACE
    ) -> bytes:
        context = PayloadContext(run_id, kind, str(name))
        return MARK + scope + self.codec.seal(PLAIN + data, context)

    def _seal_or_none(
        self, data: bytes | None, run_id: str, kind: str, name: object = ""
    ) -> bytes | None:
        return None if data is None else self._seal(data, run_id, kind, name)

    def _open(self, data: bytes, run_id: str, kind: str, name: object = "") -> bytes:
        """What `_seal` was given; raise UnreadablePayloadError when that cannot be told."""
        return open_blob(self.codec, data, run_id, kind, name)

    def _open_or_none(
        self, data: bytes | None, run_id: str, kind: str, name: object = ""
    ) -> bytes | None:
        if data is None or (kind == "failure" and is_from_database(data)):
            return data
        return self._open(data, run_id, kind, name)

    def _seal_end(self, data: bytes, commit: RunCommit) -> bytes:
        """The result or failure of a run: read by clients, who know the run, and by its parent,
        who knows only that it is its child. So both are written in front, and bound."""
        parent, ref = commit.parent_run_id or NO_RUN, commit.parent_ref or 0
        return self._seal_end_of(data, commit.run_id, parent, ref)

    def _seal_end_of(self, data: bytes, run_id: str, parent: str, ref: int) -> bytes:
        context = PayloadContext(run_id, "end", f"{parent}:{ref}")
        front = uuid.UUID(run_id).bytes + uuid.UUID(parent).bytes + ref.to_bytes(4, "big")
        return MARK + BY_END + front + self.codec.seal(PLAIN + data, context)

    def _open_end(
        self,
        data: bytes | None,
        *,
        run_id: str | None = None,
        parent: tuple[str, int] | None = None,
    ) -> bytes | None:
        if data is None or is_from_database(data):
            return data
        if data[:2] != MARK + BY_END or len(data) < 2 + END_BYTES:
            return self._open(data, run_id or "", "end")
        front = data[2 : 2 + END_BYTES]
        ended = str(uuid.UUID(bytes=front[:16]))
        owner = str(uuid.UUID(bytes=front[16:32]))
        ref = int.from_bytes(front[32:], "big")
        if run_id not in (None, ended) or parent not in (None, (owner, ref)):
            raise UnreadablePayloadError(f"the result of run {ended} was moved to another place")
        return self._open(MARK + BY_END + data[2 + END_BYTES :], ended, "end", f"{owner}:{ref}")

    # -- runs --------------------------------------------------------------------------------

    def _new_run(self, run: NewRun) -> NewRun:
        self._know(run.run_id, run.workflow_id)
        return replace(run, batch=self._seal(run.batch, run.run_id, "history", 0))

    def _know(self, run_id: str, workflow_id: str) -> None:
        known = self._workflow_ids
        known[run_id] = workflow_id
        if len(known) > WORKFLOW_IDS_MAX:
            known.popitem(last=False)

    async def _workflow_id(self, run_id: str) -> str:
        found = self._workflow_ids.get(run_id)
        if found is None:
            view = await self.inner.view(run_id=run_id)
            found = view.workflow_id if view is not None else ""
            self._know(run_id, found)
        return found

    async def register_types(self, types: Sequence[TypeInfo]) -> None:
        """See `Store.register_types`; says of each whether plain payloads would be read."""
        try:
            self.codec.open(PLAIN, PayloadContext("", "input"))
        except DecodeError:
            types = [replace(each, takes_plain=False) for each in types]
        await self.inner.register_types(types)

    async def replace_start(self, run: NewRun, conn: Any = None) -> bool:
        """See `Store.replace_start`."""
        return await self.inner.replace_start(self._new_run(run), conn)

    async def start_runs(self, runs: Sequence[NewRun], conn: Any = None) -> list[Started]:
        """See `Store.start_runs`."""
        return await self.inner.start_runs([self._new_run(run) for run in runs], conn)

    async def start_and_send(
        self, runs: Sequence[NewRun], messages: Sequence[Message], conn: Any = None
    ) -> list[Started]:
        """See `Store.start_and_send`."""
        sealed = [self._new_run(run) for run in runs]
        return await self.inner.start_and_send(sealed, [self._message(m) for m in messages], conn)

    async def pause(self, reasons: Mapping[str, bytes]) -> int:
        """See `Store.pause`."""
        return await self.inner.pause(
            {run_id: self._seal(reason, run_id, "pause") for run_id, reason in reasons.items()}
        )

    async def load(self, runs: Mapping[str, int]) -> dict[str, list[bytes]]:
        """See `Store.load`; raise UnreadablePayloadError for a history that cannot be opened."""
        loaded = await self.inner.load(runs)
        return {
            run_id: list(open_history(self.codec, run_id, batches))
            for run_id, batches in loaded.items()
        }

    async def first_batches(self, runs: Mapping[str, int]) -> dict[str, bytes]:
        """See `Store.first_batches`; raise UnreadablePayloadError for one that cannot be opened."""
        return {
            run_id: self._open(batch, run_id, "history", 0)
            for run_id, batch in (await self.inner.first_batches(runs)).items()
        }

    def _view(self, view: RunView) -> RunView:
        self._know(view.run_id, view.workflow_id)
        try:
            if view.state in (RunState.PARKED, RunState.PAUSED):
                # A reason is for people, and they shall have it where there is no key.
                failure = view.failure
                if failure is not None and failure[:1] == MARK:
                    kind = "park" if view.state == RunState.PARKED else "pause"
                    failure = self._open(failure, view.run_id, kind)
                return replace(view, failure=failure)
            return replace(
                view,
                result=self._open_end(view.result, run_id=view.run_id),
                failure=self._open_end(view.failure, run_id=view.run_id),
            )
        except UnreadablePayloadError as error:
            return replace(view, result=None, failure=None, unreadable=error)

    async def view(
        self, *, workflow_id: str | None = None, run_id: str | None = None
    ) -> RunView | None:
        """See `Store.view`."""
        found = await self.inner.view(workflow_id=workflow_id, run_id=run_id)
        return None if found is None else self._view(found)

    async def closed(self, run_ids: Sequence[str]) -> list[RunView]:
        """See `Store.closed`."""
        return [self._view(view) for view in await self.inner.closed(run_ids)]

    async def responses(self, request_ids: Sequence[str]) -> list[Response]:
        """See `Store.responses`; an answer that cannot be opened is a failure that says so."""
        return [self._answer(each) for each in await self.inner.responses(request_ids)]

    def _answer(self, each: Response) -> Response:
        try:
            return Response(
                each.request_id,
                self._open_or_none(each.payload, "", "answer", each.request_id),
                self._open_or_none(each.failure, "", "failure", each.request_id),
            )
        except UnreadablePayloadError as error:
            return Response(each.request_id, failure=failure_to_payload(error))

    # -- mail --------------------------------------------------------------------------------

    def _message(self, message: Message) -> Message:
        if message.payload is None and message.meta is None:
            return message
        if message.run_id is not None:
            scope, place = BY_PLACE, message.run_id
        else:
            scope, place = BY_WORKFLOW, f"workflow {message.workflow_id}"
        name = f"{int(message.kind)} {message.name or ''}"
        payload, meta = message.payload, message.meta
        if payload is not None:
            payload = self._copied(message, payload) or self._seal(
                payload, place, "message", name, scope
            )
        return replace(
            message,
            payload=payload,
            meta=None if meta is None else self._seal(meta, place, "message meta", name, scope),
        )

    def _copied(self, message: Message, payload: bytes) -> bytes | None:
        """The outcome of a command as mail of a fork, sealed as it is read; None for others."""
        run_id, ref = message.run_id, message.ref
        if run_id is not None and message.kind in OUTCOMES:
            return self._seal(payload, run_id, "outcome", ref)
        if run_id is not None and message.kind in CHILD_ENDS:
            # Its child answered to another run: it is bound to this one alone.
            return self._seal_end_of(payload, run_id, run_id, ref or 0)
        return None

    async def send(self, messages: Sequence[Message], conn: Any = None) -> list[str | None]:
        """See `Store.send`."""
        return await self.inner.send([self._message(each) for each in messages], conn)

    async def send_telling(self, message: Message) -> tuple[str | None, bool]:
        """See `Store.send_telling`."""
        return await self.inner.send_telling(self._message(message))

    async def inbox(
        self, run_ids: Sequence[str], limit: int | None = None, kinds: Sequence[int] | None = None
    ) -> list[InboxItem]:
        """See `Store.inbox`."""
        return [await self._item(item) for item in await self.inner.inbox(run_ids, limit, kinds)]

    async def mail_after(
        self, floors: Mapping[str, Floor], limit: int
    ) -> tuple[list[InboxItem], Floor]:
        """See `Store.mail_after`."""
        items, settled = await self.inner.mail_after(floors, limit)
        return [await self._item(item) for item in items], settled

    async def _item(self, item: InboxItem) -> InboxItem:
        try:
            return replace(
                item,
                payload=await self._item_payload(item),
                meta=await self._mail(item, item.meta, "message meta"),
            )
        except UnreadablePayloadError as error:
            if item.kind == EventKind.CANCEL_REQUESTED:
                # What matters is that it came; its reason may have been meant for the run before.
                return replace(item, payload=None, meta=None)
            return replace(item, payload=None, meta=None, unreadable=error)

    async def _item_payload(self, item: InboxItem) -> bytes | None:
        data = item.payload
        if data is None or is_from_database(data):
            return data
        if item.kind in OUTCOMES:
            return self._open(data, item.run_id, "outcome", item.ref)
        if item.kind in CHILD_ENDS:
            return self._open_end(data, parent=(item.run_id, item.ref))
        return await self._mail(item, data, "message")

    async def _mail(self, item: InboxItem, data: bytes | None, kind: str) -> bytes | None:
        if data is None:
            return None
        place = item.run_id
        if data[:2] == MARK + BY_WORKFLOW:
            place = f"workflow {await self._workflow_id(item.run_id)}"
        return self._open(data, place, kind, f"{int(item.kind)} {item.name or ''}")

    # -- workers: runs -----------------------------------------------------------------------

    async def claim_runs(
        self, session: int, queues: Sequence[str], types: Sequence[str], limit: int
    ) -> tuple[list[ClaimedRun], list[str], int]:
        """See `Store.claim_runs`."""
        claimed, mail, now_us = await self.inner.claim_runs(session, queues, types, limit)
        for run in claimed:
            self._know(run.run_id, run.workflow_id)
            # It is sealed; `load` opens it, and says so when it cannot.
            run.start = None
        return claimed, mail, now_us

    async def owned(self, session: int) -> tuple[list[ClaimedRun], list[ClaimedActivity]]:
        """See `Store.owned`."""
        runs, attempts = await self.inner.owned(session)
        for run in runs:
            self._know(run.run_id, run.workflow_id)
        return runs, [self._attempt(each) for each in attempts]

    async def commit(self, commits: Sequence[RunCommit], flush: int = 0) -> CommitResult:
        """See `Store.commit`."""
        return await self.inner.commit([self._commit(each) for each in commits], flush)

    def _commit(self, commit: RunCommit) -> RunCommit:
        run_id, closing, successor = commit.run_id, commit.closing, commit.successor
        sealed = replace(commit)
        sealed.batch = self._seal_or_none(commit.batch, run_id, "history", commit.expected_seq)
        sealed.park = self._park(commit)
        sealed.activities = [self._queued(run_id, each) for each in commit.activities]
        sealed.kept = [
            replace(each, payload=self._seal_or_none(each.payload, run_id, "outcome", each.ref))
            for each in commit.kept
        ]
        sealed.children = [self._new_run(each) for each in commit.children]
        sealed.messages = [self._message(each) for each in commit.messages]
        sealed.responses = [
            Response(
                each.request_id,
                self._seal_or_none(each.payload, "", "answer", each.request_id),
                self._seal_or_none(each.failure, "", "failure", each.request_id),
            )
            for each in commit.responses
        ]
        if closing is not None:
            sealed.closing = replace(
                closing,
                result=None if closing.result is None else self._seal_end(closing.result, commit),
                failure=None
                if closing.failure is None
                else self._seal_end(closing.failure, commit),
            )
        if successor is not None:
            sealed.successor = self._new_run(successor)
        return sealed

    def _park(self, commit: RunCommit) -> bytes | None:
        # That a key is missing must be readable by those who miss it. It quotes no value.
        if commit.park is None or b'"type":"UnreadablePayloadError"' in commit.park:
            return commit.park
        return self._seal(commit.park, commit.run_id, "park")

    # -- workers: activities -----------------------------------------------------------------

    def _queued(self, run_id: str, each: QueuedActivity) -> QueuedActivity:
        return replace(
            each,
            input=self._seal(each.input, run_id, "input", each.ref),
            last_failure=self._seal_or_none(each.last_failure, run_id, "failure", each.ref),
            details=self._seal_or_none(each.details, run_id, "details", each.ref),
        )

    def _attempt(self, each: ClaimedActivity) -> ClaimedActivity:
        try:
            return replace(
                each,
                input=self._open(each.input, each.run_id, "input", each.ref),
                last_failure=self._open_or_none(
                    each.last_failure, each.run_id, "failure", each.ref
                ),
                details=self._open_or_none(each.details, each.run_id, "details", each.ref),
            )
        except UnreadablePayloadError as error:
            return replace(each, input=b"[]", last_failure=None, details=None, unreadable=error)

    async def claim_activities(
        self, session: int, queues: Sequence[str], names: Sequence[str], limit: int
    ) -> list[ClaimedActivity]:
        """See `Store.claim_activities`."""
        claimed = await self.inner.claim_activities(session, queues, names, limit)
        return [self._attempt(each) for each in claimed]

    async def finish_activities(self, outcomes: Sequence[ActivityOutcome]) -> list[bool]:
        """See `Store.finish_activities`."""
        return await self.inner.finish_activities([self.outcome(each) for each in outcomes])

    def outcome(self, each: ActivityOutcome) -> ActivityOutcome:
        """An outcome as it is stored."""
        # The failure of an attempt that is tried again stays with the activity's row.
        kind = "outcome" if each.kind else "failure"
        return replace(
            each,
            payload=self._seal_or_none(each.payload, each.run_id, kind, each.ref),
            details=self._seal_or_none(each.details, each.run_id, "details", each.ref),
        )

    async def heartbeat_activity(self, run_id: str, ref: int, token: int, details: bytes) -> bool:
        """See `Store.heartbeat_activity`."""
        sealed = self._seal(details, run_id, "details", ref)
        return await self.inner.heartbeat_activity(run_id, ref, token, sealed)

    # -- streams -----------------------------------------------------------------------------

    async def append_stream(
        self,
        run_id: str,
        name: str,
        attempt: int,
        items: Sequence[bytes | None],
        flush: int,
        hold: Hold,
    ) -> int:
        """See `Store.append_stream`."""
        sealed = [self._seal_or_none(item, run_id, "stream", name) for item in items]
        return await self.inner.append_stream(run_id, name, attempt, sealed, flush, hold)

    async def read_stream(self, run_id: str, name: str, after: int, limit: int) -> list[StoredItem]:
        """See `Store.read_stream`; raise UnreadablePayloadError for what cannot be opened."""
        return [
            replace(item, payload=self._open_or_none(item.payload, run_id, "stream", name))
            for item in await self.inner.read_stream(run_id, name, after, limit)
        ]
