"""Statements, for the evaluation of decoders: loops, conditions, declarations, assignments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.javascript import fold
from sandbox_svc.analysis.javascript.data import Closure, Data, Environment, Stop, is_true
from sandbox_svc.analysis.javascript.scopes import property_name
from sandbox_svc.analysis.javascript.tree import Node, identifier

if TYPE_CHECKING:
    from sandbox_svc.analysis.javascript.evaluate import Evaluator

MAX_DEPTH: Final = 60
"""Of statements and expressions in each other, those of called functions included."""

Signal = tuple[str, Data] | None
"""How a statement ended: with a break, a continue or a return, and what that gives."""

_TARGETS: Final = {
    "assignment_expression": "left",
    "augmented_assignment_expression": "left",
    "update_expression": "argument",
    "variable_declarator": "name",
    "call_expression": "function",
}
_NAMES: Final = frozenset({"identifier", "shorthand_property_identifier_pattern"})


def execute(evaluator: Evaluator, node: Node, environment: Environment) -> Signal:
    """Run one statement. Raises `Stop` where it is not known what it does."""
    evaluator.spend()
    handler = _HANDLERS.get(node.type)
    if handler is None or evaluator.depth >= MAX_DEPTH:
        raise Stop
    evaluator.depth += 1
    try:
        return handler(evaluator, node, environment)
    finally:
        evaluator.depth -= 1


def assigned(statement: Node) -> tuple[set[str], int]:
    """Return the names that a statement declares or changes, wherever in it, and what finding them cost."""
    found: set[str] = set()
    cost = 0
    for node in statement.walk():
        cost += 1
        target = node.field(_TARGETS[node.type]) if node.type in _TARGETS else None
        if target is not None:
            owner = target.field("object") or target
            found |= {identifier(part) for part in owner.walk() if part.type in _NAMES}
    return found, cost >> 2


def bind(evaluator: Evaluator, target: Node | None, value: Data, environment: Environment) -> None:
    """Bind the names of a parameter or a declaration to what they are given."""
    evaluator.spend()
    if target is None:
        raise Stop
    if target.type == "identifier":
        environment.names[identifier(target)] = value
    elif target.type == "assignment_pattern":
        default = target.field("right")
        given = evaluator.evaluate(default, environment) if value is None else value
        bind(evaluator, target.field("left"), given, environment)
    elif target.type == "array_pattern" and isinstance(value, (list, str)):
        for position, child in enumerate(target.children):
            bind(evaluator, child, value[position] if position < len(value) else None, environment)
    elif target.type == "object_pattern" and isinstance(value, dict):
        for child in target.children:
            if child.type == "shorthand_property_identifier_pattern":
                environment.names[identifier(child)] = value.get(identifier(child))
            elif child.type == "object_assignment_pattern" and child.field("left") is not None:
                name = identifier(child.fields["left"])
                given = value.get(name)
                default = child.field("right")
                environment.names[name] = evaluator.evaluate(default, environment) if given is None else given
            else:
                key = property_name(child.field("key"))
                if child.type != "pair_pattern" or key is None:
                    raise Stop
                bind(evaluator, child.field("value"), value.get(key), environment)
    else:
        raise Stop


def assign(evaluator: Evaluator, target: Node | None, value: Data, environment: Environment) -> None:
    """Assign to a name, an element, a property, or several at once."""
    if target is None:
        raise Stop
    if target.type == "identifier":
        environment.assign(identifier(target), value)
    elif target.type == "array_pattern" and isinstance(value, list):
        for position, child in enumerate(target.children):
            assign(evaluator, child, value[position] if position < len(value) else None, environment)
    elif target.type in ("subscript_expression", "member_expression"):
        owner = evaluator.evaluate(target.field("object"), environment)
        key = evaluator.key(target, environment)
        if isinstance(owner, list) and isinstance(key, int) and 0 <= key <= len(owner) < fold.MAX_ELEMENTS:
            owner[key : key + 1] = [value]
        elif isinstance(owner, dict) and isinstance(key, (str, int)) and len(owner) < fold.MAX_ELEMENTS:
            owner[str(key)] = value
        else:
            raise Stop
    else:
        raise Stop


def _block(evaluator: Evaluator, node: Node, environment: Environment) -> Signal:
    inner = Environment(environment)
    for child in node.children:
        signal = execute(evaluator, child, inner)
        if signal is not None:
            return signal
    return None


def _expression(evaluator: Evaluator, node: Node, environment: Environment) -> Signal:
    for child in node.children:
        evaluator.evaluate(child, environment)
    return None


def _declaration(evaluator: Evaluator, node: Node, environment: Environment) -> Signal:
    for declarator in node.children:
        value = declarator.field("value")
        given = evaluator.evaluate(value, environment) if value is not None else None
        bind(evaluator, declarator.field("name"), given, environment)
    return None


def _function(_evaluator: Evaluator, node: Node, environment: Environment) -> Signal:
    name = node.field("name")
    if name is not None:
        environment.names[identifier(name)] = Closure(node, environment)
    return None


def _return(evaluator: Evaluator, node: Node, environment: Environment) -> Signal:
    return ("return", evaluator.evaluate(node.children[0], environment) if node.children else None)


def _if(evaluator: Evaluator, node: Node, environment: Environment) -> Signal:
    holds = is_true(evaluator.evaluate(node.field("condition"), environment))
    chosen = node.field("consequence" if holds else "alternative")
    if chosen is not None and chosen.type == "else_clause":
        chosen = chosen.children[0] if chosen.children else None
    return execute(evaluator, chosen, environment) if chosen is not None else None


def _round(evaluator: Evaluator, node: Node, environment: Environment) -> Signal:
    evaluator.spend()
    body = node.field("body")
    signal = execute(evaluator, body, environment) if body is not None else None
    return None if signal is not None and signal[0] == "continue" else signal


def _ended(signal: Signal) -> Signal:
    return None if signal is not None and signal[0] == "break" else signal


def _for(evaluator: Evaluator, node: Node, environment: Environment) -> Signal:
    inner = Environment(environment)
    first, condition, step = node.field("initializer"), node.field("condition"), node.field("increment")
    if first is not None and first.type in _HANDLERS:
        execute(evaluator, first, inner)
    elif first is not None:
        evaluator.evaluate(first, inner)
    while condition is None or is_true(evaluator.evaluate(condition, inner)):
        signal = _round(evaluator, node, inner)
        if signal is not None:
            return _ended(signal)
        if step is not None:
            evaluator.evaluate(step, inner)
    return None


def _for_in(evaluator: Evaluator, node: Node, environment: Environment) -> Signal:
    over = evaluator.evaluate(node.field("right"), environment)
    for item in _keys(over) if node.operator == "in" else evaluator.iterate(over):
        inner = Environment(environment)
        bind(evaluator, node.field("left"), item, inner)
        signal = _round(evaluator, node, inner)
        if signal is not None:
            return _ended(signal)
    return None


def _keys(over: Data) -> Iterator[Data]:
    if isinstance(over, dict):
        return iter(list(over))
    if isinstance(over, (str, list)):
        return iter([str(position) for position in range(len(over))])
    raise Stop


def _while(evaluator: Evaluator, node: Node, environment: Environment) -> Signal:
    is_first = node.type == "do_statement"
    while is_first or is_true(evaluator.evaluate(node.field("condition"), environment)):
        is_first = False
        signal = _round(evaluator, node, environment)
        if signal is not None:
            return _ended(signal)
    return None


def _leave(_evaluator: Evaluator, node: Node, _environment: Environment) -> Signal:
    if node.children:
        raise Stop
    return (node.type.removesuffix("_statement"), None)


_HANDLERS: Final[dict[str, Callable[[Evaluator, Node, Environment], Signal]]] = {
    "statement_block": _block,
    "expression_statement": _expression,
    "lexical_declaration": _declaration,
    "variable_declaration": _declaration,
    "function_declaration": _function,
    "return_statement": _return,
    "if_statement": _if,
    "for_statement": _for,
    "for_in_statement": _for_in,
    "while_statement": _while,
    "do_statement": _while,
    "break_statement": _leave,
    "continue_statement": _leave,
}
