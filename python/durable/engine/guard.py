"""The guard: calls that cannot be replayed raise at once in workflow code.

CPython reports dangerous calls to audit hooks (PEP 578). One hook per process, which is the core's,
looks whether this thread runs workflow code and then at the name of the report; only one in
`DANGEROUS` costs more than that and is judged here. A hook cannot be removed, so `install` installs
one.

CPython reports ``time.sleep`` since 3.13 and threads since 3.12. Before that these functions are
wrapped, so a module that took one by name (``from time import sleep``) before `install` has the
plain one: install before user code is imported.

Not stopped: imports and what they read, source lines for tracebacks and warnings, logging handlers,
debuggers, coverage. Not seen: `os.environ`, clocks and random numbers (no audit event);
``durable check`` finds those in the source.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Any

from durable._core import current, guard
from durable.errors import GuardError

FRAMES_MAX = 200
"""How far up the stack a reason to allow the call is looked for."""

FILES = ("file access", "read or write files in an activity")
NETWORK = ("network access", "talk to the network in an activity")
PROCESSES = ("another process", "run processes in an activity")
THREADS = (
    "a thread",
    "use asyncio.create_task, which is deterministic here, or a sync activity, which has a thread",
)
SLEEP = ("time.sleep", "use `await asyncio.sleep(...)` or workflow.sleep, which survive a restart")

DANGEROUS: dict[str, tuple[str, str]] = {
    "open": FILES,
    "time.sleep": SLEEP,
    **dict.fromkeys(
        (
            "os.chmod",
            "os.chown",
            "os.link",
            "os.listdir",
            "os.mkdir",
            "os.remove",
            "os.rename",
            "os.rmdir",
            "os.scandir",
            "os.symlink",
            "os.truncate",
            "os.utime",
            "shutil.copyfile",
            "shutil.move",
            "shutil.rmtree",
            "sqlite3.connect",
            "tempfile.mkdtemp",
            "tempfile.mkstemp",
        ),
        FILES,
    ),
    **dict.fromkeys(
        (
            "socket.__new__",
            "socket.bind",
            "socket.connect",
            "socket.getaddrinfo",
            "socket.gethostbyaddr",
            "socket.gethostbyname",
            "socket.gethostname",
            "socket.getnameinfo",
            "socket.sendmsg",
            "socket.sendto",
            "urllib.Request",
        ),
        NETWORK,
    ),
    **dict.fromkeys(
        (
            "os.exec",
            "os.fork",
            "os.forkpty",
            "os.kill",
            "os.killpg",
            "os.posix_spawn",
            "os.spawn",
            "os.startfile",
            "os.system",
            "pty.spawn",
            "subprocess.Popen",
        ),
        PROCESSES,
    ),
    **dict.fromkeys(("_thread.start_new_thread", "_thread.start_joinable_thread"), THREADS),
}

TOOL_MODULES = frozenset(
    {
        "linecache",
        "traceback",
        "tokenize",
        "warnings",
        "logging",
        "pdb",
        "bdb",
        "coverage",
        "debugpy",
        "pydevd",
        "_pydevd_bundle",
        "_pydevd_frame_eval",
        "zipimport",
        "pkgutil",
    }
)
"""Top-level modules that may do I/O on behalf of workflow code."""

DRIVERS = ("durable.engine.", "durable.runtime.")
"""Where the modules live that run workflow code."""

UNREPORTED = (
    ("time", "sleep", "time.sleep", (3, 13)),
    ("_thread", "start_new_thread", "_thread.start_new_thread", (3, 12)),
    ("threading", "_start_new_thread", "_thread.start_new_thread", (3, 12)),
)
"""Module, function, event, and the version of Python that reports it by itself."""

_is_allowed: ContextVar[bool] = ContextVar("durable_unsafe_allowed", default=False)
_is_installed = False


def install() -> None:
    """Guard all workflow code of this process from now on. Safe to call again."""
    global _is_installed
    if _is_installed:
        return
    _is_installed = True
    guard(DANGEROUS, _judge)
    for module_name, function_name, event, reported_since in UNREPORTED:
        # Through sys.modules: this file calls none of them, it only stands before them.
        module = sys.modules.get(module_name)
        if module is not None and sys.version_info < reported_since:
            setattr(module, function_name, _watched(getattr(module, function_name), event))


@contextmanager
def allowed() -> Iterator[None]:
    """Let the code in this block, and tasks made in it, do what the guard forbids."""
    before = _is_allowed.get()
    _is_allowed.set(True)
    try:
        yield
    finally:
        # Not by a token: a run that is evicted closes its coroutines in another context.
        _is_allowed.set(before)


def _watched(function: Callable[..., Any], event: str) -> Callable[..., Any]:
    """``function``, reported as if CPython did."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if current() is not None:
            _judge(event, args, 2)
        return function(*args, **kwargs)

    return call


def _judge(event: str, args: tuple[Any, ...], depth: int = 1) -> None:
    """Raise GuardError, unless the code ``depth`` frames above may do it."""
    if _is_allowed.get() or _is_for_a_tool(sys._getframe(depth)):
        return
    what, instead = DANGEROUS[event]
    if event == "open" and args and isinstance(args[0], str | bytes):
        what = f"open({args[0]!r})"
    raise GuardError(
        f"{what} in workflow code ({event}) cannot be replayed: {instead}; "
        "or wrap it in workflow.unsafe_allowed() if you know that it is safe"
    )


def _is_for_a_tool(frame: FrameType | None) -> bool:
    """Whether an import, a debugger, logging or the like stands between the code and the call."""
    for _ in range(FRAMES_MAX):
        if frame is None:
            return False
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] in TOOL_MODULES:
            return True
        if module.startswith(DRIVERS):
            # Here the workflow code was entered: what is above it is not its doing.
            return False
        frame = frame.f_back
    return False
