"""Fresh: what is measured in a process that did nothing else before.

    python -m bench.replay.fresh cold_ms|cold_memory|idle_bytes FILE
    python -m bench.replay.fresh repeat|repeat_bare|warm FILE TIMES

FILE holds a history (`Recorded.save`). The latter are for instruction counts. Prints
``{"value": ...}``. Memory is the process's resident set as Linux reports it, so allocator overhead
and fragmentation count.
"""

import ctypes
import gc
import json
import sys
import time
from pathlib import Path

from bench import flows
from bench.replay import bare
from bench.replay.histories import Recorded, load_recorded, record
from durable.events import EventKind

IDLE_RUNS = 4000


def status_bytes(key: str) -> int:
    """A size from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/self/status; this needs Linux")


def warm_up() -> None:
    """Import and build everything that the first replay of a process pays for once."""
    record(flows.steps, 5).replay()
    record(flows.records, 5).replay()
    gc.collect()
    # Free memory that malloc keeps would hide what the replay takes.
    ctypes.CDLL(None).malloc_trim(0)


def cold_ms(run: Recorded) -> float:
    """Milliseconds of one replay."""
    warm_up()
    begin = time.perf_counter()
    execution = run.replay()
    elapsed = time.perf_counter() - begin
    assert execution.is_finished
    return elapsed * 1e3


def cold_memory(run: Recorded) -> float:
    """The peak of resident memory during a replay above what it was, in sizes of the history."""
    warm_up()
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    execution = run.replay()
    peak = status_bytes("VmHWM")
    assert execution.is_finished
    return max(0.0, (peak - before) / run.size)


def idle_bytes(run: Recorded) -> float:
    """Resident bytes per warm run that waits. Each has its own copy of its batches, as loaded."""
    warm_up()
    kept = []
    before = status_bytes("VmRSS")
    for _ in range(IDLE_RUNS):
        execution = run.execution()
        execution.load([bytes(bytearray(batch)) for batch in run.batches], run.head_hash)
        kept.append(execution)
    gc.collect()
    after = status_bytes("VmRSS")
    assert all(len(each.pending_activities()) == 1 for each in kept[:10])
    return (after - before) / IDLE_RUNS


def repeat(run: Recorded, times: int) -> float:
    """Replay it; for instruction counts, which need no clock."""
    for _ in range(times):
        assert run.replay().is_finished
    return times


def repeat_bare(run: Recorded, times: int) -> float:
    """Run the same program on bare asyncio, with a result to decode where it is a record."""
    # A start, an end, and two events for each activity.
    count = run.event_count // 2 - 1
    charge = bare.decoding(flows.receipt_of(flows.order_of(0)))
    for _ in range(times):
        if run.workflow is flows.orders:
            bare.suspending(run.workflow, count, "charge", charge)
        else:
            bare.suspending(run.workflow, count, "echo", bare.itself)
    return times


def warm(run: Recorded, times: int) -> float:
    """Deliver results to a run of `flows.steps` that waits, and take its turns."""
    execution = run.replay()
    ref, now_us = execution.pending_activities()[0].ref, execution.now_us
    completed = int(EventKind.ACTIVITY_COMPLETED)
    for _ in range(times):
        now_us += 1000
        execution.deliver(completed, ref, now_us, None, None, b"7")
        turn = execution.take()
        assert turn is not None
        ref = turn.scheduled[0].ref
    execution.evict()
    return times


VERBS = {"cold_ms": cold_ms, "cold_memory": cold_memory, "idle_bytes": idle_bytes}
REPEATING = {"repeat": repeat, "repeat_bare": repeat_bare, "warm": warm}


def main(verb: str, path: str, times: str = "1") -> float:
    """What the process was started for."""
    run = load_recorded(Path(path))
    return REPEATING[verb](run, int(times)) if verb in REPEATING else VERBS[verb](run)


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"value": main(*sys.argv[1:])}))
