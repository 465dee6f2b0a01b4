"""What a worker tells its supervisor, and how little of it when nothing happens."""

import asyncio
import json
from typing import Any, cast

from durable.runtime.metrics import Metrics
from durable.runtime.process import Voice
from durable.runtime.spawn import LINE_BYTES_MAX, WorkerProcess
from durable.runtime.worker import Worker


class Line:
    """A stream that keeps what is written."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.unread = 0
        self.transport = self

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write(self, data: bytes) -> None:
        self.messages.append(json.loads(data))


class Moving:
    """A worker, as far as a voice knows it."""

    session_id = 7
    progress = 0

    def move(self) -> None:
        self.progress += 1


def make() -> tuple[Voice, Line, Metrics]:
    line, metrics = Line(), Metrics()
    voice = Voice(cast(Worker, Moving()), metrics, cast(asyncio.StreamWriter, line))
    return voice, line, metrics


def test_each_line_shows_that_the_loop_moved() -> None:
    voice, line, _ = make()
    voice.say("hello")
    voice.say("beat")
    assert [each["progress"] for said in line.messages for each in said.values()] == [1, 2]


def test_metrics_are_told_when_they_changed() -> None:
    voice, line, metrics = make()
    voice.say("hello")
    voice.say("beat")
    metrics.inc("durable_runs_claimed_total")
    voice.say("beat")
    voice.say("beat")
    hello, *beats = line.messages
    assert hello["hello"]["metrics"] == []
    assert ["metrics" in each["beat"] for each in beats] == [False, True, False]
    assert beats[1]["beat"]["metrics"] == [["durable_runs_claimed_total", [], [1]]]


def test_metrics_of_a_line_that_was_left_out_come_with_the_next() -> None:
    voice, line, metrics = make()
    voice.say("hello")
    metrics.inc("durable_runs_claimed_total")
    line.unread = LINE_BYTES_MAX + 1
    voice.say("beat")
    line.unread = 0
    voice.say("beat")
    assert len(line.messages) == 2
    assert "metrics" in line.messages[1]["beat"]


async def test_a_beat_without_metrics_leaves_them_as_they_were() -> None:
    told: list[Any] = []
    worker = WorkerProcess(0, lambda _, snapshot: told.append(snapshot))
    voice, line, metrics = make()
    metrics.inc("durable_runs_claimed_total")
    for word in ("hello", "beat", "beat"):
        voice.say(word)
    reader = asyncio.StreamReader()
    for message in line.messages:
        reader.feed_data(json.dumps(message).encode() + b"\n")
    reader.feed_eof()
    await worker._read(reader)
    assert told == [[["durable_runs_claimed_total", [], [1]]]]
    assert (worker.session, worker.progress) == (7, 3)
