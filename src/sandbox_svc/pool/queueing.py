"""The waiting queue of one language: first in, first out within a tenant, in turn between tenants."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox_svc.pool.leases import Lease


class FairQueue:
    """Waiting leases by tenant; the order of tenants is the order of their turns."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        # Insertion order is the turn: a tenant that was served goes to the end, a new one joins at the end.
        self._lines: dict[str, deque[Lease]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __iter__(self) -> Iterator[Lease]:
        for line in self._lines.values():
            yield from line

    def tenants(self) -> list[str]:
        """Tenants that have a lease waiting, the one whose turn is next first."""
        return list(self._lines)

    def waiting(self, tenant: str) -> int:
        line = self._lines.get(tenant)
        return 0 if line is None else len(line)

    def peek(self, tenant: str, position: int) -> Lease | None:
        """The tenant's waiting lease at `position` (0 came first), or None."""
        line = self._lines[tenant]
        return line[position] if position < len(line) else None

    def ahead_of(self, tenant: str, position: int) -> int:
        """How many have their turn before the tenant's lease at `position`, which need not be there yet."""
        ahead, is_before = position, True
        for other, line in self._lines.items():
            if other == tenant:
                is_before = False
            else:
                ahead += min(len(line), position + is_before)
        return ahead

    def push(self, lease: Lease) -> None:
        self._lines.setdefault(lease.tenant, deque()).append(lease)

    def serve(self, lease: Lease) -> None:
        """Take out a lease that got its slot; its tenant's next turn comes after everybody else's."""
        self._lines[lease.tenant].remove(lease)
        self.pass_turn(lease.tenant)

    def pass_turn(self, tenant: str) -> None:
        """Everybody else's turn comes before the tenant's next one."""
        line = self._lines.pop(tenant, None)
        if line:
            self._lines[tenant] = line

    def discard(self, lease: Lease) -> bool:
        """Take out a lease that waits no longer, without touching the turns; False when it was not in the queue."""
        line = self._lines.get(lease.tenant)
        if line is None or lease not in line:
            return False
        line.remove(lease)
        if not line:
            del self._lines[lease.tenant]
        return True

    def overflow(self, newcomer: Lease) -> Lease:
        """The lease to refuse when there is one too many: the newest of the tenant with the longest line.

        So a tenant that fills the queue is refused itself and cannot keep others out. Among equals it is the newcomer.
        """
        longest = max(self._lines, key=lambda tenant: (len(self._lines[tenant]), tenant == newcomer.tenant))
        return self._lines[longest][-1]
