"""The analysis itself, as a pure function of mode, language and source; no I/O, no state."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from sandbox_svc.analysis import common_rules
from sandbox_svc.analysis.findings import NOTHING, SOURCE_FILE, Analysis, AnalysisMode, Finding, Level
from sandbox_svc.analysis.javascript import JavaScriptAnalysis
from sandbox_svc.analysis.javascript.rules import JAVASCRIPT_RULES
from sandbox_svc.analysis.python import PythonAnalysis
from sandbox_svc.analysis.python.rules import PYTHON_RULES
from sandbox_svc.analysis.report import TooMuchWork
from sandbox_svc.analysis.rules import LanguageName, Rule, RuleBook

MAX_SOURCE_BYTES: Final = 1024 * 1024
"""Larger sources are refused as `too-complex`: nobody writes them, and data belongs into arguments or files."""

SANDBOX_PYTHON: Final = (3, 13)
"""The interpreter in the Python image. An older one here does not know all of its syntax."""

_STANDARD: Final[frozenset[Level]] = frozenset({"standard"})
_STRICT: Final[frozenset[Level]] = frozenset({"standard", "strict"})


class Analyser(Protocol):
    """Judges sources. A plain function: pure, bounded by its budget, safe in any process."""

    def analyse(self, analyser_name: str | None, source: bytes) -> Analysis:
        """Return what speaks against running the source. `analyser_name` comes from the language's manifest."""
        ...


class Budget(msgspec.Struct, frozen=True):
    """What one source may cost. A step is one expression that is followed, a few microseconds."""

    max_steps: int
    max_parse_seconds: float
    """For the JavaScript parser, whose error recovery is not linear. CPython's parser cannot be interrupted."""


FULL_BUDGET: Final = Budget(max_steps=2_000_000, max_parse_seconds=3.0)


class SourceAnalyser:
    """Analyses Python and JavaScript in one mode; other languages have nothing to fear.

    `python_version` is that of the sandbox. Where the interpreter of this process is older and the source may hold
    newer syntax, an error here is not final: the source is left, unread, to the interpreter in the container. `strict`
    runs nothing that it cannot read, so there it is final.
    """

    def __init__(
        self,
        mode: AnalysisMode,
        *,
        python_version: tuple[int, int] = SANDBOX_PYTHON,
        python_source_name: str = SOURCE_FILE,
        budget: Budget = FULL_BUDGET,
    ) -> None:
        self.mode = mode
        levels = _STRICT if mode is AnalysisMode.STRICT else _STANDARD
        self._common = _book("any", levels)
        self._languages: dict[str, PythonAnalysis | JavaScriptAnalysis] = {
            "python": PythonAnalysis(
                _book("python", levels),
                _book("python", _STRICT),
                source_name=python_source_name,
                sandbox_version=None if mode is AnalysisMode.STRICT else python_version,
                max_steps=budget.max_steps,
            ),
            "javascript": JavaScriptAnalysis(
                _book("javascript", levels),
                _book("javascript", _STRICT),
                max_steps=budget.max_steps,
                max_seconds=budget.max_parse_seconds,
            ),
        }

    def analyse(self, analyser_name: str | None, source: bytes) -> Analysis:
        try:
            return self.attempt(analyser_name, source)
        except TooMuchWork as error:
            return self.single(common_rules.TOO_COMPLEX, str(error))

    def attempt(self, analyser_name: str | None, source: bytes) -> Analysis:
        """As `analyse`, but raises `TooMuchWork` when the budget is used up, for those who have a larger one."""
        language = self._languages.get(analyser_name) if analyser_name is not None else None
        if self.mode is AnalysisMode.OFF or language is None:
            return NOTHING
        if len(source) > MAX_SOURCE_BYTES:
            return self.single(common_rules.TOO_COMPLEX, f"it has more than {MAX_SOURCE_BYTES} bytes")
        return language.analyse(source)

    def single(self, rule_id: str, name: str) -> Analysis:
        """Return an answer that concerns the source as a whole."""
        rule = self._common.get(rule_id)
        if rule is None:
            return NOTHING
        return Analysis((_finding(rule, name),))

    def not_analysed(self, reason: str) -> Analysis:
        """Return the answer for a source that could not be analysed for no fault of its own.

        `strict` refuses it, `report` mentions it; `standard` lets it pass, since the container is the boundary.
        """
        if self.mode in (AnalysisMode.STRICT, AnalysisMode.REPORT):
            rule = next(rule for rule in common_rules.COMMON_RULES if rule.id == common_rules.NOT_ANALYSED)
            return Analysis((_finding(rule, reason),))
        return NOTHING


def _finding(rule: Rule, name: str) -> Finding:
    return Finding(rule=rule.id, level=rule.level, line=1, column=1, message=rule.sentence.replace("{name}", name))


def _book(language: LanguageName, levels: frozenset[Level]) -> RuleBook:
    rules = {"python": PYTHON_RULES, "javascript": JAVASCRIPT_RULES}.get(language, common_rules.COMMON_RULES)
    return RuleBook(rules, language=language, levels=levels)
