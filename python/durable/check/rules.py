"""Rules: calls that differ from replay to replay, and their durable counterparts.

A pattern is a full dotted name, or a prefix that ends in a dot and stands for all below it. The
longest pattern counts; an empty rule takes a name out again.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """``id`` names the kind in output, ``what`` says what is wrong, ``instead`` what to write."""

    id: str
    what: str
    instead: str


CLOCK = Rule("clock", "reads the clock of the machine", "workflow.now()")
SLEEP = Rule("sleep", "blocks the whole worker", "await workflow.sleep(), or asyncio.sleep()")
RANDOM = Rule("random", "draws another number in every replay", "workflow.random()")
UUID = Rule("uuid", "makes another id in every replay", "workflow.uuid4() or workflow.uuid7()")
SECRET = Rule("random", "draws another value in every replay", "workflow.random(), or an activity")
ENVIRONMENT = Rule(
    "environment",
    "may differ on the next machine",
    "an argument of the workflow, or workflow.side_effect()",
)
FILES = Rule("io", "touches files", "an activity")
NETWORK = Rule("io", "talks to the network", "an activity")
DATABASE = Rule("io", "talks to a database", "an activity")
PROCESS = Rule("process", "starts a process", "an activity")
THREAD = Rule("thread", "uses a thread", "a sync activity; workflow code has one thread")
LOOP = Rule("loop", "makes an event loop of its own", "await; the run has its loop")
CONSOLE = Rule("io", "waits for a person at the console", "a signal, or an update")
ADDRESS = Rule("hash", "differs from process to process", "an id or a key of your own")
SET_ORDER = Rule("set-order", "takes a set in an order that differs", "sorted(...), or a dict")
GLOBAL = Rule(
    "global",
    "changes state that outlives the run and is shared by all runs",
    "a local variable, or an attribute of the workflow class",
)
NO_AWAIT = Rule(
    "no-await",
    "begins and is never waited for: the run goes on without it, and may end before it does",
    "await; or keep what it returns, and await that later",
)
FINE = Rule("", "", "")

CALLS: dict[str, Rule] = {
    "datetime.datetime.now": CLOCK,
    "datetime.datetime.utcnow": CLOCK,
    "datetime.datetime.today": CLOCK,
    "datetime.date.today": CLOCK,
    "time.": CLOCK,
    "time.sleep": SLEEP,
    "time.strptime": FINE,
    "time.mktime": FINE,
    "time.struct_time": FINE,
    "random.": RANDOM,
    "numpy.random.": RANDOM,
    "secrets.": SECRET,
    "secrets.compare_digest": FINE,
    "os.urandom": SECRET,
    "uuid.uuid1": UUID,
    "uuid.uuid4": UUID,
    "uuid.uuid6": UUID,
    "uuid.uuid7": UUID,
    "uuid.getnode": ENVIRONMENT,
    "os.getenv": ENVIRONMENT,
    "os.getpid": ENVIRONMENT,
    "os.getcwd": ENVIRONMENT,
    "os.cpu_count": ENVIRONMENT,
    "os.uname": ENVIRONMENT,
    "platform.": ENVIRONMENT,
    "getpass.": ENVIRONMENT,
    "open": FILES,
    "io.open": FILES,
    "os.open": FILES,
    "os.listdir": FILES,
    "os.scandir": FILES,
    "os.walk": FILES,
    "os.remove": FILES,
    "os.rename": FILES,
    "os.mkdir": FILES,
    "os.makedirs": FILES,
    "os.path.exists": FILES,
    "os.path.isfile": FILES,
    "os.path.isdir": FILES,
    "shutil.": FILES,
    "tempfile.": FILES,
    "glob.": FILES,
    "input": CONSOLE,
    "socket.": NETWORK,
    "ssl.": NETWORK,
    "requests.": NETWORK,
    "httpx.": NETWORK,
    "aiohttp.": NETWORK,
    "urllib.request.": NETWORK,
    "urllib3.": NETWORK,
    "http.client.": NETWORK,
    "smtplib.": NETWORK,
    "boto3.": NETWORK,
    "websockets.": NETWORK,
    "asyncio.open_connection": NETWORK,
    "asyncio.start_server": NETWORK,
    "psycopg.": DATABASE,
    "psycopg2.": DATABASE,
    "asyncpg.": DATABASE,
    "sqlite3.": DATABASE,
    "redis.": DATABASE,
    "pymongo.": DATABASE,
    "sqlalchemy.create_engine": DATABASE,
    "subprocess.": PROCESS,
    "multiprocessing.": PROCESS,
    "os.system": PROCESS,
    "os.popen": PROCESS,
    "os.fork": PROCESS,
    "asyncio.create_subprocess_exec": PROCESS,
    "asyncio.create_subprocess_shell": PROCESS,
    "threading.": THREAD,
    "concurrent.futures.": THREAD,
    "asyncio.to_thread": THREAD,
    "asyncio.run_coroutine_threadsafe": THREAD,
    "asyncio.run": LOOP,
    "asyncio.new_event_loop": LOOP,
    "hash": ADDRESS,
    "id": ADDRESS,
}
"""By full name of what is called."""

VALUES: dict[str, Rule] = {"os.environ": ENVIRONMENT, "os.environb": ENVIRONMENT}
"""By full name of what is merely looked at."""

METHODS: dict[str, Rule] = {
    "run_in_executor": THREAD,
    "read_text": FILES,
    "read_bytes": FILES,
    "write_text": FILES,
    "write_bytes": FILES,
}
"""By the name of a method, whatever it is called on."""

AWAITED = frozenset(
    {
        *("asyncio.sleep", "asyncio.wait", "asyncio.wait_for"),
        *(
            f"durable.workflow.{name}"
            for name in (
                *("execute_activity", "execute_child", "map", "sleep", "sleep_until"),
                *("wait_condition", "wait_signal", "signal_external", "cancel_external"),
            )
        ),
    }
)
"""Calls that do nothing for who does not wait for them; as are calls of activities."""

SEEDED = frozenset({"random.Random", "numpy.random.default_rng"})
"""Fine with an argument: seeded from what the workflow knows."""

ORDERED_BY_CALLEE = frozenset({"list", "tuple", "enumerate", "iter", "zip", "map", "filter"})
"""Builtins that pass the order of their arguments on."""

MUTATORS = frozenset(
    {
        *("append", "extend", "insert", "remove", "pop", "popleft", "popitem", "clear", "add"),
        *("discard", "update", "setdefault", "sort", "reverse", "appendleft"),
    }
)
"""Methods that change what they are called on."""


def rule_for(name: str, table: dict[str, Rule]) -> Rule | None:
    """The rule of the longest pattern that fits a dotted name."""
    found = table.get(name)
    prefix = name
    while found is None and "." in prefix:
        prefix = prefix.rpartition(".")[0]
        found = table.get(prefix + ".")
    return None if found is FINE else found
