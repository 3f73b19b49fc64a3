"""A Redis that answers late: shared limits as long as that costs little, else local ones, and no to and fro."""

from __future__ import annotations

import asyncio
import collections
import time

import anyio
import pytest

from sandbox_svc.admission.rates import RateAdmission
from sandbox_svc.admission.redis_link import CALL_SECONDS, SLOW_CALLS, LinkState, RedisLink
from sandbox_svc.notation import Secret
from sandbox_svc.service.tenants import Tenant
from tests.contract.conftest import Connect
from tests.redis_server import RedisServer
from tests.slow_relay import SlowRelay

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

CALLERS = 50
ROOM = 0.75
"""For the machine the tests run on: two cores, and others use them too."""


class Seen:
    """What callers got in a while."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.slowest = 0.0
        self.changes = 0

    def __str__(self) -> str:
        counts = " ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        return f"{counts}, slowest {self.slowest:.3f} s, state changed {self.changes} times"


async def work(link: RedisLink, admission: RateAdmission, seconds: float) -> Seen:
    """50 callers that ask one time after the other, each for itself: nobody may be refused."""
    seen = Seen()
    link.on_change(lambda: setattr(seen, "changes", seen.changes + 1))
    end = time.monotonic() + seconds

    async def call(number: int) -> None:
        tenant = Tenant(name=f"tenant-{number}")
        while (began := time.monotonic()) < end:
            before = admission.stats().local
            decision = await admission.admit(tenant)
            took = time.monotonic() - began
            is_right = decision is not None and decision.is_allowed and decision.remaining > 0
            seen.counts["right" if is_right else "wrong"] += 1
            seen.slowest = max(seen.slowest, took)
            # A caller's pause; without it those that need not wait for Redis would do nothing but ask.
            await asyncio.sleep(0.05 if admission.stats().local > before else 0.005)

    local = admission.stats().local
    results = await asyncio.gather(*(call(number) for number in range(CALLERS)), return_exceptions=True)
    seen.counts["lost"] = sum(result is not None for result in results)
    seen.counts["local"] = admission.stats().local - local
    return seen


@pytest.mark.parametrize(
    ("delay_ms", "state"), [(50, LinkState.OK), (200, LinkState.DEGRADED), (240, LinkState.DEGRADED), (400, LinkState.DEGRADED)]
)  # fmt: skip
async def test_a_latency_is_either_borne_or_an_outage(
    redis: RedisServer, connect: Connect, delay_ms: int, state: LinkState
) -> None:
    """200 and 240 ms opened the breaker for a moment again and again: each time callers paid a quarter of a second, and
    their limits were now the shared ones and now this instance's own.
    """
    async with SlowRelay(redis) as relay:
        link = await connect(Secret(f"redis://127.0.0.1:{relay.port}/0"), call_seconds=CALL_SECONDS)
        assert await link.probe()
        admission = RateAdmission(rate_limit="100000/minute", link=link)
        relay.delay_seconds = delay_ms / 1000
        first = await work(link, admission, 1.0)
        then = await work(link, admission, 2.5)  # longer than the longest pause between probes
        print(f"{delay_ms} ms: at first {first}; then {then}; {link.stats()}")
        for seen in (first, then):
            assert (seen.counts["wrong"], seen.counts["lost"]) == (0, 0)
            assert seen.slowest < CALL_SECONDS + ROOM
        assert link.state is state
        if state is LinkState.OK:
            assert (first.changes, then.changes) == (0, 0)
            assert then.counts["local"] < then.counts["right"] / 3
        else:
            assert (first.changes, then.changes) == (1, 0)
            # Nobody waits for it any more.
            assert then.slowest < ROOM
            assert then.counts["local"] == then.counts["right"]
        relay.delay_seconds = 0
        with anyio.fail_after(5):
            while not link.is_ok:  # noqa: ASYNC110 - polls what another task brings about
                await asyncio.sleep(0.02)


async def test_a_slow_redis_is_noticed_without_callers_and_not_taken_back_before_it_is_quick(
    redis: RedisServer, connect: Connect
) -> None:
    async with SlowRelay(redis) as relay:
        link = await connect(Secret(f"redis://127.0.0.1:{relay.port}/0"), call_seconds=CALL_SECONDS)
        relay.delay_seconds = CALL_SECONDS * 0.6
        for _ in range(6):
            await link.probe()
        assert (link.state, link.stats().reason) == (LinkState.DEGRADED, "slow")
        relay.delay_seconds = CALL_SECONDS * 0.4
        assert not await link.probe()
        relay.delay_seconds = 0.0
        assert await link.probe()


async def test_callers_without_a_place_are_an_outage_when_they_are_most(redis: RedisServer, connect: Connect) -> None:
    """Every one of them waited a quarter of a second in vain, and Redis counted as there all the time."""
    async with SlowRelay(redis) as relay:
        link = await connect(Secret(f"redis://127.0.0.1:{relay.port}/0"), call_seconds=CALL_SECONDS)
        admission = RateAdmission(rate_limit="100000/minute", link=link)
        await admission.admit(Tenant(name="acme"))  # a server that does not know the script yet is asked three times
        relay.delay_seconds = CALL_SECONDS * 0.3
        burst = await asyncio.gather(*(admission.admit(Tenant(name="acme")) for _ in range(3 * 16)))
        assert all(decision is not None and decision.is_allowed for decision in burst)
        assert link.is_ok, "one burst is none"
        for _ in range(10):
            await asyncio.gather(*(admission.admit(Tenant(name="acme")) for _ in range(4 * SLOW_CALLS)))
        assert (link.state, link.stats().reason) == (LinkState.DEGRADED, "slow")
