"""What the rate limit says about one request; its answer tells, also where it is an error."""

from __future__ import annotations

import msgspec


class RateDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What the rate limit says about one request."""

    is_allowed: bool
    limit: int
    window_seconds: int
    remaining: int
    reset_seconds: float
    """Until the window has room again; callers who were refused wait that long."""
