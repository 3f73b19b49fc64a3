"""Leases: the only way to a sandbox, for the length of one `async with`."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sandbox_svc.errors import SandboxLost
from sandbox_svc.pool.events import QueueAnswer
from sandbox_svc.pool.slots import Retirement
from sandbox_svc.runtime import Sandbox

if TYPE_CHECKING:
    from sandbox_svc.pool.pool import Pool
    from sandbox_svc.pool.slots import Slot


class Lease:
    """One tenant's claim to one slot, used once: `async with pool.lease(...) as lease`.

    Entering waits in the queue at most `timeout_seconds` and raises `QueueFull`, `QueueTimeout` or `PoolClosed`; when
    it is cancelled, a slot that was already handed over goes back unused. Leaving never waits. The slot is retired when
    the body raised `SandboxLost` or an error of our own, else it is reset and serves the tenant again; a cancelled body
    counts as an ordinary end, since `Sandbox.run` kills the program when it is cancelled.
    """

    __slots__ = (
        "_answer",
        "_pool",
        "_was_entered",
        "asked_at",
        "language",
        "queued_seconds",
        "share",
        "slot",
        "template",
        "tenant",
        "timeout_seconds",
    )

    def __init__(
        self, pool: Pool, language: str, *, tenant: str, template: str, timeout_seconds: float, share: int | None
    ) -> None:
        self._pool = pool
        self._answer: asyncio.Future[None] | None = None
        self._was_entered = False
        self.language = language
        self.tenant = tenant
        self.template = template
        self.timeout_seconds = timeout_seconds
        self.share = share
        self.slot: Slot | None = None
        self.asked_at = 0.0
        self.queued_seconds = 0.0

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox, within the `async with` only."""
        slot = self.slot
        if slot is None or slot.lease is not self or slot.sandbox is None:
            raise SandboxLost("The sandbox was taken away", started=False)
        return slot.sandbox

    @property
    def is_gone(self) -> bool:
        """It was cancelled or refused, but its task has not run since."""
        return self._answer is not None and self._answer.done() and self.slot is None

    def offer(self, slot: Slot) -> bool:
        """Hand over a slot; False when the one who waited is gone, and then the slot is still the giver's."""
        answer = self._answer
        if answer is not None:
            if answer.done():
                return False
            answer.set_result(None)
        self.slot = slot
        return True

    def refuse(self, error: Exception) -> bool:
        """End the wait with an error; False when the one who waited is gone."""
        answer = self._answer
        if answer is None or answer.done():
            return False
        answer.set_exception(error)
        return True

    async def __aenter__(self) -> Self:
        if self._was_entered:
            raise RuntimeError("a lease is used once")
        self._was_entered = True
        pool = self._pool
        pool.ask(self)
        if self.slot is None:
            await self._wait()
        # No await from here to the body: what was handed over is in the caller's hands or was given back.
        pool.begin(self)
        return self

    async def _wait(self) -> None:
        pool = self._pool
        self._answer = asyncio.get_running_loop().create_future()
        timer = pool.clock.call_later(self.timeout_seconds, lambda: pool.time_out(self))
        try:
            await self._answer
        except BaseException:
            # Cancelled or refused; cancellation may also arrive after the hand-over and before this task ran again.
            pool.abandon(self)
            raise
        finally:
            timer.cancel()
        slot = self.slot
        if slot is None or slot.lease is not self:
            raise pool.refused(self, QueueAnswer.CLOSED)  # evicted between the hand-over and now

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        reason: Retirement | None = None
        if error is not None and not isinstance(error, asyncio.CancelledError):
            reason = Retirement.LOST if isinstance(error, SandboxLost) else Retirement.BROKEN
        self._pool.release(self, reason)

    def __repr__(self) -> str:
        where = "waiting"
        if self.slot is not None:
            where = f"slot={self.slot.name}" if self.slot.lease is self else "over"
        return f"<Lease {self.language} tenant={self.tenant} {where}>"
