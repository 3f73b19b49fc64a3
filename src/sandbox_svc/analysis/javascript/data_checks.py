"""Judging what a JavaScript program hands to files and to the network: paths, addresses, the environment."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final, Protocol

from sandbox_svc.analysis import common_rules, paths
from sandbox_svc.analysis.javascript import callers, functions
from sandbox_svc.analysis.javascript import rules as ids
from sandbox_svc.analysis.javascript.flows import sends_environment
from sandbox_svc.analysis.javascript.resolve import Resolver
from sandbox_svc.analysis.javascript.scopes import ProgramIndex
from sandbox_svc.analysis.javascript.tree import Node, identifier
from sandbox_svc.analysis.javascript.values import UNKNOWN, Table
from sandbox_svc.analysis.texts import HOLE

_MAX_SPREADS: Final = 4
_MAX_NEAR: Final = 8
_MAX_STORED: Final = 16
_MAX_KEYS: Final = 128


class Report(Protocol):
    """Takes a finding: a rule, where, and what was found."""

    def __call__(self, rule_id: str, node: Node, name: str) -> None: ...


class DataJudge:
    """Judges the arguments of well-known functions; `report` takes what is found."""

    def __init__(self, index: ProgramIndex, resolver: Resolver, report: Report) -> None:
        self._index = index
        self._resolver = resolver
        self._add = report

    def held(self, key: str | None, value: Node | None, node: Node) -> None:
        """`{ socketPath: '/var/run/docker.sock' }`"""
        if key in ("socketPath", "unixSocket"):
            for text in self._resolver.texts(value):
                self.path(text, "read", node)

    # Files

    def path_use(self, use: functions.PathUse, node: Node) -> None:
        accesses: tuple[paths.Access, ...] = (use.access,) if use.access is not None else ("read",)
        if use.access is None:
            flags = self._resolver.texts(callers.argument(node, use.position + 1))
            accesses = functions.access_of_flags(flags[0]) if flags else accesses
        is_certain = UNKNOWN not in self._resolver.resolve(callers.argument(node, use.position))
        for text in self._resolver.texts(callers.argument(node, use.position)):
            for access in accesses:
                # `readdir(path || "/")`: a folder is no secret, so only what is certain counts.
                is_file = "://" not in text or text.startswith("file:")
                if is_file and (is_certain or not paths.is_folder(text)):
                    self.path(text, access, node)

    def path(self, text: str, access: paths.Access, node: Node) -> None:
        rule_id = paths.judge(text, access)
        if rule_id is not None:
            self._add(rule_id, node, text)

    # The network

    def network(self, name: str, node: Node) -> None:
        for argument in callers.arguments(node):
            for text in self._addresses(name, argument):
                if paths.is_metadata(text.replace(HOLE, "x")) or paths.is_metadata(text.replace(HOLE, "/")):
                    self._add(common_rules.METADATA, node, text)
                socket = functions.socket_of(text)
                if socket is not None:
                    self.path(socket, "read", node)
            if sends_environment(self._index, self._resolver, argument):
                self._add(ids.ENVIRONMENT_SENT, node, name)

    def _addresses(self, name: str, argument: Node) -> Iterator[str]:
        yield from self._resolver.texts(argument)
        for value in self._resolver.resolve(argument):
            if isinstance(value, Table):
                yield from self._connections(value.node)
        for changed in self._changed(argument):
            for key in functions.CONNECTION_KEYS:
                yield from self._stored(key)
            for put in self._index.filled.get(changed, ())[:_MAX_STORED]:
                yield from self._resolver.texts(put)
        if name.startswith("npm:axios"):
            # `axios.defaults.baseURL = ...`, and what interceptors return.
            for node in self._index.stored.get("baseURL", ())[:_MAX_STORED]:
                yield from self._resolver.texts(node)

    def _changed(self, argument: Node) -> Iterator[str]:
        """Yield the names, in an argument, of objects that the program sets properties of."""
        for part in itertools.islice(argument.walk(), _MAX_NEAR):
            if part.type == "identifier" and identifier(part) in self._index.changed:
                yield identifier(part)

    def _connections(self, table: Node, depth: int = 0) -> Iterator[str]:
        """Hosts and addresses in an object display, and in those that are spread into it."""
        self._resolver.steps_left -= min(len(table.children), _MAX_KEYS) >> 2
        for child in table.children[:_MAX_KEYS]:
            keys = self._resolver.keys(child.field("key")) if child.type == "pair" else ()
            if functions.CONNECTION_KEYS.intersection(filter(None, keys)):
                yield from self._resolver.texts(child.field("value"))
            elif child.type == "shorthand_property_identifier" and identifier(child) in functions.CONNECTION_KEYS:
                yield from self._resolver.texts(child)
            elif child.type == "spread_element" and depth < _MAX_SPREADS:
                for value in self._resolver.resolve(child.children[0] if child.children else None):
                    if isinstance(value, Table):
                        yield from self._connections(value.node, depth + 1)

    def _stored(self, key: str) -> Iterator[str]:
        for node in self._index.stored.get(key, ())[:_MAX_STORED]:
            if node.parent is not None and node.parent.type == "assignment_expression":
                yield from self._resolver.texts(node)
