"""What a request's `Accept` header asks for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_WEIGHT: Final = re.compile(r"[01](\.[0-9]{0,3})?")


def prefers(headers: Iterable[tuple[bytes, bytes]], wanted: str, *, to: str) -> bool:
    """Whether a media type is asked for by its name, and no less than the one that is usual at a path.

    Wildcards never ask for it, but they count for the usual one: `text/event-stream;q=0.5, */*` is better served by
    that. Between equals the name decides, since nobody names it who does not want it.
    """
    weights = _weights(headers)
    weight = weights.get(wanted, 0.0)
    # The most specific range that matches decides, whatever its weight.
    usual = next((weights[one] for one in (to, f"{to.partition('/')[0]}/*", "*/*") if one in weights), 0.0)
    return weight > 0 and weight >= usual


def _weights(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, float]:
    """The weight of each media range; parameters of a type other than its weight are not told apart."""
    weights: dict[str, float] = {}
    for name, value in headers:
        if name == b"accept":
            for choice in value.decode("latin-1").lower().split(","):
                media_range, *parameters = (part.strip() for part in choice.split(";"))
                weights[media_range] = max(weights.get(media_range, 0.0), _weight(parameters))
    return weights


def _weight(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            # What is no weight says nothing.
            return min(float(value), 1.0) if _WEIGHT.fullmatch(value := value.strip()) else 1.0
    return 1.0
