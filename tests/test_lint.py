"""The static check: what it finds, what it leaves alone."""

import json
import textwrap
from pathlib import Path

import pytest

from durable.check import check_file, check_source
from durable.errors import InvalidArgumentError

HEAD = """
import asyncio, datetime, os, random, secrets, socket, subprocess, threading, time, uuid
import datetime as dt
from datetime import date, datetime as moment
from pathlib import Path
from uuid import uuid4
import requests, httpx
from durable import activity, workflow

CACHE = {}
COUNT = 0
NAMES = {"a", "b"}

@activity.defn
def pay(cents): ...

@activity.transactional
async def post(conn, cents):
    time.time()
"""


def found(body: str) -> list[tuple[str, int]]:
    """Rule and line (from the first of ``body``) of each finding in a workflow of that body."""
    source = HEAD + "@workflow.defn\nasync def flow(numbers: set[int], given=None):\n"
    first = source.count("\n")
    source += textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"
    return [(each.rule, each.line - first) for each in check_source(source)]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("moment.now()", "clock"),
        ("moment.utcnow()", "clock"),
        ("datetime.datetime.now(datetime.UTC)", "clock"),
        ("dt.datetime.today()", "clock"),
        ("date.today()", "clock"),
        ("time.time()", "clock"),
        ("time.monotonic()", "clock"),
        ("time.sleep(1)", "sleep"),
        ("random.random()", "random"),
        ("random.choice([1])", "random"),
        ("random.Random()", "random"),
        ("secrets.token_hex()", "random"),
        ("os.urandom(3)", "random"),
        ("uuid4()", "uuid"),
        ("uuid.uuid1()", "uuid"),
        ("os.environ['HOME']", "environment"),
        ("os.environ.get('HOME')", "environment"),
        ("os.getenv('HOME')", "environment"),
        ("open('x')", "io"),
        ("Path('x').read_text()", "io"),
        ("requests.get('http://x')", "io"),
        ("httpx.AsyncClient()", "io"),
        ("socket.create_connection(('x', 1))", "io"),
        ("subprocess.run(['ls'])", "process"),
        ("threading.Thread(target=print)", "thread"),
        ("await asyncio.to_thread(print)", "thread"),
        ("asyncio.get_running_loop().run_in_executor(None, print)", "thread"),
        ("hash('x')", "hash"),
        ("for each in {1, 2}: pass", "set-order"),
        ("for each in numbers: pass", "set-order"),
        ("[each for each in set(given)]", "set-order"),
        ("list(numbers | {3})", "set-order"),
        ("tuple(NAMES)", "set-order"),
        ("','.join({'a', 'b'})", "set-order"),
        ("print(*numbers)", "set-order"),
        ("numbers.pop()", "set-order"),
        ("CACHE['x'] = 1", "global"),
        ("CACHE.update(x=1)", "global"),
        ("del CACHE['x']", "global"),
        ("pay(3)", "no-await"),
        ("post(3)", "no-await"),
        ("asyncio.sleep(3)", "no-await"),
        ("workflow.execute_activity(pay, 3)", "no-await"),
    ],
)
def test_each_danger_is_found(line: str, rule: str) -> None:
    assert found(line) == [(rule, 1)]


@pytest.mark.parametrize(
    "line",
    [
        "workflow.now()",
        "workflow.random().random()",
        "random.Random(7)",
        "await asyncio.sleep(1)",
        "datetime.datetime(2026, 1, 1)",
        "datetime.datetime.fromisoformat('2026-01-01')",
        "sorted({1, 2})",
        "len(numbers) + (3 in numbers)",
        "for each in sorted(numbers): pass",
        "for each in {1: 2}: pass",
        "uuid.uuid5(uuid.NAMESPACE_DNS, 'x')",
        "CACHE.get('x')",
        "cache = {}; cache['x'] = 1",
        "workflow.side_effect(lambda: random.random())",
        "workflow.side_effect(random.random)",
        "given.open(); given.random()",
        "random = given; random.random()",
        "time.time()  # durable: allow",
        "await pay(3)",
        "later = pay(3); await later",
        "await asyncio.gather(pay(3), post(4))",
        "group.create_task(pay(3))",
        "pay = given; pay(3)",
    ],
)
def test_what_can_be_replayed_is_left_alone(line: str) -> None:
    assert found(line) == []


def test_unsafe_block_is_left_alone() -> None:
    body = """
    with workflow.unsafe_allowed():
        time.time()
    time.time()
    """
    assert found(body) == [("clock", 3)]


def test_global_statement_is_found() -> None:
    assert found("global COUNT\nCOUNT += 1") == [("global", 2)]


def test_nested_functions_are_workflow_code() -> None:
    assert found("def inner():\n    return time.time()\ninner()") == [("clock", 2)]


MODULE = (
    HEAD
    + """
@activity.defn
async def outside():
    return time.time()

def helper():
    return deeper()

def deeper():
    return uuid4()

def unused():
    return time.time()

class Box:
    def fill(self):
        self.at = moment.now()

@workflow.defn(name="Shop")
class Shop:
    def __init__(self):
        self.open: set[str] = set()

    @workflow.run
    async def run(self):
        await outside()
        helper()
        Box().fill()
        for each in self.open:
            pass

    @workflow.signal
    def poke(self):
        self.number = random.random()
"""
)


def test_functions_that_workflows_call_are_followed() -> None:
    findings = {(each.rule, each.function) for each in check_source(MODULE)}

    assert findings == {
        ("uuid", "deeper"),
        ("clock", "Box"),
        ("set-order", "Shop"),
        ("random", "Shop"),
    }
    assert {each.workflow for each in check_source(MODULE)} == {"Shop"}


def test_module_without_workflows_may_do_anything() -> None:
    assert check_source("import time\ndef now():\n    return time.time()\n") == []


def test_finding_reads_as_a_compiler_line() -> None:
    source = "import time\nfrom durable import workflow\n@workflow.defn\nasync def flow():\n"
    (finding,) = check_source(source + "    return time.time()\n", "flows.py")

    assert finding.render() == (
        "flows.py:5:12: clock: time.time() reads the clock of the machine; "
        "use workflow.now() (workflow flow)"
    )
    assert json.loads(json.dumps(finding.to_dict()))["line"] == 5


def test_file_that_is_no_python_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("def (")

    with pytest.raises(InvalidArgumentError, match="not Python"):
        check_file(file)
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        check_file(tmp_path / "missing.py")


def test_our_own_examples_pass() -> None:
    for file in (Path(__file__).parents[1] / "examples").rglob("*.py"):
        assert check_file(file) == []
