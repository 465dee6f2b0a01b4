"""Polling a job that runs elsewhere, patiently, and cancelling it when nobody wants it any more.

One activity call is one question. The waits between them are durable timers, so a poll every ten
minutes for a week needs no process in between.
"""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from durable import NonRetryable, RetryPolicy, activity, workflow


@dataclass
class Status:
    state: str
    percent: int = 0


@activity.defn
async def submit(recipe: str) -> str:
    return f"job for {recipe}"


@activity.defn(start_to_close_timeout=30, retry=RetryPolicy(max_attempts=None))
async def ask(job: str) -> Status:
    return Status("done", 100)


@activity.defn
async def abort(job: str) -> None:
    """Stop the job; stopping what has ended is no error."""


@workflow.defn
async def render(recipe: str) -> str:
    job = await submit(recipe)
    pause = timedelta(seconds=10)
    try:
        while (status := await ask(job)).state == "running":
            workflow.set_vars(job=job, percent=status.percent)
            await workflow.sleep(pause)
            pause = min(pause * 2, timedelta(minutes=10))
    except asyncio.CancelledError:
        # Whoever cancels the run wants the job to stop too. This may wait: it is recorded.
        await abort(job)
        raise
    if status.state == "failed":
        raise NonRetryable(f"{job} failed at {status.percent} %")
    return job
