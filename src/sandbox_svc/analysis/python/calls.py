"""What well-known calls return."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.paths import WORKSPACE
from sandbox_svc.analysis.possibilities import MAX_COMBINED, all_if_few
from sandbox_svc.analysis.python import fold, iterables
from sandbox_svc.analysis.python.callers import argument_for
from sandbox_svc.analysis.python.combinations import Row, each_result, rows
from sandbox_svc.analysis.python.names import RETURNS_ITSELF, canonical
from sandbox_svc.analysis.python.places import PATH_TYPES, method_of_place, os_path_join, pathlib_path
from sandbox_svc.analysis.python.values import (
    MAX_NAME,
    NOT_KNOWN,
    UNKNOWN,
    Const,
    Own,
    Place,
    Ref,
    Table,
    Value,
    Values,
    unique,
)
from sandbox_svc.analysis.texts import HOLE

if TYPE_CHECKING:
    from sandbox_svc.analysis.python.resolve import Resolver

_MAX_PARTS: Final = 16
_DICT_READS: Final = (".get", ".pop", ".setdefault", ".__getitem__")


def _getattr(resolver: Resolver, node: ast.Call) -> Values:
    if len(node.args) < 2:
        return NOT_KNOWN
    found: list[Value] = []
    base = resolver.resolve(node.args[0])
    for name in resolver.resolve(node.args[1]):
        found += _by_name(name, lambda text: resolver.attribute(base, text))
    if len(node.args) > 2:
        found += resolver.resolve(node.args[2])
    return tuple(dict.fromkeys(found))


def name_in(value: Value | None) -> str | None:
    """Return the text that the value is; None where it is none, or is not known as a whole."""
    if isinstance(value, Const) and isinstance(value.value, str) and HOLE not in value.value:
        return value.value
    return None


def _by_name(value: Value, take: Callable[[str], Values]) -> Values:
    """Return what is taken by the name that a value is; anything else beside it where the name has holes."""
    if not isinstance(value, Const) or not isinstance(value.value, str) or not value.value:
        return NOT_KNOWN
    return take(value.value) if HOLE not in value.value else (*take(value.value), UNKNOWN)


def attributes(resolver: Resolver, base: Values, names: ast.expr) -> Values:
    """Return what the dotted names that an expression may be stand for, read of any of the values."""
    found: list[Value] = []
    for value in resolver.resolve(names):
        text = name_in(value)
        parts = text.split(".") if text else []
        here = base if 0 < len(parts) <= _MAX_PARTS else NOT_KNOWN
        for part in parts if here is base else ():
            here = resolver.attribute(here, part)
        found += here
    return unique(found)


def _import(resolver: Resolver, node: ast.Call) -> Values:
    argument = argument_for(node, "name", 0)
    if argument is None:
        return NOT_KNOWN
    found: list[Value] = []
    whole = len(node.args) > 3 or any(keyword.arg == "fromlist" for keyword in node.keywords)
    for name in resolver.resolve(argument):
        found += _by_name(name, lambda text: canonical(text if whole else text.partition(".")[0]))
    return tuple(dict.fromkeys(found))


def _import_module(resolver: Resolver, node: ast.Call) -> Values:
    argument = argument_for(node, "name", 0)
    if argument is None:
        return NOT_KNOWN
    found: list[Value] = []
    for name in resolver.resolve(argument):
        found += _by_name(name, lambda text: canonical(text.strip(".").replace(":", ".") or text))
    return tuple(dict.fromkeys(found))


def _vars(resolver: Resolver, node: ast.Call) -> Values:
    if not node.args:
        return (Ref("builtins.globals()"),)
    found: list[Value] = [UNKNOWN]
    for name in resolver.names(node.args[0]):
        found += canonical(f"{name}.__dict__")
    return tuple(found)


def _globals(_resolver: Resolver, _node: ast.Call) -> Values:
    return (Ref("builtins.globals()"),)


def _first_argument(resolver: Resolver, node: ast.Call) -> Values:
    return resolver.resolve(node.args[0]) if node.args else NOT_KNOWN


def _reduce(resolver: Resolver, node: ast.Call) -> Values:
    """`reduce(getattr, ["path", "join"], os)`"""
    if len(node.args) != 3 or "builtins.getattr" not in resolver.names(node.args[0]):
        return NOT_KNOWN
    found: list[Value] = [] if len(resolver.resolve(node.args[0])) == 1 else [UNKNOWN]
    for value in resolver.resolve(node.args[1]):
        names = value.value if isinstance(value, Const) and isinstance(value.value, tuple) else None
        if names is None or len(names) > _MAX_PARTS:
            found.append(UNKNOWN)
            continue
        here = resolver.resolve(node.args[2])
        for name in names:
            here = resolver.attribute(here, str(name))
        found += here
    return unique(found)


def _getitem(resolver: Resolver, node: ast.Call) -> Values:
    if len(node.args) != 2:
        return NOT_KNOWN
    return resolver.lookup(node.args[0], resolver.resolve(node.args[0]), resolver.resolve(node.args[1]))


def _type(resolver: Resolver, node: ast.Call) -> Values:
    """`type(f)`, which makes functions of code objects."""
    if len(node.args) != 1:
        return NOT_KNOWN
    return unique(
        Ref("types.FunctionType") if isinstance(value, Own) and not isinstance(value.node, ast.ClassDef) else UNKNOWN
        for value in resolver.resolve(node.args[0])
    )


def _eval(resolver: Resolver, node: ast.Call) -> Values:
    """`eval("os")`: what a text that is a name or an attribute of one stands for, where it is read."""
    found: list[Value] = []
    for value in all_if_few(resolver.resolve(node.args[0]) if node.args else (), MAX_COMBINED):
        text = name_in(value)
        try:
            expression = ast.parse(text.strip(), mode="eval").body if text and len(text) <= MAX_NAME else None
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            expression = None
        if isinstance(expression, (ast.Name, ast.Attribute)):
            for part in ast.walk(expression):
                resolver.index.scopes[part] = resolver.index.scopes.get(node, resolver.index.module)
            found += resolver.resolve(expression)
        else:
            found.append(UNKNOWN)
    return unique(found)


def _maketrans(resolver: Resolver, node: ast.Call) -> Values:
    if len(node.args) == 1:
        return unique(v if isinstance(v, Table) else UNKNOWN for v in resolver.resolve(node.args[0]))
    return unique(_translation(row) for row in rows(resolver, node.args)) if 2 <= len(node.args) <= 3 else NOT_KNOWN


def _translation(row: Row) -> Value:
    texts = [text for text in row if isinstance(text, str) and HOLE not in text]
    if len(texts) < len(row) or len(texts[0]) != len(texts[1]):
        return UNKNOWN
    table: dict[str, str | None] = dict(zip(texts[0], texts[1], strict=True))
    table |= dict.fromkeys(texts[2] if len(texts) > 2 else "", None)
    keys: list[ast.expr | None] = [ast.Constant(value=key) for key in table]
    return Table(ast.Dict(keys=keys, values=[ast.Constant(value=value) for value in table.values()]))


_KNOWN: Final[dict[str, Callable[[Resolver, ast.Call], Values]]] = {
    "builtins.getattr": _getattr,
    "inspect.getattr_static": _getattr,
    "builtins.object.__getattribute__": _getattr,
    "builtins.type.__getattribute__": _getattr,
    "builtins.__import__": _import,
    "importlib.__import__": _import,
    "importlib.import_module": _import_module,
    "pkgutil.resolve_name": _import_module,
    "pydoc.locate": _import_module,
    "pydoc.safeimport": _import_module,
    "unittest.mock._importer": _import_module,
    "importlib.reload": _first_argument,
    "functools.partial": _first_argument,
    "builtins.type": _type,
    "builtins.eval": _eval,
    "builtins.str.maketrans": _maketrans,
    "builtins.vars": _vars,
    "builtins.globals": _globals,
    "builtins.locals": _globals,
    **iterables.KNOWN,
    "functools.reduce": _reduce,
    "operator.getitem": _getitem,
    "os.path.join": os_path_join,
    "os.getcwd": lambda _resolver, _node: (Const(WORKSPACE),),
    "pathlib.Path.cwd": lambda _resolver, _node: (Place(WORKSPACE),),
    "pathlib.Path.home": lambda _resolver, _node: (Place("~"),),
    **dict.fromkeys(PATH_TYPES, pathlib_path),
}


def call_ref(resolver: Resolver, name: str, node: ast.Call) -> Values:
    """Return what calling the thing of that name gives."""
    known = _KNOWN.get(name)
    if known is not None:
        return known(resolver, node)
    if name in RETURNS_ITSELF:
        return canonical(f"{name}()")
    if name.startswith("pathlib.Path()."):
        return method_of_place(resolver, name.removeprefix("pathlib.Path()."), node)
    for read in _DICT_READS:
        if name.endswith(read) and node.args:
            owner: Values = (Ref(name.removesuffix(read)),)
            found: list[Value] = list(resolver.resolve(node.args[1])) if len(node.args) > 1 else []
            for key in resolver.resolve(node.args[0]):
                found += resolver.element(owner, key.value) if isinstance(key, Const) else NOT_KNOWN
            return unique(found)
    if name.endswith(".__getattribute__") and len(node.args) == 1:
        return attributes(resolver, (Ref(name.removesuffix(".__getattribute__")),), node.args[0])
    return _folded(resolver, name, node)


def _folded(resolver: Resolver, name: str, node: ast.Call) -> Values:
    if node.keywords or len(node.args) > fold.MAX_ARGUMENTS:
        return NOT_KNOWN
    return each_result(resolver, node.args, lambda row: fold.call(name, row))
