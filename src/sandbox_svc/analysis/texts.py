"""Pure functions on texts that stand in a program: what encoders hide is shown, within bounds."""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections.abc import Callable
from typing import Final

HOLE: Final = "\ufffc"
"""Stands in a text for the part that is not known before the run: `f"/proc/{pid}/mem"` is `/proc/HOLE/mem`."""

MAX_TEXT: Final = 4096
"""Characters or bytes of a text that is followed; no name or path that matters is longer."""


_HOLES: Final = re.compile(f"{HOLE}+")


def could_be(text: str, name: str) -> bool:
    """Tell whether a text may come to be that name when its holes are filled."""
    first, *inner = _HOLES.split(text)
    if not inner:
        return text == name
    last = inner.pop()
    position, end = len(first), len(name) - len(last)
    if not name.startswith(first) or not name.endswith(last) or position > end:
        return False
    for part in inner:
        found = name.find(part, position, end)
        if found < 0:
            return False
        position = found + len(part)
    return True


def _ascii(data: str | bytes) -> bytes:
    return data.encode("ascii") if isinstance(data, str) else data


def from_base64(data: str | bytes) -> bytes:
    """Decode base64 of either alphabet, padded or not, as lenient decoders do. Raises ValueError."""
    raw = _ascii(data).translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n=")
    return base64.b64decode(raw + b"=" * (-len(raw) % 4))


def from_hex(data: str | bytes) -> bytes:
    """Decode hexadecimal digits, spaces allowed. Raises ValueError."""
    return binascii.unhexlify(_ascii(data).translate(None, b" \t\r\n"))


BYTE_DECODERS: Final[dict[str, Callable[[str | bytes], bytes]]] = {
    "base64.b64decode": from_base64,
    "base64.standard_b64decode": from_base64,
    "base64.urlsafe_b64decode": from_base64,
    "base64.decodebytes": from_base64,
    "base64.b32decode": lambda data: base64.b32decode(_ascii(data)),
    "base64.b16decode": lambda data: base64.b16decode(_ascii(data), casefold=True),
    "base64.b85decode": lambda data: base64.b85decode(_ascii(data)),
    "base64.a85decode": lambda data: base64.a85decode(_ascii(data)),
    "binascii.a2b_base64": from_base64,
    "binascii.unhexlify": from_hex,
    "binascii.a2b_hex": from_hex,
    "builtins.bytes.fromhex": from_hex,
    "builtins.bytearray.fromhex": from_hex,
}
"""By resolved name of the Python function."""

_TEXT_CODECS: Final = frozenset({"rot13", "rot_13", "rot-13"})
# Quadratic in the length of the text, or no codec at all.
_REFUSED_CODECS: Final = frozenset({"idna", "punycode", "undefined", "mbcs", "oem"})
_BYTE_CODECS: Final = frozenset({"base64", "base64_codec", "base-64", "hex", "hex_codec"})


def decode(data: str | bytes, encoding: str) -> str | bytes | None:
    """Decode with a codec by name: text encodings, rot13, base64, hex. None where that cannot be done."""
    name = encoding.lower()
    if name in _REFUSED_CODECS:
        return None
    try:
        if name in _TEXT_CODECS:
            return codecs.decode(data, "rot13") if isinstance(data, str) else None
        if name in _BYTE_CODECS:
            return from_hex(data) if name.startswith("hex") else from_base64(data)
        if isinstance(data, bytes) and codecs.lookup(name)._is_text_encoding:  # noqa: SLF001
            return data.decode(name)
    except (ValueError, LookupError):
        return None
    return None
