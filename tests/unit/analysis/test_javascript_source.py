"""JavaScript is read by a grammar: escapes, comments and errors are what they are in Node."""

from __future__ import annotations

import pytest

from sandbox_svc.analysis import Analysis, AnalysisMode, SourceAnalyser
from sandbox_svc.analysis.javascript.tree import identifier, literal, parse

ANALYSER = SourceAnalyser(AnalysisMode.STANDARD)


def places(source: str) -> list[tuple[int, int, str]]:
    found = ANALYSER.analyse("javascript", source.encode()).findings
    return [(finding.line, finding.column, finding.rule) for finding in found]


@pytest.mark.parametrize(
    "source",
    [
        "function main( { return 1 }",
        "const = 5",
        "<?php echo 1;",
        "class {",
        "def main():\n    return 1\n",
        "\0",
        "",
        "`${",
    ],
)
def test_a_syntax_error_is_for_node_to_say(source: str):
    """The parser goes on after what it does not know, so newer syntax is never an error here."""
    assert Analysis() == ANALYSER.analyse("javascript", source.encode())


def test_what_stands_around_a_syntax_error_is_judged():
    assert [(3, 8, "js-process")] == places("const a = ;\n)))\nx = 1; require('child_process')\n")


def test_bytes_that_are_no_utf8_are_read():
    assert ANALYSER.analyse("javascript", b"'\xff\xfe'; eval(x)").findings


@pytest.mark.parametrize(
    ("literal_text", "value"),
    [
        (r"'\x41\u0042\u{43}\103'", "ABCC"),
        (
            r"'a\
b'",
            "ab",
        ),
        (r"'\'\n\t\0\q'", "'\n\t\0q"),
        (r"'\u{110000}'", "\ufffd"),
        ('"/* x */"', "/* x */"),
    ],
)
def test_texts_mean_what_their_escapes_say(literal_text: str, value: str):
    (statement,) = parse(literal_text.encode(), max_seconds=1, max_nodes=100).children
    assert value == literal(statement.children[0])


def test_identifiers_mean_what_their_escapes_say():
    (statement,) = parse(rb"\u0065v\u{61}l", max_seconds=1, max_nodes=100).children
    assert "eval" == identifier(statement.children[0])


def test_columns_count_characters_and_lines_count_as_in_javascript():
    """CR, CRLF and U+2028 end lines too."""
    assert [(1, 9, "js-dynamic-code")] == places("'äö€😀'; eval(x)")
    assert [(5, 1, "js-dynamic-code")] == places("1;\r2;\r\n3;\u20284;\neval(x)")


def test_a_shebang_and_html_like_comments_are_comments():
    assert [] == places("#!/usr/bin/env node\n<!-- eval(x)\nlet a = 1;\n--> eval(y)\n")


def test_a_regular_expression_is_no_code():
    assert [] == places("const r = /require\\('child_process'\\)[/]eval(x)/g; x = a / b / c;")
