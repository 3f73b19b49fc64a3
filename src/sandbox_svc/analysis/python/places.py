"""Paths: what `os.path.join` and `pathlib` make of the parts that are known."""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.paths import WORKSPACE
from sandbox_svc.analysis.possibilities import pairs
from sandbox_svc.analysis.python import fold
from sandbox_svc.analysis.python.combinations import rows
from sandbox_svc.analysis.python.values import NOT_KNOWN, UNKNOWN, Const, Place, Value, Values, unique
from sandbox_svc.analysis.texts import HOLE

if TYPE_CHECKING:
    from sandbox_svc.analysis.python.resolve import Resolver

PATH_TYPES: Final = frozenset(
    f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
)
_MAX_PARTS: Final = 16
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


def _joined(resolver: Resolver, arguments: Sequence[ast.expr]) -> list[Value]:
    """The paths that the arguments make together."""
    if not arguments or len(arguments) > _MAX_PARTS or any(isinstance(a, ast.Starred) for a in arguments):
        return [UNKNOWN]
    return [join_paths([Const(part) for part in row]) for row in rows(resolver, arguments)]


def pathlib_path(resolver: Resolver, node: ast.Call) -> Values:
    return unique(_joined(resolver, node.args)) if node.args else (Place("."),)


def os_path_join(resolver: Resolver, node: ast.Call) -> Values:
    joined = _joined(resolver, node.args)
    return unique(Const(value.path) if isinstance(value, Place) else UNKNOWN for value in joined)


def method_of_place(resolver: Resolver, name: str, node: ast.Call) -> Values:
    if not isinstance(node.func, ast.Attribute):
        return NOT_KNOWN
    places = resolver.resolve(node.func.value)
    if name in _SAME_PLACE:
        return unique(value if isinstance(value, Place) else UNKNOWN for value in places)
    if name == "joinpath":
        found, is_complete = pairs(places, _joined(resolver, node.args))
        joined = [join_paths(pair) if isinstance(pair[0], Place) else UNKNOWN for pair in found]
        return unique(joined if is_complete else [*joined, UNKNOWN])
    return NOT_KNOWN
