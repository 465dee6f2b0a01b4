"""A worker process that only talks: what the supervisor's own tests start instead of a real one.

It speaks the protocol of `durable.runtime.spawn`. How it behaves is the app it is told to serve:
``well``, ``refuses`` (cannot start), ``exits`` (ends by itself), ``hangs`` (its loop stops),
``deaf`` (does not hear "stop"), ``dies`` (is killed before it says hello), or ``file:PATH`` (what
the file says). It imports nothing of ours, so that it starts fast.
"""

import json
import os
import secrets
import select
import signal
import socket
import time
from pathlib import Path


def main(fd: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = socket.socket(fileno=fd)
    app = json.loads(link.recv(1_000_000))["app"]
    if app.startswith("file:"):
        app = Path(app.removeprefix("file:")).read_text()
    if app == "refuses":
        say(link, {"fail": "cannot import refuses: there is nothing there"})
        os._exit(78)
    session = secrets.randbits(53)
    say(link, {"session": session})
    if app == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    hints = doubts = 0
    for progress in range(1_000_000):
        word = "hello" if progress == 0 else "beat"
        claimed = ("durable_runs_claimed_total", [], [hints])
        doubted = ("durable_stale_commits_total", [], [doubts])
        metrics = [claimed, doubted]
        say(link, {word: {"session": session, "progress": progress, "metrics": metrics}})
        if app == "exits":
            os._exit(3)
        while app == "hangs":
            time.sleep(60)
        while select.select([link], [], [], 0.05)[0]:
            data = link.recv(1_000_000)
            if not data or (b"stop" in data and app != "deaf"):
                say(link, {"beat": {"session": session, "progress": -2, "metrics": [claimed]}})
                os._exit(0)
            hints += data.count(b"hint")
            doubts += data.count(b"lost")


def say(link: socket.socket, message: object) -> None:
    link.sendall(json.dumps(message).encode() + b"\n")
