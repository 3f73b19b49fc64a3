"""What well-known calls of JavaScript return."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.javascript import displays, fold, names, tree
from sandbox_svc.analysis.javascript.callers import argument, arguments
from sandbox_svc.analysis.javascript.scopes import property_name
from sandbox_svc.analysis.javascript.tree import Node
from sandbox_svc.analysis.javascript.values import (
    NOT_KNOWN,
    UNKNOWN,
    Const,
    Items,
    Own,
    Ref,
    Table,
    Value,
    Values,
)
from sandbox_svc.analysis.paths import WORKSPACE
from sandbox_svc.analysis.texts import HOLE

if TYPE_CHECKING:
    from sandbox_svc.analysis.javascript.resolve import Resolver

MAX_EVALUATED: Final = 512
"""Characters of a text given to `eval` that is followed; a longer one gives something unknown."""
_EVALUATED_SECONDS: Final = 0.02
_EVALUATED_STEPS: Final = 20

REQUIRES: Final = frozenset({"require", "module.require", "node:module.createRequire()", "import", "node:module._load"})
"""Names that, called with a module's name, give the module."""

_JOINS: Final = frozenset({"node:path.join", "node:path.resolve"})
# What is written to these goes out later: `request(...).end(data)`, `axios.create(...).post(url, data)`.
_CONNECTIONS: Final = re.compile(r"node:https?\.request|node:http2\.connect|npm:axios\.create|npm:ws|WebSocket")
_FOLLOWED: Final = frozenset({"node:module.createRequire", "node:vm.Script", "node:cluster"})


def result(resolver: Resolver, node: Node) -> Values:
    """Return what a call or a `new` gives."""
    function = node.field("function") or node.field("constructor")
    if function is None:
        return NOT_KNOWN
    if function.type == "import":
        return required(resolver, argument(node, 0))
    found: list[Value] = []
    for value in resolver.resolve(function):
        if isinstance(value, Ref):
            found += _call_ref(resolver, value.name, node)
        elif isinstance(value, Own) and node.type == "call_expression":
            found += resolver.call_own(value.node)
        else:
            found += _call_method(resolver, function, node)
    return tuple(dict.fromkeys(found)) or NOT_KNOWN


def required(resolver: Resolver, node: Node | None) -> Values:
    """Return the modules that a name may stand for."""
    found: list[Value] = []
    for value in resolver.resolve(node):
        if isinstance(value, Const) and isinstance(value.value, str) and value.value and HOLE not in value.value:
            found.append(names.module(value.value))
        else:
            found.append(UNKNOWN)
    return tuple(dict.fromkeys(found))


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
        return (Ref(owner),)
    if last == "call" and owner in REQUIRES:
        return required(resolver, argument(node, 1))
    if last == "apply" and owner in REQUIRES:
        return _modules(resolver, argument(node, 1))
    return _folded(resolver, name, node)


def _folded(resolver: Resolver, name: str, node: Node) -> Values:
    constants: list[fold.Constant] = []
    for part in arguments(node)[: fold.MAX_ELEMENTS]:
        known = resolver.constants(part)
        if not known:
            return NOT_KNOWN
        constants.append(known[0])
    parts = node.field("arguments")
    if (
        parts is not None
        and parts.children
        and parts.children[-1].type == "spread_element"
        and parts.children[-1].children
    ):
        for value in resolver.constants(parts.children[-1].children[0]):
            if isinstance(value, tuple):
                constants += value
                break
    folded = fold.call(name, constants)
    return NOT_KNOWN if folded is None else (Const(folded),)


def _get_prototype(resolver: Resolver, node: Node) -> Values:
    for value in resolver.resolve(argument(node, 0)):
        if isinstance(value, Own) or (isinstance(value, Ref) and names.is_function(value.name)):
            return (Ref("Function.prototype"),)
        if isinstance(value, Ref):
            return (value,)
    return NOT_KNOWN


def _reflect_get(resolver: Resolver, node: Node) -> Values:
    found: list[Value] = []
    for text in resolver.texts(argument(node, 1)):
        found += resolver.member(resolver.resolve(argument(node, 0)), text)
    return tuple(dict.fromkeys(found)) or NOT_KNOWN


def _descriptor(resolver: Resolver, node: Node) -> Values:
    return tuple(Ref(f"{v.name}.(descriptor)") if isinstance(v, Ref) else v for v in _reflect_get(resolver, node))


def _reflect_apply(resolver: Resolver, node: Node) -> Values:
    if not REQUIRES & set(resolver.refs(argument(node, 0))):
        return NOT_KNOWN
    return _modules(resolver, argument(node, 2))


def _modules(resolver: Resolver, node: Node | None) -> Values:
    """The modules that an array of arguments names."""
    values = resolver.elements(resolver.resolve(node))
    found = [names.module(v.value) for v in values if isinstance(v, Const) and isinstance(v.value, str)]
    return tuple(found) or NOT_KNOWN


def _first_argument(resolver: Resolver, node: Node) -> Values:
    return resolver.resolve(argument(node, 0))


def _proxy(resolver: Resolver, node: Node) -> Values:
    """A proxy gives what it stands for, unless its handler says otherwise."""
    return (*_first_argument(resolver, node), UNKNOWN)


def _descriptors(resolver: Resolver, node: Node) -> Values:
    values = _first_argument(resolver, node)
    return tuple(Ref(f"{v.name}.(descriptors)") if isinstance(v, Ref) else UNKNOWN for v in values)


def _join(resolver: Resolver, node: Node) -> Values:
    texts = [resolver.text_or_hole(part) for part in arguments(node)[:16]]
    path = posixpath.normpath(posixpath.join(*texts)) if texts else "."
    return (Const(path),) if len(path) <= fold.MAX_ELEMENTS else NOT_KNOWN


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
    return tuple(dict.fromkeys(found)) or NOT_KNOWN


def _url(resolver: Resolver, node: Node) -> Values:
    texts = resolver.texts(argument(node, 0))
    base = argument(node, 1)
    if not texts or (base is not None and not texts[0].startswith("/") and "://" not in texts[0]):
        return NOT_KNOWN
    return (Const(texts[0]),)


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
    "Promise.resolve": _first_argument,
    "node:util.promisify": _first_argument,
    "structuredClone": _first_argument,
    "process.cwd": lambda _resolver, _node: (Const(WORKSPACE),),
    "URL": _url,
    **dict.fromkeys(_JOINS, _join),
}


def _call_method(resolver: Resolver, function: Node, node: Node) -> Values:
    """Methods of constants and displays."""
    name = property_name(function.field("property"))
    if function.type == "subscript_expression":
        name = next(iter(resolver.texts(function.field("index"))), None)
    if name is None:
        return NOT_KNOWN
    found: list[Value] = []
    for base in resolver.resolve(function.field("object"))[:8]:
        if isinstance(base, Const):
            found.append(_method_of_constant(resolver, base.value, name, node))
        elif isinstance(base, Items) and name == "join":
            texts = tuple(resolver.text_or_hole(child) for child in base.node.children[: fold.MAX_ELEMENTS])
            separator = next(iter(resolver.texts(argument(node, 0))), ",")
            joined = fold.method(texts, "join", [separator])
            found.append(UNKNOWN if joined is None else Const(joined))
        elif isinstance(base, (Items, Table)) and name in ("at", "find", "pop", "shift", "values", "get"):
            found += resolver.any_element((base,))
        elif isinstance(base, Items) and name in ("filter", "slice", "concat", "reverse", "sort"):
            found.append(base)
    return tuple(dict.fromkeys(found)) or NOT_KNOWN


def _method_of_constant(resolver: Resolver, receiver: fold.Constant, name: str, node: Node) -> Value:
    if name == "map" and isinstance(receiver, tuple):
        return _mapped(resolver, receiver, argument(node, 0))
    constants: list[fold.Constant] = []
    for part in arguments(node)[:8]:
        known = resolver.constants(part)
        if not known:
            return UNKNOWN
        constants.append(known[0])
    folded = fold.method(receiver, name, constants)
    return UNKNOWN if folded is None else Const(folded)


def _mapped(resolver: Resolver, items: tuple[fold.Scalar, ...], callback: Node | None) -> Value:
    """`[111, 115].map(c => String.fromCharCode(c))`, for functions that only call a well-known one on each element."""
    for value in resolver.resolve(callback):
        name: str | None = None
        if isinstance(value, Ref):
            name = value.name
        elif isinstance(value, Own):
            for returned in resolver.index.returns.get(value.node, []):
                if returned.type == "call_expression" and len(arguments(returned)) == 1:
                    name = next(iter(resolver.refs(returned.field("function"))), None)
        if name is not None:
            results = [fold.call(name, [item]) for item in items]
            if all(isinstance(item, (str, int, float)) for item in results):
                return Const(tuple(item for item in results if isinstance(item, (str, int, float))))
    return UNKNOWN
