"""Arrays and objects that stand in the program, taken apart: keys, values, entries, the rest of the arguments."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.javascript import callers
from sandbox_svc.analysis.javascript.scopes import FUNCTIONS
from sandbox_svc.analysis.javascript.tree import Node, identifier
from sandbox_svc.analysis.javascript.values import NOT_KNOWN, UNKNOWN, Const, Items, Table, Value, Values
from sandbox_svc.analysis.possibilities import all_if_few

if TYPE_CHECKING:
    from sandbox_svc.analysis.javascript.resolve import Resolver

UNORDERED: Final = "elements"
"""Kind of a display whose children are among the elements; where, and how often, is not known."""
MAP: Final = "map"
"""Kind of a display whose children are pairs of a key and a value."""
MAX_PAIRS: Final = 64


def array(children: list[Node], place: Node, *, kind: str = "array") -> Node:
    """Return an array display that the source does not have, for values that it has."""
    node = Node(b"", kind, place.start, place.end, None)
    node.children = children
    return node


def held(map_node: Node, position: int) -> Node:
    """Return the keys (0) or the values (1) of a `Map`."""
    found = []
    for child in all_if_few(map_node.children, MAX_PAIRS):
        pair = child.children if child is not None and child.type == "array" else []
        is_plain = position < len(pair) and not any(part.type == "spread_element" for part in pair)
        found.append(pair[position] if is_plain else anything(map_node))
    return array(found, map_node, kind=UNORDERED)


def anything(place: Node) -> Node:
    """Return an expression of which nothing is known."""
    return Node(b"", "anything", place.start, place.end, None)


def text(value: str) -> Node:
    """Return a text that the source does not have."""
    source = json.dumps(value).encode()
    return Node(source, "string", 0, len(source), None)


def _pairs(resolver: Resolver, table: Node) -> tuple[list[tuple[str, Node]], bool]:
    """Return keys and values of an object display, and whether these are all."""
    found: list[tuple[str, Node]] = []
    is_complete = 0 < len(table.children) <= MAX_PAIRS
    for child in table.children[:MAX_PAIRS]:
        value = child if child.type == "method_definition" else child.field("value")
        if child.type == "shorthand_property_identifier":
            found.append((identifier(child), child))
        elif child.type in ("pair", "method_definition") and value is not None:
            keys = resolver.keys(child.field("key") or child.field("name"))
            found += ((key or "", value) for key in keys)
            is_complete = is_complete and None not in keys
        else:
            is_complete = False
    return found, is_complete


def _is_changed(resolver: Resolver, node: Node | None) -> bool:
    """Tell whether the program adds to the object under that name."""
    return node is not None and node.type == "identifier" and identifier(node) in resolver.index.changed


def keys(resolver: Resolver, node: Node | None) -> Values:
    """Return the names that `for (const name in node)` gives."""
    found: list[Value] = [UNKNOWN] if _is_changed(resolver, node) else []
    for value in resolver.resolve(node):
        if isinstance(value, Table):
            pairs, is_complete = _pairs(resolver, value.node)
            found += (Const(key) for key, _ in pairs)
            found += () if is_complete else NOT_KNOWN
        else:
            found.append(UNKNOWN)
    return tuple(dict.fromkeys(found))


def object_keys(resolver: Resolver, call: Node) -> Values:
    names = keys(resolver, callers.argument(call, 0))
    listed = tuple(name.value for name in names if isinstance(name, Const) and isinstance(name.value, str))
    return (Const(listed), UNKNOWN) if UNKNOWN in names else (Const(listed),)


def object_values(resolver: Resolver, call: Node) -> Values:
    return _taken(resolver, call, with_keys=False)


def object_entries(resolver: Resolver, call: Node) -> Values:
    return _taken(resolver, call, with_keys=True)


def _taken(resolver: Resolver, call: Node, *, with_keys: bool) -> Values:
    argument = callers.argument(call, 0)
    found: list[Value] = [UNKNOWN] if _is_changed(resolver, argument) else []
    for value in resolver.resolve(argument):
        if isinstance(value, Table):
            pairs, is_complete = _pairs(resolver, value.node)
            found.append(
                Items(array([array([text(key), part], part) if with_keys else part for key, part in pairs], call))
            )
            found += () if is_complete else NOT_KNOWN
        elif isinstance(value, Items) and not with_keys:
            found.append(value)
        else:
            found.append(UNKNOWN)
    return tuple(found)


def rest(resolver: Resolver, function: Node, position: int) -> Values:
    """Return the arrays that `...rest` is, in the calls that are known."""
    calls = list(callers.calls_of(resolver.index, function))
    found = [Items(array(callers.arguments(call)[position:], call)) for call in calls]
    is_all = found and callers.is_closed(resolver.index, function) and not any(map(callers.has_spread, calls))
    return tuple(found) if is_all else (*found, UNKNOWN)


def arguments(resolver: Resolver, node: Node) -> Values:
    """Return what the name `arguments` stands for where it is read."""
    function = node.parent
    while function is not None and (function.type not in FUNCTIONS or function.type == "arrow_function"):
        function = function.parent
    return rest(resolver, function, 0) if function is not None else NOT_KNOWN
