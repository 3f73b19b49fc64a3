"""Uses of `Function` as a type: compared, kept, handed to what compares it, but not called."""

from __future__ import annotations

from typing import Final

from sandbox_svc.analysis.javascript.resolve import Resolver
from sandbox_svc.analysis.javascript.scopes import property_name
from sandbox_svc.analysis.javascript.tree import Node

PLAIN_MEMBERS: Final = frozenset({"prototype", "name", "length", "toString"})

_TESTS: Final = frozenset({"instanceof", "===", "!==", "==", "!=", "in", "&&", "||", "??"})
_TRANSPARENT: Final = frozenset({"parenthesized_expression", "await_expression", "ternary_expression"})
_MEMBERS: Final = PLAIN_MEMBERS | {"call", "apply", "bind"}
# Last names of functions that call what they are given.
_CALLING: Final = frozenset(
    {
        "Promise",
        "Proxy",
        "addEventListener",
        "addListener",
        "apply",
        "ary",
        "attempt",
        "bind",
        "call",
        "callbackify",
        "catch",
        "compose",
        "construct",
        "curry",
        "debounce",
        "defer",
        "delay",
        "every",
        "exec",
        "execute",
        "filter",
        "finally",
        "find",
        "findIndex",
        "findLast",
        "flatMap",
        "flow",
        "flowRight",
        "forEach",
        "from",
        "invoke",
        "map",
        "mapKeys",
        "mapValues",
        "memoize",
        "nextTick",
        "off",
        "on",
        "once",
        "over",
        "parse",
        "partial",
        "partialRight",
        "pipe",
        "promisify",
        "queueMicrotask",
        "rearg",
        "reduce",
        "reduceRight",
        "replace",
        "replaceAll",
        "run",
        "setImmediate",
        "setInterval",
        "setTimeout",
        "some",
        "sort",
        "spread",
        "then",
        "throttle",
        "times",
        "unary",
        "wrap",
    }
)


def is_type_use(resolver: Resolver, node: Node) -> bool:
    """`x instanceof Function`, `f.constructor === Function`, `Function.prototype`, or only given another name."""
    child, parent = node, node.parent
    while parent is not None and parent.type in _TRANSPARENT:
        child, parent = parent, parent.parent
    if parent is None:
        return False
    match parent.type:
        case "binary_expression":
            return parent.operator in _TESTS
        case "unary_expression" | "variable_declarator" | "pair" | "array" | "expression_statement":
            return True
        case "switch_case" | "switch_statement":
            return True
        case "arguments":
            return parent.parent is not None and _is_type_argument(resolver, parent.parent)
        case "assignment_expression":
            return parent.field("right") is child or parent.field("left") is child
        case "member_expression":
            return parent.field("object") is child and property_name(parent.field("property")) in _MEMBERS
        case _:
            return False


def _is_type_argument(resolver: Resolver, call: Node) -> bool:
    """`expect.any(Function)`: handed to what keeps or compares it, not to what calls it.

    In functions of the program it is judged where the parameter is used.
    """
    callee = call.field("function") or call.field("constructor")
    names_of_callee = [name.rpartition(".")[2] for name in resolver.refs(callee)]
    if callee is not None:
        last = callee.field("property") or callee
        names_of_callee.append(property_name(last) or "")
    return _CALLING.isdisjoint(names_of_callee)
