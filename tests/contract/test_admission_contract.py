"""Rate limits mean the same in memory and in Redis; what only a shared Redis can promise is marked so."""

from __future__ import annotations

import asyncio

import limits
import pytest
from limits.aio.strategies import MovingWindowRateLimiter

from sandbox_svc.admission.rates import RateAdmission
from sandbox_svc.admission.windows import MemoryWindows, RedisWindows
from sandbox_svc.rate_decision import RateDecision
from sandbox_svc.service.tenants import Tenant
from tests.contract.conftest import Connect
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

ACME = Tenant(name="acme")


class Make:
    """Makes admissions of one kind; all that one test makes share their Redis, if they have one."""

    def __init__(self, server: RedisServer | None, connect: Connect) -> None:
        self._server = server
        self._connect = connect

    async def __call__(self, rate_limit: str | None) -> RateAdmission:
        link = None if self._server is None else await self._connect(self._server.url)
        return RateAdmission(rate_limit=rate_limit, link=link)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.redis)])
async def make(request: pytest.FixtureRequest, connect: Connect) -> Make:
    return Make(request.getfixturevalue("redis") if request.param == "redis" else None, connect)


async def decide(admission: RateAdmission, tenant: Tenant = ACME) -> RateDecision:
    decision = await admission.admit(tenant)
    assert decision is not None
    return decision


async def test_of_many_at_once_exactly_as_many_pass_as_the_limit_says(make: Make) -> None:
    admission = await make("7/minute")
    decisions = await asyncio.gather(*(decide(admission) for _ in range(100)))
    assert sum(decision.is_allowed for decision in decisions) == 7
    assert sorted(d.remaining for d in decisions if d.is_allowed) == [0, 1, 2, 3, 4, 5, 6]
    assert {d.remaining for d in decisions if not d.is_allowed} == {0}


async def test_a_decision_says_what_is_left_and_when_there_is_room_again(make: Make) -> None:
    admission = await make("2/minute")
    first = await decide(admission)
    assert (first.is_allowed, first.limit, first.window_seconds, first.remaining) == (True, 2, 60, 1)
    assert first.reset_seconds == pytest.approx(60, abs=1)
    assert (await decide(admission)).remaining == 0
    refused = await decide(admission)
    assert (refused.is_allowed, refused.remaining) == (False, 0)
    assert 58 < refused.reset_seconds <= 60


async def test_tenants_do_not_touch_each_other(make: Make) -> None:
    admission = await make("1/minute")
    assert (await decide(admission)).is_allowed
    assert (await decide(admission, Tenant(name="other"))).is_allowed
    assert not (await decide(admission)).is_allowed


async def test_a_caller_who_waits_as_long_as_told_is_let_in(make: Make) -> None:
    """And refused attempts do not push the window on: who goes on trying is let in at the same moment."""
    admission = await make("3/second")
    began = asyncio.get_running_loop().time()
    for _ in range(3):
        assert (await decide(admission)).is_allowed
    while not (decision := await decide(admission)).is_allowed:
        assert decision.reset_seconds <= 1
        await asyncio.sleep(min(decision.reset_seconds, 0.05))
    assert 0.9 < asyncio.get_running_loop().time() - began < 2


async def test_no_window_of_a_second_ever_holds_more_than_the_limit(make: Make) -> None:
    """A greedy caller for three seconds; a counter of fixed windows lets 10 pass within one second, a sliding one 9."""
    admission = await make("5/second")
    loop = asyncio.get_running_loop()
    passed: list[tuple[float, float]] = []
    end = loop.time() + 3
    while loop.time() < end:
        before = loop.time()
        if (await decide(admission)).is_allowed:
            passed.append((before, loop.time()))
        await asyncio.sleep(0.005)
    # Between the answer to the first and the question of the sixth lies the whole window.
    for first, sixth in zip(passed, passed[5:], strict=False):
        assert sixth[1] - first[0] >= 1
    assert len(passed) >= 15


async def test_without_a_limit_there_is_no_decision(make: Make) -> None:
    assert await (await make(None)).admit(ACME) is None


@pytest.mark.redis
async def test_instances_share_one_window(redis: RedisServer, connect: Connect) -> None:
    admissions = [RateAdmission(rate_limit="10/minute", link=await connect(redis.url)) for _ in range(3)]
    decisions = await asyncio.gather(*(decide(admissions[i % 3]) for i in range(90)))
    assert sum(decision.is_allowed for decision in decisions) == 10


@pytest.mark.redis
async def test_a_decision_is_one_round_trip(redis: RedisServer, connect: Connect) -> None:
    admission = RateAdmission(rate_limit="1000/second", link=await connect(redis.url))
    await decide(admission)
    redis.command("CONFIG", "RESETSTAT")
    for _ in range(20):
        await decide(admission)
    calls = _calls(redis)
    # The link's own look at Redis may fall in between.
    assert calls["evalsha"] in (20, 21)
    assert not {"eval", "script|load", "script|exists", "ping"} & calls.keys()


@pytest.mark.redis
async def test_the_clock_of_an_instance_does_not_matter(
    redis: RedisServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance an hour ahead would otherwise fill the window with stamps that shut it for all others."""
    admission = RateAdmission(rate_limit="2/second", link=await connect(redis.url))
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: 10_000_000_000.0)
        assert (await decide(admission)).is_allowed
    assert (await decide(admission)).is_allowed
    assert (await decide(admission)).reset_seconds <= 1


@pytest.mark.redis
async def test_a_clock_of_redis_that_is_set_back_does_not_shut_a_window(redis: RedisServer, connect: Connect) -> None:
    admission = RateAdmission(rate_limit="1/minute", link=await connect(redis.url))
    assert (await decide(admission)).is_allowed
    (key,) = redis.command("KEYS", "sandbox_svc:rate*").split()
    redis.command("DEL", key)
    redis.command("RPUSH", key, "9999999999999999")
    assert (await decide(admission)).is_allowed
    assert not (await decide(admission)).is_allowed


@pytest.mark.redis
async def test_windows_do_not_stay_in_redis(redis: RedisServer, connect: Connect) -> None:
    admission = RateAdmission(rate_limit="5/second", link=await connect(redis.url))
    await decide(admission)
    (key,) = redis.command("KEYS", "sandbox_svc:rate*").split()
    assert 0 < int(redis.command("PTTL", key)) <= 1000


@pytest.mark.redis
async def test_what_redis_admitted_counts_when_redis_goes(redis: RedisServer, connect: Connect) -> None:
    """Else every outage would open a second full window at its first moment."""
    link = await connect(redis.url)
    admission = RateAdmission(rate_limit="3/minute", link=link)
    for _ in range(3):
        assert (await decide(admission)).is_allowed
    await link.close()
    assert not (await decide(admission)).is_allowed
    assert admission.stats().local == 1


@pytest.mark.redis
async def test_the_strategies_of_limits_agree_with_our_storages(redis: RedisServer, connect: Connect) -> None:
    for storage in (MemoryWindows(), RedisWindows(await connect(redis.url))):
        limiter = MovingWindowRateLimiter(storage)
        item = limits.parse("3/minute")
        assert [await limiter.hit(item, "a") for _ in range(4)] == [True, True, True, False]
        stats = await limiter.get_window_stats(item, "a")
        assert stats.remaining == 0
        assert not await limiter.test(item, "a")
        assert await limiter.test(item, "b")
        assert not await limiter.hit(item, "b", cost=4)
        assert await limiter.hit(item, "b", cost=3)


def _calls(server: RedisServer) -> dict[str, int]:
    found = {}
    for line in server.command("INFO", "commandstats").splitlines():
        if line.startswith("cmdstat_"):
            name, _, rest = line.removeprefix("cmdstat_").partition(":")
            found[name] = int(rest.partition("=")[2].partition(",")[0])
    return found
