"""What methods of constants and displays return, and calls of what is not known by a name."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.possibilities import MAX_ALTERNATIVES, pairs
from sandbox_svc.analysis.python import fold, iterables
from sandbox_svc.analysis.python.calls import attributes
from sandbox_svc.analysis.python.combinations import each_result, rows, to_value
from sandbox_svc.analysis.python.values import NOT_KNOWN, UNKNOWN, Const, Items, Table, Value, Values, unique

if TYPE_CHECKING:
    from sandbox_svc.analysis.python.resolve import Resolver

_READS: Final = frozenset({"get", "pop", "setdefault", "__getitem__"})
_MAX_FIELDS: Final = 64
_MAX_ARGUMENTS: Final = 4


def call_method(resolver: Resolver, node: ast.Call) -> Values:
    """Return what calling something else than a known name gives: methods of constants and displays, `attrgetter`."""
    if isinstance(node.func, ast.Call) and "operator.attrgetter" in resolver.names(node.func.func):
        if len(node.func.args) != 1 or not node.args:
            return NOT_KNOWN
        return attributes(resolver, resolver.resolve(node.args[0]), node.func.args[0])
    if not isinstance(node.func, ast.Attribute):
        return NOT_KNOWN
    if node.func.attr == "__getattribute__" and node.args:
        base_node = node.args[0] if len(node.args) > 1 else node.func.value
        return attributes(resolver, resolver.resolve(base_node), node.args[-1])
    found: list[Value] = []
    constants: list[object] = []
    for base in resolver.resolve(node.func.value):
        if isinstance(base, Const):
            constants.append(base.value)
        elif isinstance(base, (Table, Items)):
            found += _of_display(resolver, base, node.func, node)
        else:
            found.append(UNKNOWN)
    if constants:
        found += _of_constants(resolver, constants, node.func.attr, node)
    return unique(found)


def _of_display(resolver: Resolver, base: Table | Items, function: ast.Attribute, node: ast.Call) -> Values:
    name = function.attr
    if name in _READS and node.args:
        default = resolver.resolve(node.args[1]) if len(node.args) > 1 else ()
        return unique([*resolver.lookup(function.value, (base,), resolver.resolve(node.args[0])), *default])
    if isinstance(base, Table) and name in ("keys", "values", "items"):
        return (iterables.view(base, name),)
    return (base,) if name in ("copy", "__iter__") else NOT_KNOWN


def _of_constants(resolver: Resolver, receivers: Sequence[object], name: str, node: ast.Call) -> Values:
    texts = [receiver for receiver in receivers if isinstance(receiver, str)]
    if name in ("format", "format_map", "join", "translate") and texts:
        others = NOT_KNOWN if len(texts) < len(receivers) else ()
        if name.startswith("format"):
            return unique([*_format(resolver, texts, node), *others])
        if len(node.args) == 1:
            make = _join if name == "join" else _translate
            return unique([*make(resolver, texts, node.args[0]), *others])
    if node.keywords or len(node.args) > _MAX_ARGUMENTS:
        return NOT_KNOWN
    return each_result(resolver, node.args, lambda row: fold.method(row[0], name, row[1:]), receivers=receivers)


def _format(resolver: Resolver, templates: Sequence[str], node: ast.Call) -> Values:
    if any(isinstance(argument, ast.Starred) for argument in node.args):
        return NOT_KNOWN
    positional = node.args[:_MAX_FIELDS]
    named = [keyword for keyword in node.keywords if keyword.arg]
    given = rows(resolver, [*positional, *(keyword.value for keyword in named)])
    found, is_complete = pairs(templates, given)
    values: list[Value] = [] if is_complete else [UNKNOWN]
    for template, row in found:
        names = {str(keyword.arg): value for keyword, value in zip(named, row[len(positional) :], strict=True)}
        values.append(to_value(fold.format_text(template, row[: len(positional)], names)))
    return unique(values)


def _translate(resolver: Resolver, texts: Sequence[str], node: ast.expr) -> Values:
    found, is_complete = pairs(texts, resolver.resolve(node))
    values: list[Value] = [] if is_complete else [UNKNOWN]
    for text, value in found:
        table, is_certain = _table(resolver, value)
        if table is None:
            values.append(UNKNOWN)
            continue
        result = "".join(str(chr(new) if isinstance(new, int) else new or "") for new in _replaced(text, table))
        values.append(Const(result) if len(result) <= fold.MAX_ELEMENTS else UNKNOWN)
        values += () if is_certain else NOT_KNOWN
    return unique(values)


def _table(resolver: Resolver, value: Value) -> tuple[dict[int, object] | None, bool]:
    """Return what a table replaces, the first alternative of each entry, and whether there are no others."""
    if not isinstance(value, Table) or len(value.node.keys) > fold.MAX_ELEMENTS:
        return None, False
    table: dict[int, object] = {}
    is_certain = True
    for key, replacement in zip(value.node.keys, value.node.values, strict=True):
        olds, news = resolver.resolve(key) if key is not None else NOT_KNOWN, resolver.resolve(replacement)
        is_certain = is_certain and len(olds) == len(news) == 1
        old, new = olds[0], news[0]
        if not isinstance(old, Const) or not isinstance(new, Const):
            is_certain = False
        elif isinstance(old.value, int) or (isinstance(old.value, str) and len(old.value) == 1):
            table[old.value if isinstance(old.value, int) else ord(old.value)] = new.value
    return table, is_certain


def _replaced(text: str, table: dict[int, object]) -> Iterator[object]:
    for character in text[: fold.MAX_ELEMENTS]:
        new = table.get(ord(character), character)
        yield new if not isinstance(new, int) or 0 <= new < 0x110000 else character


def _join(resolver: Resolver, separators: Sequence[str], node: ast.expr) -> Values:
    parts: list[object] = []
    for value in resolver.resolve(node):
        if isinstance(value, Items) and value.is_ordered and len(value.elements) <= fold.MAX_ELEMENTS:
            parts += (tuple(map(str, row)) for row in rows(resolver, value.elements))
        elif isinstance(value, Const) and isinstance(value.value, (str, tuple)):
            parts.append(tuple(value.value))
        else:
            parts.append(None)
        if len(parts) > MAX_ALTERNATIVES:
            parts.append(None)
            break
    found, is_complete = pairs(separators, parts)
    values = [to_value(fold.method(separator, "join", [part])) for separator, part in found]
    return unique(values if is_complete else [*values, UNKNOWN])
