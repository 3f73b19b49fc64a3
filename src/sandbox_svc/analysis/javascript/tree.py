"""The syntax tree of a JavaScript source: tree-sitter's, cut down to what the analysis looks at, with parents."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Final

import tree_sitter
import tree_sitter_javascript

_LANGUAGE: Final = tree_sitter.Language(tree_sitter_javascript.language())
_CHUNK: Final = 64 * 1024

# Texts are read from the source when they are asked for; their parts are of no interest as nodes.
_LEAVES: Final = frozenset({"string", "regex", "comment", "html_comment", "number", "hash_bang_line"})
_DROPPED: Final = frozenset({"comment", "html_comment", "optional_chain", "hash_bang_line", "empty_statement"})


class TooSlow(Exception):
    """Parsing took longer than it may; the error recovery of the parser is not linear."""


class TooManyNodes(Exception):
    """The tree is larger than the bound."""


class Node:
    """A named node. `fields` are its children that the grammar names; `operator` is the text of that field.

    A getter has the operator `get`, a default import the operator `default`.
    """

    __slots__ = ("_source", "children", "end", "fields", "operator", "parent", "start", "type")

    def __init__(self, source: bytes, kind: str, start: int, end: int, parent: Node | None) -> None:
        self._source = source
        self.type = kind
        self.start = start
        self.end = end
        self.parent = parent
        self.children: list[Node] = []
        self.fields: dict[str, Node] = {}
        self.operator = ""

    @property
    def text(self) -> str:
        return self._source[self.start : self.end].decode("utf-8", "replace")

    def field(self, name: str) -> Node | None:
        return self.fields.get(name)

    def walk(self) -> Iterator[Node]:
        """Yield the node and everything below it."""
        todo = [self]
        while todo:
            node = todo.pop()
            yield node
            todo.extend(node.children)

    def __repr__(self) -> str:
        return f"<{self.type} {self.start}:{self.end}>"


def parse(source: bytes, *, max_seconds: float, max_nodes: int) -> Node:
    """Parse a source; what is no JavaScript becomes `ERROR` nodes, and the rest is still read.

    Raises `TooSlow` after `max_seconds` of processor time of this thread and `TooManyNodes` above `max_nodes`.
    """
    parser = tree_sitter.Parser(_LANGUAGE)
    deadline = time.thread_time() + max_seconds

    def read(offset: int, _point: object) -> bytes:
        return source[offset : offset + _CHUNK]

    def is_late(_offset: int, _has_error: bool) -> bool:
        return time.thread_time() > deadline

    try:
        tree = parser.parse(read, progress_callback=is_late)
    except ValueError:
        raise TooSlow from None
    return _convert(tree, source, max_nodes)


def _convert(tree: tree_sitter.Tree, source: bytes, max_nodes: int) -> Node:
    cursor = tree.walk()
    root = Node(source, "program", 0, len(source), None)
    parent = root
    if not cursor.goto_first_child():
        return root
    budget = max_nodes
    # Each round looks at one node, then moves down, right, or up until there is a right.
    while True:
        current = cursor.node
        entered = None
        if current is not None:
            kind = current.type
            if current.is_named and kind not in _DROPPED:
                budget -= 1
                if budget < 0:
                    raise TooManyNodes
                node = Node(source, kind, current.start_byte, current.end_byte, parent)
                parent.children.append(node)
                field = cursor.field_name
                if field is not None and field not in parent.fields:
                    parent.fields[field] = node
                entered = node
            elif cursor.field_name == "operator" or (kind == "get" and parent.type == "method_definition"):
                parent.operator = kind
            elif kind == "default" and cursor.field_name == "name":
                # `import { default as x }`: the one name that the grammar has as a keyword.
                parent.operator = "default"
        if entered is not None and entered.type not in _LEAVES and cursor.goto_first_child():
            parent = entered
            continue
        while not cursor.goto_next_sibling():
            if parent is root:
                return root
            cursor.goto_parent()
            assert parent.parent is not None  # noqa: S101 - only the root has none
            parent = parent.parent


_ESCAPE: Final = re.compile(
    r"\\(?:u\{([0-9a-fA-F]{1,8})\}|u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|([0-7]{1,3})|(\r\n|[\s\S]))"
)
_SIMPLE: Final = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "b": "\b",
    "f": "\f",
    "v": "\v",
    "\n": "",
    "\r": "",
    "\r\n": "",
    "\u2028": "",
    "\u2029": "",
}


def _unescape(match: re.Match[str]) -> str:
    for group, base in ((1, 16), (2, 16), (3, 16), (4, 8)):
        if match[group] is not None:
            code = int(match[group], base)
            return chr(code) if code <= 0x10FFFF else "\ufffd"
    return _SIMPLE.get(match[5], match[5])


def unescape(text: str) -> str:
    """Return what a string literal's inside, or an identifier, means."""
    return _ESCAPE.sub(_unescape, text) if "\\" in text else text


def literal(node: Node) -> str:
    """Return the value of a `string` node."""
    return unescape(node.text[1:-1])


def identifier(node: Node) -> str:
    """Return the name of an identifier of any kind, `\\u0065val` read as `eval`."""
    return unescape(node.text)
