"""docs/reliability.md: every line of its tables names tests, and all of them exist."""

import ast
import re

import pytest

from tests.app_process import ROOT

DOCUMENT = ROOT / "docs" / "reliability.md"
HEADER = "| fault | what a visitor sees | what is lost | test |"


def problems(document: str) -> list[str]:
    """What is wrong with the tables: lines without all columns or without tests, and tests that do not exist."""
    found = []
    for line in document.splitlines():
        if not line.startswith("|") or line in (HEADER, "| --- | --- | --- | --- |"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        tests = re.findall(r"`(tests/[^`]+)`", cells[-1])
        if len(cells) != 4 or not all(cells) or not tests:
            found.append(f"a line without all of its columns: {line[:80]}")
        found += [f"there is no {test}" for test in tests if not exists(test)]
    return found


def exists(test: str) -> bool:
    """Whether there is a file of tests, or a test in it: path::function."""
    path, _, name = test.partition("::")
    if not (ROOT / path).is_file():
        return False
    functions = [node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")]
    return not name or name in functions


def test_every_fault_has_a_test_that_exists():
    document = DOCUMENT.read_text()
    assert document.count(HEADER) >= 3
    assert problems(document) == []


@pytest.mark.parametrize(
    "line",
    [
        "| a fault | a sentence | nothing | `tests/test_reliability.py::test_that_nobody_wrote` |",
        "| a fault | a sentence | nothing | `tests/test_of_nothing.py` |",
        "| a fault | a sentence | nothing | a test |",
        "| a fault | a sentence | `tests/test_reliability.py` |",
        "| a fault | | nothing | `tests/test_reliability.py` |",
    ],
)
def test_a_line_without_a_test_is_found(line):
    assert len(problems(f"{HEADER}\n{line}")) == 1
