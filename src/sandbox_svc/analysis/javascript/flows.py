"""Where a value comes from: backwards through names to what they were given, as long as it is the whole of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sandbox_svc.analysis.javascript import callers
from sandbox_svc.analysis.javascript.resolve import Resolver
from sandbox_svc.analysis.javascript.scopes import FUNCTIONS, Binding, ProgramIndex, property_name
from sandbox_svc.analysis.javascript.tree import Node, identifier
from sandbox_svc.analysis.javascript.values import Items, Own, Table

MAX_VISITED: Final = 200
"""Nodes of a backward walk; a program that hides further away is not followed."""

_MAX_FILLED: Final = 32

ENVIRONMENT: Final = "process.env"

_NAMES: Final = frozenset({"identifier", "shorthand_property_identifier"})
_PLACES: Final = _NAMES | {"member_expression", "subscript_expression"}
# What these give is one element, or a fact about the whole.
_PICKING: Final = frozenset(
    {"get", "at", "find", "pop", "shift", "has", "hasOwn", "hasOwnProperty", "includes", "indexOf", "some", "every"}
)
_COMPARISONS: Final = frozenset({"in", "instanceof", "===", "!==", "==", "!=", "<", ">", "<=", ">="})
_CONDITIONS: Final = frozenset({"if_statement", "ternary_expression", "switch_statement"})
# What the callback of such a method must hold for the result to be a part only.
_SELECTING: Final = {
    "filter": _CONDITIONS | {"string", "template_string", "regex", "call_expression"},
    "reduce": _CONDITIONS,
    "flatMap": _CONDITIONS,
}


def sends_environment(index: ProgramIndex, resolver: Resolver, start: Node) -> bool:
    """Tell whether the whole of `process.env` flows into an expression; some variables of it may well be sent."""
    return any(_is_environment(resolver, node) for node in origins(index, resolver, start))


def origins(index: ProgramIndex, resolver: Resolver, start: Node) -> Iterator[Node]:
    """What flows as a whole into an expression: its parts, and what its names were given."""
    todo, seen = [start], set[Node]()
    while todo and len(seen) < MAX_VISITED and resolver.steps_left > 0:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        resolver.steps_left -= 1
        yield node
        todo.extend(_sources(index, resolver, node))


def _sources(index: ProgramIndex, resolver: Resolver, node: Node) -> Iterator[Node]:
    if node.type in _NAMES:
        scope = index.scopes.get(node, index.module).find(identifier(node))
        for binding in scope.bindings[identifier(node)] if scope is not None else []:
            yield from _given(index, resolver, binding)
        yield from index.filled.get(identifier(node), [])[:_MAX_FILLED]
    elif node.type in ("call_expression", "new_expression"):
        yield from _called(index, resolver, node)
    elif node.type == "member_expression":
        # Of a member, neither its object nor its key is what flows, but what it is known to hold.
        yield from (value.node for value in resolver.resolve(node) if isinstance(value, (Items, Table)))
    elif node.type == "ternary_expression":
        yield from (part for part in (node.field("consequence"), node.field("alternative")) if part is not None)
    elif node.type == "binary_expression" and node.operator in _COMPARISONS:
        return
    elif node.type not in FUNCTIONS and node.type != "subscript_expression":
        yield from node.children


def _given(index: ProgramIndex, resolver: Resolver, binding: Binding) -> Iterator[Node]:
    """What a name was given; names that destructuring takes out of something hold a part of it."""
    node = binding.node
    if node is None:
        return
    if binding.kind in ("value", "augmented") and not binding.path:
        yield node
    elif (
        binding.kind in ("item", "key") and node.parent is not None and not _chooses(resolver, node.parent, _CONDITIONS)
    ):
        # A loop without a condition in it sends all elements, one by one.
        yield node
    elif binding.kind == "parameter":
        receiver = callers.callback_receiver(node, binding.position)
        if receiver is not None and not _chooses(resolver, node, _CONDITIONS):
            yield receiver[0]
        if not binding.path:
            yield from (part for part in callers.arguments_for(index, node, binding.position) if part is not None)


def _called(index: ProgramIndex, resolver: Resolver, node: Node) -> Iterator[Node]:
    """What a call gives comes from its arguments and from the object of a method; of own functions, from `return`."""
    function = node.field("function") or node.field("constructor")
    own = [value.node for value in resolver.resolve(function) if isinstance(value, Own)]
    if own and node.type == "call_expression":
        for called in own:
            yield from index.returns.get(called, [])
        return
    if function is not None and function.type == "member_expression":
        name, owner = property_name(function.field("property")), function.field("object")
        if name in _PICKING:
            return
        conditions = _SELECTING.get(name) if name is not None else None
        if conditions is not None and any(_chooses(resolver, part, conditions) for part in callers.arguments(node)[:1]):
            return
        if owner is not None and ENVIRONMENT not in resolver.refs(owner):
            yield owner
    yield from callers.arguments(node)


def _chooses(resolver: Resolver, node: Node, conditions: frozenset[str]) -> bool:
    """Tell whether a loop or a callback looks at what it is given before it passes it on; in doubt it does."""
    for count, inner in enumerate(node.walk()):
        if inner.type in conditions or (inner.type == "binary_expression" and inner.operator == "&&"):
            return True
        if count > MAX_VISITED:
            return True
        resolver.steps_left -= 1
    return False


def _is_environment(resolver: Resolver, node: Node) -> bool:
    if node.type not in _PLACES or ENVIRONMENT not in resolver.refs(node):
        return False
    parent = node.parent
    return parent is None or parent.type not in ("member_expression", "subscript_expression", "binary_expression")
