"""A pool with its keeper on fakes, and callers that do what a test tells them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from sandbox_svc.errors import SandboxLost
from sandbox_svc.pool.events import PoolEvent
from sandbox_svc.pool.keeper import Keeper, KeeperSettings
from sandbox_svc.pool.leases import Lease
from sandbox_svc.pool.pool import Pool, PoolSettings
from sandbox_svc.pool.slots import Slot, SlotState
from tests.fakes import PLAIN, FakeEngine, FakePermits, FakeRuntime, FakeSandbox, ManualClock, quiet

E = TypeVar("E")


class Caller:
    """Somebody who leases a slot and stays in the body until told to leave it."""

    def __init__(self, lease: Lease) -> None:
        self.tenant = lease.tenant
        self.lease = lease
        self.sandbox_id: str | None = None
        """The sandbox it got, once it has one."""
        self._leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run(), name=f"caller of {lease.tenant}")

    async def _run(self) -> None:
        async with self.lease as lease:
            self.sandbox_id = lease.sandbox.id
            await self._leave

    @property
    def has_slot(self) -> bool:
        return self.sandbox_id is not None and not self.task.done()

    @property
    def error(self) -> BaseException | None:
        return self.task.exception() if self.task.done() and not self.task.cancelled() else None

    def finish(self, error: BaseException | None = None) -> None:
        """Leave the body, with an error or without."""
        if not self._leave.done():
            if error is None:
                self._leave.set_result(None)
            else:
                self._leave.set_exception(error)

    async def leave(self, error: BaseException | None = None) -> None:
        """Leave, and see what follows happen."""
        self.finish(error)
        await quiet()

    async def cancel(self) -> None:
        self.task.cancel()
        await quiet()


class Stage:
    """Everything around one pool."""

    def __init__(
        self,
        *,
        sizes: Mapping[str, int] | None = None,
        pool_settings: PoolSettings | None = None,
        keeper_settings: KeeperSettings | None = None,
        engine: FakeEngine | None = None,
        clock: ManualClock | None = None,
        permits: FakePermits | None = None,
    ) -> None:
        self.clock = clock if clock is not None else ManualClock()
        self.engine = engine if engine is not None else FakeEngine()
        self.runtime = FakeRuntime(self.engine, self.clock)
        self.permits = permits if permits is not None else FakePermits(self.clock)
        self.events: list[PoolEvent] = []
        self.pool = Pool(
            sizes if sizes is not None else {"python": 1},
            clock=self.clock,
            settings=pool_settings,
            observer=self.events.append,
        )
        self.keeper = Keeper(
            self.pool,
            self.runtime,
            clock=self.clock,
            permits=self.permits,
            settings=keeper_settings,
            rng=random.Random(1),
        )
        self.callers: list[Caller] = []
        self._run: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._run = asyncio.create_task(self.keeper.run(), name="keeper")
        await quiet()

    @property
    def run(self) -> asyncio.Task[None]:
        """The keeper at work."""
        assert self._run is not None, "not started"
        return self._run

    @property
    def is_running(self) -> bool:
        return self._run is not None and not self._run.done()

    def forget(self) -> None:
        """Do not look after this stage any more: the test has seen what it leaves."""
        self._run = None

    async def call(
        self,
        tenant: str = "acme",
        *,
        language: str = "python",
        template: str = PLAIN,
        timeout_seconds: float = 10.0,
        share: int | None = None,
    ) -> Caller:
        """A caller that has a slot, waits for one, or was refused."""
        caller = Caller(
            self.pool.lease(language, tenant=tenant, template=template, timeout_seconds=timeout_seconds, share=share)
        )
        self.callers.append(caller)
        await quiet()
        return caller

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Those in use: as many as the pool's size, and one more while a container is being replaced."""
        return tuple(slot for slot in self.pool.slots if slot.state is not SlotState.RESERVE)

    @property
    def sandboxes(self) -> list[FakeSandbox]:
        return self.runtime.sandboxes

    def states(self) -> list[SlotState]:
        return [slot.state for slot in self.slots]

    def seen(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    def account_for_all(self) -> None:
        """Every container has its slot, every slot in use its container and its permit, every lease one slot."""
        with_container = {slot.sandbox.id for slot in self.pool.slots if slot.sandbox is not None}
        in_engine = {sandbox.id for sandbox in self.sandboxes}
        assert in_engine <= with_container, "a container without a slot"
        for slot in self.pool.slots:
            match slot.state:
                case SlotState.RESERVE | SlotState.EMPTY | SlotState.STARTING:
                    assert slot.sandbox is None and slot.lease is None, slot
                case SlotState.LEASED:
                    assert slot.sandbox is not None and slot.lease is not None and slot.lease.slot is slot, slot
                case _:
                    assert slot.sandbox is not None and slot.lease is None, slot
        assert len(self.engine.containers) <= len(self.slots)
        own = sum(owner is self.runtime for owner in self.engine.owners.values())
        assert own <= len(self.permits.held) + self.permits.lost, "a container without a permit"
        for stats in self.pool.stats().values():
            assert stats.alive <= stats.size
            assert 0 <= sum(stats.slots.values()) - stats.size <= 1, "one reserve, or one replacement under way"
            assert not stats.slots[SlotState.STANDBY] or stats.alive == stats.size, "it could serve"
            assert not stats.slots[SlotState.EMPTY] or sum(stats.slots.values()) == stats.size

    def let_go_of_all(self) -> None:
        for phase in ("start", "reap", "settle", "ping", "remove", "sweep", "languages", "engine", "run"):
            self.runtime.stages.let_go(phase)
            self.runtime.stages.mend(phase)
        for phase in ("acquire", "release"):
            self.permits.stages.let_go(phase)
            self.permits.stages.mend(phase)

    async def abort(self) -> None:
        """Stop everything without looking, after a test that failed."""
        if self.is_running:
            self.let_go_of_all()
            self.run.cancel()
            await self.clock.advance(600)
            await asyncio.wait([self.run])

    async def end(self) -> None:
        """Drain, and see that nothing is left: no container, no permit, no task, no caller without an answer."""
        if self._run is None:
            return
        self.let_go_of_all()
        for caller in self.callers:
            caller.finish()
        await quiet()
        if not self.run.done():
            drain = asyncio.create_task(self.keeper.drain(deadline_seconds=5))
            await self.clock.advance(600)
            assert drain.done(), f"the drain hangs: {self.pool!r}"
            assert drain.result() == 0
            await self.run
        await asyncio.gather(*(caller.task for caller in self.callers), return_exceptions=True)
        assert [SlotState.EMPTY] * len(self.slots) == self.states()
        assert self.engine.containers == {}
        assert self.permits.held == []


@asynccontextmanager
async def on_stage(
    *,
    sizes: Mapping[str, int] | None = None,
    pool_settings: PoolSettings | None = None,
    keeper_settings: KeeperSettings | None = None,
    engine: FakeEngine | None = None,
    clock: ManualClock | None = None,
    permits: FakePermits | None = None,
    is_started: bool = True,
) -> AsyncIterator[Stage]:
    """A stage whose keeper runs, unless told otherwise; at the end all must be accounted for."""
    stage = Stage(
        sizes=sizes,
        pool_settings=pool_settings,
        keeper_settings=keeper_settings,
        engine=engine,
        clock=clock,
        permits=permits,
    )
    if is_started:
        await stage.start()
    try:
        yield stage
        stage.account_for_all()
        await stage.end()
    finally:
        await stage.abort()


def lost(*, started: bool = True) -> SandboxLost:
    return SandboxLost("The sandbox was lost", started=started)
