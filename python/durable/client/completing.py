"""Completing: activities that others complete, by their task token."""

from __future__ import annotations

import uuid
from typing import Any

from durable.client.connected import ConnectedClient
from durable.codec import check_size, failure_to_payload
from durable.errors import ActivityNotFoundError, ApplicationError, InvalidArgumentError
from durable.events import ActivityOutcome, EventKind


class CompletingClient(ConnectedClient):
    """The calls for an activity that raised `durable.CompleteLater`."""

    async def complete_activity(self, task_token: str, result: Any = None) -> None:
        """Give an activity that raised `durable.CompleteLater` its result.

        ``task_token`` is what ``activity.info().task_token`` was in it. Raises
        ActivityNotFoundError when nothing waits for it any more.
        """
        payload = self.codec.encode(result)
        check_size(payload, "the result of an activity")
        await self._settle(task_token, EventKind.ACTIVITY_COMPLETED, payload)

    async def fail_activity(self, task_token: str, error: BaseException | str) -> None:
        """Fail an activity that raised `durable.CompleteLater`, for good.

        Raises ActivityNotFoundError when nothing waits for it any more.
        """
        failure = ApplicationError(error) if isinstance(error, str) else error
        data = self.codec.decode(failure_to_payload(failure))
        data["attempt"] = parse_token(task_token)[2]
        await self._settle(task_token, EventKind.ACTIVITY_FAILED, self.codec.encode(data))

    async def heartbeat_activity(self, task_token: str, *details: Any) -> None:
        """Say that an activity which others complete makes progress: see `activity.heartbeat`.

        Raises ActivityNotFoundError when nothing waits for it any more.
        """
        run_id, ref, _, token = parse_token(task_token)
        payload = self.codec.encode(list(details))
        check_size(payload, "the heartbeat details of an activity")
        if not await self.store.heartbeat_activity(run_id, ref, token, payload):
            raise ActivityNotFoundError(f"no activity waits under the task token {task_token!r}")

    async def _settle(self, task_token: str, kind: EventKind, payload: bytes) -> None:
        run_id, ref, attempt, token = parse_token(task_token)
        outcome = ActivityOutcome(run_id, ref, attempt, token, kind, payload)
        if not (await self.store.finish_activities([outcome]))[0]:
            raise ActivityNotFoundError(f"no activity waits under the task token {task_token!r}")
        self.hinter.work(runs_only=True)


def parse_token(task_token: str) -> tuple[str, int, int, int]:
    """Run id, ref, attempt and token; raise InvalidArgumentError for what is no task token."""
    try:
        run_id, ref, attempt, token = task_token.split(":")
        return str(uuid.UUID(run_id)), int(ref), int(attempt), int(token)
    except (ValueError, AttributeError):
        raise InvalidArgumentError(f"{task_token!r} is not a task token") from None
