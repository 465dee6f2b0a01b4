"""Signals under every weather: each is taken once, in order, whoever is cancelled or times out."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.memory_run import MemoryRun

from durable import workflow

RECEIVERS = 3
FACTS = st.lists(
    st.one_of(
        st.tuples(st.just("signal")),
        st.tuples(st.just("timer")),
        st.tuples(st.just("cancel"), st.integers(0, RECEIVERS - 1)),
        st.tuples(st.just("restart"), st.integers(0, RECEIVERS - 1)),
        st.tuples(st.just("handler"), st.booleans()),
    ),
    max_size=25,
)


@workflow.defn
async def juggling(timeouts: list[float]) -> list[list[int]]:
    channel = workflow.signal_channel("ball", int)
    taken: list[int] = []

    async def receiver(limit: float) -> None:
        while True:
            try:
                taken.append(await channel.receive(limit or None))
            except TimeoutError:
                await workflow.sleep(1)

    tasks = [asyncio.create_task(receiver(each)) for each in timeouts]

    def cancel(index: int) -> None:
        tasks[index].cancel()

    def restart(index: int) -> None:
        tasks[index].cancel()
        tasks[index] = asyncio.create_task(receiver(timeouts[index]))

    def handler(is_on: bool) -> None:
        mailbox = channel._mailbox
        mailbox.handle(None)
        if is_on:
            workflow.on_signal("ball", taken.append)

    workflow.on_signal("cancel", cancel)
    workflow.on_signal("restart", restart)
    workflow.on_signal("handler", handler)
    await workflow.wait_signal("end")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    channel._mailbox.handle(None)
    left = [channel.receive_nowait() for _ in range(len(channel))]
    return [taken, left]


@settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    timeouts=st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=RECEIVERS, max_size=RECEIVERS),
    facts=FACTS,
)
def test_no_signal_is_lost_doubled_or_overtaken(
    timeouts: list[float], facts: list[tuple[Any, ...]]
) -> None:
    run = MemoryRun(juggling, timeouts)
    sent = 0
    for kind, *args in facts:
        if kind == "signal":
            run.signal("ball", sent)
            sent += 1
        elif kind == "timer":
            if run.execution.pending_timers():
                run.fire()
        else:
            run.signal(kind, *args)
    run.signal("end")
    taken, left = run.result
    assert taken + left == list(range(sent))
    run.check_replays()
