"""The life of one slot, told from top to bottom by the task that tends it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable
from typing import Protocol, TypeVar

import msgspec

from sandbox_svc.clock import Clock, Limit, sleep
from sandbox_svc.errors import SandboxServiceError
from sandbox_svc.pool.events import RemovalFailed, SlotRemoved
from sandbox_svc.pool.inventory import Inventory
from sandbox_svc.pool.pool import Pool
from sandbox_svc.pool.sharing import Sharing
from sandbox_svc.pool.slots import Retirement, Slot, SlotState
from sandbox_svc.pool.start_gate import StartGate
from sandbox_svc.runtime import Runtime, Sandbox

logger = logging.getLogger("sandbox_svc.keeper")

T = TypeVar("T")

FAILURES = (SandboxServiceError, TimeoutError)
"""What a runtime or a permit may fail with; anything else is a bug of ours and ends the service."""


class KeeperSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Deadlines and periods. Each deadline is a last resort above those that the runtime keeps itself."""

    starts_at_once: int = 2
    """Containers of one language that are created at the same time."""
    start_seconds: float = 90.0
    reset_seconds: float = 30.0
    ping_seconds: float = 5.0
    remove_seconds: float = 45.0
    engine_seconds: float = 15.0
    """Deadline of a question to the engine itself."""
    sweep_seconds: float = 120.0
    clear_seconds: float = 10.0
    """How long the end waits for removals once no lease is left; what is still there then is left to a sweep."""
    hasty_clear_seconds: float = 3.0
    """The same when it was told twice."""
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 30.0
    """Pauses between failing starts of a language, or between failing removals of a container."""
    permit_seconds: float = 2.0
    """How long a replacement waits for a permit to start beside the old container, before that one goes first."""
    check_every_seconds: float = 5.0
    idle_seconds: float = 15.0
    """An idle container that was silent for this long is asked for a sign of life."""
    refresh_every_seconds: float = 15.0
    """How soon a new image is noticed."""
    sweep_every_seconds: float = 60.0
    max_age_seconds: float = 3600.0
    """Containers are replaced at 80 to 100 percent of this age, so that those of one start do not go together."""


class Permit(Protocol):
    """The right to have one container of a language, out of a total that several instances may share."""

    @property
    def is_held(self) -> bool:
        """False once it expired or was lost; the container it was taken for lives on, but no other is created on it."""
        ...

    async def release(self) -> None:
        """Give it back, bounded in time. One that cannot be given back expires; one given back or lost is no matter."""
        ...


class Permits(Protocol):
    """Where permits come from. Owned here; `app` chooses the implementation."""

    async def acquire(self, language: str) -> Permit:
        """Wait for a permit, as long as it takes; cancelling leaves none taken. May raise `SandboxServiceError`."""
        ...

    def surplus(self, language: str) -> int:
        """How many of those held here are to be given back, since instances below their share wait for them. One less
        with each that is released. Which ones is the keeper's choice.
        """
        ...


class UnlimitedPermit:
    """A permit that costs nothing."""

    @property
    def is_held(self) -> bool:
        return True

    async def release(self) -> None:
        return


class UnlimitedPermits:
    """Permits of an instance that shares its engine with no other: the slots are bound enough."""

    async def acquire(self, language: str) -> Permit:  # noqa: ARG002 - the protocol's
        return UnlimitedPermit()

    def surplus(self, language: str) -> int:  # noqa: ARG002 - the protocol's
        return 0


class Tender:
    """Tends one slot until the pool is closed and the slot is empty: fill, serve, remove, again."""

    def __init__(
        self,
        slot: Slot,
        *,
        pool: Pool,
        runtime: Runtime,
        inventory: Inventory,
        permits: Permits,
        sharing: Sharing,
        gate: StartGate,
        clock: Clock,
        settings: KeeperSettings,
        rng: random.Random,
    ) -> None:
        self.slot = slot
        self._pool = pool
        self._runtime = runtime
        self._inventory = inventory
        self._permits = permits
        self._sharing = sharing
        self._gate = gate
        self._clock = clock
        self._settings = settings
        self._rng = rng
        self._permit: Permit | None = None

    async def run(self) -> None:
        """Returns when the pool is closed and nothing is left here; whatever it raises is a bug."""
        while (sandbox := await self._fill()) is not None:
            await self._serve(sandbox)
            await self._remove(sandbox)
        await self._release_permit()

    async def clear(self) -> None:
        """Remove what `run` left when it was cut short and the pool evicted. One bounded attempt; may raise."""
        if self.slot.sandbox is not None:
            async with Limit(self._clock, self._settings.clear_seconds):
                await self.slot.sandbox.remove()
            self._pool.removed(self.slot, is_refilled=False)
        async with Limit(self._clock, self._settings.clear_seconds):
            await self._runtime.wait_gone(self.slot.name)
        await self._release_permit()

    # Fill

    async def _fill(self) -> Sandbox | None:
        """Start a container when one is wanted, trying until it works; None when the pool was closed."""
        slot, pool, gate = self.slot, self._pool, self._gate
        while True:
            if not pool.is_wanted(slot):
                if self._is_closing():
                    return None
                await slot.changed()
                continue
            try:
                is_on = self._is_starting() or (await self._take_permit() and pool.starting(slot))
                if is_on and await self._start():
                    return slot.sandbox
            finally:
                gate.leave(slot)
            # A permit is worth more to another instance than to one whose starts fail.
            await self._give_up_permit()

    async def _take_permit(self) -> bool:
        """Wait for the end of a pause and for a permit; False when no container is wanted here any more."""
        slot, pool = self.slot, self._pool
        while pool.is_wanted(slot):
            asked = slot.state
            is_reserve = asked is SlotState.RESERVE
            try:
                await self._phase(self._gate.opened(slot))
                if not pool.is_wanted(slot) or slot.state is not asked:
                    # The pool closed in the very turn in which the pause ended, and a wait for a permit has no end.
                    self._gate.leave(slot)
                    continue
                if self._permit is None:
                    seconds = self._settings.permit_seconds if is_reserve else None
                    self._permit = await self._phase(self._permits.acquire(slot.language), seconds)
            except FAILURES as error:
                self._gate.leave(slot)
                if self._is_closing() or slot.state is not asked:
                    continue
                if is_reserve:
                    pool.no_permit(slot)
                    if isinstance(error, TimeoutError):
                        continue
                logger.warning("no permit for %s: %s", slot.name, _describe(error))
                await self._pause(self._settings.first_pause_seconds)
            else:
                return not self._is_closing()
        return False

    async def _start(self) -> bool:
        """Create one container when it is this slot's turn; False leaves the slot EMPTY."""
        slot, pool, gate = self.slot, self._pool, self._gate
        if self._is_closing():
            pool.start_given_up(slot)
            return False
        began = self._clock.time()
        try:
            if not await self._phase(gate.enter(slot)):
                pool.start_given_up(slot)
                return False
            began = self._clock.time()
            if gate.failures or slot.language not in self._inventory.languages:
                await self._phase(self._inventory.refresh())  # the image may have been mended since
            language = self._inventory.language(slot.language)
            sandbox = await self._phase(self._runtime.start(language, place=slot.name), self._settings.start_seconds)
        except FAILURES as error:
            if self._is_closing():
                pool.start_given_up(slot)
                return False
            retry_at = gate.failed()
            logger.warning("start of %s failed %d times: %s", slot.name, gate.failures, _describe(error))
            code = error.code if isinstance(error, SandboxServiceError) else "timeout"
            pool.start_failed(slot, code=code, failures=gate.failures, retry_at=retry_at)
            return False
        except BaseException:
            pool.start_given_up(slot)
            raise
        gate.succeeded()
        now = self._clock.time()
        age = self._settings.max_age_seconds * self._rng.uniform(0.8, 1.0)
        pool.started(slot, sandbox, seconds=now - began, expires_at=now + age)
        return True

    # Serve

    async def _serve(self, sandbox: Sandbox) -> None:
        """Reset after each lease, check when asked, until the container has to go."""
        slot = self.slot
        async with asyncio.TaskGroup() as group:
            # One task per container, not per run.
            watch = group.create_task(self._notice_loss(sandbox), name=f"watch {slot.name}")
            while slot.state is not SlotState.RETIRING:
                if slot.state is SlotState.RESETTING:
                    await self._settle(sandbox)
                elif slot.state is SlotState.CHECKING:
                    await self._check(sandbox)
                else:
                    await slot.changed()
            watch.cancel()

    async def _notice_loss(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.wait_lost()
        except SandboxServiceError as error:
            logger.warning("watch on %s ended: %s", self.slot.name, _describe(error))
        self._pool.retire(self.slot, Retirement.LOST)

    async def _settle(self, sandbox: Sandbox) -> None:
        try:
            await self._phase(sandbox.settle(), self._settings.reset_seconds)
        except FAILURES as error:
            if self.slot.state is SlotState.RESETTING:
                logger.warning("reset of %r failed: %s", self.slot, _describe(error))
                self._pool.retire(self.slot, Retirement.RESET_FAILED)
        else:
            if self.slot.state is SlotState.RESETTING and not self._sharing.makes_room(self.slot):
                self._pool.settled(self.slot)

    async def _check(self, sandbox: Sandbox) -> None:
        try:
            await self._phase(sandbox.ping(), self._settings.ping_seconds)
        except FAILURES as error:
            if self.slot.state is SlotState.CHECKING:
                logger.warning("no sign of life from %r: %s", self.slot, _describe(error))
                self._pool.retire(self.slot, Retirement.UNHEALTHY)
        else:
            if self.slot.state is SlotState.CHECKING and not self._sharing.makes_room(self.slot):
                self._pool.checked(self.slot)

    # Remove

    async def _remove(self, sandbox: Sandbox) -> None:
        """Remove the container, trying until the engine confirms; the slot holds its place and permit until then."""
        slot = self.slot
        began = self._clock.time()
        pause = self._settings.first_pause_seconds
        while True:
            try:
                async with Limit(self._clock, self._settings.remove_seconds):
                    await sandbox.remove()
                break
            except FAILURES as error:
                logger.warning("removal of %r failed: %s", slot, _describe(error))
                self._pool.notify(RemovalFailed(slot.language))
            await self._pause(pause * self._rng.uniform(0.5, 1.0))
            pause = min(2 * pause, self._settings.longest_pause_seconds)
        self._pool.notify(SlotRemoved(slot.language, self._clock.time() - began))
        if not self._keeps_permit():
            await self._release_permit()
        self._pool.removed(slot, is_refilled=self._permit is not None)

    def _keeps_permit(self) -> bool:
        return (
            self._permit is not None
            and self._permit.is_held
            and not self._sharing.gives(self.slot)
            and not self._pool.is_closed
            and not self._gate.failures
            and self._pool.is_refill_wanted(self.slot)
        )

    async def _give_up_permit(self) -> None:
        """Release the permit of a failed start, but not before what it left is gone: an engine that did not answer may
        still be creating the container.
        """
        try:
            await self._phase(self._runtime.wait_gone(self.slot.name))
        except TimeoutError:
            # The pool was closed meanwhile.
            try:
                async with Limit(self._clock, self._settings.clear_seconds):
                    await self._runtime.wait_gone(self.slot.name)
            except TimeoutError:
                logger.warning("permit of %s is left to expire: its container may still come", self.slot.name)
                self._permit = None
        await self._release_permit()

    async def _release_permit(self) -> None:
        if self._permit is None:
            return
        try:
            await self._permit.release()
        except SandboxServiceError as error:
            logger.warning("permit of %s was not released and will expire: %s", self.slot.name, _describe(error))
        self._sharing.gave(self.slot)
        self._permit = None  # not before, so that `clear` finds one whose release was cut short

    def _is_closing(self) -> bool:
        # A call, since mypy takes an attribute for unchanged across an await.
        return self._pool.is_closed

    def _is_starting(self) -> bool:
        return self.slot.state is SlotState.STARTING

    # Waiting

    async def _phase(self, work: Awaitable[T], seconds: float | None = None) -> T:
        """Wait for `work`; `TimeoutError` at its deadline, or as soon as the pool wants something else of the slot."""
        async with Limit(self._clock, seconds) as limit:
            self.slot.phase = limit
            try:
                return await work
            finally:
                self.slot.phase = None

    async def _pause(self, seconds: float) -> None:
        try:
            await self._phase(sleep(self._clock, seconds))
        except TimeoutError:
            return  # the pool is in a hurry


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
