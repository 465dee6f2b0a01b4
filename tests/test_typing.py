"""Type checkers accept user code that is right and refuse user code that is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"
ROOT = Path(__file__).parents[1]
EXPECTED = re.compile(r"# expect: ([\w -]+)")
FOUND = re.compile(r"^(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mypy_objects_to_what_is_wrong_and_to_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context"),
            *("--config-file", "", "--cache-dir", str(tmp_path), "right.py", "wrong.py"),
        ],
        cwd=HERE,
        env={"MYPYPATH": str(ROOT / "python"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    found = {match.groups() for line in lines if (match := FOUND.match(line))}
    expected = {
        ("wrong", str(number), code)
        for number, line in enumerate((HERE / "wrong.py").read_text().splitlines(), 1)
        if (match := EXPECTED.search(line))
        for code in match.group(1).split()
    }
    assert done.stderr == ""
    assert found == expected, done.stdout
