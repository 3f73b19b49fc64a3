"""Which containers of a language go when other instances are to have some of its permits: idle ones first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sandbox_svc.pool.slots import Slot, SlotState


class Sharing:
    """Chooses the slots whose permits are given back, never more than `surplus` says.

    A slot that was chosen counts until its permit is given back, so that nobody else goes for the same reason.
    """

    def __init__(self, slots: Sequence[Slot], *, surplus: Callable[[], int], retire: Callable[[Slot], None]) -> None:
        self._slots = slots
        self._surplus = surplus
        self._retire = retire
        self._giving: set[Slot] = set()

    def make_room(self) -> None:
        """Retire idle containers, the least recently used first, where those that go anyway do not suffice."""
        longest_first = sorted(self._slots, key=lambda slot: slot.idle_since)
        for slot in longest_first:
            if slot.state is SlotState.RETIRING:
                self.gives(slot)
        for slot in longest_first:
            if slot.state in (SlotState.READY, SlotState.STANDBY) and self.gives(slot):
                self._retire(slot)

    def makes_room(self, slot: Slot) -> bool:
        """Retire a container that is between two runs instead of letting it serve on, if idle ones do not suffice.

        Under load no container is ever found idle.
        """
        self.make_room()
        if not self.gives(slot):
            return False
        self._retire(slot)
        return True

    def gives(self, slot: Slot) -> bool:
        """Whether this slot's permit is one of those to be given back; its container has to go then."""
        surplus = self._surplus()
        if slot in self._giving and len(self._giving) > surplus:
            self._giving.discard(slot)  # nobody waits for it any more
            return False
        if len(self._giving) < surplus:
            self._giving.add(slot)
        return slot in self._giving

    def gave(self, slot: Slot) -> None:
        """Its permit was given back, whatever for."""
        self._giving.discard(slot)
