"""What well-known calls return."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.paths import WORKSPACE
from sandbox_svc.analysis.python import fold, iterables
from sandbox_svc.analysis.python.callers import argument_for
from sandbox_svc.analysis.python.names import RETURNS_ITSELF, canonical
from sandbox_svc.analysis.python.places import PATH_TYPES, method_of_place, os_path_join, pathlib_path
from sandbox_svc.analysis.python.values import (
    MAX_NAME,
    NOT_KNOWN,
    UNKNOWN,
    Const,
    Items,
    Own,
    Place,
    Ref,
    Table,
    Value,
    Values,
)

if TYPE_CHECKING:
    from sandbox_svc.analysis.python.resolve import Resolver

_DICT_READS: Final = (".get", ".pop", ".setdefault", ".__getitem__")


def _getattr(resolver: Resolver, node: ast.Call) -> Values:
    if len(node.args) < 2:
        return NOT_KNOWN
    found: list[Value] = []
    base = resolver.resolve(node.args[0])
    for name in resolver.resolve(node.args[1]):
        if isinstance(name, Const) and isinstance(name.value, str):
            found += resolver.attribute(base, name.value)
        else:
            found.append(UNKNOWN)
    if len(node.args) > 2:
        found += resolver.resolve(node.args[2])
    return tuple(dict.fromkeys(found))


def _import(resolver: Resolver, node: ast.Call) -> Values:
    argument = argument_for(node, "name", 0)
    if argument is None:
        return NOT_KNOWN
    found: list[Value] = []
    whole = len(node.args) > 3 or any(keyword.arg == "fromlist" for keyword in node.keywords)
    for name in resolver.resolve(argument):
        if isinstance(name, Const) and isinstance(name.value, str) and name.value:
            found += canonical(name.value if whole else name.value.partition(".")[0])
        else:
            found.append(UNKNOWN)
    return tuple(dict.fromkeys(found))


def _import_module(resolver: Resolver, node: ast.Call) -> Values:
    argument = argument_for(node, "name", 0)
    if argument is None:
        return NOT_KNOWN
    found: list[Value] = []
    for name in resolver.resolve(argument):
        if isinstance(name, Const) and isinstance(name.value, str) and name.value.strip("."):
            found += canonical(name.value.strip(".").replace(":", "."))
        else:
            found.append(UNKNOWN)
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
    values = resolver.resolve(node.args[2])
    for names in resolver.constants(node.args[1]):
        if isinstance(names, tuple):
            for name in names[:16]:
                values = resolver.attribute(values, str(name))
            return values
    return NOT_KNOWN


def _getitem(resolver: Resolver, node: ast.Call) -> Values:
    if len(node.args) != 2:
        return NOT_KNOWN
    found: list[Value] = []
    for index in resolver.constants(node.args[1]):
        found += resolver.element(resolver.resolve(node.args[0]), index)
    return tuple(dict.fromkeys(found)) or NOT_KNOWN


def _type(resolver: Resolver, node: ast.Call) -> Values:
    """`type(f)`, which makes functions of code objects."""
    if len(node.args) != 1:
        return NOT_KNOWN
    found = resolver.resolve(node.args[0])
    is_function = any(isinstance(value, Own) and not isinstance(value.node, ast.ClassDef) for value in found)
    return (Ref("types.FunctionType"),) if is_function else NOT_KNOWN


def _eval(resolver: Resolver, node: ast.Call) -> Values:
    """`eval("os")`: what a text that is a name or an attribute of one stands for, where it is read."""
    for text in resolver.texts(node.args[0])[:1] if node.args else ():
        try:
            expression = ast.parse(text.strip(), mode="eval").body if len(text) <= MAX_NAME else None
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return NOT_KNOWN
        if isinstance(expression, (ast.Name, ast.Attribute)):
            for part in ast.walk(expression):
                resolver.index.scopes[part] = resolver.index.scopes.get(node, resolver.index.module)
            return resolver.resolve(expression)
    return NOT_KNOWN


def _maketrans(resolver: Resolver, node: ast.Call) -> Values:
    texts = [resolver.texts(argument)[:1] for argument in node.args]
    if len(node.args) == 1:
        return tuple(value for value in resolver.resolve(node.args[0]) if isinstance(value, Table)) or NOT_KNOWN
    if not 2 <= len(texts) <= 3 or not all(texts) or len(texts[0][0]) != len(texts[1][0]):
        return NOT_KNOWN
    table: dict[str, str | None] = dict(zip(texts[0][0], texts[1][0], strict=True))
    table |= dict.fromkeys(texts[2][0] if len(texts) > 2 else "", None)
    keys: list[ast.expr | None] = [ast.Constant(value=key) for key in table]
    return (Table(ast.Dict(keys=keys, values=[ast.Constant(value=value) for value in table.values()])),)


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
            found: list[Value] = []
            for key in resolver.resolve(node.args[0]):
                found += resolver.element(owner, key.value) if isinstance(key, Const) else NOT_KNOWN
            return tuple(dict.fromkeys(found))
    if name.endswith(".__getattribute__") and len(node.args) == 1:
        base: Values = (Ref(name.removesuffix(".__getattribute__")),)
        return tuple(v for text in resolver.texts(node.args[0]) for v in resolver.attribute(base, text)) or NOT_KNOWN
    return _folded(resolver, name, node)


def _folded(resolver: Resolver, name: str, node: ast.Call) -> Values:
    if node.keywords or len(node.args) > fold.MAX_ARGUMENTS:
        return NOT_KNOWN
    if len(node.args) == 1:
        # `str(path)` and its kind, for every alternative.
        found: list[Value] = []
        for value in resolver.resolve(node.args[0])[:8]:
            if isinstance(value, (Const, Place)):
                result = fold.call(name, [value.value if isinstance(value, Const) else value.path])
                found.append(UNKNOWN if result is None else Const(result))
        return tuple(dict.fromkeys(found)) or NOT_KNOWN
    arguments = []
    for argument in node.args:
        known = resolver.constants(argument)
        if not known:
            return NOT_KNOWN
        arguments.append(known[0])
    result = fold.call(name, arguments)
    return NOT_KNOWN if result is None else (Const(result),)


def call_method(resolver: Resolver, node: ast.Call) -> Values:
    """Return what calling something else than a known name gives: methods of constants and displays, `attrgetter`."""
    if isinstance(node.func, ast.Call) and "operator.attrgetter" in resolver.names(node.func.func):
        if len(node.func.args) != 1 or not node.args:
            return NOT_KNOWN
        values: Values = resolver.resolve(node.args[0])
        for text in resolver.texts(node.func.args[0])[:1]:
            for part in text.split(".")[:16]:
                values = resolver.attribute(values, part)
            return values
        return NOT_KNOWN
    if not isinstance(node.func, ast.Attribute):
        return NOT_KNOWN
    if node.func.attr == "__getattribute__" and node.args:
        base_node = node.args[0] if len(node.args) > 1 else node.func.value
        texts = resolver.texts(node.args[-1])
        return tuple(v for text in texts for v in resolver.attribute(resolver.resolve(base_node), text)) or NOT_KNOWN
    found: list[Value] = []
    for base in resolver.resolve(node.func.value)[:8]:
        if isinstance(base, Const):
            found += _method_of_constant(resolver, base.value, node.func.attr, node)
        elif (
            isinstance(base, (Table, Items))
            and node.func.attr in ("get", "pop", "setdefault", "__getitem__")
            and node.args
        ):
            for key in resolver.resolve(node.args[0]):
                if isinstance(key, Const):
                    found += resolver.element((base,), key.value)
                else:
                    found += resolver.any_entry(node.func.value, (base,))
            if len(node.args) > 1:
                found += resolver.resolve(node.args[1])
        elif isinstance(base, Table) and node.func.attr in ("keys", "values", "items"):
            found.append(iterables.view(base, node.func.attr))
        elif isinstance(base, (Table, Items)) and node.func.attr in ("copy", "__iter__"):
            found.append(base)
    return tuple(dict.fromkeys(found)) or NOT_KNOWN


def _method_of_constant(resolver: Resolver, receiver: object, name: str, node: ast.Call) -> Values:
    if name in ("format", "format_map") and isinstance(receiver, str):
        named = {keyword.arg: resolver.text_or_hole(keyword.value) for keyword in node.keywords if keyword.arg}
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            return NOT_KNOWN
        text = fold.format_text(receiver, [resolver.text_or_hole(argument) for argument in node.args[:64]], named)
        return NOT_KNOWN if text is None else (Const(text),)
    if name == "join" and isinstance(receiver, str) and len(node.args) == 1:
        return _join(resolver, receiver, node.args[0])
    if name == "translate" and isinstance(receiver, str) and len(node.args) == 1:
        return _translate(resolver, receiver, node.args[0])
    arguments: list[object] = []
    for argument in node.args[:4]:
        known = resolver.constants(argument)
        if not known:
            return NOT_KNOWN
        arguments.append(known[0])
    result = fold.method(receiver, name, arguments)
    return NOT_KNOWN if result is None else (Const(result),)


def _translate(resolver: Resolver, text: str, node: ast.expr) -> Values:
    for value in resolver.resolve(node):
        if not isinstance(value, Table) or len(value.node.keys) > fold.MAX_ELEMENTS:
            continue
        table: dict[int, object] = {}
        for key, replacement in zip(value.node.keys, value.node.values, strict=True):
            for known in resolver.constants(key)[:1] if key is not None else ():
                for new in resolver.constants(replacement)[:1]:
                    if isinstance(known, int) or (isinstance(known, str) and len(known) == 1):
                        table[known if isinstance(known, int) else ord(known)] = new
        result = "".join(str(chr(new) if isinstance(new, int) else new or "") for new in _replaced(text, table))
        if len(result) <= fold.MAX_ELEMENTS:
            return (Const(result),)
    return NOT_KNOWN


def _replaced(text: str, table: dict[int, object]) -> Iterator[object]:
    for character in text[: fold.MAX_ELEMENTS]:
        new = table.get(ord(character), character)
        yield new if not isinstance(new, int) or 0 <= new < 0x110000 else character


def _join(resolver: Resolver, separator: str, node: ast.expr) -> Values:
    found: list[Value] = []
    for value in resolver.resolve(node)[:4]:
        parts: object = None
        if isinstance(value, Const):
            parts = tuple(value.value) if isinstance(value.value, str) else value.value
        elif isinstance(value, Items) and len(value.elements) <= fold.MAX_ELEMENTS:
            parts = tuple(resolver.text_or_hole(element) for element in value.elements)
        result = fold.method(separator, "join", [parts]) if isinstance(parts, tuple) else None
        found.append(UNKNOWN if result is None else Const(result))
    return tuple(found) or NOT_KNOWN
