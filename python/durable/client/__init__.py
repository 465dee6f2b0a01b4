"""For those who start workflows and talk to them.

    async with Client.connect(dsn) as client:
        handle = await client.start(subscription, plan, id="sub-7")
        await handle.signal("pause")
        receipt = await handle.result()

Inside:

    client    `Client`: start, find, list
    handle    `WorkflowHandle`: everything about one run
    replica   a run rebuilt by replay in this process, to look at
    waiter    waiting for many results with one listener
"""

from durable.client.client import Client
from durable.client.handle import WorkflowHandle
from durable.client.replica import HistoryEvent

__all__ = ["Client", "HistoryEvent", "WorkflowHandle"]
