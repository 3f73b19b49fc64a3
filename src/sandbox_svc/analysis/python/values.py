"""What the analysis can know about an expression, without running anything."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from typing import Final

import msgspec

from sandbox_svc.analysis.possibilities import MAX_ALTERNATIVES

MAX_NAME: Final = 200
"""Characters of a resolved dotted name; longer ones are of no module that exists."""


class Ref(msgspec.Struct, frozen=True):
    """Something imported or built in, by its canonical dotted name: `os`, `os.system`, `builtins.eval`.

    `()` marks what a call returns: `sqlite3.Connection().load_extension`.
    """

    name: str


class Const(msgspec.Struct, frozen=True):
    """A value that stands in the program; a text may hold `HOLE`, a list stands as a tuple."""

    value: object


class Place(msgspec.Struct, frozen=True):
    """A `pathlib` path whose text is known, perhaps with holes."""

    path: str


class Items(msgspec.Struct, frozen=True, eq=False):
    """A list, tuple or set display whose elements are expressions; not ordered if none is known by its place."""

    elements: tuple[ast.expr, ...]
    is_ordered: bool = True


class Many(msgspec.Struct, frozen=True, eq=False):
    """Any number of values of one expression: a comprehension."""

    element: ast.expr


class Table(msgspec.Struct, frozen=True, eq=False):
    """A dict display."""

    node: ast.Dict


class Own(msgspec.Struct, frozen=True, eq=False):
    """A function, lambda or class of the program itself."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef


class Unknown(msgspec.Struct, frozen=True):
    """Anything at all."""


UNKNOWN: Final = Unknown()

Value = Ref | Const | Place | Items | Many | Table | Own | Unknown
Values = tuple[Value, ...]
"""The alternatives; `UNKNOWN` among them means that there may be more."""

NOT_KNOWN: Final[Values] = (UNKNOWN,)


def unique(values: Iterable[Value]) -> Values:
    """Return the alternatives without repetition; too many of them become unknown, names kept before constants."""
    distinct: dict[Value, None] = {}
    for value in values:
        distinct[value] = None
    if len(distinct) > MAX_ALTERNATIVES:
        ordered = sorted(distinct, key=lambda value: not isinstance(value, (Ref, Own)))
        return (*ordered[:MAX_ALTERNATIVES], UNKNOWN)
    return tuple(distinct)
