"""No source may crash the analysis, keep it busy for long, or make it large."""

from __future__ import annotations

import time

import hypothesis
import pytest
from hypothesis import strategies as st

from sandbox_svc.analysis import MAX_SOURCE_BYTES, Analysis, AnalysisMode, SourceAnalyser
from sandbox_svc.analysis.analyser import Budget
from sandbox_svc.analysis.front import INLINE_BUDGET, INLINE_BYTES
from sandbox_svc.analysis.python.fold import percent
from sandbox_svc.analysis.report import TooMuchWork
from tests.unit.analysis.corpus import load

STRICT = SourceAnalyser(AnalysisMode.STRICT)
INLINE = SourceAnalyser(AnalysisMode.STRICT, budget=INLINE_BUDGET)

DEEP = {
    "python": {
        "brackets": b"[" * 200_000,
        "closed brackets": b"[" * 150 + b"]" * 150,
        "minus": b"-" * 200_000 + b"1",
        "not": b"not " * 100_000 + b"x",
        "attributes": b"a" + b".b" * 200_000,
        "calls": b"a" + b"()" * 100_000,
        "subscripts": b"a" + b"[0]" * 100_000,
        "sums": b"a+" * 100_000 + b"a",
        "powers": b"a**" * 100_000 + b"a",
        "lambdas": b"lambda:" * 50_000 + b"1",
        "conditionals": b"a if a else " * 30_000 + b"a",
        "comparisons": b"a<" * 30_000 + b"a",
        "blocks": b"".join(b" " * i + b"if 1:\n" for i in range(120)),
        "finally": b"".join(b" " * i + b"try: pass\n" + b" " * i + b"finally:\n" for i in range(18))
        + b" " * 18
        + b"a()\n",
        "f-string fields": b'f"' + b"{a}" * 3_000 + b'"',
        "nested f-strings": b"f'{f\"{f'''{1}'''}\"}'",
        "one long line": b"x = '" + b"a" * 900_000 + b"'",
        "nul": b"\0" * 100_000,
        "decorators": b"@a\n" * 20_000 + b"def f(): pass\n",
        "assignments": b"a=" * 50_000 + b"1",
        "strings": b"'a' " * 100_000,
        "hex": b"x = 0x" + b"f" * 900_000,
        "digits": b"x = " + b"9" * 900_000,
        "tabs": b"\t" * 100_000 + b"x",
        "backslashes": b"\\\n" * 100_000 + b"x",
        "format": b"x = '%999999999d' % 1\ny = '{:999999999}'.format(1)\nz = '%*d' % (999999999, 1)\nopen(x + y + z)\n",
        "repeat": b"open('a' * 999999999)\nopen(('ab',) * 99999999)\nx = 1 << 999999999\ny = 9 ** 9 ** 9\n",
        "doubling": b"a = 'xxxxxxxx'\n" + b"".join(b"a%d = a%d + a%d\n" % (i, i - 1, i - 1) for i in range(1, 99)),
        "cycle": b"a = b\nb = c\nc = a\nopen(a)\n",
        "self cycle": b"def f(x=f): return f(f(x))\nf = f(f)\nopen(f(f))\n",
        "dict of itself": b"d = {}\nd = {**d, **d, 'a': open}\nd = dict(d, b=d)\nd['a'](d['b'])\n",
        "dicts of dicts": b"d0 = {'a': open}\n"
        + b"".join(b"d%d = {**d%d, **d%d}\n" % (i, i - 1, i - 1) for i in range(1, 60))
        + b"d59['a']('x')\nd59['b']('x')\n",
        "pairs of pairs": b"x0 = [1, 2, 3]\n"
        + b"".join(b"x%d = list(zip(x%d, enumerate(x%d)))\n" % (i, i - 1, i - 1) for i in range(1, 60))
        + b"for a, b in x59: open(b)\n",
        "maps of maps": b"x = map(x, map(x, x))\n"
        + b"x = map(lambda y: map(x, x), filter(x, x))\n" * 60
        + b"open(x)\n",
        "growing": b"s = 'a'\n" + b"s += s\n" * 200 + b"for c in s: s = s + c + s\n" + b"open(s)\n",
        "loops": b"s = ''\n" + b"for c in 'abcdefgh' * 100: s = s + c\n" * 60 + b"open(s)\n",
        "frames": b"def f():\n"
        + b"".join(b" f%d = f%d.f_back\n" % (i, i - 1) for i in range(1, 900))
        + b" f1.tb_frame\n",
        "carried": b"import os, sys, subprocess, ctypes\nx = [os, sys, subprocess, ctypes]\n" + b"x.a.b\n" * 9_000,
        "embedded": b"eval(" * 90 + b"\"eval('eval(1)')\"" + b")" * 90,
        "alternatives": b"x = 1\n"
        + b"".join(b"x = 'a%d'\n" % i for i in range(500))
        + b"open(x + x + x + x + x + x)\n",
    },
    "javascript": {
        "brackets": b"[" * 40_000,
        "braces": b"{" * 40_000,
        "minus": b"- " * 30_000 + b"1",
        "members": b"a" + b".b" * 40_000,
        "calls": b"a" + b"()" * 30_000,
        "arrows": b"a=>" * 10_000 + b"1",
        "templates": b"`${" * 10_000,
        "conditionals": b"a?a:" * 10_000 + b"a",
        "constructors": b"a" + b".constructor" * 10_000,
        "patterns": b"const " + b"{a:" * 500 + b"b" + b"}" * 500 + b" = {}",
        "patterns with defaults": b"const " + b"{a:" * 60 + b"b" + b"={}}" * 60 + b" = {}",
        "regular expressions": b"/" * 30_000,
        "one long line": b"x = '" + b"a" * 900_000 + b"'",
        "nul": b"\0" * 30_000,
        "doubling": b"let a = 'xxxxxxxx';" + b"".join(b"a%d=a%d+a%d;" % (i, i - 1, i - 1) for i in range(1, 99)),
        "cycle": b"var a = b, b = c, c = a; a(); f = f(f); require(f)",
        "repeat": b"require('a'.repeat(1e9)); require('a'.padEnd(1e9)); x = 'a'.replaceAll('', 'b'.repeat(4000))",
    },
}


@pytest.mark.parametrize(("language", "name"), [(language, name) for language, cases in DEEP.items() for name in cases])
def test_deep_and_long_sources_are_answered(language: str, name: str):
    """No crash, no RecursionError, no MemoryError, and in seconds on a busy machine."""
    source = DEEP[language][name]
    started = time.process_time()
    analysis = STRICT.analyse(language, source)
    assert isinstance(analysis, Analysis)
    assert time.process_time() - started < 5


def test_a_source_above_the_bound_is_refused_naming_it():
    for language in ("python", "javascript"):
        (finding,) = STRICT.analyse(language, b"#" * (MAX_SOURCE_BYTES + 1)).findings
        assert ("too-complex", "standard") == (finding.rule, finding.level)
        assert str(MAX_SOURCE_BYTES) in finding.message
    assert Analysis() == STRICT.analyse("python", b"#" * MAX_SOURCE_BYTES)


def test_a_tree_that_is_too_deep_is_refused_naming_that():
    (finding,) = STRICT.analyse("python", DEEP["python"]["minus"]).findings
    assert "the program cannot be analysed: it is nested too deeply" == finding.message


def test_the_budget_bounds_what_is_followed():
    """`attempt` raises, for those who have more to spend; `analyse` answers with a finding."""
    poor = SourceAnalyser(AnalysisMode.STANDARD, budget=Budget(max_steps=50, max_parse_seconds=5))
    source = b"".join(b"x%d = a.b.c(d.e)\n" % i for i in range(100))
    with pytest.raises(TooMuchWork):
        poor.attempt("python", source)
    (finding,) = poor.analyse("python", source).findings
    assert "too-complex" == finding.rule
    assert Analysis() == SourceAnalyser(AnalysisMode.STANDARD).analyse("python", source)


def test_a_parser_that_is_lost_is_stopped():
    """Error recovery in the JavaScript parser is quadratic; its time is bounded, not only its input."""
    quick = SourceAnalyser(AnalysisMode.STANDARD, budget=Budget(max_steps=1000, max_parse_seconds=0.01))
    started = time.process_time()
    with pytest.raises(TooMuchWork):
        quick.attempt("javascript", b"> ! " * 20_000)
    assert time.process_time() - started < 2


def test_widths_are_not_executed():
    assert percent("%9999d", 1) is None
    assert percent("%*d", (10**9, 1)) is None
    assert "  1" == percent("%3d", 1)


SNIPPETS = [(snippet.language, snippet.source.decode()) for snippet in (*load("honest"), *load("hostile"))]
TOKENS = sorted({token for _, source in SNIPPETS for token in source.replace("(", " ( ").replace(".", " . ").split()})


@hypothesis.given(
    language=st.sampled_from(["python", "javascript"]),
    tokens=st.lists(st.sampled_from([*TOKENS, "\n", "\n    ", "(", ")", "{", "}", "`", "'"]), max_size=60),
    repeat=st.integers(1, 30),
)
@hypothesis.settings(max_examples=150)
def test_soup_of_tokens_is_answered(language: str, tokens: list[str], repeat: int):
    source = " ".join(tokens * repeat).encode()[: INLINE_BYTES[language]]
    _answered(language, source)


@hypothesis.given(snippet=st.sampled_from(SNIPPETS), data=st.data())
@hypothesis.settings(max_examples=150)
def test_damaged_snippets_are_answered(snippet: tuple[str, str], data: st.DataObject):
    """Cut, doubled and shuffled: what a broken client or a fuzzing attacker sends."""
    language, source = snippet
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(source)))
        end = data.draw(st.integers(start, min(len(source), start + 30)))
        source = source[:start] + source[start:end] * data.draw(st.integers(0, 20)) + source[end:]
    _answered(language, source.encode()[: INLINE_BYTES[language]])


@hypothesis.given(language=st.sampled_from(["python", "javascript"]), source=st.binary(max_size=400))
@hypothesis.settings(max_examples=150)
def test_any_bytes_are_answered(language: str, source: bytes):
    _answered(language, source)


def _answered(language: str, source: bytes) -> None:
    started = time.process_time()
    try:
        analysis = INLINE.attempt(language, source)
    except TooMuchWork:
        analysis = STRICT.analyse(language, source)
    else:
        # Fuzzing at length found nothing above 30 ms; ten times that is no matter of the machine.
        assert time.process_time() - started < 0.3
    assert isinstance(analysis, Analysis)
