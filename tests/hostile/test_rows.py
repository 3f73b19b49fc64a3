"""Every threat of the catalogue has a test that names it: a row is covered when its id stands in a docstring or an id."""

from __future__ import annotations

import ast
import pathlib
import re

ROWS = {
    "R": range(1, 9),  # rules that follow from the clients of /run
    "OD": range(1, 17),  # defects of the predecessor
    "RE": range(1, 34),  # resource exhaustion
    "ES": range(1, 22),  # escape and privilege
    "LK": range(1, 23),  # leakage between runs
    "PR": range(1, 30),  # supervisor and protocol
    "NW": range(1, 7),  # network
    "AP": range(1, 21),  # API input
    "AR": range(1, 12),  # artifacts
}

HERE = pathlib.Path(__file__).parent
ROW = re.compile(r"\b(RE|ES|LK|PR|NW|AP|AR|OD)-(\d\d)\b|\bR([1-8])\b")


def named_rows(node: ast.AST) -> set[str]:
    """Rows that a test names, in its docstring or in any string of its decorators."""
    assert isinstance(node, ast.FunctionDef)
    texts = [ast.get_docstring(node) or ""]
    for decorator in node.decorator_list:
        texts += [
            part.value for part in ast.walk(decorator) if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
    return {f"R{rule}" if rule else f"{kind}-{number}" for text in texts for kind, number, rule in ROW.findall(text)}


def collected() -> dict[str, set[str]]:
    """Tests of this folder and the rows each of them names."""
    found: dict[str, set[str]] = {}
    for path in HERE.glob("test_*.py"):
        if path == pathlib.Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found[f"{path.name}::{node.name}"] = named_rows(node)
    return found


def test_every_row_has_a_test() -> None:
    """The catalogue on the left, what the tests say of themselves on the right."""
    rows = {
        f"{kind}{number}" if kind == "R" else f"{kind}-{number:02}"
        for kind, numbers in ROWS.items()
        for number in numbers
    }
    named = set().union(*collected().values())
    assert rows - named == set()


def test_every_test_names_a_row() -> None:
    """Otherwise nobody knows what it guards."""
    assert [name for name, rows in collected().items() if not rows] == []
