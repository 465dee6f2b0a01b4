"""The page on the Go system's bugs names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "internals" / "go-parity.md"
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text())


def test_the_first_sixteen_bugs_have_a_test_each() -> None:
    rows = [int(number) for number in re.findall(r"^\| (\d+) \|.*`tests/", PAGE.read_text(), re.M)]
    assert rows[:16] == list(range(1, 17))


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_named_test_exists(file: str, name: str) -> None:
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.M)
