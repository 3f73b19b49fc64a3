"""Tables that a program only ever reads: whatever the key, what comes out stands in the program."""

from __future__ import annotations

import ast
from typing import Final

from sandbox_svc.analysis.python.scopes import ProgramIndex, Scope

_READING_METHODS: Final = frozenset({"get", "items", "keys", "values", "copy", "index", "count"})
_READING_FUNCTIONS: Final = frozenset(
    {"len", "sorted", "list", "tuple", "set", "frozenset", "enumerate", "zip", "iter", "print", "str", "repr", "dict"}
)
_MAX_ENTRIES: Final = 64


class Tables:
    """Tells which displays of constants are never changed."""

    def __init__(self, index: ProgramIndex) -> None:
        self._index = index
        self._loads: dict[str, list[ast.Name]] | None = None
        self._known: dict[tuple[Scope, str], list[ast.expr] | None] = {}

    def entries(self, node: ast.expr) -> list[ast.expr] | None:
        """Return all that a lookup in the expression may give, None where that is not certain."""
        if not isinstance(node, ast.Name):
            return _constants(node)
        scope = self._scope_of(node)
        if scope is None:
            return None
        key = (scope, node.id)
        if key not in self._known:
            self._known[key] = self._entries_of(scope, node.id)
        return self._known[key]

    def _entries_of(self, scope: Scope, name: str) -> list[ast.expr] | None:
        bindings = scope.bindings[name]
        display = bindings[0].node
        if len(bindings) > 1 or bindings[0].kind != "value" or not isinstance(display, ast.expr):
            return None
        found = _constants(display)
        return found if found is not None and all(map(self._is_read, self._loads_of(scope, name))) else None

    def _loads_of(self, scope: Scope, name: str) -> list[ast.Name]:
        if self._loads is None:
            self._loads = {}
            for node in self._index.interesting:
                if isinstance(node, ast.Name):
                    self._loads.setdefault(node.id, []).append(node)
        return [load for load in self._loads.get(name, ()) if self._scope_of(load) is scope]

    def _is_read(self, node: ast.Name) -> bool:
        parent = self._index.parents.get(node)
        if isinstance(parent, ast.Subscript):
            return parent.value is not node or isinstance(parent.ctx, ast.Load)
        if isinstance(parent, ast.Attribute):
            return parent.attr in _READING_METHODS
        if isinstance(parent, ast.Call):
            return isinstance(parent.func, ast.Name) and parent.func.id in _READING_FUNCTIONS
        return isinstance(parent, (ast.Compare, ast.For, ast.comprehension, ast.FormattedValue, ast.Starred))

    def _scope_of(self, node: ast.Name) -> Scope | None:
        scope = self._index.scopes.get(node)
        first = scope
        while scope is not None:
            if node.id in scope.elsewhere:
                return None
            if node.id in scope.bindings and (scope.kind != "class" or scope is first):
                return scope if scope.kind != "class" else None
            scope = scope.parent
        return None


def _constants(display: ast.expr) -> list[ast.expr] | None:
    values: list[ast.expr] = []
    if isinstance(display, ast.Dict) and None not in display.keys:
        values = display.values
    elif isinstance(display, (ast.List, ast.Tuple)):
        values = display.elts
    if not 0 < len(values) <= _MAX_ENTRIES or not all(isinstance(value, ast.Constant) for value in values):
        return None
    return values
