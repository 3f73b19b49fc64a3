"""What well-known calls of JavaScript return."""

from __future__ import annotations

import itertools
import json
import posixpath
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

from sandbox_svc.analysis.javascript import callers, containers, displays, fold, names, tree
from sandbox_svc.analysis.javascript.callers import argument, arguments
from sandbox_svc.analysis.javascript.scopes import property_name
from sandbox_svc.analysis.javascript.tree import Node
from sandbox_svc.analysis.javascript.values import (
    NOT_KNOWN,
    UNKNOWN,
    Bound,
    Const,
    Items,
    Own,
    Ref,
    Table,
    Unknown,
    Value,
    Values,
    unique,
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

_MAX_COMBINED: Final = 8
_MAX_RETURNED: Final = 8
_FROM_CALLBACKS: Final = callers.REDUCTIONS | {"map", "flatMap", "then"}
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
            found += _call_method(resolver, function, node)
    for invocation in resolver.invocations(node):
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
        given = tuple(arguments(node)[1:])
        return (Bound(owner, given) if given else Ref(owner),)
    if last == "call" and owner in REQUIRES:
        return required(resolver, argument(node, 1))
    if last == "apply" and owner in REQUIRES:
        return _modules(resolver, argument(node, 1))
    return _folded(resolver, name, node)


def _folded(resolver: Resolver, name: str, node: Node) -> Values:
    parts = node.field("arguments")
    given = arguments(node)[: fold.MAX_ELEMENTS]
    has_spread = parts is not None and len(given) < len(parts.children)
    if not has_spread:
        return _each_of(resolver, given, lambda constants: fold.call(name, constants))
    constants: list[fold.Constant] = []
    for part in given:
        known = resolver.constants(part)
        if not known:
            return NOT_KNOWN
        constants.append(known[0])
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


def _each_of(
    resolver: Resolver, nodes: list[Node], apply: Callable[[list[fold.Constant]], fold.Constant | None]
) -> Values:
    """Apply a function to the constants that expressions may be, each with each; what may be more is unknown too."""
    choices: list[list[fold.Constant]] = []
    is_certain, count = True, 1
    for node in nodes:
        values = resolver.resolve(node)
        known = [value.value for value in values if isinstance(value, Const)][: max(_MAX_COMBINED // count, 1)]
        if not known:
            return NOT_KNOWN
        is_certain = is_certain and len(known) == len(values)
        count *= len(known)
        choices.append(known)
    results = [apply(list(combination)) for combination in itertools.product(*choices)]
    found: list[Value] = [UNKNOWN if result is None else Const(result) for result in results]
    return unique(found if is_certain else [*found, UNKNOWN])


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
    found: list[Value] = []
    if callers.has_spread(node):
        # Left to the evaluator: it puts all of them in their places.
        return NOT_KNOWN
    for texts in resolver.combined(arguments(node)[:16]):
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
    return tuple(dict.fromkeys(found)) or NOT_KNOWN


def _url(resolver: Resolver, node: Node) -> Values:
    base = argument(node, 1)
    if base is None:
        return tuple(map(Const, resolver.texts(argument(node, 0)))) or NOT_KNOWN
    try:
        joined = [
            urljoin(base_text, text)
            for base_text in resolver.texts(base)[:_MAX_COMBINED]
            for text in (resolver.texts(argument(node, 0)) or [HOLE])[:_MAX_COMBINED]
        ]
    except ValueError:
        return NOT_KNOWN
    # Without a base that is known, a path of the system, or a whole address, is one all the same.
    texts = joined or [text for text in resolver.texts(argument(node, 0)) if text.startswith("/") or "://" in text]
    return unique(map(Const, texts)) or NOT_KNOWN


def _parsed(resolver: Resolver, node: Node) -> Values:
    """`JSON.parse` of a text that stands in the program: what it says, as if it stood there as code."""
    found: list[Value] = []
    for text in resolver.texts(argument(node, 0))[:_MAX_COMBINED]:
        source = f"({text})".encode("utf-8", "replace")
        if text.lstrip()[:1] not in ("{", "[") or len(source) > MAX_EVALUATED or resolver.steps_left <= 0:
            return _folded(resolver, "JSON.parse", node)
        resolver.steps_left -= _EVALUATED_STEPS
        try:
            json.loads(text)
            root = tree.parse(source, max_seconds=_EVALUATED_SECONDS, max_nodes=MAX_EVALUATED)
        except (ValueError, RecursionError, tree.TooSlow, tree.TooManyNodes):
            continue
        found += resolver.resolve(root.children[0].children[0]) if root.children and root.children[0].children else ()
    return unique(found) or NOT_KNOWN


def _all_arguments(resolver: Resolver, node: Node) -> Values:
    """`Object.assign(a, b)` has what each of them has."""
    return unique(value for part in arguments(node)[:_MAX_COMBINED] for value in resolver.resolve(part)) or NOT_KNOWN


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


def _call_method(resolver: Resolver, function: Node, node: Node) -> Values:
    """Methods of constants and displays."""
    name = property_name(function.field("property"))
    if function.type == "subscript_expression":
        name = next(iter(resolver.texts(function.field("index"))), None)
    if name is None:
        return NOT_KNOWN
    bases = resolver.resolve(function.field("object"))
    found: list[Value] = [base for base in bases if isinstance(base, Unknown)]
    if len(bases) > _MAX_COMBINED:
        found.append(UNKNOWN)
    for base in bases[:_MAX_COMBINED]:
        if isinstance(base, Const):
            found += _method_of_constant(resolver, base.value, name, node)
        elif isinstance(base, Items) and name == "join":
            if base.node.type == displays.UNORDERED or any(c.type == "spread_element" for c in base.node.children):
                found.append(UNKNOWN)
                continue
            separator = next(iter(resolver.texts(argument(node, 0))), ",")
            for texts in resolver.combined(base.node.children[: fold.MAX_ELEMENTS]):
                joined = fold.method(tuple(texts), "join", [separator])
                found.append(UNKNOWN if joined is None else Const(joined))
        elif isinstance(base, Items) and base.node.type == displays.MAP and name in ("get", "values"):
            values = resolver.element(resolver.elements((base,)), 1)
            found += (UNKNOWN, *values) if name == "get" else (Items(displays.held(base.node, 1)),)
        elif isinstance(base, Items) and name in ("values", "keys", "entries"):
            found.append(Items(displays.held(base.node, 0)) if base.node.type == displays.MAP else base)
        elif isinstance(base, (Items, Table)) and name in ("at", "find", "pop", "shift", "values", "get"):
            found += resolver.any_element((base,))
        elif isinstance(base, Items) and name in ("filter", "slice", "concat", "reverse", "sort"):
            found.append(Items(displays.array(base.node.children, node, kind=displays.UNORDERED)))
    if name in ("get", "at", "pop", "shift", "find"):
        found += containers.put_in(resolver, function.field("object"))
    found += _of_callback(resolver, name, node)
    return unique(found) or NOT_KNOWN


def _of_callback(resolver: Resolver, name: str, node: Node) -> list[Value]:
    """What a method makes of what its callback, a function of the program, returns."""
    if name not in _FROM_CALLBACKS:
        return []
    found: list[Value] = []
    for value in resolver.resolve(argument(node, 0)):
        if not isinstance(value, Own):
            continue
        if name in ("map", "flatMap"):
            returned = resolver.index.returns.get(value.node, [])
            found += (
                (Items(displays.array(returned[:_MAX_RETURNED], node, kind=displays.UNORDERED)),) if returned else ()
            )
        else:
            found += resolver.call_own(value.node)
    if name in callers.REDUCTIONS and found:
        found += resolver.resolve(argument(node, 1))
    return [*found, UNKNOWN] if found else found


def _method_of_constant(resolver: Resolver, receiver: fold.Constant, name: str, node: Node) -> Values:
    return _each_of(resolver, arguments(node)[:8], lambda constants: fold.method(receiver, name, constants))
