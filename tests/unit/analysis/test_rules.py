"""Rules as data: every one is documented, has a snippet, and belongs to exactly one level."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sandbox_svc.analysis.common_rules import COMMON_RULES, NOT_ANALYSED, TOO_COMPLEX
from sandbox_svc.analysis.javascript.rules import JAVASCRIPT_RULES
from sandbox_svc.analysis.python.rules import PYTHON_RULES
from sandbox_svc.analysis.rules import Rule, RuleBook
from tests.unit.analysis.corpus import load

RULES = list({rule.id: rule for rule in (*COMMON_RULES, *PYTHON_RULES, *JAVASCRIPT_RULES)}.values())
DOCS = Path(__file__).parents[3] / "docs" / "analysis.md"
SOURCES = Path(__file__).parents[3] / "src" / "sandbox_svc" / "analysis"


def test_ids_are_unique():
    for rules in (PYTHON_RULES, JAVASCRIPT_RULES):
        ids = [rule.id for rule in rules]
        assert len(set(ids)) == len(ids)
    assert {rule.id for rule in PYTHON_RULES} & {rule.id for rule in JAVASCRIPT_RULES} == {r.id for r in COMMON_RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_says_what_it_looks_for_and_names_what_it_found(rule: Rule):
    assert rule.names or rule.modules or rule.attributes or rule.calls or rule.checks
    assert "{name}" in rule.sentence
    assert re.fullmatch(r"[a-z][a-z-]+", rule.id)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_a_rule_has_a_snippet_of_its_own(rule: Rule):
    """`too-complex` and `not-analysed` are no snippets: test_bounds.py and test_front.py have them."""
    if rule.id in (TOO_COMPLEX, NOT_ANALYSED):
        return
    snippets = load("hostile") if rule.level == "standard" else load("honest")
    assert any(rule.id in snippet.rules for snippet in snippets)


def test_the_documentation_lists_every_rule_with_its_level_and_sentence():
    """docs/analysis.md and the code say the same; neither has a rule that the other lacks."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \| ([^|]+) \|", DOCS.read_text(), flags=re.MULTILINE)
    documented = {rule_id: (level, sentence.strip()) for rule_id, level, sentence in rows}
    assert {rule.id: (rule.level, rule.sentence.replace("{name}", "*name*")) for rule in RULES} == documented


def test_every_id_that_the_code_reports_is_a_rule():
    """A rule's own code names it by a constant; a constant without a rule would report nothing, silently."""
    constants: set[str] = set()
    for path in (SOURCES / "common_rules.py", *SOURCES.glob("*/rules.py")):
        constants |= set(re.findall(r'^[A-Z_]+: Final = "([a-z-]+)"', path.read_text(), flags=re.MULTILINE))
    assert constants <= {rule.id for rule in RULES}


def _book(*rules: Rule) -> RuleBook:
    return RuleBook(rules, language="python", levels=frozenset({"standard"}))


def _rule(**fields: object) -> Rule:
    return Rule(**{"id": "a-rule", "language": "python", "level": "standard", "sentence": "{name}", **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "is_forbidden"),
    [
        ("os.system", True),
        ("os.execv", True),
        ("os.executable", True),
        ("os.path", False),
        ("os", False),
        ("m.run", True),
        ("m.run.deep", True),
        ("m.PIPE", False),
        ("m", False),
        ("mm.run", False),
    ],
)
def test_names_match_exactly_or_by_prefix(name: str, is_forbidden: bool):
    """`*` stands at the end only, below the name before it; `unless` takes names out again."""
    book = _book(_rule(names=("os.system", "os.exec*", "m.*"), unless=("m.PIPE",)))
    assert is_forbidden == bool(book.by_name(name))


def test_modules_match_with_all_that_is_below_them():
    book = _book(_rule(modules=("http.client", "os")))
    assert [True, True, False, True] == [
        bool(book.by_module(name)) for name in ("http.client", "os.path", "http", "http.client.x")
    ]


def test_a_book_holds_one_language_and_level():
    book = _book(_rule(names=("a.b",)), _rule(id="js", language="javascript"), _rule(id="s", level="strict"))
    assert ["a-rule"] == [rule.id for rule in book.rules]
    assert book.get("js") is None
    assert book.get("s") is None
