"""Profiled: the measured app with cProfile in each worker process.

The profile begins when a worker imports this and is written to ``$BENCH_PROFILE.<pid>`` on SIGUSR1.
Times are CPU times of the worker's main thread, so a busy machine does not blur them. A profiled
worker is about half as fast; its shares are what counts, not its rates.
"""

import cProfile
import os
import signal
import time
from types import FrameType

from bench import flows

PATH = os.environ.get("BENCH_PROFILE")

echo, charge, describe = flows.echo, flows.charge, flows.describe
steps, fan_out, orders = flows.steps, flows.fan_out, flows.orders
records, nap, collect = flows.records, flows.nap, flows.collect

if PATH is not None:
    profiler = cProfile.Profile(time.thread_time)

    def dump(number: int, frame: FrameType | None) -> None:
        """Write down what was seen, in one move."""
        profiler.disable()
        draft = f"{PATH}.{os.getpid()}.draft"
        profiler.dump_stats(draft)
        os.replace(draft, f"{PATH}.{os.getpid()}")

    signal.signal(signal.SIGUSR1, dump)
    profiler.enable()
