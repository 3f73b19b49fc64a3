"""What operators, displays, f-strings and comprehensions make of what is known of their parts."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sandbox_svc.analysis.possibilities import pairs
from sandbox_svc.analysis.python import fold, places
from sandbox_svc.analysis.python.combinations import each_result, rows, to_value
from sandbox_svc.analysis.python.scopes import Loop
from sandbox_svc.analysis.python.values import NOT_KNOWN, UNKNOWN, Const, Items, Many, Place, Ref, Value, Values, unique
from sandbox_svc.analysis.texts import HOLE, MAX_TEXT

if TYPE_CHECKING:
    from sandbox_svc.analysis.python.resolve import Resolver

MAX_EVALUATION_DEPTH: Final = 12


def binary(resolver: Resolver, node: ast.BinOp) -> Values:
    left, right = resolver.resolve(node.left), resolver.resolve(node.right)
    found, is_complete = pairs(left, right)
    values: list[Value] = [] if is_complete else [UNKNOWN]
    for a, b in found:
        if isinstance(node.op, ast.Div):
            values.append(places.join_paths([a, b]) if isinstance(a, Place) else UNKNOWN)
        elif isinstance(node.op, ast.Mod) and isinstance(a, Const) and isinstance(a.value, str):
            # With a tuple on the right, of which there is but one, what it holds has the alternatives.
            values += _percent(resolver, a.value, node.right, b)
        else:
            values.append(_binary_value(node.op, a, b))
    return unique(values)


def _binary_value(operation: ast.operator, left: Value, right: Value) -> Value:
    if isinstance(left, Const) and isinstance(right, Const):
        return to_value(fold.binary(operation, left.value, right.value))
    if isinstance(operation, ast.Add):
        for known, text in ((left, f"{HOLE}"), (right, f"{HOLE}")):
            if isinstance(known, Const) and isinstance(known.value, str) and len(known.value) < fold.MAX_ELEMENTS:
                return Const(known.value + text if known is left else text + known.value)
    return UNKNOWN


def _percent(resolver: Resolver, template: str, node: ast.expr, value: Value) -> list[Value]:
    arguments: Sequence[object]
    if isinstance(node, ast.Tuple):
        arguments = rows(resolver, node.elts)
    else:
        arguments = [value.value if isinstance(value, Const) else HOLE]
    return [to_value(fold.percent(template, given)) for given in arguments]


def formatted(resolver: Resolver, node: ast.JoinedStr) -> Values:
    fields = [part for part in node.values if isinstance(part, ast.FormattedValue)]
    found: list[Value] = []
    for row in rows(resolver, [field.value for field in fields]):
        given = iter(row)
        parts = [
            _field(part, next(given)) if isinstance(part, ast.FormattedValue) else _literal(part)
            for part in node.values
        ]
        found.append(Const("".join(parts)) if sum(map(len, parts)) <= MAX_TEXT else UNKNOWN)
    return unique(found)


def _literal(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else HOLE


def _field(field: ast.FormattedValue, value: str | int) -> str:
    specification = (
        "".join(map(_literal, field.format_spec.values)) if isinstance(field.format_spec, ast.JoinedStr) else ""
    )
    return fold.format_field(value, "" if field.conversion < 0 else chr(field.conversion), specification)


def display(_resolver: Resolver, node: ast.List | ast.Tuple | ast.Set) -> Values:
    is_ordered = not isinstance(node, ast.Set) or len(node.elts) == 1
    if (
        is_ordered
        and 0 < len(node.elts) <= fold.MAX_ELEMENTS
        and all(
            isinstance(element, ast.Constant) and isinstance(element.value, (str, bytes, int)) for element in node.elts
        )
    ):
        return (Const(tuple(element.value for element in node.elts if isinstance(element, ast.Constant))),)
    is_ordered = is_ordered and not any(isinstance(element, ast.Starred) for element in node.elts)
    return (Items(tuple(node.elts), is_ordered=is_ordered),)


def unary(resolver: Resolver, node: ast.UnaryOp) -> Values:
    return each_result(resolver, [node.operand], lambda row: fold.unary(node.op, row[0]))


def comprehension(resolver: Resolver, node: ast.ListComp | ast.GeneratorExp | ast.SetComp) -> Values:
    """A simple comprehension over constants, unrolled: `''.join(chr(c) for c in [111, 115])`."""
    generator = node.generators[0]
    found: list[Value] = []
    if len(node.generators) == 1 and isinstance(generator.target, ast.Name):
        for value in resolver.resolve(generator.iter):
            found += unroll(resolver, node.elt, generator.target.id, value, generator.ifs)
    known = [value for value in found if isinstance(value, Const)]
    return (*known, Many(node.elt)) if not known or len(known) < len(found) else tuple(known)


def loop(resolver: Resolver, node: Loop) -> Values:
    """What a text is after a loop over constants that builds it."""
    found, is_complete = pairs(resolver.resolve(node.start), resolver.resolve(node.items))
    results: list[Value] = [] if is_complete else [UNKNOWN]
    for start, items in found:
        attempt = Attempt(resolver)
        value = start.value if isinstance(start, Const) else None
        parts = items.value if isinstance(items, Const) else None
        if not isinstance(parts, (str, bytes, tuple)) or len(parts) > fold.MAX_ELEMENTS:
            value = None
        for item in parts if isinstance(parts, (str, bytes, tuple)) else ():
            if value is None:
                break
            value = attempt.evaluate(node.step, {node.item: item, node.name: value})
        results += attempt.outcome(value)
    return unique(results)


def unroll(resolver: Resolver, body: ast.expr, name: str, items: Value, tests: Sequence[ast.expr] = ()) -> Values:
    """Return the constants that `body` is for each item under that name, as a tuple, something unknown if not certain.

    `tests` choose the items; one that cannot be worked out makes all unknown.
    """
    if not isinstance(items, Const) or not isinstance(items.value, (str, bytes, tuple)):
        return NOT_KNOWN
    if len(items.value) > fold.MAX_ELEMENTS:
        return NOT_KNOWN
    attempt = Attempt(resolver)
    results = []
    for item in items.value:
        chosen = [attempt.evaluate(test, {name: item}) for test in tests]
        if None in chosen:
            return NOT_KNOWN
        if not all(chosen):
            continue
        result = attempt.evaluate(body, {name: item})
        if result is None:
            return NOT_KNOWN
        results.append(result)
    return attempt.outcome(tuple(results))


_COMPARISONS: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


def _compare(operation: ast.cmpop, left: object, right: object) -> object | None:
    compare = _COMPARISONS.get(type(operation))
    try:
        return compare(left, right) if compare is not None else None
    except TypeError:
        return None


class Attempt:
    """Works out expressions whose names stand for constants; of alternatives, it takes the first that is known."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._is_certain = True

    def outcome(self, value: object | None) -> Values:
        """Return what was worked out, and something unknown beside it if there were alternatives."""
        if value is None:
            return NOT_KNOWN
        return (Const(value),) if self._is_certain else (Const(value), UNKNOWN)

    def evaluate(self, node: ast.expr, names: Mapping[str, object], depth: int = 0) -> object | None:
        """Return the constant that the expression is when the names are these constants, else None."""
        if depth > MAX_EVALUATION_DEPTH or self._resolver.steps_left <= 0:
            return None
        self._resolver.steps_left -= 1

        def inner(part: ast.expr) -> object | None:
            return self.evaluate(part, names, depth + 1)

        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, right = inner(node.left), inner(node.comparators[0])
            return None if left is None or right is None else _compare(node.ops[0], left, right)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            operand = inner(node.operand)
            return None if operand is None else not operand
        if isinstance(node, ast.BinOp):
            left, right = inner(node.left), inner(node.right)
            return None if left is None or right is None else fold.binary(node.op, left, right)
        if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Slice):
            value, index = inner(node.value), inner(node.slice)
            return None if value is None or index is None else fold.subscript(value, index)
        if isinstance(node, ast.Call) and not node.keywords and len(node.args) <= 3:
            return self._call(node, inner)
        return self._first(node)

    def _call(self, node: ast.Call, inner: Callable[[ast.expr], object | None]) -> object | None:
        arguments = [inner(argument) for argument in node.args]
        if None in arguments:
            return None
        functions = self._resolver.resolve(node.func)
        for function in functions:
            if isinstance(function, Ref):
                self._is_certain = self._is_certain and len(functions) == 1
                return fold.call(function.name, arguments)
        if isinstance(node.func, ast.Attribute):
            receiver = inner(node.func.value)
            return None if receiver is None else fold.method(receiver, node.func.attr, arguments)
        return None

    def _first(self, node: ast.expr) -> object | None:
        values = self._resolver.resolve(node)
        for value in values:
            if isinstance(value, Const):
                self._is_certain = self._is_certain and len(values) == 1
                return value.value
        return None
