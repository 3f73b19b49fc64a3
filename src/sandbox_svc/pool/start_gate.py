"""Paces the starts of one language: few at once, and after a failure one at a time with growing pauses."""

from __future__ import annotations

import asyncio
import random

from sandbox_svc.clock import Clock, Timer
from sandbox_svc.pool.slots import Slot


class StartGate:
    """A slot passes `opened` before it takes a permit, and `enter` before its container is created.

    While starts fail, one slot tries at the end of each pause and the others stay outside, so that a broken image costs
    one container per pause, however many slots there are.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        at_once: int,
        first_pause_seconds: float,
        longest_pause_seconds: float,
        rng: random.Random,
    ) -> None:
        self._clock = clock
        self._at_once = at_once
        self._first_pause_seconds = first_pause_seconds
        self._longest_pause_seconds = longest_pause_seconds
        self._rng = rng
        self._inside: set[Slot] = set()
        self._probe: Slot | None = None
        self._pause: Timer | None = None
        """Runs while nobody may try. Its end is what counts and not the clock: timers of the event loop go by a time
        that is cached, so they may be early, and nobody would look at the clock again."""
        self._changed = asyncio.Event()
        self.failures = 0
        """Failed starts since the last good one."""

    async def opened(self, slot: Slot) -> None:
        """Wait until the slot may try to start a container; at once unless starts fail."""
        while self.failures:
            if self._probe is None and self._pause is None:
                self._probe = slot
                return
            await self._changed.wait()

    async def enter(self, slot: Slot) -> bool:
        """Wait for the slot's turn to create a container; False when a start failed meanwhile and it is not to try."""
        while not self.failures or self._probe is slot:
            if len(self._inside) < self._at_once:
                self._inside.add(slot)
                return True
            await self._changed.wait()
        return False

    def succeeded(self) -> None:
        """A container started: the pauses are over."""
        self.failures = 0
        self._wake()

    def failed(self) -> float:
        """A start failed: nobody tries again before the clock time returned."""
        self.failures += 1
        pause = min(self._first_pause_seconds * 2.0 ** min(self.failures - 1, 30), self._longest_pause_seconds)
        # Instances that share an engine fail together and should not come back together.
        pause *= self._rng.uniform(0.5, 1.0)
        if self._pause is not None:
            self._pause.cancel()
        self._pause = self._clock.call_later(pause, self._pause_is_over)
        return self._clock.time() + pause

    def _pause_is_over(self) -> None:
        self._pause = None
        self._wake()

    def leave(self, slot: Slot) -> None:
        """The slot is done with its attempt, or gave it up at any point."""
        self._inside.discard(slot)
        if self._probe is slot:
            self._probe = None
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
