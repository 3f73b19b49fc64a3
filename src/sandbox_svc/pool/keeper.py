"""The keeper: one task per slot and a few chores beside them, from start to an ordered end."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from sandbox_svc.clock import Clock, Limit, sleep
from sandbox_svc.pool.events import EngineChecked, OrphansSwept
from sandbox_svc.pool.inventory import Inventory
from sandbox_svc.pool.pool import Pool
from sandbox_svc.pool.sharing import Sharing
from sandbox_svc.pool.slots import Retirement
from sandbox_svc.pool.start_gate import StartGate
from sandbox_svc.pool.tending import FAILURES, KeeperSettings, Permit, Permits, Tender, UnlimitedPermits
from sandbox_svc.runtime import Runtime
from sandbox_svc.runtime.languages import Language

logger = logging.getLogger("sandbox_svc.keeper")


class Keeper:
    """Keeps the pool's slots filled, checked, young and, in the end, empty.

    `run` is a task of the composition root, which shuts the service down when it raises. `drain` ends it in order.
    """

    def __init__(
        self,
        pool: Pool,
        runtime: Runtime,
        *,
        clock: Clock,
        permits: Permits | None = None,
        settings: KeeperSettings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._pool = pool
        self._runtime = runtime
        self._clock = clock
        self._settings = settings = settings if settings is not None else KeeperSettings()
        self._inventory = Inventory(runtime, pool, clock, limit_seconds=settings.engine_seconds)
        rng = rng if rng is not None else random.Random()  # noqa: S311 - jitter
        gates = {
            language: StartGate(
                clock,
                at_once=settings.starts_at_once,
                first_pause_seconds=settings.first_pause_seconds,
                longest_pause_seconds=settings.longest_pause_seconds,
                rng=rng,
            )
            for language in pool.languages
        }
        permits = permits if permits is not None else UnlimitedPermits()
        self._sharing = {
            language: Sharing(
                [slot for slot in pool.slots if slot.language == language],
                surplus=partial(permits.surplus, language),
                retire=partial(pool.retire, reason=Retirement.NEEDED),
            )
            for language in pool.languages
        }
        self._tenders = [
            Tender(
                slot,
                pool=pool,
                runtime=runtime,
                inventory=self._inventory,
                permits=permits,
                sharing=self._sharing[slot.language],
                gate=gates[slot.language],
                clock=clock,
                settings=settings,
                rng=rng,
            )
            for slot in pool.slots
        ]
        self._is_running = False
        self._is_hasty = False
        self._is_over = asyncio.Event()
        self._drain_limit: Limit | None = None
        self._work_limit: Limit | None = None
        self._engine_answered_at = clock.time()
        self._failed_checks = 0
        """Of the engine, in a row."""

    @property
    def languages(self) -> Mapping[str, Language]:
        """Languages of the pool whose images have been seen, with the newest image of each."""
        return self._inventory.languages

    @property
    def is_engine_up(self) -> bool:
        """Whether the engine answered when it was last asked."""
        return not self._failed_checks

    @property
    def engine_lost_seconds(self) -> float | None:
        """How long ago the engine last answered, once it was asked twice in vain; None before.

        One failed check is as likely the machine's; after two nothing passes through the engine, streams included.
        """
        return None if self._failed_checks < 2 else self._clock.time() - self._engine_answered_at

    async def run(self) -> None:
        """Tend the slots until the pool is closed and every slot is empty.

        Raises, as an exception group, what killed one of its tasks; whether it raises or is cancelled, it tries once to
        remove every container first.
        """
        self._is_running = True
        try:
            # Before anything is started, since leftovers of a crash hold memory that the new containers need.
            await self._attempt("sweep", self.sweep)
            await self._attempt("look at the images", self._inventory.refresh)
            await self._work()
        except BaseException:
            self._pool.evict()
            await self._clear()
            raise
        finally:
            self._is_over.set()

    async def drain(self, *, deadline_seconds: float) -> int:
        """Close the pool, let leases finish until the deadline, take the rest away, and wait until all is removed.

        Called once, while `run` is under way. Returns how many containers could not be removed within `clear_seconds`
        after the deadline; the next sweep finds them.
        """
        self._pool.close(drain_seconds=deadline_seconds)
        if not self._is_running:
            return 0
        if self._is_hasty or not await self._is_over_within(deadline_seconds):
            self._pool.evict()
            settings = self._settings
            seconds = settings.hasty_clear_seconds if self._is_hasty else settings.clear_seconds
            if not await self._is_over_within(seconds) and self._work_limit is not None:
                self._work_limit.expire()
                await self._is_over.wait()
        left = [slot for slot in self._pool.slots if slot.sandbox is not None]
        if left:
            logger.error("containers left behind: %r", left)
        return len(left)

    def hasten(self) -> None:
        """End now: leases lose their containers at once, and a `drain` under way goes on with its next step."""
        self._is_hasty = True
        self._pool.evict()
        if self._drain_limit is not None:
            self._drain_limit.expire()

    async def _is_over_within(self, seconds: float) -> bool:
        try:
            async with Limit(self._clock, seconds) as self._drain_limit:
                await self._is_over.wait()
        except TimeoutError:
            return False
        finally:
            self._drain_limit = None
        return True

    async def _work(self) -> None:
        settings = self._settings
        async with asyncio.TaskGroup() as group:
            chores = [
                group.create_task(self._every(seconds, name, chore), name=name)
                for name, seconds, chore in (
                    ("health check", settings.check_every_seconds, self._check),
                    ("look at the images", settings.refresh_every_seconds, self._inventory.refresh),
                    ("sweep", settings.sweep_every_seconds, self.sweep),
                )
            ]
            tasks = [group.create_task(tender.run(), name=f"tend {tender.slot.name}") for tender in self._tenders]
            try:
                async with Limit(self._clock, None) as self._work_limit:
                    # Not the group's own waiting, since the chores have no end of their own.
                    for task in tasks:
                        await asyncio.wait([task])
            except TimeoutError:
                for task in tasks:
                    task.cancel()
            for chore in chores:
                chore.cancel()

    async def _every(self, seconds: float, name: str, chore: Callable[[], Awaitable[object]]) -> None:
        pause = seconds
        while True:
            await sleep(self._clock, pause)
            began = self._clock.time()
            await self._attempt(name, chore)
            # From its beginning, so that a check that waited in vain for its deadline is soon followed by another.
            pause = max(seconds - (self._clock.time() - began), seconds / 10)

    async def _attempt(self, name: str, chore: Callable[[], Awaitable[object]]) -> None:
        """One go at something that is tried again later anyway."""
        try:
            await chore()
        except FAILURES as error:
            logger.warning("%s failed: %s", name, str(error) or type(error).__name__)

    async def sweep(self) -> int:
        """Remove what dead instances left and return how many, within a bound: `RuntimeUnavailable`, `TimeoutError`."""
        async with Limit(self._clock, self._settings.sweep_seconds):
            count = await self._runtime.sweep()
        if count:
            self._pool.notify(OrphansSwept(count))
        return count

    async def _check(self) -> None:
        is_up = await self._is_engine_answering()
        if is_up:
            self._engine_answered_at = self._clock.time()
        self._failed_checks = 0 if is_up else self._failed_checks + 1
        self._pool.notify(EngineChecked(is_up))
        if is_up:
            # A frozen engine carries no sign of life from any container, and they are as well as before when it thaws.
            self._pool.check_idle(seconds=self._settings.idle_seconds)
            self._pool.expire()
            for sharing in self._sharing.values():
                sharing.make_room()

    async def _is_engine_answering(self) -> bool:
        try:
            async with Limit(self._clock, self._settings.ping_seconds):
                await self._runtime.ping()
        except FAILURES as error:
            logger.warning("no sign of life from the engine: %s", str(error) or type(error).__name__)
            return False
        return True

    async def _clear(self) -> None:
        results = await asyncio.gather(*(tender.clear() for tender in self._tenders), return_exceptions=True)
        for tender, result in zip(self._tenders, results, strict=True):
            if isinstance(result, BaseException):
                logger.error("%r was left behind: %s", tender.slot, str(result) or type(result).__name__)


__all__ = ["Keeper", "KeeperSettings", "Permit", "Permits", "UnlimitedPermits"]
