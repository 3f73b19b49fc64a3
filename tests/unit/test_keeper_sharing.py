"""The keeper makes room for other instances that share the engine."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_svc.pool.events import SlotRetired
from sandbox_svc.pool.keeper import KeeperSettings
from sandbox_svc.pool.slots import Retirement, SlotState
from tests.fakes import FakePermit, FakePermits, ManualClock, quiet
from tests.stage import Stage, on_stage

CHECK = KeeperSettings().check_every_seconds
NEEDED = SlotRetired("python", Retirement.NEEDED)


async def test_an_idle_container_goes_when_another_instance_waits_for_its_permit():
    """Else an instance that came second to a full engine would have nothing until the first one's containers are old."""
    clock = ManualClock()
    permits = FakePermits(clock, bound=2)
    async with on_stage(sizes={"python": 2}, permits=permits, clock=clock) as stage:
        assert stage.states() == [SlotState.READY] * 2
        other = await _waiting(permits)
        await clock.advance(CHECK)
        assert [NEEDED] == stage.seen(SlotRetired)
        assert [SlotState.EMPTY, SlotState.READY] == sorted(stage.states(), key=lambda state: state.name)
        permit = await other
        assert permit.is_held
        await permit.release()
        await quiet()
        assert stage.states() == [SlotState.READY] * 2


async def test_a_container_at_work_stays_until_its_run_is_over():
    clock = ManualClock()
    permits = FakePermits(clock, bound=1)
    async with on_stage(permits=permits, clock=clock) as stage:
        caller = await stage.call()
        permits.wanted = 1
        await clock.advance(3 * CHECK)
        assert stage.states() == [SlotState.LEASED]
        await caller.leave()
        assert [NEEDED] == stage.seen(SlotRetired)


async def test_an_instance_whose_slots_are_never_idle_gives_permits_back_all_the_same():
    """A permit was given back only by a slot that was READY at the instant of a check: under load, never."""
    clock = ManualClock()
    permits = FakePermits(clock, bound=2)
    async with on_stage(sizes={"python": 2}, permits=permits, clock=clock) as stage:
        callers = [await stage.call(timeout_seconds=1000) for _ in range(40)]
        other = await _waiting(permits)
        for _ in range(6):
            assert SlotState.READY not in stage.states()
            await _end_one_run(stage)
        permit = await other
        assert [NEEDED] == stage.seen(SlotRetired), "and no more than the one that is waited for"
        assert 1 == sum(caller.has_slot for caller in callers), "the rest serves on"
        await permit.release()
        await quiet()
        assert 2 == sum(caller.has_slot for caller in callers)


@pytest.mark.parametrize("is_checked", [True, False])
async def test_an_idle_container_goes_before_a_busy_one(is_checked):
    """The youngest permit may be that of the busiest slot; also when a run ends before the next check."""
    clock = ManualClock()
    permits = FakePermits(clock, bound=3)
    async with on_stage(sizes={"python": 3}, permits=permits, clock=clock) as stage:
        busy = [await stage.call(), await stage.call()]
        idle = next(slot for slot in stage.slots if slot.state is SlotState.READY)
        other = await _waiting(permits)
        if is_checked:
            await clock.advance(CHECK)
            assert SlotState.EMPTY is idle.state
        for caller in busy:
            await caller.leave()
        assert [NEEDED] == stage.seen(SlotRetired), "the one idle container was all that was asked for"
        assert SlotState.EMPTY is idle.state
        await (await other).release()


async def test_a_container_that_goes_anyway_goes_for_the_other_instance():
    clock = ManualClock()
    permits = FakePermits(clock, bound=2)
    async with on_stage(sizes={"python": 2}, permits=permits, clock=clock) as stage:
        stage.runtime.stages.hang("remove")
        stage.pool.retire(stage.slots[1], Retirement.AGED)
        await quiet()
        other = await _waiting(permits)
        await clock.advance(CHECK)
        assert [SlotRetired("python", Retirement.AGED)] == stage.seen(SlotRetired)
        stage.runtime.stages.let_go("remove")
        await clock.advance(1)
        assert [SlotState.READY, SlotState.EMPTY] == stage.states()
        await (await other).release()


async def test_nothing_goes_for_an_instance_that_waits_no_longer():
    clock = ManualClock()
    permits = FakePermits(clock, bound=2)
    async with on_stage(sizes={"python": 2}, permits=permits, clock=clock) as stage:
        callers = [await stage.call(), await stage.call()]
        permits.wanted = 1
        stage.runtime.stages.hang("remove")
        await callers[0].leave()
        permits.wanted = 0
        await callers[1].leave()
        await clock.advance(2 * CHECK)
        stage.runtime.stages.let_go("remove")
        await clock.advance(1)
        assert [NEEDED] == stage.seen(SlotRetired)
        assert [SlotState.READY] * 2 == stage.states(), "its permit was kept"


async def _end_one_run(stage: Stage) -> None:
    await stage.clock.advance(0.1)
    await next(caller for caller in stage.callers if caller.has_slot).leave()


async def _waiting(permits: FakePermits) -> asyncio.Task[FakePermit]:
    """Another instance, below its share, in line before this one can ask again."""
    permits.wanted += 1
    task = asyncio.create_task(permits.acquire("python"))
    await quiet()
    return task
