"""Completing: activities of a test that the test completes, by their task token."""

from __future__ import annotations

from typing import Any

import orjson

from durable.client.completing import parse_token
from durable.codec import DEFAULT_CODEC, check_size, failure_to_payload
from durable.errors import ActivityNotFoundError, ApplicationError
from durable.events import EventKind
from durable.testing.attempts import ActivityCall
from durable.testing.waiting import settle
from durable.testing.world import World


class Completing:
    """The part of an environment for activities that raised `durable.CompleteLater`."""

    _world: World

    async def complete_activity(self, task_token: str, result: Any = None) -> None:
        """Give an activity that raised `durable.CompleteLater` its result.

        Raises ActivityNotFoundError when nothing waits for it any more.
        """
        call, attempt = self._call_of(task_token)
        payload = DEFAULT_CODEC.encode(result)
        check_size(payload, "the result of an activity")
        call.answer(attempt, EventKind.ACTIVITY_COMPLETED, payload)
        await settle(self._world)

    async def fail_activity(self, task_token: str, error: BaseException | str) -> None:
        """Fail an activity that raised `durable.CompleteLater`, for good.

        Raises ActivityNotFoundError when nothing waits for it any more.
        """
        call, attempt = self._call_of(task_token)
        failure = ApplicationError(error) if isinstance(error, str) else error
        data = orjson.loads(failure_to_payload(failure))
        data["attempt"] = attempt
        call.answer(attempt, EventKind.ACTIVITY_FAILED, orjson.dumps(data))
        await settle(self._world)

    async def heartbeat_activity(self, task_token: str, *details: Any) -> None:
        """Say that an activity which the test completes makes progress.

        Raises ActivityNotFoundError when nothing waits for it any more.
        """
        call, _ = self._call_of(task_token)
        call.heartbeat(details)

    def _call_of(self, task_token: str) -> tuple[ActivityCall, int]:
        """The call that waits under a token, and the number of the attempt it is of."""
        run_id, ref, attempt, _ = parse_token(task_token)
        call = self._world.call_of(run_id, ref)
        if call is None or not call.is_open(attempt):
            raise ActivityNotFoundError(f"no activity waits under the task token {task_token!r}")
        return call, attempt
