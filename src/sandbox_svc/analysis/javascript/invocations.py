"""Calls as what they come to: `f.call(x, a)`, `f.apply(x, [a])`, `Reflect.apply(f, x, [a])`, `[a].map(f)`: `f(a)`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from sandbox_svc.analysis.javascript import callers, displays
from sandbox_svc.analysis.javascript.scopes import property_name
from sandbox_svc.analysis.javascript.tree import Node
from sandbox_svc.analysis.javascript.values import Bound, Const, Items, Own, Ref, Values

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
            yield from _through(
                resolver, Ref(value.name), [*value.arguments, *callers.arguments(node)], depth=0, is_direct=False
            )
        elif isinstance(value, Ref):
            yield from _through(resolver, value, spread or callers.arguments(node), depth=0, is_direct=not spread)
        elif isinstance(value, Own) and spread:
            yield value, spread
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
    passed: list[Node] = []
    if owner in _CALL_OF_FUNCTION and last in ("call", "apply"):
        # `Function.prototype.call.call(f, x, a)`, and `.apply(f, [x, a])`.
        inner = _functions(resolver, arguments[:1])
        passed = arguments[1:] if last == "call" else elements(resolver, *arguments[1:2])
        passed = passed[1:] if owner.endswith("call") else elements(resolver, *passed[1:2])
    elif last == "call" and owner:
        inner, passed = [Ref(owner)], arguments[1:]
    elif last == "apply" and owner and owner != "Reflect":
        inner, passed = [Ref(owner)], elements(resolver, *arguments[1:2])
    elif target.name in ("Reflect.apply", "Reflect.construct"):
        position = 2 if last == "apply" else 1
        inner, passed = _functions(resolver, arguments[:1]), elements(resolver, *arguments[position : position + 1])
    elif last in callers.DEFERRED and owner in ("", "process"):
        inner, passed = _functions(resolver, arguments[:1]), arguments[callers.DEFERRED[last] :]
    elif not is_direct:
        yield target, arguments
    for function in inner:
        if isinstance(function, Ref):
            yield from _through(resolver, function, passed, depth=depth + 1, is_direct=False)
        else:
            yield function, passed


def _functions(resolver: Resolver, nodes: list[Node]) -> list[Ref | Own]:
    return [value for node in nodes for value in resolver.resolve(node) if isinstance(value, (Ref, Own))]


def _spread(resolver: Resolver, node: Node) -> list[Node]:
    """The arguments of a call that has a spread one among them, none where there is no such."""
    arguments = node.field("arguments")
    parts = arguments.children if arguments is not None and arguments.type == "arguments" else []
    if not any(part.type == "spread_element" for part in parts):
        return []
    found: list[Node] = []
    for part in parts[:MAX_INVOCATIONS]:
        found += elements(resolver, *part.children[:1]) if part.type == "spread_element" else [part]
    return found


def elements(resolver: Resolver, *nodes: Node, depth: int = 0) -> list[Node]:
    """Return the elements of arrays as nodes."""
    found: list[Node] = []
    for node in nodes if depth < _MAX_WRAPPED else ():
        for value in resolver.resolve(node):
            if isinstance(value, Items):
                for child in value.node.children[:MAX_INVOCATIONS]:
                    is_spread = child.type == "spread_element"
                    found += elements(resolver, *child.children[:1], depth=depth + 1) if is_spread else [child]
            elif isinstance(value, Const) and isinstance(value.value, tuple):
                found += [displays.text(str(item)) for item in value.value[:MAX_INVOCATIONS]]
    return found[:MAX_INVOCATIONS]
