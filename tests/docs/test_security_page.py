"""The threat table of docs/security.md is true: every row names tests, and each of them is there and runs."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "security.md").read_text("utf-8")
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def rows() -> list[str]:
    """The rows of all tables in the part on threats."""
    part = PAGE.partition("\n## Threats")[2].partition("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [line for line in lines if not line.startswith(("| threat |", "| class |"))]


@cache
def functions_of(path: Path) -> dict[str, list[str]]:
    """The tests of a file, with what decorates each."""
    found: dict[str, list[str]] = {}
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            found[node.name] = [ast.unparse(one) for one in node.decorator_list]
    return found


def test_there_are_threats() -> None:
    assert len(rows()) > 40
    assert len({row.split("|")[1].strip() for row in rows()}) == len(rows())


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.split("|")[1].strip()[:50])
def test_each_row_names_tests_that_are_there(row: str) -> None:
    named = NAMED.findall(row.split("|")[3])
    assert named, "no test is named"
    assert len(named) == row.split("|")[3].count("`") // 2, "something in the column is no test"
    for file, name in named:
        paths = [path for path in TESTS.rglob("test_*.py") if str(path).endswith(f"/{file}")]
        assert len(paths) == 1, f"{file} is {len(paths)} files"
        assert name in functions_of(paths[0]), f"{file} has no {name}"
        assert not any(mark.endswith("mark.skip") or "mark.skip(" in mark for mark in functions_of(paths[0])[name])


def test_the_classes_of_published_advisories_are_all_there() -> None:
    part = PAGE.partition("### Classes of published advisories")[2]
    assert len(set(re.findall(r"CVE-\d{4}-\d{4,}", part))) >= 28
