"""Whatever callers, containers and the engine do in whatever order, the pool keeps its promises."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sandbox_svc.errors import PoolClosed, PoolExhausted, RuntimeUnavailable, SandboxLost
from sandbox_svc.pool.pool import PoolSettings, Reuse
from sandbox_svc.pool.slots import SlotState
from tests.fakes import FakePermits, ManualClock, Stages, make_language, quiet
from tests.stage import Caller, Stage, lost

pytestmark = pytest.mark.timeout(60)

RUNTIME_PHASES = ("start", "settle", "remove", "ping", "engine", "languages")
PERMIT_PHASES = ("acquire", "release")
PHASES = (*RUNTIME_PHASES, *PERMIT_PHASES, "reap")

# Not a state machine of Hypothesis: it switches kinds of steps off for whole examples, and a pool in which nobody ever
# leaves shows little. These weights keep things moving.
STEPS = (
    *("ask",) * 6,
    *("leave",) * 5,
    *("leave_and_cancel",) * 3,
    *("cancel", "leave_in_error", "pass_time", "pass_time", "hang", "let_go", "let_go", "fail", "kill", "roll"),
    *("fail", "want"),
)


class Setup(NamedTuple):
    size: int
    permits: int
    queue_size: int
    reuse: Reuse
    turn_seconds: float
    takes_time: bool


setups = st.builds(
    Setup,
    size=st.integers(1, 4),
    permits=st.integers(1, 5),
    queue_size=st.integers(0, 8),
    reuse=st.sampled_from([Reuse.TENANT, Reuse.TENANT, Reuse.NEVER]),
    turn_seconds=st.sampled_from([0.0, 1.0, 100.0]),
    takes_time=st.booleans(),
)
steps = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 719)), min_size=20, max_size=60)


class World:
    """A stage on which anything may happen; `number` makes the choices of a step."""

    def __init__(self, setup: Setup) -> None:
        clock = ManualClock()
        self.stage = Stage(
            sizes={"python": setup.size},
            clock=clock,
            permits=FakePermits(clock, bound=setup.permits),
            pool_settings=PoolSettings(queue_size=setup.queue_size, reuse=setup.reuse, turn_seconds=setup.turn_seconds),
        )
        if setup.takes_time:
            self.stage.runtime.stages.seconds.update(start=0.25, remove=0.1)
        self.callers: list[Caller] = []
        self.tenants_of: defaultdict[str, set[str]] = defaultdict(set)
        self.images = 1
        self.size = setup.size

    async def begin(self) -> None:
        await self.stage.start()
        await self.stage.clock.advance(2)

    # What happens

    async def ask(self, number: int) -> None:
        timeout = (500.0, 500.0, 500.0, 5.0, 0.5, 0.0)[number // 4 % 6]
        share = (None, None, 1)[number // 24 % 3]
        self.callers.append(await self.stage.call("aabc"[number % 4], timeout_seconds=timeout, share=share))

    def pick(self, number: int, *, with_slot: bool) -> Caller | None:
        fitting = [c for c in self.callers if not c.task.done() and (c.has_slot or not with_slot)]
        return fitting[number % len(fitting)] if fitting else None

    async def leave(self, number: int) -> None:
        caller = self.pick(number, with_slot=True)
        if caller is not None:
            await caller.leave()
        await self.stage.clock.advance(0.02)

    async def leave_in_error(self, number: int) -> None:
        caller = self.pick(number // 2, with_slot=True)
        if caller is not None:
            await caller.leave(lost() if number % 2 else KeyError("bug"))

    async def cancel(self, number: int) -> None:
        caller = self.pick(number, with_slot=False)
        if caller is not None:
            await caller.cancel()

    async def leave_and_cancel(self, number: int) -> None:
        """Somebody leaves, and another is cancelled a few steps of the loop later, or just as it is given a slot."""
        giving = self.pick(number // 8, with_slot=True)
        waiting = [c for c in self.callers if not c.task.done() and not c.has_slot]
        if giving is not None:
            giving.finish()
        at_hand_over = [caller for caller in waiting if number % 3]
        for _ in range(30 if at_hand_over else number % 8):
            await asyncio.sleep(0)
            if any(caller.lease.slot is not None for caller in at_hand_over):
                break
        given = [caller for caller in at_hand_over if caller.lease.slot is not None] or waiting
        if given:
            given[number // 8 % len(given)].task.cancel()
        await quiet()

    async def pass_time(self, number: int) -> None:
        await self.stage.clock.advance((0.1, 1.0, 1.0, 10.0, 40.0)[number % 5])

    def stages(self, phase: str) -> Stages:
        return (self.stage.permits if phase in PERMIT_PHASES else self.stage.runtime).stages

    async def hang(self, number: int) -> None:
        phase = PHASES[number % len(PHASES)]
        self.stages(phase).hang(phase)

    async def let_go(self, _number: int) -> None:
        for phase in PHASES:
            self.stages(phase).let_go(phase)
        await quiet()

    async def fail(self, number: int) -> None:
        phase = RUNTIME_PHASES[number % len(RUNTIME_PHASES)]
        error = lost() if phase in ("settle", "ping") else RuntimeUnavailable("no")
        self.stage.runtime.stages.fail(phase, *[error] * (1 + number % 2))

    async def kill(self, number: int) -> None:
        sandboxes = self.stage.sandboxes
        if sandboxes:
            sandboxes[number % len(sandboxes)].kill()
        await quiet()

    async def want(self, number: int) -> None:
        """Another instance waits for permits of this one, or does no longer."""
        self.stage.permits.wanted = number % 3

    async def roll(self, _number: int) -> None:
        self.images += 1
        self.stage.engine.images["python"] = make_language(image_id=f"image-{self.images}")

    # What must hold

    def check(self) -> None:
        stage = self.stage
        assert stage.is_running, "the keeper lives"
        stage.account_for_all()
        now = [caller.sandbox_id for caller in self.callers if caller.has_slot]
        assert len(now) == len(set(now)), "two leases on one container"
        for caller in self.callers:
            if caller.sandbox_id is not None:
                self.tenants_of[caller.sandbox_id].add(caller.tenant)
            assert isinstance(caller.error, PoolExhausted | SandboxLost | KeyError | None)
        assert all(len(tenants) == 1 for tenants in self.tenants_of.values()), "two tenants in one container"
        assert stage.engine.peak <= stage.permits.bound, "more containers than permits"
        assert len(now) <= self.size, "more runs at once than the pool's size"

        waiting = [caller for caller in self.callers if not caller.task.done() and not caller.has_slot]
        stats = stage.pool.stats()["python"]
        assert len(waiting) == stats.queued, "who is neither served nor answered is in the queue"
        usable = {None, *(caller.tenant for caller in waiting if caller.lease.share is None)} if waiting else set()
        for slot in stage.slots:
            assert slot.state is not SlotState.READY or slot.tenant not in usable, "somebody waits beside a free slot"
        # Who waits without any slot is given an idle one, whoever used it last.
        without = {caller.tenant for caller in waiting if caller.lease.share is None}
        without -= {slot.holder for slot in stage.slots if slot.holder is not None}
        if without and not stats.is_failing:
            idle = [slot for slot in stage.slots if slot.state is SlotState.READY]
            coming = sum(slot.state not in (SlotState.READY, SlotState.LEASED, SlotState.EMPTY) for slot in stage.slots)
            assert not idle or coming, f"idle places, nobody gives one up: {stage.pool!r}"


@given(setups, steps)
@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,  # the same on every machine; CI is no place to find out by luck
    suppress_health_check=[HealthCheck.too_slow],
)
def test_no_slot_is_lost_and_nobody_is_left_without_answer(setup: Setup, steps: list[tuple[str, int]]) -> None:
    """No two leases or tenants on one container, never more containers than permits, every waiter answered."""

    async def play() -> None:
        world = World(setup)
        await world.begin()
        try:
            world.check()
            for name, number in steps:
                await getattr(world, name)(number)
                world.check()
            await world.stage.end()
            for caller in world.callers:
                assert caller.task.done()
                assert isinstance(caller.error, PoolExhausted | PoolClosed | SandboxLost | KeyError | None)
        finally:
            await world.stage.abort()

    asyncio.run(play())
