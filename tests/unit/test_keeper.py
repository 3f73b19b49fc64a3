"""The keeper at work: starts, permits, pauses, health, renewal."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from sandbox_svc.errors import RuntimeUnavailable
from sandbox_svc.pool.events import EngineChecked, OrphansSwept, SlotRetired, SlotStarted, StartFailed
from sandbox_svc.pool.keeper import KeeperSettings
from sandbox_svc.pool.slots import Retirement, Slot, SlotState
from sandbox_svc.pool.start_gate import StartGate
from tests.fakes import FakeEngine, FakeRuntime, ManualClock, ManualTimer, make_language, quiet
from tests.stage import lost, on_stage

BROKEN = RuntimeUnavailable("no space left on device")
TWO = {"python": 1, "nodejs": 1}


def two_languages() -> FakeEngine:
    return FakeEngine(make_language("python"), make_language("nodejs", image_id="image-2"))


# Starts


async def test_few_containers_start_at_once():
    async with on_stage(sizes={"python": 5}, is_started=False) as stage:
        stage.runtime.stages.hang("start")
        await stage.start()
        assert 2 == stage.runtime.stages.hanging("start")
        assert [SlotState.STARTING] * 5 == stage.states()
        stage.runtime.stages.let_go("start")
        await quiet()
        assert [SlotState.READY] * 5 == stage.states()


async def test_a_slow_start_of_one_language_keeps_no_other_waiting():
    async with on_stage(sizes={"python": 3, "nodejs": 3}, engine=two_languages(), is_started=False) as stage:
        stage.runtime.stages.hang("start")
        await stage.start()
        assert 4 == stage.runtime.stages.hanging("start"), "two of each"


async def test_failing_starts_are_paced_and_one_tries_for_all():
    """A broken image is no create storm: one container per pause, with pauses that grow, whatever the number of slots."""
    async with on_stage(sizes={"python": 8}, is_started=False) as stage:
        stage.runtime.stages.fail("start", *[BROKEN] * 1000)
        stage.runtime.stages.hang("start")
        await stage.start()
        stage.runtime.stages.let_go("start")
        await quiet()
        assert 2 == stage.runtime.stages.calls["start"], "those that began together"
        assert not stage.pool.is_ready("python")
        assert stage.pool.stats()["python"].is_failing
        await stage.clock.advance(300)
        tries = stage.runtime.stages.calls["start"]
        assert 10 <= tries <= 30
        pauses = [event.retry_seconds for event in stage.seen(StartFailed)]
        assert pauses[0] < 0.51
        assert 15 <= pauses[-1] <= 30
        assert "engine_unavailable" == stage.seen(StartFailed)[-1].code
        assert len(stage.permits.held) <= 1, "permits are for those who can use them"
        stage.runtime.stages.mend("start")
        await stage.clock.advance(31)
        assert [SlotState.READY] * 8 == stage.states()
        assert not stage.pool.stats()["python"].is_failing


async def test_one_broken_language_leaves_the_other_alone():
    engine = two_languages()
    async with on_stage(sizes=TWO, engine=engine, is_started=False) as stage:
        del engine.images["nodejs"]
        await stage.start()
        await stage.clock.advance(100)
        assert (True, False) == (stage.pool.is_ready("python"), stage.pool.is_ready("nodejs"))
        assert stage.pool.stats()["nodejs"].is_failing
        assert {} == {event.language: 1 for event in stage.seen(StartFailed) if event.language == "python"}
        engine.images["nodejs"] = make_language("nodejs", image_id="image-2")
        await stage.clock.advance(31)
        assert stage.pool.is_ready("nodejs"), "an image that turns up is found without a restart"


async def test_an_engine_that_is_away_at_the_start_is_waited_for():
    async with on_stage(is_started=False) as stage:
        for phase in ("sweep", "languages", "start", "engine"):
            stage.runtime.stages.fail(phase, *[BROKEN] * 1000)
        await stage.start()
        await stage.clock.advance(60)
        assert (False, False) == (stage.keeper.is_engine_up, stage.pool.is_ready("python"))
        for phase in ("sweep", "languages", "start", "engine"):
            stage.runtime.stages.mend(phase)
        await stage.clock.advance(31)
        assert (True, True) == (stage.keeper.is_engine_up, stage.pool.is_ready("python"))
        assert {"python"} == set(stage.keeper.languages)


def test_pauses_grow_up_to_a_bound_and_are_jittered():
    async def pauses(seed: int) -> list[float]:
        clock = ManualClock()
        gate = StartGate(clock, at_once=1, first_pause_seconds=0.5, longest_pause_seconds=30, rng=random.Random(seed))
        return [gate.failed() - clock.time() for _ in range(40)]

    first, second = asyncio.run(pauses(1)), asyncio.run(pauses(2))
    for number, pause in enumerate(first):
        whole = min(0.5 * 2**number, 30)
        assert whole / 2 <= pause <= whole
    assert first != second


async def test_a_timer_that_is_early_ends_the_pause_all_the_same():
    """It did not: uvloop's timers go by a time cached before a long turn of the loop, so one rang before the clock had
    reached the end of the pause. All slots looked, found it too early and waited for a next ring that never came: an
    engine came back and no container was ever started again.
    """

    class EarlyClock(ManualClock):
        def call_later(self, seconds: float, callback: Callable[[], None], /) -> ManualTimer:
            return super().call_later(seconds * 0.9, callback)

    clock = EarlyClock()
    gate = StartGate(clock, at_once=1, first_pause_seconds=0.5, longest_pause_seconds=30, rng=random.Random(1))
    slot = Slot("python", 0)
    gate.failed()
    waiting = asyncio.create_task(gate.opened(slot))
    await clock.advance(0.25)
    gate.failed()  # another slot's attempt: the pause begins anew, and the first timer must not end it
    await clock.advance(0.4)
    assert not waiting.done()
    await clock.advance(0.6)
    assert waiting.done()


# Permits


async def test_a_permit_is_taken_before_and_given_back_after():
    """Over the whole life of a container its permit is held, also while it is being removed."""
    async with on_stage(is_started=False) as stage:
        stage.permits.stages.hang("acquire")
        await stage.start()
        assert [SlotState.EMPTY] == stage.states()
        assert 0 == stage.runtime.stages.calls["start"]
        stage.permits.stages.let_go("acquire")
        await quiet()
        assert [SlotState.READY] == stage.states()
        (permit,) = stage.permits.held
        stage.runtime.stages.hang("remove")
        await (await stage.call()).leave(lost())
        assert [permit] == stage.permits.held
        stage.runtime.stages.let_go("remove")
        await quiet()
        assert [permit] == stage.permits.held, "kept for the container that replaces it"
        stage.runtime.stages.hang("remove")
        stage.pool.close()
        await quiet()
        assert [permit] == stage.permits.held
        stage.runtime.stages.let_go("remove")
        await quiet()
        assert [] == stage.permits.held


async def test_the_bound_holds_at_every_moment():
    """More slots than permits, and containers that come and go: the engine never sees one too many."""
    async with on_stage(sizes={"python": 4}, is_started=False) as stage:
        stage.permits.bound = 3
        stage.runtime.stages.seconds.update(start=0.3, remove=0.2)
        await stage.start()
        rng = random.Random(5)
        for _ in range(60):
            caller = await stage.call(rng.choice("abc"), timeout_seconds=100)
            await stage.clock.advance(rng.random())
            if caller.has_slot:
                await caller.leave(lost() if rng.random() < 0.3 else None)
        assert 3 == stage.engine.peak
        for caller in stage.callers:
            caller.finish()


async def test_nothing_is_created_on_a_permit_that_was_lost():
    async with on_stage() as stage:
        (permit,) = stage.permits.held
        stage.permits.lose(permit)
        caller = await stage.call()
        assert caller.has_slot, "what exists lives on"
        stage.permits.stages.hang("acquire")
        await caller.leave(lost())
        assert [SlotState.EMPTY] == stage.states()
        stage.permits.stages.let_go("acquire")
        await quiet()
        assert [SlotState.READY] == stage.states()
        assert permit is not stage.permits.held[0]


async def test_a_permit_is_kept_until_what_a_failed_start_left_is_gone():
    """An engine that did not answer may still create what it was asked for; another instance had the permit by then."""
    async with on_stage(is_started=False) as stage:
        stage.runtime.stages.fail("start", BROKEN)
        stage.runtime.stages.hang("reap")
        await stage.start()
        await stage.clock.advance(60)
        assert (1, 1) == (len(stage.engine.containers), len(stage.permits.held))
        assert [SlotState.EMPTY] == stage.states(), "nothing is started on it either"
        stage.account_for_all()
        stage.runtime.stages.let_go("reap")
        await stage.clock.advance(1)
        assert [SlotState.READY] == stage.states()
        assert 1 == stage.engine.peak


async def test_a_permit_of_what_is_not_gone_at_the_end_is_left_to_expire():
    async with on_stage(is_started=False) as stage:
        stage.runtime.stages.fail("start", BROKEN)
        stage.runtime.stages.hang("reap")
        await stage.start()
        drain = asyncio.create_task(stage.keeper.drain(deadline_seconds=5))
        await stage.clock.advance(60)
        assert drain.done()
        assert (1, 1) == (len(stage.engine.containers), len(stage.permits.held))
        stage.runtime.stages.let_go("reap")
        await stage.clock.advance(1)
        stage.permits.held.clear()  # it expires


async def test_a_permit_server_that_fails_is_asked_again():
    async with on_stage(is_started=False) as stage:
        stage.permits.stages.fail("acquire", BROKEN, BROKEN)
        await stage.start()
        assert [SlotState.EMPTY] == stage.states()
        await stage.clock.advance(2)
        assert [SlotState.READY] == stage.states()


async def test_a_permit_that_cannot_be_given_back_stops_nothing():
    async with on_stage(is_started=False) as stage:
        stage.runtime.stages.fail("start", BROKEN)
        stage.permits.stages.fail("release", BROKEN)
        await stage.start()
        await stage.clock.advance(2)
        assert [SlotState.READY] == stage.states()
        stage.permits.held.pop(0)  # it expires


# Removal


async def test_a_removal_is_tried_until_it_is_confirmed():
    async with on_stage() as stage:
        stage.runtime.stages.fail("remove", BROKEN, BROKEN, BROKEN)
        await (await stage.call()).leave(lost())
        assert [SlotState.RETIRING] == stage.states()
        assert 1 == len(stage.engine.containers)
        await stage.clock.advance(10)
        assert [SlotState.READY] == stage.states()
        assert 1 == len(stage.engine.containers)
        assert 4 == stage.runtime.stages.calls["remove"]


# Health


async def test_an_idle_container_without_sign_of_life_is_replaced():
    """A paused container, say: it accepts everything and answers nothing."""
    async with on_stage(sizes={"python": 2}) as stage:
        stage.runtime.stages.hang("ping")
        await stage.clock.advance(15)
        assert [SlotState.CHECKING] * 2 == stage.states()
        waiting = await stage.call()
        assert 1 == stage.pool.stats()["python"].queued, "nobody is given a container that may be dead"
        stage.runtime.stages.let_go("ping")
        await quiet()
        assert waiting.has_slot
        stage.runtime.stages.hang("ping")
        await stage.clock.advance(25)
        assert SlotRetired("python", Retirement.UNHEALTHY) in stage.events


async def test_a_check_never_meets_a_run_and_a_used_container_needs_none():
    """SF-22: whoever looks after idle containers leaves those alone that are at work."""
    async with on_stage() as stage:
        caller = await stage.call()
        await stage.clock.advance(100)
        assert 0 == stage.runtime.stages.calls["ping"], "LEASED"
        await caller.leave()
        await stage.clock.advance(9)
        assert 0 == stage.runtime.stages.calls["ping"], "it has just answered"
        await stage.clock.advance(10)
        assert 1 == stage.runtime.stages.calls["ping"]


async def test_a_silent_engine_costs_no_container():
    """It carries no sign of life while it is frozen; when it thaws, everything is as warm as before."""
    async with on_stage(sizes={"python": 2}) as stage:
        before = stage.sandboxes
        stage.runtime.stages.hang("engine")
        stage.runtime.stages.hang("ping")
        await stage.clock.advance(60)
        assert EngineChecked(is_up=False) == stage.seen(EngineChecked)[-1]
        stage.runtime.stages.let_go("engine")
        stage.runtime.stages.let_go("ping")
        await stage.clock.advance(20)
        assert stage.keeper.is_engine_up
        assert before == stage.sandboxes


async def test_an_idle_container_that_dies_is_replaced_at_once():
    async with on_stage(sizes={"python": 2}) as stage:
        dead = stage.sandboxes[0]
        dead.kill()
        await quiet()
        assert [SlotState.READY] * 2 == stage.states()
        assert dead not in stage.sandboxes
        assert [SlotRetired("python", Retirement.LOST)] == stage.seen(SlotRetired)


async def test_a_reset_that_fails_costs_the_container():
    async with on_stage() as stage:
        stage.runtime.stages.fail("settle", lost())
        await (await stage.call()).leave()
        assert [SlotRetired("python", Retirement.RESET_FAILED)] == stage.seen(SlotRetired)
        assert [SlotState.READY] == stage.states()


# Leftovers


async def test_leftovers_of_dead_instances_are_swept_at_the_start_and_later():
    engine = FakeEngine()
    clock = ManualClock()
    crashed, neighbour = FakeRuntime(engine, clock), FakeRuntime(engine, clock)
    await crashed.start(engine.images["python"])
    kept = await neighbour.start(engine.images["python"])
    crashed.is_alive = False
    async with on_stage(engine=engine, clock=clock, is_started=False) as stage:
        stage.runtime.stages.hang("sweep")
        await stage.start()
        assert 0 == stage.runtime.stages.calls["start"], "leftovers go first, they hold memory"
        stage.runtime.stages.let_go("sweep")
        await quiet()
        assert OrphansSwept(1) in stage.events
        assert {kept.id, *(sandbox.id for sandbox in stage.sandboxes)} == set(engine.containers)
        neighbour.is_alive = False
        await stage.clock.advance(60)
        assert {sandbox.id for sandbox in stage.sandboxes} == set(engine.containers)


async def test_failing_chores_are_tried_again():
    settings = KeeperSettings(sweep_every_seconds=10, refresh_every_seconds=10)
    async with on_stage(keeper_settings=settings) as stage:
        for phase in ("sweep", "languages", "engine"):
            stage.runtime.stages.fail(phase, BROKEN, TimeoutError())
        await stage.clock.advance(60)
        assert not stage.run.done()
        assert stage.runtime.stages.calls["sweep"] == 7


async def test_started_tells_how_long_it_took():
    async with on_stage(sizes={"python": 3}, is_started=False) as stage:
        stage.runtime.stages.seconds["start"] = 0.25
        await stage.start()
        await stage.clock.advance(1)
        assert pytest.approx([0.25] * 3) == [event.seconds for event in stage.seen(SlotStarted)], "without the queueing"
