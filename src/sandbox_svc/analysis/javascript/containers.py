"""What maps, sets, lists and promises of a JavaScript program hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.javascript import callers, displays
from sandbox_svc.analysis.javascript.tree import Node, identifier
from sandbox_svc.analysis.javascript.values import CHANGED, UNKNOWN, Const, Items, Own, Value, Values, unique
from sandbox_svc.analysis.possibilities import all_if_few

if TYPE_CHECKING:
    from sandbox_svc.analysis.javascript.resolve import Resolver

_MAX_PUT: Final = 8


def put_in(resolver: Resolver, container: Node | None) -> Iterator[Value]:
    """What `map.set(key, value)`, `list.push(value)` put into a container of that name."""
    if container is not None and container.type == "identifier":
        for given in all_if_few(resolver.index.filled.get(identifier(container), []), _MAX_PUT):
            values = resolver.resolve(given)
            yield from (CHANGED if value == UNKNOWN and given is not None else value for value in values)


def container(resolver: Resolver, node: Node) -> Values:
    """`new Set([a])`, `new Map([[key, value]])`: what is in it when it is made, in no order."""
    is_map = "Set" not in resolver.refs(callers.called(node))
    found = [
        Items(displays.array(value.node.children, node, kind=displays.MAP if is_map else displays.UNORDERED))
        for value in resolver.resolve(callers.argument(node, 0))
        if isinstance(value, Items)
    ]
    if found or is_map:
        return (*found, UNKNOWN)
    values = resolver.resolve(callers.argument(node, 0))
    return unique(value if isinstance(value, Const) else UNKNOWN for value in values)


def one_of_argument(resolver: Resolver, node: Node) -> Values:
    return resolver.any_element(resolver.resolve(callers.argument(node, 0)))


def promise(resolver: Resolver, node: Node) -> Values:
    """`new Promise((resolve) => resolve(value))`: what the function given to it is called with, inside it."""
    found: list[Value] = [UNKNOWN]
    for value in resolver.resolve(callers.argument(node, 0)):
        function = value.node if isinstance(value, Own) else None
        parameters = function.field("parameters") if function is not None else None
        first = parameters.children[0] if parameters is not None and parameters.children else None
        if function is not None and first is None:
            first = function.field("parameter")
        if function is None or first is None or first.type != "identifier":
            continue
        for call in resolver.index.calls_by_name.get(identifier(first), [])[: callers.MAX_CALLERS]:
            if function.start <= call.start and call.end <= function.end:
                found += resolver.resolve(callers.argument(call, 0))
    return unique(found)
