"""The pool: a fixed set of slots per language and who may have them next; transitions without I/O or await."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from sandbox_svc.clock import Clock
from sandbox_svc.errors import PoolClosed, QueueFull, QueueTimeout, UnknownLanguage
from sandbox_svc.pool.events import (
    Observer,
    QueueAnswer,
    QueueWaited,
    ResetTook,
    SlotRetired,
    SlotStarted,
    StartFailed,
    ignore,
)
from sandbox_svc.pool.leases import Lease
from sandbox_svc.pool.matching import Rules, choose, decide
from sandbox_svc.pool.policy import PoolSettings, Reuse
from sandbox_svc.pool.shelf import LanguageStats, Shelf, recent_mean
from sandbox_svc.pool.slots import ALIVE, Retirement, Slot, SlotState
from sandbox_svc.runtime import Sandbox

logger = logging.getLogger("sandbox_svc.pool")


class Pool:
    """Slots by language. `lease` is for callers, `Lease` calls the second group of methods, the keeper the third.

    A language of size n has n + 1 slots and never more than n containers in service: one slot is the RESERVE, in which
    the replacement of a container that is too old or of an older image starts before that one is retired. The place
    that becomes free is the next reserve, so the role moves on. EMPTY slots only exist beside a RESERVE.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        *,
        clock: Clock,
        settings: PoolSettings | None = None,
        observer: Observer = ignore,
    ) -> None:
        self.clock = clock
        self.notify = observer
        self.is_closed = False
        self._closed_until = 0.0
        """When the last lease is over after `close`, at the latest."""
        self._settings = settings if settings is not None else PoolSettings()
        self._shelves = {language: Shelf(language, size) for language, size in sizes.items()}

    # For callers

    def lease(
        self, language: str, *, tenant: str, template: str, timeout_seconds: float, share: int | None = None
    ) -> Lease:
        """A lease to enter with `async with`; raises `UnknownLanguage`.

        `share` bounds how many slots of the language the tenant leases at once while other tenants wait for one.
        """
        if language not in self._shelves:
            raise UnknownLanguage(f"language {language!r} is not served here")
        return Lease(self, language, tenant=tenant, template=template, timeout_seconds=timeout_seconds, share=share)

    def is_ready(self, language: str) -> bool:
        """Whether the language has a container that serves now or comes back by itself."""
        shelf = self._shelves.get(language)
        return shelf is not None and not self.is_closed and shelf.is_ready

    def stats(self) -> dict[str, LanguageStats]:
        now = self.clock.time()
        return {language: shelf.stats(now) for language, shelf in self._shelves.items()}

    def retry_after_seconds(self, language: str, tenant: str) -> float:
        """When a request of the tenant that is refused now is likely to be served if it comes again; 1 to 60 s."""
        return self._shelves[language].retry_after_seconds(tenant, self.clock.time())

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self._shelves)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(slot for shelf in self._shelves.values() for slot in shelf.slots)

    def __repr__(self) -> str:
        shelves = " | ".join(map(repr, self._shelves.values()))
        return f"<Pool{' closed' if self.is_closed else ''} {shelves}>"

    # For leases

    def ask(self, lease: Lease) -> None:
        """Give the lease a slot at once or a place in the queue. Raises `PoolClosed`, `QueueFull` or `QueueTimeout`."""
        lease.asked_at = now = self.clock.time()
        shelf = self._shelves[lease.language]
        if self.is_closed:
            raise self.refused(lease, QueueAnswer.CLOSED)
        if not shelf.queue:
            slot = choose(shelf.slots, lease.tenant, lease.template)
            if slot is not None:
                self._hand(slot, lease)
                return
        shelf.queue.push(lease)
        self._dispatch(shelf)
        if lease.slot is not None:
            return
        seconds = lease.timeout_seconds
        if seconds <= 0 or shelf.is_hopeless(now + seconds) or shelf.is_too_late(lease.tenant, seconds, now):
            shelf.queue.discard(lease)
            raise self.refused(lease, QueueAnswer.TIMED_OUT)
        if len(shelf.queue) > self._settings.queue_size:
            surplus = shelf.queue.overflow(lease)
            shelf.queue.discard(surplus)
            error = self.refused(surplus, QueueAnswer.FULL)
            if surplus is lease:
                raise error
            surplus.refuse(error)

    def begin(self, lease: Lease) -> None:
        """The lease has its slot and its body begins: from here on the container is the tenant's alone."""
        slot = lease.slot
        assert slot is not None  # noqa: S101 - `ask` and the hand-over set it
        now = self.clock.time()
        if slot.tenant is None:
            slot.tenant = lease.tenant
            slot.bound_at = now
            self._spare(self._shelves[lease.language])
        lease.queued_seconds = now - lease.asked_at
        self.notify(QueueWaited(lease.language, QueueAnswer.SERVED, lease.queued_seconds))

    def abandon(self, lease: Lease) -> None:
        """The one who waited is gone: take the lease out of the queue, or its unused slot back."""
        shelf = self._shelves[lease.language]
        slot = lease.slot
        if slot is None:
            if not shelf.queue.discard(lease):
                return  # it was refused, and that was told then
        elif slot.lease is lease:
            slot.lease = None
            slot.state = SlotState.READY  # nothing was sent to it, so it is as clean as before
            if slot.doomed is not None or self.is_closed:
                self._retire(slot, slot.doomed or Retirement.CLOSED)
        self.notify(QueueWaited(lease.language, QueueAnswer.CANCELLED, self.clock.time() - lease.asked_at))
        self._dispatch(shelf)

    def time_out(self, lease: Lease) -> None:
        """The lease has waited its full time."""
        shelf = self._shelves[lease.language]
        if not lease.is_gone and shelf.queue.discard(lease):
            lease.refuse(self.refused(lease, QueueAnswer.TIMED_OUT))
            self._dispatch(shelf)

    def release(self, lease: Lease, reason: Retirement | None) -> None:
        """The lease is over; with a reason, its container has to go."""
        slot = lease.slot
        if slot is None or slot.lease is not lease:
            return  # evicted: the slot is somebody else's business now
        shelf = self._shelves[lease.language]
        now = self.clock.time()
        shelf.leases += 1
        shelf.lease_seconds = recent_mean(shelf.lease_seconds, now - slot.leased_at)
        slot.lease = None
        slot.idle_since = now
        slot.state = SlotState.RESETTING
        reason = reason or slot.doomed
        if reason is None and self.is_closed:
            reason = Retirement.CLOSED
        if reason is None and self._settings.reuse is Reuse.NEVER:
            reason = Retirement.USED
        if reason is None and slot.sandbox is not None and slot.sandbox.runs_left <= 0:
            reason = Retirement.WORN_OUT
        if reason is None:
            slot.wake()
        else:
            self._retire(slot, reason)

    def refused(self, lease: Lease, answer: QueueAnswer) -> PoolClosed | QueueFull | QueueTimeout:
        """The error that answers the lease."""
        self.notify(QueueWaited(lease.language, answer, self.clock.time() - lease.asked_at))
        if answer is QueueAnswer.CLOSED:
            return PoolClosed("The service is shutting down", retry_after_seconds=self._seconds_to_end())
        error = QueueFull if answer is QueueAnswer.FULL else QueueTimeout
        return error(retry_after_seconds=self.retry_after_seconds(lease.language, lease.tenant))

    def _seconds_to_end(self) -> float:
        """Until the last lease is likely to be over, once the pool is closed; another instance may come then."""
        now = self.clock.time()
        longest = max((shelf.longest_lease_seconds(now) for shelf in self._shelves.values()), default=0.0)
        return max(min(longest, self._closed_until - now), 0.0)

    # For the keeper

    def is_wanted(self, slot: Slot) -> bool:
        """Whether a container should be started in the slot: always, but in the RESERVE only while one is due."""
        if slot.state is not SlotState.RESERVE:
            return slot.state is SlotState.STARTING or (slot.state is SlotState.EMPTY and not self.is_closed)
        shelf = self._shelves[slot.language]
        return not self.is_closed and shelf.is_calm() and bool(shelf.due(self.clock.time()))

    def starting(self, slot: Slot) -> bool:
        """A permit is held for the slot and a container will be created; False when none is wanted there any more."""
        if not self.is_wanted(slot):
            return False
        if slot.state is SlotState.RESERVE:
            empty = self._shelves[slot.language].find(SlotState.EMPTY)
            if empty is not None:
                empty.state = SlotState.RESERVE  # what it waits for has come to the other one
                empty.wake()
        else:
            self._expect(slot, SlotState.EMPTY)
        slot.state = SlotState.STARTING
        return True

    def no_permit(self, slot: Slot) -> None:
        """There was no permit for the RESERVE for a while: replace a container in its own place if others serve."""
        shelf = self._shelves[slot.language]
        if not self.is_wanted(slot):
            return
        if not shelf.is_permit_short:
            logger.info("language %s: no permit for a replacement beside what it replaces", slot.language)
            shelf.is_permit_short = True
        self._renew(shelf)

    def start_given_up(self, slot: Slot) -> None:
        """No container was created after all."""
        self._expect(slot, SlotState.STARTING)
        self._vacate(slot)

    def start_failed(self, slot: Slot, *, code: str, failures: int, retry_at: float) -> None:
        """No container could be created; the language's next attempt is at `retry_at` in clock seconds."""
        self._expect(slot, SlotState.STARTING)
        shelf = self._shelves[slot.language]
        self._vacate(slot)
        shelf.retry_at = retry_at
        self.notify(StartFailed(slot.language, code, failures, max(retry_at - self.clock.time(), 0.0)))
        for lease in list(shelf.queue):
            if not lease.is_gone and shelf.is_hopeless(lease.asked_at + lease.timeout_seconds):
                shelf.queue.discard(lease)
                lease.refuse(self.refused(lease, QueueAnswer.TIMED_OUT))

    def started(self, slot: Slot, sandbox: Sandbox, *, seconds: float, expires_at: float) -> None:
        """A container is ready; starting it took `seconds`."""
        self._expect(slot, SlotState.STARTING)
        shelf = self._shelves[slot.language]
        shelf.retry_at = None
        shelf.start_seconds = recent_mean(shelf.start_seconds, seconds)
        slot.sandbox = sandbox
        slot.expires_at = expires_at
        slot.idle_since = self.clock.time()
        slot.state = SlotState.STANDBY
        shelf.is_permit_short = False
        self.notify(SlotStarted(slot.language, seconds))
        if self.is_closed:
            self._retire(slot, Retirement.CLOSED)
        self._admit(shelf)
        self._renew(shelf)

    def settled(self, slot: Slot) -> None:
        """The reset after a run is verified."""
        self._expect(slot, SlotState.RESETTING)
        self.notify(ResetTook(slot.language, self.clock.time() - slot.idle_since))
        self._come_back(self._shelves[slot.language], slot)

    def check_idle(self, *, seconds: float) -> None:
        """Have every idle container that gave no sign of life for `seconds` asked for one."""
        oldest = self.clock.time() - seconds
        for slot in self.slots:
            if slot.state is SlotState.READY and slot.idle_since <= oldest:
                slot.state = SlotState.CHECKING
                slot.wake()

    def checked(self, slot: Slot) -> None:
        """The idle container gave a sign of life."""
        self._expect(slot, SlotState.CHECKING)
        self._come_back(self._shelves[slot.language], slot)

    def retire(self, slot: Slot, reason: Retirement) -> None:
        """Have the container removed: now, or when the lease that holds it is over."""
        if slot.state is SlotState.LEASED:
            slot.doomed = reason
        elif slot.state in ALIVE or slot.state is SlotState.STANDBY:
            self._retire(slot, reason)

    def is_refill_wanted(self, slot: Slot) -> bool:
        """Whether the place of a container that is gone is to be filled again; else it becomes the RESERVE."""
        return self._shelves[slot.language].find(SlotState.RESERVE) is not None

    def removed(self, slot: Slot, *, is_refilled: bool) -> None:
        """The engine confirmed that the container is gone; `is_refilled` when its permit is kept for the next one."""
        self._expect(slot, SlotState.RETIRING)
        slot.clear()
        if is_refilled:
            slot.state = SlotState.STARTING
        else:
            self._vacate(slot)
            self._dispatch(self._shelves[slot.language])  # who counted on this slot may need another one

    def set_generation(self, language: str, generation: str) -> None:
        """Containers of the language should be of this image; others are replaced, one after another."""
        shelf = self._shelves[language]
        if shelf.generation != generation:
            logger.info("language %s is now of image %s", language, generation)
            shelf.generation = generation
            shelf.is_permit_short = False
            self._renew(shelf)

    def expire(self) -> None:
        """Replace containers that are too old or of an older image, or one too few of them fresh; one at a time."""
        for shelf in self._shelves.values():
            self._renew(shelf)
            self._spare(shelf)

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """Take no new leases, answer those who wait with `PoolClosed`, retire what is not leased. Leases go on, for
        `drain_seconds` at most.
        """
        if self.is_closed:
            return
        self.is_closed = True
        self._closed_until = self.clock.time() + drain_seconds
        for shelf in self._shelves.values():
            for lease in list(shelf.queue):
                if shelf.queue.discard(lease):
                    lease.refuse(self.refused(lease, QueueAnswer.CLOSED))
            for slot in shelf.slots:
                if slot.state in (SlotState.RESERVE, SlotState.EMPTY, SlotState.STARTING):
                    slot.wake()  # its keeper task gives up what it waits for
                else:
                    self.retire(slot, Retirement.CLOSED)

    def evict(self) -> None:
        """Close, and take the containers away from the leases that still hold them; their runs end in `SandboxLost`."""
        self.close()
        for slot in self.slots:
            if slot.state is SlotState.LEASED:
                slot.lease = None
                self._retire(slot, Retirement.CLOSED)
            else:
                slot.wake()  # cuts short what is still waited for, such as the pause before a removal is tried again

    # Within

    def _dispatch(self, shelf: Shelf) -> None:
        """Make all moves that can be made now."""
        while shelf.queue:
            move = decide(shelf.slots, shelf.queue, self._rules(shelf))
            if move is None:
                self._look_again(shelf)
                return
            if move.lease is None:
                if move.slot.tenant is not None:
                    shelf.contended_at = self.clock.time()
                    shelf.queue.pass_turn(move.slot.tenant)  # else the place could fall to the one that gave it up
                self._retire(move.slot, Retirement.NEEDED)
            elif self._hand(move.slot, move.lease):
                shelf.queue.serve(move.lease)
            else:
                shelf.queue.discard(move.lease)

    def _look_again(self, shelf: Shelf) -> None:
        """Somebody waits beside an idle slot that is kept for another tenant: time alone may make the next move."""
        if shelf.look_again is None and shelf.count(SlotState.READY):
            seconds = max(self._keep_seconds(shelf), 0.05)
            shelf.look_again = self.clock.call_later(seconds, lambda: self._time_has_passed(shelf))

    def _time_has_passed(self, shelf: Shelf) -> None:
        shelf.look_again = None
        self._dispatch(shelf)

    def _rules(self, shelf: Shelf) -> Rules:
        # While starts fail, a container given up for another tenant would be lost to both.
        at_once = 0 if shelf.retry_at is not None or self.is_closed else self._settings.replace_at_once
        return Rules(shelf.size, self.clock.time(), self._settings.turn_seconds, self._keep_seconds(shelf), at_once)

    def _keep_seconds(self, shelf: Shelf) -> float:
        # To keep it for longer than replacing takes would cost more than it saves.
        return min(shelf.start_seconds, self._settings.turn_seconds)

    def _hand(self, slot: Slot, lease: Lease) -> bool:
        self._expect(slot, SlotState.READY)
        if slot.tenant not in (None, lease.tenant):
            raise RuntimeError(f"{slot!r} cannot serve tenant {lease.tenant}")
        if not lease.offer(slot):
            return False
        slot.state = SlotState.LEASED
        slot.lease = lease
        slot.leased_at = self.clock.time()
        return True

    def _come_back(self, shelf: Shelf, slot: Slot) -> None:
        """The container is clean and idle: keep it and see who waits, or let it go if its time has come."""
        slot.idle_since = self.clock.time()
        slot.state = SlotState.READY
        reason = Retirement.CLOSED if self.is_closed else None
        if reason is None and slot.sandbox is not None and slot.sandbox.runs_left <= 0:
            reason = Retirement.WORN_OUT
        if reason is not None:
            self._retire(slot, reason)
        self._renew(shelf)
        self._dispatch(shelf)

    def _renew(self, shelf: Shelf) -> None:
        """Go on with replacing what is due."""
        if self.is_closed:
            return
        now = self.clock.time()
        due = shelf.due(now)
        if not due and not shelf.count(SlotState.EMPTY, SlotState.STARTING, SlotState.RETIRING):
            shelf.retry_at = None  # what failed to start is not wanted any more
        replaced = shelf.replaced(due, now)
        if replaced is not None:
            self._retire(*replaced)
        elif due and (reserve := shelf.find(SlotState.RESERVE)) is not None:
            reserve.nudge()

    def _admit(self, shelf: Shelf) -> None:
        """Let the container in STANDBY serve as soon as fewer than the pool's size do."""
        standby = shelf.find(SlotState.STANDBY)
        if standby is not None and shelf.count(*ALIVE) < shelf.size:
            standby.state = SlotState.READY
            self._dispatch(shelf)

    def _vacate(self, slot: Slot) -> None:
        """Nothing is in the slot any more: it is the RESERVE, if no other one is."""
        slot.state = SlotState.EMPTY if self.is_refill_wanted(slot) else SlotState.RESERVE

    def _spare(self, shelf: Shelf) -> None:
        slot = None if self.is_closed else shelf.spare(self.clock.time(), self._keep_seconds(shelf))
        if slot is not None:
            self._retire(slot, Retirement.SPARE)

    def _retire(self, slot: Slot, reason: Retirement) -> None:
        slot.state = SlotState.RETIRING
        logger.debug("retired %r: %s", slot, reason.value)
        self.notify(SlotRetired(slot.language, reason))
        slot.wake()
        self._admit(self._shelves[slot.language])

    @staticmethod
    def _expect(slot: Slot, state: SlotState) -> None:
        if slot.state is not state:
            raise RuntimeError(f"{slot!r} is not {state.name}")


__all__ = ["LanguageStats", "Pool", "PoolSettings", "Reuse"]
