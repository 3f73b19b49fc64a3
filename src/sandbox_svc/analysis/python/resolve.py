"""What an expression may stand for: names, attributes and calls followed through the whole program.

Every name has all the values that it is given anywhere in its scope, in no order; that is wrong in favour of finding
things, and an honest program that gives one name both a harmless and a forbidden meaning has yet to be seen.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import ClassVar, Final

from sandbox_svc.analysis.possibilities import all_if_few, each_with_each
from sandbox_svc.analysis.python import callers, calls, expressions, fold, methods, places
from sandbox_svc.analysis.python.names import BUILTINS, ITERATED, canonical
from sandbox_svc.analysis.python.scopes import Binding, Loop, ProgramIndex, Scope
from sandbox_svc.analysis.python.tables import Tables
from sandbox_svc.analysis.python.values import (
    NOT_KNOWN,
    UNKNOWN,
    Const,
    Items,
    Many,
    Own,
    Place,
    Ref,
    Table,
    Unknown,
    Value,
    Values,
    unique,
)

MAX_BINDINGS: Final = 64
MAX_SPREAD: Final = 4
"""Dicts in dicts that are followed: `{**a}`."""
MAX_DEPTH: Final = 48
"""Levels of expression that are followed; the recursion limit of the interpreter is far above it."""

_MAGIC_NAMES: Final = {"__builtins__": "builtins"}
# At module level these mean the builtin until the program's own definition has run.
_WATCHED_BUILTINS: Final = frozenset({"eval", "exec", "__import__", "open", "compile", "getattr"})
# Modules of the standard library import these under private names: `random._os`, whatever it is that holds `random`.
_PRIVATE_MODULES: Final = frozenset({"_os", "_subprocess", "_builtins"})
_DICTS: Final = (".__dict__", "sys.modules", "builtins.globals()")


class Resolver:
    """Follows expressions of one program. `steps` bounds the work: past it, everything is unknown."""

    def __init__(self, index: ProgramIndex, *, max_steps: int) -> None:
        self.index = index
        self._memo: dict[ast.AST, Values] = {}
        self._names: dict[tuple[Scope, str], Values] = {}
        self._open_names: set[tuple[Scope, str]] = set()
        self._cut = 0
        """How often a name was asked for while it was being worked out. What came of that holds nowhere else."""
        self._open_functions: set[ast.AST] = set()
        self._tables = Tables(index)
        self._depth = 0
        self._spread = 0
        self.steps_left = max_steps

    # Entry points

    def resolve(self, node: ast.AST) -> Values:
        """Return what the expression may be."""
        if type(node) is ast.Constant:
            return self._constant(node.value)
        known = self._memo.get(node)
        if known is not None:
            return known
        handler = self._HANDLERS.get(type(node))
        if handler is None:
            return NOT_KNOWN
        if self._depth >= MAX_DEPTH or self.steps_left <= 0:
            return NOT_KNOWN
        self.steps_left -= 1
        self._depth += 1
        cut = self._cut
        try:
            # No alternative at all would be judged as if it could do nothing.
            values = handler(self, node) or NOT_KNOWN
        finally:
            self._depth -= 1
        # Long texts cost their length: they are copied and hashed.
        self.steps_left -= sum(
            len(v.value) >> 6 for v in values if isinstance(v, Const) and isinstance(v.value, (str, bytes))
        )
        if cut == self._cut or not self._open_names:
            self._memo[node] = values
        return values

    def constants(self, node: ast.AST) -> list[object]:
        """Return the constants among what the expression may be."""
        return [value.value for value in self.resolve(node) if isinstance(value, Const)]

    def texts(self, node: ast.AST) -> list[str]:
        """Return the texts among what the expression may be; bytes as text, paths as their text."""
        found = []
        for value in self.resolve(node):
            if isinstance(value, Place):
                found.append(value.path)
            elif isinstance(value, Const):
                if isinstance(value.value, str):
                    found.append(value.value)
                elif isinstance(value.value, bytes):
                    found.append(value.value.decode("utf-8", "replace"))
        return found

    def names(self, node: ast.AST) -> list[str]:
        """Return the dotted names among what the expression may be."""
        return [value.name for value in self.resolve(node) if isinstance(value, Ref)]

    # Names

    def _constant(self, value: object) -> Values:
        if isinstance(value, (str, bytes, int, float)) or value is None:
            return (Const(value),)
        return NOT_KNOWN

    def _name(self, node: ast.Name) -> Values:
        scope: Scope | None = self.index.scopes.get(node, self.index.module)
        name = node.id
        if name in _MAGIC_NAMES:
            return (Ref(_MAGIC_NAMES[name]),)
        first = scope
        values: list[Value] = []
        while scope is not None:
            if scope.elsewhere.get(name) == "global":
                scope = self.index.module
            if name in scope.bindings and (scope.kind != "class" or scope is first):
                values += self._bound(scope, name)
                if not self._may_be_builtin(scope, name, node, first):
                    return unique(values)
                break
            scope = scope.parent
        if name in BUILTINS:
            values += canonical(f"builtins.{name}")
        scope = first
        while scope is not None:
            for module in scope.stars:
                values += canonical(f"{module}.{name}")
            scope = scope.parent
        return unique(values) if values else NOT_KNOWN

    def _may_be_builtin(self, scope: Scope, name: str, node: ast.Name, used_in: Scope | None) -> bool:
        if scope.kind == "function" or name not in _WATCHED_BUILTINS:
            return False
        certain = [binding.line for binding in scope.bindings[name] if binding.is_certain]
        return not certain or (used_in is scope and node.lineno <= min(certain))

    def _bound(self, scope: Scope, name: str) -> Values:
        key = (scope, name)
        known = self._names.get(key)
        if known is not None:
            return known
        if key in self._open_names:
            self._cut += 1
            return NOT_KNOWN
        self._open_names.add(key)
        try:
            bindings = scope.bindings[name]
            values: list[Value] = []
            for binding in all_if_few(bindings, MAX_BINDINGS):
                values += self._binding(binding) if binding is not None else NOT_KNOWN
            changes = self._tables.changes(scope, name)
            result = unique(values if changes is None else map(changes.applied, values))
        finally:
            self._open_names.discard(key)
        self._names[key] = result
        return result

    def _binding(self, binding: Binding) -> Values:
        node = binding.node
        if binding.kind == "module":
            return canonical(binding.name)
        if binding.kind == "own" and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            return (Own(node),)
        if binding.kind == "parameter" and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return self._parameter(node, binding)
        if node is None or binding.kind == "opaque":
            return NOT_KNOWN
        values = self.resolve(node)
        if binding.kind == "item":
            values = self.elements(values)
        for position in binding.path:
            values = self.element(values, position)
        return values

    def _parameter(self, function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, binding: Binding) -> Values:
        """What the callers inside the program pass, and the default; callers outside may pass anything."""
        values: list[Value] = [] if callers.is_closed(self.index, function) else [UNKNOWN]
        position = binding.path[0] if binding.path else None
        default = callers.default_of(function, binding.name)
        if default is not None:
            values += self.resolve(default)
        for call, skipped in callers.callers(self.index, function):
            argument = callers.argument_for(call, binding.name, None if position is None else position - skipped)
            if argument is not None:
                values += self.resolve(argument)
            elif default is None or callers.is_unpacked(call):
                values.append(UNKNOWN)
        return unique(values)

    # Attributes and elements

    def _attribute(self, node: ast.Attribute) -> Values:
        return self.attribute(self.resolve(node.value), node.attr)

    def attribute(self, base: Values, name: str) -> Values:
        """Return what attribute `name` of any of these values may be."""
        values: list[Value] = []
        for value in base:
            if isinstance(value, Ref):
                values += self._attribute_of_ref(value.name, name)
            elif isinstance(value, Place):
                values += (
                    (Place(places.parent_path(value.path)),)
                    if name == "parent"
                    else canonical(f"pathlib.Path().{name}")
                )
            elif isinstance(value, Own):
                values += self._attribute_of_own(value, name)
            elif isinstance(value, Unknown):
                values += self._stored(name)
                if name in _PRIVATE_MODULES and name not in self.index.stored:
                    values += canonical(name[1:])
            elif not isinstance(value, Const) or isinstance(value.value, (str, bytes, tuple)):
                # A method of a builtin type: see `calls`.
                values.append(UNKNOWN)
        return unique(values) if values else NOT_KNOWN

    def _attribute_of_ref(self, owner: str, name: str) -> Values:
        if name == "__self__" and owner.startswith("builtins."):
            return (Ref("builtins"),)
        if name in ("__call__", "__func__", "__wrapped__"):
            return canonical(owner)
        if name == "__class__" or (owner == "builtins" and name not in BUILTINS and not name.startswith("_")):
            return NOT_KNOWN
        return canonical(f"{owner}.{name}")

    def _attribute_of_own(self, value: Own, name: str) -> Values:
        scope = self.index.inner.get(value.node)
        if not isinstance(value.node, ast.Lambda) and name in ("__doc__", "__name__"):
            text = value.node.name if name == "__name__" else ast.get_docstring(value.node, clean=False)
            return unique([*self._stored(name), *self._constant(text)])
        if name == "__class__" and not isinstance(value.node, ast.ClassDef):
            return (Ref("types.FunctionType"),)
        if isinstance(value.node, ast.ClassDef) and scope is not None and name in scope.bindings:
            return self._bound(scope, name)
        return self._stored(name)

    def _stored(self, name: str) -> Values:
        """What the program itself stores under that attribute, on whatever object."""
        values: list[Value] = [UNKNOWN]
        key = (self.index.module, f".{name}")
        if name in self.index.stored and key not in self._open_names:
            known = self._names.get(key)
            if known is not None:
                return known
            self._open_names.add(key)
            for node in self.index.stored[name][:MAX_BINDINGS]:
                values += self.resolve(node)
            self._open_names.discard(key)
            self._names[key] = unique(values)
        return unique(values)

    def elements(self, values: Values) -> Values:
        """Return what iterating over any of these values may give."""
        found: list[Value] = []
        for value in values:
            if isinstance(value, Items):
                for element in all_if_few(value.elements, MAX_BINDINGS):
                    found += self.resolve(element) if element is not None else NOT_KNOWN
            elif isinstance(value, Const) and isinstance(value.value, (str, tuple)):
                items = all_if_few(value.value, MAX_BINDINGS)
                found += [UNKNOWN if item is None else Const(item) for item in items]
            elif isinstance(value, Many):
                found += self.resolve(value.element)
            elif isinstance(value, Table):
                for key in all_if_few(value.node.keys, MAX_BINDINGS):
                    found += self.resolve(key) if key is not None else NOT_KNOWN
            elif isinstance(value, Ref) and value.name in ITERATED:
                found += canonical(ITERATED[value.name])
            else:
                found.append(UNKNOWN)
        return unique(found)

    def element(self, values: Values, index: object) -> Values:
        """Return what element `index` of any of these values may be."""
        found: list[Value] = []
        for value in values:
            if isinstance(value, Items) and not value.is_ordered:
                found += self.elements((value,))
            elif (
                isinstance(value, Items)
                and isinstance(index, int)
                and -len(value.elements) <= index < len(value.elements)
            ):
                found += self.resolve(value.elements[index])
            elif isinstance(value, Many):
                found += self.resolve(value.element)
            elif isinstance(value, Table):
                found += self._table_entry(value.node, index)
            elif isinstance(value, Const):
                part = fold.subscript(value.value, index)
                found.append(Const(part) if part is not None else UNKNOWN)
            elif isinstance(value, Ref) and isinstance(index, str) and is_dictionary(value.name):
                found += self._dict_entry(value.name, index)
            else:
                found.append(UNKNOWN)
        return unique(found)

    def _dict_entry(self, owner: str, key: str) -> Values:
        if owner == "sys.modules":
            return canonical(key) if key else NOT_KNOWN
        if owner == "builtins.globals()":
            if key == "__builtins__":
                return (Ref("builtins"),)
            return self._bound(self.index.module, key) if key in self.index.module.bindings else NOT_KNOWN
        return self._attribute_of_ref(owner.removesuffix(".__dict__"), key)

    def _table_entry(self, table: ast.Dict, key: object) -> Values:
        found: list[Value] = []
        for name, value in zip(table.keys[:MAX_BINDINGS], table.values, strict=False):
            if name is None and self._spread < MAX_SPREAD:
                # A dict may hold itself: `d = {**d, "a": 1}`.
                self._spread += 1
                self.steps_left -= 1
                found += self.element(self.resolve(value), key)
                self._spread -= 1
            elif name is None:
                found.append(UNKNOWN)
            elif self._may_be(name, key):
                found += self.resolve(value)
        if len(table.keys) > MAX_BINDINGS:
            found.append(UNKNOWN)
        return unique(found) if found else NOT_KNOWN

    def _may_be(self, node: ast.expr, key: object) -> bool:
        if isinstance(node, ast.Constant):
            return bool(node.value == key)
        return any(not isinstance(value, Const) or value.value == key for value in self.resolve(node))

    def any_entry(self, node: ast.expr, values: Values) -> Values:
        """Return what a lookup in the expression, which may be any of the values, gives for a key that is not known."""
        entries = self._tables.entries(node)
        if entries is None:
            return self.any_element(values)
        return tuple(value for entry in entries for value in self.resolve(entry))

    def any_element(self, values: Values) -> Values:
        """Return what some element, under an index or key that is not known, may be."""
        found: list[Value] = [UNKNOWN]
        for value in values:
            if isinstance(value, (Items, Many)):
                found += self.elements((value,))
            elif isinstance(value, Table):
                for entry in value.node.values[:MAX_BINDINGS]:
                    found += self.resolve(entry)
        return unique(found)

    def _subscript(self, node: ast.Subscript) -> Values:
        base = self.resolve(node.value)
        if isinstance(node.slice, ast.Slice):
            found: list[Value] = []
            bounds = [self._slice_part(part) for part in (node.slice.lower, node.slice.upper, node.slice.step)]
            rows, is_complete = each_with_each(bounds)
            for row in rows:
                found += self.element(base, slice(*row)) if UNKNOWN not in row else NOT_KNOWN
            return unique(found if is_complete else [*found, UNKNOWN])
        return self.lookup(node.value, base, self.resolve(node.slice))

    def lookup(self, node: ast.expr, base: Values, keys: Values) -> Values:
        """Return what `node[key]` may be for these keys, where the expression may be any of `base`."""
        found: list[Value] = []
        for key in keys:
            found += self.element(base, key.value) if isinstance(key, Const) else self.any_entry(node, base)
        return unique(found)

    def _slice_part(self, node: ast.expr | None) -> list[object]:
        """What a bound of a slice may be: None where there is none."""
        if node is None:
            return [None]
        values = self.resolve(node)
        return [
            v.value if isinstance(v, Const) and (v.value is None or fold.is_number(v.value)) else UNKNOWN
            for v in values
        ]

    # Calls

    def _call(self, node: ast.Call) -> Values:
        found: list[Value] = []
        for function in self.resolve(node.func):
            if isinstance(function, Ref):
                found += calls.call_ref(self, function.name, node)
            elif isinstance(function, Own):
                found += self._call_own(function)
            else:
                found += methods.call_method(self, node)
        return unique(found) if found else NOT_KNOWN

    def _call_own(self, function: Own) -> Values:
        if isinstance(function.node, ast.ClassDef) or function.node in self._open_functions:
            return NOT_KNOWN
        self._open_functions.add(function.node)
        try:
            values: list[Value] = []
            yielded = self.index.yields.get(function.node)
            if yielded:
                return (Items(tuple(yielded), is_ordered=False),)
            for returned in all_if_few(self.index.returns.get(function.node, []), MAX_BINDINGS):
                values += self.resolve(returned) if returned is not None else NOT_KNOWN
            return unique(values) if values else NOT_KNOWN
        finally:
            self._open_functions.discard(function.node)

    # Operators and displays

    def _dict(self, node: ast.Dict) -> Values:
        return (Table(node),)

    def _either(self, node: ast.IfExp) -> Values:
        return unique([*self.resolve(node.body), *self.resolve(node.orelse)])

    def _any(self, node: ast.BoolOp) -> Values:
        found: list[Value] = []
        for part in all_if_few(node.values, MAX_BINDINGS):
            found += self.resolve(part) if part is not None else NOT_KNOWN
        return unique(found)

    def _inner_value(self, node: ast.NamedExpr | ast.Await) -> Values:
        return self.resolve(node.value)

    def _own(self, node: ast.Lambda) -> Values:
        return (Own(node),)

    _HANDLERS: ClassVar[dict[type[ast.AST], Callable[..., Values]]] = {
        ast.Name: _name,
        ast.Attribute: _attribute,
        ast.Subscript: _subscript,
        ast.Call: _call,
        ast.BinOp: expressions.binary,
        ast.JoinedStr: expressions.formatted,
        ast.List: expressions.display,
        ast.Tuple: expressions.display,
        ast.Set: expressions.display,
        ast.Dict: _dict,
        ast.UnaryOp: expressions.unary,
        ast.IfExp: _either,
        ast.BoolOp: _any,
        ast.NamedExpr: _inner_value,
        ast.Await: _inner_value,
        ast.Lambda: _own,
        ast.ListComp: expressions.comprehension,
        ast.SetComp: expressions.comprehension,
        ast.GeneratorExp: expressions.comprehension,
        Loop: expressions.loop,
    }


def is_dictionary(name: str) -> bool:
    """Tell whether that name is a dictionary of modules or of their contents; `__builtins__` may be one."""
    return name == "builtins" or name.endswith(_DICTS)
