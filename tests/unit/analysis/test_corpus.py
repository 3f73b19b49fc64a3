"""Honest programs pass, attacks are named: the specification of the rules, by example."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from sandbox_svc.analysis import AnalysisMode, SourceAnalyser
from tests.unit.analysis.corpus import Snippet, load, spellings

HONEST, HOSTILE, SPELLINGS = load("honest"), load("hostile"), spellings()
STANDARD = SourceAnalyser(AnalysisMode.STANDARD, python_version=sys.version_info[:2])
STRICT = SourceAnalyser(AnalysisMode.STRICT, python_version=sys.version_info[:2])


def test_the_corpus_is_large_enough_and_no_name_is_used_twice():
    assert len(HONEST) >= 120
    assert len(HOSTILE) >= 80
    for snippets in (HONEST, HOSTILE):
        names = Counter(str(snippet) for snippet in snippets)
        assert [] == [name for name, count in names.items() if count > 1]


@pytest.mark.parametrize("snippet", HONEST, ids=str)
def test_an_honest_program_passes(snippet: Snippet):
    """0 refused, and every one of them is a program."""
    analysis = STANDARD.analyse(snippet.language, snippet.source)
    assert analysis.source_error is None
    assert () == analysis.findings


@pytest.mark.parametrize("snippet", HONEST, ids=str)
def test_strict_refuses_honest_programs_only_for_its_own_list(snippet: Snippet):
    """The corpus says which programs use what `strict` forbids; all others pass there too."""
    findings = STRICT.analyse(snippet.language, snippet.source).findings
    found = {finding.rule for finding in findings}
    assert snippet.rules <= found
    assert bool(snippet.rules) == bool(found)
    assert {"strict"} >= {finding.level for finding in findings}


@pytest.mark.parametrize("snippet", HOSTILE, ids=str)
def test_an_attack_is_named_by_its_rule(snippet: Snippet):
    analysis = STANDARD.analyse(snippet.language, snippet.source)
    assert analysis.source_error is None
    assert snippet.rules <= {finding.rule for finding in analysis.findings}


@pytest.mark.parametrize("snippet", HOSTILE, ids=str)
def test_strict_finds_what_standard_finds(snippet: Snippet):
    standard = {(f.rule, f.line) for f in STANDARD.analyse(snippet.language, snippet.source).findings}
    strict = {(f.rule, f.line) for f in STRICT.analyse(snippet.language, snippet.source).findings}
    assert standard <= strict


@pytest.mark.parametrize(("language", "position", "source"), SPELLINGS, ids=lambda value: str(value)[:40])
def test_an_attack_in_few_words_is_found(language: str, position: int, source: bytes):
    assert STANDARD.analyse(language, source).findings


@pytest.mark.parametrize("snippet", [*HONEST, *HOSTILE], ids=str)
def test_findings_point_into_the_source(snippet: Snippet):
    """Lines and columns exist, the order is that of the source, no rule speaks twice about a line."""
    lines = snippet.source.decode().split("\n")
    findings = STRICT.analyse(snippet.language, snippet.source).findings
    places = [(finding.line, finding.column) for finding in findings]
    assert sorted(places) == places
    assert len({(finding.rule, finding.line) for finding in findings}) == len(findings)
    for finding in findings:
        assert 1 <= finding.line <= len(lines)
        assert 1 <= finding.column <= len(lines[finding.line - 1]) + 1
        assert finding.message
        assert finding.message.isprintable()
