"""Who gets which slot: the pool's policy as functions of slots and queue that change neither.

Tenants take turns, the one that holds the fewest slots first, so that long programs of one tenant do not crowd out the
short ones of another. A container that served a tenant cannot serve another one, so giving its place away means to
replace it, which costs as much as dozens of short runs. Hence the rules of `_victim`: who has no slot gets an idle one
at once, who has others when it was idle for a while. Busy ones only even out what tenants hold, and where there are
more tenants than slots, they change hands in turns of some length.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sandbox_svc.pool.leases import Lease
from sandbox_svc.pool.queueing import FairQueue
from sandbox_svc.pool.slots import ALIVE, Slot, SlotState


class Move(NamedTuple):
    """The next thing to do: hand `slot` to `lease`, or replace its container when `lease` is None."""

    slot: Slot
    lease: Lease | None


class Rules(NamedTuple):
    """What bounds replacing one tenant's container for another tenant."""

    size: int
    """Containers of the language that serve at most at once."""
    now: float
    turn_seconds: float
    """How long a tenant keeps a slot that another one without any slot waits for."""
    keep_seconds: float
    """How long an idle slot is kept for its tenant from one that has others."""
    replace_at_once: int
    """Never retire more than can be started at the same time, since the rest would only be gone sooner; 0: none."""


def choose(slots: Iterable[Slot], tenant: str, template: str) -> Slot | None:
    """The READY slot that serves this tenant best, or None.

    The tenant's own before fresh ones, then with a process of the template parked, then the most recently used.
    """
    best: Slot | None = None
    best_rank = 0
    for slot in slots:
        if slot.state is not SlotState.READY or slot.sandbox is None:
            continue
        if slot.tenant == tenant:
            rank = 3
        elif slot.tenant is None:
            rank = 1
        else:
            continue
        if template in slot.sandbox.templates:
            rank += 1
        if best is None or rank > best_rank or (rank == best_rank and slot.idle_since > best.idle_since):
            best, best_rank = slot, rank
    return best


def decide(slots: Sequence[Slot], queue: FairQueue, rules: Rules) -> Move | None:
    """The next move, or None when nothing can be done until something changes.

    Walks the waiting leases in the order in which they would be served. Each takes a READY slot it can use (that is the
    move), else counts as covered by one that is on its way to where it can use it, else may have one replaced. So no
    more containers are replaced than there are leases that nothing else will serve.
    """
    ready = [slot for slot in slots if slot.state is SlotState.READY]
    if not ready:
        return None
    held: Counter[str] = Counter()
    leased: Counter[str] = Counter()
    returning: Counter[str] = Counter()
    coming = replacing = 0
    # What starts beside a container that it replaces, or goes because it was replaced, is no place more.
    missing = rules.size - sum(slot.state in ALIVE for slot in slots)
    for slot in slots:
        match slot.state:
            case SlotState.STARTING | SlotState.RETIRING:
                coming += coming < missing
                replacing += 1
                continue
            case SlotState.RESETTING | SlotState.CHECKING:
                if slot.tenant is None:
                    coming += 1
                else:
                    returning[slot.tenant] += 1
            case SlotState.LEASED if slot.holder is not None:
                leased[slot.holder] += 1
        if slot.holder is not None:
            held[slot.holder] += 1

    tenants = queue.tenants()
    wanted = {tenant: _wanted(queue, tenant, leased[tenant], is_alone=len(tenants) == 1) for tenant in tenants}
    order = [(held[tenant], turn, tenant, 0) for turn, tenant in enumerate(tenants)]
    heapq.heapify(order)
    while order:
        _, turn, tenant, position = heapq.heappop(order)
        lease = queue.peek(tenant, position)
        if lease is None:
            continue
        if not lease.is_gone:
            if not wanted[tenant]:
                continue
            usable = choose(ready, tenant, lease.template)
            if usable is not None:
                return Move(usable, lease)
            if returning[tenant]:
                returning[tenant] -= 1
                wanted[tenant] -= 1
            elif coming:
                coming -= 1
                held[tenant] += 1
                wanted[tenant] -= 1
            else:
                victim = _victim(ready, tenant, held, wanted, rules) if replacing < rules.replace_at_once else None
                if victim is not None:
                    return Move(victim, None)
                continue  # nothing for this tenant now, so nothing for those behind it in its line either
        heapq.heappush(order, (held[tenant], turn, tenant, position + 1))
    return None


def _wanted(queue: FairQueue, tenant: str, leased: int, *, is_alone: bool) -> int:
    """How many slots the tenant would lease now if it could: its share bounds it while others wait."""
    waiting = queue.waiting(tenant)
    first = queue.peek(tenant, 0)
    if is_alone or first is None or first.share is None:
        return waiting
    return min(waiting, max(first.share - leased, 0))


def _victim(ready: list[Slot], tenant: str, held: Counter[str], wanted: Mapping[str, int], rules: Rules) -> Slot | None:
    """The READY slot whose place `tenant` may have: an idle one of another tenant, else one of a tenant with more.

    A tenant with two slots more than the one that waits gives one up. With one slot more it would only trade places, so
    it does that at the end of its turn. The least recently used goes first.
    """
    idle = Counter(slot.tenant for slot in ready)
    best: Slot | None = None
    best_rank: tuple[bool, float] = (False, 0.0)
    for slot in ready:
        owner = slot.tenant
        if owner is None or owner == tenant:
            continue
        is_idle = idle[owner] > wanted.get(owner, 0) and (
            not held[tenant] or rules.now - slot.idle_since >= rules.keep_seconds
        )
        lead = held[owner] - held[tenant]
        if not is_idle and not (lead >= 2 or (lead == 1 and rules.now - slot.bound_at >= rules.turn_seconds)):
            continue
        rank = (is_idle, -slot.idle_since)
        if best is None or rank > best_rank:
            best, best_rank = slot, rank
    return best
