"""Generated asyncio programs replay to what they did, from any point, by either path."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
from hypothesis import HealthCheck, given, settings
from programs import CHOICES, NODES, Node, program_of
from rig import Recording, Rig, record

SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> None:
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def replay(node: Node, made: Recording, count: int, *, short_cut: bool) -> Rig:
    head = made.moments[count - 1].head
    return Rig(program_of(node), short_cut=short_cut).load(made.batches[:count], head)


@pytest.mark.parametrize("short_cut", [True, False])
@given(node=NODES, choices=CHOICES)
@SETTINGS
def test_a_cold_replay_sees_and_does_what_the_run_did(
    short_cut: bool, node: Node, choices: list[int]
) -> None:
    made = record(program_of(node), choices)

    rig = replay(node, made, len(made.moments), short_cut=short_cut)

    assert made.trace == rig.trace
    assert made.moments[-1].pending == rig.commands
    assert made.moments[-1].now_us == rig.loop.now_us
    assert made.moments[-1].event_count == rig.loop.event_count
    assert made.is_finished == rig.loop.is_finished
    assert rig.loop.take() is None
    rig.evict()


@given(node=NODES, choices=CHOICES)
@SETTINGS
def test_every_prefix_replays_to_a_prefix_and_goes_on_to_the_same_bytes(
    node: Node, choices: list[int]
) -> None:
    made = record(program_of(node), choices)

    for count in range(2, len(made.moments) + 1):
        moment = made.moments[count - 1]
        rig = replay(node, made, count, short_cut=count % 2 == 0)
        assert made.trace[: moment.trace_len] == rig.trace
        assert moment.pending == rig.commands
        assert rig.loop.take() is None
        for later in made.moments[count : count + 2]:
            assert later.fact is not None
            rig.deliver(later.fact)
            taken = rig.loop.take()
            assert taken is not None
            assert (later.batch, later.head) == taken[:2]
        rig.evict()


@given(node=NODES, choices=CHOICES)
@SETTINGS
def test_eviction_makes_no_command_and_leaves_nothing_behind(
    node: Node, choices: list[int]
) -> None:
    made = record(program_of(node), choices)
    rig = replay(node, made, len(made.moments), short_cut=True)
    before = rig.loop.event_count

    rig.evict()

    assert rig.loop.take() is None
    assert rig.loop.pending() == []
    assert before == rig.loop.event_count
    assert rig.loop._tasks == []


def test_evicted_runs_are_freed() -> None:
    """Whatever the program: no object of an evicted run outlives its collection."""
    nodes: list[Node] = [
        ("gather", (("act", "a"), ("sleep", 3))),
        ("timeout", 3, ("act", "a")),
        ("group", (("act", "a"), ("shared", "b", 2))),
        ("finally", ("act", "a"), ("act", "b")),
        ("shield", ("swallow", ("act", "a"))),
        ("queue", (("act", "a"), ("act", "b"))),
    ]
    loops = []
    for node in nodes:
        rig = Rig(program_of(node)).load(record(program_of(node), [0]).batches)
        loops.append((node, weakref.ref(rig.loop)))
        rig.evict()
        del rig
    gc.collect()

    assert [node for node, loop in loops if loop() is not None] == []
