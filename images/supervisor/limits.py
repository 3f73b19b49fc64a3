"""Limits of a run that the kernel does not enforce, or too late: its CPU time and its memory."""

from __future__ import annotations

from supervisor.accounting import Cgroup, count_processes
from supervisor.run import Run

WATCH_SECONDS = 0.02
"""How often they are looked at."""
PROCESS_BYTES = 8 * 1024 * 1024
"""What each process of a run costs where we are the only ones to look (gVisor), whatever it does; not its own use."""
TEMPLATES_BYTES = 256 * 1024 * 1024
"""Likewise, of templates that load beside a run. The container has room for both."""


class LimitWatch:
    """CPU and memory of one run as the container's counters show them."""

    def __init__(self, run: Run, cgroup: Cgroup, *, memory_bytes: int, is_settled: bool) -> None:
        """`memory_bytes`: of a run that asks for no less, 0 where nobody can tell how much is used. `is_settled`: no
        template loads beside the run, so that what is used more is the run's.
        """
        self._run = run
        self._cgroup = cgroup
        self._cpu_us = run.request.cpu_us
        bound = (run.request.memory_bytes or memory_bytes) if memory_bytes else 0
        # The kernel kills at the container's bound, but only once it can take back no page of any file. Up to then the
        # interpreter is read from disk again and again: a program at that bound may last until its time is over.
        if bound and not is_settled:
            # While a template grows beside the run nobody can say whose memory it is, and the kernel's bound must do.
            bound = 0 if cgroup.enforces_memory else bound + TEMPLATES_BYTES
        self._memory_bound = bound
        self._memory_before = cgroup.memory_bytes() - cgroup.cache_bytes() if bound else 0

    @property
    def is_needed(self) -> bool:
        """Whether there is something to look at, every `WATCH_SECONDS`."""
        return bool(self._cpu_us or self._memory_bound)

    def exceeded(self) -> str | None:
        """The limit that the run is beyond now: `cpu`, `memory` or None."""
        if self._cpu_us and (self._run.cpu.used_us() or 0) > self._cpu_us:
            return "cpu"
        if self._memory_bound and self._memory_used() > self._memory_bound:
            return "memory"
        return None

    def _memory_used(self) -> int:
        used = self._cgroup.memory_bytes() - self._memory_before
        if used <= self._memory_bound:
            return used
        # Only a doubt is worth the second look. Reading a file fills the page cache, which is nobody's use of memory.
        used -= self._cgroup.cache_bytes()
        if not self._cgroup.enforces_memory:
            used -= PROCESS_BYTES * count_processes(self._run.process.uid)
        return used
