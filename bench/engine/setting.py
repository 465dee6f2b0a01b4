"""Setting: how much to measure, and with whom."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.database import Database
from bench.peers.link import Peer

READY_SECONDS_MAX = 60.0


@dataclass
class Setting:
    """What one call of `python -m bench.engine` was asked for."""

    database: Database
    quick: bool
    peers: bool
    seconds: float
    """About how long one sample of a throughput takes."""
    rounds: int
    processes: int
    in_flight: int
    profile: Path | None = None
    started: list[Peer] = field(default_factory=list)
    round_until: float = math.inf
    """By the monotonic clock: after this a workload begins no further round."""

    @property
    def rounds_of_long(self) -> int:
        """Rounds of what has samples of many seconds."""
        return 1 if self.quick else self.rounds

    def in_time(self, rounds: int) -> Iterator[int]:
        """Numbers of rounds, one at least; no further ones when the workload's time is up."""
        for number in range(rounds):
            if number and time.monotonic() >= self.round_until:
                return
            yield number

    def peer(self, module: str, **options: Any) -> tuple[Peer, str]:
        """A peer on a new database of its own; it and the database's name."""
        name = f"{module}_bench"
        peer = Peer(module, self.database.create(name))
        self.started.append(peer)
        peer.call("install", **options)
        return peer, name

    def stop(self) -> None:
        """Stop every peer that was started. Safe twice."""
        for peer in self.started:
            peer.stop()
        self.started.clear()
