"""Slots: the places that a language's containers take, each in exactly one named state."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING

from sandbox_svc.clock import Limit
from sandbox_svc.runtime import Sandbox

if TYPE_CHECKING:
    from sandbox_svc.pool.leases import Lease


class SlotState(enum.Enum):
    """Where a slot is in its life; every slot is in one of these at any time, also half-way through something."""

    RESERVE = "reserve"
    """No container: the one place more than the pool's size, in which the replacement of a container that is due is
    started beside it. A permit for that may be awaited."""
    EMPTY = "empty"
    """No container: none is wanted any more, or a permit or the end of a back-off is awaited."""
    STARTING = "starting"
    """A permit is held and a container is being created, or its turn to be created is awaited."""
    STANDBY = "standby"
    """A container that is ready and not leased before one of the others is on its way out, so that no more than the
    pool's size serve at any time."""
    READY = "ready"
    """A verified idle container that may be leased."""
    LEASED = "leased"
    """Handed to exactly one lease."""
    RESETTING = "resetting"
    """The lease is over; the container's reset is not verified yet."""
    CHECKING = "checking"
    """Idle, and asked for a sign of life; not leased meanwhile, so that a check never meets a run."""
    RETIRING = "retiring"
    """To be removed; holds its place and its permit until the removal is confirmed."""


ALIVE = frozenset({SlotState.READY, SlotState.LEASED, SlotState.RESETTING, SlotState.CHECKING})
"""States with a container that serves now or comes back by itself."""


class Retirement(enum.Enum):
    """Why a container is removed."""

    LOST = "lost"
    """It died or broke the protocol, idle or in a run."""
    BROKEN = "broken"
    """Our own code failed while it held the lease, so what the container is doing is unknown."""
    RESET_FAILED = "reset_failed"
    UNHEALTHY = "unhealthy"
    """Idle and gave no sign of life."""
    USED = "used"
    """Reuse is `never` and it had its one run."""
    WORN_OUT = "worn_out"
    """No uid is left that was never used in it."""
    NEEDED = "needed"
    """Its place is needed more by another tenant, or by another instance."""
    SPARE = "spare"
    """To have a fresh one at hand for the next tenant that comes."""
    OUTDATED = "outdated"
    """A newer image of its language exists."""
    AGED = "aged"
    CLOSED = "closed"


class Slot:
    """One place for one container; transitions are the pool's, waiting and I/O are its keeper task's."""

    __slots__ = (
        "_wake",
        "bound_at",
        "doomed",
        "expires_at",
        "idle_since",
        "index",
        "language",
        "lease",
        "leased_at",
        "phase",
        "sandbox",
        "state",
        "tenant",
    )

    def __init__(self, language: str, index: int) -> None:
        self.language = language
        self.index = index
        self.state = SlotState.EMPTY
        self.sandbox: Sandbox | None = None
        self.tenant: str | None = None
        """The only tenant whose programs this container has seen or may see; None while it is fresh."""
        self.lease: Lease | None = None
        self.doomed: Retirement | None = None
        """Set while LEASED when the container has to go as soon as the lease is over."""
        self.bound_at = 0.0
        self.leased_at = 0.0
        self.idle_since = 0.0
        """Clock seconds: when the tenant was bound, the lease began, and the last sign of life was seen."""
        self.expires_at = 0.0
        self.phase: Limit | None = None
        """What the keeper task waits for now, if the pool may cut it short."""
        self._wake = asyncio.Event()

    @property
    def name(self) -> str:
        return f"{self.language}/{self.index}"

    @property
    def holder(self) -> str | None:
        """The tenant that this slot counts for: the one that leases it, else the one it is bound to."""
        return self.lease.tenant if self.lease is not None else self.tenant

    def nudge(self) -> None:
        """Make the keeper task look at the state again when it waits for nothing but that."""
        self._wake.set()

    def wake(self) -> None:
        """Make the keeper task look at the state again, and end what it waits for."""
        self.nudge()
        if self.phase is not None:
            self.phase.expire()

    async def changed(self) -> None:
        """Wait for the next `wake` or `nudge`. To be called without an await since the state was read."""
        self._wake.clear()
        await self._wake.wait()

    def clear(self) -> None:
        """Forget the container that was here."""
        self.sandbox = None
        self.tenant = None
        self.lease = None
        self.doomed = None

    def __repr__(self) -> str:
        parts = [f"<Slot {self.name} {self.state.name}"]
        if self.sandbox is not None:
            parts.append(f"sandbox={self.sandbox.id[:12]}")
        if self.holder is not None:
            parts.append(f"tenant={self.holder}")
        if self.doomed is not None:
            parts.append(f"doomed={self.doomed.value}")
        return " ".join(parts) + ">"
