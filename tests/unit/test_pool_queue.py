"""The waiting queue: bounded, fair, honest about time, and never in the way of those it does not concern."""

from __future__ import annotations

import pytest

from sandbox_svc.errors import PoolClosed, QueueFull, QueueTimeout, RuntimeUnavailable
from sandbox_svc.pool.estimates import wait_seconds
from sandbox_svc.pool.events import QueueAnswer, QueueWaited
from sandbox_svc.pool.pool import PoolSettings
from tests.fakes import quiet
from tests.simulation import Load, Scenario, play
from tests.stage import Caller, Stage, on_stage


def served(callers: list[Caller]) -> list[int]:
    return [number for number, caller in enumerate(callers) if caller.has_slot]


async def serve_all(stage: Stage, callers: list[Caller]) -> list[str]:
    """Let whoever has the slot leave, until nobody waits; returns the tenants in the order of service."""
    order: list[str] = []
    for _ in callers:
        await stage.clock.advance(0.01)
        current = next(caller for caller in callers if caller.has_slot)
        order.append(current.tenant)
        await current.leave()
    return order


async def test_a_tenant_is_served_first_in_first_out():
    """SF-08: fair within a tenant."""
    async with on_stage() as stage:
        holder = await stage.call()
        waiting = [await stage.call() for _ in range(4)]
        await holder.leave()
        for number in range(4):
            assert [number] == served(waiting)
            await waiting[number].leave()


async def test_a_newcomer_does_not_pass_those_who_wait():
    """A slot that comes free belongs to the queue, also when somebody asks in that very moment."""
    async with on_stage() as stage:
        holder = await stage.call()
        first = await stage.call()
        stage.runtime.stages.hang("settle")
        await holder.leave()
        second = await stage.call()
        stage.runtime.stages.let_go("settle")
        await quiet()
        assert first.has_slot
        assert not second.has_slot


async def test_tenants_take_turns():
    """With as many slots as the greedy one wants to fill, everybody who waits is served before it is served again."""
    async with on_stage(pool_settings=PoolSettings(turn_seconds=0)) as stage:
        callers = [await stage.call("greedy") for _ in range(5)]
        callers += [await stage.call(tenant) for tenant in ("a", "b", "a")]
        order = await serve_all(stage, callers)
        assert "greedy" == order[0]
        assert {"a", "b"} == set(order[1:3])
        assert "greedy" in order[3:5], "the others have had their turn"
        assert "a" in order[3:5]
        assert ["greedy"] * 3 == order[5:]


async def test_a_share_bounds_a_tenant_only_while_others_wait():
    async with on_stage(sizes={"python": 3}) as stage:
        greedy = [await stage.call("greedy", share=1) for _ in range(3)]
        assert [0, 1, 2] == served(greedy), "nobody else wants them"
        more = await stage.call("greedy", share=1)
        other = [await stage.call("other") for _ in range(2)]
        for caller in greedy[:2]:
            await caller.leave()
        assert [0, 1] == served(other)
        assert not more.has_slot
        await other[0].leave()
        assert more.has_slot, "nobody else waits any more"


@pytest.mark.parametrize("how", ["timed out", "cancelled"])
async def test_a_share_ends_when_those_who_wait_give_up(how):
    """Nothing happened to any slot, and still somebody's turn has come."""
    async with on_stage(sizes={"python": 3}) as stage:
        stage.runtime.stages.fail("start", *[RuntimeUnavailable("no")] * 100)
        stage.sandboxes[2].kill()
        await quiet()
        greedy = [await stage.call("greedy", share=1) for _ in range(2)]
        more = await stage.call("greedy", share=1, timeout_seconds=100)
        other = await stage.call("other", timeout_seconds=3)
        await greedy[0].leave()
        assert [False, False] == [more.has_slot, other.has_slot], "the free one is greedy's, and it has its share"
        if how == "cancelled":
            await other.cancel()
        await stage.clock.advance(3)
        assert more.has_slot
        stage.runtime.stages.mend("start")


async def test_the_queue_is_bounded():
    """SF-08: whoever comes when it is full is told at once."""
    async with on_stage(pool_settings=PoolSettings(queue_size=2)) as stage:
        await stage.call()
        waiting = [await stage.call() for _ in range(2)]
        refused = await stage.call()
        assert isinstance(refused.error, QueueFull)
        assert [None, None] == [caller.error for caller in waiting]
        assert 2 == stage.pool.stats()["python"].queued


async def test_a_queue_of_size_zero_serves_at_once_or_refuses():
    async with on_stage(pool_settings=PoolSettings(queue_size=0)) as stage:
        holder = await stage.call()
        assert holder.has_slot
        assert isinstance((await stage.call()).error, QueueFull)
        await holder.leave()
        assert (await stage.call()).has_slot


async def test_a_tenant_that_fills_the_queue_keeps_nobody_out():
    """The newest request of the longest line makes room; a tenant cannot push out anybody but itself."""
    async with on_stage(pool_settings=PoolSettings(queue_size=3)) as stage:
        await stage.call("greedy")
        greedy = [await stage.call("greedy") for _ in range(3)]
        other = await stage.call("other")
        assert other.error is None
        assert [None, None, QueueFull] == [caller.error and type(caller.error) for caller in greedy]
        again = await stage.call("other")
        assert isinstance(again.error, QueueFull), "two each would be more than there is room for"
        assert [None, None] == [caller.error for caller in greedy[:2]]


async def test_who_waits_too_long_is_told_so():
    async with on_stage() as stage:
        await stage.call()
        late = await stage.call(timeout_seconds=3)
        await stage.clock.advance(2.99)
        assert not late.task.done()
        await stage.clock.advance(0.01)
        assert isinstance(late.error, QueueTimeout)
        assert QueueWaited("python", QueueAnswer.TIMED_OUT, 3.0) == stage.events[-1]
        assert 0 == stage.pool.stats()["python"].queued


async def test_no_time_to_wait_is_refused_unless_a_slot_is_free():
    async with on_stage() as stage:
        assert (await stage.call(timeout_seconds=0)).has_slot
        assert isinstance((await stage.call(timeout_seconds=0)).error, QueueTimeout)


async def test_the_hand_over_beats_a_timeout_that_comes_after_it():
    """The slot was given before time ran out; the waiter has not run yet, and it gets it."""
    async with on_stage() as stage:
        holder = await stage.call()
        waiting = await stage.call(timeout_seconds=3)
        holder.finish()
        await stage.clock.advance(3)
        assert waiting.has_slot


async def test_what_cannot_be_served_in_time_is_refused_at_once():
    """All starts fail and the next is tried too late: that is certain, so nobody waits for it."""
    async with on_stage(is_started=False) as stage:
        stage.runtime.stages.fail("start", *[RuntimeUnavailable("disk full")] * 20)
        await stage.start()
        await stage.clock.advance(60)
        assert stage.pool.stats()["python"].is_failing
        refused = await stage.call(timeout_seconds=1)
        assert isinstance(refused.error, QueueTimeout)
        assert 0.0 == refused.lease.queued_seconds
        assert 1 < refused.error.retry_after_seconds <= 31
        patient = await stage.call(timeout_seconds=600)
        assert patient.error is None
        stage.runtime.stages.mend("start")
        await stage.clock.advance(60)
        assert patient.has_slot


async def test_who_waits_is_refused_as_soon_as_waiting_is_in_vain():
    async with on_stage(is_started=False) as stage:
        stage.runtime.stages.hang("start")
        await stage.start()
        impatient = await stage.call(timeout_seconds=0.2)
        patient = await stage.call(timeout_seconds=5)
        stage.runtime.stages.let_go("start", RuntimeUnavailable("disk full"))
        await quiet()
        assert isinstance(impatient.error, QueueTimeout)
        assert patient.error is None
        await stage.clock.advance(1)
        assert patient.has_slot


async def test_waiting_for_a_start_that_may_still_work_is_not_in_vain():
    """Refusing is for what is certain: while a container is being created, nothing is."""
    async with on_stage(is_started=False) as stage:
        stage.runtime.stages.hang("start")
        await stage.start()
        caller = await stage.call(timeout_seconds=0.1)
        assert caller.error is None
        stage.runtime.stages.let_go("start")
        await quiet()
        assert caller.has_slot


@pytest.mark.parametrize(("queued", "expected"), [(1, 2.0), (4, 5.0), (59, 60.0)])
async def test_retry_after_comes_from_recent_leases_and_the_queue(queued, expected):
    async with on_stage(pool_settings=PoolSettings(queue_size=queued)) as stage:
        for _ in range(100):
            caller = await stage.call()
            await stage.clock.advance(1)
            await caller.leave()
        await stage.call()
        for _ in range(queued):
            await stage.call(timeout_seconds=1000)
        refused = await stage.call(timeout_seconds=1000)
        assert isinstance(refused.error, QueueFull)
        assert expected == pytest.approx(refused.error.retry_after_seconds, rel=0.01)


async def test_closing_answers_everybody_who_waits():
    async with on_stage() as stage:
        holder = await stage.call()
        waiting = [await stage.call(tenant) for tenant in ("acme", "zeta", "acme")]
        stage.pool.close()
        await quiet()
        assert [PoolClosed] * 3 == [type(caller.error) for caller in waiting]
        assert holder.has_slot


async def test_who_clearly_cannot_be_served_in_time_is_refused_at_once():
    """Two slots, runs of 3 s, six callers ahead: 12 s to wait at the least, and 5 s of time."""
    async with on_stage(sizes={"python": 2}) as stage:
        await history(stage, leases=10, seconds=3)
        waiting = [await stage.call(timeout_seconds=5) for _ in range(2 + 6)]
        assert [None] * 8 == [caller.error for caller in waiting], "9 s at the least is not clearly too late"
        refused = await stage.call(timeout_seconds=5)
        assert isinstance(refused.error, QueueTimeout)
        assert (0.0, 0.0) == (refused.lease.queued_seconds, stage.clock.time() - refused.lease.asked_at)
        assert 12 == pytest.approx(refused.error.retry_after_seconds)
        assert (await stage.call(timeout_seconds=60)).error is None, "with more time it is worth the wait"
        assert (await stage.call("other", timeout_seconds=5)).error is None, "its own turn comes soon"


async def test_without_a_history_everybody_waits():
    """Nothing is clear after a few runs, however long they were."""
    async with on_stage() as stage:
        await history(stage, leases=7, seconds=100)
        callers = [await stage.call(timeout_seconds=0.1) for _ in range(20)]
        assert [None] * 20 == [caller.error for caller in callers]


async def test_a_run_that_is_about_to_end_is_worth_the_wait():
    async with on_stage() as stage:
        await history(stage, leases=10, seconds=10)
        await stage.call()
        await stage.clock.advance(9)
        assert (await stage.call(timeout_seconds=1)).error is None
        assert isinstance((await stage.call(timeout_seconds=1)).error, QueueTimeout), "but not the one behind it"


def test_refusing_at_once_costs_no_slot_a_moment():
    """Callers for fifty times the slots there are: the slots never rest, and not all wait their full time in vain."""
    result = play(Scenario("overload", (Load("many", 100, 1.0),), slots=2, queue_size=1000, seconds=120))
    (seen,) = result.seen
    assert 0.99 * 2 * 120 <= seen.slot_seconds, "0.1 % of it is resets"
    assert seen.wait(1.0) <= 10
    assert seen.refused - seen.waited_in_vain > 100


@pytest.mark.parametrize(
    ("leases", "age", "expected"),
    [
        (0, 0, 1.0),
        (0, 30, 30.0),  # nothing ever ended, and this has gone on for half a minute
        (10, 0, 3.0),
        (10, 30, 30.0),
    ],
)
async def test_retry_after_looks_at_what_runs_now(leases, age, expected):
    """With runs that take longer than those before, or before any has ended, it said one second."""
    async with on_stage(pool_settings=PoolSettings(queue_size=0)) as stage:
        await history(stage, leases=leases, seconds=3)
        await stage.call()
        await stage.clock.advance(age)
        refused = await stage.call()
        assert isinstance(refused.error, QueueFull)
        assert expected == pytest.approx(refused.error.retry_after_seconds, rel=0.01)


async def test_retry_after_is_that_of_the_callers_own_turn():
    """Who fills the queue waits for it; somebody else's turn comes after one of each."""
    async with on_stage(pool_settings=PoolSettings(queue_size=4)) as stage:
        await history(stage, leases=10, seconds=2)
        for _ in range(5):
            await stage.call("greedy")
        own = stage.pool.retry_after_seconds("python", "greedy")
        other = stage.pool.retry_after_seconds("python", "small")
        assert (10, 4) == (round(own), round(other))


async def test_retry_after_of_a_pool_that_closes_is_the_rest_of_its_drain():
    async with on_stage() as stage:
        await history(stage, leases=10, seconds=4)
        holder = await stage.call()
        stage.pool.close(drain_seconds=30)
        refused = await stage.call()
        assert isinstance(refused.error, PoolClosed)
        assert 4 == round(refused.error.retry_after_seconds)
        await stage.clock.advance(28)
        late = await stage.call()
        assert isinstance(late.error, PoolClosed)
        assert 2 == round(late.error.retry_after_seconds), "then its container is taken away"
        await holder.leave()


async def history(stage: Stage, *, leases: int, seconds: float) -> None:
    for _ in range(leases):
        caller = await stage.call()
        await stage.clock.advance(seconds)
        await caller.leave()
    stage.callers.clear()


@pytest.mark.parametrize(
    ("free_in", "ahead", "each", "expected"),
    [
        ([], 0, 1, None),
        ([0.0], 0, 5, 0.0),
        ([2.0], 0, 5, 2.0),
        ([2.0], 3, 5, 17.0),
        ([2.0, 0.5], 1, 5, 2.0),
        ([2.0, 0.5], 2, 5, 5.5),
        ([1.0, 1.0, 1.0, 60.0], 8, 1, 3.0),  # one that is stuck costs its own place and no more
        ([0.0, 0.0], 5, 0, 0.0),
    ],
)
def test_the_wait_is_that_of_the_place_that_is_free_first(free_in, ahead, each, expected):
    assert expected == wait_seconds(free_in, ahead=ahead, each=each)
