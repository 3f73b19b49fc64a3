"""Literals and operators of JavaScript: texts, numbers, templates, arrays, sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox_svc.analysis.javascript import fold
from sandbox_svc.analysis.javascript.tree import Node, literal, unescape
from sandbox_svc.analysis.javascript.values import NOT_KNOWN, UNKNOWN, Const, Items, Value, Values, unique
from sandbox_svc.analysis.possibilities import pairs
from sandbox_svc.analysis.texts import HOLE, MAX_TEXT

if TYPE_CHECKING:
    from sandbox_svc.analysis.javascript.resolve import Resolver


def string(_resolver: Resolver, node: Node) -> Values:
    if node.end - node.start > MAX_TEXT:
        return NOT_KNOWN
    return (Const(literal(node)),)


def number(_resolver: Resolver, node: Node) -> Values:
    value = fold.number(node.text) if node.end - node.start < 40 else None
    return NOT_KNOWN if value is None else (Const(value),)


def template(resolver: Resolver, node: Node) -> Values:
    holes = [child for child in node.children if child.type == "template_substitution" and child.children]
    found: list[Value] = []
    for row in resolver.combined([hole.children[0] for hole in holes]):
        filled = dict(zip(holes, row, strict=True))
        parts = [filled[child] if child in filled else unescape(child.text) for child in node.children]
        found.append(Const("".join(parts)) if sum(map(len, parts)) <= MAX_TEXT else UNKNOWN)
    return unique(found)


def binary(resolver: Resolver, node: Node) -> Values:
    left, right = resolver.resolve(node.field("left")), resolver.resolve(node.field("right"))
    if node.operator in ("||", "&&", "??"):
        return unique([*left, *right])
    found, is_complete = pairs(left, right)
    values = [binary_value(node.operator, a, b) for a, b in found]
    return unique(values if is_complete else [*values, UNKNOWN])


def binary_value(operator: str, left: Value, right: Value) -> Value:
    if isinstance(left, Const) and isinstance(right, Const):
        result = fold.binary(operator, left.value, right.value)
        return UNKNOWN if result is None else Const(result)
    if operator == "+":
        if isinstance(left, Const) and isinstance(left.value, str) and len(left.value) < fold.MAX_ELEMENTS:
            return Const(left.value + HOLE)
        if isinstance(right, Const) and isinstance(right.value, str) and len(right.value) < fold.MAX_ELEMENTS:
            return Const(HOLE + right.value)
    return UNKNOWN


def array(resolver: Resolver, node: Node) -> Values:
    if 0 < len(node.children) <= fold.MAX_ELEMENTS:
        items = [_scalar(resolver, child) for child in node.children]
        if None not in items:
            return (Const(tuple(item for item in items if item is not None)),)
        if len(items) == 1 and node.children[0].type == "spread_element":
            spread = resolver.resolve(node.children[0].children[0] if node.children[0].children else None)
            if all(isinstance(value, Const) and isinstance(value.value, (str, tuple)) for value in spread):
                return tuple(
                    Const(tuple(v.value))
                    for v in spread
                    if isinstance(v, Const) and not isinstance(v.value, (int, float))
                )
    return (Items(node),)


def _scalar(resolver: Resolver, node: Node) -> fold.Scalar | None:
    if node.type not in ("string", "number"):
        return None
    for value in resolver.constants(node):
        if not isinstance(value, tuple):
            return value
    return None


def unary(resolver: Resolver, node: Node) -> Values:
    if node.operator not in ("-", "+", "~"):
        return NOT_KNOWN
    found: list[Value] = []
    for value in resolver.resolve(node.field("argument")):
        number = value.value if isinstance(value, Const) and isinstance(value.value, (int, float)) else None
        if number is None:
            found.append(UNKNOWN)
        else:
            found.append(Const(-number if node.operator == "-" else ~int(number) if node.operator == "~" else number))
    return unique(found)
