"""Who owns a container, and whether that owner is still alive: what a sweep must know before it removes anything."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from sandbox_svc.runtime.container_spec import HOST_LABEL, INSTANCE_LABEL

IsAlive = Callable[[str], Awaitable[bool | None]]
"""Given an instance id: True when it gives signs of life, False when it has been silent for so long that it is dead or
cut off, None unknown. Raises nothing."""

ENDED_SECONDS: Final = 60
"""An ended container waits this long for its owner, who may want to know how it ended."""
CREATED_SECONDS: Final = 300
"""No start takes this long; a container that was never started has lost its owner."""
SILENT_SECONDS: Final = 5
"""The same for an owner that is silent. If it is dead, its containers ended before it was missed; if not, it may be
about to start one or to ask how one ended."""


class Stranger(NamedTuple):
    """A container of another instance, in whatever state."""

    instance: str
    language: str


ListStrangers = Callable[[], Awaitable[list[Stranger]]]
"""Ask the engine now. Raises `RuntimeUnavailable`."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A container of the service as the engine lists it; times are the engine's own, seconds since 1970."""

    id: str
    name: str
    labels: dict[str, str]
    is_created: bool
    """Never started."""
    created_at: float
    ended_at: float | None
    """None while it runs or is paused."""


class Birthmark(msgspec.Struct, frozen=True):
    """A process on a host, told apart from every other that ever was on it.

    Numbers of processes and of namespaces are used again, but not together with a start time: whoever sees the same
    boot and namespace and no such process knows that it has ended.
    """

    boot: str
    namespace: str
    pid: int
    started: int
    """Clock ticks from boot."""

    @classmethod
    def of_this_process(cls) -> Birthmark:
        """Read our own. Raises `OSError` where /proc is missing."""
        pid = os.getpid()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return cls(boot, os.readlink("/proc/self/ns/pid"), pid, _start_time(pid) or 0)

    @classmethod
    def parse(cls, text: str) -> Birthmark | None:
        """Read a label; None for one that is not ours."""
        try:
            boot, namespace, pid, started = text.split(" ")
            return cls(boot, namespace, int(pid), int(started))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.boot} {self.namespace} {self.pid} {self.started}"

    def is_alive(self, here: Birthmark) -> bool | None:
        """Tell whether that process lives, seen from `here`; None when it cannot be seen from there."""
        if (self.boot, self.namespace) != (here.boot, here.namespace):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # somebody else's, which says that it exists
        started = _start_time(self.pid)
        # hidepid may keep the answer from us.
        return None if started is None else started == self.started


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may hold anything, so count from its end.
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


async def is_leftover(
    container: Listed, *, now: float, instance: str, here: Birthmark, owned: frozenset[str], is_alive: IsAlive | None
) -> bool:
    """Tell whether a container belongs to nobody any more. `owned` are the names of this instance's containers.

    `now` is the engine's time. Only a proof removes what still runs: the process that owned it is seen to be gone. An
    owner that is silent may be at work behind a broken line, and if it is dead, its containers end by their leash.
    """
    owner = container.labels.get(INSTANCE_LABEL, "")
    if owner == instance:
        # Ours, but no object remembers it: the answer to its creation never came.
        return container.name not in owned and now - container.created_at > CREATED_SECONDS
    mark = Birthmark.parse(container.labels.get(HOST_LABEL, ""))
    alive = mark.is_alive(here) if mark is not None else None
    if alive is not None:
        return not alive
    answer = await is_alive(owner) if is_alive is not None else None
    if answer:
        return False
    # A living owner holds the other end of its containers' stdin and they end when it lets go, so a running one is left
    # alone, and one that ended belongs to nobody once its owner had the time to look at it.
    is_silent = answer is not None
    if container.ended_at is not None:
        return now - container.ended_at > (SILENT_SECONDS if is_silent else ENDED_SECONDS)
    return container.is_created and now - container.created_at > (SILENT_SECONDS if is_silent else CREATED_SECONDS)
