"""Arithmetic on JavaScript constants, so that `'bind' + 'ing'` is read as `binding`; total and bounded."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Sequence
from typing import Final
from urllib.parse import unquote, urlsplit

from sandbox_svc.analysis.paths import WORKSPACE
from sandbox_svc.analysis.texts import MAX_TEXT, from_base64, from_hex

Scalar = str | int | float
Constant = Scalar | tuple[Scalar, ...]

MAX_ELEMENTS: Final = 1024
MAX_NUMBER: Final = 1 << 53

_ERRORS: Final = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


def bounded(value: object) -> Constant | None:
    """Return a value of a followed type and size, else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else None
    if isinstance(value, (int, float)):
        return value if abs(value) < MAX_NUMBER else None
    if isinstance(value, (list, tuple)) and len(value) <= MAX_ELEMENTS:
        return tuple(value) if all(isinstance(item, (str, int, float)) for item in value) else None
    return None


def number(text: str) -> int | float | None:
    """Read a number literal."""
    digits = text.replace("_", "").lower().removesuffix("n")
    try:
        if len(digits) > 24:
            return None
        value = int(digits, 0) if digits[:2] in ("0x", "0o", "0b") else float(digits)
    except ValueError:
        return None
    if abs(value) >= MAX_NUMBER:
        return None
    return int(value) if value == int(value) else value


def to_text(value: Scalar) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def binary(operator: str, left: Constant, right: Constant) -> Constant | None:
    """Apply a binary operator."""
    if isinstance(left, tuple) or isinstance(right, tuple):
        return None
    if operator == "+" and (isinstance(left, str) or isinstance(right, str)):
        return bounded(to_text(left) + to_text(right))
    if isinstance(left, str) or isinstance(right, str):
        return None
    try:
        match operator:
            case "+":
                return bounded(left + right)
            case "-":
                return bounded(left - right)
            case "*":
                return bounded(left * right)
            case "^":
                return bounded(int(left) ^ int(right))
            case "%":
                return bounded(left % right) if left >= 0 < right else None
            case ">>" | ">>>":
                return bounded(int(left) >> int(right)) if left >= 0 <= right < 32 else None
            case "<<":
                return bounded(int(left) << int(right)) if left >= 0 <= right < 32 else None
    except _ERRORS:
        return None
    return None


def element(value: Constant, index: object) -> Constant | None:
    """`value[index]`."""
    if isinstance(value, (str, tuple)) and isinstance(index, (int, float)) and 0 <= index < len(value):
        return value[int(index)]
    return None


def method(receiver: Constant, name: str, arguments: Sequence[Constant]) -> Constant | None:
    """Call a method of a text or an array."""
    try:
        if isinstance(receiver, str):
            function = _TEXT_METHODS.get(name)
            return (
                bounded(function(receiver, *arguments)) if function is not None and len(receiver) <= MAX_TEXT else None
            )
        if isinstance(receiver, tuple):
            array_function = _ARRAY_METHODS.get(name)
            return bounded(array_function(receiver, *arguments)) if array_function is not None else None
        return to_text(receiver) if name == "toString" and not arguments else None
    except _ERRORS:
        return None


def call(name: str, arguments: Sequence[Constant]) -> Constant | None:
    """Call a well-known pure function, by its resolved name."""
    function = _FUNCTIONS.get(name)
    try:
        return bounded(function(*arguments)) if function is not None else None
    except _ERRORS:
        return None


def _slice(value: str | tuple[Scalar, ...], start: object = 0, end: object = None) -> object:
    if not isinstance(start, (int, float)) or not (end is None or isinstance(end, (int, float))):
        return None
    return value[int(start) : None if end is None else int(end)]


def _substring(text: str, start: object = 0, end: object = None) -> object:
    size = len(text)
    if not isinstance(start, (int, float)) or not (end is None or isinstance(end, (int, float))):
        return None
    bounds = sorted((min(max(int(start), 0), size), size if end is None else min(max(int(end), 0), size)))
    return text[bounds[0] : bounds[1]]


def _substr(text: str, start: object = 0, length: object = None) -> object:
    if not isinstance(start, (int, float)) or not (length is None or isinstance(length, (int, float))):
        return None
    first = int(start) if start >= 0 else max(len(text) + int(start), 0)
    return text[first:] if length is None else text[first : first + int(length)]


def _split(text: str, separator: object = None, *_: object) -> object:
    if separator is None:
        return [text]
    if not isinstance(separator, str):
        return None
    return list(text) if separator == "" else text.split(separator)


def _replace(text: str, old: object, new: object, count: int) -> object:
    if not isinstance(old, str) or not isinstance(new, str) or len(text) * max(len(new), 1) > 4 * MAX_TEXT:
        return None
    return text.replace(old, new, count)


def _join(parts: tuple[Scalar, ...], separator: object = ",") -> object:
    if not isinstance(separator, str):
        return None
    texts = [to_text(part) for part in parts]
    if sum(map(len, texts)) + len(separator) * len(texts) > MAX_TEXT:
        return None
    return separator.join(texts)


def _repeat(text: str, count: object) -> object:
    if not isinstance(count, (int, float)) or count < 0 or len(text) * count > MAX_TEXT:
        return None
    return text * int(count)


def _concat_arrays(parts: tuple[Scalar, ...], *more: object) -> object:
    joined = list(parts)
    for other in more:
        joined += other if isinstance(other, tuple) else [other]  # type: ignore[list-item]
    return joined


_TEXT_METHODS: Final[dict[str, Callable[..., object]]] = {
    "at": lambda text, index=0: text[int(index)],
    "charAt": lambda text, index=0: text[int(index)] if index >= 0 else "",
    "charCodeAt": lambda text, index=0: ord(text[int(index)]) if index >= 0 else None,
    "codePointAt": lambda text, index=0: ord(text[int(index)]) if index >= 0 else None,
    "concat": lambda text, *more: text + "".join(to_text(item) for item in more),
    "normalize": lambda text: text,
    "repeat": _repeat,
    "replace": lambda text, old, new: _replace(text, old, new, 1),
    "replaceAll": lambda text, old, new: _replace(text, old, new, -1),
    "slice": _slice,
    "split": _split,
    "substr": _substr,
    "substring": _substring,
    "toLocaleLowerCase": lambda text: text.lower(),
    "toLowerCase": lambda text: text.lower(),
    "toString": lambda text, *_: text,
    "toUpperCase": lambda text: text.upper(),
    "trim": lambda text: text.strip(),
    "trimEnd": lambda text: text.rstrip(),
    "trimStart": lambda text: text.lstrip(),
    "valueOf": lambda text: text,
}
_ARRAY_METHODS: Final[dict[str, Callable[..., object]]] = {
    "at": lambda parts, index=0: parts[int(index)],
    "concat": _concat_arrays,
    "join": _join,
    "pop": lambda parts: parts[-1],
    "reverse": lambda parts: parts[::-1],
    "shift": lambda parts: parts[0],
    "slice": _slice,
    "toReversed": lambda parts: parts[::-1],
    "toString": _join,
}

METHODS: Final = frozenset(_TEXT_METHODS) | frozenset(_ARRAY_METHODS)

_ESCAPED: Final = re.compile(r"%(?:u([0-9a-fA-F]{4})|([0-9a-fA-F]{2}))")


def _characters(*codes: object) -> object:
    return "".join(chr(int(code)) for code in codes if isinstance(code, (int, float)))


def _buffer(data: object = "", encoding: object = "utf8", *_: object) -> object:
    """What `Buffer.from(data, encoding)` reads as, as text."""
    if isinstance(data, tuple):
        return bytes(int(item) for item in data if isinstance(item, (int, float))).decode("utf-8", "replace")
    if not isinstance(data, str):
        return None
    if encoding in ("base64", "base64url"):
        return from_base64(data).decode("utf-8", "replace")
    return from_hex(data).decode("utf-8", "replace") if encoding == "hex" else data


def _unescape(text: object) -> object:
    if not isinstance(text, str):
        return None
    return _ESCAPED.sub(lambda match: chr(int(match[1] or match[2], 16)), text)


def _parsed(text: object) -> object:
    """`JSON.parse` of a text in quotes; what else it gives is no name of anything."""
    return json.loads(text) if isinstance(text, str) and text.lstrip()[:1] == '"' else None


def _same(text: object = "", *_: object) -> object:
    return text


URL_PARTS: Final = frozenset({"href", "host", "hostname", "origin", "protocol", "pathname"})


def url_part(text: str, name: str) -> str | None:
    """Return a part of an address, as `new URL(text)` has it."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    if not parts.scheme:
        return None
    match name:
        case "href":
            return text
        case "host":
            return parts.netloc.rpartition("@")[2]
        case "hostname":
            return parts.hostname
        case "origin":
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        case "protocol":
            return f"{parts.scheme}:"
    return parts.path or "/"


def _format(pattern: object = "", *values: object) -> object:
    """`util.format`, for what is no object."""
    if not isinstance(pattern, str) or not all(isinstance(value, (str, int, float)) for value in values):
        return None
    rest = [to_text(value) for value in values if isinstance(value, (str, int, float))]
    parts = re.split(r"%[sdi]", pattern)
    if len(parts) - 1 > len(rest) or "%" in "".join(parts):
        return None
    filled = "".join(part + value for part, value in zip(parts[:-1], rest, strict=False))
    return " ".join([filled + parts[-1], *rest[len(parts) - 1 :]])


_FUNCTIONS: Final[dict[str, Callable[..., object]]] = {
    "Array.from": lambda value, *_: tuple(value) if isinstance(value, (str, tuple)) else None,
    "Array.of": lambda *values: values,
    "Buffer.from": _buffer,
    "Buffer.of": lambda *values: _buffer(values),
    "JSON.parse": _parsed,
    "Number": lambda text: float(text) if isinstance(text, str) else text,
    "Object": _same,
    "Object.freeze": _same,
    "String": lambda value="": to_text(value) if not isinstance(value, tuple) else _join(value),
    "String.fromCharCode": _characters,
    "String.fromCodePoint": _characters,
    "Uint8Array.from": lambda value, *_: value if isinstance(value, tuple) else None,
    "URL": lambda text, *base: None if base else text,
    "atob": lambda text: from_base64(text).decode("latin-1"),
    "decodeURI": unquote,
    "decodeURIComponent": unquote,
    "String.raw": lambda text, *more: None if more else text,
    "node:util.format": _format,
    "node:path.basename": lambda path, end="": posixpath.basename(path.rstrip("/")).removesuffix(end),
    "node:path.dirname": lambda path: posixpath.dirname(path.rstrip("/")) or ".",
    "node:path.join": lambda *parts: posixpath.normpath("/".join(part for part in parts if part)),
    "node:path.resolve": lambda *parts: posixpath.normpath(posixpath.join(WORKSPACE, *parts)),
    "node:path.normalize": _same,
    "node:path.posix.normalize": _same,
    "node:url.fileURLToPath": _same,
    "node:url.pathToFileURL": _same,
    "parseInt": lambda text, base=10: int(text, int(base)) if isinstance(text, str) and len(text) < 24 else text,
    "unescape": _unescape,
}
