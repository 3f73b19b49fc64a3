"""Well-known calls that hand on the elements of what they are given: `sorted`, `enumerate`, `zip`, `dict`, `map`.

Where an element is made of several, as in `zip`, it is an expression that stands nowhere in the program.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.possibilities import pairs
from sandbox_svc.analysis.python import expressions, fold
from sandbox_svc.analysis.python.callers import argument_for
from sandbox_svc.analysis.python.combinations import to_value
from sandbox_svc.analysis.python.tables import anything, each
from sandbox_svc.analysis.python.values import (
    NOT_KNOWN,
    UNKNOWN,
    Const,
    Items,
    Many,
    Own,
    Ref,
    Table,
    Value,
    Values,
    unique,
)

if TYPE_CHECKING:
    from sandbox_svc.analysis.python.resolve import Resolver

_MAX_ELEMENTS: Final = 64
"""Elements that are paired; constants alone are followed further."""
_MAX_ZIPPED: Final = 8


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
    if isinstance(value, Items) and value.is_ordered:
        return _bounded(list(value.elements))
    if isinstance(value, Table):
        return list(view(value, "keys").elements)
    if isinstance(value, Const) and isinstance(value.value, (str, bytes, tuple)):
        return _bounded([ast.Constant(value=item) for item in value.value])
    return None


def _first(resolver: Resolver, node: ast.Call) -> Values:
    return resolver.resolve(node.args[0]) if node.args else NOT_KNOWN


def _same_elements(resolver: Resolver, node: ast.Call) -> Values:
    """`list(x)`, `tuple(x)`, `iter(x)`: the same elements in the same order."""
    found: list[Value] = []
    for value in _first(resolver, node):
        if isinstance(value, (Items, Many, Table)) and len(node.args) == 1 and not node.keywords:
            found.append(value)
        else:
            found += _folded(resolver, node, value)
    return unique(found)


def _folded(resolver: Resolver, node: ast.Call, value: Value) -> Values:
    """What the function gives for a constant, something unknown for anything else."""
    if not isinstance(value, Const) or len(node.args) != 1 or node.keywords:
        return NOT_KNOWN
    functions = resolver.resolve(node.func)
    return tuple(to_value(fold.call(f.name, [value.value])) if isinstance(f, Ref) else UNKNOWN for f in functions)


def _reordered(resolver: Resolver, node: ast.Call) -> Values:
    """`sorted(x, key=f)`, `set(x)`: the same elements in some order, which is known of sorted constants."""
    found: list[Value] = []
    for value in _first(resolver, node):
        folded = _folded(resolver, node, value) if "builtins.sorted" in resolver.names(node.func) else NOT_KNOWN
        found += folded if UNKNOWN not in folded else (Many(each(node.args[0])) if node.args else UNKNOWN,)
    return unique(found)


def _reversed(resolver: Resolver, node: ast.Call) -> Values:
    found: list[Value] = []
    for value in _first(resolver, node):
        if isinstance(value, Items):
            found.append(Items(value.elements[::-1], is_ordered=value.is_ordered))
        elif isinstance(value, (Many, Table)):
            found.append(Many(each(node.args[0])))
        else:
            found += _folded(resolver, node, value)
    return unique(found)


def _next(resolver: Resolver, node: ast.Call) -> Values:
    if not node.args:
        return NOT_KNOWN
    default = resolver.resolve(node.args[1]) if len(node.args) > 1 else ()
    return unique([*resolver.elements(resolver.resolve(node.args[0])), *default])


def _enumerate(resolver: Resolver, node: ast.Call) -> Values:
    start = argument_for(node, "start", 1)
    found: list[Value] = []
    for value in _first(resolver, node):
        elements = _elements(value)
        if elements is None or not node.args:
            found.append(Many(_pair(anything(), each(node.args[0]))) if node.args else UNKNOWN)
            continue
        numbers: list[ast.expr] = [ast.Constant(value=i) for i in range(len(elements))]
        if start is not None:
            numbers = [ast.BinOp(left=start, op=ast.Add(), right=number) for number in numbers]
        found.append(Items(tuple(map(_pair, numbers, elements))))
    return unique(found)


def _zip(resolver: Resolver, node: ast.Call) -> Values:
    if len(node.args) > _MAX_ZIPPED or any(isinstance(argument, ast.Starred) for argument in node.args):
        return NOT_KNOWN
    columns: list[list[ast.expr] | None] = []
    is_certain = True
    for argument in node.args:
        values = resolver.resolve(argument)
        known = [elements for elements in map(_elements, values) if elements is not None]
        columns.append(known[0] if len(known) == 1 else None)
        is_certain = is_certain and len(values) == 1
    anyhow = Many(_pair(*map(each, node.args)))
    lengths = [len(column) for column in columns if column is not None]
    if not lengths:
        return (anyhow,)
    given = list(zip(columns, node.args, strict=True))
    found = Items(
        tuple(_pair(*(c[i] if c is not None else each(argument) for c, argument in given)) for i in range(min(lengths)))
    )
    return (found,) if is_certain else (found, anyhow)


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
        if isinstance(value, Items) and len(value.elements) <= _MAX_ELEMENTS:
            elements = list(value.elements)
        else:
            elements = _elements(value) or [anything()]
        for pair in elements:
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
    anyhow = Many(ast.Call(func=node.args[0], args=[each(argument) for argument in node.args[1:]], keywords=[]))
    if len(node.args) > 2:
        return (anyhow,)
    found, is_complete = pairs(resolver.resolve(node.args[0]), resolver.resolve(node.args[1]))
    results: list[Value] = [value for pair in found for value in _mapped(resolver, *pair)]
    known = [value for value in results if value != UNKNOWN]
    return unique(known if is_complete and known and len(known) == len(results) else [*known, anyhow])


def _mapped(resolver: Resolver, function: Value, items: Value) -> Values:
    if not isinstance(items, Const) or not isinstance(items.value, (str, bytes, tuple)):
        return NOT_KNOWN
    if isinstance(function, Ref) and len(items.value) <= fold.MAX_ELEMENTS:
        results = [fold.call(function.name, [item]) for item in items.value]
        return (Const(tuple(results)),) if None not in results else NOT_KNOWN
    return _of_lambda(function, lambda name, body: expressions.unroll(resolver, body, name, items))


def _of_lambda(function: Value, apply: Callable[[str, ast.expr], Values]) -> Values:
    """Apply something to the parameter and the body of a function that is written as an expression."""
    if isinstance(function, Own) and isinstance(function.node, ast.Lambda) and function.node.args.args:
        return apply(function.node.args.args[0].arg, function.node.body)
    return NOT_KNOWN


def _filter(resolver: Resolver, node: ast.Call) -> Values:
    """`filter(f, x)`: some of the elements, and just those where `f` is a test of constants."""
    if len(node.args) != 2:
        return NOT_KNOWN
    found, is_complete = pairs(resolver.resolve(node.args[0]), resolver.resolve(node.args[1]))
    results: list[Value] = []
    for function, items in found:
        results += _of_lambda(
            function,
            lambda name, test, items=items: expressions.unroll(resolver, ast.Name(id=name), name, items, (test,)),  # type: ignore[misc]
        )
    known = [value for value in results if value != UNKNOWN]
    anyhow = Many(each(node.args[1]))
    return unique(known if is_complete and known and len(known) == len(results) else [*known, anyhow])


KNOWN: Final[dict[str, Callable[[Resolver, ast.Call], Values]]] = {
    **dict.fromkeys((f"builtins.{name}" for name in ("list", "tuple", "iter")), _same_elements),
    **dict.fromkeys((f"builtins.{name}" for name in ("set", "frozenset", "sorted")), _reordered),
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
