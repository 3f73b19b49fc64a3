"""Where a value comes from: backwards through names, calls inside the program and parameters."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from sandbox_svc.analysis.python import callers
from sandbox_svc.analysis.python.resolve import Resolver
from sandbox_svc.analysis.python.scopes import Binding, Scope
from sandbox_svc.analysis.python.values import Own

MAX_VISITED: Final = 300
"""Nodes of a backward walk; a program that hides further away is not followed."""

Follow = Callable[[ast.AST], Iterable[ast.AST] | None]
"""Says which parts of a node the question at hand follows; None leaves it to the walk."""


class Origins:
    """What flows into an expression. `reaches_main` says that arguments of the run are part of it."""

    def __init__(self, resolver: Resolver, start: ast.AST, *, follow: Follow | None = None) -> None:
        self._resolver = resolver
        self._index = resolver.index
        self._follow = follow
        self.reaches_main = False
        self.nodes: list[ast.AST] = []
        self._walk(start)

    def _walk(self, start: ast.AST) -> None:
        todo: list[ast.AST] = [start]
        seen: set[ast.AST] = set()
        while todo and len(self.nodes) < MAX_VISITED and self._resolver.steps_left > 0:
            node = todo.pop()
            self._resolver.steps_left -= 1
            if node in seen:
                continue
            seen.add(node)
            self.nodes.append(node)
            parts = None if self._follow is None else self._follow(node)
            todo.extend(self._parts(node) if parts is None else parts)

    def _parts(self, node: ast.AST) -> Iterable[ast.AST]:
        """What the value is made of; a condition, or the key of a lookup, only chooses."""
        if isinstance(node, ast.Name):
            return self._sources_of_name(node)
        if isinstance(node, (ast.Lambda, ast.Compare)):
            return ()
        if isinstance(node, ast.Subscript):
            return (node.value,)
        if isinstance(node, ast.IfExp):
            return (node.body, node.orelse)
        if isinstance(node, ast.DictComp):
            return (node.key, node.value)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
            return (node.elt,)
        if isinstance(node, ast.Call):
            returned = self._returned(node)
            if returned is not None:
                return returned
        return ast.iter_child_nodes(node)

    def _returned(self, node: ast.Call) -> list[ast.expr] | None:
        """What the program's own function gives back: of its arguments, only what it returns flows on."""
        functions = self._resolver.resolve(node.func)
        found: list[ast.expr] = []
        for value in functions:
            if not isinstance(value, Own) or isinstance(value.node, ast.ClassDef):
                return None
            found += self._index.returns.get(value.node, ())
            found += self._index.yields.get(value.node, ())
        return found

    def _sources_of_name(self, node: ast.Name) -> Iterator[ast.AST]:
        scope: Scope | None = self._index.scopes.get(node)
        first = scope
        while scope is not None:
            if node.id in scope.bindings and (scope.kind != "class" or scope is first):
                for binding in scope.bindings[node.id]:
                    yield from self._sources_of_binding(binding)
                return
            scope = scope.parent

    def _sources_of_binding(self, binding: Binding) -> Iterator[ast.AST]:
        function = binding.node
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and binding.kind in (
            "parameter",
            "opaque",
        ):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name == "main":
                self.reaches_main = True
            position = binding.path[0] if binding.path else None
            for call, skipped in callers.callers(self._index, function):
                if binding.kind == "opaque":
                    # `*rest` and `**rest` take what is left over.
                    yield from call.args
                    yield from (keyword.value for keyword in call.keywords)
                    continue
                argument = callers.argument_for(call, binding.name, None if position is None else position - skipped)
                if argument is not None:
                    yield argument
        elif binding.kind in ("value", "element", "item") and binding.node is not None:
            yield binding.node
