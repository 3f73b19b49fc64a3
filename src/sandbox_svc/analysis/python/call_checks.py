"""Judging calls: what is asked of well-known functions, by the arguments that are known before the run."""

from __future__ import annotations

import ast
import string
from collections.abc import Callable, Iterator
from typing import Final

from sandbox_svc.analysis import paths
from sandbox_svc.analysis.possibilities import each_with_each
from sandbox_svc.analysis.python import functions
from sandbox_svc.analysis.python import rules as ids
from sandbox_svc.analysis.python.callers import argument_for
from sandbox_svc.analysis.python.data_checks import DataChecks
from sandbox_svc.analysis.python.flows import Origins
from sandbox_svc.analysis.python.names import canonical
from sandbox_svc.analysis.python.resolve import Resolver
from sandbox_svc.analysis.python.tables import each
from sandbox_svc.analysis.python.values import UNKNOWN, Const, Items, Many, Own, Place, Ref
from sandbox_svc.analysis.report import Reporter
from sandbox_svc.analysis.rules import RuleBook
from sandbox_svc.analysis.texts import HOLE, could_be

Embedded = Callable[[str, bool], tuple[str, str] | None]
"""Judges a text as an expression or statements of this program (strictly or not): rule id and name of what it finds."""

_SET_ID_BITS: Final = 0o6000
_DEFERRING: Final = frozenset({"functools.partial", "builtins.map"})
_MAX_FORMAT: Final = 4096


class CallChecks:
    """The checks that no list of names can express. `judge_embedded` comes from outside, since it starts over."""

    def __init__(self, resolver: Resolver, book: RuleBook, reporter: Reporter, judge_embedded: Embedded) -> None:
        self._resolver = resolver
        self._book = book
        self._reporter = reporter
        self._judge_embedded = judge_embedded
        self._data = DataChecks(resolver, book, reporter)

    def check(self, node: ast.Call) -> None:
        """Judge one call."""
        names = self._resolver.names(node.func)
        for name in names:
            self._by_name(name, node)
            for rule in self._book.by_call(name):
                self._reporter.add(rule.id, node, name)
        if isinstance(node.func, ast.Attribute):
            self._method(node, node.func)
        for keyword in node.keywords:
            if keyword.arg == "target":
                self._deferred(keyword.value, argument_for(node, "args", None))

    def is_excused(self, name: str, node: ast.expr) -> bool:
        """Tell whether a forbidden name is used in a way that does no harm."""
        parents = self._resolver.index.parents
        parent = parents.get(node)
        if not isinstance(parent, ast.Call) or parent.func is not node:
            return False
        if name == "gc.get_objects":
            counted = parents.get(parent)
            return isinstance(counted, ast.Call) and "builtins.len" in self._resolver.names(counted.func)
        if not parent.args:
            return False
        first = parent.args[0]
        if name == "builtins.eval":
            texts = self._resolver.resolve(first)
            return all(
                isinstance(text, Const)
                and isinstance(text.value, str)
                and HOLE not in text.value
                and self._judge_embedded(text.value, True) is None
                for text in texts
            )
        if name in ("os.kill", "os.killpg"):
            return isinstance(first, ast.Call) and bool(
                {"os.getpid", "os.getpgrp"} & set(self._resolver.names(first.func))
            )
        return False

    # By the name of the function

    def _by_name(self, name: str, node: ast.Call) -> None:
        if name in functions.IMPORTERS:
            self._import(name, node)
        elif name in functions.ATTRIBUTE_READERS:
            self._attribute_reader(name, node)
        elif name.endswith((".get", ".pop", ".setdefault", ".__getitem__")) and node.args:
            self.dictionary_read(name.rpartition(".")[0], node.args[0], node)
            self._attribute_path(node.args[0], node)
        elif name.endswith(".__getattribute__") and len(node.args) == 1:
            owner = name.removesuffix(".__getattribute__")
            if owner in functions.HARMFUL_MODULES and self._is_picked(owner, node.args[0]):
                self._reporter.add(ids.DYNAMIC_ATTRIBUTE, node, f"an attribute of {owner}")
        elif name in ("os.chmod", "pathlib.Path().chmod"):
            self._mode(name, node)
        elif name in functions.UNPICKLERS:
            self._data.unpickle(name, node)
        elif name in functions.EMBEDDED_CODE:
            self._embedded_code(name, node)
        elif name == "functools.reduce":
            self._reduced_attributes(node)
        elif name == "inspect.getmembers":
            self._all_members(node)
        elif name == "logging.config.dictConfig":
            self._factories(node)
        elif name in ("operator.attrgetter", "operator.methodcaller"):
            for argument in node.args:
                self._attribute_path(argument, node)
        elif name.startswith("yaml.load") and node.args:
            if any(functions.YAML_WALK.search(text) for text in self._resolver.texts(node.args[0])):
                self._reporter.add(ids.DYNAMIC_CODE, node, name)
        elif name in functions.TEMPLATE_FUNCTIONS:
            if any(functions.TEMPLATE_WALK.search(text) for arg in node.args[:1] for text in self._resolver.texts(arg)):
                self._reporter.add(ids.INTERNALS, node, name)
        elif name in _DEFERRING and node.args:
            is_map = name == "builtins.map"
            arguments = [each(argument) for argument in node.args[1:]] if is_map else node.args[1:]
            self._deferred_call(node.args[0], arguments)
        for use in functions.path_uses(name):
            self._path(use, node)
        if name.startswith("pathlib.Path()."):
            self._place(name.removeprefix("pathlib.Path()."), node)
        if functions.is_network(name):
            self._data.network(name, node)

    def _import(self, name: str, node: ast.Call) -> None:
        argument = argument_for(node, "name", 0)
        if argument is None:
            if node.args or node.keywords:
                self._reporter.add(ids.DYNAMIC_IMPORT, node, name)
            return
        for value in self._resolver.resolve(argument):
            if not isinstance(value, Const) or not isinstance(value.value, str) or self._could_be_module(value.value):
                self._reporter.add(ids.DYNAMIC_IMPORT, node, name)

    def _could_be_module(self, text: str) -> bool:
        """Tell whether a name that is known in part may be that of a module which can do harm."""
        if HOLE not in text:
            return False
        if text.startswith(HOLE) or self._book.could_forbid(text.replace(":", ".")):
            return True
        return any(could_be(text, module) for module in functions.HARMFUL_MODULES)

    def _is_picked(self, owner: str, key: ast.expr) -> bool:
        """Tell whether what an expression names, of something that can do harm, is chosen at run time."""
        return any(
            not isinstance(value, Const)
            or (
                isinstance(value.value, str)
                and HOLE in value.value
                and self._book.could_forbid(f"{owner}.{value.value}")
            )
            for value in self._resolver.resolve(key)
        )

    def _attribute_reader(self, name: str, node: ast.Call) -> None:
        if len(node.args) < 2:
            # `partial(getattr, os)`
            names = self._resolver.names(node.args[0]) if node.args else []
            for owner in functions.HARMFUL_MODULES.intersection(names):
                self._reporter.add(ids.DYNAMIC_ATTRIBUTE, node, f"an attribute of {owner}")
            return
        base, attribute = node.args[0], node.args[1]
        for owner in functions.HARMFUL_MODULES.intersection(self._resolver.names(base)):
            if name != "builtins.setattr" and self._is_picked(owner, attribute):
                self._reporter.add(ids.DYNAMIC_ATTRIBUTE, node, f"an attribute of {owner}")
        self._attribute_path(attribute, node, base)

    def _attribute_path(self, argument: ast.expr, node: ast.AST, base: ast.expr | None = None) -> None:
        for text in self._resolver.texts(argument):
            for part in dict.fromkeys(text.split(".")):
                rule = self._book.attributes.get(part)
                if rule is not None and not (
                    part == "__subclasses__" and base is not None and self._is_own_class(base)
                ):
                    self._reporter.add(rule.id, node, part)

    def _is_own_class(self, node: ast.expr) -> bool:
        return any(isinstance(v, Own) and isinstance(v.node, ast.ClassDef) for v in self._resolver.resolve(node))

    def _reduced_attributes(self, node: ast.Call) -> None:
        """`reduce(getattr, path, os)`"""
        if len(node.args) != 3 or not functions.ATTRIBUTE_READERS.intersection(self._resolver.names(node.args[0])):
            return
        for owner in functions.HARMFUL_MODULES.intersection(self._resolver.names(node.args[2])):
            if UNKNOWN in self._resolver.resolve(node.args[1]):
                self._reporter.add(ids.DYNAMIC_ATTRIBUTE, node, f"an attribute of {owner}")

    def _all_members(self, node: ast.Call) -> None:
        for argument in node.args[:1]:
            for owner in functions.HARMFUL_MODULES.intersection(self._resolver.names(argument)):
                self._reporter.add(ids.DYNAMIC_ATTRIBUTE, node, f"everything in {owner}")

    def _factories(self, node: ast.Call) -> None:
        """`{"()": "os.system"}` in a logging configuration."""
        for argument in node.args[:1]:
            for part in Origins(self._resolver, argument).nodes:
                for key, value in zip(part.keys, part.values, strict=True) if isinstance(part, ast.Dict) else ():
                    if isinstance(key, ast.Constant) and key.value in functions.FACTORY_KEYS:
                        for text in self._resolver.texts(value):
                            self._text_names(text, value)

    def _text_names(self, text: str, node: ast.AST) -> None:
        for value in canonical(text):
            if isinstance(value, Ref):
                for rule in self._book.by_name(value.name):
                    self._reporter.add(rule.id, node, value.name)

    def dictionary_read(self, owner: str, key: ast.expr, node: ast.AST) -> None:
        """Judge the reading of an entry of a module's dictionary, or of `sys.modules`, whose key may not be known."""
        module = owner.removesuffix(".__dict__")
        if owner not in ("sys.modules", "builtins") and (module == owner or module not in functions.HARMFUL_MODULES):
            return
        if isinstance(key, ast.Name) and key.id == "__name__":
            return
        if isinstance(key, ast.Attribute) and key.attr == "__module__":
            return
        if owner == "sys.modules":
            is_picked = any(
                not isinstance(value, Const) or (isinstance(value.value, str) and self._could_be_module(value.value))
                for value in self._resolver.resolve(key)
            )
        else:
            is_picked = self._is_picked(module, key)
        if is_picked:
            self._reporter.add(ids.DYNAMIC_ATTRIBUTE, node, owner)

    def _mode(self, name: str, node: ast.Call) -> None:
        argument = argument_for(node, "mode", 1 if name == "os.chmod" else 0)
        if argument is not None:
            for mode in self._resolver.constants(argument):
                if isinstance(mode, int) and mode & _SET_ID_BITS:
                    self._reporter.add(ids.PROCESS_CONTROL, node, f"{name} with a set-uid mode")

    def _embedded_code(self, name: str, node: ast.Call) -> None:
        choices: list[list[str]] = []
        for position, keyword in functions.EMBEDDED_CODE[name]:
            argument = argument_for(node, keyword, position)
            if argument is None:
                continue
            choices += filter(None, [self._resolver.texts(argument)])
            if name.startswith(("timeit.", "doctest.")) and Origins(self._resolver, argument).reaches_main:
                self._reporter.add(ids.DYNAMIC_CODE, node, name)
        found, is_complete = each_with_each(choices)
        for texts in found if choices else ():
            self._judge_text("\n".join(texts), node)
        if not is_complete:
            self._reporter.add(ids.DYNAMIC_CODE, node, name)

    def _judge_text(self, text: str, node: ast.AST) -> None:
        found = self._judge_embedded(text, False)
        if found is not None:
            self._reporter.add(found[0], node, found[1])

    # Files

    def _path(self, use: functions.PathUse, node: ast.Call) -> None:
        argument = argument_for(node, use.keyword, use.position)
        if argument is None:
            return
        accesses = (use.access,) if use.access is not None else self._accesses(node, 1)
        is_certain = UNKNOWN not in self._resolver.resolve(argument)
        for text in self._texts_inside(argument):
            if "://" not in text or text.startswith("file:"):
                self._judge_path(text, accesses, node, is_certain=is_certain)

    def _texts_inside(self, argument: ast.expr) -> Iterator[str]:
        yield from self._resolver.texts(argument)
        for value in self._resolver.resolve(argument):
            if isinstance(value, Const) and isinstance(value.value, tuple):
                yield from (item for item in value.value if isinstance(item, str))
            elif isinstance(value, Items):
                for element in value.elements[:32]:
                    yield from self._resolver.texts(element)
            elif isinstance(value, Many):
                yield from self._resolver.texts(value.element)

    def _accesses(self, node: ast.Call, position: int) -> tuple[paths.Access, ...]:
        argument = argument_for(node, "mode", position)
        if argument is None:
            return ("read",)
        modes = self._resolver.texts(argument)
        found = [access for mode in modes for access in functions.access_of_mode(mode)]
        return tuple(dict.fromkeys(found)) or ("read",)

    def _judge_path(
        self, text: str, accesses: tuple[paths.Access, ...], node: ast.AST, *, is_certain: bool = True
    ) -> None:
        for access in accesses:
            rule_id = paths.judge(text, access)
            # `os.listdir(path or "/")`: a folder is no secret, so only what is certain counts.
            if rule_id is not None and (is_certain or not paths.is_folder(text)):
                self._reporter.add(rule_id, node, text)

    def _place(self, method: str, node: ast.Call) -> None:
        if method not in functions.PLACE_USES or not isinstance(node.func, ast.Attribute):
            return
        access = functions.PLACE_USES[method]
        accesses = (access,) if access is not None else self._accesses(node, 0)
        places = self._resolver.resolve(node.func.value)
        is_certain = all(isinstance(place, Place) and HOLE not in place.path for place in places)
        for value in places:
            if isinstance(value, Place):
                self._judge_path(value.path, accesses, node, is_certain=is_certain)
                if method in ("glob", "rglob"):
                    for pattern in self._resolver.texts(node.args[0]) if node.args else ():
                        self._judge_path(f"{value.path}/{pattern}", ("read",), node)
        if method in ("symlink_to", "hardlink_to", "rename", "replace") and node.args:
            for text in self._resolver.texts(node.args[0]):
                self._judge_path(text, ("read",) if method.endswith("_to") else ("write",), node)

    # Methods of anything

    def _method(self, node: ast.Call, function: ast.Attribute) -> None:
        if function.attr in ("format", "format_map", "vformat"):
            self._format(function.value, node)
            for argument in node.args[:1]:
                self._format(argument, node)
        elif function.attr == "__getattribute__" and node.args:
            self._attribute_path(node.args[-1], node)
        elif function.attr in functions.EMBEDDED_METHODS and node.args:
            for text in self._resolver.texts(node.args[0]):
                # Only what is called: a word or two may be a question to some other `query`.
                if "(" in text:
                    self._judge_text(text.replace("@", ""), node)
        elif function.attr == "submit" and node.args:
            self._deferred_call(node.args[0], node.args[1:])

    def _format(self, template: ast.expr, node: ast.AST) -> None:
        """A format string may walk attributes: `'{0.__init__.__globals__}'.format(x)`."""
        for text in self._resolver.texts(template):
            if len(text) > _MAX_FORMAT or ("__" not in text and "_" not in text):
                continue
            try:
                fields = [field for _, field, _, _ in string.Formatter().parse(text) if field]
            except ValueError:
                continue
            for field in fields:
                for part in field.replace("[", ".").replace("]", "").split(".")[1:]:
                    rule = self._book.attributes.get(part)
                    if rule is not None:
                        self._reporter.add(rule.id, node, part)

    # Calls that others make: `Thread(target=f, args=(...))`, `partial(f, ...)`, `__reduce__`

    def _deferred(self, function: ast.expr, arguments: ast.expr | None) -> None:
        self._deferred_call(function, list(arguments.elts) if isinstance(arguments, (ast.Tuple, ast.List)) else [])

    def _deferred_call(self, function: ast.expr, arguments: list[ast.expr]) -> None:
        known = self._resolver.names(function)
        interesting = (
            functions.IMPORTERS | functions.ATTRIBUTE_READERS | functions.PATH_USES.keys() | functions.UNPICKLERS
        )
        if not interesting & set(known):
            return
        call = ast.copy_location(ast.Call(func=function, args=arguments, keywords=[]), function)
        for name in known:
            self._by_name(name, call)
        for value in self._resolver.resolve(call):
            if isinstance(value, Ref):
                for rule in self._book.by_name(value.name):
                    self._reporter.add(rule.id, call, value.name)

    def reduced(self, function: ast.AST) -> None:
        """Judge what `__reduce__` returns: a function and the arguments that unpickling calls it with."""
        for returned in self._resolver.index.returns.get(function, ()):
            if isinstance(returned, ast.Tuple) and len(returned.elts) >= 2:
                self._deferred(returned.elts[0], returned.elts[1])
