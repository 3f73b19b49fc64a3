"""The shelf of one language: its slots, those who wait for them, and what follows from both, without changing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

import msgspec

from sandbox_svc.clock import Timer
from sandbox_svc.pool.estimates import CLEARLY, ENOUGH_LEASES, wait_seconds
from sandbox_svc.pool.queueing import FairQueue
from sandbox_svc.pool.slots import ALIVE, Retirement, Slot, SlotState

MAX_RETRY_AFTER_SECONDS: Final = 60.0

SPARE_SECONDS: Final = 300.0
"""How long after a tenant had to wait for another one's place a fresh container is kept at hand."""


class LanguageStats(msgspec.Struct, frozen=True, kw_only=True):
    """One language at one moment, counted from its slots and its queue."""

    size: int
    """Containers that serve at most at once."""
    slots: Mapping[SlotState, int]
    """Every state but RESERVE, also those no slot is in; during a replacement there is one slot more than `size`."""
    queued: int
    longest_wait_seconds: float
    is_ready: bool
    is_failing: bool
    """The last start failed; the next is tried after a back-off."""
    is_held_up: bool
    """A container should be replaced and goes on serving instead: there is no permit for a second one beside it."""

    @property
    def alive(self) -> int:
        """Containers that serve now or come back by themselves."""
        return sum(self.slots[state] for state in ALIVE)


class Shelf:
    """Where one language stands."""

    def __init__(self, language: str, size: int) -> None:
        self.language = language
        self.size = size
        self.slots = tuple(Slot(language, index) for index in range(size + 1 if size else 0))
        """One more than the size; which of them is the RESERVE, or a replacement under way, changes with each."""
        for slot in self.slots[size:]:
            slot.state = SlotState.RESERVE
        self.queue = FairQueue()
        self.generation: str | None = None
        """Image id that containers should be of; None until it is known."""
        self.retry_at: float | None = None
        """While starts fail: when the next one is tried, in clock seconds."""
        self.contended_at = float("-inf")
        """When a tenant last needed the place of another one, in clock seconds."""
        self.leases = 0
        """Leases that ended, since the start."""
        self.lease_seconds = 0.0
        self.start_seconds = 0.0
        """Recent means, 0 until something was measured."""
        self.look_again: Timer | None = None
        """Set while somebody waits beside an idle slot that is only theirs after a while."""
        self.is_permit_short = False
        """A replacement that was to start beside an old container got no permit, and none has started since."""

    def count(self, *states: SlotState) -> int:
        return sum(slot.state in states for slot in self.slots)

    def find(self, state: SlotState) -> Slot | None:
        return next((slot for slot in self.slots if slot.state is state), None)

    def places(self) -> list[Slot]:
        """Slots whose containers serve or will, no more than the size: what starts beside a container that it replaces
        is no place more.
        """
        coming = (SlotState.STARTING, SlotState.RETIRING, SlotState.EMPTY)
        found = [slot for slot in self.slots if slot.state in ALIVE]
        for state in coming:
            found += [slot for slot in self.slots if slot.state is state]
        return found[: self.size]

    @property
    def is_ready(self) -> bool:
        return any(slot.state in ALIVE for slot in self.slots)

    def is_hopeless(self, deadline: float) -> bool:
        """Whether no container can be there before the deadline: none exists and none will be tried in time.

        Anything less certain is worth the wait.
        """
        if self.retry_at is None:
            return not self.slots
        return self.retry_at > deadline and self.count(SlotState.EMPTY, SlotState.RESERVE) == len(self.slots)

    def is_too_late(self, tenant: str, seconds: float, now: float) -> bool:
        """Whether the last one in the tenant's line clearly waits for more than `seconds`: whatever is on its way is
        there at once and running leases take no longer than the mean, and it would still be far too late.
        """
        if self.leases < ENOUGH_LEASES:
            return False
        free_in = [
            max(self.lease_seconds - (now - slot.leased_at), 0.0) if slot.state is SlotState.LEASED else 0.0
            for slot in self.places()
            if slot.state is not SlotState.EMPTY or self.retry_at is not None
        ]
        ahead = self.queue.ahead_of(tenant, self.queue.waiting(tenant) - 1)
        wait = wait_seconds(free_in, ahead=ahead, each=self.lease_seconds)
        return wait is not None and wait > CLEARLY * seconds

    def expiry(self, slot: Slot, now: float) -> Retirement | None:
        """Why the slot's container should be replaced when it can be spared, or None."""
        if slot.sandbox is not None and self.generation not in (None, slot.sandbox.generation):
            return Retirement.OUTDATED
        return Retirement.AGED if now >= slot.expires_at else None

    def due(self, now: float) -> list[tuple[Slot, Retirement]]:
        """Containers in service that should be replaced and why, the first one first: outdated, then longest idle."""
        found = [
            (slot, reason)
            for slot in self.slots
            if slot.state in ALIVE and (reason := self.expiry(slot, now)) is not None
        ]
        found.sort(key=lambda pair: (pair[1] is not Retirement.OUTDATED, pair[0].idle_since))
        return found

    def replaced(self, due: list[tuple[Slot, Retirement]], now: float) -> tuple[Slot, Retirement] | None:
        """Of those that are `due`, the container to retire now and why; None while its replacement has to start first.

        When one has started it is the first idle one that is due. Without a permit for that one has to go before, which
        needs another one that serves meanwhile.
        """
        idle = next((pair for pair in due if pair[0].state is SlotState.READY), None)
        standby = self.find(SlotState.STANDBY)
        if standby is not None:
            own = self.expiry(standby, now)
            if not due or own is Retirement.OUTDATED:
                return standby, own or Retirement.SPARE  # the image was changed again meanwhile
            return idle
        return idle if self.is_permit_short and self.may_spare_one() else None

    def is_calm(self) -> bool:
        """Whether nothing is on its way in or out, so that the next replacement may begin: one at a time."""
        return not self.count(SlotState.STARTING, SlotState.STANDBY, SlotState.RETIRING)

    def may_spare_one(self) -> bool:
        """Whether a container may be retired before another one has started: never the last one, nor while starts fail.

        So a new image costs one ready container at the most, even if it turns out to be broken.
        """
        return self.retry_at is None and self.is_calm() and self.count(*ALIVE) >= 2

    def spare(self, now: float, keep_seconds: float) -> Slot | None:
        """The idle container to replace by a fresh one, so that the next tenant that comes does not wait for that.

        None unless tenants competed for places of late and no fresh container is at hand or on its way. Then it is the
        least recently used one, if it was idle for `keep_seconds`.
        """
        if now - self.contended_at > SPARE_SECONDS or self.queue or not self.may_spare_one():
            return None
        idle = [slot for slot in self.slots if slot.state is SlotState.READY]
        if not idle or any(slot.tenant is None for slot in idle):
            return None
        oldest = min(idle, key=lambda slot: slot.idle_since)
        return oldest if now - oldest.idle_since >= keep_seconds else None

    def retry_after_seconds(self, tenant: str, now: float) -> float:
        """When a request of the tenant that comes now is likely to be served: after those whose turn is before its own,
        judged by recent leases and starts, those that go on now, and the end of a pause between failing starts.
        """
        start = self.start_seconds or 1.0
        free_in: list[float] = []
        for slot in self.places():
            match slot.state:
                case SlotState.LEASED:
                    free_in.append(self._seconds_to_go(slot, now))
                case SlotState.STARTING | SlotState.RETIRING:
                    free_in.append(start)
                case SlotState.EMPTY if self.retry_at is not None:
                    free_in.append(start + max(self.retry_at - now, 0.0))
                case SlotState.EMPTY:
                    pass  # it waits for a permit, nobody knows how long
                case _:
                    free_in.append(0.0)
        ahead = self.queue.ahead_of(tenant, self.queue.waiting(tenant))
        seconds = wait_seconds(free_in, ahead=ahead, each=self.lease_seconds or self.longest_lease_seconds(now))
        return min(max(start if seconds is None else seconds, 1.0), MAX_RETRY_AFTER_SECONDS)

    def longest_lease_seconds(self, now: float) -> float:
        """How long the lease that goes on for longest is likely to go on still; 0 without any."""
        return max(
            (self._seconds_to_go(slot, now) for slot in self.slots if slot.state is SlotState.LEASED), default=0.0
        )

    def _seconds_to_go(self, slot: Slot, now: float) -> float:
        # One that goes on for longer than others did is a long one, and as likely to go on as to end.
        return max(self.lease_seconds, now - slot.leased_at)

    def stats(self, now: float) -> LanguageStats:
        counts = Counter(slot.state for slot in self.slots)
        return LanguageStats(
            size=self.size,
            slots={state: counts[state] for state in SlotState if state is not SlotState.RESERVE},
            queued=len(self.queue),
            longest_wait_seconds=max((now - lease.asked_at for lease in self.queue), default=0.0),
            is_ready=self.is_ready,
            is_failing=self.retry_at is not None,
            is_held_up=self.is_permit_short and self.count(*ALIVE) < 2 and bool(self.due(now)),
        )

    def __repr__(self) -> str:
        counts = Counter(slot.state for slot in self.slots)
        shown = [state for state in SlotState if state is not SlotState.RESERVE and counts[state]]
        states = " ".join(f"{counts[state]} {state.name}" for state in shown)
        return f"{self.language}: {states or 'no slots'}, {len(self.queue)} queued"


def recent_mean(mean: float, measured: float) -> float:
    """A mean over the last dozen measurements or so, after one more; 0 before the first."""
    return mean + 0.15 * (measured - mean) if mean else measured
