"""Policy of the pool: what an operator or a test may choose."""

from __future__ import annotations

from enum import Enum

import msgspec


class Reuse(Enum):
    """Whether a container serves its tenant again after a verified reset, or one run only. Never another tenant."""

    TENANT = "tenant"
    NEVER = "never"


class PoolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The same for every language."""

    reuse: Reuse = Reuse.TENANT
    queue_size: int = 64
    """Leases that may wait per language; 0 refuses what cannot be served at once."""
    turn_seconds: float = 1.0
    """How long a busy tenant keeps a slot that a tenant with fewer waits for; several times what replacing it takes."""
    replace_at_once: int = 2
    """Containers of a language that may be on their way out or in because another tenant needs their place."""
