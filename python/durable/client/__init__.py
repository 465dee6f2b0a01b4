"""For those who start workflows and talk to them.

    async with Client.connect(dsn) as client:
        handle = await client.start(subscription, plan, id="sub-7")
        await handle.signal("pause")
        receipt = await handle.result()

Inside:

    client      `Client`: find, list; and from its bases
    starting    the calls that begin runs
    with_start  the calls that talk to a run, and start it when it is not there
    schedules   the calls for schedules, and `ScheduleHandle`
    completing  the calls for activities that others complete
    bulk        the calls about all open runs that fit a `RunFilter`
    filters     `RunFilter`: which runs those are
    listing     pages of runs, open and closed, the newest first
    connected   an open store, and what all calls share
    handle      `WorkflowHandle`: everything about one run
    answers     arguments of a message, and the answer to it
    forking     a run that goes on from a point of another's history
    sync        `SyncClient`: the same for code without asyncio
    portal      the thread and loop that it runs on
    replica     a run rebuilt by replay in this process, to look at
    grouping    starts that are asked for at the same time go together
    streams     the values that a run gives out, read one by one
    waiter      waiting for many results with one listener
    checks      ids and durations
"""

from durable.client.bulk import BulkResult
from durable.client.client import Client
from durable.client.filters import RunFilter
from durable.client.forking import ForkPlan
from durable.client.handle import WorkflowHandle
from durable.client.listing import RunPage
from durable.client.replica import HistoryEvent
from durable.client.schedules import ScheduleHandle
from durable.client.streams import StreamItem
from durable.client.sync import SyncClient, SyncScheduleHandle, SyncWorkflowHandle

__all__ = [
    "BulkResult",
    "Client",
    "ForkPlan",
    "HistoryEvent",
    "RunFilter",
    "RunPage",
    "ScheduleHandle",
    "StreamItem",
    "SyncClient",
    "SyncScheduleHandle",
    "SyncWorkflowHandle",
    "WorkflowHandle",
]
