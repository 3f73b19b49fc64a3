"""Judging what data goes into a call: the environment into the network, foreign bytes into an unpickler."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Final

from sandbox_svc.analysis import common_rules, paths
from sandbox_svc.analysis.python import functions, pickles
from sandbox_svc.analysis.python import rules as ids
from sandbox_svc.analysis.python.callers import argument_for
from sandbox_svc.analysis.python.flows import Origins
from sandbox_svc.analysis.python.names import canonical
from sandbox_svc.analysis.python.resolve import Resolver
from sandbox_svc.analysis.python.values import Own, Ref
from sandbox_svc.analysis.report import Reporter
from sandbox_svc.analysis.rules import RuleBook
from sandbox_svc.analysis.texts import HOLE

_NOTHING: Final = ()
_ENVIRONMENT: Final = frozenset({"os.environ", "os.environb"})
_FIGURES: Final = frozenset(
    f"builtins.{name}" for name in ("len", "hash", "bool", "isinstance", "hasattr", "id", "type", "any", "all")
)
_SINGLE_READS: Final = frozenset({"get", "pop", "setdefault", "__getitem__"})
_WORD: Final = re.compile(r"[^:.]*")
"""A path or a value to whatever takes URLs, such as `client.get("metadata")`."""
_TAKES_HOSTS: Final = ("http.client.", "socket.", "urllib3.", "ssl.", "asyncio.", "telnetlib.", "smtplib.", "ftplib.")
_UNPACKED: Final = frozenset({"get", "pop", "setdefault", "__getitem__", "read", "getvalue", "getbuffer"})
"""Methods whose result is part of the object they are called on, whatever the arguments."""


class DataChecks:
    """The checks that follow data backwards through the program."""

    def __init__(self, resolver: Resolver, book: RuleBook, reporter: Reporter) -> None:
        self._resolver = resolver
        self._book = book
        self._reporter = reporter

    @cached_property
    def _methods(self) -> dict[str, list[ast.AST]]:
        """The methods of the program's own classes, by name."""
        found: dict[str, list[ast.AST]] = {}
        for node, scope in self._resolver.index.inner.items():
            for name, bindings in scope.bindings.items() if isinstance(node, ast.ClassDef) else ():
                found.setdefault(name, []).extend(b.node for b in bindings if b.kind == "own" and b.node is not None)
        return found

    def _returned(self, function: ast.AST) -> Iterator[ast.expr]:
        yield from self._resolver.index.returns.get(function, ())
        yield from self._resolver.index.yields.get(function, ())

    # The network

    def network(self, name: str, node: ast.Call) -> None:
        """Judge what is sent: the address of a metadata service, the environment as a whole."""
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            for text in self._resolver.texts(argument):
                is_address = name.startswith(_TAKES_HOSTS) or not _WORD.fullmatch(text)
                if is_address and paths.is_metadata(text.replace(HOLE, "x")):
                    self._reporter.add(common_rules.METADATA, node, text)
            sent = Origins(self._resolver, argument, follow=self._environment_parts).nodes
            if any(self._is_whole_environment(part) for part in sent):
                self._reporter.add(ids.ENVIRONMENT_SENT, node, name)

    def _environment_parts(self, node: ast.AST) -> Iterable[ast.AST] | None:
        """A single variable, a count, or what a filter picks is not the environment."""
        if isinstance(node, ast.Subscript):
            return _NOTHING
        if isinstance(node, ast.Attribute) and not node.attr.startswith("__"):
            parent = self._resolver.index.parents.get(node)
            if not isinstance(parent, ast.Call) or parent.func is not node:
                # What is stored there, not the object: `settings.url`.
                return self._resolver.index.stored.get(node.attr, _NOTHING)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                if node.func.attr in _SINGLE_READS:
                    return node.args[1:]
                if node.func.attr == "keys":
                    return _NOTHING
                if node.func.attr in self._methods:
                    return [part for method in self._methods[node.func.attr] for part in self._returned(method)]
            if _FIGURES.intersection(self._resolver.names(node.func)):
                return _NOTHING
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)) and any(
            _picks(condition) for generator in node.generators for condition in generator.ifs
        ):
            return _NOTHING
        return None

    def _is_whole_environment(self, node: ast.AST) -> bool:
        if not isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
            return False
        if not _ENVIRONMENT.intersection(self._resolver.names(node)):
            return False
        parent = self._resolver.index.parents.get(node)
        if isinstance(parent, ast.Attribute):
            return parent.attr in ("items", "values", "copy")
        return not isinstance(parent, (ast.Subscript, ast.Compare))

    # Pickles

    def unpickle(self, name: str, node: ast.Call) -> None:
        """Judge where pickled data comes from: constants, arguments of `main`, the network."""
        argument = node.args[0] if node.args else argument_for(node, "data", None)
        if argument is None:
            return
        starts: Iterable[ast.AST] = (argument,)
        if name in functions.UNPICKLERS_OF_FILES:
            # The argument is a path, a URL or a file; only a file in memory is data.
            if any("://" in text for text in self._resolver.texts(argument)):
                self._reporter.add(ids.PICKLE, node, name)
            starts = [
                part
                for part in Origins(self._resolver, argument).nodes
                if isinstance(part, ast.Call) and "io.BytesIO" in self._resolver.names(part.func)
            ]
        for start in starts:
            origins = Origins(self._resolver, start, follow=self._decoded_parts)
            if origins.reaches_main or any(self._is_download(part) for part in origins.nodes):
                self._reporter.add(ids.PICKLE, node, name)
            for part in origins.nodes:
                for constant in self._resolver.constants(part) if isinstance(part, ast.expr) else ():
                    if isinstance(constant, (bytes, str)):
                        self._pickled_names(constant, node)

    def _is_download(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and any(map(functions.is_download, self._resolver.names(node.func)))

    def _decoded_parts(self, node: ast.AST) -> Iterable[ast.AST] | None:
        """Through what only decodes or unwraps; any other call makes data of its own, read from a file perhaps."""
        if not isinstance(node, ast.Call):
            return None
        names = self._resolver.names(node.func)
        if any(name in functions.PICKLERS or functions.is_network(name) for name in names):
            return _NOTHING
        if any(functions.is_decoder(name) for name in names):
            return None
        if any(isinstance(value, Own) for value in self._resolver.resolve(node.func)):
            return None
        if isinstance(node.func, ast.Attribute):
            if node.func.attr in _UNPACKED:
                return (node.func.value,)
            if node.func.attr in functions.TEXT_METHODS:
                return (node.func.value, *node.args)
        return _NOTHING

    def _pickled_names(self, data: bytes | str, node: ast.AST) -> None:
        for name in pickles.names_in(data if isinstance(data, bytes) else data.encode("latin-1", "replace")):
            for value in canonical(name):
                if isinstance(value, Ref) and (
                    self._book.by_name(value.name) or value.name in functions.IMPORTERS | functions.ATTRIBUTE_READERS
                ):
                    self._reporter.add(ids.PICKLE, node, f"pickled data that names {name}")


def _picks(condition: ast.expr) -> bool:
    """Tell whether a filter lets through what it names, as `k.startswith("APP_")` and `k in wanted` do."""
    if isinstance(condition, ast.BoolOp):
        return (
            any(map(_picks, condition.values))
            if isinstance(condition.op, ast.And)
            else all(map(_picks, condition.values))
        )
    if isinstance(condition, ast.Compare):
        return all(isinstance(operator, (ast.Eq, ast.In)) for operator in condition.ops)
    return isinstance(condition, ast.Call)
