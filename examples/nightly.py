"""Something every night, for ever: a loop that sleeps, works, and goes on as a new run.

Due times are computed from a date, so nothing drifts, and a night that was missed because
everything was down is caught up on. One bad night does not end the loop.
"""

from datetime import UTC, date, datetime, time, timedelta

from durable import ActivityError, RetryPolicy, activity, workflow

NIGHTS_PER_RUN = 30
"""Keeps each run's history short."""


@activity.defn(retry=RetryPolicy(max_attempts=5, initial_interval=60))
async def report(day: date) -> int:
    return day.day


@workflow.defn
async def nightly(first: date, last: date, failed: list[date]) -> list[date]:
    for number in range(NIGHTS_PER_RUN):
        day = first + timedelta(days=number)
        if day > last:
            return failed
        await workflow.sleep_until(datetime.combine(day, time(3), UTC))
        try:
            await report(day)
        except ActivityError:
            failed = [*failed, day]
    workflow.continue_as_new(first + timedelta(days=NIGHTS_PER_RUN), last, failed)
