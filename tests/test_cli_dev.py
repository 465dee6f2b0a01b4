"""`durable dev` and `durable worker` as a person runs them: real processes, a real database."""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durable.runtime.dev import DevNotes
from durable.runtime.embedded import EmbeddedPostgres

HELLO = """
from durable import activity, workflow


@activity.defn
async def greet(name: str) -> str:
    return f"{word}, {{name}}!"


@workflow.defn
async def hello(name: str) -> str:
    return await greet(name)
"""


@contextmanager
def durable(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command that keeps running, in a process group of its own as under a terminal."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith("DURABLE_")}
    with subprocess.Popen(
        [sys.executable, "-m", "durable", *arguments],
        cwd=folder,
        env=settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def line_with(process: subprocess.Popen[str], text: str, *, of_stderr: bool = False) -> str:
    """Read on until a line has this text."""
    stream = process.stderr if of_stderr else process.stdout
    assert stream is not None
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"it ended before it said {text!r}")


def ask(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "durable", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_dev_serves_reloads_and_leaves_nothing_behind(tmp_path: Path) -> None:
    app = tmp_path / "hello_app.py"
    app.write_text(HELLO.format(word="Hello"))
    with durable(tmp_path, "dev", "hello_app.py") as dev:
        line_with(dev, "ready")
        notes = DevNotes.find(tmp_path)
        assert notes is not None
        start = ("start", "hello", '["Ann"]', "--wait", "--id")
        assert ask(tmp_path, *start, "one") == '"Hello, Ann!"'

        app.write_text(HELLO.format(word="Goodbye"))
        line_with(dev, "reloaded", of_stderr=True)
        assert ask(tmp_path, *start, "two") == '"Goodbye, Ann!"'

        app.write_text("def broken(:\n")
        line_with(dev, "the old workers go on", of_stderr=True)
        app.write_text(HELLO.format(word="Again"))
        line_with(dev, "reloaded", of_stderr=True)
        assert ask(tmp_path, *start, "three") == '"Again, Ann!"'

        # Ctrl-C reaches every process of the terminal's group.
        os.killpg(dev.pid, signal.SIGINT)
        _, said = dev.communicate(timeout=60)
        assert dev.returncode == 0, said
        assert "Traceback" not in said
    assert EmbeddedPostgres(tmp_path / ".durable" / "postgres").pid is None


def test_a_dev_server_that_cannot_start_says_why(dsn: str, tmp_path: Path) -> None:
    with durable(tmp_path, "dev", "nowhere.py", "--dsn", dsn) as dev:
        out, said = dev.communicate(timeout=60)
    assert dev.returncode == 1
    assert out == ""
    assert said.splitlines()[-1] == f"durable: there is no file nowhere.py in {tmp_path}"
    assert "Traceback" not in said


def wait_for_good(url: str) -> None:
    """Ask until the answer is 200; raise the last one when it stays another."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url) as answer:
                assert answer.status == 200
                return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def test_a_worker_is_ready_counts_and_drains(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "hello_app.py").write_text(HELLO.format(word="Hello"))
    with durable(
        tmp_path, "worker", "hello_app", "--dsn", dsn, "--port", "0", "--queue", "default"
    ) as worker:
        url = line_with(worker, "/metrics", of_stderr=True).split()[-1].removesuffix("/metrics")
        assert ask(tmp_path, "start", "hello", '["Ann"]', "--id", "1", "--wait", "--dsn", dsn)
        # One worker can have done that; ready is who has all of them up.
        for path in ("healthz", "readyz"):
            wait_for_good(f"{url}/{path}")
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            assert "durable_workers_wanted 2.0" in answer.read().decode()
        worker.send_signal(signal.SIGTERM)
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 0, said
        assert "Traceback" not in said
