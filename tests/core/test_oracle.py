"""The core against the oracle: the same bytes, events, commands and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rig import RUN_ID, START_US
from support import oracle
from support.oracle import Event

from durable._core import EVENT_KINDS, Loop, decode, verify
from durable.errors import (
    HistoryCorruptError,
    HistoryUnsupportedError,
    NonDeterminismError,
    PayloadTooLargeError,
)
from durable.events import EventKind

SETTINGS = settings(max_examples=300)
VERDICTS = {
    oracle.Corrupt: HistoryCorruptError,
    oracle.Unsupported: HistoryUnsupportedError,
    oracle.TooLarge: PayloadTooLargeError,
}

TEXT = st.one_of(st.none(), st.sampled_from(["a", "b", "", "é", "{}"]), st.text(max_size=8))
DATA = st.one_of(st.none(), st.binary(max_size=20))
DRAFT = st.tuples(
    st.sampled_from(sorted(oracle.KINDS)),
    st.integers(0, 40),
    st.one_of(st.just(0), st.integers(START_US, START_US + 10**9), st.integers(0, 2**64 - 1)),
    TEXT,
    TEXT,
    DATA,
    DATA,
)


def settle(drafts: Sequence[Any]) -> list[Event]:
    """Events as a history can hold them: refs to earlier ones, times that never go back."""
    events: list[Event] = []
    now = 0
    for number, (kind, ref, time, *rest) in enumerate(drafts, 1):
        if oracle.is_inbound(kind) or time:
            time = max(time, now)
        if oracle.is_inbound(kind):
            now = time
        events.append((number, kind, ref % number, time, *rest))
    return events


def cut(events: Sequence[Event], cuts: Sequence[bool]) -> list[list[Event]]:
    groups: list[list[Event]] = [[]]
    for event, is_cut in zip(events, cuts, strict=False):
        groups[-1].append(event)
        if is_cut:
            groups.append([])
    return [group for group in groups if group]


HISTORIES = st.tuples(
    st.lists(DRAFT, min_size=1, max_size=20).map(settle),
    st.lists(st.booleans(), min_size=20, max_size=20),
)


def check_same_verdict(batches: list[bytes], head: int | None) -> None:
    expected = outcome(oracle.decode, batches, head)
    found = outcome(decode, batches, head)
    verified = outcome(verify, batches, head)

    if isinstance(expected, oracle.Bad):
        assert VERDICTS[type(expected)] is type(found) is type(verified)
        assert expected.seq == getattr(found, "seq", expected.seq)
    else:
        assert expected == found
        assert len(expected) == verified


def outcome(read: Any, batches: list[bytes], head: int | None) -> Any:
    try:
        return read(RUN_ID, batches, head)
    except (oracle.Bad, *VERDICTS.values()) as error:
        return error


def test_the_kinds_are_the_same_everywhere() -> None:
    assert set(EVENT_KINDS.values()) == oracle.KINDS
    assert {kind.name: kind.value for kind in EventKind} == EVENT_KINDS


@given(history=HISTORIES)
@SETTINGS
def test_what_the_oracle_writes_the_core_reads(history: Any) -> None:
    events, cuts = history
    batches, head = oracle.encode(RUN_ID, cut(events, cuts))

    assert events == decode(RUN_ID, batches, head)
    assert events == oracle.decode(RUN_ID, batches, head)


@given(history=HISTORIES, at=st.integers(0), mask=st.integers(1, 255), is_sealed=st.booleans())
@SETTINGS
def test_a_changed_byte_gets_the_same_verdict(
    history: Any, at: int, mask: int, is_sealed: bool
) -> None:
    events, cuts = history
    batches, head = oracle.encode(RUN_ID, cut(events, cuts))
    whole = b"".join(batches)
    at %= len(whole)
    changed = bytearray(whole)
    changed[at] ^= mask
    sizes = [len(batch) for batch in batches]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    batches = [bytes(changed[s : s + n]) for s, n in zip(starts, sizes, strict=True)]

    check_same_verdict(sealed(batches) if is_sealed else batches, None if is_sealed else head)


def sealed(batches: Sequence[bytes]) -> list[bytes]:
    """With the right checksums, so that what is inside gets looked at."""
    chain = oracle.chain_start(RUN_ID)
    out = []
    for batch in batches:
        chain = oracle.chain_next(chain, batch[:-8])
        out.append(batch[:-8] + chain.to_bytes(8, "little"))
    return out


@given(bodies=st.lists(st.lists(st.integers(0, 140), max_size=40).map(bytes), max_size=3))
@SETTINGS
def test_any_bytes_get_the_same_verdict(bodies: list[bytes]) -> None:
    check_same_verdict(bodies, None)
    check_same_verdict(sealed([b"\x01" + body + bytes(8) for body in bodies]), None)
    framed = [oracle.varint(1) + oracle.varint(1) + b"\x00" + body for body in bodies[:1]]
    check_same_verdict(sealed([b"\x01" + body + bytes(8) for body in framed]), None)


# -- programs ----------------------------------------------------------------------------------

COMMANDS = [kind for kind in EventKind if 64 <= kind < 128]
AWAITED = {
    EventKind.ACTIVITY_SCHEDULED,
    EventKind.TIMER_STARTED,
    EventKind.CHILD_INITIATED,
    EventKind.EXTERNAL_SIGNAL,
    EventKind.EXTERNAL_CANCEL,
}
COMMAND = st.tuples(
    st.sampled_from(COMMANDS),
    st.integers(0, 2),
    st.integers(0, 2),
    st.sampled_from([None, "a", "b"]),
    st.sampled_from([None, "{}"]),
    st.none(),
    st.sampled_from([None, b"[1]", b"[2]"]),
)
TURNS = st.lists(st.lists(COMMAND, max_size=3), min_size=1, max_size=5)


def made_of(turns: Any) -> oracle.Code:
    """The program as a function of its facts. Refs are to what exists, times are from now on."""
    left = iter(turns)

    def code(fact: Event) -> list[Event]:
        return [
            (0, kind, ref, fact[3] + time if time else 0, *rest)
            for kind, ref, time, *rest in next(left, [])
        ]

    return code


class TableHook:
    """Makes the commands of a program as soon as it is given a fact."""

    def __init__(self, turns: Any) -> None:
        self.loop = Loop(RUN_ID, self)
        self.code = made_of(turns)
        self.made: list[int] = []

    def on_event(self, kind: int, ref: int, *rest: Any) -> None:
        fact = (0, kind, ref, self.loop.now_us, *rest)
        for _, kind, ref, time, name, options, meta, payload in self.code(fact):
            make = self.loop.command if kind in AWAITED else self.loop.emit
            made = make(
                kind, ref=ref, time_us=time, name=name, options=options, meta=meta, payload=payload
            )
            self.made.append(getattr(made, "event_id", made))


def history_of(turns: Any) -> list[Event]:
    """What the oracle says is recorded of a program."""
    events: list[Event] = []
    code = made_of(turns)
    for number in range(len(turns)):
        kind = EventKind.SIGNAL_RECEIVED if number else EventKind.RUN_STARTED
        fact = (len(events) + 1, int(kind), 0, START_US + number, None, None, None, None)
        events.append(fact)
        events += [
            (len(events) + 1 + index, *command[1:]) for index, command in enumerate(code(fact))
        ]
    return events


def runnable(turns: Any) -> Any:
    """Refs that exist when the command is made: event 1 always does."""
    return [[(kind, min(ref, 1), *rest) for kind, ref, *rest in turn] for turn in turns]


@given(turns=TURNS.map(runnable))
@SETTINGS
def test_a_live_program_writes_what_the_oracle_writes(turns: Any) -> None:
    hook = TableHook(turns)
    events = history_of(turns)
    hook.loop.replay()
    batches = []
    head = 0
    for event in events:
        if oracle.is_inbound(event[1]):
            hook.loop.deliver(event[1], 0, event[3], None, None, None)
            taken = hook.loop.take()
            assert taken is not None
            batches.append(taken[0])
            head = taken[1]
    groups: list[list[Event]] = []
    for event in events:
        if oracle.is_inbound(event[1]):
            groups.append([])
        groups[-1].append(event)

    assert oracle.encode(RUN_ID, groups) == (batches, head)


@given(turns=TURNS.map(runnable), changed=st.data(), cuts=st.lists(st.booleans(), min_size=20))
@SETTINGS
def test_a_changed_program_gets_the_same_verdict(turns: Any, changed: Any, cuts: Any) -> None:
    events = history_of(turns)
    batches, head = oracle.encode(RUN_ID, cut(events, cuts + [False] * 20))
    other = [list(turn) for turn in turns]
    turn = other[changed.draw(st.integers(0, len(other) - 1))]
    place = changed.draw(st.integers(0, len(turn)))
    turn[place : place + changed.draw(st.integers(0, 1))] = changed.draw(
        st.lists(COMMAND, max_size=1).map(lambda made: runnable([made])[0])
    )
    hook = TableHook(other)
    hook.loop.load(batches, head)

    expected = parting(lambda: oracle.replay(events, made_of(other)))
    found = parting(hook.loop.replay)

    assert expected == found
    if found is not None:
        assert hook.loop.is_dead
    if found is not None or len(events) > 1:
        assert hook.loop.take() is None


def parting(replay: Callable[[], object]) -> int | None:
    """The event at which code and history part, if they do."""
    try:
        replay()
    except (oracle.Parted, NonDeterminismError) as error:
        return error.event_id
    return None
