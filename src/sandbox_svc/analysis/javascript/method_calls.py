"""What methods of constants and displays of a JavaScript program return."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.javascript import callers, containers, displays, fold
from sandbox_svc.analysis.javascript.callers import argument, arguments
from sandbox_svc.analysis.javascript.combinations import each_result, name_in
from sandbox_svc.analysis.javascript.scopes import property_name
from sandbox_svc.analysis.javascript.tree import Node
from sandbox_svc.analysis.javascript.values import (
    NOT_KNOWN,
    UNKNOWN,
    Const,
    Items,
    Own,
    Table,
    Unknown,
    Value,
    Values,
    unique,
)
from sandbox_svc.analysis.possibilities import MAX_COMBINED, all_if_few, pairs

if TYPE_CHECKING:
    from sandbox_svc.analysis.javascript.resolve import Resolver

_MAX_ARGUMENTS: Final = 8
_FROM_CALLBACKS: Final = callers.REDUCTIONS | {"map", "flatMap", "then"}
_SAME: Final = frozenset({"filter", "slice", "concat", "reverse", "sort"})
_TAKING: Final = frozenset({"get", "at", "pop", "shift", "find"})


def result(resolver: Resolver, function: Node, node: Node) -> Values:
    """Return what calling a method of something that is not known by a name gives."""
    name = property_name(function.field("property"))
    if name is not None:
        return _called(resolver, name, function, node)
    if function.type != "subscript_expression":
        return NOT_KNOWN
    found: list[Value] = []
    for value in all_if_few(resolver.resolve(function.field("index")), MAX_COMBINED):
        known = name_in(value)
        found += _called(resolver, known, function, node) if known is not None else NOT_KNOWN
    return unique(found)


def _called(resolver: Resolver, name: str, function: Node, node: Node) -> Values:
    bases = resolver.resolve(function.field("object"))
    constants = [base.value for base in bases if isinstance(base, Const)]
    found: list[Value] = []
    if constants:
        given = arguments(node)
        found += (
            each_result(resolver, given, lambda row: fold.method(row[0], name, row[1:]), receivers=constants)
            if len(given) <= _MAX_ARGUMENTS and not callers.has_spread(node)
            else NOT_KNOWN
        )
    for base in bases:
        if isinstance(base, Items):
            found += _of_array(resolver, base, name, node)
        elif isinstance(base, Table) and name in ("at", "find", "pop", "shift", "values", "get"):
            found += resolver.any_element((base,))
        elif not isinstance(base, Const):
            found.append(base if isinstance(base, Unknown) else UNKNOWN)
    if name in _TAKING:
        found += containers.put_in(resolver, function.field("object"))
    found += _of_callback(resolver, name, node)
    return unique(found) or NOT_KNOWN


def _of_array(resolver: Resolver, base: Items, name: str, node: Node) -> Values:
    is_map = base.node.type == displays.MAP
    if name == "join":
        return _join(resolver, base.node, node)
    if is_map and name in ("get", "values"):
        values = resolver.element(resolver.elements((base,)), 1)
        return (UNKNOWN, *values) if name == "get" else (Items(displays.held(base.node, 1)),)
    if name in ("values", "entries", "keys"):
        return (Items(displays.held(base.node, 0)),) if is_map and name == "keys" else (base,)
    if name in ("at", "find", "pop", "shift", "get"):
        return resolver.any_element((base,))
    if name in _SAME:
        kept = Items(displays.array(base.node.children, node, kind=displays.UNORDERED))
        added = [value for part in arguments(node) for value in resolver.resolve(part)] if name == "concat" else []
        return unique([kept, *(value if isinstance(value, (Items, Const)) else UNKNOWN for value in added)])
    return NOT_KNOWN


def _join(resolver: Resolver, array: Node, node: Node) -> Values:
    parts = array.children
    if array.type == displays.UNORDERED or len(parts) > fold.MAX_ELEMENTS:
        return NOT_KNOWN
    if any(part.type == "spread_element" for part in parts) or callers.has_spread(node):
        return NOT_KNOWN
    separators = resolver.combined(arguments(node)[:1])
    found, is_complete = pairs(separators, resolver.combined(parts))
    joined = [fold.method(texts, "join", [*separator] or [","]) for separator, texts in found]
    values = [UNKNOWN if text is None else Const(text) for text in joined]
    return unique(values if is_complete else [*values, UNKNOWN])


def _of_callback(resolver: Resolver, name: str, node: Node) -> list[Value]:
    """What a method makes of what its callback, a function of the program, returns."""
    if name not in _FROM_CALLBACKS:
        return []
    found: list[Value] = []
    for value in resolver.resolve(argument(node, 0)):
        if not isinstance(value, Own):
            continue
        if name in ("map", "flatMap"):
            returned = resolver.index.returns.get(value.node, [])
            found += (Items(displays.array(returned, node, kind=displays.UNORDERED)),) if returned else ()
        else:
            found += resolver.call_own(value.node)
    if name in callers.REDUCTIONS and found:
        found += resolver.resolve(argument(node, 1))
    return [*found, UNKNOWN] if found else found
