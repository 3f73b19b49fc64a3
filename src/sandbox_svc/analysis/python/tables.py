"""Tables that a program only ever reads: whatever the key, what comes out stands in the program."""

from __future__ import annotations

import ast
from typing import Final, NamedTuple

from sandbox_svc.analysis.python.scopes import ProgramIndex, Scope
from sandbox_svc.analysis.python.values import Const, Items, Table, Value

_READING_METHODS: Final = frozenset({"get", "items", "keys", "values", "copy", "index", "count"})
_READING_FUNCTIONS: Final = frozenset(
    {"len", "sorted", "list", "tuple", "set", "frozenset", "enumerate", "zip", "iter", "print", "str", "repr", "dict"}
)
_MAX_ENTRIES: Final = 64


_CHANGING_METHODS: Final = frozenset(
    {
        *("add", "append", "appendleft", "clear", "extend", "extendleft", "insert", "pop", "popitem", "popleft"),
        *("remove", "reverse", "rotate", "setdefault", "sort", "update", "__setitem__"),
    }
)
_PUTTING_METHODS: Final = frozenset({"add", "append", "appendleft", "insert"})
_EXTENDING_METHODS: Final = frozenset({"extend", "extendleft"})


def anything() -> ast.expr:
    """Return an expression of which nothing is known."""
    return ast.expr()


def each(iterable: ast.expr) -> ast.expr:
    """Return an expression for some element of the iterable."""
    return ast.Call(func=ast.Name(id="next", ctx=ast.Load()), args=[iterable], keywords=[])


class Changes(NamedTuple):
    """What is put into a list or a dict: elements, and entries with their keys, None for the key of a whole dict."""

    elements: list[ast.expr]
    keys: list[ast.expr | None]
    values: list[ast.expr]

    def put(self, key: ast.expr | None, value: ast.expr) -> None:
        self.elements.append(value)
        self.keys.append(key)
        self.values.append(value)

    def call(self, method: str, call: ast.Call | None) -> None:
        """Note what a method puts in; one that is not called where it stands may put in anything."""
        arguments = call.args if call is not None else [anything(), anything()]
        if call is None or any(isinstance(argument, ast.Starred) for argument in arguments):
            self.put(anything(), anything())
        elif method in _PUTTING_METHODS:
            self.elements.extend(arguments[-1:])
        elif method in _EXTENDING_METHODS:
            self.elements.extend(map(each, arguments))
        elif method in ("setdefault", "__setitem__"):
            self.put(arguments[0] if arguments else anything(), arguments[1] if len(arguments) > 1 else anything())
        elif method == "update":
            self.elements.extend(map(each, arguments))
            for argument in arguments:
                self.keys.append(None)
                self.values.append(argument)
            for keyword in call.keywords:
                self.keys.append(ast.Constant(value=keyword.arg) if keyword.arg is not None else None)
                self.values.append(keyword.value)

    def applied(self, value: Value) -> Value:
        """Return what a list or a dict is when all of this may have happened to it."""
        if isinstance(value, Table):
            return Table(ast.Dict(keys=[*self.keys, *value.node.keys], values=[*self.values, *value.node.values]))
        if isinstance(value, Items):
            return Items((*self.elements, *value.elements), is_ordered=False)
        if isinstance(value, Const) and isinstance(value.value, tuple):
            constants: list[ast.expr] = [ast.Constant(value=item) for item in value.value]
            return Items((*self.elements, *constants), is_ordered=False)
        return value


class Tables:
    """Tells which displays of constants are never changed."""

    def __init__(self, index: ProgramIndex) -> None:
        self._index = index
        self._loads: dict[tuple[Scope, str], list[ast.Name]] | None = None
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

    def changes(self, scope: Scope, name: str) -> Changes | None:
        """Return what is put into the list or dict of that name after it is made; None where it stays as it is."""
        found = Changes([], [], [])
        is_changed = False
        for load in self._loads_of(scope, name):
            parent = self._index.parents.get(load)
            if isinstance(parent, ast.Subscript) and parent.value is load and isinstance(parent.ctx, ast.Store):
                target = self._index.parents.get(parent)
                is_plain = isinstance(target, ast.Assign) and parent in target.targets
                found.put(parent.slice, target.value if is_plain and isinstance(target, ast.Assign) else anything())
                is_changed = True
            elif isinstance(parent, ast.Attribute) and parent.attr in _CHANGING_METHODS:
                call = self._index.parents.get(parent)
                is_called = isinstance(call, ast.Call) and call.func is parent
                found.call(parent.attr, call if is_called and isinstance(call, ast.Call) else None)
                is_changed = True
        return found if is_changed else None

    def _loads_of(self, scope: Scope, name: str) -> list[ast.Name]:
        if self._loads is None:
            self._loads = {}
            for node in self._index.interesting:
                owner = self._scope_of(node) if isinstance(node, ast.Name) else None
                if owner is not None and isinstance(node, ast.Name):
                    self._loads.setdefault((owner, node.id), []).append(node)
        return self._loads.get((scope, name), [])

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
