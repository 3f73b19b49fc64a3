"""Rules as data: what a rule is, and how a set of them is looked up by resolved name."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal

import msgspec

from sandbox_svc.analysis.findings import Level
from sandbox_svc.analysis.texts import HOLE, could_be

LanguageName = Literal["python", "javascript", "any"]

ANY = ".*"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that programs are told not to do.

    `names` are dotted names after resolution (`os.system`), with `*` allowed at the end (`os.exec*`, `subprocess.*`);
    `unless` takes names out again in the same notation; `calls` are names that may be mentioned, but not called.
    `modules` are refused where they are imported or obtained. `attributes` are refused on every object, so they must be
    names that no honest program invents. `checks` says in words what the rule's own code looks at, for rules that no
    list of names can express.
    """

    id: str
    language: LanguageName
    level: Level
    sentence: str
    """For the caller, after `Line N: `; `{name}` is what was found, in the words of the source's language."""
    names: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    checks: str = ""


class _Names:
    """Dotted names and prefixes of them."""

    def __init__(self) -> None:
        self._exact: dict[str, list[Rule]] = defaultdict(list)
        self._prefixes: dict[str, list[tuple[str, Rule]]] = defaultdict(list)

    def add(self, pattern: str, rule: Rule) -> None:
        if pattern.endswith("*"):
            parent, _, prefix = pattern[:-1].rpartition(".")
            self._prefixes[parent].append((prefix, rule))
        else:
            self._exact[pattern].append(rule)

    def match(self, name: str) -> Iterator[Rule]:
        yield from self._exact.get(name, ())
        parent = name
        while parent:
            parent, _, _ = parent.rpartition(".")
            if parent in self._prefixes:
                rest = name[len(parent) + 1 :]
                yield from (rule for prefix, rule in self._prefixes[parent] if rest.startswith(prefix))

    def could_match(self, text: str) -> bool:
        """Tell whether a dotted name with holes may come to be one that a rule of `standard` has."""
        first = text.partition(HOLE)[0]
        return any(could_be(text, name) for name, rules in self._exact.items() if _has_standard(rules)) or any(
            first.startswith(full) or full.startswith(first)
            for parent, prefixes in self._prefixes.items()
            for full in (f"{parent}.{prefix}" for prefix, rule in prefixes if rule.level == "standard")
        )


def _has_standard(rules: Iterable[Rule]) -> bool:
    return any(rule.level == "standard" for rule in rules)


def _owners(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


class RuleBook:
    """The rules of one language at one level, indexed; immutable and shared by all analyses."""

    def __init__(self, rules: Iterable[Rule], *, language: LanguageName, levels: frozenset[Level]) -> None:
        self.rules = tuple(rule for rule in rules if rule.language in (language, "any") and rule.level in levels)
        self._by_id = {rule.id: rule for rule in self.rules}
        self._names, self._unless, self._calls = _Names(), _Names(), _Names()
        self.attributes: dict[str, Rule] = {}
        self._modules: dict[str, list[Rule]] = defaultdict(list)
        for rule in self.rules:
            for name in rule.names:
                self._names.add(name, rule)
            for name in rule.unless:
                self._unless.add(name, rule)
            for name in rule.calls:
                self._calls.add(name, rule)
            for attribute in rule.attributes:
                self.attributes[attribute] = rule
            for module in rule.modules:
                self._modules[module].append(rule)
        self._owners = {owner for rule in self.rules for name in rule.names for owner in _owners(name)}
        self.by_name = functools.lru_cache(maxsize=4096)(self._find_by_name)
        self.by_module = functools.lru_cache(maxsize=1024)(self._find_by_module)

    def get(self, rule_id: str) -> Rule | None:
        """Return the rule of that id, or None where this level does not have it."""
        return self._by_id.get(rule_id)

    def has_below(self, name: str) -> bool:
        """Tell whether there are rules about what belongs to the thing of that name."""
        return name in self._owners

    def could_forbid(self, text: str) -> bool:
        """Tell whether a dotted name with holes may come to be one that is forbidden, or the name of such a module."""
        return self._names.could_match(text) or any(
            could_be(text, module) for module, rules in self._modules.items() if _has_standard(rules)
        )

    def _find_by_name(self, name: str) -> tuple[Rule, ...]:
        """Return the rules that forbid a resolved dotted name."""
        excepted = set(self._unless.match(name))
        return tuple(dict.fromkeys(rule for rule in self._names.match(name) if rule not in excepted))

    def by_call(self, name: str) -> tuple[Rule, ...]:
        """Return the rules that forbid calling the thing of that name."""
        return tuple(self._calls.match(name))

    def _find_by_module(self, name: str) -> tuple[Rule, ...]:
        """Return the rules that forbid a module or a package that it belongs to."""
        found: list[Rule] = []
        while name:
            found += self._modules.get(name, ())
            name, _, _ = name.rpartition(".")
        return tuple(found)
