"""Which instances live, and the return of what the dead ones held."""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
from functools import partial
from typing import TYPE_CHECKING, Final, cast

from sandbox_svc.admission.permits import EngineKeys, PermitTimes
from sandbox_svc.admission.redis_link import RedisAway
from sandbox_svc.clock import Clock, LoopClock, sleep
from sandbox_svc.errors import SandboxServiceError
from sandbox_svc.runtime.instances import Birthmark

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sandbox_svc.admission.redis_link import RedisLink
    from sandbox_svc.runtime.instances import ListStrangers

logger = logging.getLogger("sandbox_svc.liveness")

REAP_SECONDS: Final = 5.0
"""How often it is looked for dead instances that still hold permits."""
SWEEP_SECONDS: Final = 60.0


class Liveness:
    """Knows of the other instances that use the same Redis for the same engine.

    An instance lives while it makes steps with its permits (`RedisPermits.run`).
    """

    def __init__(
        self,
        link: RedisLink,
        *,
        instance: str,
        languages: tuple[str, ...],
        here: Birthmark | None = None,
        times: PermitTimes | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`here` is this process, from which others on the same host can be seen."""
        self._link = link
        self._alive = link.script("instance_alive.lua")
        self._forget = link.script("instance_forget.lua")
        self._instance = instance
        self._languages = languages
        self._here = here
        self._times = times or PermitTimes()
        self._clock = clock or LoopClock()
        self._keys: EngineKeys | None = None

    def use_engine(self, engine: str) -> None:
        """Name the engine; until then nothing is known of anybody."""
        self._keys = EngineKeys(engine)

    async def is_instance_alive(self, instance: str) -> bool | None:
        """Tell whether an instance gives signs of life: True, False (silent while others are not, so dead or cut off),
        None when that cannot be known now.

        Unknown are all instances while Redis is away and for a while after, as well as those that never used it.
        Waits no longer than a call of the link. Raises nothing.
        """
        keys = self._keys
        if instance == self._instance:
            return True
        if keys is None:
            return None
        try:
            verdict = await self._link.call(lambda: self._ask_alive(keys, instance))
        except RedisAway:
            return None
        return None if verdict < 0 else verdict == 1

    async def _ask_alive(self, keys: EngineKeys, instance: str) -> int:
        alive_ms = round(self._times.alive_seconds * 1000)
        return int(await self._alive(keys=[keys.state, keys.alive], args=[instance, alive_ms]))

    async def reap(self, sweep: Callable[[], Awaitable[int]], strangers: ListStrangers) -> int:
        """Free the permits of instances that ended, after `sweep` has removed their containers; return how many.

        In this order, so that the bound holds: a permit is free when its container is gone. `strangers` says whose are
        left: an instance that is silent and has containers keeps its permits until they expire, for it may live. Raises
        what the two raise and `TimeoutError`; nothing is freed then.
        """
        keys = self._keys
        if keys is None:
            return 0
        try:
            found = await self._link.call(lambda: self._other_holders(keys))
            dead = {name: death for name, mark in found.items() if (death := await self._death(name, mark)) is not None}
            if not dead:
                return 0
            async with asyncio.timeout(SWEEP_SECONDS):
                await sweep()
                owners = {stranger.instance for stranger in await strangers()}
            freed = 0
            for name, death in dead.items():
                if name in owners:
                    continue
                count = await self._link.call(partial(self._ask_forget, keys, name, death))
                if count > 0:
                    logger.warning("instance %s ended; its %d permits are free again", name, count)
                    freed += count
        except RedisAway:
            return 0
        return freed

    async def _other_holders(self, keys: EngineKeys) -> dict[str, str]:
        """Other instances with permits, and their birthmarks."""
        client = self._link.client
        names: set[str] = set()
        for language in self._languages:
            permits = await client.zrange(keys.holders(language), 0, -1)
            names |= {permit.decode().rpartition("/")[0] for permit in permits}
        names.discard(self._instance)
        if not names:
            return {}
        # redis-py shares this annotation with its blocking client.
        marks = await cast("Awaitable[dict[bytes, bytes]]", client.hgetall(keys.marks))
        return {name: marks.get(name.encode(), b"").decode() for name in names}

    async def _death(self, name: str, mark: str) -> _Death | None:
        """How it is known that an instance is dead; None when it lives or that is unknown."""
        birthmark = Birthmark.parse(mark)
        seen = birthmark.is_alive(self._here) if birthmark is not None and self._here is not None else None
        if seen is not None:
            return None if seen else _Death.SEEN
        return _Death.SILENT if await self.is_instance_alive(name) is False else None

    async def _ask_forget(self, keys: EngineKeys, name: str, death: _Death) -> int:
        per_language = [(keys.holders(name), keys.fences(name), keys.wants(name)) for name in self._languages]
        return int(
            await self._forget(
                keys=[keys.alive, *itertools.chain.from_iterable(per_language)],
                args=[name, int(death is _Death.SEEN)],
            )
        )

    async def run(self, sweep: Callable[[], Awaitable[int]], strangers: ListStrangers) -> None:
        """Reap until cancelled, at once and then again and again. Run it supervised."""
        while True:
            try:
                await self.reap(sweep, strangers)
            except (SandboxServiceError, TimeoutError) as error:
                logger.warning("no sweep after dead instances: %s", str(error) or type(error).__name__)
            await sleep(self._clock, REAP_SECONDS)

    async def leave(self) -> None:
        """Say that this instance has ended. Safe to skip: silence says it too.

        Permits that it could not give back, as their containers stayed, are freed by whoever sweeps those, or by time.
        """
        keys = self._keys
        if keys is None:
            return
        try:
            await self._link.call(lambda: self._forget(keys=[keys.alive], args=[self._instance, int(True)]))
        except RedisAway:
            logger.debug("left without telling redis")


class _Death(enum.Enum):
    SEEN = "seen"
    """Its process is gone from this host."""
    SILENT = "silent"
    """It made no step for too long, while others did."""
