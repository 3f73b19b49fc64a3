"""Methods of texts and arrays, operators and well-known pure functions, for the evaluation of decoders."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sandbox_svc.analysis.javascript import fold, names
from sandbox_svc.analysis.javascript.data import Bytes, Closure, Data, Pattern, Stop, is_true, same
from sandbox_svc.analysis.javascript.tree import Node
from sandbox_svc.analysis.javascript.values import Ref
from sandbox_svc.analysis.texts import MAX_TEXT, from_base64, from_hex

if TYPE_CHECKING:
    from sandbox_svc.analysis.javascript.evaluate import Evaluator

_MAX_MATCHED: Final = 512
# No group is repeated, one part at most is unbounded, choices are few: the work grows with the square of the text.
_SIMPLE_PATTERN: Final = re.compile(
    r"(?:\[\^?(?:[^\]\\\[]|\\[^bpPuk])*\](?:\{\d{1,2}(?:,\d{1,2})?\}|[?])?"
    r"|\\[dwsDWS.\-/\\^$|?*+()\[\]{}](?:\{\d{1,2}\}|\?)?"
    r"|[^\\()\[\]{}*+?|^$](?:\{\d{1,2}\}|\?)?|[\^$|]|\((?:\?:)?|\)(?![*+?{])|(?<=[\]\w.])\+)+"
)
_MAX_CHOICES: Final = 4
_MATH: Final[dict[str, Callable[..., float]]] = {
    "Math.floor": math.floor,
    "Math.ceil": math.ceil,
    "Math.trunc": math.trunc,
    "Math.abs": abs,
    "Math.min": min,
    "Math.max": max,
    "Math.sqrt": math.sqrt,
    "Math.round": lambda value: math.floor(value + 0.5),
}
_BYTES: Final = frozenset(
    {"Buffer.from", "Buffer.of", "Uint8Array", "Uint8Array.from", "Uint8Array.of", "Uint16Array", "Uint16Array.from"}
)
_INFLATING: Final = {
    "node:zlib.inflateSync": zlib.MAX_WBITS,
    "node:zlib.gunzipSync": zlib.MAX_WBITS | 16,
    "node:zlib.unzipSync": zlib.MAX_WBITS | 32,
    "node:zlib.inflateRawSync": -zlib.MAX_WBITS,
}
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


def pattern(node: Node) -> Pattern:
    """Read a regular expression of the source."""
    text, _, flags = node.text[1:].rpartition("/")
    choices = sum(map(text.count, "?|{")) - text.count("(?:")
    if len(text) > 64 or choices > _MAX_CHOICES or text.count("+") > 1 or not _SIMPLE_PATTERN.fullmatch(text):
        raise Stop
    return Pattern(text, flags)


def _compiled(data: Data, subject: str) -> re.Pattern[str]:
    if not isinstance(data, Pattern) or len(subject) > _MAX_MATCHED:
        raise Stop
    try:
        return re.compile(data.text, re.IGNORECASE | re.ASCII if "i" in data.flags else re.ASCII)
    except re.error:
        raise Stop from None


def to_text(value: Data) -> str:
    """Return what a value becomes in a text."""
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "undefined"
        case str() | int() | float():
            return fold.to_text(value)
        case Bytes():
            return _decoded(value)
        case list() if len(value) <= fold.MAX_ELEMENTS:
            return ",".join("" if item is None else to_text(item) for item in value if not isinstance(item, list))
    raise Stop


def _number(value: Data) -> float:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str):
        found = fold.number(value.strip() or "0")
        if found is None:
            raise Stop
        return found
    if not isinstance(value, (int, float)):
        raise Stop
    return value


def binary(operator: str, left: Data, right: Data) -> Data:
    """Apply an operator that evaluates both sides."""
    match operator:
        case "===":
            return same(left, right)
        case "!==":
            return not same(left, right)
        case "==" | "!=":
            if not isinstance(left, type(right)):
                raise Stop
            return same(left, right) == (operator == "==")
        case "<" | ">" | "<=" | ">=":
            if isinstance(left, str) and isinstance(right, str):
                order = (left > right) - (left < right)
            else:
                first, second = _number(left), _number(right)
                order = (first > second) - (first < second)
            return {"<": order < 0, ">": order > 0, "<=": order <= 0, ">=": order >= 0}[operator]
        case "+" if isinstance(left, (str, list)) or isinstance(right, (str, list)):
            text = to_text(left) + to_text(right)
            if len(text) > MAX_TEXT:
                raise Stop
            return text
    first, second = _number(left), _number(right)
    result: float | fold.Constant | None
    match operator:
        case "/" if second:
            result = first / second
        case "%" if second:
            result = math.fmod(first, second)
        case "&":
            result = int(first) & int(second)
        case "|":
            result = int(first) | int(second)
        case "**" if abs(first) <= 256 and 0 <= second <= 16:
            result = first**second
        case _:
            result = fold.binary(operator, first, second)
    if not isinstance(result, (int, float)) or abs(result) >= fold.MAX_NUMBER:
        raise Stop
    return int(result) if result == int(result) else result


def _constants(values: list[Data]) -> list[fold.Constant]:
    found: list[fold.Constant] = []
    for value in values:
        if isinstance(value, list):
            items = [item for item in value if isinstance(item, (str, int, float))]
            if len(items) != len(value):
                raise Stop
            found.append(tuple(items))
        elif isinstance(value, (str, int, float)):
            found.append(value)
        else:
            raise Stop
    return found


def call(evaluator: Evaluator, name: str, arguments: list[Data]) -> Data:
    """Call a well-known function by its resolved name."""
    name = name.removeprefix("globalThis.")
    first = arguments[0] if arguments else None
    if name in ("Array.from", "Uint8Array.from") and len(arguments) > 1:
        if isinstance(first, dict):
            length = first.get("length")
            if not isinstance(length, int) or not 0 <= length <= fold.MAX_ELEMENTS:
                raise Stop
            first = [None] * length
        return _each(evaluator, first, arguments[1])
    if name in ("Array.from", "Object.values") and isinstance(first, (list, str)):
        return list(evaluator.iterate(first))
    if isinstance(first, dict) and name in ("Object.keys", "Object.values", "Object.entries"):
        if name == "Object.keys":
            return list(first)
        return [value if name == "Object.values" else [key, value] for key, value in first.items()]
    if name == "Buffer.concat" and isinstance(first, list) and all(isinstance(part, Bytes) for part in first):
        return Bytes(_flat(first))
    if name == "Array" and len(arguments) == 1 and isinstance(first, int) and 0 <= first <= fold.MAX_ELEMENTS:
        return [None] * first
    if name in _BYTES:
        return _buffer(first if name != "Buffer.of" else arguments, arguments[1] if len(arguments) > 1 else "utf8")
    if name in _MATH:
        try:
            return _MATH[name](*map(_number, arguments))
        except (ValueError, TypeError, OverflowError):
            raise Stop from None
    if name in ("TextDecoder", "node:util.TextDecoder"):
        return Ref("TextDecoder()")
    if name == "TextDecoder().decode" and isinstance(first, Bytes):
        return _decoded(first)
    if name == "require" and isinstance(first, str):
        return names.module(first)
    if name in _INFLATING and isinstance(first, Bytes):
        return _inflated(first, _INFLATING[name])
    if name == "node:path.format" and isinstance(first, dict):
        return _path_of(first)
    if name == "JSON.parse" and isinstance(first, str):
        return _from_json(first)
    if name == "Number" and isinstance(first, str):
        return _number(first)
    evaluator.spend(len(arguments))
    result = fold.call(name, _constants(arguments))
    if result is None:
        raise Stop
    return list(result) if isinstance(result, tuple) else result


def _buffer(data: Data, encoding: Data) -> Data:
    if isinstance(data, list) and all(isinstance(item, int) for item in data):
        return Bytes(item & 0xFF for item in data if isinstance(item, int))
    if not isinstance(data, str) or not isinstance(encoding, str):
        raise Stop
    try:
        if encoding.startswith("base64"):
            raw = from_base64(data)
        elif encoding == "hex":
            raw = from_hex(data)
        else:
            raw = data.encode("latin-1" if encoding in ("latin1", "binary") else "utf-8", "replace")
    except ValueError:
        raise Stop from None
    return Bytes(raw)


def _inflated(data: Bytes, window: int) -> Bytes:
    try:
        raw = bytes(item & 0xFF for item in data if isinstance(item, int))
        return Bytes(zlib.decompressobj(window).decompress(raw, MAX_TEXT))
    except zlib.error:
        raise Stop from None


def _path_of(parts: dict[str, Data]) -> str:
    folder, name = parts.get("dir") or parts.get("root") or "", parts.get("base") or ""
    if not isinstance(folder, str) or not isinstance(name, str) or not name:
        raise Stop
    return folder + name if folder in ("", parts.get("root")) else f"{folder}/{name}"


def _from_json(text: str) -> Data:
    try:
        value: Data = json.loads(text)
    except (ValueError, RecursionError):
        raise Stop from None
    return value


def _decoded(data: Bytes) -> str:
    return bytes(item & 0xFF for item in data if isinstance(item, int)).decode("utf-8", "replace")


def _each(evaluator: Evaluator, items: Data, function: Data) -> list[Data]:
    return [
        evaluator.call(function, [item, position][: 2 if isinstance(function, Closure) else 1])
        for position, item in enumerate(evaluator.iterate(items))
    ]


def method(evaluator: Evaluator, receiver: Data, name: str, arguments: list[Data]) -> Data:
    """Call a method of a text, a number or an array."""
    if isinstance(receiver, list):
        return _method_of_list(evaluator, receiver, name, arguments)
    if isinstance(receiver, str):
        return _method_of_text(evaluator, receiver, name, arguments)
    if isinstance(receiver, (int, float)) and not isinstance(receiver, bool) and name == "toString":
        return _to_base(receiver, arguments[0]) if arguments else fold.to_text(receiver)
    raise Stop


def _to_base(value: float, base: Data) -> str:
    if not isinstance(base, int) or not 2 <= base <= 36 or value != int(value) or value < 0:
        raise Stop
    digits, rest = "", int(value)
    while rest:
        rest, digit = divmod(rest, base)
        digits = _DIGITS[digit] + digits
    return digits or "0"


def _method_of_text(evaluator: Evaluator, text: str, name: str, arguments: list[Data]) -> Data:
    first = arguments[0] if arguments else None
    evaluator.spend(len(text) >> 4)
    match name:
        case "replace" | "replaceAll" if len(arguments) == 2:
            return _replaced(evaluator, text, first, arguments[1], name)
        case "split" if isinstance(first, Pattern):
            return list(_compiled(first, text).split(text))
        case "match" if isinstance(first, Pattern):
            matches = list(_compiled(first, text).finditer(text))
            if not matches or "g" in first.flags:
                return [match[0] for match in matches] or None
            return [matches[0][0], *matches[0].groups()]
        case "includes" | "startsWith" | "endsWith" if isinstance(first, str):
            return {"includes": first in text, "startsWith": text.startswith(first), "endsWith": text.endswith(first)}[
                name
            ]
        case "indexOf" if isinstance(first, str):
            return text.find(first)
        case "padStart" | "padEnd" if isinstance(first, int) and first <= MAX_TEXT:
            fill = arguments[1] if len(arguments) > 1 else " "
            if not isinstance(fill, str) or not fill:
                raise Stop
            put = (fill * (max(first - len(text), 0) // len(fill) + 1))[: max(first - len(text), 0)]
            return put + text if name == "padStart" else text + put
        case "charCodeAt" | "codePointAt" if not arguments:
            arguments = [0]
    result = fold.method(text, name, _constants(arguments))
    if result is None:
        raise Stop
    return list(result) if isinstance(result, tuple) else result


def _replaced(evaluator: Evaluator, text: str, old: Data, new: Data, name: str) -> str:
    is_all = name == "replaceAll" or (isinstance(old, Pattern) and "g" in old.flags)
    found = _compiled(old, text) if isinstance(old, Pattern) else re.compile(re.escape(to_text(old)))
    parts, end = [], 0
    for match in found.finditer(text[:MAX_TEXT]):
        evaluator.spend()
        if isinstance(new, str):
            if "$" in new:
                raise Stop
            put = new
        else:
            put = to_text(evaluator.call(new, [match[0], *match.groups()] if isinstance(new, Closure) else [match[0]]))
        parts += [text[end : match.start()], put]
        end = match.end()
        if not is_all:
            break
    result = "".join([*parts, text[end:]])
    if len(result) > MAX_TEXT:
        raise Stop
    return result


def _method_of_list(evaluator: Evaluator, items: list[Data], name: str, arguments: list[Data]) -> Data:
    first = arguments[0] if arguments else None
    evaluator.spend(len(items) >> 3)
    match name:
        case "map":
            made = _each(evaluator, items, first)
            return Bytes(made) if isinstance(items, Bytes) else made
        case "flatMap" | "forEach":
            made = _each(evaluator, items, first)
            return None if name == "forEach" else _flat(made)
        case "flat":
            return _flat(items)
        case "filter":
            if isinstance(first, Ref) and first.name == "Boolean":
                return [item for item in items if is_true(item)]
            kept = _each(evaluator, items, first)
            return [item for item, is_kept in zip(items, kept, strict=True) if is_true(is_kept)]
        case "some" | "every" | "find":
            kept = _each(evaluator, items, first)
            if name == "find":
                return next((item for item, is_kept in zip(items, kept, strict=True) if is_true(is_kept)), None)
            return any(map(is_true, kept)) if name == "some" else all(map(is_true, kept))
        case "reduce" | "reduceRight":
            return _reduced(evaluator, items if name == "reduce" else items[::-1], arguments)
        case "push" | "unshift":
            if len(items) + len(arguments) > fold.MAX_ELEMENTS:
                raise Stop
            place = len(items) if name == "push" else 0
            items[place:place] = arguments
            return len(items)
        case "fill" if len(arguments) == 1:
            items[:] = [first] * len(items)
            return items
        case "pop" | "shift":
            return items.pop(-1 if name == "pop" else 0) if items else None
        case "reverse":
            items.reverse()
            return items
        case "keys":
            return list(range(len(items)))
        case "entries":
            return [[position, item] for position, item in enumerate(items)]
        case "values":
            return list(items)
        case "includes" | "indexOf":
            where = next((position for position, item in enumerate(items) if same(item, first)), -1)
            return where if name == "indexOf" else where >= 0
        case "sort" if not arguments and all(isinstance(item, str) for item in items):
            items.sort(key=str)
            return items
        case "toString" if isinstance(items, Bytes):
            return _encoded(items, first)
        case "slice" | "subarray":
            part = fold.method(tuple(range(len(items))), "slice", _constants(arguments))
            if not isinstance(part, tuple):
                raise Stop
            return type(items)(items[int(position)] for position in part)
        case "at" if isinstance(first, int):
            return items[first] if -len(items) <= first < len(items) else None
        case "join" if first is None or isinstance(first, str):
            text = ("," if first is None else first).join(map(to_text, items))
            if len(text) > MAX_TEXT:
                raise Stop
            return text
        case "concat":
            return _flat([items, *arguments])
    result = fold.method(_constants([items])[0], name, _constants(arguments))
    if result is None:
        raise Stop
    return list(result) if isinstance(result, tuple) else result


def _flat(items: list[Data]) -> list[Data]:
    found: list[Data] = []
    for item in items:
        found += item if isinstance(item, list) else [item]
        if len(found) > fold.MAX_ELEMENTS:
            raise Stop
    return found


def _reduced(evaluator: Evaluator, items: list[Data], arguments: list[Data]) -> Data:
    if not arguments or (len(arguments) < 2 and not items):
        raise Stop
    value, rest = (arguments[1], items) if len(arguments) > 1 else (items[0], items[1:])
    for position, item in enumerate(evaluator.iterate(rest)):
        value = evaluator.call(arguments[0], [value, item, position])
    return value


def _encoded(data: Bytes, encoding: Data) -> str:
    match encoding:
        case None | "utf8" | "utf-8" | "ascii":
            return _decoded(data)
        case "latin1" | "binary":
            return bytes(item & 0xFF for item in data if isinstance(item, int)).decode("latin-1")
        case "hex":
            return bytes(item & 0xFF for item in data if isinstance(item, int)).hex()
    raise Stop
