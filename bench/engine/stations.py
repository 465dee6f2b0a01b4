"""`python -m bench.engine.stations`: where the time from a start to its result goes.

One workflow of one step at a time on an idle fleet, as in `latency-1`, with a server that logs
each statement: when it ended and how long it took. The log's clock has milliseconds, so times
between stations are means over many starts, whose rounding cancels out; logging itself costs a
little. What is not in a statement is on the way to the next one: the commit's wait for the disk,
hints, the network, and Python in the process that sends and in those that are woken.
"""

import asyncio
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from bench import flows
from bench.database import Database
from bench.engine.fleet import DATABASE, Fleet, Probe, percentile
from bench.report import RESULTS
from durable.client import Client

WARM_UP = 50
LINE = re.compile(r"^(\d+\.\d+) (\S+) LOG:  duration: (\d+\.\d+) ms  (bind|execute) [^:]*: (.*)$")
STATIONS = {
    "start": "start_run(",
    "claim": "claim_runs(",
    "commit and close": "close_run(",
    "result": "closed_views(",
}
"""What is passed, in order, and what its statement has in it."""


@dataclass
class Statement:
    """One that has ended."""

    ended: float
    """In seconds since the epoch, to the millisecond."""
    seconds: float
    text: str


def statements(log: Path) -> Iterator[Statement]:
    """Those that the log tells of, in order; a text may go over many lines.

    What a connection took to bind, which is also to plan, counts for the statement it then runs.
    """
    current: Statement | None = None
    bound: dict[str, float] = {}
    for line in log.read_text(errors="replace").splitlines():
        if found := LINE.match(line):
            if current is not None:
                yield current
                current = None
            seconds = float(found[3]) / 1e3
            if found[4] == "bind":
                bound[found[2]] = seconds
            else:
                seconds += bound.pop(found[2], 0.0)
                current = Statement(float(found[1]), seconds, found[5])
        elif current is not None and not re.match(r"^\d+\.\d+ ", line):
            current.text += line
    if current is not None:
        yield current


def passages(found: list[Statement]) -> list[list[Statement]]:
    """For each start the statements of its stations; without starts that something came between."""
    begins = [n for n, each in enumerate(found) if STATIONS["start"] in each.text]
    passed = []
    for begin, end in zip(begins, [*begins[1:], len(found)], strict=True):
        rest = iter(found[begin:end])
        way = [next((s for s in rest if part in s.text), None) for part in STATIONS.values()]
        if all(way):
            passed.append([each for each in way if each is not None])
    return passed


async def follow(database: Database, count: int) -> tuple[list[float], list[Statement]]:
    """Times from start to result, and what the server logged meanwhile."""
    dsn = database.create_ours(DATABASE)
    database.execute("alter system set log_line_prefix = '%n %c '")
    database.execute("select pg_reload_conf()")
    database.execute(f"alter database {DATABASE} set log_min_duration_statement = 0")
    fleet = Fleet(dsn, 2)
    try:
        await fleet.ready()
        async with Client.connect(dsn) as client:
            lane = Probe(client, flows.steps, (1,), 0, lanes=1)
            await lane.run_times(WARM_UP + count)
    finally:
        fleet.stop()
    log = database.folder / "data" / "server.log"
    return lane.seconds[WARM_UP:], list(statements(log))


def table(seconds: list[float], passed: list[list[Statement]]) -> str:
    """What each station took, in milliseconds."""
    lines = [f"{'station':<18}{'on the way':>12}{'in the server':>15}"]
    ways = [0.0] * len(STATIONS)
    for n in range(1, len(STATIONS)):
        gaps = [way[n].ended - way[n - 1].ended - way[n].seconds for way in passed]
        ways[n] = statistics.fmean(gaps)
    took = [statistics.fmean(way[n].seconds for way in passed) for n in range(len(STATIONS))]
    inside = statistics.fmean(way[-1].ended - way[0].ended for way in passed) + took[0]
    total = statistics.fmean(seconds)
    for n, name in enumerate(STATIONS):
        shown = f"{1e3 * ways[n]:12.2f}" if n else f"{'':12}"
        lines.append(f"{name:<18}{shown}{1e3 * took[n]:15.2f}")
    lines.append(f"{'client, both ends':<18}{1e3 * (total - inside):12.2f}")
    lines.append(
        f"\n{len(passed)} starts: mean {1e3 * total:.2f} ms, "
        f"p50 {1e3 * percentile(seconds, 50):.2f}, p99 {1e3 * percentile(seconds, 99):.2f}"
    )
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--count", type=click.IntRange(10), default=1000, show_default=True)
def main(count: int) -> None:
    """Print where the time from a start to its result goes."""
    with Database() as database:
        seconds, found = asyncio.run(follow(database, count))
    text = table(seconds, passages(found)[WARM_UP:])
    (RESULTS / "latency-1-stations.txt").write_text(text)
    click.echo(text, nl=False)


if __name__ == "__main__":
    main()
