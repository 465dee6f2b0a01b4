"""Link: our end of a peer process.

The peers' packages live in a virtual environment of their own, made here from the extra ``bench``
of pyproject.toml, so that what is measured is the product with its own dependencies only.
"""

import contextlib
import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from durable.errors import DurableError

ROOT = Path(__file__).parents[2]
VENV = ROOT / "bench" / ".venv"
INSTALL_SECONDS_MAX = 600.0
ANSWER_SECONDS_MAX = 600.0
STOP_SECONDS_MAX = 10.0


class PeerError(DurableError):
    """A peer could not be installed, did not answer, or failed."""


def python() -> Path:
    """The interpreter of the peers' environment."""
    folder = "Scripts" if sys.platform == "win32" else "bin"
    return VENV / folder / "python"


def install() -> None:
    """Make the peers' environment, or bring it to what pyproject.toml asks for.

    Raise PeerError when pip cannot.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"]["bench"]
    stamp = VENV / "installed.json"
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return
    if not python().exists():
        venv.create(VENV, with_pip=True)
    done = subprocess.run(
        [python(), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted],
        timeout=INSTALL_SECONDS_MAX,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise PeerError(f"cannot install the peers; use --no-peers:\n{done.stderr.strip()[-2000:]}")
    stamp.write_text(json.dumps(wanted))


class Peer:
    """One peer process. ``module`` is a module of this package, ``arguments`` its command line."""

    def __init__(self, module: str, *arguments: str) -> None:
        assert importlib.util.find_spec(f"bench.peers.{module}") is not None
        self.module = module
        self.log = ROOT / "bench" / "results" / f"{module}.log"
        self.log.parent.mkdir(exist_ok=True)
        with self.log.open("ab") as errors:
            self.process = subprocess.Popen(
                [python(), "-m", f"bench.peers.{module}", *arguments],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                # A group of its own, so that stop() reaches the processes it starts.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id; the processes it starts are its children."""
        return self.process.pid

    def call(self, do: str, *, seconds: float = ANSWER_SECONDS_MAX, **arguments: Any) -> Any:
        """Ask it and wait for the answer; raise PeerError when it fails or is late."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise PeerError(f"{self.module} is gone; see {self.log}") from error
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise PeerError(f"{self.module} did not answer {do} in {seconds:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(f"{self.module} ended during {do}; see {self.log}")
        reply = json.loads(line)
        if "error" in reply:
            raise PeerError(f"{self.module} {do}: {reply['error']}; see {self.log}")
        return reply["value"]

    def stop(self) -> None:
        """End it and what it started. Safe twice."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS_MAX)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS_MAX)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def stop_all(peers: Sequence[Peer]) -> None:
    """Stop several."""
    for peer in peers:
        peer.stop()
