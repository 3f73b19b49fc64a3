"""Names of a Python program: which scope binds them, and to what. One pass over the tree, without recursion."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import ClassVar, Final, Literal, NamedTuple

BindingKind = Literal["module", "value", "element", "item", "own", "parameter", "opaque"]
ScopeKind = Literal["module", "function", "class", "comprehension"]

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Binding(NamedTuple):
    """One way in which a name gets a value."""

    kind: BindingKind
    node: ast.AST | None
    """The expression (`value`, `element`, `item`), the definition (`own`) or the function (`parameter`)."""
    name: str = ""
    """The module's dotted name (`module`) or the parameter's name (`parameter`)."""
    path: tuple[int, ...] = ()
    """Where in an unpacked value the element is (`element`, `item`); the position of a parameter."""
    is_certain: bool = True
    """It happens whenever its scope's body runs to the end."""
    line: int = 0


class Loop(ast.expr):
    """The value of a variable after a loop whose only statement gives it another one; no node of the program."""

    _fields = ("start", "items", "step")

    def __init__(self, *, start: ast.expr, items: ast.expr, step: ast.expr, item: str, name: str) -> None:
        super().__init__()
        self.start = start
        self.items = items
        self.step = step
        self.item = item
        self.name = name


class Scope:
    """A namespace. Class bodies are skipped by the scopes inside them, as in Python."""

    __slots__ = ("bindings", "elsewhere", "kind", "parent", "stars")

    def __init__(self, kind: ScopeKind, parent: Scope | None) -> None:
        self.kind: ScopeKind = kind
        self.parent = parent
        self.bindings: dict[str, list[Binding]] = {}
        self.elsewhere: dict[str, Literal["global", "nonlocal"]] = {}
        self.stars: list[str] = []

    def bind(self, name: str, binding: Binding) -> None:
        self.bindings.setdefault(name, []).append(binding)


class TooManyNodes(Exception):
    """The tree is larger than the bound."""


class ProgramIndex:
    """Everything that one pass over the tree collects. `interesting` holds nodes with parents before their children."""

    def __init__(self, tree: ast.Module, *, max_nodes: int) -> None:
        self.tree = tree
        self.module = Scope("module", None)
        self.parents: dict[ast.AST, ast.AST] = {}
        self.scopes: dict[ast.AST, Scope] = {}
        self.inner: dict[ast.AST, Scope] = {}
        self.interesting: list[ast.AST] = []
        self.loads: Counter[str] = Counter()
        self.calls_by_name: dict[str, list[ast.Call]] = defaultdict(list)
        self.calls_by_attribute: dict[str, list[ast.Call]] = defaultdict(list)
        self.stored: dict[str, list[ast.expr]] = defaultdict(list)
        self.returns: dict[ast.AST, list[ast.expr]] = defaultdict(list)
        self.yields: dict[ast.AST, list[ast.expr]] = defaultdict(list)
        self.imports: list[ast.Import | ast.ImportFrom] = []
        self.has_finally = False
        self._max_nodes = max_nodes
        self._is_certain = True
        self._function_of: dict[Scope, ast.AST] = {}
        # Node, parent, scope, and whether it runs for certain.
        self._stack: list[tuple[ast.AST, ast.AST, Scope, bool]] = []
        self._walk(tree)

    def _walk(self, tree: ast.Module) -> None:
        stack = self._stack
        stack.extend((child, tree, self.module, True) for child in reversed(tree.body))
        parents, scopes = self.parents, self.scopes
        budget = self._max_nodes
        while stack:
            node, parent, scope, certain = stack.pop()
            budget -= 1
            if budget < 0:
                raise TooManyNodes
            parents[node] = parent
            scopes[node] = scope
            visit = self._VISITORS.get(type(node))
            if visit is not None:
                self._is_certain = certain
                visit(self, node, scope)
            else:
                self._push_children(node, scope)

    def _push_children(self, node: ast.AST, scope: Scope, *, certain: bool = False) -> None:
        stack = self._stack
        start = len(stack)
        for field in node._fields:
            value = getattr(node, field, None)
            if isinstance(value, list):
                # Constants are looked at by their parents; a table of numbers must not cost a visit each.
                stack.extend(
                    (item, node, scope, certain)
                    for item in value
                    if isinstance(item, ast.AST) and type(item) is not ast.Constant
                )
            elif isinstance(value, ast.AST) and not isinstance(value, (ast.expr_context, ast.Constant)):
                stack.append((value, node, scope, certain))
        # Pushed forwards, popped forwards.
        stack[start:] = stack[start:][::-1]

    def _push(self, node: ast.AST | None, parent: ast.AST, scope: Scope, *, certain: bool = False) -> None:
        if node is not None:
            self._stack.append((node, parent, scope, certain))

    # Expressions

    def _interesting(self, node: ast.AST, scope: Scope) -> None:
        self.interesting.append(node)
        self._push_children(node, scope)

    def _name(self, node: ast.Name, _scope: Scope) -> None:
        if isinstance(node.ctx, ast.Load):
            self.loads[node.id] += 1
            self.interesting.append(node)

    def _call(self, node: ast.Call, scope: Scope) -> None:
        if isinstance(node.func, ast.Name):
            self.calls_by_name[node.func.id].append(node)
        elif isinstance(node.func, ast.Attribute):
            self.calls_by_attribute[node.func.attr].append(node)
        self._interesting(node, scope)

    def _constant(self, node: ast.Constant, scope: Scope) -> None:
        pass

    def _lambda(self, node: ast.Lambda, scope: Scope) -> None:
        inner = self._function_scope(node, scope)
        self.returns[node].append(node.body)
        self._push(node.body, node, inner)
        self._push_parameter_parts(node.args, node, scope)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp, scope: Scope) -> None:
        inner = Scope("comprehension", scope)
        self.inner[node] = inner
        for part in [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]:
            self._push(part, node, inner)
        for position, generator in enumerate(node.generators):
            self.parents[generator] = node
            self._bind_target(generator.target, generator.iter, inner, kind="item")
            self._push(generator.target, generator, inner)
            for condition in generator.ifs:
                self._push(condition, generator, inner)
            self._push(generator.iter, generator, inner if position else scope)

    def _named_expression(self, node: ast.NamedExpr, scope: Scope) -> None:
        target = scope
        while target.kind == "comprehension" and target.parent is not None:
            target = target.parent
        self._bind_target(node.target, node.value, target, certain=False)
        self._push_children(node, scope)

    # Definitions

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> None:
        self._bind(scope, node.name, Binding("own", node, is_certain=self._is_certain, line=node.lineno))
        inner = self._function_scope(node, scope)
        for statement in reversed(node.body):
            self._push(statement, node, inner, certain=True)
        self._push(node.returns, node, scope)
        self._push_parameter_parts(node.args, node, scope)
        for decorator in reversed(node.decorator_list):
            self._push(decorator, node, scope)

    def _class(self, node: ast.ClassDef, scope: Scope) -> None:
        self._bind(scope, node.name, Binding("own", node, is_certain=self._is_certain, line=node.lineno))
        inner = Scope("class", scope)
        self.inner[node] = inner
        self._bind_type_parameters(node, inner)
        for statement in reversed(node.body):
            self._push(statement, node, inner, certain=True)
        for part in [*node.bases, *(keyword.value for keyword in node.keywords), *node.decorator_list]:
            self._push(part, node, scope)

    def _function_scope(self, node: FunctionNode, scope: Scope) -> Scope:
        inner = Scope("function", scope)
        self.inner[node] = inner
        self._function_of[inner] = node
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        for position, argument in enumerate(positional):
            inner.bind(argument.arg, Binding("parameter", node, name=argument.arg, path=(position,)))
        for argument in arguments.kwonlyargs:
            inner.bind(argument.arg, Binding("parameter", node, name=argument.arg))
        for rest in (arguments.vararg, arguments.kwarg):
            if rest is not None:
                inner.bind(rest.arg, Binding("opaque", node))
        self._bind_type_parameters(node, inner)
        return inner

    def _bind_type_parameters(self, node: ast.AST, scope: Scope) -> None:
        for parameter in getattr(node, "type_params", ()):
            scope.bind(parameter.name, Binding("opaque", node))

    def _push_parameter_parts(self, arguments: ast.arguments, node: ast.AST, scope: Scope) -> None:
        for part in [*arguments.defaults, *arguments.kw_defaults]:
            self._push(part, node, scope)
        everyone = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        for argument in everyone:
            if argument is not None and argument.annotation is not None:
                self.parents[argument] = node
                self._push(argument.annotation, argument, scope)

    def _return(self, node: ast.Return, scope: Scope) -> None:
        function = self._function_of.get(scope)
        if node.value is not None and function is not None:
            self.returns[function].append(node.value)
        self._push_children(node, scope)

    def _yield(self, node: ast.Yield, scope: Scope) -> None:
        where: Scope | None = scope
        while where is not None and where.kind == "comprehension":
            where = where.parent
        function = self._function_of.get(where) if where is not None else None
        if node.value is not None and function is not None:
            self.yields[function].append(node.value)
        self._push_children(node, scope)

    # Bindings

    def _bind(self, scope: Scope, name: str, binding: Binding) -> None:
        where = scope
        if name in scope.elsewhere:
            if scope.elsewhere[name] == "global":
                where = self.module
            else:
                where = scope.parent or scope
                while where.parent is not None and (where.kind == "class" or name not in where.bindings):
                    where = where.parent
            binding = binding._replace(is_certain=False)
        where.bind(name, binding)
        if scope.kind == "class" and isinstance(binding.node, ast.expr) and binding.kind == "value":
            self.stored[name].append(binding.node)

    def _bind_target(
        self,
        target: ast.expr,
        value: ast.expr,
        scope: Scope,
        *,
        kind: Literal["value", "item"] = "value",
        certain: bool = True,
    ) -> None:
        todo: list[tuple[ast.expr, tuple[int, ...]]] = [(target, ())]
        while todo:
            node, path = todo.pop()
            if isinstance(node, ast.Name):
                what: BindingKind = "item" if kind == "item" else "element" if path else "value"
                self._bind(
                    scope, node.id, Binding(what, value, path=path, is_certain=certain, line=getattr(node, "lineno", 0))
                )
            elif isinstance(node, ast.Attribute):
                if not path and kind == "value":
                    self.stored[node.attr].append(value)
            elif isinstance(node, ast.Starred):
                self._bind_opaque(node.value, scope)
            elif isinstance(node, (ast.Tuple, ast.List)) and len(path) < 4:
                todo.extend((item, (*path, position)) for position, item in enumerate(node.elts))

    def _bind_opaque(self, target: ast.expr, scope: Scope) -> None:
        for node in ast.walk(target):
            if isinstance(node, ast.Name):
                self._bind(scope, node.id, Binding("opaque", target, is_certain=False, line=node.lineno))

    def _assign(self, node: ast.Assign, scope: Scope) -> None:
        for target in node.targets:
            self._bind_target(target, node.value, scope, certain=self._is_certain)
        self._push_children(node, scope)

    def _annotated_assign(self, node: ast.AnnAssign, scope: Scope) -> None:
        if node.value is not None:
            self._bind_target(node.target, node.value, scope, certain=self._is_certain)
        self._push_children(node, scope)

    def _augmented_assign(self, node: ast.AugAssign, scope: Scope) -> None:
        if isinstance(node.target, ast.Name):
            name, earlier = node.target.id, self._last_value(scope, node.target.id)
            if earlier is not None:
                # Once: a loop may do it more often, so it may be anything as well.
                once = ast.BinOp(left=earlier, op=node.op, right=node.value)
                self._bind(scope, name, Binding("value", once, is_certain=False, line=node.lineno))
            self._bind(scope, name, Binding("opaque", node, is_certain=False, line=node.lineno))
        self._push_children(node, scope)

    @staticmethod
    def _last_value(scope: Scope, name: str) -> ast.expr | None:
        for binding in reversed(scope.bindings.get(name, ())):
            if binding.kind == "value" and isinstance(binding.node, ast.expr):
                return binding.node
        return None

    def _bind_loop(self, node: ast.For | ast.AsyncFor, scope: Scope) -> None:
        """`for c in text: s = c + s`: what the loop makes of constants can be worked out."""
        statement = node.body[0]
        if len(node.body) > 1 or not isinstance(node.target, ast.Name):
            return
        target: ast.expr | None = None
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, step = statement.targets[0], statement.value
        elif isinstance(statement, ast.AugAssign):
            target = statement.target
            step = ast.BinOp(left=statement.target, op=statement.op, right=statement.value)
        if isinstance(target, ast.Name):
            start = self._last_value(scope, target.id)
            if start is not None:
                loop = Loop(start=start, items=node.iter, step=step, item=node.target.id, name=target.id)
                self._bind(scope, target.id, Binding("value", loop, is_certain=False, line=node.lineno))

    def _for(self, node: ast.For | ast.AsyncFor, scope: Scope) -> None:
        self._bind_loop(node, scope)
        self._bind_target(node.target, node.iter, scope, kind="item", certain=False)
        self._push_children(node, scope)

    def _with(self, node: ast.With | ast.AsyncWith, scope: Scope) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self._bind_target(item.optional_vars, item.context_expr, scope, certain=self._is_certain)
        self._push_children(node, scope, certain=self._is_certain)

    def _handler(self, node: ast.ExceptHandler, scope: Scope) -> None:
        if node.name is not None:
            self._bind(scope, node.name, Binding("opaque", node, is_certain=False, line=node.lineno))
        self._push_children(node, scope)

    def _capture(self, node: ast.MatchAs | ast.MatchStar, scope: Scope) -> None:
        if node.name is not None:
            self._bind(scope, node.name, Binding("opaque", node, is_certain=False, line=node.lineno))
        self._push_children(node, scope)

    def _match_mapping(self, node: ast.MatchMapping, scope: Scope) -> None:
        if node.rest is not None:
            self._bind(scope, node.rest, Binding("opaque", node, is_certain=False, line=node.lineno))
        self._push_children(node, scope)

    def _delete(self, node: ast.Delete, scope: Scope) -> None:
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id in scope.bindings:
                # From here on the name means what it meant outside.
                scope.bindings[target.id] = [b._replace(is_certain=False) for b in scope.bindings[target.id]]
        self._push_children(node, scope)

    def _import(self, node: ast.Import, scope: Scope) -> None:
        self.interesting.append(node)
        self.imports.append(node)
        for alias in node.names:
            module = alias.name if alias.asname else alias.name.partition(".")[0]
            self._bind(
                scope,
                alias.asname or module,
                Binding("module", node, name=module, is_certain=self._is_certain, line=node.lineno),
            )

    def _import_from(self, node: ast.ImportFrom, scope: Scope) -> None:
        self.interesting.append(node)
        self.imports.append(node)
        for alias in node.names:
            name = alias.asname or alias.name
            if node.level:
                self._bind(scope, name, Binding("opaque", node, is_certain=self._is_certain, line=node.lineno))
            elif alias.name == "*":
                scope.stars.append(node.module or "")
            else:
                module = f"{node.module}.{alias.name}"
                self._bind(
                    scope, name, Binding("module", node, name=module, is_certain=self._is_certain, line=node.lineno)
                )

    def _elsewhere(self, node: ast.Global | ast.Nonlocal, scope: Scope) -> None:
        for name in node.names:
            scope.elsewhere[name] = "global" if isinstance(node, ast.Global) else "nonlocal"

    def _try(self, node: ast.Try | ast.TryStar, scope: Scope) -> None:
        self.has_finally = self.has_finally or bool(node.finalbody)
        self._push_children(node, scope)

    _VISITORS: ClassVar[dict[type[ast.AST], Callable[..., None]]] = {
        ast.Name: _name,
        ast.Attribute: _interesting,
        ast.Subscript: _interesting,
        ast.MatchClass: _interesting,
        ast.Call: _call,
        ast.Constant: _constant,
        ast.Lambda: _lambda,
        ast.ListComp: _comprehension,
        ast.SetComp: _comprehension,
        ast.DictComp: _comprehension,
        ast.GeneratorExp: _comprehension,
        ast.NamedExpr: _named_expression,
        ast.FunctionDef: _function,
        ast.AsyncFunctionDef: _function,
        ast.ClassDef: _class,
        ast.Return: _return,
        ast.Yield: _yield,
        ast.Assign: _assign,
        ast.AnnAssign: _annotated_assign,
        ast.AugAssign: _augmented_assign,
        ast.For: _for,
        ast.AsyncFor: _for,
        ast.With: _with,
        ast.AsyncWith: _with,
        ast.ExceptHandler: _handler,
        ast.MatchAs: _capture,
        ast.MatchStar: _capture,
        ast.MatchMapping: _match_mapping,
        ast.Delete: _delete,
        ast.Import: _import,
        ast.ImportFrom: _import_from,
        ast.Global: _elsewhere,
        ast.Nonlocal: _elsewhere,
        ast.Try: _try,
        ast.TryStar: _try,
    }
