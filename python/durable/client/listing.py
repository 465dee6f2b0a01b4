"""Listing: runs, open and closed, the newest first, a page at a time."""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from durable.client.connected import ConnectedClient
from durable.client.filters import RunFilter, listed_runs
from durable.errors import InvalidArgumentError
from durable.events import RunView
from durable.store.pages import Place

LIST_RUNS = 100
LIST_RUNS_MAX = 10_000
TIME_US_MAX = 1 << 62


class RunPage(list[RunView]):
    """Runs, the newest first, and where the next page begins."""

    def __init__(self, views: Sequence[RunView], cursor: str | None) -> None:
        super().__init__(views)
        self.cursor = cursor
        """For the next page (``cursor=``); None when there are no more."""


class ListingClient(ConnectedClient):
    """The calls that list runs."""

    async def list(
        self,
        *,
        workflow_type: str | None = None,
        states: Sequence[int] = (),
        search: Mapping[str, Any] | None = None,
        queue: str | None = None,
        id_prefix: str | None = None,
        ids: Sequence[str] | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        closed_after: datetime | None = None,
        closed_before: datetime | None = None,
        limit: int = LIST_RUNS,
        cursor: str | None = None,
    ) -> RunPage:
        """Runs that fit all that is given, the newest first, without their results.

        ``search`` leaves those that have all these search attributes: equal, or for a list at
        least these elements. ``started_after`` and ``closed_after`` are times with a zone, and
        include that moment; the ``..._before`` do not. ``id_prefix`` is what the workflow id
        begins with, ``ids`` are at most 10,000 workflow ids. At most ``limit`` (up to 10,000) are
        listed; the next page is that with the ``cursor`` of this one and the same filter: whatever
        starts, closes or is dropped by retention meanwhile, a run that was there all the time is in
        one page.

        Search attributes, ids, times of closing and the newest runs are found by an index. What
        else few of many runs have is looked for from the newest on, until there are ``limit``.
        Raises InvalidArgumentError for what no run can have, and for a cursor of something else.
        """
        if not 1 <= limit <= LIST_RUNS_MAX:
            raise InvalidArgumentError(f"limit must be 1 to {LIST_RUNS_MAX:,}, not {limit!r}")
        wanted = RunFilter(
            workflow_type=workflow_type,
            states=states,
            queue=queue,
            id_prefix=id_prefix,
            search=search,
            started_after=started_after,
            started_before=started_before,
            closed_after=closed_after,
            closed_before=closed_before,
            ids=ids,
        )
        before = None if cursor is None else place_of(cursor)
        views = await self.store.views(listed_runs(wanted, self.codec), before=before, limit=limit)
        return RunPage(views, cursor_of(views[-1]) if len(views) == limit else None)

    async def list_all(self, **wanted: Any) -> AsyncIterator[RunView]:
        """Every run that fits, the newest first, page by page; the arguments are those of `list`.

        Runs that start after the first page are not among them.
        """
        cursor = wanted.pop("cursor", None)
        while True:
            page = await self.list(cursor=cursor, **wanted)
            for view in page:
                yield view
            cursor = page.cursor
            if cursor is None:
                return


def cursor_of(view: RunView) -> str:
    """The cursor of a page that ends with this run."""
    text = f"{view.created_us} {uuid.UUID(view.run_id).hex}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def place_of(cursor: str) -> Place:
    """Undo `cursor_of`; raise InvalidArgumentError for anything else."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        created, run_id = base64.urlsafe_b64decode(padded.encode()).decode().split(" ")
        place = int(created), str(uuid.UUID(run_id))
    except (AttributeError, TypeError, ValueError, binascii.Error):
        raise InvalidArgumentError(f"this is no cursor of a page of runs: {cursor!r}") from None
    if not 0 <= place[0] < TIME_US_MAX:
        raise InvalidArgumentError(f"this is no cursor of a page of runs: {cursor!r}")
    return place
