"""What the interpreter would refuse is a program error with its own words; what it would read is read as it reads it."""

from __future__ import annotations

import sys
import traceback
import warnings

import pytest

from sandbox_svc.analysis import Analysis, AnalysisMode, SourceAnalyser, SourceError
from sandbox_svc.analysis.python.source import MAX_SHOWN_LINE, is_error_final

HERE = sys.version_info[:2]


def analyser(mode: AnalysisMode = AnalysisMode.STANDARD, version: tuple[int, int] = HERE) -> SourceAnalyser:
    return SourceAnalyser(mode, python_version=version, python_source_name="/workspace/main.py")


def error_of(source: bytes, mode: AnalysisMode = AnalysisMode.STANDARD) -> SourceError:
    analysis = analyser(mode).analyse("python", source)
    assert () == analysis.findings
    assert analysis.source_error is not None
    return analysis.source_error


BROKEN = {
    "python 2": b"print 'hello'\n",
    "python 2 exec": b"exec 'x = 1'\n",
    "unclosed bracket": b"def main():\n    return (1,\n",
    "bad indentation": b"def main():\nreturn 1\n",
    "unexpected indentation": b"x = 1\n  y = 2\n",
    "tabs and spaces": b"def main():\n\tif 1:\n        return 1\n",
    "open text": b"x = 'abc\n",
    "nothing but a word": b"def\n",
    "nul": b"x = 1\0\n",
    "nul in the first line": b"\0\0\0",
    "not utf-8": b"def main():\n    return '\xff\xfe'\n",
    "unknown encoding": b"# -*- coding: no-such -*-\nx = 1\n",
    "bom and another encoding": b"\xef\xbb\xbf# coding: latin-1\nx = 1\n",
    "number too long": b"x = " + b"1" * 5000 + b"\n",
    "return outside": b"return 1\n",
    "yield outside": b"x = [(yield 1)]\n",
    "await outside": b"def main():\n    await x\n",
    "break outside": b"def main():\n    break\n",
    "continue outside": b"if 1:\n    continue\n",
    "nonlocal at the top": b"nonlocal x\n",
    "no binding for nonlocal": b"def main():\n    nonlocal x\n",
    "parameter and global": b"def main(x):\n    global x\n",
    "duplicate argument": b"def main(a, a):\n    return a\n",
    "star import in a function": b"def main():\n    from os import *\n",
    "late future import": b"x = 1\nfrom __future__ import annotations\n",
    "unknown future": b"from __future__ import braces\n",
    "bare except first": b"try:\n    x = 1\nexcept:\n    pass\nexcept ValueError:\n    pass\n",
    "assignment to a call": b"f() = 1\n",
    "assignment to debug": b"__debug__ = 1\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_source_error_has_the_words_and_the_line_of_the_interpreter(name: str):
    """Type, message, line and the printed form are those of compiling the same bytes as a file of that name."""
    source = BROKEN[name]
    error = error_of(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((SyntaxError, ValueError)) as raised:
            compile(source, "/workspace/main.py", "exec", dont_inherit=True)
    expected = raised.value
    if not isinstance(expected, SyntaxError):
        # A NUL byte, before 3.12.
        expected = SyntaxError(str(expected))
    assert (type(expected).__name__, expected.msg, expected.lineno or None) == (error.type, error.message, error.line)
    printed = traceback.format_exception_only(type(expected), expected)
    assert printed[-1] == error.text.splitlines(keepends=True)[-1]
    assert 'File "/workspace/main.py"' in error.text or not expected.lineno
    assert error.text.endswith("\n")


def test_the_text_shows_the_line_and_the_place():
    error = error_of(b"x = 1\nif x = 2:\n    pass\n")
    lines = error.text.splitlines()
    assert '  File "/workspace/main.py", line 2' == lines[0]
    assert "    if x = 2:" == lines[1]
    assert "^" in lines[2]
    assert "SyntaxError: invalid syntax" in error.text
    assert (2, 4) == (error.line, error.column)
    assert "if x = 2:" == error.source_line
    assert ['  File "/workspace/pkg/app.py", line 2', *lines[1:]] == error.text_for("pkg/app.py").splitlines()


def test_errors_of_the_compiler_show_their_line_too():
    """CPython would look for the line in a file of that name; there is none, and none of ours is read."""
    assert ["x = 1", "", "    return 5"] != error_of(b"x = 1\n\nreturn 5\n").text.splitlines()
    assert "    return 5" in error_of(b"x = 1\n\nreturn 5\n").text


def test_a_line_too_long_to_show_is_left_out():
    error = error_of(b"x = (" + b"1, " * MAX_SHOWN_LINE + b"= 2)\n")
    assert len(error.text) < MAX_SHOWN_LINE
    assert "" == error.source_line
    assert 1 == error.line


@pytest.mark.parametrize("mode", [AnalysisMode.REPORT, AnalysisMode.STANDARD, AnalysisMode.STRICT])
def test_a_source_error_is_never_a_finding(mode: AnalysisMode):
    """Not even where the broken source would do something forbidden."""
    assert "SyntaxError" == error_of(b"import os\nos.system('id'\n", mode).type


def test_off_says_nothing():
    assert Analysis() == analyser(AnalysisMode.OFF).analyse("python", b"import os; os.system('id')")
    assert Analysis() == analyser(AnalysisMode.OFF).analyse("python", b"print 'x'")


@pytest.mark.parametrize("name", [None, "", "ruby", "Python"])
def test_an_unknown_language_is_not_judged(name: str | None):
    assert Analysis() == analyser(AnalysisMode.STRICT).analyse(name, b"import os; os.system('id')")


NEWER_SYNTAX = [
    b"type A = int\nx = +\n",
    b"def f[T](x: T) -> T: return +\n",
    b"class A[T]:\n    x = +\n",
    b"x = f'{d['a']}' +\n",
    b'x = rf"{a}" +\n',
    "class Größe[T]: pass\n".encode(),
    "type Ä = int\n".encode(),
    b"if True: type X = int\n",
    b"x = 1; type X = int\n",
    b"x = 1\rtype X = int\r",
    b"def \\\n f[T](x): return x\n",
]


@pytest.mark.parametrize("mode", [AnalysisMode.REPORT, AnalysisMode.STANDARD])
@pytest.mark.parametrize("source", NEWER_SYNTAX)
def test_an_older_interpreter_here_leaves_what_may_be_newer_syntax_to_the_sandbox(mode: AnalysisMode, source: bytes):
    """Syntax that this interpreter does not know yet must not become an error of the program."""
    assert not is_error_final(source, here=(3, 11), sandbox=(3, 13))
    assert Analysis() == analyser(mode, (3, 99)).analyse("python", source)


@pytest.mark.parametrize("name", BROKEN)
def test_an_older_interpreter_here_is_right_about_what_has_no_newer_syntax(name: str):
    """So that Python 2 costs no container on a host with an older Python."""
    assert is_error_final(BROKEN[name], here=(3, 11), sandbox=(3, 13))


def test_nothing_is_certain_about_versions_that_are_not_known():
    assert not is_error_final(b"print 'x'\n", here=(3, 13), sandbox=(3, 14))
    assert is_error_final(b"type A = +\n", here=(3, 14), sandbox=(3, 13))


def test_strict_runs_nothing_that_it_cannot_read():
    assert analyser(AnalysisMode.STRICT, (3, 99)).analyse("python", NEWER_SYNTAX[0]).source_error is not None


def test_an_older_interpreter_here_still_judges_what_it_can_read():
    assert analyser(version=(3, 99)).analyse("python", b"import os\nos.system('id')\n").findings


@pytest.mark.skipif(HERE < (3, 12), reason="the syntax is new in 3.12")
def test_new_syntax_is_read_where_the_interpreter_knows_it():
    source = b"type A[T] = list[T]\ndef f[T](x: T) -> T: return x\nimport os\nprint(f'{os.system('id')}')\n"
    assert [4] == [finding.line for finding in analyser().analyse("python", source).findings]


@pytest.mark.parametrize("before", ["\x0c\n", "x = '\u2028'\n", "x = 1\r"])
def test_the_line_that_is_shown_is_the_one_that_is_counted(before: str):
    """At other characters that `str.splitlines` takes for the end of a line there is none."""
    error = analyser().analyse("python", f"{before}return 1\n".encode()).source_error
    assert error is not None
    assert (error.line, error.source_line) == (2, "return 1")


@pytest.mark.parametrize(
    "cookie",
    ["utf-8", "UTF-8", "utf8", "utf_8", "U8", "utf-8-sig", "UTF-8-unix", "ascii", "us-ascii"],
)
def test_utf8_in_all_its_names_is_accepted(cookie: str):
    source = f"#!/usr/bin/env python\n# -*- coding: {cookie} -*-\nx = 1\n".encode()
    assert Analysis() == analyser().analyse("python", source)


@pytest.mark.parametrize(
    "source",
    [
        b"# coding: latin-1\nx = 1\n",
        b"# -*- coding: utf-7 -*-\nx = 1\n",
        b"# coding: latin-1-unix\nx = 1\n",
        b"# coding: ISO_8859_1\nx = 1\n",
        b"# vim: set fileencoding=cp1252 :\nx = 1\n",
        b"\n# coding=utf-16\nx = 1\n",
        b"#!/usr/bin/python\r\n# coding: raw_unicode_escape\r\n# \\u000aimport os\r\n",
        b"# a\r# coding: rot13\rvzcbeg bf\r",
        b" \t\x0c# coding: unicode_escape\nx = 1\n",
    ],
)
def test_any_other_encoding_is_refused(source: bytes):
    """The parser of the text would see a comment where the interpreter sees code."""
    assert ["py-encoding"] == [finding.rule for finding in analyser().analyse("python", source).findings]


@pytest.mark.parametrize(
    "source",
    [
        b"x = 1\n# coding: latin-1\n",
        b'"""Docs."""\n# coding: latin-1\n',
        b"\n\n# coding: latin-1\nx = 1\n",
        b"s = '# coding: latin-1'\n",
        b"# decoding is not coding\nx = 1\n",
        b"\xef\xbb\xbfx = '\xc3\xa9'\n",
        b"",
        b"\n",
        b"# only a comment",
        b"def main():\r\n    return 1\r\n",
        b"def main():\r    return 1\r",
    ],
)
def test_what_is_no_cookie_is_none(source: bytes):
    """PEP 263: the first two lines, the second only under a blank or a comment."""
    assert Analysis() == analyser().analyse("python", source)


def test_warnings_of_the_compiler_stay_inside():
    """The tests run with warnings as errors: one that got out would fail this, or become a syntax error."""
    assert Analysis() == analyser().analyse("python", b"import re\nx = '\\d' is 5\ny = 1if x else 2\nassert (x, 'y')\n")


def test_columns_count_characters():
    findings = analyser().analyse("python", "import os\nx = 'äöü€'; os.system('id')\n".encode()).findings
    assert [(2, 13)] == [(finding.line, finding.column) for finding in findings]


def test_findings_are_bounded_and_the_first_ones():
    findings = analyser().analyse("python", b"import os\n" + b"os.system('id')\n" * 200).findings
    assert list(range(2, 52)) == [finding.line for finding in findings]


def test_names_in_messages_are_short_and_printable():
    name = b"/etc/passwd" + b"\\x1b[31m" + b"x" * 500
    (finding,) = analyser().analyse("python", b"open('" + name + b"')\n").findings
    assert len(finding.message) < 200
    assert finding.message.isprintable()
