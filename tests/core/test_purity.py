"""The folders of the core say which kind of Rust one is reading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "rust_core" / "src"
PURE = sorted(path for path in SOURCE.glob("*.rs") if path.name != "lib.rs")
BINDING = sorted((SOURCE / "python").rglob("*.rs"))
assert PURE
assert BINDING

UNSAFE = re.compile(r"\bunsafe\s*(\{|fn\b|impl\b|extern\b)")
IMPURE = re.compile(
    r"\bstd::(fs|net|io|env|process|thread|time|sync|os)\b|\b(rand|getrandom|println|eprintln)\b"
)


def code_of(path: Path) -> str:
    """A file without its comments and unit tests."""
    text = path.read_text().split("#[cfg(test)]")[0]
    return re.sub(r"//.*", "", text)


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.name)
def test_a_pure_module_forbids_unsafe_code(path: Path) -> None:
    assert "#![forbid(unsafe_code)]" in path.read_text()


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.name)
def test_a_pure_module_knows_no_python_and_no_world(path: Path) -> None:
    code = code_of(path)

    assert "pyo3" not in code
    assert IMPURE.search(code) is None


@pytest.mark.parametrize("path", BINDING, ids=lambda path: path.name)
def test_only_the_future_has_unsafe_code(path: Path) -> None:
    code = code_of(path)

    if path.name == "future.rs":
        assert code.count("unsafe") > 0
        # Each use says why it is sound.
        assert path.read_text().count("SAFETY:") >= len(re.findall(r"unsafe \{", code)) - 1
    else:
        assert UNSAFE.search(code) is None


def test_what_is_not_in_a_folder_says_so() -> None:
    """`lib.rs` names the binding behind its feature, and denies unsafe code everywhere else."""
    text = (SOURCE / "lib.rs").read_text()

    assert "#![deny(unsafe_code)]" in text
    assert '#[cfg(feature = "python")]\npub mod python;' in text
