"""Where a value comes from: backwards through names, calls inside the program and parameters."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Final

from sandbox_svc.analysis.python import callers
from sandbox_svc.analysis.python.resolve import Resolver
from sandbox_svc.analysis.python.scopes import Binding, Scope
from sandbox_svc.analysis.python.values import Own

MAX_VISITED: Final = 300
"""Nodes of a backward walk; a program that hides further away is not followed."""

Stop = Callable[[ast.AST], bool]


class Origins:
    """What flows into an expression. `reaches_main` says that arguments of the run are part of it."""

    def __init__(self, resolver: Resolver, start: ast.AST, *, stop: Stop | None = None) -> None:
        self._resolver = resolver
        self._index = resolver.index
        self._stop = stop
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
            if self._stop is not None and self._stop(node):
                continue
            self.nodes.append(node)
            if isinstance(node, ast.Name):
                todo.extend(self._sources_of_name(node))
                continue
            if isinstance(node, ast.Lambda):
                continue
            if isinstance(node, ast.Call):
                for value in self._resolver.resolve(node.func):
                    if isinstance(value, Own):
                        todo.extend(self._index.returns.get(value.node, ()))
            todo.extend(ast.iter_child_nodes(node))

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
                argument = callers.argument_for(call, binding.name, None if position is None else position - skipped)
                if argument is not None:
                    yield argument
        elif binding.kind in ("value", "element", "item") and binding.node is not None:
            yield binding.node
