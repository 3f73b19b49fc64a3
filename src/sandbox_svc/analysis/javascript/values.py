"""What the analysis can know about a JavaScript expression, without running anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from sandbox_svc.analysis.javascript.tree import Node
from sandbox_svc.analysis.possibilities import MAX_ALTERNATIVES

MAX_NAME: Final = 200


class Ref(msgspec.Struct, frozen=True):
    """A global or something of a module, by its dotted name: `process.binding`, `node:fs.readFile`, `npm:axios`."""

    name: str


class Bound(Ref, frozen=True):
    """`f.bind(x, a)`: a function that is called with more arguments than its calls show."""

    arguments: tuple[Node, ...]


class Const(msgspec.Struct, frozen=True):
    """A text, a number, or a tuple of them that stands in the program; a text may hold `HOLE`."""

    value: str | int | float | tuple[str | int | float, ...]


class Items(msgspec.Struct, frozen=True, eq=False):
    """An array display."""

    node: Node


class Table(msgspec.Struct, frozen=True, eq=False):
    """An object display."""

    node: Node


class Own(msgspec.Struct, frozen=True, eq=False):
    """A function or class of the program itself."""

    node: Node


class Unknown(msgspec.Struct, frozen=True):
    """Anything at all."""


class Changed(Unknown, frozen=True):
    """Anything at all that was made of the values beside it, step by step; they are among what it has been."""


UNKNOWN: Final = Unknown()
CHANGED: Final = Changed()

Value = Ref | Const | Items | Table | Own | Unknown
Values = tuple[Value, ...]

NOT_KNOWN: Final[Values] = (UNKNOWN,)


def unique(values: Iterable[Value]) -> Values:
    """Return the alternatives without repetition; too many of them become unknown, names kept before constants."""
    distinct = dict.fromkeys(values)
    if len(distinct) > MAX_ALTERNATIVES:
        ordered = sorted(distinct, key=lambda value: not isinstance(value, (Ref, Own)))
        return (*ordered[:MAX_ALTERNATIVES], UNKNOWN)
    return tuple(distinct)
