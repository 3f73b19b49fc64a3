"""Permits for containers, counted in Redis over all instances that share an engine."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from typing import TYPE_CHECKING

import msgspec

from sandbox_svc.admission.redis_link import RedisAway
from sandbox_svc.clock import Clock, Limit, LoopClock
from sandbox_svc.errors import RuntimeUnavailable

if TYPE_CHECKING:
    from sandbox_svc.admission.redis_link import RedisLink
    from sandbox_svc.runtime.instances import ListStrangers

logger = logging.getLogger("sandbox_svc.permits")


class PermitTimes(msgspec.Struct, frozen=True, kw_only=True):
    """How long things hold without a step; each longer than the one before it needs to be seen and acted on."""

    step_seconds: float = 2.5
    """Period of the steps that renew everything."""
    settle_seconds: float = 6.0
    """How long nothing is granted after Redis was away for all or lost its data. A living instance notices, and says
    what it holds, within `step_seconds` or the longest pause between the link's probes."""
    clear_seconds: float = 3.0
    """The same where the engine held no container of another instance a moment ago: time for one step of an instance
    whose first container was not there yet."""
    alive_seconds: float = 10.0
    """An instance that made no step for this long is dead: its containers are swept, and then its permits are free."""
    lease_seconds: float = 25.0
    """A permit that no step renewed for this long is free, whether anybody swept or not."""
    poll_seconds: float = 1.0
    """Longest pause between questions for a permit, for those that other instances give back."""


class PermitStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of one language's permits, for metrics."""

    bound: int
    held: int
    """By this instance."""
    total: int
    """By all instances, as of the last answer from Redis."""
    waiting: int
    surplus: int
    """Held by this instance, and to be given back when their containers go."""


class EngineKeys:
    """Names of the Redis keys of one engine; the braces keep them on one node of a cluster."""

    def __init__(self, engine: str) -> None:
        prefix = f"sandbox_svc:{{{engine}}}"
        self._prefix = prefix
        self.state = f"{prefix}:state"
        self.alive = f"{prefix}:alive"
        self.marks = f"{prefix}:marks"

    def holders(self, language: str) -> str:
        return f"{self._prefix}:{language}:holders"

    def fences(self, language: str) -> str:
        return f"{self._prefix}:{language}:fences"

    def wants(self, language: str) -> str:
        return f"{self._prefix}:{language}:wants"

    def steps(self, language: str) -> str:
        return f"{self._prefix}:{language}:steps"


class RedisPermit:
    """One permit of this instance. `fence` is higher than that of every permit of its language granted before it."""

    __slots__ = ("_pool", "fence", "name")

    def __init__(self, pool: _LanguagePermits, name: str, fence: int) -> None:
        self._pool = pool
        self.name = name
        self.fence = fence
        """0 while it is only this instance's own word, granted while Redis was away."""

    @property
    def is_held(self) -> bool:
        """False once released."""
        return self.name in self._pool.held

    async def release(self) -> None:
        """Give it back. Does not wait: Redis is told by the next step, which comes at once or when Redis is back."""
        self._pool.give_back(self)

    def __repr__(self) -> str:
        return f"<RedisPermit {self._pool.language} {self.name} fence={self.fence}>"


class Step(msgspec.Struct, frozen=True):
    """The answer to a step."""

    status: str
    fence: int
    total: int
    wait_seconds: float
    surplus: int
    other_bound: int
    fences: list[int]


class _LanguagePermits:
    """What this instance holds of one language, what Redis is known to know of it, and who waits."""

    def __init__(self, language: str, bound: int, wake: asyncio.Event) -> None:
        self.language = language
        self.bound = bound
        self.wake = wake
        """Makes `run` take its next step now."""
        self.held: dict[str, RedisPermit] = {}
        self.registered = 0
        """Permits that Redis counts for this instance for certain: as of its last answer, or fewer, when a step that
        stated fewer was sent since and its answer never came."""
        self.was_registered = False
        self.other_bound = 0
        """Of another instance, when it was said that it differs."""
        self.total = 0
        self.waiting = 0
        self.surplus = 0
        """Held here, and to be given back: above the bound, or an instance below its share waits."""
        self.turn = asyncio.Lock()
        """Held by the waiter that asks; the others wait in line for it."""
        self.stepping = asyncio.Lock()
        """One step at a time, so that steps arrive in the order of their numbers."""
        self.changed = asyncio.Event()
        """Makes the waiter ask again now."""

    def give_back(self, permit: RedisPermit) -> None:
        if self.held.pop(permit.name, None) is not None:
            self.surplus = max(self.surplus - 1, 0)
            self.changed.set()
            self.wake.set()

    def compare_bound(self, other: int) -> None:
        """Say once that another instance goes by another bound; 0 is none. Together they keep to the larger one."""
        if other and other != self.other_bound:
            logger.warning(
                "another instance goes by a bound of %d containers of %s and this one by %d: give all of them the same",
                other,
                self.language,
                self.bound,
            )
        self.other_bound = other or self.other_bound

    @property
    def allowance(self) -> int:
        """How many this instance may hold by itself, while Redis is away.

        What Redis had counted for it, since nobody else is granted those meanwhile: none, if it had none, for one each
        would be one too many with every such instance. One that never heard from Redis goes by its own bound, less
        what others have on the engine.
        """
        return self.registered if self.was_registered else self.bound


class RedisPermits:
    """Implements the keeper's `Permits`: at most `bound` containers per language over all instances of one engine.

    The bound holds while the instances reach Redis, also while a container is being removed, after an instance was
    killed, and after Redis lost its data. While Redis is away each instance keeps to what it had (`allowance`).
    `run` must be running; a permit whose instance makes no step for `lease_seconds` is free again.
    """

    def __init__(
        self,
        link: RedisLink,
        *,
        engine: str,
        instance: str,
        bounds: dict[str, int],
        birthmark: str = "",
        strangers: ListStrangers | None = None,
        times: PermitTimes | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`bounds` by language must be the same for all instances; `instance` must differ between processes.

        `strangers` lists what other instances have on the engine: where it is nothing, a Redis without data is given
        less time to hear of them; and while Redis was not reached yet, it is what the bound is short of.
        """
        self.times = times or PermitTimes()
        self._link = link
        self._script = link.script("permit_step.lua")
        self._keys = EngineKeys(engine)
        self._instance = instance
        self._birthmark = birthmark
        self._clock = clock or LoopClock()
        self._wake = asyncio.Event()
        self._languages = {
            language: _LanguagePermits(language, bound, self._wake) for language, bound in bounds.items()
        }
        self._strangers = strangers
        self._is_first_step = True
        self._rng = rng or random.Random()  # noqa: S311 - jitter
        self._names = itertools.count(1)
        # From the clock, so that an instance that comes back under its old name is not taken for late.
        self._last_step = time.time_ns() // 1000
        link.on_change(self._link_changed)

    def _link_changed(self) -> None:
        for permits in self._languages.values():
            if not self._link.is_ok:
                permits.surplus = 0  # nobody could take them
            permits.changed.set()
        self._wake.set()

    def stats(self) -> dict[str, PermitStats]:
        return {
            language: PermitStats(
                bound=permits.bound,
                held=len(permits.held),
                total=permits.total,
                waiting=permits.waiting,
                surplus=permits.surplus,
            )
            for language, permits in self._languages.items()
        }

    def surplus(self, language: str) -> int:
        """How many of those held here others should have, as of the last answer from Redis."""
        permits = self._languages.get(language)
        return 0 if permits is None else permits.surplus

    async def acquire(self, language: str) -> RedisPermit:
        """Wait for a permit, in line with the others of this instance; cancelling leaves none taken.

        Raises `RuntimeUnavailable` for a language without a bound.
        """
        permits = self._languages.get(language)
        if permits is None:
            raise RuntimeUnavailable(f"language {language!r} has no permits")
        permits.waiting += 1
        try:
            async with permits.turn:
                while (permit := await self._try_acquire(permits)) is None:
                    pass
                return permit
        except BaseException:
            # Redis may have granted what we do not take; a step says so.
            self._wake.set()
            raise
        finally:
            permits.waiting -= 1

    async def _try_acquire(self, permits: _LanguagePermits) -> RedisPermit | None:
        """Ask once; without success, wait until it makes sense to ask again."""
        permits.changed.clear()
        permit = RedisPermit(permits, f"{self._instance}/{next(self._names)}", 0)
        pause = self.times.poll_seconds
        try:
            step = await self._step(permits, permit)
        except RedisAway:
            others = await self._taken_by_others(permits)
            if len(permits.held) < permits.allowance - others:
                permits.held[permit.name] = permit
                return permit
        else:
            if step.status == "granted":
                return permit
            if step.wait_seconds > 0:
                pause = min(pause, step.wait_seconds)
        try:
            async with Limit(self._clock, pause * self._rng.uniform(0.8, 1.0)):
                await permits.changed.wait()
        except TimeoutError:
            pass
        return None

    async def _step(self, permits: _LanguagePermits, wanted: RedisPermit | None = None) -> Step:
        """Tell Redis what is held, and take `wanted` if it is granted. Raises `RedisAway`."""
        async with permits.stepping:
            self._last_step = number = max(self._last_step + 1, time.time_ns() // 1000)
            settle_seconds = await self._settle_seconds() if self._link.is_ok else 0.0
            held = list(permits.held.values())
            if self._link.is_ok:
                # It may be executed although its answer never comes, and others may be granted what it gave back.
                permits.registered = min(permits.registered, len(held))
            step = await self._link.call(lambda: self._ask(permits, number, held, wanted, settle_seconds))
            # No await from here on: the answer and what we make of it are one.
            if step.status == "stale":
                logger.error(
                    "a later step of instance %s was here before; does another process use its name?", self._instance
                )
                self._last_step += 60_000_000
                raise RedisAway("stale step")
            permits.total = step.total
            for permit, fence in zip(held, step.fences, strict=True):
                permit.fence = fence
            if wanted is not None and step.status == "granted":
                wanted.fence = step.fence
                permits.held[wanted.name] = wanted
            permits.registered = len(held) + (step.status == "granted")
            permits.was_registered = True
            # What was given back while the answer was on its way is part of what was to be given back.
            given_back = sum(permit.name not in permits.held for permit in held)
            permits.surplus = max(step.surplus - given_back, 0)
            permits.compare_bound(step.other_bound)
            self._is_first_step = False
            return step

    async def _taken_by_others(self, permits: _LanguagePermits) -> int:
        """What the engine says of the others, as long as Redis has never said it."""
        if permits.was_registered or self._strangers is None:
            return 0
        return sum(stranger.language == permits.language for stranger in await self._strangers())

    async def _settle_seconds(self) -> float:
        """How long a Redis without data is to grant nothing; asked for each step until one was answered."""
        times = self.times
        if not self._is_first_step or self._strangers is None:
            return times.settle_seconds
        try:
            return times.settle_seconds if await self._strangers() else times.clear_seconds
        except RuntimeUnavailable:
            return times.settle_seconds

    async def _ask(
        self,
        permits: _LanguagePermits,
        number: int,
        held: list[RedisPermit],
        wanted: RedisPermit | None,
        settle_seconds: float,
    ) -> Step:
        language, keys, times = permits.language, self._keys, self.times
        reply = await self._script(
            keys=[
                keys.state,
                keys.alive,
                keys.marks,
                keys.holders(language),
                keys.fences(language),
                keys.wants(language),
                keys.steps(language),
            ],
            args=[
                self._instance,
                self._birthmark,
                number,
                permits.bound,
                _ms(times.lease_seconds),
                _ms(times.alive_seconds),
                _ms(settle_seconds),
                permits.waiting,
                wanted.name if wanted is not None else "",
                *(permit.name for permit in held),
            ],
        )
        return _read_step(reply, len(held))

    async def run(self) -> None:
        """Renew, return and register until cancelled. Run it supervised: without it every permit is lost in time."""
        while True:
            self._wake.clear()
            await self._step_all()
            try:
                async with Limit(self._clock, self.times.step_seconds * self._rng.uniform(0.8, 1.0)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """Tell Redis what was released last; what is held still, since its container would not go, expires."""
        await self._step_all()

    async def _step_all(self) -> None:
        for permits in self._languages.values():
            try:
                await self._step(permits)
            except RedisAway:
                return

    def __repr__(self) -> str:
        shown = " ".join(f"{name}={len(permits.held)}/{permits.bound}" for name, permits in self._languages.items())
        return f"<RedisPermits {self._instance} {shown}>"


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _read_step(reply: list[bytes | int], held: int) -> Step:
    """Read the script's answer. Raises `ValueError` or `TypeError` for what is none."""
    status, fence, total, wait_ms, surplus, other_bound, *fences = reply
    if not isinstance(status, bytes) or (status != b"stale" and len(fences) != held):
        raise ValueError("not the answer of the script")
    return Step(
        status.decode("ascii"),
        int(fence),
        int(total),
        int(wait_ms) / 1000,
        int(surplus),
        int(other_bound),
        [int(f) for f in fences],
    )
