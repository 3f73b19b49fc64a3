"""Every threat of the catalogue has a test that names it: a row is covered when its id stands in a docstring or an id.

Attacks have theirs in this folder. Faults of the service itself (SF) are mostly brought about elsewhere, without a program.
"""

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
    "SF": range(1, 25),  # faults of the service and of what it depends on
}

TESTS = pathlib.Path(__file__).parents[1]
HERE = TESTS / "hostile"
ROW = re.compile(r"\b(RE|ES|LK|PR|NW|AP|AR|OD|SF)-(\d\d)\b|\bR([1-8])\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def named_rows(node: Function) -> set[str]:
    """Rows that a test names, in its docstring or in any string of its decorators."""
    texts = [ast.get_docstring(node) or ""]
    for decorator in node.decorator_list:
        texts += [
            part.value for part in ast.walk(decorator) if isinstance(part, ast.Constant) and isinstance(part.value, str)
        ]
    return {f"R{rule}" if rule else f"{kind}-{number}" for text in texts for kind, number, rule in ROW.findall(text)}


def collected(folder: pathlib.Path) -> dict[str, set[str]]:
    """Tests of a folder and all below, and the rows each of them names."""
    found: dict[str, set[str]] = {}
    for path in folder.rglob("test_*.py"):
        if path == pathlib.Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function) and node.name.startswith("test_"):
                found[f"{path.name}::{node.name}"] = named_rows(node)
    return found


def rows(*kinds: str) -> set[str]:
    return {f"{kind}{number}" if kind == "R" else f"{kind}-{number:02}" for kind in kinds for number in ROWS[kind]}


def test_every_row_has_a_test() -> None:
    """The catalogue on the left, what the tests say of themselves on the right."""
    attacks = rows(*(ROWS.keys() - {"SF"}))
    assert attacks - set().union(*collected(HERE).values()) == set()
    assert rows("SF") - set().union(*collected(TESTS).values()) == set()


def test_no_test_names_a_row_that_does_not_exist() -> None:
    """A slip in a number would make one row look covered twice and another not at all."""
    assert set().union(*collected(TESTS).values()) - rows(*ROWS) == set()


def test_every_test_names_a_row() -> None:
    """Otherwise nobody knows what it guards."""
    assert [name for name, named in collected(HERE).items() if not named] == []
