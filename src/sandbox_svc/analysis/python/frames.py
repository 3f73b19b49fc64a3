"""Frames and code objects: what tracebacks, logging and `dis` do with them is harmless, what else one can do is not."""

from __future__ import annotations

import ast
from typing import Final

from sandbox_svc.analysis.python.resolve import Resolver
from sandbox_svc.analysis.python.scopes import Scope

_FRAMES: Final = frozenset({"tb_frame", "f_back", "gi_frame", "cr_frame", "ag_frame"})
_CODES: Final = frozenset({"__code__", "gi_code", "cr_code", "ag_code", "f_code"})
_HARMLESS_OF_FRAME: Final = frozenset({"f_lineno", "f_lasti", "clear"})
_READERS: Final = frozenset(
    {
        "inspect.getframeinfo",
        "inspect.getsourcelines",
        "inspect.getsourcefile",
        "traceback.print_stack",
        "traceback.format_stack",
        "traceback.extract_stack",
        *(
            f"dis.{name}"
            for name in ("dis", "disassemble", "get_instructions", "code_info", "show_code", "stack_effect")
        ),
        *(f"builtins.{name}" for name in ("print", "repr", "str", "id", "bool", "isinstance", "hash")),
    }
)
"""Functions that tell of a frame or a code object and do not give it back."""
_MAX_NAMES: Final = 16

_Variable = tuple[Scope, str]


class FrameWalks:
    """Follows frames and code objects forwards, through attributes and names of functions."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._index = resolver.index
        self._loads: dict[str, list[ast.Name]] | None = None
        self._known: dict[_Variable, bool] = {}

    def is_harmless(self, node: ast.Attribute | ast.Name, name: str) -> bool:
        """Tell whether the program asks of the frame or code object under that attribute only for figures and names."""
        if name not in _FRAMES and name not in _CODES:
            return is_identity_test(self._index.parents.get(node))
        seen: set[_Variable] = set()
        is_harmless = self._is_harmless(node, name in _FRAMES, seen)
        # What one walk went through need not be walked again. A variable on the way to harm counts as harmful: the
        # program is refused as it is.
        self._known.update(dict.fromkeys(seen, is_harmless))
        return is_harmless

    def _is_harmless(self, node: ast.AST, is_frame: bool, seen: set[_Variable]) -> bool:
        todo: list[tuple[ast.AST, bool]] = [(node, is_frame)]
        while todo:
            value, is_frame = todo.pop()
            self._resolver.steps_left -= 1
            parent = self._index.parents.get(value)
            if isinstance(parent, ast.Attribute):
                if not isinstance(parent.ctx, ast.Load):
                    return False
                if is_frame and parent.attr in ("f_back", "f_code"):
                    todo.append((parent, parent.attr == "f_back"))
                elif not (parent.attr in _HARMLESS_OF_FRAME if is_frame else parent.attr.startswith("co_")):
                    return False
            elif isinstance(parent, (ast.Assign, ast.NamedExpr)):
                names = self._names_given(parent)
                if names is None:
                    return False
                for key in names - seen:
                    known = self._known.get(key)
                    if known is not None:
                        if not known:
                            return False
                        continue
                    seen.add(key)
                    if len(seen) > _MAX_NAMES:
                        return False
                    todo.extend((load, is_frame) for load in self._loads_of(*key))
                if isinstance(parent, ast.NamedExpr):
                    todo.append((parent, is_frame))
            elif not self._is_mere_look(parent, value):
                return False
        return True

    def _is_mere_look(self, parent: ast.AST | None, value: ast.AST) -> bool:
        if isinstance(parent, (ast.If, ast.While, ast.IfExp, ast.Assert)):
            return parent.test is value
        if isinstance(parent, ast.UnaryOp):
            return isinstance(parent.op, ast.Not)
        if isinstance(parent, ast.Call) and parent.func is not value:
            return bool(_READERS.intersection(self._resolver.names(parent.func)))
        return isinstance(parent, ast.Expr) or is_identity_test(parent)

    def _names_given(self, node: ast.Assign | ast.NamedExpr) -> set[_Variable] | None:
        """The variables that the value gets, None where it goes elsewhere, or where others can take it."""
        found = set()
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            scope = self._scope_of(target) if isinstance(target, ast.Name) else None
            if scope is None or scope.kind != "function" or not isinstance(target, ast.Name):
                return None
            found.add((scope, target.id))
        return found

    def _loads_of(self, scope: Scope, name: str) -> list[ast.Name]:
        if self._loads is None:
            self._loads = {}
            for node in self._index.interesting:
                if isinstance(node, ast.Name):
                    self._loads.setdefault(node.id, []).append(node)
        return [load for load in self._loads.get(name, ()) if self._scope_of(load) is scope]

    def _scope_of(self, node: ast.Name) -> Scope | None:
        scope = self._index.scopes.get(node)
        while scope is not None:
            if node.id in scope.elsewhere:
                return None
            if node.id in scope.bindings:
                return scope
            scope = scope.parent
        return None


def is_identity_test(node: ast.AST | None) -> bool:
    """`gen.gi_frame is None`"""
    return isinstance(node, ast.Compare) and all(isinstance(operator, (ast.Is, ast.IsNot)) for operator in node.ops)
