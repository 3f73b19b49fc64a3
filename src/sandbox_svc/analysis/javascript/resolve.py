"""What a JavaScript expression may stand for: names, members and calls followed through the whole program."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from sandbox_svc.analysis.javascript import callers, calls, displays, fold, invocations, literals, names
from sandbox_svc.analysis.javascript.evaluate import Evaluator
from sandbox_svc.analysis.javascript.scopes import CLASSES, FUNCTIONS, Binding, Key, ProgramIndex, Scope, property_name
from sandbox_svc.analysis.javascript.tree import Node, identifier
from sandbox_svc.analysis.javascript.values import (
    CHANGED,
    NOT_KNOWN,
    UNKNOWN,
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
from sandbox_svc.analysis.possibilities import all_if_few, each_with_each, pairs
from sandbox_svc.analysis.texts import HOLE

MAX_BINDINGS: Final = 64
MAX_DEPTH: Final = 48

_KNOWN_TEXTS: Final = {"__dirname": WORKSPACE, "__filename": f"{WORKSPACE}/main.js"}
_ASYNC_WRAPPERS: Final = frozenset({"parenthesized_expression", "await_expression", "non_null_expression"})


class Resolver:
    """Follows expressions of one program. `steps_left` bounds the work: past it, everything is unknown."""

    def __init__(self, index: ProgramIndex, *, max_steps: int) -> None:
        self.index = index
        self.steps_left = max_steps
        self._memo: dict[Node, Values] = {}
        self._names: dict[tuple[Scope | None, str], Values] = {}
        self._open_names: set[tuple[Scope | None, str]] = set()
        self._elements: dict[Node, Values] = {}
        self._entries: dict[tuple[Node, str], Values] = {}
        self._spreads: dict[tuple[Node, str], Values] = {}
        self._open_functions: set[Node] = set()
        self._evaluated: dict[Node, list[Node]] = {}
        self._invocations: dict[Node, list[invocations.Invocation]] = {}
        self._depth = 0
        self.evaluator = Evaluator(self, max_steps=max_steps)

    def resolve(self, node: Node | None) -> Values:
        """Return what the expression may be."""
        if node is None:
            return NOT_KNOWN
        known = self._memo.get(node)
        if known is not None:
            return known
        handler = self._HANDLERS.get(node.type)
        if handler is None or self._depth >= MAX_DEPTH or self.steps_left <= 0:
            return NOT_KNOWN
        self.steps_left -= 1
        self._depth += 1
        try:
            values = handler(self, node)
        finally:
            self._depth -= 1
        # Long texts cost their length: they are copied and hashed.
        self.steps_left -= sum(len(v.value) >> 6 for v in values if isinstance(v, Const) and isinstance(v.value, str))
        self._memo[node] = values
        return values

    def refs(self, node: Node | None) -> list[str]:
        return [value.name for value in self.resolve(node) if isinstance(value, Ref)]

    def constants(self, node: Node | None) -> list[fold.Constant]:
        return [value.value for value in self.resolve(node) if isinstance(value, Const)]

    def texts(self, node: Node | None) -> list[str]:
        return [value for value in self.constants(node) if isinstance(value, str)]

    def combined(self, nodes: list[Node]) -> list[tuple[str, ...]]:
        """Return rows of texts that expressions may be, a hole where one is not known; each with each, up to a few.

        A row of holes stands for those that are left out.
        """
        found, is_complete = each_with_each(map(self._parts, nodes))
        # Long rows cost their length: they are copied and joined.
        self.steps_left -= len(found) * len(nodes) >> 1
        return found if is_complete else [*found, (HOLE,) * len(nodes)]

    def _parts(self, node: Node) -> list[str]:
        values = self.resolve(node)
        known = [v.value for v in values if isinstance(v, Const) and not isinstance(v.value, tuple)]
        texts = [fold.to_text(value) for value in known]
        return [*texts, HOLE] if len(known) < len(values) else texts

    def invocations(self, call: Node) -> list[invocations.Invocation]:
        """Return what a call comes to, apart from what it says itself: `f.call(x, a)` is `f(a)`."""
        known = self._invocations.get(call)
        if known is None:
            self._invocations[call] = []
            known = self._invocations[call] = invocations.of(self, call)
        return known

    def evaluated(self, call: Node) -> list[Node]:
        """Return what the texts that a call of `eval` is given stand for; each is read once."""
        if call not in self._evaluated:
            self._evaluated[call] = calls.evaluated(self, call)
        return self._evaluated[call]

    # Names

    def _identifier(self, node: Node) -> Values:
        name = identifier(node)
        start = self.index.scopes.get(node, self.index.module)
        scope = start.find(name)
        if scope is None:
            if name in _KNOWN_TEXTS:
                return (Const(_KNOWN_TEXTS[name]),)
            found = names.member("globalThis", name) if len(name) < 60 else NOT_KNOWN
            return unique([*found, *displays.arguments(self, node)]) if name == "arguments" else found
        values = self._bound(scope, name)
        if name in names.GLOBALS and scope is self.index.module and self._may_be_global(scope, name):
            return unique([*values, *names.member("globalThis", name)])
        return values

    @staticmethod
    def _may_be_global(scope: Scope, name: str) -> bool:
        """`var require;` and `require = f` leave the wrapper's parameter in place until they run."""
        return all(binding.kind in ("opaque", "value", "augmented") for binding in scope.bindings[name])

    def _bound(self, scope: Scope, name: str) -> Values:
        key = (scope, name)
        known = self._names.get(key)
        if known is not None:
            return known
        if key in self._open_names:
            return NOT_KNOWN
        self._open_names.add(key)
        values: list[Value] = []
        try:
            bindings = scope.bindings[name]
            for binding in bindings[:MAX_BINDINGS]:
                values += self._binding(binding) if binding.kind != "augmented" else self._augmented(binding, values)
            if len(bindings) > MAX_BINDINGS:
                values.append(UNKNOWN)
            if key in self.index.mutated:
                values += (*map(Const, self.evaluator.history(scope, name)), CHANGED)
        finally:
            self._open_names.discard(key)
        result = self._names[key] = unique(values)
        return result

    def _binding(self, binding: Binding) -> Values:
        if binding.kind == "own" and binding.node is not None:
            return (Own(binding.node),)
        if binding.kind == "module":
            values: Values = (names.module(binding.name),)
        elif binding.kind == "parameter" and binding.node is not None:
            values = self._parameter(binding.node, binding.position)
        elif binding.kind == "value":
            values = self.resolve(binding.node)
        elif binding.kind == "item":
            values = self.elements(self.resolve(binding.node))
        elif binding.kind == "thrown":
            values = unique([*(value for node in self.index.thrown for value in self.resolve(node)), UNKNOWN])
        elif binding.kind == "key":
            values = displays.keys(self, binding.node)
        elif binding.kind == "rest" and binding.node is not None:
            values = displays.rest(self, binding.node, binding.position)
        else:
            return NOT_KNOWN
        for key in binding.path:
            values = self._part(values, key)
        return values

    def _part(self, values: Values, key: Key) -> Values:
        if isinstance(key, str):
            return self.member(values, key)
        if isinstance(key, int):
            return self.element(values, key)
        found: list[Value] = []
        for name in self.keys(key):
            found += self.member(values, name) if name is not None else self.any_element(values)
        return unique(found)

    def _augmented(self, binding: Binding, before: list[Value]) -> Values:
        """`name += more`, `name = name + more`: what came before it in the source, with more; in a loop, anything."""
        node = binding.node
        if node is None or node.operator not in ("+", "+=", "||=", "??=", "&&="):
            return NOT_KNOWN
        more = self.resolve(node.field("right"))
        if node.operator not in ("+", "+="):
            return (*more, UNKNOWN)
        found, _ = pairs(unique(before), more)
        return unique([*(literals.binary_value("+", a, b) for a, b in found), UNKNOWN])

    def _parameter(self, function: Node, position: int) -> Values:
        values: list[Value] = [] if callers.is_closed(self.index, function) else [UNKNOWN]
        for argument in callers.arguments_for(self.index, function, position):
            values += self.resolve(argument)
        for call in (*self._calls_of_result(function), *self._calls_of_method(function)):
            values += self.resolve(callers.argument(call, position))
        for source, is_element in callers.receivers(self.index, function, position):
            found = self.resolve(source)
            values += self.elements(found) if is_element else found
        return unique(values) or NOT_KNOWN

    def _calls_of_result(self, function: Node) -> list[Node]:
        """Return the calls `outer(a)(b)` of a function that another one returns."""
        parent = function.parent
        if parent is None or parent.type not in ("return_statement", "arrow_function", "parenthesized_expression"):
            return []
        found: list[Node] = []
        for call in self.index.calls_of_results:
            values = self.resolve(callers.called(call))
            if len(found) < callers.MAX_CALLERS and any(isinstance(v, Own) and v.node is function for v in values):
                found.append(call)
        return found

    def _calls_of_method(self, function: Node) -> list[Node]:
        """Return the calls of a method that is named as one of a builtin type: only those of objects that are known."""
        key = property_name(function.field("name")) if function.type == "method_definition" else None
        if key not in callers.COMMON_METHODS:
            return []
        found: list[Node] = []
        for call in self.index.calls_by_property.get(key, [])[: callers.MAX_CALLERS]:
            target = callers.called(call)
            owner = self.resolve(target.field("object")) if target is not None else NOT_KNOWN
            if UNKNOWN not in owner and any(isinstance(v, Own) and v.node is function for v in self.resolve(target)):
                found.append(call)
        return found

    # Members

    def _member(self, node: Node) -> Values:
        name = property_name(node.field("property"))
        return self.member(self.resolve(node.field("object")), name) if name is not None else NOT_KNOWN

    def _subscript(self, node: Node) -> Values:
        base = self.resolve(node.field("object"))
        found: list[Value] = []
        for index in self.resolve(node.field("index")):
            if not isinstance(index, Const) or isinstance(index.value, tuple):
                found += self.any_element(base)
            elif isinstance(index.value, str):
                found += self.member(base, index.value)
                found += self.any_element(base) if HOLE in index.value else ()
            else:
                found += self.element(base, index.value)
        return unique(found)

    def member(self, base: Values, name: str) -> Values:
        """Return what property `name` of any of these values may be."""
        found: list[Value] = []
        for value in base:
            if isinstance(value, Ref):
                found += names.member(value.name, name)
            elif isinstance(value, Own):
                found += self._member_of_own(value.node, name)
            elif isinstance(value, Table):
                found += self._entry(value.node, name)
            elif isinstance(value, Items) and value.node.type == displays.MAP:
                found += (*self.element(self.elements((value,)), 1), UNKNOWN)
            elif isinstance(value, Const) and name == "length":
                found += (Const(len(value.value)),) if isinstance(value.value, (str, tuple)) else NOT_KNOWN
            elif isinstance(value, Const) and isinstance(value.value, str) and name in fold.URL_PARTS:
                part = fold.url_part(value.value, name)
                found.append(UNKNOWN if part is None else Const(part))
            else:
                found += self._member_of_any(value, name)
        return unique(found) if found else NOT_KNOWN

    def _member_of_own(self, node: Node, name: str) -> Values:
        if name == "constructor":
            return (Ref("Function"),)
        if name == "__proto__" and node.type not in CLASSES:
            return (Ref("Function.prototype"),)
        if name in ("caller", "arguments") and node.type in FUNCTIONS:
            return (Ref("arguments.callee.caller"),)
        return self._stored(name)

    def _member_of_any(self, value: Value, name: str) -> Values:
        if name == "constructor":
            return (Ref("(value).constructor"),)
        return self._stored(name) if isinstance(value, Unknown) else NOT_KNOWN

    def _entry(self, node: Node, name: str) -> Values:
        """What a property of an object display is: worked out once, for a name may stand for many of them."""
        known = self._entries.get((node, name))
        if known is None:
            known = self._find_entry(node, name)
            if self.steps_left > 0:
                self._entries[node, name] = known
        return known

    def _find_entry(self, node: Node, name: str) -> Values:
        self.steps_left -= 1
        found: list[Value] = []
        for child in all_if_few(node.children, MAX_BINDINGS):
            if child is None:
                found.append(UNKNOWN)
            elif child.type == "pair" and {name, None}.intersection(self.keys(child.field("key"))):
                found += self.resolve(child.field("value"))
            elif child.type == "method_definition" and property_name(child.field("name")) == name:
                found += self._method(child)
            elif child.type == "shorthand_property_identifier" and identifier(child) == name:
                found += self.resolve(child)
            elif child.type == "spread_element" and child.children:
                found += (*self._spread(child.children[0], name), UNKNOWN)
        return unique(found) if found else self._member_of_any(UNKNOWN, name)

    def _spread(self, node: Node, name: str) -> Values:
        """What a property of a spread object is: worked out once, for objects are spread into each other many times."""
        key = (node, name)
        known = self._spreads.get(key)
        if known is None and self._depth < MAX_DEPTH and self.steps_left > 0:
            self._spreads[key] = NOT_KNOWN
            self.steps_left -= 1
            self._depth += 1
            try:
                known = self._spreads[key] = self.member(self.resolve(node), name)
            finally:
                self._depth -= 1
        return known or NOT_KNOWN

    def _method(self, node: Node) -> Values:
        return self.call_own(node) if node.operator == "get" else (Own(node),)

    def keys(self, node: Node | None) -> list[str | None]:
        """Return what a key may be, None among it where it may be anything."""
        known = property_name(node)
        if known is not None or node is None:
            return [known]
        if node.type != "computed_property_name" or not node.children:
            return [None]
        values = [value.value if isinstance(value, Const) else () for value in self.resolve(node.children[0])]
        return [None if isinstance(v, tuple) or HOLE in str(v) else fold.to_text(v) for v in values]

    def _stored(self, name: str) -> Values:
        """What the program itself stores under that property, on whatever object."""
        key = (None, name)
        if name not in self.index.stored or key in self._open_names:
            return NOT_KNOWN
        known = self._names.get(key)
        if known is not None:
            return known
        self._open_names.add(key)
        values: list[Value] = [UNKNOWN]
        for node in self.index.stored[name][:MAX_BINDINGS]:
            values += self._method(node) if node.type == "method_definition" else self.resolve(node)
        self._open_names.discard(key)
        result = self._names[key] = unique(values)
        return result

    def elements(self, values: Values) -> Values:
        """Return what iterating over any of these values may give."""
        found: list[Value] = []
        for value in values:
            if isinstance(value, Items):
                found += self._items(value.node)
            elif isinstance(value, Const) and isinstance(value.value, (str, tuple)):
                items = all_if_few(value.value, MAX_BINDINGS)
                found += [UNKNOWN if item is None else Const(item) for item in items]
            elif isinstance(value, Table):
                found += self._iterated(value.node)
            else:
                found.append(UNKNOWN)
        return unique(found)

    def _iterated(self, table: Node) -> Values:
        """What iterating over an object with an iterator of its own gives."""
        for child in table.children[:MAX_BINDINGS]:
            key = child.field("key") or child.field("name")
            if key is not None and key.type == "computed_property_name" and key.text.endswith("terator]"):
                method = child if child.type == "method_definition" else child.field("value")
                given = [v for v in self.resolve(method) if isinstance(v, Own)] if method is not child else [Own(child)]
                return unique([*(item for v in given for item in self.elements(self.call_own(v.node))), UNKNOWN])
        return NOT_KNOWN

    def _items(self, node: Node) -> Values:
        """What the elements of an array are, those that are spread into it included: worked out once."""
        known = self._elements.get(node)
        if known is None:
            self._elements[node] = NOT_KNOWN
            found: list[Value] = []
            for child in all_if_few(node.children, MAX_BINDINGS):
                if child is None:
                    found.append(UNKNOWN)
                elif child.type == "spread_element" and child.children:
                    found += self.elements(self.resolve(child.children[0]))
                else:
                    found += self.resolve(child)
            known = self._elements[node] = unique(found)
        return known

    def element(self, values: Values, index: float) -> Values:
        """Return what element `index` of any of these values may be."""
        found: list[Value] = []
        for value in values:
            if isinstance(value, Items) and value.node.type != "array":
                found += self.elements((value,))
            elif isinstance(value, Items) and 0 <= index < len(value.node.children):
                found += self.resolve(value.node.children[int(index)])
            elif isinstance(value, Const):
                part = fold.element(value.value, index)
                found.append(UNKNOWN if part is None else Const(part))
            else:
                found.append(UNKNOWN)
        return unique(found)

    def any_element(self, values: Values) -> Values:
        """Return what some element, under a key that is not known, may be."""
        found: list[Value] = [UNKNOWN]
        for value in values:
            if isinstance(value, Items) and value.node.type == displays.MAP:
                found += self.elements((Items(displays.held(value.node, 1)),))
            elif isinstance(value, Items):
                found += self.elements((value,))
            elif isinstance(value, Table):
                for child in value.node.children[:MAX_BINDINGS]:
                    if child.type == "pair":
                        found += self.resolve(child.field("value"))
            elif isinstance(value, Ref) and (value.name == "globalThis" or value.name.startswith("node:")):
                found.append(Ref(f"{value.name}.{names.ANY}"))
        return unique(found)

    # Calls

    def _call(self, node: Node) -> Values:
        return calls.result(self, node)

    def call_own(self, function: Node) -> Values:
        """Return what a function of the program returns."""
        if function.type in CLASSES or function in self._open_functions:
            return NOT_KNOWN
        if function.type.startswith("generator") or function in self.index.yields:
            return (Items(displays.array(self.index.yields.get(function, []), function, kind=displays.UNORDERED)),)
        self._open_functions.add(function)
        try:
            values: list[Value] = []
            for returned in all_if_few(self.index.returns.get(function, []), MAX_BINDINGS):
                values += self.resolve(returned)
            return unique(values) if values else NOT_KNOWN
        finally:
            self._open_functions.discard(function)

    # Literals

    def _object(self, node: Node) -> Values:
        return (Table(node),)

    def _own(self, node: Node) -> Values:
        return (Own(node),)

    def _either(self, node: Node) -> Values:
        return unique([*self.resolve(node.field("consequence")), *self.resolve(node.field("alternative"))])

    def _last(self, node: Node) -> Values:
        """`(a, b)` is `b`, `(a)` is `a`, `await a` is `a`."""
        return self.resolve(node.children[-1]) if node.children else NOT_KNOWN

    def _assigned(self, node: Node) -> Values:
        return self.resolve(node.field("right"))

    def _this(self, node: Node) -> Values:
        return (Ref("globalThis"), UNKNOWN) if callers.is_plain_this(self.index, node) else NOT_KNOWN

    def _meta(self, node: Node) -> Values:
        return (Ref("import.meta"),) if node.text.startswith("import") else NOT_KNOWN

    _HANDLERS: ClassVar[dict[str, Callable[..., Values]]] = {
        "identifier": _identifier,
        "shorthand_property_identifier": _identifier,
        "member_expression": _member,
        "subscript_expression": _subscript,
        "call_expression": _call,
        "new_expression": _call,
        "string": literals.string,
        "number": literals.number,
        "template_string": literals.template,
        "binary_expression": literals.binary,
        "unary_expression": literals.unary,
        "array": literals.array,
        "object": _object,
        "ternary_expression": _either,
        "sequence_expression": _last,
        "assignment_expression": _assigned,
        "this": _this,
        "meta_property": _meta,
        **dict.fromkeys(_ASYNC_WRAPPERS, _last),
        **dict.fromkeys(FUNCTIONS | CLASSES, _own),
    }
