"""What several expressions may be together: each alternative of one with each of the others, within bounds."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sandbox_svc.analysis.possibilities import each_with_each
from sandbox_svc.analysis.python import fold
from sandbox_svc.analysis.python.values import NOT_KNOWN, UNKNOWN, Const, Place, Value, Values, unique
from sandbox_svc.analysis.texts import HOLE

if TYPE_CHECKING:
    from sandbox_svc.analysis.python.resolve import Resolver

Row = tuple[str | int, ...]


def rows(resolver: Resolver, nodes: Sequence[ast.expr]) -> list[Row]:
    """Return the texts and numbers that expressions may be together, a hole where one is not known.

    A row of holes stands for those that are left out.
    """
    found, is_complete = each_with_each(_parts(resolver, node) for node in nodes)
    # Long rows cost their length: they are copied and joined.
    resolver.steps_left -= len(found) * len(nodes) >> 1
    return found if is_complete else [*found, (HOLE,) * len(nodes)]


def _parts(resolver: Resolver, node: ast.expr) -> list[str | int]:
    found: list[str | int] = []
    has_hole = False
    for value in resolver.resolve(node):
        if isinstance(value, Place):
            found.append(value.path)
        elif isinstance(value, Const) and isinstance(value.value, (str, bytes)):
            found.append(value.value if isinstance(value.value, str) else value.value.decode("utf-8", "replace"))
        elif isinstance(value, Const) and isinstance(value.value, int) and fold.is_number(value.value):
            found.append(value.value)
        else:
            has_hole = True
    return [*found, HOLE] if has_hole else found


def each_result(
    resolver: Resolver,
    nodes: Sequence[ast.expr],
    apply: Callable[[Sequence[object]], object | None],
    *,
    receivers: Sequence[object] | None = None,
) -> Values:
    """Apply a function to the constants that expressions may be; what may be something else gives something unknown.

    `receivers` are the alternatives of what comes before the expressions.
    """
    choices: list[Sequence[object]] = [receivers] if receivers is not None else []
    is_certain = True
    for node in nodes:
        values = resolver.resolve(node)
        known = [
            value.path if isinstance(value, Place) else value.value
            for value in values
            if isinstance(value, (Const, Place))
        ]
        if not known:
            return NOT_KNOWN
        is_certain = is_certain and len(known) == len(values)
        choices.append(known)
    found, is_complete = each_with_each(choices)
    results = [to_value(apply(row)) for row in found]
    return unique(results if is_certain and is_complete else [*results, UNKNOWN])


def to_value(result: object | None) -> Value:
    """Return the constant that was worked out, or what stands for none."""
    return UNKNOWN if result is None else Const(result)
