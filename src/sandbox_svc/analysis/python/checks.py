"""Judging a program: every name, attribute and import against the rules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final

from sandbox_svc.analysis.findings import Finding
from sandbox_svc.analysis.python import rules as ids
from sandbox_svc.analysis.python.call_checks import CallChecks
from sandbox_svc.analysis.python.escapes import Escapes
from sandbox_svc.analysis.python.frames import FrameWalks, is_identity_test
from sandbox_svc.analysis.python.functions import HARMFUL_MODULES, IMPORTERS, MEMORY_MEMBERS
from sandbox_svc.analysis.python.names import canonical
from sandbox_svc.analysis.python.resolve import Resolver
from sandbox_svc.analysis.python.scopes import ProgramIndex
from sandbox_svc.analysis.python.values import Own, Ref, Table
from sandbox_svc.analysis.report import Reporter
from sandbox_svc.analysis.rules import Rule, RuleBook

_MAGIC: Final = frozenset({"__builtins__", "__loader__", "__spec__"})
_HARMLESS_OF_SPEC: Final = frozenset({"name", "parent", "origin", "cached", "has_location"})
_DICTIONARY_READS: Final = frozenset({"keys", "get", "pop", "setdefault", "__contains__", "__getitem__"})
_NAMES_ONLY: Final = frozenset(
    f"builtins.{name}"
    for name in ("len", "sorted", "list", "set", "tuple", "frozenset", "bool", "iter", "print", "any", "all")
)


class Judge:
    """Judges one program; the findings are in the reporter afterwards."""

    def __init__(
        self, index: ProgramIndex, resolver: Resolver, book: RuleBook, reporter: Reporter, calls: CallChecks
    ) -> None:
        self._index = index
        self._resolver = resolver
        self._book = book
        self._reporter = reporter
        self._calls = calls
        self._walks = FrameWalks(resolver)
        self._escapes = Escapes(resolver, book, reporter)

    def run(self) -> tuple[Finding, ...]:
        # Children before parents: what they resolve to is then known, and resolving never goes deep.
        for node in reversed(self._index.interesting):
            if isinstance(node, ast.Name):
                self._name(node)
            elif isinstance(node, ast.Attribute):
                self._attribute_name(node, node.attr)
                if isinstance(node.ctx, ast.Load):
                    self._reference(node)
                if node.attr in MEMORY_MEMBERS and self._is_of_ctypes(node):
                    self._reporter.add(ids.NATIVE, node, node.attr)
            elif isinstance(node, ast.Subscript):
                self._subscript(node)
            elif isinstance(node, ast.Call):
                self._reference(node)
                self._calls.check(node)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    self._module(alias, alias.name)
            elif isinstance(node, ast.ImportFrom):
                self._import_from(node)
            elif isinstance(node, ast.MatchClass):
                for attribute in node.kwd_attrs:
                    self._attribute_name(node, attribute)
        for function in self._index.returns:
            if isinstance(function, ast.FunctionDef) and function.name in ("__reduce__", "__reduce_ex__"):
                self._calls.reduced(function)
        self._escapes.judge(self._index.interesting)
        return self._reporter.findings()

    # Imports

    def _module(self, node: ast.AST, name: str) -> None:
        for value in canonical(name):
            if isinstance(value, Ref):
                for rule in self._book.by_module(value.name):
                    self._reporter.add(rule.id, node, name)

    def _import_from(self, node: ast.ImportFrom) -> None:
        if node.level or node.module is None:
            return
        self._module(node, node.module)
        for alias in node.names:
            if alias.name == "*":
                continue
            full = f"{node.module}.{alias.name}"
            self._module(alias, full)
            for value in canonical(full):
                if isinstance(value, Ref):
                    self._by_name(alias, value.name)
            self._attribute_name(alias, alias.name)

    # Names and attributes

    def _name(self, node: ast.Name) -> None:
        if node.id in _MAGIC:
            self._attribute_name(node, node.id)
        else:
            self._reference(node)

    def _reference(self, node: ast.Name | ast.Attribute | ast.Call | ast.Subscript) -> None:
        """Judge what the expression may stand for."""
        for value in self._resolver.resolve(node):
            if not isinstance(value, Ref):
                continue
            self._by_name(node, value.name)
            self._escapes.saw(node, value.name)
            if not isinstance(node, ast.Name):
                # `random._os`, `__import__("os")`: a module that no import statement names.
                for rule in self._book.by_module(value.name) if "." not in value.name else ():
                    self._reporter.add(rule.id, node, value.name)
            if value.name == "sys.modules" or value.name.removesuffix(".__dict__") in HARMFUL_MODULES - {value.name}:
                self._whole_dictionary(node, value.name)
            elif value.name in IMPORTERS and not self._is_called_or_mapped(node) and not isinstance(node, ast.Call):
                self._reporter.add(ids.DYNAMIC_IMPORT, node, value.name)

    def _by_name(self, node: ast.AST, name: str) -> None:
        for rule in self._book.by_name(name):
            if isinstance(node, ast.expr) and self._is_excused(rule, name, node):
                continue
            self._reporter.add(rule.id, node, name)

    def _is_excused(self, rule: Rule, name: str, node: ast.expr) -> bool:
        return self._is_type(node) or (rule.level == "standard" and self._calls.is_excused(name, node))

    def _is_called_or_mapped(self, node: ast.expr) -> bool:
        """It is called where it stands, or handed to `map`, which is judged like as many calls."""
        parent = self._index.parents.get(node)
        if not isinstance(parent, ast.Call):
            return False
        return parent.func is node or (
            parent.args[:1] == [node] and len(parent.args) > 1 and self._resolver.names(parent.func) == ["builtins.map"]
        )

    def _is_type(self, node: ast.expr) -> bool:
        """It stands where only a type can: an annotation, `isinstance`, `except`, a comparison."""
        child: ast.AST = node
        for _ in range(4):
            parent = self._index.parents.get(child)
            if isinstance(parent, (ast.Compare, ast.ExceptHandler, ast.arg)):
                return True
            if isinstance(parent, ast.AnnAssign):
                return child is parent.annotation
            if isinstance(parent, (ast.FunctionDef, ast.AsyncFunctionDef)):
                return child is parent.returns
            if isinstance(parent, ast.Call):
                names = ("isinstance", "issubclass")
                return isinstance(parent.func, ast.Name) and parent.func.id in names and child in parent.args[1:]
            if not isinstance(parent, (ast.Tuple, ast.BinOp, ast.Subscript)):
                return False
            if isinstance(parent, ast.Subscript) and child is parent.value and child is node:
                return False
            child = parent
        return False

    def _is_of_ctypes(self, node: ast.Attribute) -> bool:
        """Types made of other types are not followed, so the program's use of ctypes must do."""
        imported = {alias.name for statement in self._index.imports for alias in statement.names}
        imported |= {
            statement.module or "" for statement in self._index.imports if isinstance(statement, ast.ImportFrom)
        }
        return bool(imported & {"ctypes", "_ctypes"}) or any(
            name.startswith("ctypes.") for name in self._resolver.names(node)
        )

    # Interpreter internals

    def _attribute_name(self, node: ast.AST, name: str) -> None:
        rule = self._book.attributes.get(name)
        if rule is None:
            return
        if isinstance(node, (ast.Attribute, ast.Name)) and self._is_harmless_walk(node, name):
            return
        self._reporter.add(rule.id, node, name)

    def _is_harmless_walk(self, node: ast.Attribute | ast.Name, name: str) -> bool:
        if not isinstance(node.ctx, ast.Load) or (isinstance(node, ast.Name) and node.id != name):
            return False
        if name == "__subclasses__":
            return isinstance(node, ast.Attribute) and self._is_own_class(node.value)
        if name in ("__spec__", "__loader__"):
            parent = self._index.parents.get(node)
            if isinstance(parent, ast.Attribute):
                return name == "__spec__" and parent.attr in _HARMLESS_OF_SPEC
            return is_identity_test(parent)
        return self._walks.is_harmless(node, name)

    def _is_own_class(self, node: ast.expr) -> bool:
        """A class of the program, or `cls` in one of its methods."""
        if any(
            isinstance(value, Own) and isinstance(value.node, ast.ClassDef) for value in self._resolver.resolve(node)
        ):
            return True
        if not isinstance(node, ast.Name) or node.id not in ("cls", "klass", "kls"):
            return False
        return any(isinstance(parent, ast.ClassDef) for parent in self._ancestors(node))

    def _ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        parent = self._index.parents.get(node)
        while parent is not None:
            yield parent
            parent = self._index.parents.get(parent)

    # Dictionaries of modules

    def _subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.ctx, ast.Load):
            self._reference(node)
            for name in self._resolver.names(node.value):
                self._calls.dictionary_read(name, node.slice, node)
            is_own_table = all(isinstance(value, Table) for value in self._resolver.resolve(node.value))
            for text in self._resolver.texts(node.slice):
                if text in _MAGIC or (text.startswith("__") and not is_own_table):
                    # `globals()["__builtins__"]`, `vars(type)["__subclasses__"]`
                    self._attribute_name(node.slice, text)

    def _whole_dictionary(self, node: ast.AST, name: str) -> None:
        """`sys.modules`, `vars(os)`: to be asked for names; taking all that is in it is a walk."""
        parent = self._index.parents.get(node)
        if isinstance(
            parent, (ast.Subscript, ast.Compare, ast.Assign, ast.NamedExpr, ast.Delete, ast.For, ast.comprehension)
        ):
            return
        if isinstance(parent, ast.Attribute) and parent.attr in _DICTIONARY_READS:
            return
        if isinstance(parent, ast.Call) and parent.func is not node:
            functions = set(self._resolver.names(parent.func))
            if functions & _NAMES_ONLY or "operator.getitem" in functions:
                return
        if isinstance(parent, ast.Expr):
            return
        self._reporter.add(ids.INTERNALS, node, name.replace(".__dict__", "'s dictionary"))
