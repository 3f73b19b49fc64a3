"""Well-known calls that hand on the elements of what they are given: `sorted`, `enumerate`, `zip`, `dict`, `map`.

Where an element is made of several, as in `zip`, it is an expression that stands nowhere in the program.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.python import expressions, fold
from sandbox_svc.analysis.python.values import NOT_KNOWN, UNKNOWN, Const, Items, Many, Own, Ref, Table, Value, Values

if TYPE_CHECKING:
    from sandbox_svc.analysis.python.resolve import Resolver

_MAX_ELEMENTS: Final = 64
"""Elements that are paired; constants alone are followed further."""


def anything() -> ast.expr:
    """Return an expression of which nothing is known."""
    return ast.expr()


def each(iterable: ast.expr) -> ast.expr:
    """Return an expression for some element of the iterable."""
    return ast.Call(func=ast.Name(id="next", ctx=ast.Load()), args=[iterable], keywords=[])


def view(table: Table, name: str) -> Items:
    """What `keys`, `values` and `items` of a dict display give."""
    keys = _bounded([key if key is not None else anything() for key in table.node.keys])
    values = _bounded(table.node.values)
    if name == "keys":
        return Items(tuple(keys))
    if name == "values":
        return Items(tuple(values))
    return Items(tuple(_pair(key, value) for key, value in zip(keys, values, strict=True)))


def _bounded(elements: list[ast.expr]) -> list[ast.expr]:
    return elements if len(elements) <= _MAX_ELEMENTS else [*elements[:_MAX_ELEMENTS], anything()]


def _pair(*parts: ast.expr) -> ast.Tuple:
    return ast.Tuple(elts=list(parts), ctx=ast.Load())


def _elements(value: Value) -> list[ast.expr] | None:
    """The elements as expressions, in order, None where they are not known one by one."""
    if isinstance(value, Items):
        return _bounded(list(value.elements))
    if isinstance(value, Table):
        return list(view(value, "keys").elements)
    if isinstance(value, Const) and isinstance(value.value, (str, bytes, tuple)):
        return _bounded([ast.Constant(value=item) for item in value.value])
    return None


def _first(resolver: Resolver, node: ast.Call) -> Values:
    return resolver.resolve(node.args[0]) if node.args else NOT_KNOWN


def _same_elements(resolver: Resolver, node: ast.Call) -> Values:
    """`list(x)`, `iter(x)`, `sorted(x, key=f)`: the same elements, perhaps in another order."""
    kept = [value for value in _first(resolver, node) if isinstance(value, (Items, Many, Table))]
    return tuple(kept) or _same_constants(resolver, node)


def _same_constants(resolver: Resolver, node: ast.Call) -> Values:
    for function in resolver.names(node.func):
        arguments = [value.value for value in _first(resolver, node) if isinstance(value, Const)]
        found = [
            Const(result) for result in (fold.call(function, [known]) for known in arguments) if result is not None
        ]
        if found:
            return tuple(found)
    return NOT_KNOWN


def _reversed(resolver: Resolver, node: ast.Call) -> Values:
    known = _same_constants(resolver, node)
    return known if known != NOT_KNOWN else _same_elements(resolver, node)


def _next(resolver: Resolver, node: ast.Call) -> Values:
    return resolver.elements(resolver.resolve(node.args[0])) if node.args else NOT_KNOWN


def _enumerate(resolver: Resolver, node: ast.Call) -> Values:
    start = [number for argument in node.args[1:2] for number in resolver.constants(argument)]
    found: list[Value] = []
    for value in _first(resolver, node):
        elements = _elements(value)
        if elements is not None:
            first = start[0] if start and isinstance(start[0], int) else 0
            found.append(Items(tuple(_pair(ast.Constant(value=first + i), e) for i, e in enumerate(elements))))
        else:
            found.append(Many(_pair(anything(), value.element)) if isinstance(value, Many) else UNKNOWN)
    return tuple(found) or NOT_KNOWN


def _zip(resolver: Resolver, node: ast.Call) -> Values:
    columns: list[list[ast.expr] | None] = []
    for argument in node.args[:8]:
        known = [elements for elements in map(_elements, resolver.resolve(argument)) if elements is not None]
        columns.append(known[0] if len(known) == 1 else None)
    lengths = [len(column) for column in columns if column is not None]
    if not lengths:
        return NOT_KNOWN
    return (
        Items(tuple(_pair(*(c[i] if c is not None else anything() for c in columns)) for i in range(min(lengths)))),
    )


def _dict(resolver: Resolver, node: ast.Call) -> Values:
    """`dict(a=1)`, `dict(table)` and `dict(pairs)`."""
    keys: list[ast.expr | None] = []
    values: list[ast.expr] = []
    for value in _first(resolver, node) if node.args else ():
        if isinstance(value, Table):
            keys += value.node.keys[:_MAX_ELEMENTS]
            values += value.node.values[:_MAX_ELEMENTS]
            if len(value.node.keys) > _MAX_ELEMENTS:
                keys.append(None)
                values.append(anything())
            continue
        for pair in _elements(value) or [anything()]:
            if isinstance(pair, ast.Tuple) and len(pair.elts) == 2:
                keys.append(pair.elts[0])
                values.append(pair.elts[1])
            else:
                return NOT_KNOWN
    for keyword in node.keywords:
        keys.append(ast.Constant(value=keyword.arg) if keyword.arg is not None else None)
        values.append(keyword.value)
    return (Table(ast.Dict(keys=keys, values=values)),)


def _map(resolver: Resolver, node: ast.Call) -> Values:
    if len(node.args) < 2:
        return NOT_KNOWN
    if len(node.args) == 2:
        known = _mapped_constants(resolver, node)
        if known is not None:
            return (Const(known),)
    return (Many(ast.Call(func=node.args[0], args=[each(argument) for argument in node.args[1:8]], keywords=[])),)


def _mapped_constants(resolver: Resolver, node: ast.Call) -> tuple[object, ...] | None:
    for value in resolver.resolve(node.args[1]):
        if not isinstance(value, Const) or not isinstance(value.value, (str, bytes, tuple)):
            continue
        for function in resolver.resolve(node.args[0]):
            items: tuple[object, ...] | None = None
            if isinstance(function, Ref):
                results = [fold.call(function.name, [item]) for item in value.value[: fold.MAX_ELEMENTS]]
                items = tuple(results) if None not in results else None
            elif isinstance(function, Own) and isinstance(function.node, ast.Lambda) and function.node.args.args:
                items = expressions.unroll(resolver, function.node.body, function.node.args.args[0].arg, value.value)
            if items is not None:
                return items
    return None


def _filter(resolver: Resolver, node: ast.Call) -> Values:
    """`filter(f, x)`: some of the elements, and just those where `f` is a test of constants."""
    if len(node.args) != 2:
        return NOT_KNOWN
    values = resolver.resolve(node.args[1])
    for function in resolver.resolve(node.args[0]):
        if isinstance(function, Own) and isinstance(function.node, ast.Lambda) and function.node.args.args:
            name, test = function.node.args.args[0].arg, function.node.body
            for value in values:
                if isinstance(value, Const) and isinstance(value.value, (str, bytes, tuple)):
                    items = expressions.unroll(resolver, ast.Name(id=name), name, value.value, (test,))
                    if items is not None:
                        return (Const(items),)
    return tuple(value for value in values if isinstance(value, (Const, Items, Many, Table))) or NOT_KNOWN


KNOWN: Final[dict[str, Callable[[Resolver, ast.Call], Values]]] = {
    **dict.fromkeys(
        (f"builtins.{name}" for name in ("list", "tuple", "set", "frozenset", "iter", "sorted")), _same_elements
    ),
    "collections.deque": _same_elements,
    "collections.OrderedDict": _dict,
    "builtins.reversed": _reversed,
    "builtins.next": _next,
    "builtins.enumerate": _enumerate,
    "builtins.zip": _zip,
    "builtins.dict": _dict,
    "builtins.map": _map,
    "builtins.filter": _filter,
}
