"""``durable check`` and ``durable export`` as a person, or a CI job, runs them."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from durable import workflow
from durable.cli import main
from durable.client import Client
from durable.codec import DEFAULT_CODEC, AesGcmCodec, Codec
from durable.engine.execution import Execution
from durable.engine.registry import Registry
from durable.events import RunCommit, SessionInfo
from durable.store.postgres import PostgresStore
from durable.store.sealed import seal_store
from durable.testing import Replayer

OLD = """
import asyncio
from durable import activity, workflow

@activity.defn
async def ship(item: str) -> None: ...

@workflow.defn
async def parcel(item: str) -> str:
    await asyncio.sleep(3600)
    await ship(item)
    return item
"""
NEW = OLD.replace("3600", "7200")


def run(*args: str) -> Result:
    """One command, in this process."""
    return CliRunner().invoke(main, list(args))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of user code, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("parcels"):
            del sys.modules[name]


def test_static_check_names_the_line_and_exits_1(folder: Path) -> None:
    (folder / "bad.py").write_text(
        "import time\nfrom durable import workflow\n"
        "@workflow.defn\nasync def late() -> float:\n    return time.time()\n"
    )

    result = run("check", "bad.py")

    assert result.exit_code == 1
    assert "bad.py:5:12: clock: time.time()" in result.output


def test_static_check_of_good_code_exits_0(folder: Path) -> None:
    (folder / "good.py").write_text(OLD)

    assert run("check", "good.py").exit_code == 0
    assert run("check", "good").exit_code == 0
    assert run("check", ".").exit_code == 0


def test_static_check_speaks_json(folder: Path) -> None:
    (folder / "bad.py").write_text(
        "import time\nfrom durable import workflow\n"
        "@workflow.defn\nasync def late() -> float:\n    return time.time()\n"
    )

    (found,) = json.loads(run("check", "--json", "bad.py").stdout)

    assert (found["line"], found["rule"], found["workflow"]) == (5, "clock", "late")


@pytest.mark.parametrize("args", [[], ["missing.py"], ["no.such.module"], ["--replay", "a", "b"]])
def test_bad_input_exits_2_with_one_line(folder: Path, args: list[str]) -> None:
    result = run("check", *args)

    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.output


@workflow.defn(name="parcel")
async def old_parcel(item: str) -> str:
    """The first turn of `OLD`, for histories made here."""
    await workflow.sleep(3600)
    return item


async def start_and_run_first_turn(dsn: str, count: int, codec: Codec = DEFAULT_CODEC) -> None:
    """Open runs of ``OLD``'s workflow that wait in their sleep, without a worker."""
    store = seal_store(PostgresStore(dsn), codec)
    async with Client.connect(store) as client:
        await client.start_many(old_parcel, [(f"parcel-{n}", (f"item {n}",)) for n in range(count)])
        await store.register_session(SessionInfo(7, "here", 1, "", ["default"]), 60_000_000)
        claimed, _, _ = await store.claim_runs(7, ["default"], ["parcel"], count)
        assert len(claimed) == count
        histories = await store.load({each.run_id: each.part for each in claimed})
        commits = []
        for each in claimed:
            execution = Execution(
                old_parcel, each.run_id, each.workflow_id, registry=Registry([old_parcel])
            )
            execution.load(histories[each.run_id], each.head_hash)
            turn = execution.take()
            assert turn is not None
            assert [timer.ref for timer in turn.timers]
            commits.append(
                RunCommit(
                    each.run_id,
                    each.fence,
                    each.part,
                    each.next_seq,
                    turn.batch,
                    turn.head_hash,
                    timers=turn.timers,
                )
            )
            execution.evict()
        await store.commit(commits)


async def test_replay_of_the_same_code_exits_0(folder: Path, dsn: str) -> None:
    (folder / "parcels_same.py").write_text(OLD)
    await start_and_run_first_turn(dsn, 5)

    result = await in_thread("check", "--replay", "--dsn", dsn, "parcels_same", "--processes", "2")

    assert result.exit_code == 0, result.output
    assert "parcel: 5 replayed, all well" in result.stdout


SEALED = """
from durable.codec import AesGcmCodec, Codec

codec = Codec(pipeline=[AesGcmCodec({"1": b"k" * 32}, active="1")])
"""


async def test_replay_opens_what_the_codec_of_the_app_sealed(folder: Path, dsn: str) -> None:
    (folder / "parcels_sealed.py").write_text(OLD + SEALED)
    (folder / "parcels_open.py").write_text(OLD)
    codec = Codec(pipeline=[AesGcmCodec({"1": b"k" * 32}, active="1")])
    await start_and_run_first_turn(dsn, 3, codec)

    args = ["check", "--replay", "--dsn", dsn, "--processes", "1"]
    good = await in_thread(*args, "parcels_sealed")
    bad = await in_thread(*args, "parcels_open")
    report = await Replayer([old_parcel]).replay_database(dsn, codec=codec)

    assert good.exit_code == 0, good.output
    assert "parcel: 3 replayed, all well" in good.stdout
    assert bad.exit_code != 0
    assert (report.replayed, report.problems) == (3, [])


async def test_replay_of_changed_code_shows_each_kind_once_and_exits_1(
    folder: Path, dsn: str
) -> None:
    (folder / "parcels_new.py").write_text(NEW)
    await start_and_run_first_turn(dsn, 5)

    result = await in_thread(
        "check", "--replay", "--dsn", dsn, "parcels_new.py", "--processes", "1"
    )

    assert result.exit_code == 1, result.output
    assert "parcel: 5 replayed, 5 with a problem" in result.stdout
    assert result.stdout.count("TIMER_STARTED for 7200 s") == 1
    assert "nondeterminism in parcel: 5 (parcel-" in result.stdout


async def test_replay_reports_in_json(folder: Path, dsn: str) -> None:
    (folder / "parcels_json.py").write_text(NEW)
    await start_and_run_first_turn(dsn, 2)

    result = await in_thread("check", "--replay", "--json", "--dsn", dsn, "parcels_json")

    report = json.loads(result.stdout)
    assert (report["replayed"], report["problems"]) == (2, 2)
    (kind,) = report["kinds"]
    assert (kind["kind"], kind["count"], kind["event_id"]) == ("nondeterminism", 2, 2)


async def test_run_of_a_type_that_the_app_lost_is_a_problem(folder: Path, dsn: str) -> None:
    (folder / "parcels_none.py").write_text(OLD.replace("parcel", "letter"))
    await start_and_run_first_turn(dsn, 1)

    result = await in_thread("check", "--replay", "--dsn", dsn, "parcels_none")

    assert result.exit_code == 1
    assert "unknown in parcel: 1" in result.stdout


async def test_code_that_ends_the_process_is_a_problem_of_its_runs(folder: Path, dsn: str) -> None:
    code = OLD.replace("    await asyncio.sleep(3600)", "    raise SystemExit(3)")
    (folder / "parcels_exit.py").write_text(code)
    await start_and_run_first_turn(dsn, 2)

    result = await in_thread("check", "--replay", "--dsn", dsn, "parcels_exit")

    assert result.exit_code == 1
    assert "2 runs replayed, 2 with a problem" in result.stdout


async def test_app_that_ends_the_process_is_told(folder: Path, dsn: str) -> None:
    (folder / "parcels_die.py").write_text(
        OLD + f"import os\nif os.getpid() != {os.getpid()}:\n    os._exit(3)\n"
    )
    await start_and_run_first_turn(dsn, 2)

    result = await in_thread("check", "--replay", "--dsn", dsn, "parcels_die")

    assert result.exit_code == 2
    assert "a replaying process died" in result.stderr


async def test_a_replaying_process_does_not_import_the_program_that_started_it(
    folder: Path, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = folder / "parcels_program.py"
    program.write_text("raise SystemExit('imported by a process')\n")
    (folder / "parcels_apart.py").write_text(OLD)
    await start_and_run_first_turn(dsn, 2)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(program))
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)

    result = await in_thread("check", "--replay", "--dsn", dsn, "parcels_apart")

    assert result.exit_code == 0, result.output


async def test_what_the_app_prints_stays_out_of_the_report(folder: Path, dsn: str) -> None:
    (folder / "parcels_loud.py").write_text(OLD + "print('here I am')\n")
    await start_and_run_first_turn(dsn, 2)

    result = await in_thread("check", "--replay", "--json", "--dsn", dsn, "parcels_loud")

    assert json.loads(result.stdout)["replayed"] == 2


async def test_replayer_reads_the_database_itself(folder: Path, dsn: str) -> None:
    await start_and_run_first_turn(dsn, 3)

    report = await Replayer([old_parcel]).replay_database(dsn)

    assert (report.replayed, report.ok) == (3, True)


async def test_exported_history_replays_from_its_file(folder: Path, dsn: str) -> None:
    (folder / "parcels_old.py").write_text(OLD)
    (folder / "parcels_later.py").write_text(NEW)
    await start_and_run_first_turn(dsn, 1)

    exported = await in_thread("export", "parcel-0", "--dsn", dsn, "-o", "histories.json")
    assert exported.exit_code == 0, exported.output

    Replayer([old_parcel]).replay("histories.json")
    assert run("check", "--histories", "histories.json", "parcels_old").exit_code == 0
    assert run("check", "--histories", "histories.json", "parcels_later").exit_code == 1


async def test_export_of_nothing_says_so(folder: Path, dsn: str) -> None:
    result = await in_thread("export", "nobody", "--dsn", dsn)

    assert result.exit_code == 1
    assert "no workflow with id 'nobody'" in result.stderr


async def in_thread(*args: str) -> Result:
    """A command that has an event loop of its own, beside the test's."""
    return await asyncio.to_thread(run, *args)
