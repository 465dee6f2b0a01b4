"""Throughput: steps-10, steps-100, wf-1, wf-0, what they cost, and scaling.

A sample of ours of `steps-*`: a fleet is up, a client keeps workflows in flight (with `start_many`
and `result`) until a given number is done; the time is from the first start to the last result. Of
`wf-*`, like the peers': a client enqueues them before, and only the draining is timed, from the
commit that shows them to the fleet; `wf-*-live` is the same as for `steps-*`. The peers in the
set-up that is fastest for them: DBOS starts its workflows in the processes that run them (for
`wf-*` a client enqueues and only the draining is timed); Absurd's tasks are all spawned before, and
only the draining is timed. All answers are checked.
"""

import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import flows
from bench.database import WorkMeter, cpu_seconds
from bench.engine import profiles
from bench.engine.fleet import DATABASE, Fleet, drain, keep_in_flight, serving
from bench.engine.setting import Setting
from bench.report import RESULTS, Goal, Row, number, progress
from durable.client import Client

ABSURD_CONNECTIONS = 4
"""Per process; more gain nothing on two cores."""
GUESS = {"durable": 3000.0, "absurd": 600.0, "dbos": 200.0}
"""Workflows per second of one step, to begin with; the first sample corrects it."""
LEAST = 20


@dataclass(frozen=True)
class Sample:
    """One measurement: a rate, and what each unit (step, or workflow without steps) cost."""

    rate: float
    cpu_workers_us: float
    cpu_client_us: float
    cpu_postgres_us: float
    wal_bytes: float
    statements: float
    transactions: float


class Costs:
    """Reads CPU and server work around a sample."""

    def __init__(self, setting: Setting, database: str, pid: int) -> None:
        setting.database.checkpoint()
        self.pids = pid, setting.database.server.pid or 0
        self.before = self.cpu()
        self.work = WorkMeter(setting.database, database)

    def cpu(self) -> tuple[float, float, float]:
        """Of workers, PostgreSQL, and this process."""
        own = os.times()
        return (*(cpu_seconds(pid) for pid in self.pids), own.user + own.system)  # type: ignore[return-value]

    def sample(self, units: int, seconds: float) -> Sample:
        """The sample that ends now."""
        workers, postgres, client = (
            1e6 * (after - before) / units
            for after, before in zip(self.cpu(), self.before, strict=True)
        )
        work = self.work.stop()
        return Sample(
            rate=units / seconds,
            cpu_workers_us=workers,
            cpu_client_us=client,
            cpu_postgres_us=postgres,
            wal_bytes=work.wal_bytes / units,
            statements=work.statements / units,
            transactions=work.transactions / units,
        )


class Side:
    """One system: makes samples of a program of ``steps`` steps, and learns how many fit."""

    def __init__(self, name: str, setting: Setting, steps: int) -> None:
        self.name = name
        self.setting = setting
        self.steps = steps
        self.rate = GUESS[name] / max(1, steps) ** 0.9
        """Workflows per second."""
        self.samples: list[Sample] = []

    @property
    def count(self) -> int:
        """Workflows in the next sample."""
        fitting = max(LEAST, int(self.rate * self.setting.seconds))
        return fitting - fitting % self.setting.processes

    def add(self, sample: Sample) -> None:
        """Keep a sample."""
        self.rate = sample.rate / max(1, self.steps)
        self.samples.append(sample)


class Ours(Side):
    """durable."""

    def __init__(self, setting: Setting, steps: int, processes: int | None = None) -> None:
        super().__init__("durable", setting, steps)
        self.processes = processes or setting.processes

    async def measure(self) -> None:
        """One sample, with a fleet of its own."""
        async with serving(self.setting, self.processes) as (fleet, client):
            if not self.samples:
                # The first sample of all finds out how many workflows fit into the time.
                self.rate = max(self.rate / 4, LEAST)
                self.rate = await self.run(client, self.count)
            else:
                await self.run(client, min(self.count, 4 * self.setting.in_flight))
            await self.measure_on(fleet, client)

    async def measure_on(self, fleet: Fleet, client: Client) -> None:
        """One sample on a fleet that is warm."""
        costs, count = Costs(self.setting, DATABASE, fleet.pid), self.count
        rate = await self.run(client, count)
        self.add(costs.sample(count * max(1, self.steps), count / rate))

    async def run(self, client: Client, count: int) -> float:
        """Run so many; workflows per second."""
        answer = flows.sum_below(self.steps)
        seconds = await keep_in_flight(
            client, flows.steps, (self.steps,), answer, count, self.setting.in_flight
        )
        return count / seconds


class OursDrained(Ours):
    """durable, workflows enqueued before, then drained."""

    async def measure_on(self, fleet: Fleet, client: Client) -> None:
        """One sample on a fleet that is warm."""
        costs: list[Costs] = []
        count = self.count
        seconds = await drain(
            client,
            self.setting.database.dsn(DATABASE),
            flows.steps,
            (self.steps,),
            flows.sum_below(self.steps),
            count,
            lambda: costs.append(Costs(self.setting, DATABASE, fleet.pid)),
        )
        self.add(costs[0].sample(count * max(1, self.steps), seconds))


class Absurd(Side):
    """Absurd, tasks spawned before, then drained."""

    def __init__(self, setting: Setting, steps: int) -> None:
        super().__init__("absurd", setting, steps)
        self.peer, self.database = setting.peer("absurd")

    async def measure(self) -> None:
        """One sample."""
        count = self.count
        self.peer.call("enqueue", steps=self.steps, count=count)
        processes = self.setting.processes
        self.peer.call("start", processes=processes, connections=ABSURD_CONNECTIONS, go=False)
        costs = Costs(self.setting, self.database, self.peer.pid)
        seconds = self.peer.call("drain", steps=self.steps, count=count)
        self.add(costs.sample(count * max(1, self.steps), seconds))


class Dbos(Side):
    """DBOS: started where they run, or (``queue``) enqueued by a client and drained."""

    def __init__(self, setting: Setting, steps: int, *, queue: bool) -> None:
        super().__init__("dbos", setting, steps)
        self.queue = queue
        self.peer, self.database = setting.peer("dbos", queue=queue)

    async def measure(self) -> None:
        """One sample."""
        count, processes = self.count, self.setting.processes
        if self.queue:
            self.peer.call("enqueue", steps=self.steps, count=count)
        else:
            self.peer.call("start", processes=processes)
        costs = Costs(self.setting, self.database, self.peer.pid)
        if self.queue:
            seconds = self.peer.call("drain", steps=self.steps, count=count, processes=processes)
        else:
            seconds = self.peer.call("run", steps=self.steps, count=count)
        self.add(costs.sample(count * max(1, self.steps), seconds))
        if not self.queue:
            self.peer.call("stop")


def make_sides(setting: Setting, steps: int, *, queue: bool) -> list[Any]:
    """Ours, and the peers if they are wanted."""
    sides: list[Any] = [OursDrained(setting, steps) if queue else Ours(setting, steps)]
    if setting.peers:
        sides += [Absurd(setting, steps), Dbos(setting, steps, queue=queue)]
    return sides


async def in_rounds(setting: Setting, name: str, sides: list[Any]) -> None:
    """All sides in turn, as often as there are rounds."""
    for number_of_round in setting.in_time(setting.rounds):
        for side in sides:
            await side.measure()
            rate, turn = side.samples[-1].rate, number_of_round + 1
            progress(f"{name}: round {turn}/{setting.rounds}: {side.name} {number(rate)}/s")


def rows_of(
    name: str, unit: str, sides: list[Any], goals: list[Goal], get: Callable[[Sample], float]
) -> Row:
    """A row from one field of all samples."""
    ours, *others = sides
    return Row(
        name,
        unit,
        [get(sample) for sample in ours.samples],
        rises=unit.endswith("/s"),
        peers={side.name: [get(sample) for sample in side.samples] for side in others},
        goals=goals,
    )


def cost_note(samples: list[Sample]) -> str:
    """CPU per unit of the last sample."""
    last = samples[-1]
    return (
        f"CPU us: workers {last.cpu_workers_us:.0f}, PostgreSQL {last.cpu_postgres_us:.0f}, "
        f"client {last.cpu_client_us:.0f}"
    )


def throughput(
    name: str, steps: int, unit: str, goals: list[Goal], *, queue: bool = False
) -> Callable[[Setting], Awaitable[list[Row]]]:
    """A workload that measures rates."""

    async def measure(setting: Setting) -> list[Row]:
        sides = make_sides(setting, steps, queue=queue)
        await in_rounds(setting, name, sides)
        row = rows_of(name, unit, sides, goals, lambda sample: sample.rate)
        row.note = cost_note(sides[0].samples)
        rows = [row]
        if queue:
            rows.append(await live(setting, name, steps, unit))
        if name == "steps-10":
            rows += costs_of(sides)
        return rows

    return measure


async def live(setting: Setting, name: str, steps: int, unit: str) -> Row:
    """The same from the first start to the last result in a client's hands; ours alone."""
    side = Ours(setting, steps)
    await in_rounds(setting, f"{name}-live", [side])
    row = rows_of(f"{name}-live", unit, [side], [], lambda sample: sample.rate)
    row.note = cost_note(side.samples)
    return row


def costs_of(sides: list[Any]) -> list[Row]:
    """What a step of `steps-10` costs the server, and everybody's CPU."""
    best = [Goal(peer=side.name, ratio=3) for side in sides[1:]]
    per_step: Callable[[Sample], float] = lambda sample: sample.statements  # noqa: E731
    return [
        rows_of("wal-per-step", "bytes/step", sides, best, lambda sample: sample.wal_bytes),
        rows_of("statements-per-step", "statements/step", sides, [Goal(value=0.1)], per_step),
        rows_of("commits-per-step", "commits/step", sides, [], lambda sample: sample.transactions),
        rows_of(
            "cpu-per-step",
            "us/step",
            sides,
            [],
            lambda sample: sample.cpu_workers_us + sample.cpu_client_us + sample.cpu_postgres_us,
        ),
    ]


async def scaling(setting: Setting) -> list[Row]:
    """`steps-10` with one, two and four worker processes; what its CPU is used for."""
    sides = {count: Ours(setting, 10, count) for count in (1, 2, 4)}
    for _ in setting.in_time(setting.rounds_of_long):
        for count, side in sides.items():
            await side.measure()
            progress(f"scaling: {count} processes: {number(side.samples[-1].rate)}/s")
    rows = [
        Row(
            f"scaling-{count}",
            "steps/s",
            [sample.rate for sample in side.samples],
            rises=True,
            note=cost_note(side.samples),
        )
        for count, side in sides.items()
    ]
    if setting.profile is None:
        rows += await split_of_cpu(setting, sides[2].samples)
    return rows


async def split_of_cpu(setting: Setting, samples: list[Sample]) -> list[Row]:
    """CPU of a step by part: of the processes as measured; within the workers by a profile.

    The profile is of a run of its own, since it costs time; only its shares are used.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "profile"
        profiled = replace(setting, profile=path, seconds=min(setting.seconds, 3.0))
        await Ours(profiled, 10, 2).measure()
        profile = profiles.read(path)
        (RESULTS / "steps-10-profile.txt").write_text(profiles.text_of(profile))
    shares = profiles.groups_of(profile)
    progress("scaling: top: " + "; ".join(profiles.top_of(profile, 5)))
    rows = [
        Row(
            f"cpu-{group}",
            "us/step",
            [share * sample.cpu_workers_us for sample in samples],
            note=note,
        )
        for group, (share, note) in shares.items()
    ]
    rows.append(Row("cpu-postgresql", "us/step", [each.cpu_postgres_us for each in samples]))
    rows.append(Row("cpu-client", "us/step", [each.cpu_client_us for each in samples]))
    return rows
