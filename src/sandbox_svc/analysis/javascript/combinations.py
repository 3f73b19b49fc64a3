"""What several expressions of a JavaScript program may be together: each alternative with each, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sandbox_svc.analysis.javascript import fold
from sandbox_svc.analysis.javascript.tree import Node
from sandbox_svc.analysis.javascript.values import NOT_KNOWN, UNKNOWN, Const, Value, Values, unique
from sandbox_svc.analysis.possibilities import each_with_each
from sandbox_svc.analysis.texts import HOLE

if TYPE_CHECKING:
    from sandbox_svc.analysis.javascript.resolve import Resolver


def name_in(value: Value | None) -> str | None:
    """Return the text that the value is; None where it is none, or is not known as a whole."""
    if isinstance(value, Const) and isinstance(value.value, str) and HOLE not in value.value:
        return value.value
    return None


def each_result(
    resolver: Resolver,
    nodes: list[Node],
    apply: Callable[[list[fold.Constant]], fold.Constant | None],
    *,
    receivers: Sequence[fold.Constant] | None = None,
) -> Values:
    """Apply a function to the constants that expressions may be, each with each; what may be more is unknown too.

    `receivers` are the alternatives of what comes before the expressions.
    """
    choices: list[Sequence[fold.Constant]] = [receivers] if receivers is not None else []
    is_certain = True
    for node in nodes:
        values = resolver.resolve(node)
        known = [value.value for value in values if isinstance(value, Const)]
        if not known:
            return NOT_KNOWN
        is_certain = is_certain and len(known) == len(values)
        choices.append(known)
    rows, is_complete = each_with_each(choices)
    results = [apply(list(row)) for row in rows]
    found: list[Value] = [UNKNOWN if result is None else Const(result) for result in results]
    return unique(found if is_certain and is_complete else [*found, UNKNOWN])
