"""How long a request would wait, from what is known of the places it may get: plain arithmetic."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Final

CLEARLY: Final = 2.0
"""How many times the time that a request has its wait must be for it to be refused at once. With twice as much work
ahead of it no place stands idle for it, however uneven the runs are."""
ENOUGH_LEASES: Final = 8
"""Ended leases of a language without which its mean is no ground to refuse anybody."""


def wait_seconds(free_in: Iterable[float], *, ahead: int, each: float) -> float | None:
    """Seconds until a place is free for somebody who has `ahead` others before them; None where there is no place.

    `free_in` says of each place in how many seconds it is free. Everybody keeps a place for `each` seconds.
    """
    free = list(free_in)
    if not free:
        return None
    heapq.heapify(free)
    for _ in range(ahead):
        heapq.heapreplace(free, free[0] + each)
    return free[0]
