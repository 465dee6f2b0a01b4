"""The published list: every requirement with where it is shown, from the tests' own docstrings.

    python tests/conformance/listing.py     writes docs/conformance.md

A requirement is a test function whose docstring begins with its id. Its fixture says where it
holds; a mark of expected failure says that it does not hold yet, and why.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "conformance.md"
SENTENCE = re.compile(r"([a-z]+)-(\d+): (.+)", re.DOTALL)

AREAS = {
    "step": "Activities",
    "timer": "Timers",
    "signal": "Signals and conditions",
    "query": "Queries, variables, search attributes",
    "update": "Updates",
    "dynamic": "Dynamic handlers",
    "any": "Dynamic workflows and activities",
    "child": "Child workflows",
    "cancel": "Cancellation, termination, time limits",
    "chain": "Continue-as-new and retries of workflows",
    "version": "Changed code",
    "reset": "Reset, fork, and moving to another version",
    "asyncio": "Plain asyncio",
    "stream": "Streams",
    "map": "Bounded parallel map",
    "saga": "Sagas",
    "error": "Errors",
    "value": "Values",
    "client": "Clients",
    "schedule": "Schedules",
    "header": "Headers",
    "interceptor": "Interceptors",
    "replay": "Replay, guard, workers that come and go",
}
WHERE = {
    "env": "everywhere",
    "skipping": "in process",
    "postgres": "PostgreSQL",
    "database": "PostgreSQL",
}

HEAD = """\
# Conformance

What this library promises to those who write workflows, one sentence per requirement. Each is one
test in `tests/conformance`, named after its id, and runs where its line says:

* *in process*: in the test environment, on a clock of its own; and once more with the run thrown
  out of memory and replayed after every event;
* *PostgreSQL*: on a real database with the real worker;
* *everywhere*: all three of these;
* *alone*: in one environment that it makes itself.

This page is written by `python tests/conformance/listing.py` from the tests; a test fails when they
differ.
"""


@dataclass(frozen=True)
class Requirement:
    """One line of the list. ``open_reason`` is why it does not hold yet."""

    area: str
    number: int
    sentence: str
    where: str
    open_reason: str | None


def requirements() -> list[Requirement]:
    """All of them, by area and number. Raises AssertionError for a test that states none."""
    found = [each for path in sorted(FOLDER.glob("test_*.py")) for each in in_file(path)]
    return sorted(found, key=lambda each: (list(AREAS).index(each.area), each.number))


def in_file(path: Path) -> Iterator[Requirement]:
    """The requirements of one file."""
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if not node.name.startswith("test_") or path.name == "test_conforms_listing.py":
            continue
        match = SENTENCE.fullmatch(ast.get_docstring(node) or "")
        assert match, f"{path.name}: {node.name} states no requirement"
        area, number, sentence = match.groups()
        assert node.name == f"test_{area}_{int(number):02}", (
            f"{path.name}: {node.name} is {area}-{number}"
        )
        arguments = [argument.arg for argument in node.args.args]
        where = next((WHERE[name] for name in arguments if name in WHERE), "alone")
        yield Requirement(area, int(number), " ".join(sentence.split()), where, open_reason(node))


def open_reason(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    """The reason of a ``pytest.mark.xfail`` on the test, if it has one."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith("xfail"):
            values = {key.arg: ast.literal_eval(key.value) for key in decorator.keywords}
            return str(values["reason"])
    return None


def render() -> str:
    """The page."""
    every = requirements()
    still_open = [each for each in every if each.open_reason is not None]
    lines = [HEAD]
    lines.append(
        f"{len(every)} requirements; {len(every) - len(still_open)} hold, "
        f"{len(still_open)} are open.\n"
    )
    for area, title in AREAS.items():
        lines.append(f"## {title}\n")
        for each in every:
            if each.area == area:
                status = "" if each.open_reason is None else f" **Open: {each.open_reason}.**"
                lines.append(f"* **{area}-{each.number}** {each.sentence} *({each.where})*{status}")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render())
