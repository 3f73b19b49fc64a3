"""Working out what the program's own small functions and loops make of constants: decoders of names and paths.

Only what is certain to be pure is followed: constants, arrays and objects that stand in the program, arithmetic,
methods of texts and arrays, functions of the program. Whatever else is met ends the attempt. Every step is counted, for
each attempt and for the whole program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

from sandbox_svc.analysis.javascript import fold, methods, names, statements
from sandbox_svc.analysis.javascript.data import Closure, Data, Environment, Stop, is_true, plain
from sandbox_svc.analysis.javascript.scopes import FUNCTIONS, Binding, Scope, property_name
from sandbox_svc.analysis.javascript.tree import Node, identifier, literal, unescape
from sandbox_svc.analysis.javascript.values import Const, Items, Own, Ref, Table, Value
from sandbox_svc.analysis.texts import HOLE, MAX_TEXT

if TYPE_CHECKING:
    from sandbox_svc.analysis.javascript.resolve import Resolver

MAX_STEPS: Final = 1500
"""Of one attempt: enough for a text of a hundred characters that a loop decodes."""
_MAX_HISTORY: Final = 8
_SHARE: Final = 8
_AT_LEAST: Final = 2 * MAX_STEPS
"""What a program may cost here is apart from what following its names may cost: long loops of honest programs, or
decoys, do not make it `too-complex`. A step takes one or two microseconds."""
_MAX_CLIMB: Final = 200

_Result = TypeVar("_Result")


class Evaluator:
    """Evaluates expressions of one program, within a budget; answers are kept."""

    def __init__(self, resolver: Resolver, *, max_steps: int) -> None:
        self._resolver = resolver
        self._steps_left = max(max_steps // _SHARE, _AT_LEAST)
        self._attempt_left = 0
        self.depth = 0
        self._known: dict[Node, fold.Constant | None] = {}
        self._blocks: dict[Node, dict[str, list[fold.Constant]]] = {}
        self._is_certain = True
        """Turns false when one of several values that a name may have was picked."""
        self._open: set[Node] = set()
        self._failed: set[Node] = set()

    def constant(self, node: Node) -> tuple[fold.Constant, bool] | None:
        """Return the constant that an expression gives, and whether it can be no other; None where it is not known."""
        if node in self._known:
            known = self._known[node]
            return None if known is None else (known, True)
        if node in self._open:
            return None
        self._open.add(node)
        outer, self._is_certain = self._is_certain, True
        value: fold.Constant | None = None
        try:
            value = plain(self._attempt(lambda: self.evaluate(node, Environment(None))))
            return None if value is None else (value, self._is_certain)
        except Stop:
            self._failed.add(node)
            return None
        finally:
            self._open.discard(node)
            if value is None or self._is_certain:
                self._known[node] = value
            self._is_certain = outer

    def history(self, scope: Scope, name: str) -> list[fold.Constant]:
        """Return what a name that is changed step by step holds along the statements of the block that declares it."""
        block = self._block_of(scope, scope.bindings[name])
        if block is None:
            return []
        if block not in self._blocks:
            self._blocks[block] = {}
            self._blocks[block] = self._run(block)
        return self._blocks[block].get(name, [])

    def _block_of(self, scope: Scope, bindings: list[Binding]) -> Node | None:
        scopes = self._resolver.index.scopes
        for binding in bindings:
            node = binding.node if binding.kind in ("value", "augmented") else None
            for _ in range(_MAX_CLIMB):
                if node is None:
                    break
                if node.type == "program":
                    return node if scope is self._resolver.index.module else None
                if node.type == "statement_block":
                    inner = scopes.get(node)
                    if inner is scope or (scope.is_function and inner is not None and inner.parent is scope):
                        return node
                node = node.parent
        return None

    def _run(self, block: Node) -> dict[str, list[fold.Constant]]:
        """Go through the statements of a block; those that cannot be followed make the names they assign unknown."""
        environment = Environment(None)
        seen: dict[str, list[fold.Constant]] = {}
        for statement in block.children:
            if statement.type in ("return_statement", "import_statement", "export_statement"):
                continue
            assigned, cost = statements.assigned(statement)
            self._steps_left -= cost
            try:
                self._attempt(lambda statement=statement: statements.execute(self, statement, environment))  # type: ignore[misc]
            except Stop:
                environment.forget(assigned)
            for name in assigned | environment.touched:
                known = plain(environment.names.get(name))
                before = seen.setdefault(name, [])
                if known is not None and known not in before[-1:] and len(before) < _MAX_HISTORY:
                    before.append(known)
            environment.touched.clear()
            if self._steps_left <= 0:
                break
        return seen

    def _attempt(self, work: Callable[[], _Result]) -> _Result:
        if self.depth == 0:
            self._attempt_left = MAX_STEPS
        return work()

    def spend(self, steps: int = 1) -> None:
        """Count work done; every loop of an evaluation goes through here."""
        self._steps_left -= steps
        self._attempt_left -= steps
        if self._steps_left <= 0 or self._attempt_left <= 0:
            raise Stop

    # Functions

    def call(self, function: Data, arguments: list[Data]) -> Data:
        """Call a function of the program, or a well-known one."""
        if isinstance(function, Ref):
            return methods.call(self, function.name, arguments)
        if not isinstance(function, Closure):
            raise Stop
        node, inner = function.node, Environment(function.environment)
        single, parameters = node.field("parameter"), node.field("parameters")
        targets = [single] if single is not None else parameters.children if parameters is not None else []
        if node.type.startswith("generator"):
            raise Stop
        for position, target in enumerate(targets):
            if target.type == "rest_pattern":
                statements.bind(
                    self, target.children[0] if target.children else None, list(arguments[position:]), inner
                )
                break
            statements.bind(self, target, arguments[position] if position < len(arguments) else None, inner)
        body = node.field("body")
        if body is None:
            raise Stop
        if body.type != "statement_block":
            return self.evaluate(body, inner)
        signal = statements.execute(self, body, inner)
        return signal[1] if signal is not None else None

    # Expressions

    def evaluate(self, node: Node | None, environment: Environment) -> Data:
        """Return what an expression gives. Raises `Stop` where that is not known."""
        self.spend()
        if node is None:
            raise Stop
        if node.type in FUNCTIONS:
            return Closure(node, environment)
        handler = self._EXPRESSIONS.get(node.type)
        if handler is None or self.depth >= statements.MAX_DEPTH:
            raise Stop
        if node in self._failed and environment.is_empty():
            # `a.b().c().d()`: what failed for a part fails for the whole.
            raise Stop
        self.depth += 1
        try:
            value = handler(self, node, environment)
        finally:
            self.depth -= 1
        if isinstance(value, str):
            self.spend(len(value) >> 6)
        return value

    def iterate(self, value: Data) -> Iterator[Data]:
        """Yield the elements of an array, or the characters of a text."""
        if not isinstance(value, (list, str)) or len(value) > fold.MAX_ELEMENTS:
            raise Stop
        for item in list(value):
            self.spend()
            yield item

    def _identifier(self, node: Node, environment: Environment) -> Data:
        name = identifier(node)
        if name == "undefined":
            return None
        found, value = environment.find(name)
        return value if found else self._outside(node)

    def _outside(self, node: Node) -> Data:
        """What a name that the evaluated part does not bind means, as far as the resolver can tell."""
        values = self._resolver.resolve(node)
        usable = [value for value in values if isinstance(value, (Const, Items, Table, Own, Ref))]
        if not usable:
            raise Stop
        if len(values) > 1:
            self._is_certain = False
        return self._lifted(usable[0])

    def _lifted(self, value: Value) -> Data:
        match value:
            case Const():
                if isinstance(value.value, tuple):
                    return list(value.value)
                if isinstance(value.value, str) and HOLE in value.value:
                    raise Stop
                return value.value
            case Items() | Table():
                return self.evaluate(value.node, Environment(None))
            case Own():
                return Closure(value.node, Environment(None))
            case Ref():
                return value
        raise Stop

    def _text(self, node: Node, _environment: Environment) -> Data:
        if node.end - node.start > MAX_TEXT:
            raise Stop
        return literal(node)

    def _number(self, node: Node, _environment: Environment) -> Data:
        value = fold.number(node.text) if node.end - node.start < 40 else None
        if value is None:
            raise Stop
        return value

    def _template(self, node: Node, environment: Environment) -> Data:
        text = ""
        for child in node.children:
            if child.type == "template_substitution":
                text += methods.to_text(self.evaluate(child.children[0] if child.children else None, environment))
            else:
                text += unescape(child.text)
            if len(text) > MAX_TEXT:
                raise Stop
        return text

    def _last(self, node: Node, environment: Environment) -> Data:
        value: Data = None
        for child in node.children:
            value = self.evaluate(child, environment)
        return value

    def _binary(self, node: Node, environment: Environment) -> Data:
        left = self.evaluate(node.field("left"), environment)
        match node.operator:
            case "&&" if not is_true(left):
                return left
            case "||" if is_true(left):
                return left
            case "??" if left is not None:
                return left
        right = self.evaluate(node.field("right"), environment)
        return right if node.operator in ("&&", "||", "??") else methods.binary(node.operator, left, right)

    def _unary(self, node: Node, environment: Environment) -> Data:
        value = self.evaluate(node.field("argument"), environment)
        if node.operator == "!":
            return not is_true(value)
        if not isinstance(value, (int, float)) and not (node.operator == "+" and isinstance(value, str)):
            raise Stop
        match node.operator:
            case "-":
                return -value if not isinstance(value, str) else None
            case "+":
                return methods.call(self, "Number", [value])
            case "~":
                return ~int(value)
        raise Stop

    def _ternary(self, node: Node, environment: Environment) -> Data:
        condition = is_true(self.evaluate(node.field("condition"), environment))
        return self.evaluate(node.field("consequence" if condition else "alternative"), environment)

    def _assignment(self, node: Node, environment: Environment) -> Data:
        value = self.evaluate(node.field("right"), environment)
        statements.assign(self, node.field("left"), value, environment)
        return value

    def _augmented(self, node: Node, environment: Environment) -> Data:
        left = node.field("left")
        before = self.evaluate(left, environment)
        more = self.evaluate(node.field("right"), environment)
        value = methods.binary(node.operator.removesuffix("="), before, more)
        statements.assign(self, left, value, environment)
        return value

    def _update(self, node: Node, environment: Environment) -> Data:
        target = node.field("argument")
        before = self.evaluate(target, environment)
        after = methods.binary(node.operator[:1], before, 1)
        statements.assign(self, target, after, environment)
        return after if node.text.startswith(("+", "-")) else before

    def key(self, node: Node, environment: Environment) -> Data:
        """Return the key of a member, computed or not."""
        if node.type == "subscript_expression":
            key = self.evaluate(node.field("index"), environment)
            return int(key) if isinstance(key, float) and key.is_integer() else key
        return property_name(node.field("property"))

    def _member(self, node: Node, environment: Environment) -> Data:
        owner = self.evaluate(node.field("object"), environment)
        key = self.key(node, environment)
        if isinstance(owner, Ref) and isinstance(key, str):
            (value, *more) = names.member(owner.name, key)
            if more:
                raise Stop
            return self._lifted(value)
        if isinstance(owner, (str, list)):
            if key == "length":
                return len(owner)
            if isinstance(key, int) and not isinstance(key, bool):
                return owner[key] if 0 <= key < len(owner) else None
        if isinstance(owner, dict) and isinstance(key, (str, int)) and str(key) in owner:
            return owner[str(key)]
        raise Stop

    def _array(self, node: Node, environment: Environment) -> Data:
        found: list[Data] = []
        for child in node.children:
            if child.type == "spread_element":
                found += self.iterate(self.evaluate(child.children[0] if child.children else None, environment))
            else:
                found.append(self.evaluate(child, environment))
        return found

    def _object(self, node: Node, environment: Environment) -> Data:
        found: dict[str, Data] = {}
        for child in node.children:
            key = property_name(child.field("key") or child.field("name"))
            if child.type == "pair" and key is not None:
                found[key] = self.evaluate(child.field("value"), environment)
            elif child.type == "shorthand_property_identifier":
                found[identifier(child)] = self._identifier(child, environment)
            elif child.type == "method_definition" and key is not None and child.operator != "get":
                found[key] = Closure(child, environment)
            else:
                raise Stop
        return found

    def _call(self, node: Node, environment: Environment) -> Data:
        callee, given = node.field("function") or node.field("constructor"), node.field("arguments")
        if callee is None or (given is not None and given.type != "arguments"):
            raise Stop
        if callee.type in ("member_expression", "subscript_expression"):
            owner = self.evaluate(callee.field("object"), environment)
            name = self.key(callee, environment)
            if not isinstance(owner, (Ref, Closure, dict)):
                if not isinstance(name, str):
                    raise Stop
                return methods.method(self, owner, name, self._arguments(given, environment))
            function = self._called_member(owner, name)
        else:
            function = self.evaluate(callee, environment)
        return self.call(function, self._arguments(given, environment))

    def _called_member(self, owner: Data, name: Data) -> Data:
        if not isinstance(name, str):
            raise Stop
        if isinstance(owner, Ref):
            return Ref(f"{owner.name}.{name}")
        if isinstance(owner, dict) and name in owner:
            return owner[name]
        raise Stop

    def _arguments(self, given: Node | None, environment: Environment) -> list[Data]:
        found: list[Data] = []
        for child in given.children if given is not None else ():
            if child.type == "spread_element":
                found += self.iterate(self.evaluate(child.children[0] if child.children else None, environment))
            elif child.type == "regex":
                found.append(methods.pattern(child))
            else:
                found.append(self.evaluate(child, environment))
        return found

    _EXPRESSIONS: ClassVar[dict[str, Callable[..., Data]]] = {
        "identifier": _identifier,
        "string": _text,
        "number": _number,
        "template_string": _template,
        "true": lambda *_: True,
        "false": lambda *_: False,
        "null": lambda *_: None,
        "undefined": lambda *_: None,
        "await_expression": _last,
        "parenthesized_expression": _last,
        "sequence_expression": _last,
        "binary_expression": _binary,
        "unary_expression": _unary,
        "ternary_expression": _ternary,
        "assignment_expression": _assignment,
        "augmented_assignment_expression": _augmented,
        "update_expression": _update,
        "member_expression": _member,
        "subscript_expression": _member,
        "array": _array,
        "object": _object,
        "call_expression": _call,
        "new_expression": _call,
    }
