"""How many possibilities are tried, in either language; whoever leaves some out says so, and what they give is unknown.

Nothing here forgets silently: a program may put what it hides behind any number of harmless alternatives.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")
U = TypeVar("U")

MAX_ALTERNATIVES: Final = 24
"""Of one expression."""
MAX_COMBINED: Final = 8
"""Of several expressions together, where more than one has alternatives."""
_MAX_PAIRS: Final = MAX_COMBINED * MAX_COMBINED


def all_if_few(found: Sequence[T], most: int) -> Iterator[T | None]:
    """The first `most` of what was found; then None where there are more, of which nothing is known."""
    yield from found[:most]
    if len(found) > most:
        yield None


def each_with_each(choices: Iterable[Sequence[T]]) -> tuple[list[tuple[T, ...]], bool]:
    """Return rows of one of each choice, and whether these are all rows; as many as one choice has, or a few.

    The work is that of so many rows, however many choices there are.
    """
    kept: list[Sequence[T]] = []
    count, is_complete = 1, True
    for choice in choices:
        room = max(MAX_COMBINED // count, 1) if count > 1 else MAX_ALTERNATIVES + 1
        kept.append(choice[:room])
        is_complete = is_complete and len(choice) <= room
        count *= len(kept[-1])
    return list(itertools.product(*kept)), is_complete


def pairs(left: Sequence[T], right: Sequence[U]) -> tuple[list[tuple[T, U]], bool]:
    """Return each of one side with each of the other, and whether these are all pairs."""
    is_complete = len(left) * len(right) <= _MAX_PAIRS
    if not is_complete:
        left, right = left[:MAX_COMBINED], right[:MAX_COMBINED]
    return list(itertools.product(left, right)), is_complete
