"""A PgBouncer in transaction mode in front of a test's server. Skips where there is none."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

START_SECONDS_MAX = 20.0
POOL_SIZE = 2
TRIES_MAX = 10
"""A port that is free may be somebody else's a moment later: then with another one."""


def binary() -> str:
    """Where PgBouncer is."""
    found = shutil.which(
        "pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )
    if found is None:
        pytest.skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
    return found


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """One that PgBouncer may read when it is not us."""
    folder = factory.mktemp("pgbouncer")
    for each in (folder, folder.parent, folder.parent.parent):
        each.chmod(0o755)
    return folder


@contextmanager
def pgbouncer(server_dsn: str, folder: Path, *, ignored: str = "") -> Iterator[str]:
    """A DSN that leads through two server connections per database; ``dbname`` is the caller's.

    ``ignored`` are startup parameters that it drops; every other unknown one it refuses.
    """
    program, server = binary(), conninfo_to_dict(server_dsn)
    for _ in range(TRIES_MAX):
        port = free_port()
        config = folder / "pgbouncer.ini"
        config.write_text(settings(server, port, ignored))
        dsn = make_conninfo(host="127.0.0.1", port=port, user="pooled", dbname=server["dbname"])
        log = folder / "pgbouncer.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(program, config), stdout=output, stderr=subprocess.STDOUT
            )
        try:
            if is_up(process, dsn, port, log):
                yield dsn
                return
        finally:
            process.kill()
            process.wait()
    raise AssertionError(f"PgBouncer: {log.read_text()}")


def settings(server: dict[str, Any], port: int, ignored: str) -> str:
    """What its file says."""
    target = " ".join(
        f"{ours}={server[theirs]}"
        for ours, theirs in (
            ("host", "host"),
            ("port", "port"),
            ("user", "user"),
            ("password", "password"),
        )
        if server.get(theirs)
    )
    return (
        f"[databases]\n* = {target}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\n"
        f"default_pool_size = {POOL_SIZE}\nserver_tls_sslmode = disable\n"
        f"ignore_startup_parameters = {ignored}\n"
    )


def command(program: str, config: Path) -> list[str]:
    """How it is started. It refuses to serve as root, and reads its file before it is nobody."""
    return [program, *(("-u", "nobody") if os.geteuid() == 0 else ()), str(config)]


def is_up(process: subprocess.Popen[bytes], dsn: str, port: int, log: Path) -> bool:
    """Wait until it serves; False when somebody else has taken the port since it was free."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        # Another server on that port would take connections, too.
        if f"listening on 127.0.0.1:{port}" in log.read_text():
            try:
                psycopg.connect(dsn).close()
                return True
            except psycopg.OperationalError as error:
                failure = str(error)
        else:
            failure = "it does not listen"
        if process.poll() is not None:
            said = log.read_text()
            if "in use" in said or "no sockets" in said:
                return False
            raise AssertionError(f"PgBouncer: {said}")
        if time.monotonic() > deadline:
            raise AssertionError(f"PgBouncer: {failure}; {log.read_text()}")
        time.sleep(0.02)
