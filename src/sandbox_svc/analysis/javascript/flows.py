"""Where a value comes from: backwards through names to what they were given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sandbox_svc.analysis.javascript.resolve import Resolver
from sandbox_svc.analysis.javascript.scopes import FUNCTIONS, ProgramIndex
from sandbox_svc.analysis.javascript.tree import Node, identifier

MAX_VISITED: Final = 200
"""Nodes of a backward walk; a program that hides further away is not followed."""


def origins(index: ProgramIndex, resolver: Resolver, start: Node) -> Iterator[Node]:
    """What flows into an expression: its parts, and what its names were given."""
    todo, seen = [start], set[Node]()
    while todo and len(seen) < MAX_VISITED and resolver.steps_left > 0:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        resolver.steps_left -= 1
        yield node
        if node.type in ("identifier", "shorthand_property_identifier"):
            scope = index.scopes.get(node, index.module).find(identifier(node))
            bindings = scope.bindings[identifier(node)] if scope is not None else []
            todo.extend(binding.node for binding in bindings if binding.kind == "value" and binding.node is not None)
        elif node.type not in FUNCTIONS:
            todo.extend(node.children)
