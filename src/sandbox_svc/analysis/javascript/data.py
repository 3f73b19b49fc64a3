"""What evaluating works with: constants, arrays and objects that change, functions with the names around them."""

from __future__ import annotations

from typing import Final

from sandbox_svc.analysis.javascript import fold
from sandbox_svc.analysis.javascript.tree import Node
from sandbox_svc.analysis.javascript.values import Ref


class Stop(Exception):
    """Something is not known, or costs too much to follow."""


class Environment:
    """Names of a block or call that is evaluated, and those around it."""

    __slots__ = ("names", "parent", "touched")

    def __init__(self, parent: Environment | None) -> None:
        self.parent = parent
        self.names: dict[str, Data] = {}
        self.touched: set[str] = set()
        """Names that were assigned to, from wherever."""

    def is_empty(self) -> bool:
        return self.parent is None and not self.names

    def find(self, name: str) -> tuple[bool, Data]:
        """Return whether the name is bound in what is evaluated, and to what."""
        environment: Environment | None = self
        while environment is not None:
            if name in environment.names:
                value = environment.names[name]
                if value is FORGOTTEN:
                    raise Stop
                return True, value
            environment = environment.parent
        return False, None

    def assign(self, name: str, value: Data) -> None:
        """Change a name; one that belongs to the rest of the program is not ours to change."""
        environment: Environment | None = self
        while environment is not None:
            if name in environment.names:
                environment.names[name] = value
                environment.touched.add(name)
                return
            environment = environment.parent
        raise Stop

    def forget(self, names: set[str]) -> None:
        """Make names unknown."""
        self.names.update(dict.fromkeys(names, FORGOTTEN))


class Closure:
    """A function of the program."""

    __slots__ = ("environment", "node")

    def __init__(self, node: Node, environment: Environment) -> None:
        self.node = node
        self.environment = environment


class Bytes(list["Data"]):
    """A buffer or typed array: numbers that a text can be made of."""


class Pattern:
    """A regular expression that Python's `re` reads as JavaScript does, in time that grows slowly."""

    __slots__ = ("flags", "text")

    def __init__(self, text: str, flags: str) -> None:
        self.text = text
        self.flags = flags


class _Forgotten:
    pass


FORGOTTEN: Final = _Forgotten()

Data = str | int | float | bool | None | list["Data"] | dict[str, "Data"] | Closure | Ref | Pattern | _Forgotten


def is_true(value: Data) -> bool:
    """Tell whether JavaScript takes the value for true."""
    if isinstance(value, (list, dict, Closure, Ref, Pattern)):
        return True
    if value is FORGOTTEN:
        raise Stop
    return bool(value)


def same(left: Data, right: Data) -> bool:
    """`===`, for values that have no identity; `Stop` for the others."""
    scalars = (str, int, float, type(None))
    if not isinstance(left, scalars) or not isinstance(right, scalars):
        raise Stop
    return isinstance(left, str) == isinstance(right, str) and (left is None) == (right is None) and left == right


def plain(value: Data) -> fold.Constant | None:
    """Return a value as the constant that it is, None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, Bytes):
        return fold.call("Buffer.of", [item for item in value if isinstance(item, int)])
    if isinstance(value, list):
        items = [item for item in value if isinstance(item, (str, int, float)) and not isinstance(item, bool)]
        return fold.bounded(items) if len(items) == len(value) else None
    return fold.bounded(value)
