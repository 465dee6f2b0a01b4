"""The command line: what it prints, what it refuses, and with which exit code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from durable.cli.main import main
from durable.runtime.dev import DevNotes

ROOT = Path(__file__).parents[1]
SUBSCRIPTION = str(ROOT / "examples" / "subscription.py")
PLAN = '{"total": 100, "cycles": 3, "cycle": "PT2S"}'


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No notes of a `durable dev`, no settings of the developer."""
    for name in ("DURABLE_DSN", "DURABLE_APP", "DURABLE_SCHEMA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def durable(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result, code: int, *said: str) -> None:
    """It failed with one line, on stderr, that says this."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    for each in said:
        assert each in lines[0]


def test_every_command_teaches_with_an_example() -> None:
    top = durable("--help").stdout
    for name, command in main.commands.items():
        text = durable(name, "--help").stdout
        assert f"durable {name} " in text, f"{name} has no example"
        assert name in top
        for parameter in command.params:
            assert parameter.opts


def test_version_names_the_command() -> None:
    assert durable("--version").stdout.startswith("durable, version ")


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "durable", "migrate", "--sql"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "CREATE TABLE" in done.stdout


def test_no_database_named_is_a_question() -> None:
    refused(durable("result", "x"), 2, "which database?", "--dsn", "DURABLE_DSN")


def test_a_database_that_does_not_answer_is_a_failure() -> None:
    dsn = "postgresql://nobody@127.0.0.1:1/nothing"
    refused(durable("result", "x", "--dsn", dsn), 1, "did not answer")


def test_a_dsn_that_is_none_is_refused() -> None:
    result = durable("result", "x", "--dsn", "this is no dsn")
    assert result.exit_code in (1, 2)
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_database_without_tables_says_what_to_run(dsn: str) -> None:
    elsewhere = ("--dsn", dsn, "--schema", "elsewhere")
    refused(durable("result", "x", *elsewhere), 1, "durable migrate")
    refused(durable("worker", SUBSCRIPTION, *elsewhere, "--port", "0"), 1, "durable migrate")


def test_migrate_twice_is_safe(dsn: str) -> None:
    elsewhere = ("--dsn", dsn, "--schema", "elsewhere")
    first = durable("migrate", *elsewhere)
    assert first.exit_code == 0
    *applied, last = first.stdout.splitlines()
    assert applied[0].startswith("applied 0001_")
    assert "'elsewhere' is at version" in last
    assert durable("migrate", *elsewhere).stdout.splitlines() == [last]
    refused(durable("result", "ghost", *elsewhere), 1, "ghost")


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ("nowhere.py", "there is no file nowhere.py"),
        ("no_such_module_anywhere", "there is no module 'no_such_module_anywhere'"),
        ("json:nothing", "has no attribute 'nothing'"),
        ("json", "has no workflows and no activities"),
        (":x", "no name"),
    ],
)
def test_an_app_that_is_not_there_is_one_line(dsn: str, app: str, said: str) -> None:
    refused(durable("start", "w", "--id", "x", "--app", app, "--dsn", dsn), 1, said)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nothing_like_this\n", "ModuleNotFoundError: No module named 'nothing_like_this'"),
        ("def broken(:\n", "SyntaxError"),
        ("x = 1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_an_app_that_does_not_import_ends_a_worker_at_once(
    dsn: str, tmp_path: Path, source: str, said: str
) -> None:
    app = tmp_path / "broken_app.py"
    app.write_text(source)
    result = durable("worker", str(app), "--dsn", dsn, "--port", "0")
    assert result.exit_code == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("durable: ")
    assert said in last
    assert "broken_app.py" in last
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["start", "no_such", "--id", "x"], 2, ["no_such", "subscription"]),
        (["start", "subscription", "[", "--id", "x"], 2, ["JSON"]),
        (["start", "subscription", "--id", "x"], 2, ["plan"]),
        (["start", "subscription", "[1, 2]", "--id", "x"], 2, ["subscription"]),
        (["start", "subscription", '{"total": "many"}', "--id", "x"], 2, ["plan"]),
        (["start", "subscription", '{"nothing": 1}', "--id", "x"], 2, ["subscription"]),
        (["start", "subscription", PLAN, "--id", ""], 2, ["id"]),
        (["enqueue", "no_such"], 2, ["no_such", "pay"]),
        (["enqueue", "pay", "["], 2, ["JSON"]),
        (["enqueue", "pay", '["x"]'], 2, ["amount"]),
        (["start", "subscription", PLAN, "--id", "x" * 600], 2, ["512"]),
        (["start", "subscription", PLAN, "--id", "a\nb"], 2, ["id"]),
    ],
)
def test_a_bad_start_writes_nothing(
    dsn: str, arguments: list[str], code: int, said: list[str]
) -> None:
    result = durable(*arguments, "--app", SUBSCRIPTION, "--dsn", dsn)
    refused(result, code, *said)
    assert durable("list", "--dsn", dsn).stdout.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["start", "w", "--id", "x", "--delay", "soon"],
        ["start", "w", "--id", "x", "--at", "2026-12-01T08:00:00"],
        ["start", "w", "--id", "x", "--at", "tomorrow"],
        ["start", "w", "--id", "x", "--delay", "1s", "--at", "2026-12-01T08:00:00Z"],
        ["start", "w"],
        ["worker", "app", "--processes", "0"],
        ["list", "--state", "happy"],
        ["result", "x", "--timeout", "-1"],
        ["list", "--search", "customer"],
        ["list", "--started-after", "yesterday"],
        ["start", "w", "--id", "x", "--search", "=Ann"],
        ["nothing"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = durable(*arguments)
    assert result.exit_code == 2
    assert result.stderr


def test_a_worker_option_that_cannot_work_is_refused(dsn: str) -> None:
    worker = ("worker", SUBSCRIPTION, "--dsn", dsn, "--port", "0")
    refused(durable(*worker, "--lease", "0"), 2, "lease_seconds")
    refused(durable(*worker, "--hang", "0"), 2, "hang_seconds")


def test_a_list_goes_on_with_the_cursor_that_it_printed(dsn: str) -> None:
    start = ("start", "subscription", PLAN, "--app", SUBSCRIPTION, "--dsn", dsn)
    for number in range(3):
        assert durable(*start, "--id", f"sub-{number}").exit_code == 0
    listing = ("list", "--limit", "2", "--json", "--started-after", "2020-01-01T00:00:00Z")
    first = json.loads(durable(*listing, "--dsn", dsn).stdout)
    assert [run["id"] for run in first["runs"]] == ["sub-2", "sub-1"]
    assert {run["state"] for run in first["runs"]} == {"running"}
    rest = json.loads(durable(*listing, "--cursor", first["cursor"], "--dsn", dsn).stdout)
    assert [run["id"] for run in rest["runs"]] == ["sub-0"]
    assert rest["cursor"] is None
    shown = durable("list", "--limit", "2", "--id-prefix", "sub-", "--dsn", dsn)
    assert f"more: --cursor {first['cursor']}" in shown.stderr
    refused(durable("list", "--cursor", "nonsense", "--dsn", dsn), 2, "no cursor")


def test_an_id_that_is_taken_names_the_run_that_has_it(dsn: str) -> None:
    start = ("start", "subscription", PLAN, "--id", "sub-7", "--app", SUBSCRIPTION, "--dsn", dsn)
    first = durable(*start)
    assert first.exit_code == 0
    refused(durable(*start), 1, "sub-7", first.stdout.strip())


def test_a_key_that_is_held_yields_the_run_that_holds_it(dsn: str) -> None:
    start = ("start", "subscription", PLAN, "--app", SUBSCRIPTION, "--dsn", dsn)
    first = durable(*start, "--id", "sub-7", "--dedup-key", "ann")
    assert durable(*start, "--id", "sub-8", "--dedup-key", "ann").stdout == first.stdout


def test_an_unknown_run_is_a_failure_of_every_command(dsn: str) -> None:
    for command in (["result"], ["history"], ["describe"], ["cancel"], ["terminate"], ["unpark"]):
        refused(durable(*command, "ghost", "--dsn", dsn), 1, "ghost")
    refused(durable("signal", "ghost", "x", "--dsn", dsn), 1, "ghost")
    refused(durable("vars", "ghost", "--app", SUBSCRIPTION, "--dsn", dsn), 1, "ghost")


def test_a_pending_run_can_be_looked_at_signalled_and_ended(dsn: str) -> None:
    start = ("start", "subscription", PLAN, "--id", "sub-7", "--delay", "1h")
    run_id = durable(*start, "--app", SUBSCRIPTION, "--dsn", dsn).stdout.strip()
    described = json.loads(durable("describe", "sub-7", "--dsn", dsn).stdout)
    assert described["run_id"] == run_id
    assert described["state"] == "running"
    found = json.loads(durable("vars", "sub-7", "--app", SUBSCRIPTION, "--dsn", dsn).stdout)
    assert found == {"paid": 0, "overdue": 0, "cycle": 0}
    refused(durable("vars", "sub-7", "--dsn", dsn), 2, "--app")
    assert durable("signal", "sub-7", "pause", "1", "--dsn", dsn).exit_code == 0
    refused(durable("signal", "sub-7", "pause", "{", "--dsn", dsn), 2, "JSON")
    (row,) = durable("history", "sub-7", "--json", "--dsn", dsn).stdout.splitlines()
    assert json.loads(row)["kind"] == "RUN_STARTED"
    assert "RUN_STARTED" in durable("history", "sub-7", "--dsn", dsn).stdout
    assert "sub-7" in durable("list", "--state", "running", "--dsn", dsn).stdout
    refused(durable("result", "sub-7", "--timeout", "10ms", "--dsn", dsn), 1, "sub-7")


def test_runs_are_found_by_what_their_start_said_of_them(dsn: str) -> None:
    start = ("start", "subscription", PLAN, "--app", SUBSCRIPTION, "--dsn", dsn)
    told = ("--search", "customer=Ann", "--search", "count=3", "--memo", '{"page": 7}')
    assert durable(*start, "--id", "sub-1", *told).exit_code == 0
    assert durable(*start, "--id", "sub-2", "--search", "customer=Bob").exit_code == 0

    def found(*attributes: str) -> list[str]:
        options = [part for each in attributes for part in ("--search", each)]
        listed = durable("list", *options, "--dsn", dsn)
        return [line.split()[0] for line in listed.stdout.splitlines()[1:]]

    assert found("customer=Ann") == ["sub-1"]
    assert found("customer=Ann", "count=3") == ["sub-1"]
    assert found('count="3"') == []
    assert sorted(found()) == ["sub-1", "sub-2"]
    described = json.loads(durable("describe", "sub-1", "--dsn", dsn).stdout)
    assert described["search"] == {"customer": "Ann", "count": 3}
    assert described["memo"] == {"page": 7}
    refused(durable(*start, "--id", "sub-3", "--memo", "{"), 2, "the memo is not JSON")


def test_a_job_is_enqueued_and_listed(dsn: str) -> None:
    first = durable("enqueue", "pay", "5", "--delay", "1h", "--app", SUBSCRIPTION, "--dsn", dsn)
    assert first.exit_code == 0
    job = ("enqueue", "pay", "[5]", "--id", "pay-5", "--app", SUBSCRIPTION, "--dsn", dsn)
    assert durable(*job).stdout == "pay-5\n"
    refused(durable(*job), 1, "pay-5")
    keyed = ("enqueue", "pay", "5", "--dedup-key", "k", "--app", SUBSCRIPTION, "--dsn", dsn)
    assert durable(*keyed).stdout == durable(*keyed).stdout
    refused(durable("enqueue", "pay", "5", "--dsn", dsn), 2, "no activity is called 'pay'")
    listed = durable("list", "--type", "job:pay", "--dsn", dsn).stdout
    assert first.stdout.strip() in listed
    assert "pay-5" in listed


DYNAMIC_APP = """
from typing import Any

from durable import activity, workflow


@workflow.defn(dynamic=True)
async def interpret(name: str, step: int) -> None:
    workflow.set_vars(name=name, step=step)
    await workflow.sleep(3600)


@activity.defn(dynamic=True)
async def forward(name: str, *args: Any) -> None: ...
"""


def test_what_a_dynamic_definition_serves_is_started_by_name(dsn: str, tmp_path: Path) -> None:
    path = tmp_path / "dynamic_app.py"
    path.write_text(DYNAMIC_APP)
    where = ("--app", str(path), "--dsn", dsn)
    assert durable("start", "tea", "[7]", "--id", "a", "--delay", "1h", *where).exit_code == 0
    assert json.loads(durable("describe", "a", "--dsn", dsn).stdout)["type"] == "tea"
    assert json.loads(durable("vars", "a", *where).stdout) == {"name": "tea", "step": 7}
    refused(durable("start", "tea", '["x"]', "--id", "b", *where), 2, "step")
    refused(durable("start", "tea@2", "[7]", "--id", "b", *where), 2, "tea@2", "it has: none")
    assert durable("enqueue", "paint", '["wall"]', "--id", "c", *where).stdout == "c\n"


def test_variables_of_a_schedule_are_shown_as_those_of_any_run(dsn: str) -> None:
    where = ("--app", SUBSCRIPTION, "--dsn", dsn)
    plan = ("--cron", "0 3 * * *", "--paused")
    made = durable("schedule", "create", "nightly", "subscription", PLAN, *plan, *where)
    assert made.exit_code == 0
    assert json.loads(durable("vars", "nightly", *where).stdout)["started"] == 0


def test_unpark_of_a_run_that_is_not_parked_says_so(dsn: str) -> None:
    start = ("start", "subscription", PLAN, "--id", "sub-7", "--delay", "1h")
    assert durable(*start, "--app", SUBSCRIPTION, "--dsn", dsn).exit_code == 0
    refused(durable("unpark", "sub-7", "--dsn", dsn), 1, "is not parked")


def test_a_run_is_paused_shown_and_resumed(dsn: str) -> None:
    start = ("start", "subscription", PLAN, "--id", "sub-7", "--execution-timeout", "1h")
    assert durable(*start, "--app", SUBSCRIPTION, "--dsn", dsn).exit_code == 0
    on = ("--dsn", dsn)
    refused(durable("resume", "sub-7", *on), 1, "is not paused")
    assert durable("pause", "sub-7", "--reason", "the bank looks into it", *on).exit_code == 0
    assert "sub-7" in durable("list", "--state", "paused", *on).stdout
    described = json.loads(durable("describe", "sub-7", *on).stdout)
    assert described["state"] == "paused"
    assert described["failure"]["message"] == "the bank looks into it"
    refused(durable("result", "sub-7", "--timeout", "10ms", *on), 1, "paused", "the bank")
    assert durable("resume", "sub-7", *on).exit_code == 0
    assert "sub-7" in durable("list", "--state", "running", *on).stdout
    refused(durable("pause", "ghost", *on), 1, "ghost")


def test_the_notes_of_a_dev_server_tell_database_and_app(dsn: str, tmp_path: Path) -> None:
    app = str(Path(SUBSCRIPTION).relative_to(ROOT))
    DevNotes(dsn=dsn, app=app, folder=str(ROOT), metrics_url=None, pid=1).save(tmp_path)
    started = durable("start", "subscription", PLAN, "--id", "sub-7", "--delay", "1h")
    assert started.exit_code == 0
    assert json.loads(durable("vars", "sub-7").stdout)["paid"] == 0
    refused(durable("start", "subscription", "[]", "--id", "sub-8"), 2, "plan")


def test_notes_that_cannot_be_read_say_what_to_delete(tmp_path: Path) -> None:
    (tmp_path / ".durable").mkdir()
    (tmp_path / ".durable" / "dev.json").write_text("{")
    refused(durable("list"), 2, "dev.json", "delete it")


def test_the_notes_are_for_their_owner_only(tmp_path: Path) -> None:
    notes = DevNotes(dsn="postgresql://a:secret@b/c", app="x", folder="/", metrics_url=None, pid=1)
    path = notes.save(tmp_path)
    assert path.stat().st_mode & 0o077 == 0
    assert DevNotes.find(tmp_path) == notes
    assert DevNotes.find(tmp_path / "sub" / "folder") == notes


def test_retention_is_shown_and_set(dsn: str) -> None:
    assert durable("retention", "--dsn", dsn).stdout == "30 days\n"
    assert durable("retention", "--days", "90", "--dsn", dsn).stdout == "90 days\n"
    assert durable("retention", "--dsn", dsn).stdout == "90 days\n"
    assert durable("retention", "--days", "off", "--dsn", dsn).stdout.startswith("off: ")
    for bad in ("0", "-1", "ten"):
        assert durable("retention", "--days", bad, "--dsn", dsn).exit_code == 2


def test_limits_of_queues_are_set_listed_and_removed(dsn: str) -> None:
    on = ("--dsn", dsn)
    assert durable("queue", "set", "gpu", "--concurrency", "4", *on).exit_code == 0
    assert durable("queue", "set", "mail", "--rate", "2.5", "--per-key", "3", *on).exit_code == 0
    lines = durable("queue", "list", *on).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["QUEUE", "CONCURRENCY", "RATE", "PER-KEY"],
        ["gpu", "4", "-", "-"],
        ["mail", "-", "2.5", "3"],
    ]
    assert durable("queue", "set", "gpu", *on).exit_code == 0
    assert "gpu" not in durable("queue", "list", *on).stdout
    refused(durable("queue", "set", "gpu", "--rate", "0", *on), 2, "rate")
    assert durable("queue", "show", *on).stdout.split()[:2] == ["QUEUE", "QUEUED"]


def test_a_schedule_is_made_shown_changed_and_removed(dsn: str) -> None:
    create = ["schedule", "create", "nightly", "subscription", PLAN, "--app", SUBSCRIPTION]
    refused(durable(*create, "--dsn", dsn), 2, "cron= or every=")
    for id, team in (("nightly", "shop"), ("hourly", "mail")):
        create[2] = id
        options = ("--cron", "0 3 * * *", "--paused", "--search", f"team={team}", "--dsn", dsn)
        made = durable(*create, *options)
        assert (made.exit_code, made.stdout) == (0, "")
    refused(durable(*create, *options), 1, "is taken")

    def ask(command: str, *options: str) -> Result:
        return durable("schedule", command, *options, "--dsn", dsn)

    assert "hourly" in ask("list").stdout
    listed = ask("list", "--search", "team=shop").stdout
    assert "nightly" in listed
    assert "hourly" not in listed
    assert ask("resume", "nightly").exit_code == 0
    assert json.loads(ask("describe", "nightly").stdout)["paused"] is None
    assert ask("pause", "nightly", "--reason", "holiday").exit_code == 0
    changed = ask("update", "nightly", "--every", "10m", "--overlap", "terminate_other")
    assert changed.exit_code == 0
    shown = json.loads(ask("describe", "nightly").stdout)
    assert shown["paused"] == "holiday"
    assert (shown["plan"]["cron"], shown["plan"]["every_us"]) == (None, 600_000_000)
    times = ("--from", "2026-01-01T00:00:00Z", "--to", "2026-01-01T01:00:00Z")
    assert ask("backfill", "nightly", *times).stdout == "7\n"
    assert ask("trigger", "nightly").exit_code == 0
    assert durable("schedule", "update", "nightly", "--dsn", dsn).exit_code == 2
    assert ask("delete", "nightly").exit_code == 0
    refused(ask("pause", "nothing"), 1, "nothing")
