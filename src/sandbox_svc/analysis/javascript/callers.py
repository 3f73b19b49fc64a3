"""Which calls of a JavaScript program reach which of its functions, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sandbox_svc.analysis.javascript import fold
from sandbox_svc.analysis.javascript.scopes import FUNCTIONS, ProgramIndex, property_name
from sandbox_svc.analysis.javascript.tree import Node, identifier

# Methods of builtin types: `text.replace("/", "_")` is no call of the program's own `replace`.
_COMMON_METHODS: Final = fold.METHODS | {"get", "set", "has", "add", "delete", "push", "then", "call", "apply", "log"}
_ELEMENT_CALLBACKS: Final = frozenset({"map", "forEach", "flatMap", "filter", "find", "some", "every", "findLast"})
MAX_CALLERS: Final = 32


def arguments(node: Node) -> list[Node]:
    """Return the arguments of a call, up to the first spread one."""
    found: list[Node] = []
    parts = node.field("arguments")
    if parts is not None and parts.type == "template_string":
        # tag`a${b}`: the texts, then what is filled in.
        holes = [
            child.children[0] for child in parts.children if child.type == "template_substitution" and child.children
        ]
        return [parts, *holes]
    if parts is None or parts.type != "arguments":
        return found
    for child in parts.children:
        if child.type == "spread_element":
            break
        found.append(child)
    return found


def argument(node: Node, position: int) -> Node | None:
    found = arguments(node)
    return found[position] if position < len(found) else None


def is_spread(node: Node) -> bool:
    """Tell whether the first argument of a call is a spread one."""
    parts = node.field("arguments")
    return parts is not None and bool(parts.children) and parts.children[0].type == "spread_element"


def arguments_for(index: ProgramIndex, function: Node, position: int) -> Iterator[Node | None]:
    """Yield what calls in the program pass to a parameter of one of its functions; None where that cannot be told."""
    return (argument(call, position) for call in calls_of(index, function))


def calls_of(index: ProgramIndex, function: Node) -> Iterator[Node]:
    """Yield the calls in the program that may be of one of its functions."""
    calls: list[Node] = []
    parent = function.parent
    name = function.field("name")
    if function.type == "method_definition":
        key = property_name(name)
        if key == "constructor" and parent is not None and parent.parent is not None:
            # `new Name(...)`
            known = parent.parent.field("name")
            yield from index.calls_by_name.get(identifier(known), [])[:MAX_CALLERS] if known is not None else ()
            return
        calls = index.calls_by_property.get(key, []) if key is not None and key not in _COMMON_METHODS else []
    elif name is not None:
        calls = index.calls_by_name.get(identifier(name), [])
    elif parent is not None and parent.type == "variable_declarator":
        target = parent.field("name")
        if target is not None and target.type == "identifier":
            calls = index.calls_by_name.get(identifier(target), [])
    elif parent is not None and parent.type in ("pair", "assignment_expression"):
        left = parent.field("key") or parent.field("left")
        if left is not None and left.type == "member_expression":
            left = left.field("property")
        key = property_name(left)
        if key is not None and key not in _COMMON_METHODS:
            calls = [*index.calls_by_property.get(key, []), *index.calls_by_name.get(key, [])]
    yield from calls[:MAX_CALLERS]
    invoked = _invocation(function)
    if invoked is not None:
        yield invoked


def is_closed(index: ProgramIndex, function: Node) -> bool:
    """Tell whether `arguments_for` and `callback_receiver` know all that the function is called with."""
    if callback_receiver(function, 0) is not None or _invocation(function) is not None:
        return function.field("name") is None
    name = function.field("name")
    if function.type == "method_definition":
        return False
    if name is None and function.parent is not None and function.parent.type == "variable_declarator":
        name = function.parent.field("name")
    if name is None or name.type != "identifier":
        return False
    text = identifier(name)
    return text != "main" and 0 < index.loads[text] == len(index.calls_by_name.get(text, ())) <= MAX_CALLERS


def _invocation(function: Node) -> Node | None:
    """Return the call of a function that is called where it stands."""
    node, parent = function, function.parent
    while parent is not None and (
        parent.type == "parenthesized_expression"
        or (parent.type == "sequence_expression" and parent.children[-1] is node)
    ):
        node, parent = parent, parent.parent
    if parent is not None and parent.type == "call_expression" and parent.field("function") is node:
        return parent
    return None


def callback_receiver(function: Node, position: int) -> tuple[Node, bool] | None:
    """Return what a callback's first parameter comes from: `x.then(f)` (False), `[...].map(f)` (True: its elements)."""
    parent = function.parent
    call = parent.parent if parent is not None and parent.type == "arguments" else None
    target = call.field("function") if call is not None and call.type == "call_expression" else None
    if (
        position != 0
        or target is None
        or target.type != "member_expression"
        or parent is None
        or parent.children[:1] != [function]
    ):
        return None
    source, name = target.field("object"), property_name(target.field("property"))
    if source is None:
        return None
    if name == "then":
        return source, False
    return (source, True) if name in _ELEMENT_CALLBACKS else None


def is_plain_this(node: Node) -> bool:
    """Tell whether `this` stands in `main`, or in a function called where it stands: there it is the global object."""
    function = node.parent
    while function is not None and (function.type not in FUNCTIONS or function.type == "arrow_function"):
        function = function.parent
    if function is None or function.type == "method_definition":
        return False
    name = function.field("name")
    return (name is not None and identifier(name) == "main") or _invocation(function) is not None
