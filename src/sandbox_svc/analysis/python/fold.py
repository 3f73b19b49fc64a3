"""Arithmetic on constants, so that `'sys' + 'tem'` is read as `system`; total, bounded, and no offence in itself."""

from __future__ import annotations

import ast
import json
import operator
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from sandbox_svc.analysis.texts import BYTE_DECODERS, HOLE, MAX_TEXT, decode

MAX_NUMBER: Final = 1 << 64
MAX_ELEMENTS: Final = 1024
MAX_ARGUMENTS: Final = 16
"""Of a call that is worked out."""

_ERRORS: Final = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, struct.error),
    # Of `ast.literal_eval`, which parses.
    *(SyntaxError, MemoryError, RecursionError),
)

_NUMBERS: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.BitXor: operator.xor,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.RShift: operator.rshift,
}

_ENCODINGS: Final = frozenset({"utf8", "ascii", "latin1", "iso88591"})
_TEXT_METHODS: Final = frozenset(
    {
        "capitalize",
        "casefold",
        "decode",
        "encode",
        "hex",
        "join",
        "lower",
        "lstrip",
        "partition",
        "removeprefix",
        "removesuffix",
        "replace",
        "rpartition",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "strip",
        "swapcase",
        "title",
        "translate",
        "upper",
    }
)


_METHODS_OF_EACH: Final = frozenset({"casefold", "encode", "join", "lower", "swapcase", "upper"})
"""They change each character on its own, or leave it."""


def is_number(value: object) -> bool:
    return isinstance(value, int) and -MAX_NUMBER < value < MAX_NUMBER


def bounded(value: object) -> object | None:
    """Return the value when it is of a followed type and size, else None. Lists become tuples."""
    if isinstance(value, (str, bytes)):
        return value if len(value) <= MAX_TEXT else None
    if isinstance(value, (list, tuple)):
        if len(value) > MAX_ELEMENTS:
            return None
        return tuple(value) if all(isinstance(item, (str, bytes, int, float)) for item in value) else None
    if isinstance(value, bytearray):
        return bounded(bytes(value))
    return value if isinstance(value, float) or is_number(value) else None


def binary(operation: ast.operator, left: object, right: object) -> object | None:
    """Apply an operator to two constants; None where the result is too large, an error, or not followed."""
    if isinstance(operation, ast.Mult):
        for text, count in ((left, right), (right, left)):
            if isinstance(text, (str, bytes, tuple)):
                return text * count if isinstance(count, int) and len(text) * max(count, 0) <= MAX_ELEMENTS else None
    if isinstance(operation, ast.Mod) and isinstance(left, str):
        return percent(left, right)
    same = (isinstance(left, str) and isinstance(right, str)) or (isinstance(left, bytes) and isinstance(right, bytes))
    if isinstance(operation, ast.Add) and (same or (isinstance(left, tuple) and isinstance(right, tuple))):
        return bounded(left + right)  # type: ignore[operator]
    apply = _NUMBERS.get(type(operation))
    if apply is None or not (is_number(left) and is_number(right)):
        return None
    try:
        return bounded(apply(left, right))
    except _ERRORS:
        return None


def unary(operation: ast.unaryop, value: object) -> object | None:
    """`-value` and `~value` of a number."""
    if not isinstance(value, int) or not is_number(value):
        return None
    return -value if isinstance(operation, ast.USub) else ~value if isinstance(operation, ast.Invert) else None


# A width that is long or taken from the arguments could make a text of any size.
_CUT_FIELD: Final = re.compile(r"%[^a-zA-Z%]*\.")
_WIDE_FIELD: Final = re.compile(r"%[^a-zA-Z%]*?(?:\*|\d{4})")


def percent(template: str, values: object) -> str | None:
    """`template % values` for texts and numbers."""
    parts = values if isinstance(values, tuple) else (values,)
    size = len(template) + sum(len(part) for part in parts if isinstance(part, (str, bytes)))
    if size > MAX_TEXT or _WIDE_FIELD.search(template):
        return None
    if _CUT_FIELD.search(template) and any(HOLE in part for part in parts if isinstance(part, str)):
        return None
    try:
        text: str = template % values
    except _ERRORS:
        return None
    return text if len(text) <= MAX_TEXT else None


_FIELD: Final = re.compile(r"\{(\w*)(?:!([rsa]))?(?::([^{}]*))?\}|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
_NARROW_FIELD: Final = re.compile(r"(?:.?[<>^=])?[+ -]?#?0?\d{0,2}[_,]?(?:\.\d{1,3})?[sdxXobc]?")


def format_field(value: str | int, conversion: str, specification: str) -> str:
    """Return a field of a format string, a hole where the value has one or the form is not a plain one."""
    if not conversion and not specification:
        return str(value)
    if HOLE in str(value) or conversion in ("r", "a") or not _NARROW_FIELD.fullmatch(specification):
        return HOLE
    try:
        return format(str(value) if conversion else value, specification)
    except _ERRORS:
        return HOLE


def format_text(template: str, positional: Sequence[str | int], named: dict[str, str | int]) -> str | None:
    """`template.format(...)` for plain fields; anything cleverer is a hole."""
    if len(template) > MAX_TEXT:
        return None
    counter = size = 0

    def field(match: re.Match[str]) -> str:
        nonlocal counter, size
        key = match[1]
        if key == "":
            key, counter = str(counter), counter + 1
        value: str | int = HOLE
        if key is not None and key.isdecimal():
            if len(key) < 4 and int(key) < len(positional):
                value = positional[int(key)]
        elif key is not None:
            value = named.get(key, HOLE)
        text = format_field(value, match[2] or "", match[3] or "")
        size += len(text)
        return text if size <= MAX_TEXT else HOLE

    text = _FIELD.sub(field, template.replace("{{", "\0").replace("}}", "\1")).replace("\0", "{").replace("\1", "}")
    return text if len(text) <= MAX_TEXT else None


def method(receiver: object, name: str, arguments: Sequence[object]) -> object | None:
    """Call a method of a constant text."""
    if not isinstance(receiver, (str, bytes)) or name not in _TEXT_METHODS or len(arguments) > 3:
        return None
    if isinstance(receiver, str) and HOLE in receiver and name not in _METHODS_OF_EACH:
        # What is in the hole decides where a text is split, stripped or replaced.
        return None
    if name == "decode" and isinstance(receiver, bytes):
        encoding = arguments[0] if arguments else "utf-8"
        return decode(receiver, encoding) if isinstance(encoding, str) else None
    if name == "replace" and len(arguments) >= 2:
        old, new = arguments[0], arguments[1]
        if not isinstance(old, (str, bytes)) or not isinstance(new, (str, bytes)):
            return None
        if len(receiver) * max(len(new), 1) > MAX_TEXT * 4:
            return None
    if name == "translate" and not (isinstance(receiver, bytes) and arguments and isinstance(arguments[0], bytes)):
        return None
    if name == "encode" and arguments and str(arguments[0]).lower().replace("-", "") not in _ENCODINGS:
        return None
    if name == "join":
        if not arguments or not isinstance(arguments[0], tuple):
            return None
        if sum(len(item) for item in arguments[0] if isinstance(item, (str, bytes))) > MAX_TEXT:
            return None
        if len(receiver) * len(arguments[0]) > MAX_TEXT:
            return None
    try:
        return bounded(getattr(receiver, name)(*arguments))
    except _ERRORS:
        return None


def subscript(value: object, index: object) -> object | None:
    """`value[index]` of a text or a tuple."""
    if not isinstance(value, (str, bytes, tuple)) or not isinstance(index, (int, slice)):
        return None
    if isinstance(value, str) and HOLE in value and index != slice(None, None, -1):
        # Only what stands before the hole has a place that is known.
        certain = value.index(HOLE)
        last = index + 1 if isinstance(index, int) else index.stop
        start = index if isinstance(index, int) else index.start or 0
        if not isinstance(last, int) or not isinstance(start, int) or not 0 <= last <= certain or start < 0:
            return None
    try:
        return bounded(value[index])
    except _ERRORS:
        return None


def call(name: str, arguments: Sequence[object]) -> object | None:
    """Call a well-known pure function, by its resolved name, on constants."""
    decoder = BYTE_DECODERS.get(name)
    try:
        if decoder is not None:
            data = arguments[0]
            return bounded(decoder(data)) if isinstance(data, (str, bytes)) and len(data) <= 2 * MAX_TEXT else None
        function = _FUNCTIONS.get(name)
        return bounded(function(*arguments)) if function is not None else None
    except _ERRORS:
        return None


def _decode(data: object, encoding: object = "utf-8", _errors: object = "strict") -> object | None:
    return decode(data, encoding) if isinstance(data, (str, bytes)) and isinstance(encoding, str) else None


def _encode(data: object, encoding: object = "utf-8", _errors: object = "strict") -> object | None:
    if isinstance(encoding, str) and encoding.lower().startswith("rot"):
        return _decode(data, encoding)
    return _bytes(data, encoding) if isinstance(data, str) else None


_MAX_NESTED: Final = 32


def _parsed(parse: Callable[[str], object]) -> Callable[[object], object | None]:
    """A parser for flat values: nesting costs stack."""

    def read(data: object) -> object | None:
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
        if not isinstance(text, str) or len(text) > MAX_TEXT or sum(map(text.count, "([{-+~")) > _MAX_NESTED:
            return None
        return parse(text)

    return read


# One character, one class of them or a plain text: no work beyond the length of the text.
_PLAIN_PATTERN: Final = re.compile(r"\[\^?[\w .,;:#@!%&=/-]+\]\+?|[^\\^$.|?*+()\[\]{}]+\+?|\\[dDwWsS]\+?")


def _substitute(pattern: object, replacement: object, text: object) -> object | None:
    if not (isinstance(pattern, str) and isinstance(replacement, str) and isinstance(text, str)):
        return None
    if not _PLAIN_PATTERN.fullmatch(pattern) or "\\" in replacement:
        return None
    if len(text) > MAX_TEXT or len(text) * max(len(replacement), 1) > MAX_TEXT * 4:
        return None
    return re.sub(pattern, replacement, text)


def _pack(layout: object, *values: object) -> object | None:
    if not isinstance(layout, str) or len(layout) > MAX_ELEMENTS or struct.calcsize(layout) > MAX_TEXT:
        return None
    return struct.pack(layout, *values)


def _text(value: object = "", encoding: object = None, _errors: object = None) -> object | None:
    if isinstance(value, bytes):
        return _decode(value, encoding) if encoding is not None else None
    return str(value) if isinstance(value, str) or is_number(value) else None


def _bytes(value: object = b"", encoding: object = "utf-8") -> object | None:
    if isinstance(value, str) and isinstance(encoding, str):
        return value.encode(encoding) if encoding.lower().replace("-", "") in _ENCODINGS else None
    return bytes(value) if isinstance(value, (bytes, tuple)) else None


def _chr(value: object) -> object | None:
    return chr(value) if isinstance(value, int) else None


def _ord(value: object) -> object | None:
    return ord(value) if isinstance(value, (str, bytes)) and len(value) == 1 else None


def _int(value: object, base: object = 10) -> object | None:
    if isinstance(value, str) and isinstance(base, int) and len(value) < 24:
        return int(value, base)
    return value if is_number(value) else None


def _sequence(value: object = ()) -> object | None:
    return tuple(value) if isinstance(value, (str, bytes, tuple)) and len(value) <= MAX_ELEMENTS else None


def _sorted(value: object) -> object | None:
    return tuple(sorted(value)) if isinstance(value, (str, bytes, tuple)) and len(value) <= MAX_ELEMENTS else None


def _reversed(value: object) -> object | None:
    return tuple(reversed(value)) if isinstance(value, (str, bytes, tuple)) and len(value) <= MAX_ELEMENTS else None


def _range(*bounds: object) -> object | None:
    limits = [bound for bound in bounds if isinstance(bound, int) and is_number(bound)]
    if not 0 < len(limits) == len(bounds) <= 3:
        return None
    numbers = range(*limits)
    return tuple(numbers) if len(numbers) <= MAX_ELEMENTS else None


_FUNCTIONS: Final[dict[str, Callable[..., object]]] = {
    "builtins.str": _text,
    "builtins.bytes": _bytes,
    "builtins.bytearray": _bytes,
    "builtins.chr": _chr,
    "builtins.ord": _ord,
    "builtins.int": _int,
    "builtins.list": _sequence,
    "builtins.tuple": _sequence,
    "builtins.set": _sequence,
    "builtins.frozenset": _sequence,
    "builtins.iter": _sequence,
    "builtins.sorted": _sorted,
    "builtins.reversed": _reversed,
    "builtins.range": _range,
    "codecs.decode": _decode,
    "codecs.encode": _encode,
    "json.loads": _parsed(json.loads),
    "ast.literal_eval": _parsed(ast.literal_eval),
    "re.sub": _substitute,
    "struct.pack": _pack,
    "sys.intern": _text,
    "os.path.normpath": _text,
    "os.path.abspath": _text,
    "os.path.realpath": _text,
    "os.path.expanduser": _text,
    "os.fspath": _text,
    "os.fsdecode": _text,
}
