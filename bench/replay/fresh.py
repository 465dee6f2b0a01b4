"""Fresh: what is measured in a process that did nothing else before.

    python -m bench.replay.fresh cold_ms|cold_memory|idle_bytes|repeat FILE

FILE holds a history (`Recorded.save`). Prints ``{"value": ...}``. Memory is the process's resident
set as Linux reports it, so allocator overhead and fragmentation count.
"""

import ctypes
import gc
import json
import sys
import time
from pathlib import Path

from bench import flows
from bench.replay.histories import Recorded, load_recorded, record

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


def repeat(run: Recorded) -> float:
    """Replay five times; for instruction counts, which need no clock."""
    for _ in range(5):
        assert run.replay().is_finished
    return 5.0


VERBS = {
    "cold_ms": cold_ms,
    "cold_memory": cold_memory,
    "idle_bytes": idle_bytes,
    "repeat": repeat,
}

if __name__ == "__main__":
    measured = VERBS[sys.argv[1]](load_recorded(Path(sys.argv[2])))
    sys.stdout.write(json.dumps({"value": measured}))
