"""Moving windows for `limits`, in Redis and in memory, that answer in one step what a caller has to be told."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

import msgspec
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.errors import StorageError

from sandbox_svc.clock import Clock, LoopClock

if TYPE_CHECKING:
    from sandbox_svc.admission.redis_link import RedisLink

MAX_WINDOWS: Final = 20_000
"""Windows kept in memory at most; then the one that was used longest ago is forgotten, and its caller starts afresh."""


class Taken(msgspec.Struct, frozen=True):
    """What became of an attempt to take a place in a window."""

    is_admitted: bool
    remaining: int
    reset_seconds: float
    """Until the oldest admission leaves the window; 0 when there is none."""


class RedisWindows(RedisStorage):
    """Windows that instances share: lists of stamps by the clock of Redis, one EVALSHA per attempt.

    `limits` brings two scripts for this, one that counts and one that looks: two round trips where callers are told
    what is left, and by the clock of the instance, so that instances disagree about when a window is over.
    """

    def __init__(self, link: RedisLink) -> None:
        super().__init__(
            "async+redis://",
            implementation="redispy",
            wrap_exceptions=True,
            key_prefix="sandbox_svc:rate",
            connection_pool=link.pool,  # type: ignore[arg-type]  # its annotation knows plain values only
        )
        self._take = link.script("rate_limit.lua")

    async def take(self, key: str, limit: int, expiry: int, amount: int = 1) -> Taken:
        """Take `amount` places among `limit` within `expiry` seconds.

        Raises `StorageError`, and `ValueError` or `TypeError` for an answer that makes no sense.
        """
        try:
            reply = await self._take(keys=[self.bridge.prefixed_key(key)], args=[limit, expiry * 1_000_000, amount])
        except self.base_exceptions as error:
            raise StorageError(error) from error
        is_admitted, remaining, wait_us = reply
        return Taken(int(is_admitted) == 1, int(remaining), int(wait_us) / 1e6)

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        return (await self.take(key, limit, expiry, amount)).is_admitted

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        return _as_limits_has_it(await self.take(key, limit, expiry, 0), limit, expiry)


class MemoryWindows(MemoryStorage):
    """Windows of this instance alone, by a monotonic clock, bounded in number.

    `limits`' own moves every window that it knows through a thread after each hit, and goes by the wall clock, which
    shuts a window for an hour when it is set back by one.
    """

    def __init__(self, *, clock: Clock | None = None, max_windows: int = MAX_WINDOWS) -> None:
        super().__init__()
        self._clock = clock or LoopClock()
        self._max_windows = max_windows
        self._windows: OrderedDict[str, tuple[int, deque[float]]] = OrderedDict()
        """By key, the one used longest ago first: its length in seconds, and its stamps, oldest first."""

    def take_now(self, key: str, limit: int, expiry: int, amount: int = 1, *, is_forced: bool = False) -> Taken:
        """Take `amount` places among `limit` within `expiry` seconds; `is_forced` takes them though there be none."""
        now = self._clock.time()
        self._forget(now)
        entry = self._windows.get(key)
        if entry is None:
            entry = self._windows[key] = (expiry, deque())
        else:
            self._windows.move_to_end(key)
        stamps = entry[1]
        while stamps and stamps[0] <= now - expiry:
            stamps.popleft()
        is_admitted = is_forced or len(stamps) + amount <= limit
        if is_admitted:
            stamps.extend([now] * amount)
            while len(stamps) > limit:
                stamps.popleft()
        reset = stamps[0] + expiry - now if stamps else 0.0
        return Taken(is_admitted, limit - len(stamps), reset)

    def _forget(self, now: float) -> None:
        # Two looks per call keep pace with one new window per call.
        for _ in range(2):
            if not self._windows:
                return
            key, (expiry, stamps) = next(iter(self._windows.items()))
            if len(self._windows) < self._max_windows and stamps and stamps[-1] > now - expiry:
                return
            del self._windows[key]

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        return self.take_now(key, limit, expiry, amount).is_admitted

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        return _as_limits_has_it(self.take_now(key, limit, expiry, 0), limit, expiry)

    async def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    async def reset(self) -> int | None:
        count = len(self._windows)
        self._windows.clear()
        return count

    def __len__(self) -> int:
        return len(self._windows)


def _as_limits_has_it(taken: Taken, limit: int, expiry: int) -> tuple[float, int]:
    """Start of the window by the wall clock, and the places taken in it."""
    return time.time() + taken.reset_seconds - expiry, limit - taken.remaining
