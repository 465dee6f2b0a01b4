"""The guard: what cannot be replayed raises in workflow code, and only there."""

from __future__ import annotations

import _thread
import asyncio
import logging
import os
import pathlib
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from support.memory_run import MemoryRun

from durable import activity, workflow
from durable.engine import guard
from durable.errors import GuardError
from durable.events import RunState


@activity.defn
async def number() -> int:
    return 0


@workflow.defn
async def waits_twice() -> int:
    return await number() + await number()


def in_workflow(action: Callable[[], Any]) -> Any:
    """Run ``action`` as workflow code; return its value, or raise what it raised."""
    outcome: list[Any] = []

    @workflow.defn
    async def guarded() -> None:
        await asyncio.sleep(0)
        try:
            outcome.append(action())
        except BaseException as error:
            outcome.append(error)

    run = MemoryRun(guarded)
    assert run.turns[-1].closing is not None
    assert run.turns[-1].closing.state is RunState.COMPLETED
    (value,) = outcome
    if isinstance(value, BaseException):
        raise value
    return value


def start_a_thread() -> None:
    threading.Thread(target=print).start()


DANGEROUS: list[tuple[Callable[[], Any], str]] = [
    (lambda: open(os.devnull), "in an activity"),  # noqa: SIM115
    (lambda: os.open(os.devnull, os.O_RDONLY), "in an activity"),
    (lambda: pathlib.Path(os.devnull).read_text(), "open.*in an activity"),
    (lambda: os.listdir("/"), "os.listdir"),
    (lambda: os.scandir("/"), "os.scandir"),
    (lambda: os.remove("/nonexistent"), "os.remove"),
    (lambda: os.mkdir("/nonexistent/x"), "os.mkdir"),
    (lambda: os.rename("/nonexistent", "/nonexistent2"), "os.rename"),
    (lambda: shutil.rmtree("/nonexistent"), "shutil.rmtree"),
    (tempfile.mkstemp, "tempfile.mkstemp"),
    (lambda: sqlite3.connect(":memory:"), "sqlite3.connect"),
    (socket.socket, "to the network in an activity"),
    (lambda: socket.create_connection(("127.0.0.1", 1)), "network"),
    (lambda: socket.getaddrinfo("localhost", 80), "getaddrinfo"),
    (lambda: subprocess.run(["true"], check=False), "processes in an activity"),
    (lambda: os.system("true"), "os.system"),
    (lambda: os.posix_spawn("/bin/true", ["true"], {}), "posix_spawn"),
    (os.fork, "os.fork"),
    (lambda: os.execv("/nonexistent", ["x"]), "os.exec"),
    (lambda: os.kill(os.getpid(), 0), "os.kill"),
    (start_a_thread, "asyncio.create_task"),
    (lambda: _thread.start_new_thread(print, ()), "thread"),
    (lambda: time.sleep(0), "await asyncio.sleep"),
]


@pytest.mark.parametrize(("action", "message"), DANGEROUS, ids=[m for _, m in DANGEROUS])
def test_dangerous_call_raises_and_names_what_to_do(
    action: Callable[[], Any], message: str
) -> None:
    with pytest.raises(GuardError, match=message):
        in_workflow(action)


def test_same_calls_work_outside_of_workflow_code() -> None:
    in_workflow(lambda: None)
    with open(os.devnull):
        time.sleep(0)
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    with socket.socket():
        pass


def test_allowed_lets_a_block_through_and_ends_with_it() -> None:
    def partly() -> str:
        with workflow.unsafe_allowed():
            time.sleep(0)
            with open(os.devnull) as file:
                text = file.read()
        with pytest.raises(GuardError):
            time.sleep(0)
        return text

    assert in_workflow(partly) == ""


def test_allowance_of_one_task_is_not_the_next_ones() -> None:
    seen: list[str] = []

    @workflow.defn
    async def two_tasks() -> None:
        entered = asyncio.Event()

        async def allowed() -> None:
            with workflow.unsafe_allowed():
                entered.set()
                await asyncio.sleep(10)

        async def other() -> None:
            await entered.wait()
            try:
                time.sleep(0)  # noqa: ASYNC251
            except GuardError:
                seen.append("guarded")

        await asyncio.gather(allowed(), other())

    run = MemoryRun(two_tasks)
    assert seen == ["guarded"]
    # Closes the block from outside its task; an error there would be reported as unraisable.
    run.execution.evict()


def test_module_is_imported_lazily_with_all_it_reads(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lazy_module_for_guard.py").write_text(
        "import pathlib\nVALUE = len(pathlib.Path(__file__).read_text())\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def lazily() -> int:
        import lazy_module_for_guard  # type: ignore[import-not-found]

        value: int = lazy_module_for_guard.VALUE
        return value

    try:
        assert in_workflow(lazily) > 0
    finally:
        sys.modules.pop("lazy_module_for_guard", None)


def test_tracebacks_warnings_and_logs_work(tmp_path: pathlib.Path) -> None:
    # Opens its file at the first record, which workflow code makes.
    handler = logging.FileHandler(tmp_path / "log", delay=True)
    logger = logging.getLogger("durable.test_guard")
    logger.addHandler(handler)

    def noisy() -> str:
        import linecache

        linecache.clearcache()
        logger.warning("from the workflow")
        assert "import" in warnings.formatwarning("seen", UserWarning, __file__, 3)
        try:
            raise ValueError("shown")
        except ValueError:
            return traceback.format_exc()

    try:
        assert 'raise ValueError("shown")' in in_workflow(noisy)
    finally:
        logger.removeHandler(handler)
        handler.close()
    assert "from the workflow" in (tmp_path / "log").read_text()


def test_queries_and_other_threads_of_the_process_are_told_apart() -> None:
    ended = threading.Event()

    def beside() -> None:
        with open(os.devnull):
            ended.set()

    @workflow.defn
    async def with_neighbour() -> bool:
        with workflow.unsafe_allowed():
            thread = threading.Thread(target=beside)
            thread.start()
            thread.join()
        return ended.is_set()

    assert MemoryRun(with_neighbour).result is True


def test_installing_again_adds_no_second_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    guard.install()
    added: list[Any] = []
    monkeypatch.setattr(sys, "addaudithook", added.append)
    guard.install()
    assert added == []


def run_python(code: str) -> str:
    """What a fresh process prints that runs ``code``: hooks stay in a process for ever."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_process_gets_one_hook_from_the_core_however_often_it_asks() -> None:
    """The interpreter tells the hooks it has of each that is added."""
    code = """
import sys
from durable import _core
from durable.engine import guard
added = []
sys.addaudithook(lambda event, args: event == "sys.addaudithook" and added.append(event))
guard.install()
guard._is_installed = False
guard.install()
_core.guard(guard.DANGEROUS, guard._judge)
print(len(added))
"""
    assert run_python(code).strip() == "1"


def test_a_hook_that_refuses_ours_is_heard() -> None:
    code = """
import sys
from durable.engine import guard
def refuse(event, args):
    if event == "sys.addaudithook":
        raise BaseException("no more hooks")
sys.addaudithook(refuse)
try:
    guard.install()
except BaseException as error:
    print(error)
"""
    assert run_python(code).strip() == "no more hooks"


def test_what_is_audited_between_two_runs_is_nobodys() -> None:
    """Events while the loop is made the current one are the engine's own, in every turn."""
    run = MemoryRun(waits_twice)
    with open(os.devnull):
        run.complete(value=1)
    with open(os.devnull):
        run.complete(value=2)
    assert run.result == 3


def test_an_event_with_an_exception_under_way_keeps_it() -> None:
    """The code that handles an error may do what is refused, and still has its error."""

    def refused_while_handling() -> Any:
        try:
            raise ValueError("mine")
        except ValueError as error:
            with pytest.raises(GuardError) as refusal:
                os.listdir(".")
            return error, refusal.value.__context__

    error, context = in_workflow(refused_while_handling)
    assert str(error) == "mine"
    assert context is error
