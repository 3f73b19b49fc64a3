"""The keeper makes room for other instances that share the engine."""

from __future__ import annotations

import asyncio

from sandbox_svc.pool.events import SlotRetired
from sandbox_svc.pool.keeper import KeeperSettings
from sandbox_svc.pool.slots import Retirement, SlotState
from tests.fakes import FakePermit, FakePermits, ManualClock, quiet
from tests.stage import on_stage

CHECK = KeeperSettings().check_every_seconds


async def test_an_idle_container_goes_when_another_instance_waits_for_its_permit():
    """Else an instance that came second to a full engine would have nothing until the first one's containers are old."""
    clock = ManualClock()
    permits = FakePermits(clock, bound=2)
    async with on_stage(sizes={"python": 2}, permits=permits, clock=clock) as stage:
        assert stage.states() == [SlotState.READY] * 2
        wanted = permits.held[1]
        wanted.is_wanted, wanted.is_held = True, False
        # The other instance, which waits in line before this one can ask again.
        other = await _waiting(permits)
        await clock.advance(CHECK)
        assert [SlotRetired("python", Retirement.NEEDED)] == stage.seen(SlotRetired)
        assert stage.states() == [SlotState.READY, SlotState.EMPTY]
        permit = await other
        assert permit.is_held
        await permit.release()
        await quiet()
        assert stage.states() == [SlotState.READY] * 2


async def test_a_container_at_work_stays_until_it_is_idle():
    clock = ManualClock()
    permits = FakePermits(clock, bound=1)
    async with on_stage(permits=permits, clock=clock) as stage:
        caller = await stage.call()
        permits.held[0].is_wanted = True
        await clock.advance(3 * CHECK)
        assert stage.states() == [SlotState.LEASED]
        await caller.leave()
        await clock.advance(CHECK)
        assert [SlotRetired("python", Retirement.NEEDED)] == stage.seen(SlotRetired)


async def _waiting(permits: FakePermits) -> asyncio.Task[FakePermit]:
    task = asyncio.create_task(permits.acquire("python"))
    await quiet()
    return task
