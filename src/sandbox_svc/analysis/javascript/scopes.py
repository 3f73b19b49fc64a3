"""Names of a JavaScript program: which scope binds them, and to what. One pass over the tree, without recursion."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from sandbox_svc.analysis.javascript.tree import Node, identifier, literal

FUNCTIONS: Final = frozenset(
    {
        "function_declaration",
        "generator_function_declaration",
        "function_expression",
        "generator_function",
        "arrow_function",
        "method_definition",
    }
)
CLASSES: Final = frozenset({"class_declaration", "class"})
_BLOCKS: Final = frozenset(
    {"statement_block", "for_statement", "for_in_statement", "switch_body", "class_static_block"}
)
_INTERESTING: Final = frozenset(
    {
        "member_expression",
        "subscript_expression",
        "call_expression",
        "new_expression",
        "import_statement",
        "export_statement",
        "assignment_expression",
        "object_pattern",
        "class_heritage",
        "pair",
        "with_statement",
    }
)

_DECLARING: Final = frozenset(
    {
        "formal_parameters",
        "rest_pattern",
        "array_pattern",
        "object_pattern",
        "pair_pattern",
        "import_clause",
        "import_specifier",
        "namespace_import",
    }
)
_MAX_PATTERN_DEPTH: Final = 12
_MAX_READ: Final = 24
_MAX_HANDED: Final = 4
_MAX_THROWN: Final = 16
_MAX_RESULTS: Final = 256
_MUTATORS: Final = frozenset({"push", "unshift", "pop", "shift", "reverse", "sort", "splice", "fill", "copyWithin"})
_FILLING: Final = frozenset({"push", "unshift", "append", "set", "add"})
_HOLES: Final = re.compile(r"[\[,]\s*,")

Key = str | int | Node
"""A node as a key: `{ [key]: name }`."""
BindingKind = Literal["value", "item", "thrown", "own", "parameter", "rest", "module", "key", "augmented", "opaque"]


class Binding(NamedTuple):
    """One way in which a name gets a value; `path` says where in that value it is."""

    kind: BindingKind
    node: Node | None = None
    path: tuple[Key, ...] = ()
    name: str = ""
    position: int = 0


class Scope:
    """A block or a function."""

    __slots__ = ("bindings", "is_function", "parent")

    def __init__(self, parent: Scope | None, *, is_function: bool) -> None:
        self.parent = parent
        self.is_function = is_function
        self.bindings: dict[str, list[Binding]] = {}

    def bind(self, name: str, binding: Binding) -> None:
        self.bindings.setdefault(name, []).append(binding)

    def find(self, name: str) -> Scope | None:
        scope: Scope | None = self
        while scope is not None and name not in scope.bindings:
            scope = scope.parent
        return scope


def property_name(node: Node | None) -> str | None:
    """Return the name that a key of an object, pattern or class has in the source; None where it is computed."""
    if node is None:
        return None
    if node.type == "string":
        return literal(node)
    if node.type == "computed_property_name":
        inner = node.children[0] if node.children else None
        return literal(inner) if inner is not None and inner.type == "string" else None
    if node.type in (
        "property_identifier",
        "shorthand_property_identifier",
        "identifier",
        "number",
        "private_property_identifier",
    ):
        return identifier(node)
    return None


def is_load(node: Node) -> bool:
    """Tell whether an identifier is read here, not declared or assigned."""
    parent = node.parent
    if parent is None or parent.type in _DECLARING:
        return parent is None
    if parent.type in FUNCTIONS or parent.type in CLASSES or parent.type == "variable_declarator":
        return parent.field("name") is not node and parent.field("parameter") is not node
    if parent.type in ("assignment_pattern", "object_assignment_pattern", "assignment_expression", "for_in_statement"):
        return parent.field("left") is not node
    return not (parent.type == "catch_clause" and parent.field("parameter") is node)


def _adds_to(name: str, right: Node) -> bool:
    """`name += more` (where `right` is the whole of it) or `name = name + more`."""
    if right.type == "augmented_assignment_expression":
        return True
    left = right.field("left") if right.type == "binary_expression" and right.operator == "+" else None
    return left is not None and left.type == "identifier" and identifier(left) == name


def _reads(name: str, right: Node) -> bool:
    """`s = c + s`, `s = f(s)`: what a name holds is made of what it held. Only what stands close by is looked at."""
    for count, node in enumerate(right.walk()):
        if node.type == "identifier" and identifier(node) == name:
            return True
        if count > _MAX_READ:
            break
    return False


class ProgramIndex:
    """Everything that one pass collects. `interesting` holds nodes with parents before their children."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.module = Scope(None, is_function=True)
        self.scopes: dict[Node, Scope] = {}
        self.interesting: list[Node] = []
        self.loads: Counter[str] = Counter()
        self.calls_by_name: dict[str, list[Node]] = defaultdict(list)
        self.calls_by_property: dict[str, list[Node]] = defaultdict(list)
        self.stored: dict[str, list[Node]] = defaultdict(list)
        self.changed: set[str] = set()
        """Names whose properties are assigned to."""
        self.filled: dict[str, list[Node]] = defaultdict(list)
        """Keys and values that are put into an object of that name, under any key or by methods."""
        self.handed: dict[str, list[Node]] = defaultdict(list)
        """Calls that a name is an argument of, and calls of its `call`, `apply` and `bind`."""
        self.mutated: set[tuple[Scope, str]] = set()
        """Names that are changed step by step: `s += c`, `i++`, `list.push(x)`, `list[i] = x`."""
        self.returns: dict[Node, list[Node]] = defaultdict(list)
        self.yields: dict[Node, list[Node]] = defaultdict(list)
        self.thrown: list[Node] = []
        self.calls_of_results: list[Node] = []
        """Calls of what a call gives, at once or by a name: `f(a)(b)`."""
        self._assignments: list[tuple[Node, Node, Scope]] = []
        self._mutations: list[tuple[Node | None, Scope]] = []
        self._merged: list[tuple[str, Node, Scope]] = []
        self._walk()
        # Assignments may precede the declaration that they belong to.
        for left, right, scope in self._assignments:
            self._assign(left, right, scope)
        for name, source, scope in self._merged:
            # `Object.assign(name, source)`: it has what either has.
            owner = scope.find(name)
            if owner is not None:
                owner.bind(name, Binding("value", source))
        for target, scope in self._mutations:
            if target is not None and target.type == "identifier":
                self.mutated.add((scope.find(identifier(target)) or self.module, identifier(target)))

    def _walk(self) -> None:
        stack: list[tuple[Node, Scope, Node | None]] = [
            (node, self.module, None) for node in reversed(self.root.children)
        ]
        while stack:
            node, scope, function = stack.pop()
            kind = node.type
            if kind in ("identifier", "shorthand_property_identifier"):
                if is_load(node):
                    self.loads[identifier(node)] += 1
                    self.interesting.append(node)
            elif kind in _INTERESTING:
                self.interesting.append(node)
            if kind in FUNCTIONS:
                scope = self._function(node, scope)
                function = node
            elif kind in CLASSES:
                scope = self._class(node, scope)
            elif kind in _BLOCKS:
                scope = Scope(scope, is_function=False)
                if kind == "for_in_statement":
                    self._for_in(node, scope)
            elif kind == "variable_declarator":
                self._declarator(node, scope)
            elif kind == "assignment_expression":
                left, right = node.field("left"), node.field("right")
                if left is not None and right is not None:
                    self._assignments.append((left, right, scope))
            elif kind == "augmented_assignment_expression":
                left = node.field("left")
                if left is not None and left.type == "identifier":
                    self._assignments.append((left, node, scope))
                    self._mutations.append((left, scope))
            elif kind == "update_expression":
                self._mutations.append((node.field("argument"), scope))
            elif kind == "catch_clause":
                scope = Scope(scope, is_function=False)
                self._bind_pattern(node.field("parameter"), scope, Binding("thrown"))
            elif kind == "throw_statement" and node.children and len(self.thrown) < _MAX_THROWN:
                self.thrown.append(node.children[0])
            elif kind == "yield_expression" and function is not None and node.children:
                self.yields[function].append(node.children[0])
            elif kind in ("call_expression", "new_expression"):
                self._call(node, scope)
            elif kind == "return_statement" and function is not None and node.children:
                self.returns[function].append(node.children[0])
            elif kind == "import_statement":
                self._import(node)
            elif kind in ("pair", "field_definition"):
                self._stored_pair(node)
            self.scopes[node] = scope
            stack.extend((child, scope, function) for child in reversed(node.children))

    # Definitions

    def _function(self, node: Node, scope: Scope) -> Scope:
        name = node.field("name")
        inner = Scope(scope, is_function=True)
        if name is not None and name.type == "identifier":
            # A declaration is seen around it, the name of an expression only inside.
            (scope if node.type.endswith("_declaration") else inner).bind(identifier(name), Binding("own", node))
        if node.type == "arrow_function":
            body = node.field("body")
            if body is not None and body.type != "statement_block":
                self.returns[node].append(body)
            single = node.field("parameter")
            if single is not None:
                self._bind_pattern(single, inner, Binding("parameter", node, position=0))
        elif node.type == "method_definition":
            method = property_name(name)
            if method is not None:
                self.stored[method].append(node)
        parameters = node.field("parameters")
        if parameters is not None:
            for position, parameter in enumerate(parameters.children):
                self._bind_pattern(parameter, inner, Binding("parameter", node, position=position))
        return inner

    def _class(self, node: Node, scope: Scope) -> Scope:
        name = node.field("name")
        inner = Scope(scope, is_function=False)
        if name is not None:
            (scope if node.type == "class_declaration" else inner).bind(identifier(name), Binding("own", node))
        return inner

    # Bindings

    def _bind_pattern(self, target: Node | None, scope: Scope, binding: Binding) -> None:
        """Bind every name of a destructuring pattern to its place in the value."""
        todo = [(target, binding, 0)]
        while todo:
            node, what, depth = todo.pop()
            if node is None or depth > _MAX_PATTERN_DEPTH:
                continue
            depth += 1
            if node.type in ("identifier", "shorthand_property_identifier_pattern"):
                name = identifier(node)
                if node.type == "shorthand_property_identifier_pattern":
                    what = what._replace(path=(*what.path, name))
                scope.bind(name, what)
            elif node.type in ("assignment_pattern", "object_assignment_pattern"):
                left, default = node.field("left"), node.field("right")
                todo.append((left, what, depth))
                if left is not None and left.type in ("identifier", "shorthand_property_identifier_pattern"):
                    scope.bind(identifier(left), Binding("value", default))
                elif depth == 1:
                    # Only outermost: each level would double the work of those inside it.
                    todo.append((left, Binding("value", default), depth))
            elif node.type == "object_pattern":
                todo.extend((child, inner, depth) for child, inner in self._properties(node, what))
            elif node.type == "array_pattern":
                # With holes in it, positions cannot be told: the tree has no node for a hole.
                has_holes = _HOLES.search(node.text) is not None
                for i, child in enumerate(node.children):
                    opened = Binding("opaque") if has_holes else what._replace(path=(*what.path, i))
                    todo.append((child, opened, depth))
            elif node.type == "rest_pattern":
                is_list = what.kind == "parameter" and not what.path
                opened = what._replace(kind="rest") if is_list else Binding("opaque")
                todo.extend((inner, opened, depth) for inner in node.children)

    @staticmethod
    def _properties(pattern: Node, what: Binding) -> Iterator[tuple[Node | None, Binding]]:
        for child in pattern.children:
            if child.type == "pair_pattern":
                key: Key | None = property_name(child.field("key")) or child.field("key")
                opened = what._replace(path=(*what.path, key)) if key is not None else Binding("opaque")
                yield child.field("value"), opened
            elif child.type == "rest_pattern":
                yield from ((inner, what) for inner in child.children)
            else:
                yield child, what

    def _declarator(self, node: Node, scope: Scope) -> None:
        is_var = node.parent is not None and node.parent.type == "variable_declaration"
        while is_var and not scope.is_function and scope.parent is not None:
            scope = scope.parent
        value = node.field("value")
        # Without a value, a later assignment gives it one.
        self._bind_pattern(
            node.field("name"), scope, Binding("value", value) if value is not None else Binding("opaque")
        )

    def _for_in(self, node: Node, scope: Scope) -> None:
        right = node.field("right")
        binding = Binding("item" if node.operator == "of" else "key", right) if right is not None else Binding("opaque")
        if node.field("left") is not None:
            self._bind_pattern(node.field("left"), scope, binding)

    def _assign(self, left: Node, right: Node, scope: Scope) -> None:
        owner = left.field("object")
        if owner is not None and owner.type == "identifier":
            self.changed.add(identifier(owner))
            self._mutations.append((owner, scope))
        if left.type == "member_expression":
            name = property_name(left.field("property"))
            if name is not None:
                self.stored[name].append(right)
            if owner is not None and owner.type == "identifier":
                self.filled[identifier(owner)].append(right)
        elif left.type == "subscript_expression":
            index = left.field("index")
            if index is not None and index.type == "string":
                self.stored[literal(index)].append(right)
            elif index is not None and owner is not None and owner.type == "identifier":
                self.filled[identifier(owner)] += (index, right)
        elif left.type == "identifier":
            name = identifier(left)
            # An undeclared name becomes a global; what it meant before is kept as well (see Resolver).
            what = Binding("augmented" if _adds_to(name, right) else "value", right)
            if _reads(name, right):
                self._mutations.append((left, scope))
            (scope.find(name) or self.module).bind(name, what)
        elif left.type in ("object_pattern", "array_pattern"):
            # `[a, b] = [b, a]`
            self._mutations += [(part, scope) for part in left.children]
            self._bind_pattern(left, scope, Binding("value", right))

    def _import(self, node: Node) -> None:
        source = node.field("source")
        clause = next((child for child in node.children if child.type == "import_clause"), None)
        if source is None or clause is None:
            return
        module = literal(source)
        for child in clause.children:
            if child.type == "identifier":
                self.module.bind(identifier(child), Binding("module", node, ("default",), name=module))
            elif child.type == "namespace_import":
                for name in child.children:
                    self.module.bind(identifier(name), Binding("module", node, (), name=module))
            elif child.type == "named_imports":
                for specifier in child.children:
                    imported = specifier.field("name")
                    local = specifier.field("alias") or imported
                    key = "default" if imported is None else property_name(imported)
                    if local is not None and key is not None:
                        self.module.bind(identifier(local), Binding("module", node, (key,), name=module))

    def _call(self, node: Node, scope: Scope) -> None:
        function = node.field("function") or node.field("constructor")
        if function is None:
            return
        if function.type in ("identifier", "call_expression") and len(self.calls_of_results) < _MAX_RESULTS:
            self.calls_of_results.append(node)
        if function.type == "identifier":
            self.calls_by_name[identifier(function)].append(node)
        elif function.type == "member_expression":
            name = property_name(function.field("property"))
            if name is not None:
                self.calls_by_property[name].append(node)
            owner = function.field("object")
            if owner is not None and owner.type == "identifier":
                if name in _MUTATORS:
                    self._mutations.append((owner, scope))
                elif name in ("call", "apply", "bind"):
                    self.handed[identifier(owner)].append(node)
            given = node.field("arguments")
            if name in _FILLING and owner is not None and owner.type == "identifier" and given is not None:
                self.filled[identifier(owner)] += given.children[:_MAX_HANDED]
            if name in ("assign", "defineProperty") and given is not None and given.children:
                target = given.children[0]
                self.changed.add(identifier(target) if target.type == "identifier" else "")
                if name == "assign" and target.type == "identifier":
                    self._merged += [(identifier(target), source, scope) for source in given.children[1:_MAX_HANDED]]

        arguments = node.field("arguments")
        for argument in arguments.children[:_MAX_HANDED] if arguments is not None else ():
            if argument.type == "identifier":
                self.handed[identifier(argument)].append(node)

    def _stored_pair(self, node: Node) -> None:
        key = property_name(node.field("key") or node.field("property"))
        value = node.field("value")
        if key is not None and value is not None:
            self.stored[key].append(value)
