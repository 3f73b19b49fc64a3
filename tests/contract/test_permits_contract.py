"""Permits mean the same in the tests' fake and in Redis; what only a shared Redis can promise comes after."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest

from sandbox_svc.admission.liveness import Liveness
from sandbox_svc.admission.permits import PermitTimes, RedisPermit, RedisPermits
from sandbox_svc.admission.redis_link import RedisLink
from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.pool.tending import Permit, Permits
from sandbox_svc.runtime.instances import Birthmark, Stranger
from tests.contract.conftest import Connect
from tests.fakes import FakePermits, ManualClock
from tests.redis_server import RedisServer

pytestmark = pytest.mark.anyio

BOUND = 3
LANGUAGES = ("python", "nodejs")

# As in production, thirty times as fast.
QUICK = PermitTimes(
    step_seconds=0.1, settle_seconds=0.3, clear_seconds=0.12, alive_seconds=0.5, lease_seconds=1.0, poll_seconds=0.05
)


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - polls another process
            await asyncio.sleep(0.005)


class Instance:
    """What one instance of the service has of its own."""

    _numbers = itertools.count(1)

    def __init__(self, link: RedisLink, *, bound: int, strangers: list[Stranger], birthmark: str, engine: str) -> None:
        self.link = link
        self.strangers = strangers
        """What the engine shows of the containers of others; the test's to change."""
        self.name = f"instance-{next(self._numbers)}"
        self.permits = RedisPermits(
            link,
            engine=engine,
            instance=self.name,
            bounds=dict.fromkeys(LANGUAGES, bound),
            birthmark=birthmark,
            strangers=self.list_strangers,
            times=QUICK,
        )
        self.liveness = Liveness(
            link, instance=self.name, languages=LANGUAGES, here=Birthmark.of_this_process(), times=QUICK
        )
        self.liveness.use_engine(engine)
        self._scope = anyio.CancelScope()

    async def list_strangers(self) -> list[Stranger]:
        return self.strangers

    async def reap(self, sweep: Callable[[], Awaitable[int]] | None = None) -> int:
        return await self.liveness.reap(sweep or _no_sweep, self.list_strangers)

    async def run(self) -> None:
        with self._scope:
            await self.permits.run()

    async def leave(self) -> None:
        """It ends in order, as the service does: no step of its own comes after its last word."""
        self._scope.cancel()
        await self.permits.close()
        await self.liveness.leave()
        await self.link.close()

    async def kill(self) -> None:
        """It stops in the middle of everything and says nothing to anybody."""
        self._scope.cancel()
        await self.link.close()

    @property
    def total(self) -> int:
        return self.permits.stats()["python"].total


class Cluster:
    """Instances that share a Redis and an engine."""

    def __init__(self, server: RedisServer, connect: Connect, group: anyio.abc.TaskGroup) -> None:
        self._server = server
        self._connect = connect
        self._group = group

    async def instance(
        self,
        *,
        bound: int = BOUND,
        strangers: tuple[Stranger, ...] = (),
        birthmark: str = "",
        engine: str = "engine",
    ) -> Instance:
        link = await self._connect(self._server.url)
        instance = Instance(link, bound=bound, strangers=[*strangers], birthmark=birthmark, engine=engine)
        self._group.start_soon(instance.run)
        return instance


@pytest.fixture
async def cluster(redis: RedisServer, connect: Connect) -> AsyncIterator[Cluster]:
    async with anyio.create_task_group() as group:
        yield Cluster(redis, connect, group)
        group.cancel_scope.cancel()


@asynccontextmanager
async def no_wait(seconds: float = 2) -> AsyncIterator[None]:
    with anyio.fail_after(seconds):
        yield


@pytest.fixture(params=["fake", pytest.param("redis", marks=pytest.mark.redis)])
async def permits(request: pytest.FixtureRequest, connect: Connect) -> AsyncIterator[Permits]:
    if request.param == "fake":
        yield FakePermits(ManualClock(), bound=BOUND)
        return
    async with anyio.create_task_group() as group:
        yield (await Cluster(request.getfixturevalue("redis"), connect, group).instance()).permits
        group.cancel_scope.cancel()


async def take(permits: Permits, count: int = BOUND, language: str = "python") -> list[Permit]:
    async with no_wait():
        return [await permits.acquire(language) for _ in range(count)]


async def is_waiting(task: asyncio.Task[Permit]) -> bool:
    """Whether it waits still after a few polls."""
    await asyncio.sleep(0.15)
    return not task.done()


# Both


async def test_no_more_than_the_bound_are_held_and_the_next_waits_for_a_release(permits: Permits) -> None:
    held = await take(permits)
    assert all(permit.is_held for permit in held)
    assert permits.surplus("python") == 0, "nobody else is there"
    waiter = asyncio.create_task(_acquire(permits))
    assert await is_waiting(waiter)
    await held[1].release()
    async with no_wait():
        assert (await waiter).is_held


async def test_languages_have_permits_of_their_own(permits: Permits) -> None:
    await take(permits)
    await take(permits, language="nodejs")


async def test_waiters_are_served_in_their_order(permits: Permits) -> None:
    held = await take(permits)
    served: list[int] = []

    async def wait(number: int) -> None:
        await permits.acquire("python")
        served.append(number)

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(wait, number)
            await asyncio.sleep(0.02)
        for permit in held:
            await permit.release()
    assert served == [0, 1, 2]


async def test_a_cancelled_waiter_takes_nothing_with_it(permits: Permits) -> None:
    held = await take(permits)
    waiters = [asyncio.create_task(_acquire(permits)) for _ in range(3)]
    assert await is_waiting(waiters[0])
    waiters[0].cancel()
    waiters[1].cancel()
    await held[0].release()
    async with no_wait():
        assert (await waiters[2]).is_held
    for permit in held[1:]:
        await permit.release()
    await take(permits, 2)


async def test_releasing_twice_gives_back_one(permits: Permits) -> None:
    held = await take(permits)
    await held[0].release()
    await held[0].release()
    await take(permits, 1)
    waiter = asyncio.create_task(_acquire(permits))
    assert await is_waiting(waiter)
    waiter.cancel()


async def _acquire(permits: Permits) -> Permit:
    return await permits.acquire("python")


# Redis: the bound over many instances

pytest_redis = pytest.mark.redis


@pytest_redis
async def test_many_tasks_of_many_instances_never_hold_more_than_the_bound(cluster: Cluster) -> None:
    """Every race of the script at once: 60 tasks in 4 instances take and give back 5 permits, some giving up."""
    bound, rng = 5, random.Random(1)
    instances = [await cluster.instance(bound=bound) for _ in range(4)]
    held = most = taken = 0

    async def worker(instance: Instance) -> None:
        nonlocal held, most, taken
        for _ in range(4):
            try:
                with anyio.fail_after(rng.uniform(0.001, 2)):
                    permit = await instance.permits.acquire("python")
            except TimeoutError:
                continue
            held += 1
            taken += 1
            most = max(most, held)
            assert held <= bound
            await asyncio.sleep(rng.uniform(0, 0.01))
            held -= 1
            await permit.release()

    async with anyio.create_task_group() as group:
        for instance in instances:
            for _ in range(15):
                group.start_soon(worker, instance)
    assert most == bound
    assert taken > 60
    # And nothing is left behind by those that gave up.
    last = instances[0]
    async with no_wait(5):
        await take(last.permits, bound)
    assert last.total == bound


@pytest_redis
async def test_fences_grow_with_every_grant(cluster: Cluster) -> None:
    one, two = await cluster.instance(), await cluster.instance()
    fences: list[int] = []
    for number in range(12):
        permit = await (one, two)[number % 2].permits.acquire("python")
        fences.append(permit.fence)
        await permit.release()
    assert fences == sorted(set(fences))


@pytest_redis
async def test_engines_do_not_share_a_bound(cluster: Cluster) -> None:
    await take((await cluster.instance(engine="one")).permits)
    await take((await cluster.instance(engine="two")).permits)


@pytest_redis
async def test_bounds_that_differ_are_said_once(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Each goes by its own, so the smaller one means nothing."""
    for bound in (BOUND, BOUND):
        await cluster.instance(bound=bound)
    await asyncio.sleep(4 * QUICK.step_seconds)
    assert "bound" not in caplog.text
    await cluster.instance(bound=BOUND + 1)
    await asyncio.sleep(8 * QUICK.step_seconds)
    said = [record.getMessage() for record in caplog.records if "give all of them the same" in record.getMessage()]
    assert 2 <= len(said) <= 2 * 3
    assert any("bound of 4 containers of python and this one by 3" in message for message in said)


@pytest_redis
async def test_an_unknown_language_is_refused(cluster: Cluster) -> None:
    with pytest.raises(RuntimeUnavailable):
        await (await cluster.instance()).permits.acquire("cobol")


@pytest_redis
async def test_an_instance_that_has_its_share_lets_one_go_first_that_has_not(cluster: Cluster) -> None:
    """The first instance took everything; what it gives back goes to the second, up to half."""
    one, two = await cluster.instance(bound=4), await cluster.instance(bound=4)
    held = await take(one.permits, 4)
    hungry = [asyncio.create_task(_acquire(one.permits)) for _ in range(2)]
    waiters = [asyncio.create_task(_acquire(two.permits)) for _ in range(3)]
    await until(lambda: one.permits.stats()["python"].surplus == 2)
    assert one.permits.surplus("python") == 2
    # Which ones go is the keeper's choice.
    await held[3].release()
    assert one.permits.surplus("python") == 1, "and not two again until Redis was asked"
    await held[0].release()
    await until(lambda: sum(waiter.done() for waiter in waiters) == 2)
    await asyncio.sleep(0.3)
    assert [task.done() for task in hungry] == [False, False]
    assert one.permits.stats()["python"].surplus == 0
    for task in (*hungry, *waiters):
        task.cancel()


# Redis: instances that end


@pytest_redis
async def test_the_permits_of_a_killed_instance_come_back_within_their_lease(cluster: Cluster) -> None:
    one, two = await cluster.instance(), await cluster.instance()
    await take(one.permits)
    began = asyncio.get_running_loop().time()
    await one.kill()
    await take(two.permits)
    assert asyncio.get_running_loop().time() - began < QUICK.lease_seconds + QUICK.poll_seconds + 0.5


@pytest_redis
async def test_permits_are_renewed_for_as_long_as_their_instance_lives(cluster: Cluster) -> None:
    one, two = await cluster.instance(), await cluster.instance()
    held = await take(one.permits)
    waiter = asyncio.create_task(_acquire(two.permits))
    await asyncio.sleep(2 * QUICK.lease_seconds)
    assert not waiter.done()
    assert one.total == BOUND
    assert one.permits.stats()["python"].held == len(held)
    waiter.cancel()


@pytest_redis
async def test_an_instance_dies_by_silence_and_its_permits_are_free_after_a_sweep(cluster: Cluster) -> None:
    one, two = await cluster.instance(), await cluster.instance()
    await take(one.permits)
    assert await two.liveness.is_instance_alive(one.name) is True
    await one.kill()
    swept: list[int] = []

    async def sweep() -> int:
        # The containers are still counted while they are being removed.
        swept.append(int(cluster._server.command("ZCARD", "sandbox_svc:{engine}:python:holders")))
        return BOUND

    freed = 0
    async with no_wait(QUICK.alive_seconds + 0.5):
        while not freed:
            assert not swept
            freed = await two.reap(sweep)
            await asyncio.sleep(0.01)
    assert (swept, freed) == ([BOUND], BOUND)
    assert await two.liveness.is_instance_alive(one.name) is False
    await take(two.permits)


@pytest_redis
async def test_a_failed_sweep_frees_nothing(cluster: Cluster) -> None:
    one, two = await cluster.instance(birthmark=_dead_birthmark()), await cluster.instance()
    await take(one.permits)
    await one.kill()

    async def sweep() -> int:
        raise RuntimeUnavailable("the engine is away")

    with pytest.raises(RuntimeUnavailable):
        await two.reap(sweep)
    waiter = asyncio.create_task(_acquire(two.permits))
    assert await is_waiting(waiter)
    waiter.cancel()


@pytest_redis
async def test_an_instance_that_is_silent_and_has_containers_keeps_its_permits_for_their_lease(
    cluster: Cluster,
) -> None:
    """It may be cut off from Redis and serve on, where nobody can see its process; if it is dead, they are about to end."""
    one = await cluster.instance()
    two = await cluster.instance(strangers=(Stranger(one.name, "python"),))
    await take(one.permits)
    await one.kill()
    while await two.liveness.is_instance_alive(one.name) is not False:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert await two.reap() == 0
    assert two.total == BOUND
    two.strangers.clear()
    assert await two.reap() == BOUND


@pytest_redis
async def test_a_process_seen_to_be_gone_need_not_be_waited_for(cluster: Cluster) -> None:
    """What makes a killed instance's successor on the same host ready at once."""
    one, two = await cluster.instance(birthmark=_dead_birthmark()), await cluster.instance()
    await take(one.permits)
    await one.kill()
    assert await two.liveness.is_instance_alive(one.name) is True
    assert await two.reap() == BOUND
    assert await two.liveness.is_instance_alive(one.name) is False
    await take(two.permits)


@pytest_redis
async def test_the_living_are_not_reaped(cluster: Cluster) -> None:
    here = str(Birthmark.of_this_process())
    one, two = await cluster.instance(birthmark=here), await cluster.instance()
    await take(one.permits)
    await one.kill()
    await asyncio.sleep(QUICK.alive_seconds + 0.1)
    # Cut off from Redis, but seen to live: its containers are its own.
    assert await two.liveness.is_instance_alive(one.name) is False
    assert await two.reap() == 0


@pytest_redis
async def test_an_instance_that_never_used_this_redis_is_unknown_not_dead(cluster: Cluster) -> None:
    assert await (await cluster.instance()).liveness.is_instance_alive("somebody") is None


@pytest_redis
async def test_an_instance_that_left_in_order_is_dead_at_once(cluster: Cluster) -> None:
    one, two = await cluster.instance(), await cluster.instance()
    for permit in await take(one.permits):
        await permit.release()
    await one.leave()
    assert await two.liveness.is_instance_alive(one.name) is False
    await take(two.permits)


@pytest_redis
async def test_who_leaves_with_a_container_left_behind_keeps_its_permit(cluster: Cluster) -> None:
    one, two = await cluster.instance(), await cluster.instance()
    held = await take(one.permits)
    await held[0].release()
    await one.leave()
    await take(two.permits, 1)
    waiter = asyncio.create_task(_acquire(two.permits))
    assert await is_waiting(waiter)
    assert await two.reap() == BOUND - 1
    async with no_wait():
        await waiter


# Redis: data that is lost, messages that are late


@pytest_redis
async def test_after_a_flush_nothing_is_granted_until_the_living_have_registered_again(
    cluster: Cluster, redis: RedisServer
) -> None:
    one, two = await cluster.instance(bound=4), await cluster.instance(bound=4)
    await take(one.permits, 2)
    await take(two.permits, 2)
    waiter = asyncio.create_task(_acquire(two.permits))
    redis.command("FLUSHALL")
    await until(lambda: int(redis.command("ZCARD", "sandbox_svc:{engine}:python:holders")) == 4)
    await asyncio.sleep(QUICK.settle_seconds + 0.2)
    assert not waiter.done()
    waiter.cancel()


@pytest_redis
@pytest.mark.parametrize("strangers", [(), (Stranger("one", "python"),)])
async def test_a_new_instance_waits_for_the_others_where_redis_lost_its_data(
    cluster: Cluster, redis: RedisServer, strangers: tuple[Stranger, ...]
) -> None:
    """The race that a semaphore loses: emptied, and asked by a stranger before those who hold come by. An engine that
    showed no container yet is no proof that nobody is about to make one.
    """
    one = await cluster.instance()
    await take(one.permits)
    redis.command("FLUSHALL")
    two = await cluster.instance(strangers=strangers)
    waiter = asyncio.create_task(_acquire(two.permits))
    await asyncio.sleep(QUICK.settle_seconds + 0.3)
    assert not waiter.done()
    waiter.cancel()


@pytest_redis
async def test_the_first_instance_of_all_waits_for_one_step_of_others(cluster: Cluster) -> None:
    clear = await cluster.instance(engine="one")
    unknown = await cluster.instance(engine="two", strangers=(Stranger("one", "python"),))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await take(clear.permits)
    assert loop.time() - began >= QUICK.step_seconds
    await take(unknown.permits)
    assert loop.time() - began >= QUICK.settle_seconds


@pytest_redis
async def test_nobody_is_dead_right_after_an_outage(cluster: Cluster, redis: RedisServer) -> None:
    """All were silent alike; whoever is back first must not take the others' containers."""
    one, two = await cluster.instance(), await cluster.instance()
    await take(one.permits)
    await asyncio.sleep(0)
    past = "1"
    redis.command("ZADD", "sandbox_svc:{engine}:alive", past, one.name, past, two.name)
    redis.command("HSET", "sandbox_svc:{engine}:state", "synced_at", past)
    assert await two.liveness.is_instance_alive(one.name) is not False


@pytest_redis
async def test_a_step_that_comes_late_changes_nothing(cluster: Cluster, redis: RedisServer) -> None:
    """A request that sat in the buffers of a Redis that stood still, and was given up and repeated since."""
    one = await cluster.instance()
    permit = await one.permits.acquire("python")
    keys = one.permits._keys
    late = one.permits._last_step
    await permit.release()
    await until(lambda: redis.command("ZCARD", keys.holders("python")) == "0")
    names = [keys.state, keys.alive, keys.marks]
    names += [keys.holders("python"), keys.fences("python"), keys.wants("python"), keys.steps("python")]
    reply = await one.permits._script(
        keys=names, args=[one.name, "", late, BOUND, 1000, 500, 0, 0, "late/1", permit.name]
    )
    assert reply[0] == b"stale"
    assert redis.command("ZCARD", keys.holders("python")) == "0"


@pytest_redis
async def test_a_grant_whose_answer_is_lost_is_given_back(cluster: Cluster, redis: RedisServer) -> None:
    """The waiter is cancelled while the answer is on its way; Redis has counted the permit by then."""
    one = await cluster.instance()
    original = one.permits._ask
    is_answered = asyncio.Event()

    async def ask_and_hang(*arguments: object) -> object:
        step = await original(*arguments)  # type: ignore[arg-type]
        if step.status == "granted":
            is_answered.set()
            await asyncio.sleep(10)
        return step

    one.permits._ask = ask_and_hang  # type: ignore[method-assign, assignment]
    waiter = asyncio.create_task(_acquire(one.permits))
    await is_answered.wait()
    assert redis.command("ZCARD", one.permits._keys.holders("python")) == "1"
    waiter.cancel()
    await until(lambda: redis.command("ZCARD", one.permits._keys.holders("python")) == "0")
    one.permits._ask = original  # type: ignore[method-assign]
    await take(one.permits)


@pytest_redis
async def test_a_clock_of_redis_that_is_set_back_keeps_no_dead_holder(cluster: Cluster, redis: RedisServer) -> None:
    one = await cluster.instance()
    keys = one.permits._keys
    redis.command("ZADD", keys.holders("python"), "99999999999999", "gone/1")
    redis.command("ZADD", keys.fences("python"), "1", "gone/1")
    await take(one.permits, BOUND - 1)
    waiter = asyncio.create_task(_acquire(one.permits))
    assert await is_waiting(waiter)
    async with no_wait(QUICK.lease_seconds + 0.5):
        assert isinstance(await waiter, RedisPermit)


def _dead_birthmark() -> str:
    here = Birthmark.of_this_process()
    return str(Birthmark(here.boot, here.namespace, 2**22 - 1, 1))


async def _no_sweep() -> int:
    return 0
