"""Time as an argument: the clock that pool and keeper are given, and what is built on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self


class Timer(Protocol):
    """A callback that is due; cancelling one that ran or was cancelled does nothing."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Monotonic time in seconds. `LoopClock` is the real one; tests move time by hand."""

    def time(self) -> float: ...

    def call_later(self, seconds: float, callback: Callable[[], None], /) -> Timer: ...


class LoopClock:
    """Monotonic time and the running event loop's timers; wall-clock jumps do not reach it."""

    def time(self) -> float:
        # Not loop.time(): uvloop caches that per iteration, in milliseconds, and measured durations come from here.
        return time.monotonic()

    def call_later(self, seconds: float, callback: Callable[[], None], /) -> Timer:
        return asyncio.get_running_loop().call_later(seconds, callback)


class Limit:
    """`async with` that ends its body with `TimeoutError` after `seconds` of the clock, or when `expire` is called.

    None waits for `expire` alone. It is `asyncio.timeout` on our clock, so its rules for cancellation hold here too.
    """

    __slots__ = ("_clock", "_exit", "_scope", "_seconds", "_timer")

    def __init__(self, clock: Clock, seconds: float | None) -> None:
        self._clock = clock
        self._seconds = seconds
        self._scope: asyncio.Timeout | None = None
        self._timer: Timer | None = None

    def expire(self) -> None:
        """End the body now; nothing happens when it has not begun, was expired before or is over."""
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.reschedule(asyncio.get_running_loop().time())

    async def __aenter__(self) -> Self:
        self._exit = scope = asyncio.timeout(None)
        await scope.__aenter__()
        self._scope = scope
        if self._seconds is not None:
            self._timer = self._clock.call_later(self._seconds, self.expire)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scope = None
        if self._timer is not None:
            self._timer.cancel()
        await self._exit.__aexit__(kind, error, trace)


async def sleep(clock: Clock, seconds: float) -> None:
    """Wait `seconds` of the clock."""
    due: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not due.done():
            due.set_result(None)

    timer = clock.call_later(max(seconds, 0.0), wake)
    try:
        await due
    finally:
        timer.cancel()
