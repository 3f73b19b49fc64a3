"""From bytes to a tree, as the interpreter reads them: encoding, syntax, and errors in the interpreter's own words."""

from __future__ import annotations

import ast
import codecs
import re
import traceback
import warnings
from typing import Final

from sandbox_svc.analysis.findings import SourceError

_FILE: Final = "<submitted>"
"""Names no file: CPython would read a line of it for some errors."""

_BOM: Final = b"\xef\xbb\xbf"
_COOKIE: Final = re.compile(rb"[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_BLANK: Final = re.compile(rb"[ \t\f]*(?:#.*)?")
_LINE_END: Final = re.compile(rb"\r\n|\r|\n")
_ACCEPTED: Final = frozenset({"utf-8", "ascii"})

KNOWN_SYNTAX: Final = (3, 13)
"""The newest version whose new syntax `_NEW_SYNTAX` knows."""

# All that 3.12 and 3.13 read and 3.11 does not: f-strings that hold any expression, type parameters, `type` statements.
_NEW_SYNTAX: Final = re.compile(
    rb"""\b(?:[fF][rR]?|[rR][fF])['"]|\b(?:def|class)[\s\\]+[\w\x80-\xff]+[\s\\]*\["""
    rb"""|(?:^|[;:\r\f])[ \t\f]*type[\s\\]+[\w\x80-\xff]""",
    re.MULTILINE,
)

MAX_SHOWN_LINE: Final = 400
"""Characters of a line that an error message repeats; longer lines are left out."""
_MAX_MESSAGE: Final = 500

MAX_COMPILED: Final = 64 * 1024
"""Bytes of a source that is also compiled, for the errors that only the compiler finds."""


class TooDeep(Exception):
    """The tree is nested more deeply than the parser can follow."""


class NotPython(Exception):
    """The interpreter would refuse the source."""

    def __init__(self, error: SourceError) -> None:
        super().__init__(error.message)
        self.error = error


def foreign_encoding(source: bytes) -> str | None:
    """Return the encoding that the source declares (PEP 263) if it is neither UTF-8 nor ASCII, else None.

    An encoding that does not exist, or that contradicts a byte order mark, is left to the parser: a syntax error.
    """
    if source.startswith(_BOM):
        return None
    lines = _LINE_END.split(source[:4096], maxsplit=2)[:2]
    for line in lines:
        match = _COOKIE.match(line)
        if match is not None:
            name = match[1].decode("ascii", "replace")
            # CPython's tokenizer knows these by their beginning, whatever follows.
            start = name[:12].lower().replace("_", "-")
            if start == "utf-8" or start.startswith("utf-8-"):
                return None
            if re.fullmatch(r"(?:latin-1|iso-8859-1|iso-latin-1)(?:-.*)?", start):
                return name[:40]
            try:
                known = codecs.lookup(name).name
            except LookupError:
                return None
            return None if known in _ACCEPTED else name[:40]
        if not _BLANK.fullmatch(line):
            return None
    return None


def is_error_final(source: bytes, *, here: tuple[int, int], sandbox: tuple[int, int]) -> bool:
    """Tell whether the interpreter in the sandbox would refuse what the one here refuses.

    An older one here is right all the same about a source that has none of the newer syntax in it.
    """
    return here >= sandbox or (sandbox <= KNOWN_SYNTAX and _NEW_SYNTAX.search(source) is None)


def parse(source: bytes, *, source_name: str) -> ast.Module:
    """Parse a source as the interpreter of this process does.

    Raises `NotPython` where it is no program, `TooDeep` where it is nested too deeply to be read.
    """
    with warnings.catch_warnings():
        # What the compiler warns of is between the program and its interpreter.
        warnings.simplefilter("ignore")
        try:
            tree = compile(source, _FILE, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise NotPython(describe(error, source, source_name)) from None
        except (RecursionError, MemoryError):
            raise TooDeep from None
    assert isinstance(tree, ast.Module)  # noqa: S101 - what "exec" gives
    return tree


def check_compiles(tree: ast.Module, source: bytes, *, source_name: str) -> None:
    """Find the errors that parsing does not: `return` outside a function, a name both global and nonlocal, and so on.

    Only for sources up to `MAX_COMPILED` bytes without `finally`: nested ones make the compiler's output, and its time,
    grow exponentially. Raises `NotPython`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            compile(tree, _FILE, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise NotPython(describe(error, source, source_name)) from None
        except (ValueError, RecursionError, MemoryError):
            return  # not for certain an error of the program: the interpreter in the container decides


def describe(error: SyntaxError | ValueError, source: bytes, source_name: str) -> SourceError:
    """Return the error as the interpreter would print it for a file of that name."""
    if not isinstance(error, SyntaxError):
        # Before 3.12 a NUL byte was a ValueError.
        error = SyntaxError(str(error))
    line = error.lineno if error.lineno and error.lineno > 0 else None
    if line is not None:
        error.filename = source_name
        # As the compiler counts them: at no other character that `str` takes for the end of a line.
        lines = re.split(r"\r\n|\r|\n", source.removeprefix(_BOM).decode("utf-8", "replace"))
        if error.text is None and line <= len(lines):
            error.text = lines[line - 1]
        if error.text is not None and len(error.text) > MAX_SHOWN_LINE:
            error.text = None
    message = (error.msg or "invalid syntax")[:_MAX_MESSAGE]
    error.msg = message
    return SourceError(
        type=type(error).__name__,
        message=message,
        line=line,
        column=error.offset if line is not None and error.offset and error.offset > 0 else None,
        text="".join(traceback.format_exception_only(type(error), error)),
        source_line=(error.text or "").strip() if line is not None else "",
    )
