"""`python -m bench.engine`: measure the engine and print the table (bench/README.md)."""

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import click

from bench.database import Database
from bench.engine import behaviour, profiles
from bench.engine.churn import churn
from bench.engine.claim import claim
from bench.engine.setting import Setting
from bench.engine.throughput import scaling, throughput
from bench.peers import link
from bench.report import Goal, Row, finish, progress

TEN_TIMES = [Goal(peer="absurd", ratio=10), Goal(peer="dbos", ratio=10)]
SEVEN_TIMES = [Goal(peer="absurd", ratio=7), Goal(peer="dbos", ratio=7)]
SIX_TIMES = [Goal(peer="absurd", ratio=6), Goal(peer="dbos", ratio=6)]

Workload = Callable[[Setting], Awaitable[list[Row]]]
WORKLOADS: dict[str, Workload] = {
    "steps-10": throughput("steps-10", 10, "steps/s", [Goal(value=15_000), *TEN_TIMES]),
    "steps-100": throughput("steps-100", 100, "steps/s", TEN_TIMES),
    "wf-1": throughput("wf-1", 1, "workflows/s", [Goal(value=6000), *SEVEN_TIMES], queue=True),
    "wf-0": throughput("wf-0", 0, "workflows/s", [Goal(value=10_000), *SIX_TIMES], queue=True),
    "fanout-10k": behaviour.fan_out,
    "latency-1": behaviour.latency,
    "claim": claim,
    "churn": churn,
    "signal-storm": behaviour.signal_storm,
    "timers-100k": behaviour.timers,
    "idle-fleet": behaviour.idle_fleet,
    "scaling": scaling,
}
SECONDS = {
    "steps-10": (190, 25),
    "steps-100": (160, 8),
    "wf-1": (260, 35),
    "wf-0": (220, 10),
    "fanout-10k": (50, 6),
    "latency-1": (110, 15),
    "claim": (300, 20),
    "churn": (30, 10),
    "signal-storm": (90, 10),
    "timers-100k": (150, 18),
    "idle-fleet": (60, 18),
    "scaling": (150, 15),
}
"""What each may take, in full and with --quick: after that it begins no further round. Together
under half an hour, and three minutes."""
assert SECONDS.keys() == WORKLOADS.keys()
OVERRUN = 3.0
"""A workload that takes so many times longer is given up."""
QUICK_WITHOUT_PEERS = {"steps-100", "wf-0"}
"""Peers take most of the time; a quick run compares where it says most."""


def settings_line(database: Database) -> str:
    """What decides durability, and what was set."""
    return ", ".join(f"{name}={value}" for name, value in database.settings().items())


def say_what_is_left(names: list[str], quick: bool, pace: float) -> None:
    """The next workload, and when all will be done at this pace."""
    seconds = pace * sum(SECONDS[name][quick] for name in names)
    left = f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
    progress(f"{names[0]} (about {left} left for {len(names)} workloads)")


async def measure(setting: Setting, names: list[str], rows: list[Row]) -> list[str]:
    """Measure one workload after the other; the names of those that failed."""
    failed = []
    with_peers = setting.peers
    spent, planned = 0.0, 0.0
    for number, name in enumerate(names):
        say_what_is_left(names[number:], setting.quick, spent / planned if planned else 1.0)
        seconds = SECONDS[name][setting.quick]
        began = time.monotonic()
        setting.round_until = began + seconds
        setting.peers = with_peers and not (setting.quick and name in QUICK_WITHOUT_PEERS)
        try:
            async with asyncio.timeout(max(60.0, OVERRUN * seconds)):
                rows += await WORKLOADS[name](setting)
        except Exception as error:
            # One that fails must not take the results of the others with it.
            failed.append(name)
            progress(f"{name} FAILED: {type(error).__name__}: {error}")
        finally:
            setting.stop()
        spent += time.monotonic() - began
        planned += seconds
    return failed


@click.command()
@click.option("--quick", is_flag=True, help="Short samples, small tables; three minutes.")
@click.option("--no-peers", is_flag=True, help="Only ours.")
@click.option("--only", multiple=True, type=click.Choice(list(WORKLOADS)), metavar="WORKLOAD")
@click.option("--seconds", type=float, help="Length of one sample of a throughput.")
@click.option("--rounds", type=click.IntRange(1), help="Samples of each side.")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True)
@click.option("--in-flight", type=click.IntRange(1), default=200, show_default=True)
@click.option("--profile", type=click.Path(path_type=Path), help="cProfile the workers into files.")
def main(
    quick: bool,
    no_peers: bool,
    only: tuple[str, ...],
    seconds: float | None,
    rounds: int | None,
    processes: int,
    in_flight: int,
    profile: Path | None,
) -> None:
    """Measure durable on a real PostgreSQL, beside DBOS and Absurd."""
    # So that the server and the workers are stopped, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not no_peers:
        link.install()
    if profile is not None:
        profile.resolve().parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with Database() as database:
        shown = settings_line(database)
        progress(f"PostgreSQL {shown}")
        setting = Setting(
            database=database,
            quick=quick,
            peers=not no_peers,
            seconds=seconds or (1.5 if quick else 6.0),
            rounds=rounds or (2 if quick else 5),
            processes=processes,
            in_flight=in_flight,
            profile=profile.resolve() if profile else None,
        )
        try:
            failed = asyncio.run(measure(setting, list(only) or list(WORKLOADS), rows))
        finally:
            setting.stop()
            finish("engine", rows, quick=quick or bool(only) or bool(profile), postgres=shown)
    if setting.profile is not None:
        click.echo(profiles.text_of(profiles.read(setting.profile)))
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
