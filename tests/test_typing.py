"""Type checkers accept user code that is right and refuse user code that is wrong.

The files in ``typing/`` are checked and never run. A line that must be an error says so:
``# expect: arg-type``, with the codes of mypy. For pyright it counts that there is an error.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"
ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
FILES = sorted(path.name for path in HERE.glob("*.py"))
EXPECTED = re.compile(r"# expect: ([\w -]+)")
FOUND = re.compile(r"^(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$")
PYRIGHT = shutil.which("basedpyright", path=str(Path(sys.executable).parent)) or shutil.which(
    "basedpyright"
)


def expected() -> set[tuple[str, int, str]]:
    """File, line and code of every marked error."""
    return {
        (name.removesuffix(".py"), number, code)
        for name in FILES
        for number, line in enumerate((HERE / name).read_text().splitlines(), 1)
        if (match := EXPECTED.search(line))
        for code in match.group(1).split()
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mypy_objects_to_what_is_wrong_and_to_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context"),
            *("--config-file", "", "--cache-dir", str(tmp_path), *FILES),
        ],
        cwd=HERE,
        env={"MYPYPATH": str(ROOT / "python"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    lines = [line for line in done.stdout.splitlines() if ": error:" in line]
    matches = [match for line in lines if (match := FOUND.match(line))]
    assert done.stderr == ""
    assert {(each[1], int(each[2]), each[3]) for each in matches} == expected(), done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(PYRIGHT is None, reason="needs basedpyright, which is pyright from a wheel")
def test_pyright_objects_to_what_is_wrong_and_to_nothing_else(tmp_path: Path) -> None:
    errors = pyright_errors(HERE, tmp_path)

    assert errors.keys() == {(name, line) for name, line, _ in expected()}, errors


def pyright_errors(folder: Path, tmp_path: Path) -> dict[tuple[str, int], str]:
    """What pyright says of the files of a folder, by file and line."""
    config = tmp_path / "pyrightconfig.json"
    config.write_text(
        json.dumps(
            {
                "typeCheckingMode": "standard",
                "include": [str(folder)],
                "extraPaths": [str(ROOT / "python"), str(folder)],
                "pythonVersion": "3.11",
            }
        )
    )
    done = subprocess.run(
        [str(PYRIGHT), "--outputjson", "-p", str(config), "--pythonpath", sys.executable],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    return {
        (Path(each["file"]).stem, each["range"]["start"]["line"] + 1): each["message"]
        for each in json.loads(done.stdout)["generalDiagnostics"]
        if each["severity"] == "error"
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(PYRIGHT is None, reason="needs basedpyright, which is pyright from a wheel")
def test_pyright_accepts_the_examples(tmp_path: Path) -> None:
    assert pyright_errors(EXAMPLES, tmp_path) == {}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mypy_accepts_the_examples(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            *("-m", "mypy", "--strict", "--no-error-summary", "--config-file", ""),
            *("--cache-dir", str(tmp_path), *sorted(map(str, EXAMPLES.glob("*.py")))),
        ],
        cwd=EXAMPLES,
        env={"MYPYPATH": str(ROOT / "python"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("", "")
