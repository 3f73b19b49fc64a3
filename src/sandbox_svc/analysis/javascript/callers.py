"""Which calls of a JavaScript program reach which of its functions, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sandbox_svc.analysis.javascript import fold
from sandbox_svc.analysis.javascript.scopes import FUNCTIONS, ProgramIndex, property_name
from sandbox_svc.analysis.javascript.tree import Node, identifier

# Methods of builtin types: `text.replace("/", "_")` is no call of the program's own `replace`.
COMMON_METHODS: Final = fold.METHODS | {"get", "set", "has", "add", "delete", "push", "then", "call", "apply", "log"}
ELEMENT_CALLBACKS: Final = frozenset(
    {"map", "forEach", "flatMap", "filter", "find", "findIndex", "some", "every", "findLast"}
)
REDUCTIONS: Final = frozenset({"reduce", "reduceRight"})
_SORTS: Final = frozenset({"sort", "toSorted"})
_LISTENING: Final = frozenset({"on", "once", "addListener", "prependListener"})
DEFERRED: Final = {"setTimeout": 2, "setInterval": 2, "setImmediate": 1, "nextTick": 1, "queueMicrotask": 1}
"""Functions that call their first argument later, and where what they hand to it begins."""
MAX_CALLERS: Final = 32


def called(node: Node) -> Node | None:
    """Return what a call calls, or what `new` makes one of."""
    return node.field("function") or node.field("constructor")


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


def has_spread(node: Node) -> bool:
    """Tell whether a call has a spread argument, at whatever place."""
    parts = node.field("arguments")
    return parts is not None and any(part.type == "spread_element" for part in parts.children)


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
        calls = index.calls_by_property.get(key, []) if key is not None and key not in COMMON_METHODS else []
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
        if key is not None and key not in COMMON_METHODS:
            calls = [*index.calls_by_property.get(key, []), *index.calls_by_name.get(key, [])]
    yield from calls[:MAX_CALLERS]
    for own_name in _names_of(function):
        for call in index.handed.get(own_name, [])[:MAX_CALLERS]:
            yield from _through(call, own_name)
    invoked = _invocation(function)
    if invoked is not None:
        yield invoked


def _names_of(function: Node) -> Iterator[str]:
    """Yield the names that a function is declared or kept under, methods left out."""
    name, parent = function.field("name"), function.parent
    if name is not None and function.type != "method_definition":
        yield identifier(name)
    if parent is not None and parent.type == "variable_declarator":
        target = parent.field("name")
        if target is not None and target.type == "identifier":
            yield identifier(target)


def _through(call: Node, name: str) -> Iterator[Node]:
    """Yield as `name(a)` what is written `name.call(x, a)`, `name.apply(x, [a])` or `Reflect.apply(name, x, [a])`."""
    function, given = called(call), arguments(call)
    if function is None or function.type != "member_expression":
        return
    owner, method = function.field("object"), property_name(function.field("property"))
    is_own = owner is not None and owner.type == "identifier" and identifier(owner) == name
    passed: list[Node] = []
    if is_own and method in ("call", "bind"):
        passed = given[1:]
    elif is_own and method == "apply" and len(given) > 1 and given[1].type == "array":
        passed = given[1].children
    elif not is_own and method == "apply" and len(given) > 2 and given[2].type == "array":
        passed = given[2].children
    if passed:
        yield made(call, passed)


def made(call: Node, passed: list[Node]) -> Node:
    """Return a call that the source does not have, in the place of one that it has."""
    node = Node(b"", call.type, call.start, call.end, call.parent)
    listed = Node(b"", "arguments", call.start, call.end, node)
    listed.children = passed
    node.fields = {"arguments": listed}
    function = called(call)
    if function is not None:
        node.fields["function"] = function
    return node


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
    return (source, True) if name in ELEMENT_CALLBACKS else None


def receivers(index: ProgramIndex, function: Node, position: int) -> Iterator[tuple[Node, bool]]:
    """Yield where a function that is handed to a well-known one gets a parameter from; True: from the elements of that.

    The function stands there itself, or by its name.
    """
    parent = function.parent
    calls = [parent.parent] if parent is not None and parent.type == "arguments" else []
    for name in _names_of(function):
        calls += index.handed.get(name, [])[:MAX_CALLERS]
    for call in calls:
        target = called(call) if call is not None else None
        if call is None or target is None:
            continue
        first = [function, *arguments(call)][1:3]
        source = target.field("object")
        method = identifier(target) if target.type == "identifier" else property_name(target.field("property"))
        is_first = bool(first) and (first[0] is function or first[0].type == "identifier")
        if method in DEFERRED and is_first:
            yield from ((given, False) for given in arguments(call)[position + DEFERRED[method] :][:1])
        elif source is None:
            continue
        elif method in _LISTENING and arguments(call)[1:2] == [function]:
            event = arguments(call)[0]
            for emitted in index.calls_by_property.get("emit", [])[:MAX_CALLERS]:
                given = arguments(emitted)
                if given and (given[0].type != "string" or given[0].text[1:-1] == event.text[1:-1]):
                    yield from ((part, False) for part in given[1 + position : 2 + position])
        elif method == "from" and position == 0:
            yield from ((given, True) for given in first[:1])
        elif is_first and method == "then" and position == 0:
            yield source, False
        elif is_first and ((method in ELEMENT_CALLBACKS and position == 0) or (method in _SORTS and position <= 1)):
            yield source, True
        elif is_first and method in REDUCTIONS and position <= 1:
            initial = first[1:]
            yield from ((given, False) for given in initial if position == 0)
            if position == 1 or not initial:
                yield source, True


def is_plain_this(index: ProgramIndex, node: Node) -> bool:
    """Tell whether `this` may be the global object: in `main`, and in functions that are called by their name alone."""
    function = node.parent
    while function is not None and (function.type not in FUNCTIONS or function.type == "arrow_function"):
        function = function.parent
    if function is None or function.type == "method_definition":
        return False
    names = list(_names_of(function))
    return (
        "main" in names
        or _invocation(function) is not None
        or any(
            call.type == "call_expression" for name in names for call in index.calls_by_name.get(name, [])[:MAX_CALLERS]
        )
    )
