"""Calls as what they come to: `f.call(x, a)`, `f.apply(x, [a])`, `Reflect.apply(f, x, [a])`, `[a].map(f)`: `f(a)`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from sandbox_svc.analysis.javascript import callers, displays
from sandbox_svc.analysis.javascript.scopes import property_name
from sandbox_svc.analysis.javascript.tree import Node
from sandbox_svc.analysis.javascript.values import Bound, Const, Items, Own, Ref, Values
from sandbox_svc.analysis.possibilities import MAX_COMBINED, all_if_few, each_with_each

if TYPE_CHECKING:
    from sandbox_svc.analysis.javascript.resolve import Resolver

MAX_INVOCATIONS: Final = 32
_MAX_WRAPPED: Final = 4
_CALL_OF_FUNCTION: Final = frozenset({"Function.prototype.call", "Function.prototype.apply"})


class Invocation(NamedTuple):
    """Something that is called, and a call node that has the arguments it is called with."""

    function: Ref | Own
    node: Node


def of(resolver: Resolver, node: Node) -> list[Invocation]:
    """Return what a call comes to, apart from what it says itself."""
    function = callers.called(node)
    if function is None or function.type == "import":
        return []
    found: list[Invocation] = []
    for target, arguments in _steps(resolver, resolver.resolve(function), node, function):
        if len(found) >= MAX_INVOCATIONS:
            break
        found.append(Invocation(target, callers.made(node, arguments)))
    return found


def _steps(resolver: Resolver, functions: Values, node: Node, function: Node) -> Iterator[tuple[Ref | Own, list[Node]]]:
    spread = _spread(resolver, node)
    for value in functions:
        if isinstance(value, Bound):
            for given in spread or [callers.arguments(node)]:
                yield from _through(resolver, Ref(value.name), [*value.arguments, *given], depth=0, is_direct=False)
        elif isinstance(value, Ref):
            for given in spread or [callers.arguments(node)]:
                yield from _through(resolver, value, given, depth=0, is_direct=not spread)
        elif isinstance(value, Own):
            yield from ((value, given) for given in spread)
    name = property_name(function.field("property"))
    owner = function.field("object")
    first = callers.argument(node, 0)
    if owner is None or first is None or name not in (*callers.ELEMENT_CALLBACKS, "then"):
        return
    handed = [value for value in resolver.resolve(first) if isinstance(value, Ref)]
    for value in handed:
        for argument in [owner] if name == "then" else elements(resolver, owner):
            yield from _through(resolver, value, [argument], depth=1, is_direct=False)


def _through(
    resolver: Resolver, target: Ref, arguments: list[Node], *, depth: int, is_direct: bool
) -> Iterator[tuple[Ref | Own, list[Node]]]:
    """Follow `call`, `apply` and their kind down to what is called in the end."""
    if depth > _MAX_WRAPPED:
        return
    owner, _, last = target.name.rpartition(".")
    inner: list[Ref | Own] = []
    passed: list[list[Node]] = []
    if owner in _CALL_OF_FUNCTION and last in ("call", "apply"):
        # `Function.prototype.call.call(f, x, a)`, and `.apply(f, [x, a])`.
        inner = _functions(resolver, arguments[:1])
        given = [arguments[1:]] if last == "call" else _lists(resolver, arguments[1:2])
        is_call = owner.endswith("call")
        passed = [listed for row in given for listed in ([row[1:]] if is_call else _lists(resolver, row[1:2]))]
    elif last == "call" and owner:
        inner, passed = [Ref(owner)], [arguments[1:]]
    elif last == "apply" and owner and owner != "Reflect":
        inner, passed = [Ref(owner)], _lists(resolver, arguments[1:2])
    elif target.name in ("Reflect.apply", "Reflect.construct"):
        position = 2 if last == "apply" else 1
        inner, passed = _functions(resolver, arguments[:1]), _lists(resolver, arguments[position : position + 1])
    elif last in callers.DEFERRED and owner in ("", "process"):
        inner, passed = _functions(resolver, arguments[:1]), [arguments[callers.DEFERRED[last] :]]
    elif not is_direct:
        yield target, arguments
    for function in inner:
        for row in passed:
            if isinstance(function, Ref):
                yield from _through(resolver, function, row, depth=depth + 1, is_direct=False)
            else:
                yield function, row


def _functions(resolver: Resolver, nodes: list[Node]) -> list[Ref | Own]:
    return [value for node in nodes for value in resolver.resolve(node) if isinstance(value, (Ref, Own))]


def _spread(resolver: Resolver, node: Node) -> list[list[Node]]:
    """The arguments of a call that has a spread one among them, as they may be; none where there is no such."""
    arguments = node.field("arguments")
    parts = arguments.children if arguments is not None and arguments.type == "arguments" else []
    return _expanded(resolver, parts, 0) if any(part.type == "spread_element" for part in parts) else []


def _expanded(resolver: Resolver, parts: list[Node], depth: int) -> list[list[Node]]:
    """Return the lists that arguments or elements may be, with those that are spread among them."""
    choices: list[list[list[Node]]] = []
    for part in all_if_few(parts, MAX_INVOCATIONS):
        if part is None:
            choices.append([[displays.anything(parts[0])]])
        elif part.type == "spread_element":
            choices.append(_lists(resolver, part.children[:1], depth + 1))
        else:
            choices.append([[part]])
    rows, is_complete = each_with_each(choices)
    found = [[node for listed in row for node in listed] for row in rows]
    return found if is_complete else [*found, [displays.anything(part) for part in parts[:MAX_INVOCATIONS]]]


def _lists(resolver: Resolver, nodes: list[Node], depth: int = 0) -> list[list[Node]]:
    """Return the lists that an expression, if there is one, may be."""
    found: list[list[Node]] = []
    for node in nodes:
        for value in all_if_few(resolver.resolve(node), MAX_COMBINED):
            if isinstance(value, Items) and value.node.type == "array" and depth < _MAX_WRAPPED:
                found += _expanded(resolver, value.node.children, depth)
            elif isinstance(value, Const) and isinstance(value.value, tuple):
                items = all_if_few(value.value, MAX_INVOCATIONS)
                found.append([displays.anything(node) if i is None else displays.text(str(i)) for i in items])
            else:
                found.append([displays.anything(node)])
    return found or [[]]


def elements(resolver: Resolver, *nodes: Node, depth: int = 0) -> list[Node]:
    """Return the elements of arrays as nodes."""
    found: list[Node] = []
    for node in nodes if depth < _MAX_WRAPPED else ():
        for value in resolver.resolve(node):
            if isinstance(value, Items):
                for child in value.node.children[: MAX_INVOCATIONS + 1]:
                    is_spread = child.type == "spread_element"
                    found += elements(resolver, *child.children[:1], depth=depth + 1) if is_spread else [child]
            elif isinstance(value, Const) and isinstance(value.value, tuple):
                found += [displays.text(str(item)) for item in value.value[: MAX_INVOCATIONS + 1]]
    return [displays.anything(found[0]) if node is None else node for node in all_if_few(found, MAX_INVOCATIONS)]
