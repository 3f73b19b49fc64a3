"""Modules that are handed around as values, in ways that names cannot be followed.

A list, an exception, a queue, a property or a context manager may carry a module to where nothing is known of it.
Honest programs hardly ever do that with modules that can do harm, so where one does, an attribute read on something
unknown is judged as if it were read on that module.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from typing import Final

from sandbox_svc.analysis.python import functions
from sandbox_svc.analysis.python import rules as ids
from sandbox_svc.analysis.python.resolve import Resolver
from sandbox_svc.analysis.python.values import Items, Many, Own, Unknown
from sandbox_svc.analysis.report import Reporter
from sandbox_svc.analysis.rules import RuleBook

_SAFE: Final = frozenset(
    f"builtins.{name}"
    for name in (
        *("isinstance", "issubclass", "hasattr", "print", "dir", "type", "vars", "repr", "str", "len", "id", "bool"),
        *("hash", "callable", "help", "object"),
    )
) | {"importlib.reload"}
"""Functions that give nothing of their arguments back."""
_SAFE_FIRST: Final = frozenset({"builtins.getattr", "builtins.setattr", "builtins.delattr"})
_SAFE_METHODS: Final = frozenset({"setattr", "delattr", "object"})
"""Of `monkeypatch` and `mock.patch`, which take the module that they change for a while."""
_PASSED_ON: Final = (ast.IfExp, ast.BoolOp, ast.NamedExpr, ast.Await)
_MAX_LEVELS: Final = 8


class Escapes:
    """Collects what is handed around, and judges what is read of things that are not known."""

    def __init__(self, resolver: Resolver, book: RuleBook, reporter: Reporter) -> None:
        self._resolver = resolver
        self._book = book
        self._reporter = reporter
        self._names: set[str] = set()

    def saw(self, node: ast.expr, name: str) -> None:
        """Take note of an expression that stands for something, by its resolved name."""
        if name not in self._names and self._book.has_below(name) and self._is_handed_on(node):
            self._names.add(name)

    def judge(self, nodes: list[ast.AST]) -> None:
        """Judge the reads of the whole program, when all that is handed around is known."""
        if not self._names:
            return
        names = sorted(self._names)
        for node in nodes:
            for attribute in self._reads(node):
                self._resolver.steps_left -= 1
                for owner in names:
                    if attribute is None:
                        if owner in functions.HARMFUL_MODULES:
                            self._reporter.add(ids.DYNAMIC_ATTRIBUTE, node, f"an attribute of {owner}")
                    else:
                        self._judge_read(node, owner, attribute)

    def _judge_read(self, node: ast.AST, owner: str, attribute: str) -> None:
        full = f"{owner}.{attribute}"
        module = sys.modules.get(owner)
        if module is not None and not hasattr(module, attribute):
            return
        if full in functions.IMPORTERS:
            self._reporter.add(ids.DYNAMIC_IMPORT, node, full)
        elif full == "sys.modules":
            self._reporter.add(ids.INTERNALS, node, full)
        for rule in self._book.by_name(full):
            # `subprocess.*`: of a module that is refused as a whole, only the names that are its own. The same for
            # what a call returns: `.loader` and `.kill` are methods of many things.
            is_whole = owner.endswith("()") or f"{owner}.*" in rule.names
            if rule.level == "standard" and (not is_whole or attribute in functions.TELLING_MEMBERS.get(owner, ())):
                self._reporter.add(rule.id, node, full)

    # Reads

    def _reads(self, node: ast.AST) -> Iterator[str | None]:
        """The attributes that a node reads of something unknown; None for one that is chosen at run time."""
        if isinstance(node, ast.Attribute):
            if isinstance(node.ctx, ast.Load) and self._is_unknown(node.value):
                yield node.attr
        elif isinstance(node, ast.MatchClass):
            yield from node.kwd_attrs
        elif isinstance(node, ast.Call):
            argument = self._attribute_argument(node)
            if argument is not None:
                for text in self._resolver.texts(argument):
                    yield from dict.fromkeys(text.split("."))
                parent = self._resolver.index.parents.get(node)
                is_called = isinstance(parent, ast.Call) and parent.func is node
                if is_called and any(isinstance(value, Unknown) for value in self._resolver.resolve(argument)):
                    yield None

    def _attribute_argument(self, node: ast.Call) -> ast.expr | None:
        names = set(self._resolver.names(node.func))
        if names & functions.ATTRIBUTE_READERS and node.args:
            if isinstance(node.args[0], ast.Starred):
                return node.args[0]
            subject = node.args[0]
            is_own = isinstance(subject, ast.Name) and subject.id in ("self", "cls")
            return node.args[1] if len(node.args) > 1 and not is_own and self._is_unknown(subject) else None
        if names & functions.ATTRIBUTE_PICKERS and node.args:
            return node.args[0]
        if isinstance(node.func, ast.Attribute) and node.func.attr == "__getattribute__" and node.args:
            return node.args[-1] if self._is_unknown(node.func.value) else None
        return None

    def _is_unknown(self, node: ast.expr) -> bool:
        return any(isinstance(value, (Unknown, Items, Many, Own)) for value in self._resolver.resolve(node))

    # Uses

    def _is_handed_on(self, node: ast.expr) -> bool:
        """Tell whether the value goes where it is not followed; attributes, plain aliases and tests do not count."""
        parents = self._resolver.index.parents
        child: ast.AST = node
        for _ in range(_MAX_LEVELS):
            parent = parents.get(child)
            if isinstance(parent, ast.keyword):
                parent = parents.get(parent)
            if isinstance(parent, _PASSED_ON):
                child = parent
                continue
            if isinstance(parent, ast.Call):
                return parent.func is not child and not self._is_safe(parent, child)
            if isinstance(parent, ast.Subscript):
                return parent.slice is child
            if isinstance(parent, (ast.Assign, ast.AnnAssign)):
                targets = parent.targets if isinstance(parent, ast.Assign) else [parent.target]
                return parent.value is child and not all(isinstance(target, ast.Name) for target in targets)
            return isinstance(parent, _CARRIERS)
        return True

    def _is_safe(self, call: ast.Call, argument: ast.AST) -> bool:
        names = set(self._resolver.names(call.func))
        if names & _SAFE or any(name.startswith("inspect.") for name in names):
            return True
        if not call.args or call.args[0] is not argument:
            return False
        return bool(names & _SAFE_FIRST) or (isinstance(call.func, ast.Attribute) and call.func.attr in _SAFE_METHODS)


_CARRIERS: Final = (
    ast.List,
    ast.Tuple,
    ast.Set,
    ast.Dict,
    ast.DictComp,
    ast.ListComp,
    ast.SetComp,
    ast.GeneratorExp,
    ast.Starred,
    ast.Return,
    ast.Yield,
    ast.YieldFrom,
    ast.Lambda,
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.BinOp,
    ast.Match,
)
