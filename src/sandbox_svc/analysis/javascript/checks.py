"""Judging a JavaScript program: every name, member, call and import against the rules."""

from __future__ import annotations

from typing import Final, Protocol

from sandbox_svc.analysis.findings import Finding
from sandbox_svc.analysis.javascript import callers, calls, carriers, functions, names, type_uses
from sandbox_svc.analysis.javascript import rules as ids
from sandbox_svc.analysis.javascript.data_checks import DataJudge
from sandbox_svc.analysis.javascript.resolve import Resolver
from sandbox_svc.analysis.javascript.scopes import FUNCTIONS, ProgramIndex, property_name
from sandbox_svc.analysis.javascript.tree import Node, identifier, literal
from sandbox_svc.analysis.javascript.values import UNKNOWN, Bound, Const, Own, Ref, Table, Unknown
from sandbox_svc.analysis.report import Reporter
from sandbox_svc.analysis.rules import RuleBook
from sandbox_svc.analysis.texts import HOLE, could_be


class Embedded(Protocol):
    """Judges texts that are run: as an expression under the strict rules, or as a program under those of its source."""

    def __call__(self, text: str, *, as_program: bool = False) -> bool: ...


_TAKING_ALL: Final = frozenset({"Object.values", "Object.entries", "Object.getOwnPropertyDescriptors"})
_LOADER_OBJECTS: Final = frozenset({"process", "module", "node:module"})
_CALLED_OBJECTS: Final = frozenset({"globalThis", "node:module"})
_SETTING: Final = frozenset({"Object.defineProperty", "Reflect.defineProperty", "Reflect.set", "Object.assign"})
_SET_ID_BITS: Final = 0o6000
_MAX_SPREADS: Final = 4
_MAX_KEYS: Final = 128


class Judge:
    """Judges one program; `run` returns the findings."""

    def __init__(
        self,
        index: ProgramIndex,
        resolver: Resolver,
        book: RuleBook,
        reporter: Reporter,
        starts: list[int],
        is_harmless: Embedded,
        *,
        is_embedded: bool = False,
    ) -> None:
        self._index = index
        self._resolver = resolver
        self._book = book
        self._reporter = reporter
        self._line_starts = starts
        self._is_harmless = is_harmless
        self._is_embedded = is_embedded
        self._data = DataJudge(index, resolver, self._add)

    def run(self) -> tuple[Finding, ...]:
        # Children before parents: what they resolve to is then known, and resolving never goes deep.
        for node in reversed(self._index.interesting):
            match node.type:
                case "identifier" | "shorthand_property_identifier":
                    self._reference(node)
                    if node.type == "shorthand_property_identifier":
                        self._data.held(identifier(node), node, node)
                case "member_expression":
                    self._attribute_name(node, property_name(node.field("property")))
                    self._reference(node)
                case "subscript_expression":
                    for text in self._resolver.texts(node.field("index")):
                        self._attribute_name(node, text)
                    self._reference(node)
                    self._computed(node)
                case "call_expression" | "new_expression":
                    self._reference(node)
                    self._call(node)
                case "import_statement" | "export_statement":
                    self._import(node)
                case "object_pattern":
                    self._pattern(node)
                case "pair":
                    self._data.held(property_name(node.field("key")), node.field("value"), node)
                case "assignment_expression":
                    left = node.field("left")
                    if left is not None and left.type == "member_expression":
                        self._data.held(property_name(left.field("property")), node.field("right"), node)
                case "with_statement":
                    for owner in self._resolver.refs(node.field("object")):
                        if owner in _LOADER_OBJECTS:
                            self._add(ids.DYNAMIC_ATTRIBUTE, node, f"a property of {owner}")
        reached = carriers.reached(self._index, self._resolver, self._book, is_embedded=self._is_embedded)
        for node, name, is_module in reached:
            if name == "Function":
                self._add(ids.FUNCTION, node, self._shown(node))
            for rule in self._book.by_module(names.module(name).name) if is_module else self._book.by_name(name):
                self._add(rule.id, node, name)
        return self._reporter.findings()

    def _add(self, rule_id: str, node: Node, name: str) -> None:
        line = self._line_of(node.start)
        self._reporter.add_at(rule_id, line, node.start - self._line_starts[line - 1], name)

    def _line_of(self, offset: int) -> int:
        low, high = 0, len(self._line_starts)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._line_starts[middle] <= offset else (low, middle)
        return low + 1

    # Names

    def _reference(self, node: Node) -> None:
        for value in self._resolver.resolve(node):
            if isinstance(value, Ref):
                self._by_name(node, value.name)

    def _by_name(self, node: Node, name: str) -> None:
        if name == "Function":
            # Of a value that may be a function and may be anything, `constructor` is no offence until it is called.
            if type_uses.is_type_use(self._resolver, node) or not self._is_certain(node):
                return
            if node.type not in ("call_expression", "new_expression"):
                self._add(ids.FUNCTION, node, self._shown(node))
        if name in calls.REQUIRES and not self._is_callee_or_owner(node) and self._is_handed_on(node):
            self._add(ids.DYNAMIC_IMPORT, node, name)
        for rule in self._book.by_name(name):
            if rule.level == "strict" or not self._is_excused(name, node):
                self._add(rule.id, node, name)

    def _is_certain(self, node: Node | None) -> bool:
        """Tell whether the node, which may be `Function`, can be no constructor of something else."""
        values = self._resolver.resolve(node)
        return UNKNOWN not in values and Ref("(value).constructor") not in values

    @staticmethod
    def _shown(node: Node) -> str:
        return node.text if node.end - node.start <= 60 and "\n" not in node.text else "this"

    def _is_excused(self, name: str, node: Node) -> bool:
        parent = node.parent
        if name in ("eval", "globalThis.eval"):
            if parent is not None and parent.type in ("unary_expression", "binary_expression"):
                return True
            if parent is not None and parent.type == "member_expression":
                return property_name(parent.field("property")) in type_uses.PLAIN_MEMBERS
            if parent is not None and parent.type == "call_expression" and parent.field("function") is node:
                texts = self._resolver.resolve(callers.argument(parent, 0))
                return not any(map(self._is_objectionable, self._resolver.evaluated(parent))) and all(
                    isinstance(text, Const)
                    and isinstance(text.value, str)
                    and HOLE not in text.value
                    and self._is_harmless(text.value)
                    for text in texts
                )
            return False
        if name == "process.kill" and parent is not None and parent.type == "call_expression":
            return "process.pid" in self._resolver.refs(callers.argument(parent, 0))
        return name == "node:module" and self._is_owner_of_more(node)

    def _is_objectionable(self, expression: Node) -> bool:
        """Tell whether a text given to `eval` does, with the program's own names, what a rule is about."""
        has_function = any(node.type in FUNCTIONS for node in expression.walk())
        return any(
            (has_function and name in carriers.POWERS and not self._is_owner_of_more(node))
            or name == "Function"
            or self._book.by_name(name)
            or self._book.by_call(name)
            or self._book.by_module(name)
            for node in expression.walk()
            for name in self._resolver.refs(node)
        )

    @staticmethod
    def _is_owner_of_more(node: Node) -> bool:
        """`require('module').builtinModules`: what is taken from the module decides."""
        parent = node.parent
        if parent is None:
            return False
        if parent.type in ("member_expression", "subscript_expression"):
            return parent.field("object") is node
        return parent.type in ("variable_declarator", "await_expression", "parenthesized_expression")

    @staticmethod
    def _is_callee_or_owner(node: Node) -> bool:
        parent = node.parent
        return parent is not None and (
            parent.field("function") is node or parent.field("object") is node or parent.field("constructor") is node
        )

    def _is_handed_on(self, node: Node) -> bool:
        """It is thrown, yielded, or an argument of a function that is not the program's own."""
        parent = node.parent
        if parent is not None and parent.type in ("throw_statement", "yield_expression"):
            return True
        if parent is None or parent.type != "arguments" or parent.parent is None:
            return False
        function = parent.parent.field("function")
        return not any(isinstance(value, Own) for value in self._resolver.resolve(function))

    def _attribute_name(self, node: Node, name: str | None) -> None:
        rule = self._book.attributes.get(name) if name is not None else None
        if rule is not None and name is not None:
            self._add(rule.id, node, name)

    # Members under computed names

    def _computed(self, node: Node) -> None:
        parent = node.parent
        is_called = parent is not None and parent.type == "call_expression" and parent.field("function") is node
        for owner in self._resolver.refs(node.field("object")):
            is_judged = owner in _LOADER_OBJECTS or (is_called and owner in _CALLED_OBJECTS)
            if is_judged and self._is_picked(owner, node.field("index")):
                self._add(ids.DYNAMIC_ATTRIBUTE, node, f"a property of {owner.removeprefix('node:')}")

    def _is_picked(self, owner: str, key: Node | None) -> bool:
        """Tell whether what an expression names, of something that can do harm, is chosen at run time."""
        prefix = "" if owner == "globalThis" else f"{owner}."
        return any(
            isinstance(value, Unknown)
            or (
                isinstance(value, Const)
                and isinstance(value.value, str)
                and HOLE in value.value
                and (
                    self._book.could_forbid(prefix + value.value)
                    or any(could_be(prefix + value.value, name) for name in (*calls.REQUIRES, "eval", "Function"))
                )
            )
            for value in self._resolver.resolve(key)
        )

    def _pattern(self, node: Node) -> None:
        """`const { binding } = process`: names that destructuring takes out."""
        parent = node.parent
        if parent is None or parent.field("name") is not node:
            return
        for child in node.children:
            keys = self._resolver.keys(child.field("key")) if child.type == "pair_pattern" else [identifier(child)]
            for key in keys:
                self._taken_out(child, parent.field("value"), key)

    def _taken_out(self, node: Node, owner: Node | None, key: str | None) -> None:
        if key is None:
            for name in _LOADER_OBJECTS.intersection(self._resolver.refs(owner)):
                self._add(ids.DYNAMIC_ATTRIBUTE, node, f"a property of {name.removeprefix('node:')}")
            return
        self._attribute_name(node, key)
        for value in self._resolver.member(self._resolver.resolve(owner), key):
            if isinstance(value, Ref) and value.name != "Function":
                self._by_name(node, value.name)

    # Modules

    def _import(self, node: Node) -> None:
        source = node.field("source")
        if source is not None and source.type == "string":
            self._module(source, literal(source))

    def _module(self, node: Node, name: str) -> None:
        found = names.module(name)
        for rule in self._book.by_module(found.name):
            self._add(rule.id, node, name)
        if name.endswith(".node"):
            self._add(ids.NATIVE, node, name)
        elif name.startswith("data:"):
            self._add(ids.DYNAMIC_CODE, node, "import of a data: address")
        elif name.startswith(("/", "file:", "../", "./")):
            self._data.path(name, "read", node)

    # Calls

    def _call(self, node: Node) -> None:
        function = node.field("function") or node.field("constructor")
        if function is None:
            return
        if function.type == "import":
            self._required("import", node)
            return
        for value in self._resolver.resolve(function):
            name = value.name if isinstance(value, Ref) and not isinstance(value, Bound) else None
            if name is None:
                continue
            self._call_of(name, node)
            for rule in self._book.by_call(name):
                if not self._is_excused(name, function):
                    self._add(rule.id, node, name)
            if name in ("eval", "globalThis.eval") and not self._is_excused(name, function):
                # `(globalThis.eval || other)(text)`
                self._add(ids.DYNAMIC_CODE, node, name)
            if name == names.ANY_GLOBAL and node.type == "call_expression":
                self._add(ids.DYNAMIC_ATTRIBUTE, node, "a property of globalThis")
            if name.endswith((".call", ".apply")) and name.rpartition(".")[0] in ("Function", "eval"):
                self._add(ids.FUNCTION, node, name)
        self._constructed(function, node)
        for invocation in self._resolver.invocations(node):
            if isinstance(invocation.function, Ref):
                self._invoked(invocation.function.name, invocation.node)

    def _invoked(self, name: str, node: Node) -> None:
        """`fs.readFileSync.call(fs, path)`, `[path].map(fs.readFileSync)`: called in another way than by its name."""
        if name == "Function":
            if self._is_certain(callers.called(node)):
                self._add(ids.FUNCTION, node, self._shown(node))
            return
        self._call_of(name, node)
        for rule in self._book.by_call(name):
            if name != "process.kill" or "process.pid" not in self._resolver.refs(callers.argument(node, 0)):
                self._add(rule.id, node, name)

    def _call_of(self, name: str, node: Node) -> None:
        if name in calls.REQUIRES:
            self._required(name, node)
        elif name == "Function":
            callee = node.field("function") or node.field("constructor")
            given = node.field("arguments")
            is_empty = given is not None and given.type == "arguments" and not given.children
            if "(value).constructor" in self._resolver.refs(callee) or (is_empty and not self._is_certain(callee)):
                # `new value.constructor(...)` copies a value of any kind: see `_constructed`. No text, no code.
                return
            self._add(ids.FUNCTION, node, self._shown(node.field("function") or node.field("constructor") or node))
        elif name in functions.TIMERS:
            self._timer(name, node)
        elif name in ("node:worker_threads.Worker", "Worker"):
            self._worker(node)
        elif name in ("node:fs.chmodSync", "node:fs.chmod", "node:fs/promises.chmod"):
            for mode in self._resolver.constants(callers.argument(node, 1)):
                if isinstance(mode, (int, float)) and int(mode) & _SET_ID_BITS:
                    self._add(ids.PROCESS_CONTROL, node, "chmod with a set-uid mode")
        elif name in ("Reflect.get", "Object.getOwnPropertyDescriptor", "Reflect.getOwnPropertyDescriptor"):
            self._reflected(node)
        elif name in _SETTING:
            self._set(node)
        elif name in _TAKING_ALL:
            for owner in self._resolver.refs(callers.argument(node, 0)):
                if owner in _LOADER_OBJECTS or owner == "globalThis":
                    self._add(ids.DYNAMIC_ATTRIBUTE, node, f"everything in {owner}")
        elif name == "Reflect.apply":
            for target in self._resolver.refs(callers.argument(node, 0)):
                if target in calls.REQUIRES:
                    self._applied(target, node)
        elif name.endswith(".apply") and name.removesuffix(".apply") in calls.REQUIRES:
            self._applied(name.removesuffix(".apply"), node)
        elif name.endswith(".call") and name.removesuffix(".call") in calls.REQUIRES:
            self._required_name(name, callers.argument(node, 1), node)
        for use in functions.path_uses(name):
            self._data.path_use(use, node)
        if functions.is_network(name):
            self._data.network(name, node)

    def _required(self, name: str, node: Node) -> None:
        self._required_name(name, callers.argument(node, 0), node)
        if callers.is_spread(node):
            self._add(ids.DYNAMIC_IMPORT, node, name)

    def _required_name(self, name: str, argument: Node | None, node: Node) -> None:
        if argument is None:
            return
        for value in self._resolver.resolve(argument):
            if isinstance(value, Const) and isinstance(value.value, str) and not self._could_be_module(value.value):
                self._module(node, value.value)
            else:
                self._add(ids.DYNAMIC_IMPORT, node, name)

    def _could_be_module(self, text: str) -> bool:
        """Tell whether a name that is known in part may be that of a module which can do harm."""
        if HOLE not in text:
            return False
        plain = text.removeprefix("node:")
        return plain.startswith(HOLE) or any(self._book.could_forbid(f"{kind}:{plain}") for kind in ("node", "npm"))

    def _applied(self, name: str, node: Node) -> None:
        """`require.apply(this, [name])`: the modules stand in what the call gives."""
        modules = self._resolver.refs(node)
        for module in modules:
            for rule in self._book.by_module(module):
                self._add(rule.id, node, module.removeprefix("node:").removeprefix("npm:"))
        if not modules or UNKNOWN in self._resolver.resolve(node):
            self._add(ids.DYNAMIC_IMPORT, node, name)

    def _timer(self, name: str, node: Node) -> None:
        first = callers.argument(node, 0)
        if first is not None and (self._resolver.texts(first) or first.type in ("string", "template_string")):
            self._add(ids.DYNAMIC_CODE, node, f"{name} with a text")

    def _worker(self, node: Node) -> None:
        for text in self._resolver.texts(callers.argument(node, 0)):
            if text.startswith("data:"):
                self._add(ids.DYNAMIC_CODE, node, "a Worker of a data: address")
        if "URL.createObjectURL" in self._resolver.refs(_callee(callers.argument(node, 0))):
            self._add(ids.DYNAMIC_CODE, node, "a Worker of a blob")
        options = callers.argument(node, 1)
        if options is None or not self._asks_for_eval(options):
            return
        texts = self._resolver.resolve(callers.argument(node, 0))
        if not all(
            isinstance(text, Const)
            and isinstance(text.value, str)
            and HOLE not in text.value
            and self._is_harmless(text.value, as_program=True)
            for text in texts
        ):
            self._add(ids.DYNAMIC_CODE, node, "a Worker of a text")

    def _asks_for_eval(self, options: Node, depth: int = 0) -> bool:
        """`{ eval: true }` in any spelling: spread into another object, or set on it later."""
        for table in self._resolver.resolve(options):
            for child in table.node.children if isinstance(table, Table) else ():
                value = child.field("value")
                if "eval" in self._resolver.keys(child.field("key")) and value is not None and value.type != "false":
                    return True
                inner = child.children[:1] if child.type == "spread_element" and depth < _MAX_SPREADS else []
                if any(self._asks_for_eval(part, depth + 1) for part in inner):
                    return True
        is_changed = options.type == "identifier" and identifier(options) in self._index.changed
        return is_changed and any(value.type in ("true", "unary_expression") for value in self._index.stored["eval"])

    def _reflected(self, node: Node) -> None:
        owners = self._resolver.refs(callers.argument(node, 0))
        key = callers.argument(node, 1)
        for text in self._resolver.texts(key):
            self._attribute_name(node, text)
            for value in self._resolver.member(self._resolver.resolve(callers.argument(node, 0)), text):
                if isinstance(value, Ref):
                    self._by_name(node, value.name)
        for owner in owners:
            if owner in _LOADER_OBJECTS and self._is_picked(owner, key):
                self._add(ids.DYNAMIC_ATTRIBUTE, node, f"a property of {owner}")

    def _set(self, node: Node) -> None:
        """`Object.defineProperty(Error, 'prepareStackTrace', ...)`, `Object.assign(Error, { prepareStackTrace })`."""
        owner, rest = callers.argument(node, 0), callers.arguments(node)[1:]
        keys = [text for part in rest[:1] for text in self._resolver.texts(part)]
        for table in (value for part in rest for value in self._resolver.resolve(part) if isinstance(value, Table)):
            keys += filter(
                None,
                map(property_name, (c.field("key") or c.field("name") or c for c in table.node.children[:_MAX_KEYS])),
            )
        self._resolver.steps_left -= len(keys)
        for key in keys:
            for value in self._resolver.member(self._resolver.resolve(owner), key):
                if isinstance(value, Ref) and value.name != "Function":
                    self._by_name(node, value.name)

    def _constructed(self, function: Node, node: Node) -> None:
        """`x.constructor(code)()`: only functions are called, and only `Function` makes them of texts."""
        inner = function
        while inner.type == "parenthesized_expression" and inner.children:
            inner = inner.children[-1]
        candidates = [inner]
        if inner.type == "identifier":
            scope = self._index.scopes.get(inner, self._index.module).find(identifier(inner))
            bindings = scope.bindings[identifier(inner)] if scope is not None else []
            candidates = [b.node for b in bindings if b.kind == "value" and b.node is not None and not b.path]
        for candidate in candidates:
            if candidate.type not in ("call_expression", "new_expression") or not callers.arguments(candidate):
                continue
            for invocation in self._resolver.invocations(candidate):
                # `Reflect.construct(x.constructor, [code])()`
                if invocation.function == Ref("(value).constructor") and callers.arguments(invocation.node):
                    self._add(ids.FUNCTION, node, self._shown(candidate))
            callee = candidate.field("function") or candidate.field("constructor")
            if callee is not None and "(value).constructor" in self._resolver.refs(callee):
                self._add(ids.FUNCTION, node, self._shown(callee))


def _callee(node: Node | None) -> Node | None:
    return node.field("function") if node is not None else None
