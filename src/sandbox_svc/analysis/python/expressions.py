"""What operators, displays, f-strings and comprehensions make of what is known of their parts."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sandbox_svc.analysis.python import fold, places
from sandbox_svc.analysis.python.scopes import Loop
from sandbox_svc.analysis.python.values import NOT_KNOWN, UNKNOWN, Const, Items, Many, Place, Value, Values, unique
from sandbox_svc.analysis.texts import HOLE, MAX_TEXT

if TYPE_CHECKING:
    from sandbox_svc.analysis.python.resolve import Resolver

MAX_EVALUATION_DEPTH: Final = 12


def binary(resolver: Resolver, node: ast.BinOp) -> Values:
    left, right = resolver.resolve(node.left), resolver.resolve(node.right)
    if isinstance(node.op, ast.Div):
        joined = [places.join_paths([a, b]) for a in left for b in right if isinstance(a, Place)]
        return unique(joined) if joined else NOT_KNOWN
    return unique(_binary_value(resolver, node, a, b) for a in left[:8] for b in right[:8])


def _binary_value(resolver: Resolver, node: ast.BinOp, left: Value, right: Value) -> Value:
    if isinstance(node.op, ast.Mod) and isinstance(left, Const) and isinstance(left.value, str):
        return _percent(resolver, left.value, node.right, right)
    if isinstance(left, Const) and isinstance(right, Const):
        result = fold.binary(node.op, left.value, right.value)
        return UNKNOWN if result is None else Const(result)
    if isinstance(node.op, ast.Add):
        for known, text in ((left, f"{HOLE}"), (right, f"{HOLE}")):
            if isinstance(known, Const) and isinstance(known.value, str) and len(known.value) < fold.MAX_ELEMENTS:
                return Const(known.value + text if known is left else text + known.value)
    return UNKNOWN


def _percent(resolver: Resolver, template: str, node: ast.expr, value: Value) -> Value:
    arguments: object
    if isinstance(node, ast.Tuple):
        arguments = tuple(_text_or_hole(resolver, element) for element in node.elts)
    else:
        arguments = value.value if isinstance(value, Const) else HOLE
    text = fold.percent(template, arguments)
    return UNKNOWN if text is None else Const(text)


def _text_or_hole(resolver: Resolver, node: ast.expr) -> object:
    known = resolver.constants(node)
    return known[0] if known and isinstance(known[0], (str, int)) else HOLE


def formatted(resolver: Resolver, node: ast.JoinedStr) -> Values:
    parts: list[str] = []
    size = 0
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(str(part.value))
        elif isinstance(part, ast.FormattedValue):
            parts.append(resolver.text_or_hole(part.value))
        size += len(parts[-1])
        if size > MAX_TEXT:
            return NOT_KNOWN
    return (Const("".join(parts)),)


def display(_resolver: Resolver, node: ast.List | ast.Tuple | ast.Set) -> Values:
    if 0 < len(node.elts) <= fold.MAX_ELEMENTS and all(
        isinstance(element, ast.Constant) and isinstance(element.value, (str, bytes, int)) for element in node.elts
    ):
        return (Const(tuple(element.value for element in node.elts if isinstance(element, ast.Constant))),)
    return (Items(tuple(node.elts)),)


def unary(resolver: Resolver, node: ast.UnaryOp) -> Values:
    numbers = [value for value in resolver.constants(node.operand) if fold.is_number(value)]
    if numbers and isinstance(numbers[0], int):
        if isinstance(node.op, ast.USub):
            return (Const(-numbers[0]),)
        if isinstance(node.op, ast.Invert):
            return (Const(~numbers[0]),)
    return NOT_KNOWN


def comprehension(resolver: Resolver, node: ast.ListComp | ast.GeneratorExp | ast.SetComp) -> Values:
    """A simple comprehension over constants, unrolled: `''.join(chr(c) for c in [111, 115])`."""
    generator = node.generators[0]
    if len(node.generators) == 1 and isinstance(generator.target, ast.Name):
        for value in resolver.resolve(generator.iter):
            if isinstance(value, Const) and isinstance(value.value, (str, bytes, tuple)):
                items = unroll(resolver, node.elt, generator.target.id, value.value, generator.ifs)
                if items is not None:
                    return (Const(items),)
    return (Many(node.elt),)


def loop(resolver: Resolver, node: Loop) -> Values:
    """What a text is after a loop over constants that builds it."""
    for start in resolver.constants(node.start):
        for items in resolver.constants(node.items):
            if not isinstance(items, (str, bytes, tuple)) or len(items) > fold.MAX_ELEMENTS:
                continue
            value: object | None = start
            for item in items:
                value = evaluate(resolver, node.step, {node.item: item, node.name: value})
                if value is None:
                    break
            if value is not None:
                return (Const(value),)
    return NOT_KNOWN


def unroll(
    resolver: Resolver, body: ast.expr, name: str, items: Sequence[object], tests: Sequence[ast.expr] = ()
) -> tuple[object, ...] | None:
    """Return the constants that `body` is for each item under that name, or None where one is not known.

    `tests` choose the items; one that cannot be worked out makes all unknown.
    """
    if len(items) > fold.MAX_ELEMENTS:
        return None
    results = []
    for item in items:
        chosen = [evaluate(resolver, test, {name: item}) for test in tests]
        if None in chosen:
            return None
        if not all(chosen):
            continue
        result = evaluate(resolver, body, {name: item})
        if result is None:
            return None
        results.append(result)
    return tuple(results)


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


def evaluate(resolver: Resolver, node: ast.expr, names: Mapping[str, object], depth: int = 0) -> object | None:
    """Return the constant that the expression is when the names are these constants, else None."""
    if depth > MAX_EVALUATION_DEPTH or resolver.steps_left <= 0:
        return None
    resolver.steps_left -= 1

    def inner(part: ast.expr) -> object | None:
        return evaluate(resolver, part, names, depth + 1)

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
        arguments = [inner(argument) for argument in node.args]
        if None in arguments:
            return None
        for function in resolver.names(node.func):
            return fold.call(function, arguments)
        if isinstance(node.func, ast.Attribute):
            receiver = inner(node.func.value)
            return None if receiver is None else fold.method(receiver, node.func.attr, arguments)
        return None
    known = resolver.constants(node)
    return known[0] if known else None
