"""Counters that a program cannot forge: the container's cgroup where it is visible, else `/proc`."""

from __future__ import annotations

import os
from collections.abc import Callable

_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")
# cgroup v1 with Docker shows each controller in its own folder, v2 shows one folder for all.
_OOM_FILES = (("memory.events", b"oom_kill "), ("memory/memory.oom_control", b"oom_kill "))
_CPU_FILES = (("cpu.stat", b"usage_usec "), ("cpuacct/cpuacct.usage", b""))
_MEMORY_FILES = (("memory.current", b""), ("memory/memory.usage_in_bytes", b""))
_CACHE_FILES = (
    ("memory.stat", (b"active_file ", b"inactive_file ")),
    ("memory/memory.stat", (b"total_active_file ", b"total_inactive_file ")),
)


class Cgroup:
    """The container's own counters. Where none are visible (gVisor) every method returns None."""

    def __init__(self, root: str) -> None:
        self._oom = _open_counter(root, _OOM_FILES)
        self._cpu = _open_counter(root, _CPU_FILES)
        self._memory = _open_counter(root, _MEMORY_FILES)
        self._cache = next(
            ((fd, keys) for name, keys in _CACHE_FILES if (fd := _open(f"{root}/{name}")) is not None), None
        )

    def oom_kills(self) -> int | None:
        """Processes that the kernel killed in this container for lack of memory."""
        return _read_counter(self._oom)

    def cpu_us(self) -> int | None:
        """CPU time used by everything in this container, microseconds."""
        counter = _read_counter(self._cpu)
        if counter is None or self._cpu is None:
            return None
        # v1 counts nanoseconds.
        return counter if self._cpu[1] else counter // 1000

    @property
    def enforces_memory(self) -> bool:
        """Whether running out of memory costs a process of the run. Where no counter is visible (gVisor) it costs the
        whole container, so somebody has to look before that."""
        return self._oom is not None

    def counts_memory(self, container_bytes: int) -> bool:
        """Whether `memory_bytes` is this container's own, which may use so much. Without gVisor, and
        with no cgroup in sight, `/proc/meminfo` is the machine's and says nothing about a run."""
        return self.enforces_memory or _meminfo()[0] <= container_bytes

    def memory_bytes(self) -> int:
        """Memory charged to the container, page cache and tmpfs included; in gVisor all that is handed out."""
        charged = _read_counter(self._memory) if self._oom is not None else None
        if charged is not None:
            return charged
        total, free = _meminfo()
        return total - free

    def cache_bytes(self) -> int:
        """The part of it that holds pages of files of the image: the kernel takes them back before it kills."""
        if self._cache is None:
            return 0
        fd, keys = self._cache
        return sum(int(line.split()[1]) for line in os.pread(fd, 8192, 0).splitlines() if line.startswith(keys))


class CpuMeter:
    """CPU time of one run: what the container used since it began, less what went on beside it."""

    def __init__(self, cgroup: Cgroup, others: Callable[[], int] | None) -> None:
        """`others` tells the CPU time that what is no part of the run has used so far, in microseconds; None where
        nothing of that is at work.
        """
        self._cgroup = cgroup
        self._others = others
        self._before = cgroup.cpu_us()
        self._others_before = 0 if others is None else others()

    def used_us(self) -> int | None:
        """Microseconds up to now, None where no counter is visible (gVisor)."""
        now = self._cgroup.cpu_us()
        if now is None or self._before is None:
            return None
        beside = 0 if self._others is None else max(0, self._others() - self._others_before)
        return max(0, now - self._before - beside)


def process_cpu_us(pid: int) -> int:
    """CPU time of a process so far, microseconds in steps of the kernel's clock ticks; 0 once it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            fields = file.read(4096).rpartition(b")")[2].split()
    except OSError:
        return 0
    return (int(fields[11]) + int(fields[12])) * _TICK_US


def peak_memory_kb(pid: int) -> int:
    """Peak resident set of a live process in KiB, 0 once it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb", buffering=0) as file:
            status = file.read(4096)
    except OSError:
        return 0
    # gVisor reports no high-water mark.
    for name in (b"\nVmHWM:", b"\nVmRSS:"):
        at = status.find(name)
        if at >= 0:
            return int(status[at + len(name) : status.index(b"kB", at)])
    return 0


def count_processes(uid: int) -> int:
    """Processes of a user that exist now."""
    count = 0
    for name in os.listdir("/proc"):
        try:
            count += name.isdigit() and os.stat(f"/proc/{name}").st_uid == uid
        except OSError:
            continue  # it ended
    return count


_Counter = tuple[int, bytes]


def _meminfo() -> tuple[int, int]:
    """Bytes in all, and those that are free."""
    with open("/proc/meminfo", "rb", buffering=0) as file:
        found = dict(line.split(b":", 1) for line in file.read(4096).splitlines() if b":" in line)
    return 1024 * int(found[b"MemTotal"].split()[0]), 1024 * int(found[b"MemFree"].split()[0])


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _open_counter(root: str, files: tuple[tuple[str, bytes], ...]) -> _Counter | None:
    for name, key in files:
        fd = _open(f"{root}/{name}")
        if fd is not None:
            return fd, key
    return None


def _read_counter(counter: _Counter | None) -> int | None:
    if counter is None:
        return None
    fd, key = counter
    text = os.pread(fd, 4096, 0)
    if not key:
        return int(text)
    for line in text.splitlines():
        if line.startswith(key):
            return int(line[len(key) :])
    return None
