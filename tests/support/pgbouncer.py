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

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

START_SECONDS_MAX = 20.0
POOL_SIZE = 2


def binary() -> str:
    """Where PgBouncer is."""
    found = shutil.which(
        "pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    )
    if found is None:
        pytest.skip("PgBouncer is not installed (Debian: apt-get install pgbouncer)")
    return found


def free_port() -> int:
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
    program = binary()
    server = conninfo_to_dict(server_dsn)
    port = free_port()
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
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = {target}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        "auth_type = any\npool_mode = transaction\n"
        f"default_pool_size = {POOL_SIZE}\nserver_tls_sslmode = disable\n"
        f"ignore_startup_parameters = {ignored}\n"
    )
    command = [program, str(config)]
    if os.geteuid() == 0:
        # It refuses to serve as root, and reads its file before it becomes somebody else.
        command[1:1] = ["-u", "nobody"]
    log = folder / "pgbouncer.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    dsn = make_conninfo(host="127.0.0.1", port=port, user="pooled", dbname=server["dbname"])
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                psycopg.connect(dsn).close()
                break
            except psycopg.OperationalError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"PgBouncer: {log.read_text()}") from None
                time.sleep(0.02)
        yield dsn
    finally:
        process.kill()
        process.wait()
