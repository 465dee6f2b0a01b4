"""What `bench-replay` measures: for each workload, the sides that are measured in turn.

A side's ``prepare`` is called once and returns what is measured; that is called once per sample,
and what it returns is checked. A side with ``reports`` measures itself (another process, or a size
instead of a time): what it returns *is* the sample, in the row's unit. All others are timed by
pytest-benchmark; ``units`` are the activities, events, ... of one call, and ``scale`` turns seconds
per unit into the row's unit.
"""

import functools
import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import flows
from bench.peers.link import Peer
from bench.replay import bare
from bench.replay.histories import START_US, Recorded, many, record
from bench.report import Goal
from durable._core import verify
from durable.engine.execution import Execution
from durable.events import EventKind

OURS = "durable"
US = 1e6
FRESH_SECONDS_MAX = 300.0

folders: list[tempfile.TemporaryDirectory[str]] = []
"""With histories for fresh processes; to be removed at the end."""


@dataclass(frozen=True)
class Side:
    """One of those that are compared."""

    name: str
    units: float
    prepare: Callable[[], Callable[[], Any]]
    answer: Any = None
    """What every call must return; None where the call checks for itself."""
    samples: int = 7
    reports: bool = False


@dataclass(frozen=True)
class Workload:
    """One row of the table."""

    name: str
    unit: str
    sides: Sequence[Side]
    goals: Sequence[Goal] = ()
    scale: float = US
    rises: bool = False
    """The unit is a rate: units per second times ``scale``."""
    note: str = ""
    group: str = field(default="")
    """What ``--only`` also matches."""


@dataclass(frozen=True)
class Setting:
    """How much to measure."""

    quick: bool
    peers: bool

    @property
    def samples(self) -> int:
        """Of everything that takes well under a second."""
        return 5 if self.quick else 15


def replay_of(recorded: Recorded) -> Callable[[], Any]:
    """Rebuild it with the engine that users get; the workflow's return value."""

    def replay() -> Any:
        return answer_of(recorded.replay())

    return replay


def answer_of(execution: Execution) -> Any:
    """What the workflow returned, after checking that it did."""
    assert execution.is_finished
    assert execution._main is not None
    return execution._main.result()


class Temporal:
    """The Temporal process, shared by all workloads that ask for it."""

    peer: Peer | None = None

    @classmethod
    def sides(
        cls, setting: Setting, shape: str, count: int, many: int, units: float, scale: float
    ) -> list[Side]:
        """With and without its sandbox; ``units`` per replay, in the row's ``scale``."""
        if not setting.peers:
            return []

        def side(sandbox: bool) -> Side:
            def prepare() -> Callable[[], float]:
                def replay() -> float:
                    # Prepared for each sample: the other shapes share the process.
                    peer = cls.started()
                    peer.call("prepare", shape=shape, count=count, many=many)
                    seconds: float = peer.call("replay", sandbox=sandbox)
                    return seconds * scale / units

                return replay

            name = "temporal-sandbox" if sandbox else "temporal"
            return Side(name, units, prepare, samples=2 if setting.quick else 3, reports=True)

        return [side(False), side(True)]

    @classmethod
    def started(cls) -> Peer:
        """The process, warmed up."""
        if cls.peer is None:
            cls.peer = Peer("temporal")
            assert cls.peer.call("warm_up") == "checked"
        return cls.peer

    @classmethod
    def stop(cls) -> None:
        """End it, if it was started."""
        if cls.peer is not None:
            cls.peer.stop()
            cls.peer = None


def sequential(setting: Setting, count: int = 5000) -> Workload:
    """Cold replay of activities one after another."""
    kept = functools.cache(lambda: record(flows.steps, count))
    answer = flows.sum_below(count)
    samples = setting.samples
    # Temporal needs more than linear time: fewer activities are in its favour.
    theirs = 500 if setting.quick else count

    def core() -> Callable[[], Any]:
        run = kept()
        return lambda: bare.core_replay(flows.steps, run.run_id, count, run.batches, run.head_hash)

    return Workload(
        f"seq-{count}",
        "us/activity",
        [
            Side(OURS, count, lambda: replay_of(kept()), answer, samples),
            Side("core-alone", count, core, answer, samples),
            Side(
                "bare-asyncio",
                count,
                lambda: lambda: bare.suspending(flows.steps, count, "echo", bare.itself),
                answer,
                samples,
            ),
            Side(
                "ready-await",
                count,
                lambda: lambda: bare.ready(flows.steps, count, "echo", bare.itself),
                answer,
                samples,
            ),
            *Temporal.sides(setting, "steps", theirs, 1, theirs, US),
        ],
        goals=[Goal(peer="bare-asyncio", ratio=2), Goal(peer="temporal", ratio=1000)],
        note=f"temporal with {theirs} activities" if setting.peers and theirs != count else "",
    )


def parallel(setting: Setting, count: int = 5000) -> Workload:
    """Cold replay of activities that are gathered."""
    kept = functools.cache(lambda: record(flows.fan_out, count, per_batch=100))
    answer = flows.sum_below(count)

    def bare_side() -> Callable[[], Any]:
        return lambda: bare.suspending(flows.fan_out, count, "echo", bare.itself)

    return Workload(
        f"par-{count}",
        "us/activity",
        [
            Side(OURS, count, lambda: replay_of(kept()), answer, setting.samples),
            Side("bare-asyncio", count, bare_side, answer, setting.samples),
            *Temporal.sides(setting, "fan_out", count, 1, count, US),
        ],
        goals=[Goal(peer="bare-asyncio", ratio=1), Goal(peer="temporal", ratio=100)],
    )


def many_small(setting: Setting) -> Workload:
    """Many short histories with dataclasses."""
    runs, count = 1000, 10
    kept = functools.cache(lambda: many(flows.orders, count, runs))
    answer = [37.5 * count] * runs
    theirs = 50 if setting.quick else runs

    def ours() -> Callable[[], Any]:
        recorded = kept()
        return lambda: [answer_of(each.replay()) for each in recorded]

    def bare_side() -> Callable[[], Any]:
        charge = bare.decoding(flows.receipt_of(flows.order_of(0)))
        return lambda: [bare.suspending(flows.orders, count, "charge", charge) for _ in range(runs)]

    return Workload(
        f"many-{runs}x{count}",
        "us/history",
        [
            Side(OURS, runs, ours, answer, setting.samples),
            Side("bare-asyncio+decoding", runs, bare_side, answer, setting.samples),
            *Temporal.sides(setting, "orders", count, theirs, theirs, US),
        ],
        goals=[Goal(peer="bare-asyncio+decoding", ratio=1 / 1.5), Goal(peer="temporal", ratio=300)],
        note=f"temporal with {theirs} histories" if setting.peers and theirs != runs else "",
    )


def decoding(setting: Setting, name: str, workflow: Any, note: str, goal: bool) -> Workload:
    """Check a history of 50,000 events without making objects."""
    kept = functools.cache(lambda: record(workflow, 25_000))

    def prepare() -> Callable[[], Any]:
        run = kept()
        key = uuid.UUID(run.run_id).bytes
        return lambda: verify(key, run.batches, run.head_hash)

    size = kept().size
    return Workload(
        name,
        "GB/s",
        [Side(OURS, size, prepare, kept().event_count, setting.samples)],
        goals=[Goal(value=1)] if goal else (),
        scale=1e-9,
        rises=True,
        note=f"{size / 1e6:.2f} MB in {len(kept().batches)} batches, {note}",
        group="decode",
    )


def warm_step(setting: Setting) -> Workload:
    """One new result on a warm run: decode, step, encode, and sort out what follows."""
    steps = 2000

    def prepare() -> Callable[[], Any]:
        execution = record(flows.steps, 10**6, leave=10**6 - 3).replay()
        state = {"ref": execution.pending_activities()[0].ref, "us": START_US + 10**6}
        completed = int(EventKind.ACTIVITY_COMPLETED)

        def step_many() -> int:
            ref, now_us, taken = state["ref"], state["us"], 0
            for _ in range(steps):
                now_us += 1000
                execution.deliver(completed, ref, now_us, None, None, b"7")
                turn = execution.take()
                assert turn is not None
                ref = turn.scheduled[0].ref
                taken += turn.event_count
            state["ref"], state["us"] = ref, now_us
            return taken

        return step_many

    return Workload(
        "warm-step",
        "us/step",
        [Side(OURS, steps, prepare, 2 * steps, setting.samples)],
        goals=[Goal(value=3)],
        note="deliver + take",
    )


def growth(setting: Setting) -> list[Workload]:
    """Time per event at five lengths. The straight line is judged in the table's last row."""

    def one(events: int) -> Workload:
        count = events // 2 - 1
        kept = functools.cache(lambda: record(flows.steps, count))
        repeat = max(1, 2000 // events)

        def prepare() -> Callable[[], Any]:
            replay = replay_of(kept())
            return lambda: [replay() for _ in range(repeat)]

        side = Side(
            OURS, events * repeat, prepare, [flows.sum_below(count)] * repeat, setting.samples
        )
        return Workload(f"growth-{events}", "us/event", [side], group="growth")

    return [one(events) for events in (10, 100, 1000, 10_000, 100_000)]


def fresh(verb: str, *arguments: str) -> dict[str, float]:
    """What `bench.replay.fresh` measures in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.replay.fresh", verb, *arguments],
        capture_output=True,
        text=True,
        timeout=FRESH_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def in_fresh_process(
    name: str,
    unit: str,
    verb: str,
    run: Callable[[], Recorded],
    *,
    samples: int,
    goals: Sequence[Goal],
    note: str = "",
    group: str = "",
) -> Workload:
    """A workload whose every sample is a process."""

    def prepare() -> Callable[[], Any]:
        folder = tempfile.TemporaryDirectory(prefix="bench-")
        folders.append(folder)
        path = Path(folder.name) / "history"
        run().save(path)
        return lambda: fresh(verb, str(path))["value"]

    side = Side(OURS, 1, prepare, samples=samples, reports=True)
    return Workload(name, unit, [side], goals, note=note, group=group)


def workloads(setting: Setting) -> list[Workload]:
    """All of them, in the order of the table. Those with a database are in `bench.replay.load`."""
    samples = 3 if setting.quick else 7
    long_run = functools.cache(lambda: record(flows.steps, 25_000))
    long_text = functools.cache(lambda: record(flows.records, 25_000))
    idle = functools.cache(lambda: record(flows.steps, 6, leave=1))
    memory = [Goal(value=2)]
    return [
        sequential(setting),
        parallel(setting),
        many_small(setting),
        decoding(setting, "decode", flows.records, "results of 500 bytes", goal=True),
        decoding(setting, "decode-small", flows.steps, "results of 1 to 5 bytes", goal=False),
        in_fresh_process(
            "cold-50k",
            "ms",
            "cold_ms",
            long_run,
            samples=samples,
            goals=[Goal(value=100)],
            note="50,002 events, first replay of a new process",
        ),
        in_fresh_process(
            "cold-50k-memory",
            "x history",
            "cold_memory",
            long_text,
            samples=samples,
            goals=memory,
            note="peak RSS above the loaded batches; results of 500 bytes",
            group="cold-50k",
        ),
        in_fresh_process(
            "cold-50k-memory-small",
            "x history",
            "cold_memory",
            long_run,
            samples=samples,
            goals=memory,
            note="results of 1 to 5 bytes: a history of under 1 MB",
            group="cold-50k",
        ),
        warm_step(setting),
        *growth(setting),
        in_fresh_process(
            "idle-bytes",
            "bytes/run",
            "idle_bytes",
            idle,
            samples=samples,
            goals=[Goal(value=6 * 1024)],
            note="RSS of 4,000 warm runs with 11 events each, their batches included",
        ),
    ]
