"""Powers carried where values are not followed: put into a map, thrown, yielded, handed to a library.

Whoever puts `process` into a `Map` and then reads `binding` from something unknown reads it from `process`. So once a
power stands as a plain value where it gets out of sight, unknown objects are judged as if they were it; in programs
where none does, they are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from sandbox_svc.analysis.javascript import callers, names
from sandbox_svc.analysis.javascript.resolve import Resolver
from sandbox_svc.analysis.javascript.scopes import ProgramIndex, property_name
from sandbox_svc.analysis.javascript.tree import Node
from sandbox_svc.analysis.javascript.values import UNKNOWN, Own, Ref, Values
from sandbox_svc.analysis.rules import RuleBook

_OF_PROCESS: Final = frozenset(
    {"binding", "_linkedBinding", "dlopen", "execve", "setuid", "setgid", "getBuiltinModule"}
)
_OF_MODULE: Final = frozenset({"require", "_compile"})
POWERS: Final = {
    "process": ("process", _OF_PROCESS),
    "module": ("module", _OF_MODULE),
    "globalThis": ("globalThis", frozenset({"eval", "Function"})),
    "require": ("", frozenset[str]()),
    "Function": ("", frozenset[str]()),
}
"""What may be carried, and what is then looked for on unknown objects."""

_OUT_OF_SIGHT: Final = frozenset(
    {
        "array",
        "arrow_function",
        "assignment_pattern",
        "field_definition",
        "object",
        "object_assignment_pattern",
        "pair",
        "return_statement",
        "spread_element",
        "throw_statement",
        "yield_expression",
    }
)
_HELD: Final = frozenset({"identifier", "shorthand_property_identifier", "member_expression", "subscript_expression"})
# Methods that many objects have: `seen.has('vm')` loads nothing.
_ORDINARY: Final = frozenset(
    """
    add append at call debug delete describe emit end endsWith error find get has hasOwnProperty includes indexOf
    info it join lastIndexOf log match off on once open push query run search send set split startsWith test unshift
    warn with write localeCompare concat getItem setItem resolve reject use
    """.split()  # noqa: SIM905 - words, not a table
)


class Reach(NamedTuple):
    """A use of a carried power: the rule's subject and where it stands."""

    node: Node
    name: str
    is_module: bool = False


def reached(index: ProgramIndex, resolver: Resolver, book: RuleBook, *, is_embedded: bool) -> Iterator[Reach]:
    """Yield what unknown objects are used for, if they may be a power that the program carries about.

    A text given to `eval` may be handed anything by the program around it.
    """
    carried = set(POWERS) - {"Function"} if is_embedded else _carried(index, resolver)
    if not carried:
        return
    for node in index.interesting:
        if node.type in ("member_expression", "subscript_expression"):
            yield from _members(resolver, node, carried)
        elif node.type in ("call_expression", "new_expression"):
            if "require" in carried:
                yield from _modules(resolver, book, node)
            if "Function" in carried and _is_made_and_called(resolver, node):
                yield Reach(node, "Function")


def _carried(index: ProgramIndex, resolver: Resolver) -> set[str]:
    found: set[str] = set()
    for node in index.interesting:
        if node.type in _HELD and _is_out_of_sight(resolver, node):
            values = resolver.resolve(node)
            names_here = {value.name for value in values if isinstance(value, Ref) and value.name in POWERS}
            # The constructor of whatever is no power by itself, and a type in a table of the program is followed.
            if UNKNOWN in values or Ref("(value).constructor") in values or not _is_given_away(node):
                names_here.discard("Function")
            found |= names_here
    return found


def _is_given_away(node: Node) -> bool:
    parent = node.parent
    while parent is not None and parent.type in ("array", "pair", "object"):
        parent = parent.parent
    return parent is not None and parent.type in ("arguments", "throw_statement", "yield_expression")


def _is_out_of_sight(resolver: Resolver, node: Node) -> bool:
    parent = node.parent
    if parent is None:
        return False
    if parent.type == "arguments" and parent.parent is not None:
        callee = parent.parent.field("function") or parent.parent.field("constructor")
        return not any(isinstance(value, Own) for value in resolver.resolve(callee))
    if parent.type == "assignment_expression":
        left = parent.field("left")
        return parent.field("right") is node and left is not None and left.type != "identifier"
    return parent.type in _OUT_OF_SIGHT


def _may_be_anything(values: Values) -> bool:
    return UNKNOWN in values


def _members(resolver: Resolver, node: Node, carried: set[str]) -> Iterator[Reach]:
    parent = node.parent
    if parent is not None and parent.type == "assignment_expression" and parent.field("left") is node:
        return
    if node.type == "member_expression":
        name = property_name(node.field("property"))
        found = [name] if name is not None else []
    else:
        found = resolver.texts(node.field("index"))
    for power in carried:
        owner, wanted = POWERS[power]
        for name in found:
            if name in wanted and _may_be_anything(resolver.resolve(node.field("object"))):
                yield Reach(node, name if owner == "globalThis" else f"{owner}.{name}")


def _modules(resolver: Resolver, book: RuleBook, node: Node) -> Iterator[Reach]:
    """`anything('child_process')`: nobody calls a function of his own with that, where `require` goes about."""
    function = node.field("function")
    if function is None or len(callers.arguments(node)) != 1 or not _may_be_anything(resolver.resolve(function)):
        return
    if property_name(function.field("property")) in _ORDINARY:
        return
    for text in resolver.texts(callers.argument(node, 0)):
        module = names.module(text).name
        if module.startswith("node:") and book.by_module(module):
            yield Reach(node, text, is_module=True)


def _is_made_and_called(resolver: Resolver, node: Node) -> bool:
    """`anything(code)()`: what an unknown function made is called."""
    inner = node.field("function")
    if inner is None or inner.type not in ("call_expression", "new_expression") or not callers.arguments(inner):
        return False
    callee = inner.field("function") or inner.field("constructor")
    return _may_be_anything(resolver.resolve(callee))
