"""Who may run something now: tenants by API key, and their rates, in Redis where there is one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import limits
import msgspec

from sandbox_svc.admission.redis_link import RedisAway
from sandbox_svc.admission.windows import MemoryWindows, RedisWindows
from sandbox_svc.client_address import address_key
from sandbox_svc.rate_decision import RateDecision
from sandbox_svc.service.tenants import Tenant

if TYPE_CHECKING:
    from sandbox_svc.admission.keys import KeyRing
    from sandbox_svc.admission.redis_link import RedisLink
    from sandbox_svc.clock import Clock

NAMESPACE: Final = "runs"
"""Of the windows' names."""


class AdmissionStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counters for metrics; they only grow, but for `windows`."""

    allowed: int
    refused: int
    local: int
    """Decided by this instance alone although a Redis is configured."""
    windows: int
    """Windows kept in memory now."""


class RateAdmission:
    """Implements the service's `Admission`: keys name the tenant, and a moving window counts its runs.

    With Redis a decision is one round trip and holds over all instances. While Redis is away each instance counts by
    itself, against the full limit: callers are served, and one whose requests reach several instances may get up to
    that many times its rate (decision 0007).
    """

    def __init__(
        self,
        *,
        rate_limit: str | None,
        keys: KeyRing | None = None,
        link: RedisLink | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`rate_limit` is that of tenants without their own, such as `5/second`; None: no limit."""
        self._default = None if rate_limit is None else parse_rate(rate_limit)
        self._keys = keys
        self._link = link
        self._shared = None if link is None else RedisWindows(link)
        self._local = MemoryWindows(clock=clock)
        self._allowed = self._refused = self._by_itself = 0

    def identify(self, credential: str | None, client: str | None) -> Tenant:
        """Return the tenant of a key, or `default` counted per client address where there are no keys.

        Raises `Unauthorized`.
        """
        if self._keys is not None:
            return self._keys.tenant(credential)
        return Tenant(rate_key=f"address/{address_key(client)}")

    async def admit(self, tenant: Tenant) -> RateDecision | None:
        """Count a run and decide; takes a call of the link at most. Refused runs do not count."""
        item = self._rate_of(tenant)
        if item is None:
            return None
        key = item.key_for(tenant.caller)
        amount, seconds = item.amount, item.get_expiry()
        taken = None
        if self._link is not None and self._shared is not None:
            shared = self._shared
            try:
                taken = await self._link.call(lambda: shared.take(key, amount, seconds))
            except RedisAway:
                self._by_itself += 1
            else:
                if taken.is_admitted:
                    # So that an outage does not hand out a second full window.
                    self._local.take_now(key, amount, seconds, is_forced=True)
        if taken is None:
            taken = self._local.take_now(key, amount, seconds)
        if taken.is_admitted:
            self._allowed += 1
        else:
            self._refused += 1
        return RateDecision(
            is_allowed=taken.is_admitted,
            limit=amount,
            window_seconds=seconds,
            remaining=taken.remaining,
            reset_seconds=taken.reset_seconds,
        )

    def _rate_of(self, tenant: Tenant) -> limits.RateLimitItem | None:
        text = None if self._keys is None else self._keys.rate_limit(tenant.name)
        if text is None:
            return self._default
        return parse_rate(text) if text else None

    def stats(self) -> AdmissionStats:
        return AdmissionStats(
            allowed=self._allowed, refused=self._refused, local=self._by_itself, windows=len(self._local)
        )


@functools.lru_cache(maxsize=1024)
def parse_rate(text: str) -> limits.RateLimitItem:
    """Read a rate such as `5/second`. Raises `ValueError`."""
    item = limits.parse(text)
    item.namespace = NAMESPACE
    return item
