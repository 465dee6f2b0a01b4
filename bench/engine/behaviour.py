"""Behaviour: latency, fan-out, and whether others notice a storm of signals or timers.

Others are a `Probe`: workflows of one step in four lanes, by the same client, on the same workers.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import psycopg

from bench import flows
from bench.database import WorkMeter, cpu_seconds, peak_rss
from bench.engine.fleet import (
    DATABASE,
    RESULT_SECONDS_MAX,
    Probe,
    new_ids,
    percentile,
    serving,
    start_many,
)
from bench.engine.setting import Setting
from bench.report import ROOT, Goal, Row, number, progress
from durable.client import Client

SIGNALS_PER_SECOND = 10_000
START_CHUNK = 2000
WARM_UP = 50
FAN_OUT_SECONDS_MAX = 30.0


def probe(client: Client) -> Probe:
    """The others."""
    return Probe(client, flows.steps, (1,), 0)


async def latency(setting: Setting) -> list[Row]:
    """`latency-1`: from start to result, one workflow at a time on an idle fleet."""
    count = 100 if setting.quick else 500
    taken: dict[str, list[list[float]]] = {"durable": [], "absurd": [], "dbos": []}
    peers: list[Any] = []
    if setting.peers:
        peers = [setting.peer("absurd")[0], setting.peer("dbos")[0]]
    for _ in setting.in_time(setting.rounds_of_long):
        async with serving(setting) as (_, client):
            lane = Probe(client, flows.steps, (1,), 0, lanes=1)
            await lane.run_times(WARM_UP + count)
            taken["durable"].append(lane.seconds[WARM_UP:])
        for peer in peers:
            if peer.module == "absurd":
                peer.call("start", processes=1, connections=1)
            taken[peer.module].append(peer.call("latency", steps=1, count=count // 2))
            peer.call("stop")
        progress(f"latency-1: {number(1e3 * percentile(taken['durable'][-1], 50))} ms")
    rows = []
    for name, percent, goal in (("p50", 50.0, 2.0), ("p99", 99.0, 5.0)):
        sides = {
            side: [1e3 * percentile(sample, percent) for sample in samples]
            for side, samples in taken.items()
            if samples
        }
        ours = sides.pop("durable")
        row = Row(f"latency-1-{name}", "ms", ours, peers=sides, goals=[Goal(value=goal)])
        row.note = f"{count} workflows a round; dbos in one process, absurd by the server's clock"
        rows.append(row)
    return rows


async def fan_out(setting: Setting) -> list[Row]:
    """`fanout-10k`: one workflow with 10,000 activities at once."""
    count = 10_000
    rates, memory = [], []
    for _ in setting.in_time(setting.rounds_of_long):
        async with serving(setting) as (fleet, client):
            await (await client.start(flows.fan_out, 10, id=new_ids(1)[0])).result(60)
            before = peak_rss(fleet.pid)
            begin = time.perf_counter()
            handle = await client.start(flows.fan_out, count, id=new_ids(1)[0])
            assert await handle.result(FAN_OUT_SECONDS_MAX) == flows.sum_below(count)
            rates.append(count / (time.perf_counter() - begin))
            memory.append((peak_rss(fleet.pid) - before) / 2**20)
        progress(f"fanout-10k: {number(rates[-1])} activities/s")
    return [
        Row("fanout-10k", "activities/s", rates, rises=True, goals=[Goal(value=10_000)]),
        Row("fanout-10k-memory", "MB", memory, note="growth of the largest worker's peak"),
    ]


async def idle_fleet(setting: Setting) -> list[Row]:
    """`idle-fleet`: four workers with nothing to do."""
    settle, watch = (8.0, 6.0) if setting.quick else (20.0, 30.0)
    async with serving(setting, 4) as (fleet, client):
        await start_many(client, flows.steps, 100, 1)
        await asyncio.sleep(settle)
        pids = fleet.pid, setting.database.server.pid or 0
        work = WorkMeter(setting.database, DATABASE)
        before = [cpu_seconds(pid) for pid in pids]
        begin = time.perf_counter()
        await asyncio.sleep(watch)
        elapsed = time.perf_counter() - begin
        ours, postgres = (
            100 * (cpu_seconds(pid) - was) / elapsed for pid, was in zip(pids, before, strict=True)
        )
        done = work.stop()
        for calls, _, _, text in work.top(5):
            progress(f"idle-fleet: {calls:6d} calls since the start: {text}")
    return [
        Row("idle-fleet", "queries/s", [done.statements / elapsed], goals=[Goal(value=2)]),
        Row(
            "idle-fleet-cpu",
            "% of a core",
            [ours],
            goals=[Goal(value=1)],
            note=f"supervisor and 4 workers; PostgreSQL besides: {postgres:.2f} %",
        ),
    ]


async def storm(dsn: str, run_id: str, count: int) -> asyncio.subprocess.Process:
    """A process that is ready to send signals."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.engine.storm", run_id, str(count), str(SIGNALS_PER_SECOND)),
        cwd=ROOT,
        env=os.environ | {"DURABLE_DSN": dsn, "PYTHONPATH": os.pathsep.join(["python", "."])},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n", "the sender of signals does not start"
    return process


async def one_storm(setting: Setting, count: int) -> tuple[float, float, float]:
    """Others' p99 in quiet and during the storm, in seconds, and the rate of signals."""
    async with serving(setting) as (_, client):
        others = probe(client)
        await others.run_for(1)
        quiet = percentile(await others.run_for(2 if setting.quick else 5), 99)
        handle = await client.start(flows.collect, count, id=new_ids(1)[0])
        sender = await storm(setting.database.dsn(DATABASE), handle.run_id or "", count)
        receiving = asyncio.create_task(handle.result(RESULT_SECONDS_MAX))
        others.seconds.clear()
        sending = asyncio.create_task(sender.communicate(b"go\n"))
        await others.run(lambda: receiving.done() or bool(sender.returncode))
        assert not sender.returncode, "the sender of signals failed"
        assert await receiving == flows.sum_below(count)
        return quiet, percentile(others.seconds, 99), float((await sending)[0])


async def signal_storm(setting: Setting) -> list[Row]:
    """`signal-storm`: 10,000 signals per second into one run while others work."""
    count = SIGNALS_PER_SECOND * (2 if setting.quick else 5)
    ratios, rates, quiet_ms = [], [], []
    for _ in setting.in_time(setting.rounds_of_long):
        quiet, stormy, rate = await one_storm(setting, count)
        ratios.append(stormy / quiet)
        rates.append(rate)
        quiet_ms.append(1e3 * quiet)
        progress(f"signal-storm: others' p99 {number(ratios[-1])}x at {number(rate)} signals/s")
    note = f"p99 in quiet {number(percentile(quiet_ms, 50))} ms"
    return [
        Row("signal-storm", "x p99 of others", ratios, goals=[Goal(value=2)], note=note),
        Row("signal-storm-rate", "signals/s", rates, rises=True),
    ]


@contextlib.asynccontextmanager
async def counting(dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """A connection to look at our tables with."""
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    try:
        yield connection
    finally:
        await connection.close()


async def has_naps(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether there are naps that have not ended. Not how many: counting them twenty times a second
    would take the server's time from those whose latency is measured."""
    cursor = await connection.execute(
        "select exists (select from durable.run where workflow_type = 'nap')"
    )
    row = await cursor.fetchone()
    return bool(row and row[0])


async def timers(setting: Setting) -> list[Row]:
    """`timers-100k`: 100,000 sleeping runs that are due in the same instant."""
    count = 10_000 if setting.quick else 100_000
    async with serving(setting) as (_, client), counting(setting.database.dsn(DATABASE)) as look:
        others = probe(client)
        await others.run_for(1)
        begin = time.perf_counter()
        due_us = await client.store.now_us() + round(1e6 * (10 + count / 1500))
        handles = []
        for _ in range(0, count, START_CHUNK):
            handles += await start_many(client, flows.nap, START_CHUNK, due_us)
        started = count / (time.perf_counter() - begin)
        progress(f"timers: {count} runs started at {number(started)}/s")
        left = due_us / 1e6 - await client.store.now_us() / 1e6
        assert left > 3, "the runs were not started in time; the machine is too slow for this"
        await asyncio.sleep(left / 2)
        quiet = percentile(await others.run_for(max(1.0, left / 2 - 1.5)), 99)
        await asyncio.sleep(max(0.0, (due_us - await client.store.now_us()) / 1e6))
        begin = time.perf_counter()
        drained = asyncio.create_task(wait_for_no_naps(look))
        others.seconds.clear()
        await others.run(drained.done)
        await drained
        elapsed = time.perf_counter() - begin
        for handle in handles[:: count // 100]:
            assert await handle.result(60) == due_us
    name = f"timers-{count // 1000}k"
    ratio = percentile(others.seconds, 99) / quiet
    return [
        Row(name, "timers/s", [count / elapsed], rises=True, note="due to last run closed"),
        Row(
            f"{name}-others",
            "x p99 of others",
            [ratio],
            goals=[Goal(value=2)],
            note=f"p99 in quiet {number(1e3 * quiet)} ms",
        ),
    ]


async def wait_for_no_naps(connection: psycopg.AsyncConnection[Any]) -> None:
    """Until the last nap has ended."""
    async with asyncio.timeout(RESULT_SECONDS_MAX):
        while await has_naps(connection):
            await asyncio.sleep(0.05)
