"""What well-known calls of JavaScript return."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

from sandbox_svc.analysis.javascript import callers, containers, displays, fold, invocations, method_calls, names, tree
from sandbox_svc.analysis.javascript.callers import argument, arguments
from sandbox_svc.analysis.javascript.combinations import each_result, name_in
from sandbox_svc.analysis.javascript.tree import Node
from sandbox_svc.analysis.javascript.values import (
    NOT_KNOWN,
    UNKNOWN,
    Bound,
    Const,
    Own,
    Ref,
    Unknown,
    Value,
    Values,
    unique,
)
from sandbox_svc.analysis.paths import WORKSPACE
from sandbox_svc.analysis.possibilities import MAX_COMBINED, all_if_few
from sandbox_svc.analysis.texts import HOLE

if TYPE_CHECKING:
    from sandbox_svc.analysis.javascript.resolve import Resolver

MAX_EVALUATED: Final = 512
"""Characters of a text given to `eval` that is followed; a longer one gives something unknown."""
_EVALUATED_SECONDS: Final = 0.02
_EVALUATED_STEPS: Final = 20

REQUIRES: Final = frozenset({"require", "module.require", "node:module.createRequire()", "import", "node:module._load"})
"""Names that, called with a module's name, give the module."""

_MAX_PARTS: Final = 16
_MAX_RETURNED: Final = 8
_JOINS: Final = frozenset({"node:path.join", "node:path.resolve"})
# What is written to these goes out later: `request(...).end(data)`, `axios.create(...).post(url, data)`.
_CONNECTIONS: Final = re.compile(r"node:https?\.request|node:http2\.connect|npm:axios\.create|npm:ws|WebSocket")
_FOLLOWED: Final = frozenset({"node:module.createRequire", "node:vm.Script", "node:cluster"})


def result(resolver: Resolver, node: Node) -> Values:
    """Return what a call or a `new` gives."""
    function = callers.called(node)
    if function is None:
        return NOT_KNOWN
    if function.type == "import":
        return required(resolver, argument(node, 0))
    if function.type == "identifier" and function.text == "await":
        # The grammar reads `await (a).b` as a call of something named so.
        return resolver.resolve(argument(node, 0))
    found: list[Value] = []
    for value in resolver.resolve(function):
        if isinstance(value, Bound):
            continue
        if isinstance(value, Ref):
            found += _call_ref(resolver, value.name, node)
        elif isinstance(value, Own) and node.type == "call_expression":
            found += resolver.call_own(value.node)
        else:
            found += method_calls.result(resolver, function, node)
    invoked = resolver.invocations(node)
    if len(invoked) >= invocations.MAX_INVOCATIONS:
        found.append(UNKNOWN)
    for invocation in invoked:
        if isinstance(invocation.function, Own):
            found += resolver.call_own(invocation.function.node)
        else:
            found += _call_ref(resolver, invocation.function.name, invocation.node)
    if any(map(_is_vague, found)) and not any(isinstance(value, (Ref, Own)) for value in found):
        evaluated = resolver.evaluator.constant(node)
        if evaluated is not None:
            constant, is_certain = evaluated
            doubt = [] if any(isinstance(value, Unknown) for value in found) else [UNKNOWN]
            return (Const(constant),) if is_certain else unique([Const(constant), *found, *doubt])
    return unique(found) or NOT_KNOWN


def _is_vague(value: Value) -> bool:
    return isinstance(value, Unknown) or (
        isinstance(value, Const) and isinstance(value.value, str) and HOLE in value.value
    )


def required(resolver: Resolver, node: Node | None) -> Values:
    """Return the modules that a name may stand for."""
    found: list[Value] = []
    for value in resolver.resolve(node):
        name = name_in(value)
        found.append(names.module(name) if name else UNKNOWN)
    return unique(found)


def _call_ref(resolver: Resolver, name: str, node: Node) -> Values:
    if name in REQUIRES:
        return required(resolver, argument(node, 0))
    known = _KNOWN.get(name)
    if known is not None:
        return known(resolver, node)
    if name in _FOLLOWED or _CONNECTIONS.fullmatch(name):
        return (Ref(f"{name}()"),)
    owner, _, last = name.rpartition(".")
    if last == "bind" and owner.endswith((".call", ".apply")):
        # `Function.prototype.call.bind(f)` calls `f`, with its first argument as `this`.
        called = resolver.resolve(argument(node, 0))
        return tuple(Ref(f"{v.name}.call") for v in called if isinstance(v, Ref)) or NOT_KNOWN
    if last == "bind":
        given = tuple(arguments(node)[1:])
        return (Bound(owner, given) if given else Ref(owner),)
    if last == "call" and owner in REQUIRES:
        return required(resolver, argument(node, 1))
    if last == "apply" and owner in REQUIRES:
        return _modules(resolver, argument(node, 1))
    return _folded(resolver, name, node)


def _folded(resolver: Resolver, name: str, node: Node) -> Values:
    parts = node.field("arguments")
    given = arguments(node)
    is_whole = parts is None or len(given) == len(parts.children) or parts.type == "template_string"
    if len(given) > fold.MAX_ELEMENTS:
        return NOT_KNOWN
    if is_whole:
        return each_result(resolver, given, lambda constants: fold.call(name, constants))
    last = parts.children[-1] if parts is not None else None
    if last is None or last.type != "spread_element" or parts is None or len(parts.children) > len(given) + 1:
        return NOT_KNOWN
    return each_result(
        resolver,
        [*given, *last.children[:1]],
        lambda constants: (
            fold.call(name, [*constants[:-1], *constants[-1]]) if isinstance(constants[-1], tuple) else None
        ),
    )


def _get_prototype(resolver: Resolver, node: Node) -> Values:
    found: list[Value] = []
    for value in resolver.resolve(argument(node, 0)):
        if isinstance(value, Own) or (isinstance(value, Ref) and names.is_function(value.name)):
            found.append(Ref("Function.prototype"))
        else:
            found.append(value if isinstance(value, Ref) else UNKNOWN)
    return unique(found)


def _reflect_get(resolver: Resolver, node: Node) -> Values:
    found: list[Value] = []
    for value in resolver.resolve(argument(node, 1)):
        if isinstance(value, Const) and isinstance(value.value, str):
            found += resolver.member(resolver.resolve(argument(node, 0)), value.value)
        found += NOT_KNOWN if name_in(value) is None else ()
    return unique(found)


def _descriptor(resolver: Resolver, node: Node) -> Values:
    return tuple(Ref(f"{v.name}.(descriptor)") if isinstance(v, Ref) else v for v in _reflect_get(resolver, node))


def _reflect_apply(resolver: Resolver, node: Node) -> Values:
    if not REQUIRES & set(resolver.refs(argument(node, 0))):
        return NOT_KNOWN
    return _modules(resolver, argument(node, 2))


def _modules(resolver: Resolver, node: Node | None) -> Values:
    """The modules that an array of arguments names."""
    values = resolver.elements(resolver.resolve(node))
    return unique(names.module(name) if name is not None else UNKNOWN for name in map(name_in, values))


def _first_argument(resolver: Resolver, node: Node) -> Values:
    return resolver.resolve(argument(node, 0))


def _proxy(resolver: Resolver, node: Node) -> Values:
    """A proxy gives what it stands for, and what its handler takes properties from."""
    found = list(_first_argument(resolver, node))
    for getter in resolver.member(resolver.resolve(argument(node, 1)), "get"):
        for returned in resolver.index.returns.get(getter.node, [])[:_MAX_RETURNED] if isinstance(getter, Own) else ():
            if returned.type == "subscript_expression":
                found += resolver.resolve(returned.field("object"))
            elif "Reflect.get" in resolver.refs(callers.called(returned)):
                found += resolver.resolve(argument(returned, 0))
    return unique([*found, UNKNOWN])


def _descriptors(resolver: Resolver, node: Node) -> Values:
    values = _first_argument(resolver, node)
    return tuple(Ref(f"{v.name}.(descriptors)") if isinstance(v, Ref) else UNKNOWN for v in values)


def _join(resolver: Resolver, node: Node) -> Values:
    given = arguments(node)
    if callers.has_spread(node) or len(given) > _MAX_PARTS:
        # Left to the evaluator: it puts all of them in their places.
        return NOT_KNOWN
    found: list[Value] = []
    for texts in resolver.combined(given):
        path = posixpath.normpath(posixpath.join(*texts)) if texts else "."
        found.append(Const(path) if len(path) <= fold.MAX_ELEMENTS else UNKNOWN)
    return unique(found)


def evaluated(resolver: Resolver, node: Node) -> list[Node]:
    """Return the expressions that texts given to `eval` hold, as if they stood in place of the call."""
    found: list[Node] = []
    for text in resolver.texts(argument(node, 0)):
        inner = text.strip().rstrip(";").encode("utf-8", "replace")
        if not 0 < len(inner) <= MAX_EVALUATED or resolver.steps_left <= 0:
            continue
        resolver.steps_left -= _EVALUATED_STEPS
        try:
            root = tree.parse(inner, max_seconds=_EVALUATED_SECONDS, max_nodes=MAX_EVALUATED)
        except (tree.TooSlow, tree.TooManyNodes):
            continue
        if [child.type for child in root.children] == ["expression_statement"]:
            scope = resolver.index.scopes.get(node, resolver.index.module)
            resolver.index.scopes.update(dict.fromkeys(root.walk(), scope))
            found += root.children[0].children[:1]
    return found


def _evaluated(resolver: Resolver, node: Node) -> Values:
    found: list[Value] = []
    for expression in resolver.evaluated(node):
        if expression.type == "this":
            found += (Ref("globalThis"), UNKNOWN)
            continue
        # A function that stands in the text is none that the calls of the program can be told of.
        inner = set(expression.walk())
        found += (
            UNKNOWN if isinstance(value, Own) and value.node in inner else value
            for value in resolver.resolve(expression)
        )
    is_complete = len(resolver.evaluated(node)) == len(resolver.resolve(argument(node, 0)))
    return unique(found if is_complete else [*found, UNKNOWN])


def _url(resolver: Resolver, node: Node) -> Values:
    found: list[Value] = []
    for texts in resolver.combined(arguments(node)[:2]):
        try:
            found.append(Const(urljoin(texts[1], texts[0]) if len(texts) > 1 else texts[0]) if texts else UNKNOWN)
        except ValueError:
            found.append(UNKNOWN)
    return unique(found)


def _parsed(resolver: Resolver, node: Node) -> Values:
    """`JSON.parse` of a text that stands in the program: what it says, as if it stood there as code."""
    found: list[Value] = []
    for value in all_if_few(resolver.resolve(argument(node, 0)), MAX_COMBINED):
        text = value.value if isinstance(value, Const) and isinstance(value.value, str) else ""
        source = f"({text})".encode("utf-8", "replace")
        if text.lstrip()[:1] not in ("{", "[") or len(source) > MAX_EVALUATED or resolver.steps_left <= 0:
            folded = fold.call("JSON.parse", [text])
            found.append(UNKNOWN if folded is None else Const(folded))
            continue
        resolver.steps_left -= _EVALUATED_STEPS
        try:
            json.loads(text)
            root = tree.parse(source, max_seconds=_EVALUATED_SECONDS, max_nodes=MAX_EVALUATED)
        except (ValueError, RecursionError, tree.TooSlow, tree.TooManyNodes):
            found.append(UNKNOWN)
            continue
        inner = root.children[0].children[:1] if root.children else []
        found += resolver.resolve(inner[0]) if inner else NOT_KNOWN
    return unique(found) or NOT_KNOWN


def _all_arguments(resolver: Resolver, node: Node) -> Values:
    """`Object.assign(a, b)` has what each of them has."""
    found: list[Value] = [UNKNOWN] if callers.has_spread(node) else []
    for part in all_if_few(arguments(node), MAX_COMBINED):
        found += resolver.resolve(part)
    return unique(found) or NOT_KNOWN


_KNOWN: Final[dict[str, Callable[[Resolver, Node], Values]]] = {
    "eval": _evaluated,
    "Object.getPrototypeOf": _get_prototype,
    "Reflect.getPrototypeOf": _get_prototype,
    "Reflect.get": _reflect_get,
    "Object.getOwnPropertyDescriptor": _descriptor,
    "Reflect.getOwnPropertyDescriptor": _descriptor,
    "Object.getOwnPropertyDescriptors": _descriptors,
    "Object.keys": displays.object_keys,
    "Object.values": displays.object_values,
    "Object.entries": displays.object_entries,
    "Proxy": _proxy,
    "Reflect.apply": _reflect_apply,
    "Object.freeze": _first_argument,
    "Object.create": _first_argument,
    "Object.assign": _all_arguments,
    "JSON.parse": _parsed,
    "Promise": containers.promise,
    "Promise.resolve": _first_argument,
    "Promise.all": _first_argument,
    "Promise.race": containers.one_of_argument,
    "Promise.any": containers.one_of_argument,
    "Object.fromEntries": containers.container,
    "Map": containers.container,
    "Set": containers.container,
    "node:util.promisify": _first_argument,
    "structuredClone": _first_argument,
    "process.cwd": lambda _resolver, _node: (Const(WORKSPACE),),
    "URL": _url,
    **dict.fromkeys(_JOINS, _join),
}
