"""Static analysis of JavaScript, on a tree that a real grammar gives.

Whether a source is JavaScript at all is for Node to say: the parser reads on after what it does not know, so newer
syntax is never refused here, and what could be read is judged.
"""

from __future__ import annotations

import re
from typing import Final

from sandbox_svc.analysis import common_rules
from sandbox_svc.analysis.findings import NOTHING, Analysis, Finding
from sandbox_svc.analysis.javascript import tree
from sandbox_svc.analysis.javascript.checks import Judge
from sandbox_svc.analysis.javascript.resolve import Resolver
from sandbox_svc.analysis.javascript.scopes import ProgramIndex
from sandbox_svc.analysis.report import Reporter, TooMuchWork
from sandbox_svc.analysis.rules import RuleBook

MAX_NODES: Final = 400_000
MAX_EMBEDDED: Final = 2

_LINE_END: Final = re.compile(rb"\r\n|\r|\n|\xe2\x80\xa8|\xe2\x80\xa9")


class JavaScriptAnalysis:
    """Analyses JavaScript sources with one set of rules. Immutable: one object serves all sources."""

    def __init__(self, book: RuleBook, strict_book: RuleBook, *, max_steps: int, max_seconds: float) -> None:
        self._book = book
        self._strict_book = strict_book
        self._max_steps = max_steps
        self._max_seconds = max_seconds

    def analyse(self, source: bytes) -> Analysis:
        """Judge one source, whatever the bytes are. Raises `TooMuchWork` when the budget does not suffice."""
        try:
            findings, is_complete = _judge(
                source, self._book, self._strict_book, max_steps=self._max_steps, max_seconds=self._max_seconds
            )
        except tree.TooSlow:
            raise TooMuchWork("reading it takes too long") from None
        except RecursionError:
            # Depths are bounded apart, names and what is worked out; 700 frames together were the most that was seen.
            raise TooMuchWork("its names lead too deep") from None
        except tree.TooManyNodes:
            return self._single(common_rules.TOO_COMPLEX, f"it has more than {MAX_NODES} parts")
        if not is_complete:
            raise TooMuchWork("following its names takes too long")
        return Analysis(findings) if findings else NOTHING

    def _single(self, rule_id: str, name: str) -> Analysis:
        reporter = Reporter(self._book, [])
        reporter.add_at(rule_id, 1, 0, name)
        return Analysis(reporter.findings())


def _judge(
    source: bytes, book: RuleBook, strict_book: RuleBook, *, max_steps: int, max_seconds: float, depth: int = 0
) -> tuple[tuple[Finding, ...], bool]:
    root = tree.parse(source, max_seconds=max_seconds, max_nodes=MAX_NODES)
    index = ProgramIndex(root)
    resolver = Resolver(index, max_steps=max_steps)
    starts = [0, *(match.end() for match in _LINE_END.finditer(source))]
    lines = [source[start:end] for start, end in zip(starts, [*starts[1:], len(source)], strict=True)]
    reporter = Reporter(book, lines)

    def is_harmless(text: str, *, as_program: bool = False) -> bool:
        """A program that its rules do not object to, or an expression that the strict rules do not object to."""
        inner = text.strip().rstrip(";").encode("utf-8", "replace")
        if depth >= MAX_EMBEDDED:
            return False
        try:
            parsed = tree.parse(inner, max_seconds=max_seconds / 4, max_nodes=MAX_NODES)
            if not as_program and [node.type for node in parsed.children] != ["expression_statement"]:
                return False
            found, is_complete = _judge(
                inner,
                book if as_program else strict_book,
                strict_book,
                max_steps=max_steps // 4,
                max_seconds=max_seconds / 4,
                depth=depth + 1,
            )
        except (tree.TooSlow, tree.TooManyNodes):
            return False
        # What only `strict` objects to, it says of the worker that the program is run in.
        return is_complete and not any(finding.level == "standard" or not as_program for finding in found)

    findings = Judge(index, resolver, book, reporter, starts, is_harmless, is_embedded=depth > 0).run()
    return findings, resolver.steps_left > 0
