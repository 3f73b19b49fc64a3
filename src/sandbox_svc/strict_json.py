"""Bounds on JSON that is passed on as bytes: nesting, digits, number of containers, lone surrogates.

Arguments go to the sandbox and results to the caller without being turned into objects here, so that every number keeps
its digits and each message is decoded once. `msgspec.Raw` checks the grammar strictly (RFC 8259: no NaN, no trailing
commas, no control characters in strings, no lone surrogates); what it leaves open, and what readers elsewhere choke on,
is checked here. Every check is linear, and text of a few kilobytes costs about a microsecond.
"""

from __future__ import annotations

import random
import re
from itertools import accumulate
from typing import Final

import msgspec

MAX_DEPTH: Final = 200
"""Python's decoder gives up near 1000 levels, less what its caller has on the stack; honest data stays below 50."""
MAX_DIGITS: Final = 4000
"""Python refuses to read integers of more than 4300 digits."""
MAX_CONTAINERS: Final = 500_000
"""Arrays plus objects; each costs its reader some hundred bytes whatever it holds, and here 0.1 us to measure depth."""
MAX_LONE_SURROGATES: Final = 100_000
"""Each costs half a microsecond, and honest text holds a few: emoji that somebody cut in two."""

_raw: msgspec.json.Decoder[msgspec.Raw] = msgspec.json.Decoder(msgspec.Raw)

_NO_BRACKET_OR_QUOTE = bytes(set(range(256)) - set(b'[]{}"'))
_ONE_KIND_OF_BRACKET = bytes.maketrans(b"{}", b"[]")
_STEPS = bytes.maketrans(b"[]", b"\x01\xff")  # +1 and -1 when read as signed bytes
_DIGITS_ONLY = bytes(ord("0") if chr(byte).isdecimal() else ord(" ") for byte in range(128)) + b" " * 128
_LONG_NUMBER = b"0" * (MAX_DIGITS + 1)
# Half of a pair is no match; to be searched for where no escaped backslash is left, whose end looks like an escape.
_LONE_SURROGATE = re.compile(
    rb"\\u([dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|[c-fC-F](?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F])[0-9a-fA-F]{2}))"
)
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_REPLACEMENT = rb"\\ufffd"  # as a template of `re`
_PRIVATE_USE = range(0xE000, 0xF900)


def check_bounds(text: bytes) -> None:
    """Raise `ValueError`, a phrase that continues "the arguments ...", when well-formed JSON exceeds a bound."""
    # Brackets in strings count too; the exact count is only made when this one leaves a doubt.
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH:
        _check_nesting(text)
    if len(text) > MAX_DIGITS and _has_long_number(text) and _has_long_number(_without_strings(_without_escapes(text))):
        raise ValueError(f"hold a number of more than {MAX_DIGITS} digits")


def _check_nesting(text: bytes) -> None:
    brackets = _without_escapes(text).translate(_ONE_KIND_OF_BRACKET, _NO_BRACKET_OR_QUOTE)
    # A string without brackets is now empty; what `""` joins otherwise are two strings, which stay inside quotes.
    brackets = _without_strings(brackets.replace(b'""', b""))
    if len(brackets) > 2 * MAX_CONTAINERS:
        raise ValueError(f"hold more than {MAX_CONTAINERS} arrays and objects")
    removed = 0
    while brackets and removed < 8:  # most data is flat: three passes leave nothing for the slow count
        brackets = brackets.replace(b"[]", b"")
        removed += 1
    if brackets and removed + max(accumulate(memoryview(brackets.translate(_STEPS)).cast("b"))) > MAX_DEPTH:
        raise ValueError(f"are nested more than {MAX_DEPTH} levels deep")


def _has_long_number(text: bytes) -> bool:
    return _LONG_NUMBER in text.translate(_DIGITS_ONLY)


def _without_escapes(text: bytes) -> bytes:
    return text.replace(rb"\\", b"").replace(rb"\"", b"")


def _without_strings(text: bytes) -> bytes:
    # Outside, inside, outside, ...: a split takes half the time of a regular expression over millions of short strings.
    return b"".join(text.split(b'"')[::2])


def clean_result(text: bytes, *, max_bytes: int) -> bytes:
    """Return a result from a sandbox as JSON that every strict decoder reads; lone surrogates become U+FFFD.

    Raises `ValueError`, a phrase that continues "the result ...". The bytes come from the submitted program, which may
    have written them itself.
    """
    if len(text) > max_bytes:
        raise ValueError(f"is larger than {max_bytes} bytes")
    try:
        if not text.isascii():
            str(text, "utf-8")
        try:
            _raw.decode(text)
        except msgspec.DecodeError:
            if not _SURROGATE_ESCAPE.search(text):
                raise
            text, _ = _replace_lone_surrogates(text, _REPLACEMENT)
            _raw.decode(text)
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None
    except msgspec.DecodeError:
        raise ValueError("is not valid JSON") from None
    except RecursionError:
        raise ValueError(f"is nested more than {MAX_DEPTH} levels deep") from None
    try:
        check_bounds(text)
    except ValueError as error:
        raise ValueError(str(error).replace("are ", "is ", 1).replace("hold ", "holds ", 1)) from None
    return text


def _replace_lone_surrogates(text: bytes, template: bytes, *, at_most: int = 0) -> tuple[bytes, int]:
    """Replace each escape that is no half of a pair, and say how many were."""
    if b"\0" in text:
        return text, 0  # no JSON, and so free to stand for escaped backslashes below
    text, count = _LONE_SURROGATE.subn(template, text.replace(rb"\\", b"\0\0"), count=at_most)
    return text.replace(b"\0\0", rb"\\"), count


class SurrogateCloak:
    """Carries lone surrogates past a strict decoder; halves of emoji are common and must arrive unchanged."""

    def __init__(self) -> None:
        self._mark = b""
        self.hidden = 0
        self.restored = 0
        """How many of the hidden ones were in what was restored."""

    def hide(self, text: bytes) -> bytes | None:
        """Return `text` with a mark that is nowhere else in it before the digits of each lone surrogate; None when it
        has none. Raises `ValueError`, a phrase that continues "the body ...".
        """
        if not _SURROGATE_ESCAPE.search(text):
            return None
        # Two different code points: no text of some megabytes can hold a good part of the 40 million pairs, and no
        # mark begins within another.
        while not self._mark or self._mark in text:
            self._mark = rb"\u%04x\u%04x" % tuple(random.sample(_PRIVATE_USE, 2))
        template = self._mark.replace(b"\\", rb"\\") + rb"\1"
        text, self.hidden = _replace_lone_surrogates(text, template, at_most=MAX_LONE_SURROGATES + 1)
        if self.hidden > MAX_LONE_SURROGATES:
            raise ValueError(f"holds more than {MAX_LONE_SURROGATES} lone surrogates")
        return text if self.hidden else None

    def restore(self, text: bytes) -> bytes:
        text, self.restored = re.subn(re.escape(self._mark) + rb"(.{4})", rb"\\u\1", text)
        return text
