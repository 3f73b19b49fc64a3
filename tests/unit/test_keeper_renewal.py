"""Containers that are too old or of an older image: another one starts beside them first, where a permit is to be had."""

from __future__ import annotations

import pytest

from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.pool.events import SlotRetired
from sandbox_svc.pool.slots import Retirement, SlotState
from tests.fakes import FakePermits, ManualClock, make_language, quiet
from tests.stage import Stage, lost, on_stage

BROKEN = RuntimeUnavailable("no space left on device")


async def roll(stage: Stage, image_id: str) -> None:
    stage.engine.images["python"] = make_language(image_id=image_id)
    await stage.clock.advance(16)


def generations(stage: Stage) -> set[str]:
    return {sandbox.generation for sandbox in stage.sandboxes}


@pytest.mark.parametrize("size", [1, 4])
async def test_a_new_image_replaces_one_container_at_a_time_and_none_is_missing(size):
    """A new one starts beside the old one, which goes when it is ready."""
    async with on_stage(sizes={"python": size}) as stage:
        stage.runtime.stages.hang("start")
        await roll(stage, "image-9")
        for step in range(size):
            assert [1, size] == [stage.states().count(s) for s in (SlotState.STARTING, SlotState.READY)]
            assert step == sum(sandbox.generation == "image-9" for sandbox in stage.sandboxes)
            stats = stage.pool.stats()["python"]
            assert (size, size) == (stats.alive, stats.size), "what starts beside is no place more"
            stage.runtime.stages.let_go("start")
            stage.runtime.stages.hang("start")
            await quiet()
        assert {"image-9"} == generations(stage)
        assert [SlotRetired("python", Retirement.OUTDATED)] * size == stage.seen(SlotRetired)
        assert [SlotState.READY] * size == stage.states()
        assert size + 1 == stage.engine.peak


async def test_a_new_image_rolls_out_under_load_without_a_dip():
    """Every slot is busy all the time; containers are replaced as they come back, one at a time, and nobody is refused."""
    async with on_stage(sizes={"python": 4}, is_started=False) as stage:
        stage.runtime.stages.seconds.update(start=0.25, remove=0.1, settle=0.001)
        await stage.start()
        await stage.clock.advance(1)
        callers = [await stage.call(timeout_seconds=100) for _ in range(8)]
        stage.engine.images["python"] = make_language(image_id="image-9")
        await stage.clock.advance(16)
        fewest = 4
        for _ in range(400):
            await stage.clock.advance(0.02)
            for caller in [caller for caller in callers if caller.has_slot]:
                await caller.leave()
                callers.append(await stage.call(timeout_seconds=100))
            stage.account_for_all()
            fewest = min(fewest, stage.pool.stats()["python"].alive)
        assert {"image-9"} == generations(stage)
        assert 4 == fewest
        assert 5 == stage.engine.peak
        assert [] == [caller.error for caller in callers if caller.error is not None]


@pytest.mark.parametrize("size", [1, 4])
async def test_a_broken_new_image_costs_no_container(size):
    async with on_stage(sizes={"python": size}) as stage:
        stage.runtime.stages.fail("start", *[BROKEN] * 1000)
        await roll(stage, "image-9")
        await stage.clock.advance(200)
        assert {"image-1"} == generations(stage)
        assert [SlotState.READY] * size == stage.states()
        assert stage.pool.stats()["python"].is_failing
        tries = stage.runtime.stages.calls["start"]
        assert tries < 25, "with pauses, as any start that fails"
        await roll(stage, "image-10")
        stage.runtime.stages.mend("start")
        await stage.clock.advance(60)
        assert {"image-10"} == generations(stage)
        assert not stage.pool.stats()["python"].is_failing


async def test_a_new_image_that_is_taken_back_leaves_everything_as_it_was():
    """Nothing has to be started any more, so nothing fails any more either."""
    async with on_stage(sizes={"python": 2}) as stage:
        before = stage.sandboxes
        stage.runtime.stages.fail("start", *[BROKEN] * 1000)
        await roll(stage, "image-9")
        await stage.clock.advance(60)
        await roll(stage, "image-1")
        await stage.clock.advance(60)
        assert before == stage.sandboxes
        assert not stage.pool.stats()["python"].is_failing
        tries = stage.runtime.stages.calls["start"]
        await stage.clock.advance(100)
        assert tries == stage.runtime.stages.calls["start"]


async def test_a_replacement_waits_for_a_busy_container_and_serves_nobody_before():
    """Else there would be one run more at once than the pool's size."""
    async with on_stage() as stage:
        busy, waiting = await stage.call(), await stage.call(timeout_seconds=100)
        await roll(stage, "image-9")
        assert [SlotState.LEASED, SlotState.STANDBY] == stage.states()
        assert 1 == stage.pool.stats()["python"].queued
        await busy.leave()
        assert waiting.has_slot
        assert {"image-9"} == generations(stage)
        assert waiting.sandbox_id != busy.sandbox_id


async def test_a_replacement_on_standby_takes_the_place_of_whatever_is_lost():
    async with on_stage(sizes={"python": 2}) as stage:
        callers = [await stage.call(), await stage.call()]
        await roll(stage, "image-9")
        waiting = await stage.call()
        stage.runtime.stages.hang("start")
        await callers[0].leave(lost())
        assert waiting.has_slot
        assert [SlotState.LEASED] * 2 == [state for state in stage.states() if state is not SlotState.STARTING]
        stage.runtime.stages.let_go("start")
        await quiet()
        await callers[1].leave()
        assert {"image-9"} == generations(stage)


async def test_a_replacement_on_standby_goes_when_the_image_changes_again():
    async with on_stage() as stage:
        busy = await stage.call()
        await roll(stage, "image-9")
        await roll(stage, "image-10")
        assert SlotState.STANDBY in stage.states()
        assert {"image-1", "image-10"} == generations(stage)
        await roll(stage, "image-1")
        assert [SlotState.LEASED] == stage.states()
        await busy.leave()
        assert [busy.sandbox_id] == [sandbox.id for sandbox in stage.sandboxes]


async def test_a_start_under_way_beside_the_others_replaces_one_that_is_lost():
    async with on_stage(sizes={"python": 2}) as stage:
        stage.runtime.stages.hang("start")
        await roll(stage, "image-9")
        stage.sandboxes[0].kill()
        await quiet()
        assert 1 == stage.runtime.stages.hanging("start"), "no second one is needed"
        stage.runtime.stages.let_go("start")
        await stage.clock.advance(1)
        assert {"image-9"} == generations(stage)
        assert [SlotState.READY] * 2 == stage.states()


# Renewal where permits are short


async def test_without_a_permit_beside_containers_are_replaced_in_their_places():
    """One after another, and only while another one serves."""
    clock = ManualClock()
    async with on_stage(sizes={"python": 3}, clock=clock, permits=FakePermits(clock, bound=3)) as stage:
        fewest = 3
        stage.runtime.stages.seconds.update(start=0.25, remove=0.1)
        stage.engine.images["python"] = make_language(image_id="image-9")
        for _ in range(300):
            await clock.advance(0.1)
            fewest = min(fewest, stage.pool.stats()["python"].alive)
        assert {"image-9"} == generations(stage)
        assert (2, 3) == (fewest, stage.engine.peak)
        assert 3 == len(stage.permits.held)


async def test_without_a_permit_the_last_container_stays_and_says_so():
    clock = ManualClock()
    async with on_stage(clock=clock, permits=FakePermits(clock, bound=1)) as stage:
        await roll(stage, "image-9")
        await clock.advance(100)
        assert {"image-1"} == generations(stage)
        assert [SlotState.READY] == stage.states()
        assert stage.pool.stats()["python"].is_held_up
        caller = await stage.call()
        assert caller.has_slot
        await caller.leave()
        stage.permits.bound = 2
        await clock.advance(5)
        assert {"image-9"} == generations(stage)
        assert not stage.pool.stats()["python"].is_held_up
        assert 1 == len(stage.permits.held)


async def test_a_place_that_waits_for_a_permit_does_not_stop_renewal_for_ever():
    """Two permits for three places: what a replacement gets serves in the place that waited."""
    clock = ManualClock()
    async with on_stage(sizes={"python": 3}, clock=clock, permits=FakePermits(clock, bound=2)) as stage:
        assert 1 == stage.states().count(SlotState.EMPTY)
        await roll(stage, "image-9")
        await clock.advance(30)
        assert {"image-9"} == generations(stage)
        assert (2, 2) == (len(stage.sandboxes), stage.engine.peak)


async def test_a_renewal_waits_for_a_place_that_is_about_to_be_filled():
    """Else a new image that comes while the service starts would cost a container that it could have kept."""
    clock = ManualClock()
    async with on_stage(sizes={"python": 3}, clock=clock, permits=FakePermits(clock, bound=2)) as stage:
        stage.permits.stages.hang("acquire")
        stage.pool.set_generation("python", "image-9")
        await clock.advance(1.9)
        assert 2 == stage.states().count(SlotState.READY)
        stage.pool.set_generation("python", "image-1")
        await clock.advance(30)
        assert [] == stage.seen(SlotRetired)


async def test_containers_are_renewed_by_age_but_not_all_at_once():
    async with on_stage(sizes={"python": 3}) as stage:
        first = stage.sandboxes
        await stage.clock.advance(3600 * 0.79)
        assert first == stage.sandboxes
        ages = []
        while set(first) & set(stage.sandboxes):
            await stage.clock.advance(30)
            ages.append(len(set(first) & set(stage.sandboxes)))
            assert 3 == stage.pool.stats()["python"].alive
        assert set(stage.sandboxes).isdisjoint(first)
        assert {2, 1, 0} <= set(ages), "one after another"
        assert [SlotRetired("python", Retirement.AGED)] * 3 == stage.seen(SlotRetired)


async def test_an_image_that_disappears_changes_nothing_for_what_runs():
    async with on_stage() as stage:
        before = stage.sandboxes
        stage.engine.images.clear()
        await stage.clock.advance(100)
        assert before == stage.sandboxes
