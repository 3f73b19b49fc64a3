"""What a request's `Accept` header asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def accepts(headers: Iterable[tuple[bytes, bytes]], wanted: str) -> bool:
    """Whether a media type is asked for by its name; wildcards mean whatever is usual at a path."""
    for name, value in headers:
        if name == b"accept":
            for choice in value.decode("latin-1").lower().split(","):
                media_type, *parameters = (part.strip() for part in choice.split(";"))
                if media_type == wanted and not any(_is_zero(parameter) for parameter in parameters):
                    return True
    return False


def _is_zero(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip() == "q" and value.strip() in ("0", "0.", "0.0", "0.00", "0.000")
