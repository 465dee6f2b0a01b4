"""Workflows that talk to each other: bidders send signals to an auction, the auction answers.

Each side is a run of its own, on any worker. A signal is delivered once, in order, and kept until
its receiver looks.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from durable import WorkflowNotFoundError, workflow

OPEN_FOR = timedelta(minutes=10)


@dataclass
class Bid:
    bidder: str
    cents: int


@workflow.defn
async def auction(item: str) -> Bid | None:
    bids = workflow.signal_channel("bid", Bid)
    best: Bid | None = None
    try:
        async with asyncio.timeout(OPEN_FOR.total_seconds()):
            async for bid in bids:
                if best is not None and bid.cents <= best.cents:
                    await workflow.signal_external(bid.bidder, "outbid", best.cents)
                    continue
                if best is not None:
                    await workflow.signal_external(best.bidder, "outbid", bid.cents)
                best = bid
                workflow.set_vars(item=item, best=bid.cents)
    except TimeoutError:
        pass
    if best is not None:
        await workflow.signal_external(best.bidder, "won", item)
    return best


@workflow.defn
async def bidder(auction_id: str, start: int, limit: int) -> str:
    """Bids one more than the others, up to its limit."""
    me, offer = workflow.info().workflow_id, start
    outbid = workflow.signal_channel("outbid", int)
    won = asyncio.create_task(workflow.wait_signal("won", str))
    while offer <= limit:
        try:
            await workflow.signal_external(auction_id, "bid", Bid(me, offer))
        except WorkflowNotFoundError:
            break
        beaten = asyncio.create_task(outbid.receive())
        await asyncio.wait([won, beaten], return_when=asyncio.FIRST_COMPLETED)
        if won.done():
            beaten.cancel()
            return f"won {won.result()} for {offer}"
        offer = beaten.result() + 1
    won.cancel()
    return "gave up"
