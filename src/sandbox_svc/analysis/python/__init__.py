"""Static analysis of Python, on the syntax tree of the bytes that the interpreter will see."""

from __future__ import annotations

import ast
import sys
from typing import Final

from sandbox_svc.analysis import common_rules
from sandbox_svc.analysis.findings import NOTHING, Analysis, Finding
from sandbox_svc.analysis.python import rules
from sandbox_svc.analysis.python import source as sources
from sandbox_svc.analysis.python.call_checks import CallChecks
from sandbox_svc.analysis.python.checks import Judge
from sandbox_svc.analysis.python.resolve import Resolver
from sandbox_svc.analysis.python.scopes import ProgramIndex, TooManyNodes
from sandbox_svc.analysis.report import Reporter, TooMuchWork
from sandbox_svc.analysis.rules import RuleBook

MAX_NODES: Final = 400_000
MAX_EMBEDDED: Final = 2
"""Levels of code in texts in code."""
_MAX_EMBEDDED_IMPORTS: Final = 50


class PythonAnalysis:
    """Analyses Python sources with one set of rules. Immutable: one object serves all sources.

    `sandbox_version` is that of the interpreter that would run them; None makes every syntax error here final.
    """

    def __init__(
        self,
        book: RuleBook,
        strict_book: RuleBook,
        *,
        source_name: str,
        sandbox_version: tuple[int, int] | None,
        max_steps: int,
    ) -> None:
        self._book = book
        self._strict_book = strict_book
        self._source_name = source_name
        self._sandbox_version = sandbox_version
        self._max_steps = max_steps

    def analyse(self, source: bytes) -> Analysis:
        """Judge one source, whatever the bytes are. Raises `TooMuchWork` when the budget does not suffice."""
        encoding = sources.foreign_encoding(source)
        if encoding is not None:
            return self._single(rules.ENCODING, encoding)
        try:
            tree = sources.parse(source, source_name=self._source_name)
            index = ProgramIndex(tree, max_nodes=MAX_NODES)
            if not index.has_finally and len(source) <= sources.MAX_COMPILED:
                sources.check_compiles(tree, source, source_name=self._source_name)
        except sources.NotPython as problem:
            return Analysis(source_error=problem.error) if self._is_final(source) else NOTHING
        except sources.TooDeep:
            return self._single(common_rules.TOO_COMPLEX, "it is nested too deeply")
        except TooManyNodes:
            return self._single(common_rules.TOO_COMPLEX, f"it has more than {MAX_NODES} parts")
        findings, is_complete = _judge(index, self._book, self._strict_book, source.splitlines(), self._max_steps)
        if not is_complete:
            raise TooMuchWork("following its names takes too long")
        return Analysis(findings) if findings else NOTHING

    def _is_final(self, source: bytes) -> bool:
        if self._sandbox_version is None:
            return True
        return sources.is_error_final(source, here=sys.version_info[:2], sandbox=self._sandbox_version)

    def _single(self, rule_id: str, name: str) -> Analysis:
        reporter = Reporter(self._book, [])
        reporter.add_at(rule_id, 1, 0, name)
        return Analysis(reporter.findings())


def _judge(
    index: ProgramIndex, book: RuleBook, strict_book: RuleBook, lines: list[bytes], max_steps: int, depth: int = 0
) -> tuple[tuple[Finding, ...], bool]:
    resolver = Resolver(index, max_steps=max_steps)
    reporter = Reporter(book, lines)
    known: dict[tuple[str, bool], tuple[str, str] | None] = {}

    def judge_embedded(text: str, strictly: bool) -> tuple[str, str] | None:
        if depth >= MAX_EMBEDDED:
            return (rules.DYNAMIC_CODE, "code in a text in a text")
        if (text, strictly) not in known:
            chosen = strict_book if strictly else book
            known[text, strictly] = _judge_embedded(
                text, index, chosen, strict_book, max_steps=max(resolver.steps_left // 4, 1), depth=depth + 1
            )
        return known[text, strictly]

    calls = CallChecks(resolver, book, reporter, judge_embedded)
    findings = Judge(index, resolver, book, reporter, calls).run()
    return findings, resolver.steps_left > 0


def _judge_embedded(
    text: str, outer: ProgramIndex, book: RuleBook, strict_book: RuleBook, *, max_steps: int, depth: int
) -> tuple[str, str] | None:
    """Judge code in a text as if it stood in the program, whose imports it sees. None: nothing found, or no code."""
    try:
        tree = sources.parse(text.strip().encode("utf-8", "replace"), source_name="")
        imports: list[ast.stmt] = list(outer.imports[:_MAX_EMBEDDED_IMPORTS])
        index = ProgramIndex(ast.Module(body=[*imports, *tree.body], type_ignores=[]), max_nodes=MAX_NODES)
    except (sources.NotPython, sources.TooDeep, TooManyNodes):
        return None
    own = {id(node) for node in outer.imports}
    index.interesting = [node for node in index.interesting if id(node) not in own]
    findings, _ = _judge(index, book, strict_book, [], max_steps, depth)
    if not findings:
        return None
    return rules.DYNAMIC_CODE if book is strict_book and depth else findings[0].rule, findings[0].message.partition(
        " "
    )[0]
