"""Places that move between tenants: only by replacing the container, and no more of them than are needed."""

from __future__ import annotations

import pytest

from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.pool.events import SlotRetired
from sandbox_svc.pool.pool import PoolSettings
from sandbox_svc.pool.slots import Retirement, SlotState
from tests.stage import Stage, lost, on_stage

EAGER = PoolSettings(replace_at_once=100)


def given_up(stage: Stage) -> int:
    """Containers that were replaced because another tenant waited."""
    return stage.events.count(SlotRetired("python", Retirement.NEEDED))


async def bind_all(stage: Stage, tenant: str) -> None:
    """Every container has served `tenant` and is idle; the first one longest."""
    callers = [await stage.call(tenant) for _ in stage.slots]
    for caller in callers:
        await stage.clock.advance(1)
        await caller.leave()
    stage.callers.clear()
    stage.events.clear()
    assert {SlotState.READY} == set(stage.states())


@pytest.mark.parametrize(("waiters", "retired"), [(1, 1), (2, 2), (3, 3), (4, 4), (9, 4)])
async def test_no_more_containers_are_replaced_than_there_are_waiters(waiters, retired):
    """The stampede: each waiter and each event looks at the pool again, and still each place is given up once."""
    async with on_stage(sizes={"python": 4}, pool_settings=EAGER) as stage:
        await bind_all(stage, "acme")
        stage.runtime.stages.hang("remove")
        callers = [await stage.call("zeta") for _ in range(waiters)]
        assert retired == given_up(stage)
        stage.runtime.stages.hang("start")
        stage.runtime.stages.let_go("remove")
        await stage.clock.advance(1)
        assert retired == given_up(stage), "STARTING covers as RETIRING did"
        stage.runtime.stages.let_go("start")
        await stage.clock.advance(1)
        assert retired == given_up(stage)
        assert retired == sum(caller.has_slot for caller in callers)


async def test_no_more_are_replaced_at_once_than_can_be_started():
    """The others stay warm for their tenant, and the waiters get what comes first."""
    async with on_stage(sizes={"python": 4}) as stage:
        await bind_all(stage, "acme")
        stage.runtime.stages.hang("start")
        for _ in range(4):
            await stage.call("zeta")
        assert 2 == given_up(stage)
        assert (await stage.call("acme")).has_slot
        stage.runtime.stages.let_go("start")
        await stage.clock.advance(1)
        assert 3 == given_up(stage), "acme's own slot is in use, and the last one was given up"


@pytest.mark.parametrize(("share", "retired"), [(1, 2), (2, 3), (None, 4)])
async def test_no_place_is_given_up_that_the_share_of_who_waits_would_not_use(share, retired):
    """A tenant with a share of one, others waiting too, had a place given up for each of its requests."""
    async with on_stage(sizes={"python": 5}, pool_settings=EAGER) as stage:
        await bind_all(stage, "acme")
        stage.runtime.stages.hang("remove")
        other = await stage.call("other")
        for _ in range(3):
            await stage.call("zeta", share=share)
        assert retired == given_up(stage)
        stage.runtime.stages.hang("start")
        stage.runtime.stages.let_go("remove")
        await stage.clock.advance(0.01)
        assert retired == given_up(stage)
        assert not other.has_slot
        stage.runtime.stages.let_go("start")


async def test_the_least_recently_used_goes_first():
    async with on_stage(sizes={"python": 3}) as stage:
        await bind_all(stage, "acme")
        oldest = stage.slots[0].sandbox
        stage.runtime.stages.hang("remove")
        await stage.call("zeta")
        assert [SlotState.RETIRING, SlotState.READY, SlotState.READY] == stage.states()
        assert oldest is stage.slots[0].sandbox


async def test_a_container_on_its_way_back_to_the_tenant_is_waited_for():
    """RESETTING takes a millisecond, replacing another one hundreds."""
    async with on_stage(sizes={"python": 2}) as stage:
        await bind_all(stage, "acme")
        own = await stage.call("zeta")
        stage.runtime.stages.hang("settle")
        await own.leave()
        stage.events.clear()
        waiting = await stage.call("zeta")
        assert 0 == given_up(stage)
        stage.runtime.stages.let_go("settle")
        await stage.clock.advance(0)
        assert waiting.has_slot


async def test_a_waiter_that_gives_up_costs_no_second_container():
    async with on_stage(sizes={"python": 3}) as stage:
        await bind_all(stage, "acme")
        stage.runtime.stages.hang("start")
        for _ in range(5):
            caller = await stage.call("zeta")
            await caller.cancel()
        assert 1 == given_up(stage)


async def test_nothing_is_given_up_while_starts_fail():
    """The container could not be replaced, so it would be lost to both tenants."""
    async with on_stage(sizes={"python": 2}) as stage:
        await bind_all(stage, "acme")
        stage.runtime.stages.fail("start", *[RuntimeUnavailable("disk full")] * 100)
        await (await stage.call("acme")).leave(lost())
        stage.events.clear()
        zeta = await stage.call("zeta", timeout_seconds=100)
        await stage.clock.advance(50)
        assert 0 == given_up(stage)
        assert (await stage.call("acme")).has_slot, "what is warm still serves"
        stage.runtime.stages.mend("start")
        await stage.clock.advance(40)
        assert zeta.has_slot


async def test_nothing_is_given_up_that_could_not_be_started_for_want_of_a_permit():
    """A slot without permit is nothing to wait for: an idle container of another tenant is replaced on its own permit."""
    async with on_stage(sizes={"python": 3}, is_started=False) as stage:
        stage.permits.bound = 2
        await stage.start()
        assert [SlotState.READY, SlotState.READY, SlotState.EMPTY] == stage.states()
        for caller in [await stage.call("acme") for _ in range(2)]:
            await caller.leave()
        zeta = await stage.call("zeta")
        assert zeta.has_slot
        assert 1 == given_up(stage)
        assert 2 == stage.engine.peak


async def test_who_counted_on_a_slot_that_lost_its_permit_gets_another():
    async with on_stage(sizes={"python": 2}) as stage:
        await bind_all(stage, "acme")
        stage.runtime.stages.hang("remove")
        zeta = await stage.call("zeta")
        stage.permits.bound = 1
        stage.permits.lose(stage.permits.held[0])
        stage.runtime.stages.let_go("remove")
        await stage.clock.advance(1)
        assert [SlotState.EMPTY, SlotState.LEASED] == stage.states()
        assert zeta.has_slot


async def test_a_busy_tenant_gives_up_what_it_has_too_many_of():
    """One tenant holds everything and always has more to do; another one comes and gets its half, slot by slot."""
    async with on_stage(sizes={"python": 4}) as stage:
        greedy = [await stage.call("greedy", timeout_seconds=1000) for _ in range(40)]
        small = [await stage.call("small", timeout_seconds=1000) for _ in range(4)]
        for _ in range(12):
            await stage.clock.advance(0.01)
            current = next(caller for caller in greedy if caller.has_slot)
            await current.leave()
        assert 2 == sum(caller.has_slot for caller in small)
        assert 2 == sum(caller.has_slot for caller in greedy), "and not more than half"
        assert 2 == given_up(stage)


async def test_with_more_tenants_than_slots_a_place_is_kept_for_a_turn():
    """Replacing after each run would cost far more than the runs; never replacing would starve the other tenant."""
    async with on_stage() as stage:
        greedy = [await stage.call("greedy", timeout_seconds=1000) for _ in range(40)]
        small = await stage.call("small")
        served = 0
        while not small.has_slot:
            await stage.clock.advance(0.1)
            current = next(caller for caller in greedy if caller.has_slot)
            await current.leave()
            served += 1
        assert 10 == served, "turn_seconds is 1"
        assert 1 == given_up(stage)
        await small.leave()
        assert any(caller.has_slot for caller in greedy), "its place is idle now and goes back at once"


async def test_fresh_containers_serve_anybody():
    async with on_stage(sizes={"python": 3}) as stage:
        for tenant in "abc":
            assert (await stage.call(tenant)).has_slot
        assert 0 == given_up(stage)


async def test_a_place_kept_for_its_tenant_for_as_long_as_replacing_it_takes():
    """One that has other places waits a little before it takes an idle one: its tenant may be back at once."""
    async with on_stage(sizes={"python": 3}, is_started=False) as stage:
        stage.runtime.stages.seconds["start"] = 0.5
        await stage.start()
        await stage.clock.advance(5)
        small = await stage.call("small")
        greedy = [await stage.call("greedy") for _ in range(3)]
        await small.leave()
        await stage.clock.advance(0.4)
        assert 0 == given_up(stage)
        small = await stage.call("small")
        assert 0.0 == small.lease.queued_seconds
        await small.leave()
        await stage.clock.advance(1.0)
        assert 1 == given_up(stage), "and nothing but time had to pass for that"
        await stage.clock.advance(0.5)
        assert [True] * 3 == [caller.has_slot for caller in greedy]


async def test_where_tenants_compete_a_fresh_container_is_kept_at_hand():
    """After the first one had to wait for a replacement, the next newcomers need not."""
    async with on_stage(sizes={"python": 3}, is_started=False) as stage:
        stage.runtime.stages.seconds["start"] = 0.5
        await stage.start()
        await stage.clock.advance(5)
        waits = []
        for tenant in "abcdefg":
            caller = await stage.call(tenant)
            await stage.clock.advance(0.6)
            waits.append(caller.lease.queued_seconds)
            await caller.leave()
            await stage.clock.advance(10)
        assert [0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0] == waits
        assert 1 == given_up(stage)


async def test_one_tenant_alone_keeps_all_its_containers():
    async with on_stage(sizes={"python": 3}) as stage:
        await bind_all(stage, "acme")
        before = stage.sandboxes
        await stage.clock.advance(600)
        assert before == stage.sandboxes
