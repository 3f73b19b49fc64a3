"""Paths: what `os.path.join` and `pathlib` make of the parts that are known."""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.paths import WORKSPACE
from sandbox_svc.analysis.python import fold
from sandbox_svc.analysis.python.values import NOT_KNOWN, UNKNOWN, Const, Place, Value, Values
from sandbox_svc.analysis.texts import HOLE

if TYPE_CHECKING:
    from sandbox_svc.analysis.python.resolve import Resolver

PATH_TYPES: Final = frozenset(
    f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
)
_SAME_PLACE: Final = frozenset(
    {"resolve", "absolute", "expanduser", "as_posix", "__str__", "__fspath__", "with_segments"}
)


def join_paths(parts: Sequence[Value]) -> Value:
    """Join as `os.path.join` does; what is not known becomes a hole."""
    texts = []
    for part in parts:
        if isinstance(part, Place):
            texts.append(part.path)
        elif isinstance(part, Const) and isinstance(part.value, (str, bytes)):
            texts.append(part.value if isinstance(part.value, str) else part.value.decode("utf-8", "replace"))
        else:
            texts.append(HOLE)
    path = posixpath.join(*texts) if texts else "."
    return Place(path) if len(path) <= fold.MAX_ELEMENTS else UNKNOWN


def parent_path(path: str) -> str:
    return posixpath.dirname(posixpath.normpath(posixpath.join(WORKSPACE, path)))


def _paths_from_arguments(resolver: Resolver, arguments: Sequence[ast.expr]) -> list[Place]:
    """One path for each alternative of the first argument that says something."""
    if not arguments or any(isinstance(argument, ast.Starred) for argument in arguments):
        return []
    rest: list[Value] = [_single(resolver, argument) for argument in arguments[1:8]]
    joined = [join_paths([first, *rest]) for first in resolver.resolve(arguments[0])[:8]]
    return [path for path in joined if isinstance(path, Place)]


def _single(resolver: Resolver, node: ast.expr) -> Value:
    """The first alternative that is known."""
    for value in resolver.resolve(node):
        if isinstance(value, (Const, Place)):
            return value
    return UNKNOWN


def pathlib_path(resolver: Resolver, node: ast.Call) -> Values:
    if not node.args:
        return (Place("."),)
    return tuple(_paths_from_arguments(resolver, node.args)) or NOT_KNOWN


def os_path_join(resolver: Resolver, node: ast.Call) -> Values:
    return tuple(Const(place.path) for place in _paths_from_arguments(resolver, node.args)) or NOT_KNOWN


def method_of_place(resolver: Resolver, name: str, node: ast.Call) -> Values:
    if not isinstance(node.func, ast.Attribute):
        return NOT_KNOWN
    places = [value for value in resolver.resolve(node.func.value) if isinstance(value, Place)]
    if name in _SAME_PLACE:
        return tuple(places) or NOT_KNOWN
    if name == "joinpath" and not any(isinstance(argument, ast.Starred) for argument in node.args):
        rest = [_single(resolver, argument) for argument in node.args[:8]]
        return tuple(join_paths([place, *rest]) for place in places) or NOT_KNOWN
    return NOT_KNOWN
