"""Leases and slots: who gets what, in which state it is afterwards, and how it is told."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_svc.errors import PoolClosed, UnknownLanguage
from sandbox_svc.pool.events import QueueAnswer, QueueWaited, ResetTook, SlotRetired, SlotStarted
from sandbox_svc.pool.pool import PoolSettings, Reuse
from sandbox_svc.pool.slots import Retirement, SlotState
from tests.fakes import PROGRAM, FakeEngine, make_language, quiet
from tests.stage import lost, on_stage


async def test_a_lease_gives_a_warm_sandbox_and_comes_back_after_the_reset():
    """READY -> LEASED -> RESETTING -> READY, and the sandbox stays the same."""
    async with on_stage() as stage:
        (slot,) = stage.slots
        assert [SlotState.READY] == stage.states()
        stage.runtime.stages.hang("settle")
        async with stage.pool.lease("python", tenant="acme", template="plain", timeout_seconds=1) as lease:
            assert [SlotState.LEASED] == stage.states()
            sandbox = lease.sandbox
            await sandbox.run(PROGRAM)
        assert [SlotState.RESETTING] == stage.states()
        await quiet()
        assert [SlotState.RESETTING] == stage.states()
        stage.runtime.stages.let_go("settle")
        await quiet()
        assert [SlotState.READY] == stage.states()
        assert slot.sandbox is sandbox


async def test_one_line_says_how_slots_and_pool_are():
    """`__repr__` is what logs show; what it says is fixed."""
    async with on_stage(sizes={"python": 2, "nodejs": 1}, is_started=False) as stage:
        assert "<Pool python: 2 EMPTY, 0 queued | nodejs: 1 EMPTY, 0 queued>" == repr(stage.pool)
        assert "<Slot python/0 EMPTY>" == repr(stage.slots[0])
    async with on_stage(sizes={"python": 2}) as stage:
        assert "<Pool python: 2 READY, 0 queued>" == repr(stage.pool)
        assert "<Slot python/0 READY sandbox=c1>" == repr(stage.slots[0])
        first, second = await stage.call(), await stage.call()
        third = await stage.call("zeta")
        assert "<Pool python: 2 LEASED, 1 queued>" == repr(stage.pool)
        assert "<Slot python/1 LEASED sandbox=c2 tenant=acme>" == repr(stage.slots[1])
        assert "<Lease python tenant=acme slot=python/0>" == repr(first.lease)
        assert "<Lease python tenant=zeta waiting>" == repr(third.lease)
        stage.sandboxes[0].kill()
        await quiet()
        assert "<Slot python/0 LEASED sandbox=c1 tenant=acme doomed=lost>" == repr(stage.slots[0])
        stage.runtime.stages.hang("remove")
        await first.leave()
        assert "<Pool python: 1 LEASED 1 RETIRING, 1 queued>" == repr(stage.pool)
        stage.pool.close()
        assert "<Pool closed python: 1 LEASED 1 RETIRING, 0 queued>" == repr(stage.pool)
        await second.leave()
        assert "<Lease python tenant=acme over>" == repr(second.lease)


async def test_the_best_slot_is_chosen():
    """Own and parked, own, fresh and parked, fresh; among equals the most recently used."""
    async with on_stage(sizes={"python": 3}) as stage:
        first, second, third = stage.sandboxes
        first.templates = frozenset({"plain"})
        third.templates = frozenset({"plain"})
        fresh = await stage.call(template="numpy")
        assert second.id == fresh.sandbox_id, "fresh with the template parked comes before fresh without"
        await fresh.leave()
        own = await stage.call(template="plain")
        assert second.id == own.sandbox_id, "the tenant's own comes before fresh ones"
        other = await stage.call(template="plain")
        await stage.clock.advance(1)
        await own.leave()
        await stage.clock.advance(1)
        await other.leave()
        second.templates = frozenset({"numpy"})
        assert other.sandbox_id == (await stage.call(template="plain")).sandbox_id, "own and parked before own"
        assert second.id == (await stage.call(template="numpy")).sandbox_id


async def test_the_most_recently_used_of_equals_is_chosen():
    """So that what is needed least grows old and can be given to others."""
    async with on_stage(sizes={"python": 2}) as stage:
        one, two = await stage.call(), await stage.call()
        await two.leave()
        await stage.clock.advance(1)
        await one.leave()
        assert one.sandbox_id == (await stage.call()).sandbox_id


async def test_a_container_that_served_a_tenant_never_serves_another():
    """Two tenants, one slot: the second tenant gets a new container."""
    async with on_stage() as stage:
        acme = await stage.call("acme")
        await acme.leave()
        zeta = await stage.call("zeta")
        assert zeta.has_slot
        assert acme.sandbox_id != zeta.sandbox_id
        assert [SlotRetired("python", Retirement.NEEDED)] == stage.seen(SlotRetired)


async def test_without_reuse_every_run_has_its_own_container():
    async with on_stage(pool_settings=PoolSettings(reuse=Reuse.NEVER)) as stage:
        used = set()
        for _ in range(3):
            caller = await stage.call()
            used.add(caller.sandbox_id)
            await caller.leave()
        assert 3 == len(used)
        assert [SlotRetired("python", Retirement.USED)] * 3 == stage.seen(SlotRetired)


async def test_a_sandbox_without_fresh_uids_is_replaced():
    async with on_stage(is_started=False) as stage:
        stage.runtime.runs_per_sandbox = 1
        await stage.start()
        caller = await stage.call()
        await caller.lease.sandbox.run(PROGRAM)
        await caller.leave()
        assert [SlotRetired("python", Retirement.WORN_OUT)] == stage.seen(SlotRetired)
        assert caller.sandbox_id != (await stage.call()).sandbox_id


@pytest.mark.parametrize(
    ("error", "reason"),
    [(lost(), Retirement.LOST), (lost(started=False), Retirement.LOST), (KeyError("bug"), Retirement.BROKEN)],
)
async def test_a_lease_that_ends_with_an_error_costs_its_container(error, reason):
    """After a loss it is gone anyway; after an error of our own nobody knows what it is doing."""
    async with on_stage() as stage:
        caller = await stage.call()
        await caller.leave(error)
        assert error is caller.error
        assert [SlotRetired("python", reason)] == stage.seen(SlotRetired)
        assert [SlotState.READY] == stage.states()
        assert caller.sandbox_id != stage.sandboxes[0].id


async def test_a_cancelled_run_is_reset_like_any_other():
    """`Sandbox.run` kills the program when it is cancelled, so the container is as good as after any run."""
    async with on_stage() as stage:
        caller = await stage.call()
        await caller.cancel()
        assert caller.task.cancelled()
        assert [] == stage.seen(SlotRetired)
        assert [SlotState.READY] == stage.states()
        assert caller.sandbox_id == stage.sandboxes[0].id


async def test_leaving_a_lease_never_waits():
    """Cleanup that waits can be cut by a second cancellation; this one is over at its first step."""
    async with on_stage() as stage:
        lease = stage.pool.lease("python", tenant="acme", template="plain", timeout_seconds=1)
        await lease.__aenter__()
        leaving = lease.__aexit__(None, None, None)
        with pytest.raises(StopIteration):
            leaving.send(None)
        assert [SlotState.RESETTING] == stage.states()


async def test_taking_an_idle_slot_never_waits():
    """The hot path: no task is switched between asking and having."""
    async with on_stage() as stage:
        entering = stage.pool.lease("python", tenant="acme", template="plain", timeout_seconds=1)
        with pytest.raises(StopIteration):
            entering.__aenter__().send(None)
        assert entering.slot is stage.slots[0]
        await entering.__aexit__(None, None, None)


async def test_a_run_makes_no_task():
    """One keeper task per slot and one watch per container, however many runs there are."""
    async with on_stage(sizes={"python": 2}) as stage:
        before = asyncio.all_tasks()
        for _ in range(5):
            async with stage.pool.lease("python", tenant="acme", template="plain", timeout_seconds=1):
                assert before == asyncio.all_tasks()
            assert before == asyncio.all_tasks()


async def test_a_lease_is_used_once():
    async with on_stage() as stage:
        lease = stage.pool.lease("python", tenant="acme", template="plain", timeout_seconds=1)
        async with lease:
            pass
        with pytest.raises(RuntimeError):
            await lease.__aenter__()


async def test_unknown_languages_and_closed_pools_are_refused_at_once():
    async with on_stage() as stage:
        with pytest.raises(UnknownLanguage):
            await stage.call(language="cobol")
        stage.pool.close()
        assert isinstance((await stage.call()).error, PoolClosed)


async def test_languages_do_not_wait_for_each_other():
    """A full language with a queue leaves the other one as fast as ever."""
    engine = FakeEngine(make_language("python"), make_language("nodejs", image_id="image-2"))
    async with on_stage(sizes={"python": 1, "nodejs": 1}, engine=engine) as stage:
        await stage.call()
        for _ in range(10):
            assert not (await stage.call()).has_slot
        node = await stage.call(language="nodejs")
        assert node.has_slot
        assert 0.0 == node.lease.queued_seconds


async def test_stats_are_counted_from_the_slots():
    async with on_stage(sizes={"python": 3}) as stage:
        stage.runtime.stages.hang("remove")
        await stage.call()
        await (await stage.call()).leave(lost())
        await stage.call()
        await stage.call()
        await stage.clock.advance(2)
        stats = stage.pool.stats()["python"]
        assert {SlotState.LEASED: 2, SlotState.RETIRING: 1} == {s: n for s, n in stats.slots.items() if n}
        assert set(SlotState) - {SlotState.RESERVE} == set(stats.slots)
        assert (2, 3) == (stats.alive, stats.size)
        assert (1, 2.0, True, False) == (
            stats.queued,
            stats.longest_wait_seconds,
            stats.is_ready,
            stats.is_failing,
        )


async def test_ready_means_that_a_container_serves_or_comes_back():
    async with on_stage(is_started=False) as stage:
        assert not stage.pool.is_ready("python")
        stage.runtime.stages.hang("start")
        await stage.start()
        assert not stage.pool.is_ready("python"), "STARTING is a hope"
        stage.runtime.stages.let_go("start")
        await quiet()
        assert stage.pool.is_ready("python")
        caller = await stage.call()
        assert stage.pool.is_ready("python"), "LEASED comes back"
        stage.runtime.stages.hang("settle")
        await caller.leave()
        assert stage.pool.is_ready("python"), "RESETTING comes back"
        assert not stage.pool.is_ready("cobol")
        stage.pool.close()
        assert not stage.pool.is_ready("python")


async def test_the_observer_hears_of_everything_in_order():
    async with on_stage(is_started=False) as stage:
        stage.runtime.stages.seconds.update(start=0.25, settle=0.5)
        await stage.start()
        await stage.clock.advance(0.25)
        caller = await stage.call()
        waiting = await stage.call()
        await stage.clock.advance(2)
        await caller.leave()
        await stage.clock.advance(0.5)
        assert waiting.has_slot
        assert [
            SlotStarted("python", 0.25),
            QueueWaited("python", QueueAnswer.SERVED, 0.0),
            ResetTook("python", 0.5),
            QueueWaited("python", QueueAnswer.SERVED, 2.5),
        ] == stage.events
        assert 2.5 == waiting.lease.queued_seconds
