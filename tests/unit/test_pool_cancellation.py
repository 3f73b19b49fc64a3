"""Cancelled and failed at every await there is, and every slot is accounted for each time.

The fakes hang in the phase, so that the cancellation meets exactly that await; nothing here depends on timing.
"""

from __future__ import annotations

import asyncio

import pytest

from sandbox_svc.errors import PoolClosed, RuntimeUnavailable, SandboxLost
from sandbox_svc.pool.events import QueueAnswer, QueueWaited, SlotRetired
from sandbox_svc.pool.slots import Retirement, SlotState
from tests.fakes import PROGRAM, Stages, quiet, until
from tests.stage import Stage, lost, on_stage


async def test_a_cancelled_waiter_leaves_the_queue():
    async with on_stage() as stage:
        holder = await stage.call()
        waiting = [await stage.call() for _ in range(3)]
        await waiting[1].cancel()
        assert 2 == stage.pool.stats()["python"].queued
        assert QueueWaited("python", QueueAnswer.CANCELLED, 0.0) == stage.events[-1]
        await holder.leave()
        assert waiting[0].has_slot
        await waiting[0].leave()
        assert waiting[2].has_slot


async def test_a_waiter_cancelled_after_the_hand_over_gives_the_slot_back():
    """The slot was given, the waiter was cancelled before its task ran: the next one gets it, and no container is lost."""
    async with on_stage() as stage:
        holder = await stage.call()
        first, second = await stage.call(), await stage.call()
        stage.runtime.stages.hang("settle")
        await holder.leave()
        stage.runtime.stages.let_go("settle")
        await until(lambda: first.lease.slot is not None)
        assert first.sandbox_id is None, "the waiter's task must not have run yet"
        first.task.cancel()
        await quiet()
        assert first.task.cancelled()
        assert second.has_slot
        assert holder.sandbox_id == second.sandbox_id
        assert [] == stage.seen(SlotRetired)


async def test_a_fresh_slot_given_back_unused_stays_fresh():
    """Nothing of the cancelled tenant reached the container, so any tenant may have it."""
    async with on_stage(is_started=False) as stage:
        stage.runtime.stages.hang("start")
        await stage.start()
        first = await stage.call("acme")
        stage.runtime.stages.let_go("start")
        await until(lambda: first.lease.slot is not None)
        first.task.cancel()
        await quiet()
        assert stage.slots[0].tenant is None
        assert (await stage.call("zeta")).has_slot
        assert [] == stage.seen(SlotRetired)


async def test_a_waiter_cancelled_before_the_hand_over_is_passed_over():
    """It was cancelled and has not run since; the giver learns that it is gone and gives the slot to the next one."""
    async with on_stage() as stage:
        holder = await stage.call()
        first, second = await stage.call(), await stage.call()
        first.task.cancel()
        assert first.lease.is_gone
        assert not first.lease.offer(stage.slots[0])
        holder.finish()
        await quiet()
        assert second.has_slot


async def test_a_slot_lost_between_hand_over_and_use_is_not_kept():
    async with on_stage() as stage:
        holder = await stage.call()
        first, second = await stage.call(), await stage.call()
        holder.finish()
        await until(lambda: first.lease.slot is not None)
        stage.pool.retire(stage.slots[0], Retirement.LOST)
        first.task.cancel()
        await quiet()
        assert [SlotRetired("python", Retirement.LOST)] == stage.seen(SlotRetired)
        assert second.has_slot
        assert holder.sandbox_id != second.sandbox_id


async def test_a_slot_evicted_between_hand_over_and_use_is_not_used():
    async with on_stage() as stage:
        holder = await stage.call()
        first = await stage.call()
        holder.finish()
        await until(lambda: first.lease.slot is not None)
        stage.pool.evict()
        await quiet()
        assert isinstance(first.error, PoolClosed)


async def test_cancelling_everybody_at_once_loses_nothing():
    async with on_stage(sizes={"python": 3}) as stage:
        callers = [await stage.call(tenant) for tenant in "abcabcabc"]
        for caller in callers:
            caller.task.cancel()
        await quiet()
        assert all(caller.task.cancelled() for caller in callers)
        assert [SlotState.READY] * 3 == stage.states()
        assert 0 == stage.pool.stats()["python"].queued


async def test_cancelled_in_the_run():
    """The real thing: the body hangs in `Sandbox.run`."""
    async with on_stage() as stage:
        stage.runtime.stages.hang("run")

        async def call() -> None:
            async with stage.pool.lease("python", tenant="acme", template="plain", timeout_seconds=1) as lease:
                await lease.sandbox.run(PROGRAM)

        task = asyncio.create_task(call())
        await quiet()
        assert 1 == stage.runtime.stages.hanging("run")
        task.cancel()
        await quiet()
        assert task.cancelled()
        assert [SlotState.READY] == stage.states()
        assert [1] == [sandbox.runs for sandbox in stage.sandboxes]


PHASES = ["sweep", "languages", "acquire", "start", "settle", "ping", "remove", "release", "engine"]


async def reach(stage: Stage, phase: str) -> Stages:
    """Bring the only slot to where it hangs in `phase`; returns the stages in which that can be let go."""
    stages = stage.permits.stages if phase in ("acquire", "release") else stage.runtime.stages
    stages.hang(phase)
    await stage.start()
    if phase == "settle":
        await (await stage.call()).leave()
    elif phase in ("ping", "engine"):
        await stage.clock.advance(15)
    elif phase == "remove":
        await (await stage.call()).leave(lost())
    elif phase == "release":
        stage.runtime.stages.fail("start", RuntimeUnavailable("no"))
        await (await stage.call()).leave(lost())
    assert stages.hanging(phase) >= 1, phase
    return stages


@pytest.mark.parametrize("phase", PHASES)
async def test_it_goes_on_when_the_phase_does(phase):
    """Whatever hung, afterwards the pool is whole."""
    async with on_stage(is_started=False) as stage:
        stages = await reach(stage, phase)
        waiting = await stage.call("zeta", timeout_seconds=10_000)
        stage.account_for_all()
        stages.let_go(phase)
        await stage.clock.advance(60)
        assert waiting.has_slot


@pytest.mark.parametrize("phase", [phase for phase in PHASES if phase not in ("acquire", "release")])
async def test_a_phase_that_never_ends_is_given_up_at_its_deadline(phase):
    """A hang of the engine costs time, never the slot: each wait has a deadline above the runtime's own."""
    async with on_stage(is_started=False) as stage:
        stages = await reach(stage, phase)
        await stage.clock.advance(130)
        stage.account_for_all()
        stages.let_go(phase)
        await stage.clock.advance(60)
        assert [SlotState.READY] == stage.states()


@pytest.mark.parametrize("phase", PHASES)
async def test_the_pool_closes_in_any_phase(phase):
    """Closing cuts short what is waited for; nothing is left, and nothing new is begun."""
    async with on_stage(is_started=False) as stage:
        stages = await reach(stage, phase)
        waiting = await stage.call("zeta")
        if phase == "engine":
            await waiting.leave()  # served meanwhile: a silent engine keeps nobody from a warm container
        drain = asyncio.create_task(stage.keeper.drain(deadline_seconds=1))
        await quiet()
        if phase in ("sweep", "languages", "remove", "release"):  # not cut short: let them end
            assert not drain.done()
            stages.let_go(phase)
            await quiet()
        assert drain.done()
        assert 0 == drain.result()
        assert waiting.task.done()
        assert phase == "engine" or isinstance(waiting.error, PoolClosed)
        assert {} == stage.engine.containers
        assert [] == stage.permits.held
        await stage.run


@pytest.mark.parametrize("phase", PHASES)
async def test_the_keeper_may_be_cancelled_in_any_phase(phase):
    """Its task is cancelled outright, say since another part of the service failed: it still tries to leave nothing."""
    async with on_stage(is_started=False) as stage:
        stages = await reach(stage, phase)
        waiting = await stage.call("zeta")
        if phase in ("remove", "release"):
            stages.let_go(phase)
        stage.run.cancel()
        await quiet()
        assert stage.run.cancelled()
        assert {} == stage.engine.containers
        assert [] == stage.permits.held
        if waiting.has_slot:  # served just before; its run ends in `SandboxLost`
            with pytest.raises(SandboxLost):
                _ = waiting.lease.sandbox
        else:
            assert isinstance(waiting.error, PoolClosed)


@pytest.mark.parametrize("phase", PHASES)
async def test_a_bug_in_any_phase_ends_the_keeper(phase):
    """An error that is none of ours must not be swallowed: it comes out of `run`, and nothing is left behind."""
    async with on_stage(is_started=False) as stage:
        stages = await reach(stage, phase)
        stages.let_go(phase, ZeroDivisionError("bug"))
        await quiet()
        assert stage.run.done()
        error = stage.run.exception()
        while isinstance(error, BaseExceptionGroup):
            (error,) = error.exceptions
        assert isinstance(error, ZeroDivisionError)
        assert {} == stage.engine.containers
        assert [] == stage.permits.held
        assert isinstance((await stage.call()).error, PoolClosed)


async def test_a_failing_watch_is_a_bug_too():
    async with on_stage() as stage:
        stage.sandboxes[0]._lost.set_exception(ZeroDivisionError("bug"))
        await quiet()
        assert stage.run.done()
        assert stage.run.exception() is not None
        assert {} == stage.engine.containers


async def test_a_sandbox_lost_in_any_state_is_replaced():
    async with on_stage() as stage:
        for state, phase in ((SlotState.RESETTING, "settle"), (SlotState.CHECKING, "ping")):
            stage.runtime.stages.hang(phase)
            if state is SlotState.RESETTING:
                await (await stage.call()).leave()
            else:
                await stage.clock.advance(15)
            assert [state] == stage.states()
            (before,) = stage.sandboxes
            before.kill()
            await quiet()
            stage.runtime.stages.let_go(phase)
            await quiet()
            assert [SlotState.READY] == stage.states()
            assert [before] != stage.sandboxes
        (idle,) = stage.sandboxes
        idle.kill()
        await quiet()
        assert [SlotState.READY] == stage.states()
        assert [idle] != stage.sandboxes
        caller = await stage.call()
        stage.sandboxes[0].kill()
        await quiet()
        assert [SlotState.LEASED] == stage.states(), "the lease finds out by itself"
        await caller.leave()
        assert [SlotState.READY] == stage.states()
        assert caller.sandbox_id != stage.sandboxes[0].id
