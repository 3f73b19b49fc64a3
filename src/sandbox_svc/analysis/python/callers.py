"""Which calls of the program reach which of its functions, and with what."""

from __future__ import annotations

import ast
import io
import pathlib
from collections.abc import Iterator
from typing import Final

from sandbox_svc.analysis.python.scopes import FunctionNode, ProgramIndex

MAX_CALLERS: Final = 32

# Methods of builtin types: `text.replace("/", "_")` is no call of the program's own `replace`.
_COMMON_METHODS: Final = frozenset(
    name for kind in (str, bytes, list, dict, set, int, io.TextIOWrapper, pathlib.Path) for name in dir(kind)
)


def callers(index: ProgramIndex, function: FunctionNode) -> Iterator[tuple[ast.Call, int]]:
    """Yield calls that may reach the function, each with the number of leading parameters that they do not pass."""
    parent = index.parents.get(function)
    if isinstance(function, ast.Lambda):
        if isinstance(parent, ast.Call) and parent.func is function:
            yield parent, 0
        elif isinstance(parent, ast.Assign) and len(parent.targets) == 1 and isinstance(parent.targets[0], ast.Name):
            yield from ((call, 0) for call in index.calls_by_name.get(parent.targets[0].id, ())[:MAX_CALLERS])
        return
    if isinstance(parent, ast.ClassDef):
        is_static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in function.decorator_list)
        if function.name == "__init__":
            yield from ((call, 1) for call in index.calls_by_name.get(parent.name, ())[:MAX_CALLERS])
        if function.name not in _COMMON_METHODS:
            calls = index.calls_by_attribute.get(function.name, ())
            yield from ((call, 0 if is_static else 1) for call in calls[:MAX_CALLERS])
        return
    yield from ((call, 0) for call in index.calls_by_name.get(function.name, ())[:MAX_CALLERS])


def is_closed(index: ProgramIndex, function: FunctionNode) -> bool:
    """Tell whether `callers` are all the callers there are: the function has a name that is only ever called."""
    parent = index.parents.get(function)
    name = None
    if isinstance(function, ast.Lambda):
        if isinstance(parent, ast.Call) and parent.func is function:
            return True
        if isinstance(parent, ast.Assign) and len(parent.targets) == 1 and isinstance(parent.targets[0], ast.Name):
            name = parent.targets[0].id
    elif not isinstance(parent, ast.ClassDef) and function.name != "main" and not function.decorator_list:
        name = function.name
    if name is None or len(index.module.bindings.get(name, ())) > 1:
        return False
    return 0 < index.loads[name] == len(index.calls_by_name.get(name, ())) <= MAX_CALLERS


def argument_for(call: ast.Call, name: str, position: int | None) -> ast.expr | None:
    """Return what the call passes for a parameter, None where it passes nothing that can be told."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    if position is None or not 0 <= position < len(call.args):
        return None
    if any(isinstance(argument, ast.Starred) for argument in call.args[: position + 1]):
        return None
    return call.args[position]


def is_unpacked(call: ast.Call) -> bool:
    """Tell whether the call passes `*args` or `**kwargs`: any parameter may come from there."""
    return any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords)


def default_of(function: FunctionNode, name: str) -> ast.expr | None:
    """Return the default of a parameter."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    for argument, default in zip(reversed(positional), reversed(arguments.defaults), strict=False):
        if argument.arg == name:
            return default
    for argument, keyword_default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if argument.arg == name:
            return keyword_default
    return None
