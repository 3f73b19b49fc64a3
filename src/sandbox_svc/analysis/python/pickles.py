"""Reading the names in pickled bytes without unpickling them."""

from __future__ import annotations

import pickletools
from typing import Final

MAX_OPERATIONS: Final = 2000

_TEXTS: Final = frozenset(
    {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "SHORT_BINSTRING", "BINSTRING"}
)


def names_in(data: bytes) -> list[str]:
    """Return the dotted names of the globals that the pickle loads, up to where it stops being one."""
    found: list[str] = []
    texts: list[str] = []
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
            if count > MAX_OPERATIONS:
                break
            if operation.name in ("GLOBAL", "INST"):
                found.append(str(argument).replace(" ", "."))
            elif operation.name == "STACK_GLOBAL" and len(texts) > 1:
                found.append(".".join(texts[-2:]))
            elif operation.name in _TEXTS:
                texts.append(str(argument))
    except (ValueError, IndexError, UnicodeDecodeError, OverflowError):
        return found
    return found
