"""The ordered end: refuse, answer, let finish, take away, remove; and nothing is left, whatever hangs."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_svc.errors import PoolClosed, RuntimeUnavailable, SandboxLost
from sandbox_svc.pool.slots import SlotState
from tests.fakes import PROGRAM, FakePermits, ManualClock, quiet
from tests.stage import Stage, on_stage


def drain(stage: Stage, seconds: float = 20.0) -> asyncio.Task[int]:
    return asyncio.create_task(stage.keeper.drain(deadline_seconds=seconds))


async def test_an_idle_pool_is_empty_at_once():
    async with on_stage(sizes={"python": 3}) as stage:
        draining = drain(stage)
        await quiet()
        assert 0 == draining.result()
        assert {} == stage.engine.containers
        assert stage.run.done()
        assert stage.run.exception() is None


async def test_leases_finish_and_waiters_are_answered():
    async with on_stage(sizes={"python": 2}) as stage:
        running = [await stage.call(), await stage.call()]
        waiting = await stage.call()
        draining = drain(stage)
        await quiet()
        assert isinstance(waiting.error, PoolClosed)
        assert not stage.pool.is_ready("python")
        assert not draining.done()
        await running[0].leave()
        assert 1 == len(stage.engine.containers), "what is done is removed without waiting for the rest"
        await stage.clock.advance(19)
        assert running[1].has_slot
        await running[1].leave()
        assert draining.done()
        assert [None, None] == [caller.error for caller in running]


async def test_at_the_deadline_runs_lose_their_sandbox():
    async with on_stage() as stage:
        stage.runtime.stages.hang("run")

        async def call() -> None:
            async with stage.pool.lease("python", tenant="acme", template="plain", timeout_seconds=1) as lease:
                await lease.sandbox.run(PROGRAM)

        task = asyncio.create_task(call())
        await quiet()
        draining = drain(stage, 20)
        await stage.clock.advance(19.9)
        assert not task.done()
        await stage.clock.advance(0.1)
        assert isinstance(task.exception(), SandboxLost)
        assert 0 == draining.result()
        assert {} == stage.engine.containers


async def test_a_second_signal_ends_it_now():
    async with on_stage(sizes={"python": 2}) as stage:
        caller = await stage.call()
        draining = drain(stage)
        await quiet()
        assert not draining.done()
        stage.keeper.hasten()
        await quiet()
        assert 0 == draining.result()
        with pytest.raises(SandboxLost):
            _ = caller.lease.sandbox
        await caller.leave()
        assert [SlotState.EMPTY] * 2 == stage.states(), "the late end of the lease changes nothing"


async def test_a_second_signal_also_cuts_the_wait_for_removals_short():
    async with on_stage() as stage:
        stage.runtime.stages.hang("remove")
        draining = drain(stage, 20)
        await stage.clock.advance(5)
        stage.keeper.hasten()
        await stage.clock.advance(2.9)
        assert not draining.done()
        await stage.clock.advance(0.2)
        assert 1 == draining.result()
        stage.forget()


async def test_hurry_before_the_drain():
    async with on_stage() as stage:
        await stage.call()
        stage.keeper.hasten()
        draining = drain(stage)
        await quiet()
        assert 0 == draining.result()


async def test_a_removal_that_hangs_does_not_hold_up_the_end():
    """The engine is frozen: we say what we leave, within a bound, and the next sweep finds it."""
    async with on_stage(sizes={"python": 2}) as stage:
        stage.runtime.stages.hang("remove")
        draining = drain(stage, 20)
        await stage.clock.advance(29.9)
        assert not draining.done()
        await stage.clock.advance(0.1)
        assert 2 == draining.result()
        assert stage.run.done()
        assert stage.run.exception() is None
        stage.forget()
        assert 2 == len(stage.engine.containers)


async def test_a_removal_that_fails_is_tried_again_at_once_in_a_hurry():
    async with on_stage() as stage:
        stage.runtime.stages.fail("remove", *[RuntimeUnavailable("busy")] * 5)
        draining = drain(stage, 100)
        await stage.clock.advance(5)
        assert not draining.done()
        stage.runtime.stages.mend("remove")
        stage.keeper.hasten()
        await quiet()
        assert 0 == draining.result()


async def test_a_start_under_way_is_given_up():
    async with on_stage(sizes={"python": 4}, is_started=False) as stage:
        stage.runtime.stages.hang("start")
        await stage.start()
        draining = drain(stage)
        await quiet()
        assert 0 == draining.result()
        assert {} == stage.engine.containers
        assert [] == stage.permits.held


async def test_a_pause_between_failing_starts_is_cut_short():
    async with on_stage(is_started=False) as stage:
        stage.runtime.stages.fail("start", *[RuntimeUnavailable("no")] * 100)
        await stage.start()
        await stage.clock.advance(60)
        draining = drain(stage)
        await quiet()
        assert 0 == draining.result()


async def test_drain_before_run_only_closes():
    async with on_stage(is_started=False) as stage:
        assert 0 == await stage.keeper.drain(deadline_seconds=1)
        await stage.keeper.run()
        assert {} == stage.engine.containers
        assert 0 == stage.runtime.stages.calls["start"]


async def test_no_task_outlives_the_keeper():
    before = asyncio.all_tasks()
    async with on_stage(sizes={"python": 3}) as stage:
        await (await stage.call()).leave()
        await stage.clock.advance(100)
        assert 0 == await stage.keeper.drain(deadline_seconds=1)
        await stage.run
        assert before == asyncio.all_tasks()


async def test_a_pool_that_closes_as_a_pause_ends_is_not_waited_for():
    """A slot that was let on in that very turn waited for a permit that nobody needed, until the end of the drain."""
    clock = ManualClock()
    permits = FakePermits(clock, bound=1)
    async with on_stage(clock=clock, permits=permits, is_started=False) as stage:
        stage.runtime.stages.fail("start", RuntimeUnavailable("no room"))
        await stage.start()
        permits.bound = 0
        gate = stage.keeper._tenders[0]._gate
        assert gate.failures == 1
        assert gate._pause is not None
        gate._pause.cancel()
        gate._pause_is_over()
        stage.pool.close(drain_seconds=20)
        draining = drain(stage)
        await quiet()
        assert draining.done()
        assert 0 == draining.result()
