"""Collecting findings: one per rule and line, in the order of the source, bounded."""

from __future__ import annotations

import re
from typing import Final

from sandbox_svc.analysis.findings import MAX_FINDINGS, Finding
from sandbox_svc.analysis.rules import Rule, RuleBook

_MAX_NAME: Final = 80
_MAX_COLLECTED: Final = 20 * MAX_FINDINGS
"""Findings are sorted at the end, so more are collected than shown; past this many it makes no difference."""


_CALL_MARK: Final = re.compile(r"(?<=\w)\(\)")


class TooMuchWork(Exception):
    """The source needs more than the budget of its analysis; the message continues "the program cannot be analysed"."""


def shown(name: str) -> str:
    """Return a name as callers see it: short, printable, without the analysis' own notation."""
    name = name.removeprefix("node:").removeprefix("npm:")
    text = _CALL_MARK.sub("", name[: 4 * _MAX_NAME].removeprefix("builtins.")).replace("\ufffc", "*")
    text = "".join(character if character.isprintable() else "?" for character in text[: _MAX_NAME + 1])
    return text if len(text) <= _MAX_NAME else text[: _MAX_NAME - 3] + "..."


class Reporter:
    """Takes what rules find in one source. `lines` are its lines as bytes."""

    def __init__(self, book: RuleBook, lines: list[bytes]) -> None:
        self._book = book
        self._lines = lines
        self._found: dict[tuple[str, int], tuple[int, str, Rule]] = {}

    def add(self, rule_id: str, node: object, name: str) -> None:
        """Report a node of a Python tree."""
        self.add_at(rule_id, getattr(node, "lineno", 1), getattr(node, "col_offset", 0), name)

    def add_at(self, rule_id: str, line: int, column: int, name: str) -> None:
        """Report a place, unless this level does not have the rule: a line from 1, a column from 0 in bytes."""
        rule = self._book.get(rule_id)
        key = (rule_id, line)
        if rule is None or (len(self._found) >= _MAX_COLLECTED and key not in self._found):
            return
        earlier = self._found.get(key)
        if earlier is None or column < earlier[0]:
            self._found[key] = (column, name, rule)

    def findings(self) -> tuple[Finding, ...]:
        """Return what was reported, in the order of the source; the first `MAX_FINDINGS`."""
        ordered = sorted((line, column, rule.id, name, rule) for (_, line), (column, name, rule) in self._found.items())
        return tuple(
            Finding(
                rule=rule.id,
                level=rule.level,
                line=line,
                column=self._characters(line, column),
                message=rule.sentence.replace("{name}", shown(name)),
            )
            for line, column, _, name, rule in ordered[:MAX_FINDINGS]
        )

    def _characters(self, line: int, column: int) -> int:
        text = self._lines[line - 1][:column] if 0 < line <= len(self._lines) else b""
        return len(text.decode("utf-8", "replace")) + 1
