"""Whom requests are served for, and what counts them."""

from __future__ import annotations

from typing import Protocol

import msgspec

from sandbox_svc.rate_decision import RateDecision
from sandbox_svc.runtime import RunLimits


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a request is served for. A container never serves two of them."""

    name: str = "default"
    rate_key: str = ""
    """What shares one rate limit: the tenant, or the caller's address where there are no keys."""
    share: int | None = None
    """Slots of a language it may lease at once while others wait; None: as many as there are."""
    maxima: RunLimits | None = None
    """Largest limits of one run; None: those of the service."""

    @property
    def caller(self) -> str:
        """Who is counted as one by whatever bounds a caller: rates, and bytes of requests."""
        return self.rate_key or f"tenant/{self.name}"


class Admission(Protocol):
    """Names tenants and counts their requests; `admission` implements it, `Unlimited` where nothing is configured."""

    def identify(self, credential: str | None, client: str | None) -> Tenant:
        """Return the tenant of an API key and a peer address. Raises `Unauthorized`. Never waits."""
        ...

    async def admit(self, tenant: Tenant) -> RateDecision | None:
        """Count one run and say whether it may start; None when no limit applies.

        Waits for Redis at most a fraction of a second; cancelling it may leave the run counted.
        """
        ...


class Unlimited:
    """Admits everyone as the tenant `default`: no keys, no limits."""

    _tenant = Tenant()

    def identify(self, credential: str | None, client: str | None) -> Tenant:  # noqa: ARG002 - the protocol's
        return self._tenant

    async def admit(self, tenant: Tenant) -> RateDecision | None:  # noqa: ARG002 - the protocol's
        return None
