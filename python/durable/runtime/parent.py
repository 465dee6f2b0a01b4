"""Parent: what a process does about the one that started it.

It takes over the socket it inherited, and it does not outlive its parent: the socket ends with the
parent, and on Linux the kernel kills the child as well, even one that hangs in native code.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1
ORPHAN_CODE = 78
"""Exit code of a process whose parent died before it had begun (EX_CONFIG)."""


def take_socket(fd: int | None) -> socket.socket:
    """Our end of the socket pair."""
    if fd is not None:
        os.set_inheritable(fd, False)
        return socket.socket(fileno=fd)
    if sys.platform == "win32":
        return socket.fromshare(sys.stdin.buffer.read())
    raise SystemExit("a worker process is started by a supervisor; use `durable worker`")


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It died between our start and the call.
        os._exit(ORPHAN_CODE)
