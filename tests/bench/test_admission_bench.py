"""What a decision and a permit cost, beside what `limits` brings itself: the figures of decision 0008."""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import limits
import pytest
import uvloop
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import MovingWindowRateLimiter, RateLimiter, SlidingWindowCounterRateLimiter

from sandbox_svc.admission.permits import RedisPermits
from sandbox_svc.admission.rates import RateAdmission
from sandbox_svc.admission.redis_link import RedisLink
from sandbox_svc.service.tenants import Tenant
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.bench, pytest.mark.redis]

ITEM = limits.parse("5/second")
STRATEGIES = {"moving window": MovingWindowRateLimiter, "sliding counter": SlidingWindowCounterRateLimiter}


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    if not RedisServer.is_installed():
        pytest.skip("redis-server is not installed")
    with TemporaryDirectory(prefix="redis-") as folder, RedisServer(Path(folder)) as server:
        yield server


def test_cost_and_accuracy(redis: RedisServer) -> None:
    uvloop.run(measure(redis))


async def measure(redis: RedisServer) -> None:
    tenants = [Tenant(name=f"tenant-{number}") for number in range(1000)]
    memory = RateAdmission(rate_limit="5/second")
    for count in (1, 1000):
        await cost(f"ours, memory, {count} tenants", lambda i, n=count: memory.admit(tenants[i % n]))  # type: ignore[misc]
    link = RedisLink(redis.url)
    assert await link.probe()
    shared = RateAdmission(rate_limit="5/second", link=link)
    await cost("ours, Redis", lambda i: shared.admit(tenants[i % 7]))
    stock = RedisStorage(
        "async+redis://",
        implementation="redispy",
        wrap_exceptions=True,
        connection_pool=link.pool,  # type: ignore[arg-type]
    )
    for name, strategy in STRATEGIES.items():
        limiter: RateLimiter = strategy(stock)
        await cost(f"limits, Redis, {name}", lambda i, by=limiter: by.hit(ITEM, str(i % 7)))  # type: ignore[misc]
        await cost(f"limits, Redis, {name}, with what is left", lambda i, by=limiter: hit_and_look(by, str(i % 7)))  # type: ignore[misc]
        await accuracy(f"limits, Redis, {name}", lambda by=limiter: by.hit(ITEM, "greedy"))  # type: ignore[misc]
        for count in (1, 100, 1000):
            storage = MemoryStorage()
            by_memory: RateLimiter = strategy(storage)
            await cost(
                f"limits, memory, {name}, {count} tenants",
                lambda i, by=by_memory, n=count: by.hit(limits.parse("1000/hour"), str(i % n)),  # type: ignore[misc]
                times=max(300, count),
                drain=storage,
            )
        in_memory: RateLimiter = strategy(MemoryStorage())
        await accuracy(f"limits, memory, {name}", lambda by=in_memory: by.hit(ITEM, "greedy"))  # type: ignore[misc]
    await accuracy("ours, memory", lambda: is_admitted(memory))
    await accuracy("ours, Redis", lambda: is_admitted(shared))
    permits = RedisPermits(link, engine="e", instance="i", bounds={"python": 64})

    async def take_and_return(_number: int) -> None:
        await (await permits.acquire("python")).release()

    await cost("permit taken and returned", take_and_return, times=500)
    held = [await permits.acquire("python") for _ in range(30)]
    await cost(f"step with {len(held)} permits held", lambda _: permits._step(permits._languages["python"]), times=500)
    await link.close()
    await cost("ours, Redis away", lambda i: shared.admit(tenants[i % 7]))


async def hit_and_look(limiter: RateLimiter, key: str) -> None:
    await limiter.hit(ITEM, key)
    await limiter.get_window_stats(ITEM, key)


async def is_admitted(admission: RateAdmission) -> bool:
    decision = await admission.admit(Tenant(name="greedy"))
    return decision is not None and decision.is_allowed


async def cost(
    name: str, call: Callable[[int], Awaitable[object]], *, times: int = 3000, drain: MemoryStorage | None = None
) -> None:
    """Print the time of a call, and the CPU of this process per call with all that it left to do in the background."""
    for number in range(times if drain is not None else 50):
        await call(number)
    took: list[float] = []
    cpu = time.process_time()
    for number in range(times):
        began = time.perf_counter()
        await call(number)
        took.append(time.perf_counter() - began)
        if drain is not None:
            await asyncio.sleep(0.001)
    took.sort()
    cpu = time.process_time() - cpu
    print(
        f"{name:60} p50 {took[times // 2] * 1e6:7.1f} us  p99 {took[times * 99 // 100] * 1e6:7.1f} us"
        f"  CPU {cpu / times * 1e6:7.1f} us"
    )


async def accuracy(name: str, call: Callable[[], Awaitable[bool]]) -> None:
    """Print how many of one call and then a burst pass within a second: what a caller does that knows the weakness."""
    passed: list[float] = []
    end = time.monotonic() + 4
    await asyncio.sleep(1.1)
    if await call():
        passed.append(time.monotonic())
    await asyncio.sleep(0.9)
    while time.monotonic() < end:
        if await call():
            passed.append(time.monotonic())
        await asyncio.sleep(0.005)
    # The stamps are taken a little after the decision.
    most = max(bisect.bisect_left(passed, first + 0.99) - index for index, first in enumerate(passed))
    print(f"{name:60} at most {most} of 5 within a second")
